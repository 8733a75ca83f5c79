//! q4_0 and q4_1: 32 values of four bits and a scale; q4_1 adds a minimum.
//!
//! ```text
//! q4_0  0..2 d f16 · 2..18 qs                   value i = d · (q − 8)
//! q4_1  0..2 d f16 · 2..4 m f16 · 4..20 qs      value i = d · q + m
//! qs[j]: value j in the low nibble, value j + 16 in the high one
//! ```

use super::{
    extreme, f16_at, inverse, nibbles, pack_nibbles, read_f16, shifted, span, two_f16, unpack_nibble,
    write_f16,
};
use crate::format::{Blocks, Format};
use torque_simd::Isa;

/// 4.5 bits, symmetric.
pub struct Q4_0;

/// 5 bits, with a minimum.
pub struct Q4_1;

impl Format for Q4_0 {
    const NAME: &'static str = "q4_0";
    const ALIASES: &'static [&'static str] = &["q4"];
    const GGML_TYPE: Option<u32> = Some(2);
    const BLOCK: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const OFFSET: u8 = 8;
    const TOP: u8 = 15;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        // The value of largest magnitude becomes −8 exactly.
        let d = extreme(x) / -8.0;
        let id = inverse(d);
        write_f16(block, 0, d);
        pack_nibbles(&mut block[2..18], |i| ((x[i] * id + 8.5) as u8).min(15));
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let d = read_f16(block, 0);
        for (i, y) in y.iter_mut().enumerate() {
            *y = f32::from(unpack_nibble(&block[2..18], i) as i8 - 8) * d;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        isa.low_bits::<4, -8>(shifted(isa, block, 2, 4 * i))
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        put(0, isa.low_f16(blocks.words(isa, 0)[0]), isa.splat(0.0));
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, mut put: impl FnMut(usize, &[I::N])) {
        put(0, &nibbles(isa, blocks.words(isa, 2)));
    }
}

impl Format for Q4_1 {
    const NAME: &'static str = "q4_1";
    const GGML_TYPE: Option<u32> = Some(3);
    const BLOCK: usize = 32;
    const BYTES: usize = 20;
    const GROUP: usize = 32;
    const SHIFTED: bool = true;
    const TOP: u8 = 15;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        let (min, max) = span(x);
        let d = (max - min) / 15.0;
        let id = inverse(d);
        write_f16(block, 0, d);
        write_f16(block, 2, min);
        pack_nibbles(&mut block[4..20], |i| (((x[i] - min) * id + 0.5) as u8).min(15));
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let (d, m) = (read_f16(block, 0), read_f16(block, 2));
        for (i, y) in y.iter_mut().enumerate() {
            *y = f32::from(unpack_nibble(&block[4..20], i)) * d + m;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), f16_at(isa, block, 2))
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        isa.low_bits::<4, 0>(shifted(isa, block, 4, 4 * i))
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let (scale, shift) = two_f16(isa, blocks.words(isa, 0)[0]);
        put(0, scale, shift);
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, mut put: impl FnMut(usize, &[I::N])) {
        put(0, &nibbles(isa, blocks.words(isa, 4)));
    }
}
