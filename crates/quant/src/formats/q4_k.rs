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
use super::{byte_of, nibbles, read_f16, two_f16, write_f16};
use crate::format::{Blocks, Format};
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

/// [`Format::row_affines`] of both: [`six_bits`] on four bytes at a time.
#[inline(always)]
fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
    let [halves, a, b, c] = blocks.words(isa, 0);
    let (d, min) = two_f16(isa, halves);
    let min = isa.sub(isa.splat(0.0), min);
    let mut numbers = [[a, c], [b, isa.shr::<4>(c)]];
    for ([first, last], two) in numbers.iter_mut().zip([a, b]) {
        let two = isa.and(isa.shr::<2>(two), isa.splat_n(0x3030_3030));
        *first = isa.and(*first, isa.splat_n(0x3f3f_3f3f));
        *last = isa.or(isa.and(*last, isa.splat_n(0x0f0f_0f0f)), two);
    }
    let [scales, minimums] = numbers;
    for j in 0..8 {
        let scale = isa.to_f32(byte_of(isa, scales[j / 4], j % 4, 0, 255));
        let minimum = isa.to_f32(byte_of(isa, minimums[j / 4], j % 4, 0, 255));
        put(j, isa.mul(d, scale), isa.mul(min, minimum));
    }
}

/// 64 codes of what [`pack`] wrote at `offset`: those in low nibbles, and those in high ones.
#[inline(always)]
fn row_nibbles<I: Isa>(isa: I, blocks: Blocks<'_>, offset: usize) -> [[I::N; 8]; 2] {
    let (first, last) =
        (nibbles(isa, blocks.words(isa, offset)), nibbles(isa, blocks.words(isa, offset + 16)));
    let mut codes = [first; 2];
    for j in 0..4 {
        (codes[0][j], codes[0][4 + j]) = (first[j], last[j]);
        (codes[1][j], codes[1][4 + j]) = (first[4 + j], last[4 + j]);
    }
    codes
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

impl Format for Q4K {
    const NAME: &'static str = "q4_k";
    const GGML_TYPE: Option<u32> = Some(12);
    const BLOCK: usize = 256;
    const BYTES: usize = 144;
    const GROUP: usize = 32;
    const PART: usize = 64;
    const SHIFTED: bool = true;
    const TOP: u8 = 15;

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
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, put: impl FnMut(usize, I::F, I::F)) {
        row_affines(isa, blocks, put);
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, part: usize, mut put: impl FnMut(usize, &[I::N])) {
        let [low, high] = row_nibbles(isa, blocks, 16 + 32 * part);
        put(2 * part, &low);
        put(2 * part + 1, &high);
    }
}

impl Format for Q5K {
    const NAME: &'static str = "q5_k";
    const GGML_TYPE: Option<u32> = Some(13);
    const BLOCK: usize = 256;
    const BYTES: usize = 176;
    const GROUP: usize = 32;
    const PART: usize = 64;
    const SHIFTED: bool = true;
    const TOP: u8 = 31;

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
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, put: impl FnMut(usize, I::F, I::F)) {
        row_affines(isa, blocks, put);
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, part: usize, mut put: impl FnMut(usize, &[I::N])) {
        let mut codes = row_nibbles(isa, blocks, 48 + 32 * part);
        let fifth = [blocks.words(isa, 16), blocks.words(isa, 32)];
        for (i, codes) in codes.iter_mut().enumerate() {
            for j in 0..8 {
                let bit = isa.shr_by(fifth[j / 4][j % 4], (2 * part + i) as u32);
                codes[j] = isa.or(codes[j], isa.shl::<4>(isa.and(bit, isa.splat_n(0x0101_0101))));
            }
            put(2 * part + i, codes);
        }
    }
}
