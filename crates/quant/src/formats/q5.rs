//! q5_0 and q5_1: 32 values of five bits and a scale; q5_1 adds a minimum.
//!
//! ```text
//! q5_0  0..2 d f16 · 2..6 qh u32 · 6..22 qs                   value i = d · (q − 16)
//! q5_1  0..2 d f16 · 2..4 m f16 · 4..8 qh u32 · 8..24 qs      value i = d · q + m
//! qs[j]: the low four bits of value j in the low nibble, of value j + 16 in the high one
//! qh: the fifth bit of value i at bit i
//! ```

use super::{
    extreme, f16_at, inverse, nibbles, pack_nibbles, read_f16, shifted, span, two_f16, unpack_nibble,
    write_f16,
};
use crate::format::{Blocks, Format};
use torque_simd::Isa;

/// 5.5 bits, symmetric.
pub struct Q5_0;

/// 6 bits, with a minimum.
pub struct Q5_1;

/// Writes the fifth bits and the nibbles, one after the other.
fn pack(out: &mut [u8], code: impl Fn(usize) -> u8) {
    let fifth = (0..32).fold(0, |bits, i| bits | u32::from(code(i) >> 4 & 1) << i);
    out[..4].copy_from_slice(&fifth.to_le_bytes());
    pack_nibbles(&mut out[4..20], |i| code(i) & 15);
}

/// Code i of what [`pack`] wrote.
fn unpack(packed: &[u8], i: usize) -> u8 {
    unpack_nibble(&packed[4..20], i) | (packed[i / 8] >> (i % 8) & 1) << 4
}

/// Codes `16 i .. 16 i + 16` of what [`pack`] wrote at `offset`, plus `OFFSET`.
#[inline(always)]
fn codes<I: Isa, const OFFSET: i32>(isa: I, block: &[u8], offset: usize, i: usize) -> I::F {
    let low = isa.low_bits::<4, OFFSET>(shifted(isa, block, offset + 4, 4 * i));
    let at = offset + 2 * i;
    isa.add_where(u16::from_le_bytes([block[at], block[at + 1]]), low, isa.splat(16.0))
}

/// For four bits, four bytes: 16 where the bit is set. As numbers, though they are not used as such.
const FIFTH: [f32; 16] = {
    let mut table = [0.0; 16];
    let mut bits = 0;
    while bits < 16 {
        let b = bits as u32;
        table[bits] = f32::from_bits((b & 1 | (b & 2) << 7 | (b & 4) << 14 | (b & 8) << 21) << 4);
        bits += 1;
    }
    table
};

/// 32 codes of what [`pack`] wrote at `offset`.
#[inline(always)]
fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, offset: usize) -> [I::N; 8] {
    let [fifth, ..] = blocks.words(isa, offset);
    let mut codes = nibbles(isa, blocks.words(isa, offset + 4));
    for j in 0..8 {
        let four = isa.lookup(isa.load(&FIFTH), isa.shr_by(fifth, 4 * j as u32));
        codes[j] = isa.or(codes[j], isa.to_bits(four));
    }
    codes
}

impl Format for Q5_0 {
    const NAME: &'static str = "q5_0";
    const ALIASES: &'static [&'static str] = &["q5"];
    const GGML_TYPE: Option<u32> = Some(6);
    const BLOCK: usize = 32;
    const BYTES: usize = 22;
    const GROUP: usize = 32;
    const OFFSET: u8 = 16;
    const TOP: u8 = 31;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        // The value of largest magnitude becomes −16 exactly.
        let d = extreme(x) / -16.0;
        let id = inverse(d);
        write_f16(block, 0, d);
        pack(&mut block[2..], |i| ((x[i] * id + 16.5) as u8).min(31));
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let d = read_f16(block, 0);
        for (i, y) in y.iter_mut().enumerate() {
            *y = f32::from(unpack(&block[2..], i) as i8 - 16) * d;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        codes::<I, -16>(isa, block, 2, i)
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        put(0, isa.low_f16(blocks.words(isa, 0)[0]), isa.splat(0.0));
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, mut put: impl FnMut(usize, &[I::N])) {
        put(0, &row_codes(isa, blocks, 2));
    }
}

impl Format for Q5_1 {
    const NAME: &'static str = "q5_1";
    const GGML_TYPE: Option<u32> = Some(7);
    const BLOCK: usize = 32;
    const BYTES: usize = 24;
    const GROUP: usize = 32;
    const SHIFTED: bool = true;
    const TOP: u8 = 31;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        let (min, max) = span(x);
        let d = (max - min) / 31.0;
        let id = inverse(d);
        write_f16(block, 0, d);
        write_f16(block, 2, min);
        pack(&mut block[4..], |i| (((x[i] - min) * id + 0.5) as u8).min(31));
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let (d, m) = (read_f16(block, 0), read_f16(block, 2));
        for (i, y) in y.iter_mut().enumerate() {
            *y = f32::from(unpack(&block[4..], i)) * d + m;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), f16_at(isa, block, 2))
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        codes::<I, 0>(isa, block, 4, i)
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let (scale, shift) = two_f16(isa, blocks.words(isa, 0)[0]);
        put(0, scale, shift);
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, mut put: impl FnMut(usize, &[I::N])) {
        put(0, &row_codes(isa, blocks, 4));
    }
}
