//! q6_k: 256 values of six bits; sixteen sub-blocks of 16 with signed eight-bit scales.
//!
//! ```text
//! 0..128   ql[128]      value 128 n + 32 k + l: its low four bits in nibble k / 2 of byte 64 n + 32 (k % 2) + l
//! 128..192 qh[64]       its high two at bits 2k of byte 32 n + l
//! 192..208 scales[16] i8
//! 208..210 d f16        value = d · scale · (q − 32)
//! ```

use super::fit::{EPSILON, fit_symmetric, nearest};
use super::q2_k::{pack_pairs, unpack_pair};
use super::{each_byte, f16_at, two_f16, write_f16};
use crate::format::{Blocks, Format};
use torque_simd::{Isa, Scalar};

/// 6.5625 bits.
pub struct Q6K;

/// Byte and shift of the low four bits of value i.
#[inline(always)]
fn low_bits(i: usize) -> (usize, usize) {
    let (half, quarter) = (i / 128, i % 128 / 32);
    (64 * half + 32 * (quarter % 2) + i % 32, quarter / 2 * 4)
}

impl Format for Q6K {
    const NAME: &'static str = "q6_k";
    const GGML_TYPE: Option<u32> = Some(14);
    const BLOCK: usize = 256;
    const BYTES: usize = 210;
    const GROUP: usize = 16;
    const OFFSET: u8 = 32;
    const TOP: u8 = 63;
    const PART: usize = 128;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let (x, _) = x.as_chunks::<16>();
        let mut fits: Vec<_> = x.iter().map(|x| fit_symmetric(x, 32)).collect();
        let scales: Vec<f32> = fits.iter().map(|fit| fit.scale).collect();
        let largest = super::extreme(&scales);
        if largest.abs() < EPSILON {
            return;
        }
        let inverse = -128.0 / largest;
        write_f16(block, 208, 1.0 / inverse);
        for (j, fit) in fits.iter_mut().enumerate() {
            block[192 + j] = nearest(inverse * fit.scale).clamp(-128, 127) as i8 as u8;
            let (scale, _) = Q6K::affine(Scalar, block, j);
            if scale != 0.0 {
                fit.codes = x[j].map(|x| (nearest(x / scale).clamp(-32, 31) + 32) as u8);
            }
        }
        let code = |i: usize| fits[i / 16].codes[i % 16];
        for i in 0..256 {
            let (byte, shift) = low_bits(i);
            block[byte] |= (code(i) & 15) << shift;
        }
        pack_pairs(&mut block[128..192], |i| code(i) >> 4);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            let (byte, shift) = low_bits(i);
            let code = block[byte] >> shift & 15 | unpack_pair(&block[128..192], i) << 4;
            *y = Q6K::affine(Scalar, block, i / 16).0 * f32::from(code as i8 - 32);
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], i: usize) -> (f32, f32) {
        (f16_at(isa, block, 208) * f32::from(block[192 + i] as i8), 0.0)
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let mut scales = blocks.words(isa, 192);
        let (_, d) = two_f16(isa, blocks.words(isa, 194)[3]);
        for w in 0..4 {
            // Signed: 128 more, and then less.
            scales[w] = isa.xor(scales[w], isa.splat_n(0x8080_8080u32 as i32));
        }
        each_byte(
            isa,
            scales,
            #[inline(always)]
            |g, scale| {
                let scale = isa.to_f32(isa.add_n(scale, isa.splat_n(-128)));
                put(g, isa.mul(d, scale), isa.splat(0.0));
            },
        );
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, part: usize, mut put: impl FnMut(usize, &[I::N])) {
        let high = [blocks.words(isa, 128 + 32 * part), blocks.words(isa, 144 + 32 * part)];
        let mut low = [high[0]; 4];
        for i in 0..4 {
            low[i] = blocks.words(isa, 64 * part + 16 * i);
        }
        written_out!(G of 0 1 2 3 4 5 6 7 => {
            let (quarter, half) = (G / 2, G % 2);
            let mut codes = high[0];
            for j in 0..4 {
                let four = isa.shr_by(low[quarter % 2 * 2 + half][j], quarter as u32 / 2 * 4);
                let two = isa.and(isa.shr_by(high[half][j], 2 * quarter as u32), isa.splat_n(0x0303_0303));
                codes[j] = isa.or(isa.and(four, isa.splat_n(0x0f0f_0f0f)), isa.shl::<4>(two));
            }
            put(8 * part + G, &codes);
        });
    }
}
