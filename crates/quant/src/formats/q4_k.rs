//! q4_k and q5_k: 256 values of four or five bits; eight sub-blocks of 32 with six-bit scale and minimum.
//!
//! ```text
//! both  0..2 d f16 · 2..4 dmin f16       value = d · scale · q − dmin · minimum
//!       4..16 scales[12]   j < 4: scale j in the low six bits of byte j, minimum j of byte j + 4
//!                          j ≥ 4: low four bits of scale and minimum j in the nibbles of byte j + 4,
//!                                 their high two in the high bits of bytes j − 4 and j
//! q4_k  16..144 qs[128]    byte 32 n + l: value 64 n + l in the low nibble, 64 n + 32 + l in the high one
//! q5_k  16..48 qh[32]      bit n of byte l: the fifth bit of value 32 n + l
//!       48..176 qs[128]    as in q4_k
//! ```

use super::fit::{Affine, AffineSearch, fit_affine, nearest};
use super::{f16_at, field, low_nibbles, read_f16, shifted, shifted_twice, word, write_f16};
use crate::format::Format;
use torque_simd::Isa;

/// 4.5 bits.
pub struct Q4K;

/// 5.5 bits.
pub struct Q5K;

/// Scale and minimum of sub-block j.
#[inline(always)]
fn six_bits(scales: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let low = scales[j + 4];
        (low & 15 | scales[j - 4] >> 6 << 4, low >> 4 | scales[j] >> 6 << 4)
    }
}

fn put_six_bits(scales: &mut [u8], j: usize, scale: u8, min: u8) {
    if j < 4 {
        scales[j] |= scale;
        scales[j + 4] |= min;
    } else {
        scales[j + 4] |= scale & 15 | min << 4;
        scales[j - 4] |= scale >> 4 << 6;
        scales[j] |= min >> 4 << 6;
    }
}

/// Scale and shift of sub-block j.
#[inline(always)]
fn sub_block(block: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = six_bits(&block[4..16], j);
    (read_f16(block, 0) * f32::from(scale), -(read_f16(block, 2) * f32::from(min)))
}

/// Scales and minimums of all sub-blocks, a byte each: [`six_bits`] on four bytes at a time.
#[inline(always)]
fn all_six_bits(block: &[u8]) -> [u64; 2] {
    let (a, b, c) = (word(block, 4), word(block, 8), word(block, 12));
    let low = |x: u32| x & 0x3f3f_3f3f;
    let high = |four: u32, two: u32| four & 0x0f0f_0f0f | two >> 2 & 0x3030_3030;
    let eight = |first: u32, last: u32| u64::from(last) << 32 | u64::from(first);
    [eight(low(a), high(c, a)), eight(low(b), high(c >> 4, b))]
}

/// Scales and shifts of all sub-blocks.
#[inline(always)]
fn sub_blocks<I: Isa>(isa: I, block: &[u8], scales: &mut [f32; 16], shifts: &mut [f32; 16]) {
    let (d, min) = (f16_at(isa, block, 0), f16_at(isa, block, 2));
    let [scale, minimum] = all_six_bits(block);
    isa.store(isa.mul(isa.splat(d), isa.to_f32(isa.widen_words([scale, 0]))), scales);
    isa.store(isa.mul(isa.splat(-min), isa.to_f32(isa.widen_words([minimum, 0]))), shifts);
}

/// The same of two blocks of `BYTES`.
#[inline(always)]
fn two_sub_blocks<I: Isa, const BYTES: usize>(isa: I, blocks: &[u8]) -> (I::F, I::F) {
    let (first, second) = (&blocks[..BYTES], &blocks[BYTES..2 * BYTES]);
    let ([scale, minimum], [scale_2, minimum_2]) = (all_six_bits(first), all_six_bits(second));
    let d = isa.join(isa.splat(f16_at(isa, first, 0)), isa.splat(f16_at(isa, second, 0)));
    let min = isa.join(isa.splat(-f16_at(isa, first, 2)), isa.splat(-f16_at(isa, second, 2)));
    let scales = isa.to_f32(isa.widen_words([scale, scale_2]));
    let minimums = isa.to_f32(isa.widen_words([minimum, minimum_2]));
    (isa.mul(d, scales), isa.mul(min, minimums))
}

/// Encodes scales and minimums, and returns the codes.
fn encode(x: &[f32], block: &mut [u8], search: &AffineSearch) -> [[u8; 32]; 8] {
    let (x, _) = x.as_chunks::<32>();
    let fit = |x: &[f32; 32]| -> Affine<32> {
        let rms = (x.iter().fold(0.0, |sum, x| sum + x * x) / 32.0).sqrt();
        fit_affine(x, &x.map(|x| rms + x.abs()), search)
    };
    let mut fits: Vec<Affine<32>> = x.iter().map(fit).collect();
    let max_scale = fits.iter().fold(0.0, |max: f32, fit| max.max(fit.scale));
    let max_min = fits.iter().fold(0.0, |max: f32, fit| max.max(fit.min));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (to_scale, to_min) = (inverse(max_scale), inverse(max_min));
    block.fill(0);
    for (j, fit) in fits.iter().enumerate() {
        let code = |x: f32| nearest(x).clamp(0, 63) as u8;
        put_six_bits(&mut block[4..16], j, code(to_scale * fit.scale), code(to_min * fit.min));
    }
    write_f16(block, 0, max_scale / 63.0);
    write_f16(block, 2, max_min / 63.0);
    std::array::from_fn(|j| {
        let (scale, shift) = sub_block(block, j);
        if scale != 0.0 {
            fits[j].codes = x[j].map(|x| nearest((x - shift) / scale).clamp(0, search.top) as u8);
        }
        fits[j].codes
    })
}

/// Writes the low four bits of 256 codes.
fn pack(qs: &mut [u8], codes: &[[u8; 32]; 8]) {
    for (i, q) in qs.iter_mut().enumerate() {
        let (low, high) = (codes[i / 32 * 2][i % 32], codes[i / 32 * 2 + 1][i % 32]);
        *q = low & 15 | high << 4;
    }
}

/// Code i of what [`pack`] wrote.
fn unpack(qs: &[u8], i: usize) -> u8 {
    qs[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

/// Codes `16 i .. 16 i + 16` of what [`pack`] wrote at `offset`; bits above the fourth are left in place.
#[inline(always)]
fn nibbles<I: Isa>(isa: I, block: &[u8], offset: usize, i: usize) -> I::N {
    shifted(isa, block, offset + i / 4 * 32 + i % 2 * 16, i / 2 % 2 * 4)
}

impl Format for Q4K {
    const NAME: &'static str = "q4_k";
    const GGML_TYPE: Option<u32> = Some(12);
    const BLOCK: usize = 256;
    const BYTES: usize = 144;
    const GROUP: usize = 32;
    const OFFSET: u8 = 0;
    const SHIFTED: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        let search = AffineSearch { top: 15, from: -1.0, trials: 20, absolute: false };
        let codes = encode(x, block, &search);
        pack(&mut block[16..144], &codes);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            let (scale, shift) = sub_block(block, i / 32);
            *y = scale * f32::from(unpack(&block[16..144], i)) + shift;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(_: I, block: &[u8], i: usize) -> (f32, f32) {
        sub_block(block, i / 2)
    }

    #[inline(always)]
    fn affines<I: Isa>(isa: I, block: &[u8], scales: &mut [f32; 16], shifts: &mut [f32; 16]) {
        sub_blocks(isa, block, scales, shifts);
    }

    #[inline(always)]
    fn strip<I: Isa>(isa: I, blocks: &[u8]) -> (I::F, I::F) {
        two_sub_blocks::<I, { Self::BYTES }>(isa, blocks)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        isa.low_bits::<4, 0>(nibbles(isa, block, 16, i))
    }

    #[inline(always)]
    fn bytes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::N {
        low_nibbles(isa, shifted_twice(isa, block, 16 + 32 * i, 0, 4))
    }
}

impl Format for Q5K {
    const NAME: &'static str = "q5_k";
    const GGML_TYPE: Option<u32> = Some(13);
    const BLOCK: usize = 256;
    const BYTES: usize = 176;
    const GROUP: usize = 32;
    const OFFSET: u8 = 0;
    const SHIFTED: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        let search = AffineSearch { top: 31, from: -0.5, trials: 15, absolute: false };
        let codes = encode(x, block, &search);
        pack(&mut block[48..176], &codes);
        for i in 0..256 {
            block[16 + i % 32] |= (codes[i / 32][i % 32] >> 4) << (i / 32);
        }
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            let (scale, shift) = sub_block(block, i / 32);
            let fifth = block[16 + i % 32] >> (i / 32) & 1;
            *y = scale * f32::from(unpack(&block[48..176], i) | fifth << 4) + shift;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(_: I, block: &[u8], i: usize) -> (f32, f32) {
        sub_block(block, i / 2)
    }

    #[inline(always)]
    fn affines<I: Isa>(isa: I, block: &[u8], scales: &mut [f32; 16], shifts: &mut [f32; 16]) {
        sub_blocks(isa, block, scales, shifts);
    }

    #[inline(always)]
    fn strip<I: Isa>(isa: I, blocks: &[u8]) -> (I::F, I::F) {
        two_sub_blocks::<I, { Self::BYTES }>(isa, blocks)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        let fifth = isa.shl::<4>(field(isa, block, 16 + i % 2 * 16, i / 2, 1));
        isa.to_f32(isa.or(isa.and(nibbles(isa, block, 48, i), isa.splat_n(15)), fifth))
    }

    #[inline(always)]
    fn bytes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::N {
        let fifth = shifted_twice(isa, block, 16, 2 * i as i32, 2 * i as i32 + 1);
        let fifth = isa.shl::<4>(isa.and(fifth, isa.splat_n(0x0101_0101)));
        isa.or(low_nibbles(isa, shifted_twice(isa, block, 48 + 32 * i, 0, 4)), fifth)
    }
}
