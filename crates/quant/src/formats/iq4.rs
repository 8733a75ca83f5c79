//! iq4_nl and iq4_xs: four bits into a fixed table of sixteen unevenly spaced levels.
//!
//! ```text
//! iq4_nl  32 values    0..2 d f16 · 2..18 qs                      value i = d · LEVELS[q]
//! iq4_xs  256 values, eight sub-blocks of 32                      value i = d · (scale − 32) · LEVELS[q]
//!         0..2 d f16 · 2..4 high u16: high two bits of scale j at bits 2j
//!         4..8: low four bits of scale j in nibble j % 2 of byte j / 2 · 8..136 qs
//! qs: sixteen bytes for 32 values; value j in the low nibble of byte j, value j + 16 in the high one
//! ```

use super::fit::{EPSILON, nearest};
use super::{
    byte_of, extreme, f16_at, inverse, level_bytes, nibbles, pack_nibbles, read_f16, shifted, unpack_nibble,
    write_f16,
};
use crate::format::{Blocks, Format};
use torque_simd::{Isa, Scalar};

/// 4.5 bits.
pub struct Iq4Nl;

/// 4.25 bits.
pub struct Iq4Xs;

/// The format's table.
const LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// 32 codes of what [`pack_nibbles`] wrote at `offset`.
#[inline(always)]
fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, offset: usize) -> [I::N; 8] {
    let mut codes = nibbles(isa, blocks.words(isa, offset));
    for j in 0..8 {
        codes[j] = isa.lookup_bytes(&const { level_bytes(LEVELS, I::BIAS) }, codes[j]);
    }
    codes
}

/// The nearest level, the upper of two equally near.
fn code(x: f32) -> u8 {
    let upper = LEVELS.iter().position(|level| x < *level).unwrap_or(15).max(1);
    (if x - LEVELS[upper - 1] < LEVELS[upper] - x { upper - 1 } else { upper }) as u8
}

/// `Σ x³ l` and `Σ x² l²` over the levels chosen with an inverse scale: least squares with weights x².
fn squares(x: &[f32; 32], inverse: f32) -> (f32, f32) {
    let (mut sum_xl, mut sum_l2) = (0.0, 0.0);
    for x in x {
        let (w, level) = (x * x, LEVELS[usize::from(code(inverse * x))]);
        sum_xl += w * level * x;
        sum_l2 += w * level * level;
    }
    (sum_xl, sum_l2)
}

/// The best scale: least squares on the codes of a first guess, then on those of `2 tries + 1` others.
fn fit(x: &[f32; 32], guess: f32, tries: i32) -> f32 {
    let max = extreme(x);
    let (sum_xl, sum_l2) = squares(x, 1.0 / guess);
    let mut scale = if sum_l2 > 0.0 { sum_xl / sum_l2 } else { 0.0 };
    let mut best = scale * sum_xl;
    if tries > 0 {
        for stretch in -tries..=tries {
            let (sum_xl, sum_l2) = squares(x, (stretch as f32 + LEVELS[0]) / max);
            if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
                scale = sum_xl / sum_l2;
                best = scale * sum_xl;
            }
        }
    }
    scale
}

impl Iq4Nl {
    /// Encodes with a search over fifteen scales: slower than `encode` and closer, for weights.
    pub fn encode_searched(x: &[f32], block: &mut [u8]) {
        let x: &[f32; 32] = x.try_into().expect("blocks of 32");
        let max = extreme(x);
        let scale = if max.abs() < EPSILON { 0.0 } else { fit(x, -max / LEVELS[0], 7) };
        let id = inverse(scale);
        write_f16(block, 0, scale);
        pack_nibbles(&mut block[2..18], |i| code(id * x[i]));
    }
}

impl Format for Iq4Nl {
    const NAME: &'static str = "iq4_nl";
    const GGML_TYPE: Option<u32> = Some(20);
    const BLOCK: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const WIDE: bool = true;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        let x: &[f32; 32] = x.try_into().expect("blocks of 32");
        let max = extreme(x);
        block.fill(0);
        if max.abs() < EPSILON {
            return;
        }
        // The value of largest magnitude becomes the lowest level.
        let guess = max / LEVELS[0];
        write_f16(block, 0, fit(x, guess, 0));
        pack_nibbles(&mut block[2..18], |i| code(1.0 / guess * x[i]));
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let d = read_f16(block, 0);
        for (i, y) in y.iter_mut().enumerate() {
            *y = d * LEVELS[usize::from(unpack_nibble(&block[2..18], i))];
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        isa.lookup(isa.load(&LEVELS), shifted(isa, block, 2, 4 * i))
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

impl Format for Iq4Xs {
    const NAME: &'static str = "iq4_xs";
    const GGML_TYPE: Option<u32> = Some(23);
    const BLOCK: usize = 256;
    const BYTES: usize = 136;
    const GROUP: usize = 32;
    const WIDE: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let (x, _) = x.as_chunks::<32>();
        let scale = |x: &[f32; 32]| {
            let max = extreme(x);
            if max.abs() < EPSILON { 0.0 } else { fit(x, -max / LEVELS[0], 7) }
        };
        let scales: Vec<f32> = x.iter().map(scale).collect();
        let d = -extreme(&scales) / 32.0;
        let id = inverse(d);
        write_f16(block, 0, d);
        for (j, x) in x.iter().enumerate() {
            let scale = nearest(id * scales[j]).clamp(-32, 31);
            let packed = (scale + 32) as u8;
            block[2 + j / 4] |= (packed >> 4) << (j % 4 * 2);
            block[4 + j / 2] |= (packed & 15) << (j % 2 * 4);
            let id = inverse(d * scale as f32);
            pack_nibbles(&mut block[8 + 16 * j..][..16], |i| code(id * x[i]));
        }
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        for (j, y) in y.chunks_mut(32).enumerate() {
            let (scale, _) = Iq4Xs::affine(Scalar, block, 2 * j);
            for (i, y) in y.iter_mut().enumerate() {
                *y = scale * LEVELS[usize::from(unpack_nibble(&block[8 + 16 * j..], i))];
            }
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], i: usize) -> (f32, f32) {
        let j = i / 2;
        let high = block[2 + j / 4] >> (j % 4 * 2) & 3;
        let low = block[4 + j / 2] >> (j % 2 * 4) & 15;
        (f16_at(isa, block, 0) * f32::from((low | high << 4) as i8 - 32), 0.0)
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let [high, low, ..] = blocks.words(isa, 0);
        let d = isa.low_f16(high);
        for j in 0..8 {
            let two = byte_of(isa, high, 2, 2 * j, 3);
            let integers = isa.or(byte_of(isa, low, 0, 4 * j, 15), isa.shl::<4>(two));
            let scales = isa.to_f32(isa.add_n(integers, isa.splat_n(-32)));
            put(j, isa.mul(d, scales), isa.splat(0.0));
        }
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, part: usize, mut put: impl FnMut(usize, &[I::N])) {
        put(part, &row_codes(isa, blocks, 8 + 16 * part));
    }
}
