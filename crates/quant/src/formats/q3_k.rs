//! q3_k: 256 values of three bits; sixteen sub-blocks of 16 with six-bit signed scales.
//!
//! ```text
//! 0..32    hmask[32]    bit n of byte l: the high bit of value 32 n + l
//! 32..96   qs[64]       the low two bits, packed as in q2_k
//! 96..108  scales[12]   scale j: its low four bits in nibble j / 8 of byte j % 8,
//!                       its high two at bits 2 (j / 4) of byte 8 + j % 4
//! 108..110 d f16        value = d · (scale − 32) · (q − 4)
//! ```

use super::fit::{fit_symmetric_by_descent, nearest};
use super::q2_k::{pack_pairs, unpack_pair};
use super::{each_byte, f16_at, two_f16, write_f16};
use crate::format::{Blocks, Format};
use torque_simd::{Isa, Scalar};

/// 3.4375 bits.
pub struct Q3K;

impl Format for Q3K {
    const NAME: &'static str = "q3_k";
    const GGML_TYPE: Option<u32> = Some(11);
    const BLOCK: usize = 256;
    const BYTES: usize = 110;
    const GROUP: usize = 16;
    const OFFSET: u8 = 4;
    const TOP: u8 = 7;
    const PART: usize = 128;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let (x, _) = x.as_chunks::<16>();
        let mut fits: Vec<_> = x.iter().map(|x| fit_symmetric_by_descent(x, 4)).collect();
        let scales: Vec<f32> = fits.iter().map(|fit| fit.scale).collect();
        let largest = super::extreme(&scales);
        if largest != 0.0 {
            let inverse = -32.0 / largest;
            for (j, scale) in scales.iter().enumerate() {
                let code = (nearest(inverse * scale).clamp(-32, 31) + 32) as u8;
                block[96 + j % 8] |= (code & 15) << (j / 8 * 4);
                block[104 + j % 4] |= (code >> 4) << (j / 4 * 2);
            }
            write_f16(block, 108, 1.0 / inverse);
        }
        for (i, fit) in fits.iter_mut().enumerate() {
            let (scale, _) = Q3K::affine(Scalar, block, i);
            if scale != 0.0 {
                fit.codes = x[i].map(|x| (nearest(x / scale).clamp(-4, 3) + 4) as u8);
            }
        }
        let code = |i: usize| fits[i / 16].codes[i % 16];
        pack_pairs(&mut block[32..96], |i| code(i) & 3);
        for i in 0..256 {
            block[i % 32] |= (code(i) >> 2) << (i / 32);
        }
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            let high = block[i % 32] >> (i / 32) & 1;
            let code = unpack_pair(&block[32..96], i) | high << 2;
            *y = Q3K::affine(Scalar, block, i / 16).0 * f32::from(code as i8 - 4);
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], i: usize) -> (f32, f32) {
        let low = block[96 + i % 8] >> (i / 8 * 4) & 15;
        let high = block[104 + i % 4] >> (i / 4 * 2) & 3;
        (f16_at(isa, block, 108) * f32::from((low | high << 4) as i8 - 32), 0.0)
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        // Words at 94, 98, 102 and 106: the ones wanted begin two bytes later.
        let w = blocks.words(isa, 94);
        let (_, d) = two_f16(isa, w[3]);
        let mut words = w;
        for i in 0..3 {
            words[i] = isa.or(isa.shr::<16>(w[i]), isa.shl::<16>(w[i + 1]));
        }
        // High bits of scales 4 w .. 4 w + 4 are at bits 2 w: put where they belong, and low ones to them.
        let [first, last, high, _] = words;
        let highs = [isa.shl::<4>(high), isa.shl::<2>(high), high, isa.shr::<2>(high)];
        let lows = [first, last, isa.shr::<4>(first), isa.shr::<4>(last)];
        let mut scales = lows;
        for w in 0..4 {
            let two = isa.and(highs[w], isa.splat_n(0x3030_3030));
            scales[w] = isa.or(isa.and(lows[w], isa.splat_n(0x0f0f_0f0f)), two);
        }
        each_byte(
            isa,
            scales,
            #[inline(always)]
            |g, scale| {
                let scale = isa.to_f32(isa.add_n(scale, isa.splat_n(-32)));
                put(g, isa.mul(d, scale), isa.splat(0.0));
            },
        );
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, part: usize, mut put: impl FnMut(usize, &[I::N])) {
        let mut high = [blocks.words(isa, 0), blocks.words(isa, 16)];
        let low = [blocks.words(isa, 32 + 32 * part), blocks.words(isa, 48 + 32 * part)];
        // The high bits of the first quarter to where they belong.
        for half in 0..2 {
            for j in 0..4 {
                let v = high[half][j];
                high[half][j] = if part == 0 { isa.shl::<2>(v) } else { isa.shr::<2>(v) };
            }
        }
        written_out!(G of 0 1 2 3 4 5 6 7 => {
            let (quarter, half) = (G as u32 / 2, G % 2);
            let mut codes = low[0];
            for j in 0..4 {
                let two = isa.and(isa.shr_by(low[half][j], 2 * quarter), isa.splat_n(0x0303_0303));
                let four = isa.and(isa.shr_by(high[half][j], quarter), isa.splat_n(0x0404_0404));
                codes[j] = isa.or(two, four);
            }
            put(8 * part + G, &codes);
        });
    }
}
