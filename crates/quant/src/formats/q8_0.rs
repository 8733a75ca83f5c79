//! q8_0: 32 signed bytes and a scale.
//!
//! ```text
//! 0..2  d     f16
//! 2..34 q[32] i8       value i = d · q[i]
//! ```

use super::{biased, bytes16, f16_at, inverse, read_f16, write_f16};
use crate::format::{Blocks, Format};
use torque_simd::Isa;

/// 8.5 bits.
pub struct Q8_0;

impl Format for Q8_0 {
    const NAME: &'static str = "q8_0";
    const ALIASES: &'static [&'static str] = &["q8"];
    const GGML_TYPE: Option<u32> = Some(8);
    const BLOCK: usize = 32;
    const BYTES: usize = 34;
    const GROUP: usize = 32;
    const WIDE: bool = true;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        let largest = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        let d = largest / 127.0;
        let id = inverse(d);
        write_f16(block, 0, d);
        for (q, x) in block[2..].iter_mut().zip(x) {
            // Halves away from zero.
            *q = (x * id).round() as i8 as u8;
        }
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let d = read_f16(block, 0);
        for (y, q) in y.iter_mut().zip(&block[2..]) {
            *y = f32::from(*q as i8) * d;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        isa.to_f32(isa.widen_i8(bytes16(block, 2 + 16 * i)))
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        put(0, isa.low_f16(blocks.words(isa, 0)[0]), isa.splat(0.0));
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, mut put: impl FnMut(usize, &[I::N])) {
        let (first, last) = (blocks.words(isa, 2), blocks.words(isa, 18));
        let mut codes = [first[0]; 8];
        for j in 0..4 {
            (codes[j], codes[4 + j]) = (biased(isa, first[j]), biased(isa, last[j]));
        }
        put(0, &codes);
    }
}
