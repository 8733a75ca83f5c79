//! q2_k: 256 values of two bits; sixteen sub-blocks of 16 with four-bit scale and minimum.
//!
//! ```text
//! 0..16  scales[16]   scale in the low nibble, minimum in the high one
//! 16..80 qs[64]       bits 2j of byte 32 n + l: value 128 n + 32 j + l
//! 80..82 d f16 · 82..84 dmin f16         value = d · scale · q − dmin · minimum
//! ```

use super::fit::{Affine, AffineSearch, fit_affine, nearest};
use super::{each_byte, f16_at, two_f16, write_f16};
use crate::format::{Blocks, Format};
use torque_simd::{Isa, Scalar};

/// 2.625 bits.
pub struct Q2K;

/// Writes 256 two-bit codes.
pub(super) fn pack_pairs(qs: &mut [u8], codes: impl Fn(usize) -> u8) {
    qs.fill(0);
    for i in 0..256 {
        qs[i / 128 * 32 + i % 32] |= codes(i) << (i % 128 / 32 * 2);
    }
}

/// Code i of 256.
pub(super) fn unpack_pair(qs: &[u8], i: usize) -> u8 {
    qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

impl Format for Q2K {
    const NAME: &'static str = "q2_k";
    const GGML_TYPE: Option<u32> = Some(10);
    const BLOCK: usize = 256;
    const BYTES: usize = 84;
    const GROUP: usize = 16;
    const PART: usize = 128;
    const SHIFTED: bool = true;
    const TOP: u8 = 3;

    fn encode(x: &[f32], block: &mut [u8]) {
        let (x, _) = x.as_chunks::<16>();
        let search = AffineSearch { top: 3, from: -0.5, trials: 15, absolute: true };
        let mut fits: Vec<Affine<16>> = x.iter().map(|x| fit_affine(x, &x.map(f32::abs), &search)).collect();
        let max_scale = fits.iter().fold(0.0, |max: f32, fit| max.max(fit.scale));
        let max_min = fits.iter().fold(0.0, |max: f32, fit| max.max(fit.min));
        let inverse = |max: f32| if max > 0.0 { 15.0 / max } else { 0.0 };
        let (to_scale, to_min) = (inverse(max_scale), inverse(max_min));
        for (packed, fit) in block.iter_mut().zip(&fits) {
            let code = |x: f32| nearest(x).clamp(0, 15) as u8;
            *packed = code(to_scale * fit.scale) | code(to_min * fit.min) << 4;
        }
        write_f16(block, 80, max_scale / 15.0);
        write_f16(block, 82, max_min / 15.0);
        for (i, fit) in fits.iter_mut().enumerate() {
            let (scale, shift) = Q2K::affine(Scalar, block, i);
            if scale != 0.0 {
                fit.codes = x[i].map(|x| nearest((x - shift) / scale).clamp(0, 3) as u8);
            }
        }
        pack_pairs(&mut block[16..80], |i| fits[i / 16].codes[i % 16]);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            let (scale, shift) = Q2K::affine(Scalar, block, i / 16);
            *y = scale * f32::from(unpack_pair(&block[16..80], i)) + shift;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], i: usize) -> (f32, f32) {
        let (scale, min) = (f32::from(block[i] & 15), f32::from(block[i] >> 4));
        (f16_at(isa, block, 80) * scale, -(f16_at(isa, block, 82) * min))
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let (d, min) = two_f16(isa, blocks.words(isa, 68)[3]);
        let min = isa.sub(isa.splat(0.0), min);
        each_byte(
            isa,
            blocks.words(isa, 0),
            #[inline(always)]
            |g, both| {
                let (scale, minimum) = (isa.and(both, isa.splat_n(15)), isa.shr::<4>(both));
                put(g, isa.mul(d, isa.to_f32(scale)), isa.mul(min, isa.to_f32(minimum)));
            },
        );
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, part: usize, mut put: impl FnMut(usize, &[I::N])) {
        let packed = [blocks.words(isa, 16 + 32 * part), blocks.words(isa, 32 + 32 * part)];
        written_out!(G of 0 1 2 3 4 5 6 7 => {
            let mut codes = packed[0];
            for j in 0..4 {
                let pairs = isa.shr_by(packed[G % 2][j], G as u32 / 2 * 2);
                codes[j] = isa.and(pairs, isa.splat_n(0x0303_0303));
            }
            put(8 * part + G, &codes);
        });
    }
}
