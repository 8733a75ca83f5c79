//! mxfp4: 32 four-bit floats (E2M1) and a power of two (E8M0), the «MX» format of the Open Compute Project.
//!
//! ```text
//! 0    e  u8: the scale is 2^(e − 127)
//! 1..17 qs   value j in the low nibble of byte j, value j + 16 in the high one
//! ```
//!
//! Codes are 0, ½, 1, 1½, 2, 3, 4, 6 and, from 8 on, their negatives. Here they are doubled, so that they
//! are integers, and the scale halved.

use super::{level_bytes, nibbles, pack_nibbles, unpack_nibble};
use crate::format::{Blocks, Format};
use torque_simd::Isa;

/// 4.25 bits.
pub struct Mxfp4;

const DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The same as bytes, with the offset.
const LEVEL_BYTES: [u8; 16] = level_bytes(DOUBLED, Mxfp4::OFFSET);

/// `2^(e − 128)`, subnormal for e < 2.
#[inline(always)]
fn half_scale(e: u8) -> f32 {
    let normal = u32::from(e).wrapping_sub(1) << 23;
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { normal })
}

impl Format for Mxfp4 {
    const NAME: &'static str = "mxfp4";
    const GGML_TYPE: Option<u32> = Some(39);
    const BLOCK: usize = 32;
    const BYTES: usize = 17;
    const GROUP: usize = 32;
    const OFFSET: u8 = 12;
    const TOP: u8 = 24;

    fn encode(x: &[f32], block: &mut [u8]) {
        // The largest magnitude falls on 4 … 8: two exponents above the scale.
        let largest = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        block[0] = ((largest.to_bits() >> 23) as u8).saturating_sub(2);
        let scale = half_scale(block[0]);
        let error = |x: f32, code: u8| (DOUBLED[usize::from(code)] * scale - x).abs();
        let nearest = |x: f32| (0..16).min_by(|a, b| error(x, *a).total_cmp(&error(x, *b))).unwrap_or(0);
        pack_nibbles(&mut block[1..17], |i| nearest(x[i]));
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let scale = half_scale(block[0]);
        for (i, y) in y.iter_mut().enumerate() {
            *y = DOUBLED[usize::from(unpack_nibble(&block[1..17], i))] * scale;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(_: I, block: &[u8], _: usize) -> (f32, f32) {
        (half_scale(block[0]), 0.0)
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let e = isa.and(blocks.words(isa, 0)[0], isa.splat_n(255));
        let halved = isa.mul(isa.from_bits(isa.shl::<23>(e)), isa.splat(0.5));
        // What e = 0 and e = 255 would make zero and infinity.
        let scales = isa.min(isa.max(halved, isa.splat(half_scale(0))), isa.splat(half_scale(255)));
        put(0, scales, isa.splat(0.0));
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, mut put: impl FnMut(usize, &[I::N])) {
        let mut codes = nibbles(isa, blocks.words(isa, 1));
        for j in 0..8 {
            codes[j] = isa.lookup_bytes(&LEVEL_BYTES, codes[j]);
        }
        put(0, &codes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_as_the_standard_says() {
        let mut block = [0; 17];
        for i in 0..16 {
            block[1 + i] = i as u8 | (15 - i as u8) << 4;
        }
        let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for e in [0, 1, 2, 100, 127, 128, 252] {
            block[0] = e;
            let mut y = [0.0; 32];
            Mxfp4::decode(&block, &mut y);
            let expected = |code: usize| {
                let sign = if code < 8 { 1.0 } else { -1.0 };
                (sign * magnitudes[code % 8] * 2f64.powi(i32::from(e) - 127)) as f32
            };
            for i in 0..16 {
                assert_eq!((y[i], y[i + 16]), (expected(i), expected(15 - i)), "e = {e}, code {i}");
            }
        }
    }

    #[test]
    fn what_fits_is_exact() {
        let x: [f32; 32] = std::array::from_fn(|i| DOUBLED[i % 16] * 0.0625);
        let (mut block, mut y) = ([0; 17], [0.0; 32]);
        Mxfp4::encode(&x, &mut block);
        Mxfp4::decode(&block, &mut y);
        assert_eq!(x, y);
    }
}
