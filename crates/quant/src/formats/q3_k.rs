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
use super::q2_k::{pack_pairs, pair_bytes, pairs, unpack_pair};
use super::{bytes16, f16_at, shifted_twice, word, write_f16};
use crate::format::Format;
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
    fn affines<I: Isa>(isa: I, block: &[u8], scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // Four scales a word: nibbles of a and b, and pairs of bits above them.
        let (a, b, high) = (word(block, 96), word(block, 100), word(block, 104));
        let four = |low: u32, two: u32| u64::from(low & 0x0f0f_0f0f | two & 0x3030_3030);
        let first = four(b, high << 2) << 32 | four(a, high << 4);
        let last = four(b >> 4, high >> 2) << 32 | four(a >> 4, high);
        let integers = isa.to_f32(isa.add_n(isa.widen_words([first, last]), isa.splat_n(-32)));
        isa.store(isa.mul(isa.splat(f16_at(isa, block, 108)), integers), scales);
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        let low = isa.and(pairs(isa, block, 32, i), isa.splat_n(3));
        // Bit i / 2 becomes bit 2.
        let high = isa.widen_u8(bytes16(block, i % 2 * 16));
        let high = if i < 4 {
            isa.shl::<2>(isa.shr_by(high, i as u32 / 2))
        } else {
            isa.shr_by(high, i as u32 / 2 - 2)
        };
        isa.low_bits::<3, -4>(isa.or(low, isa.and(high, isa.splat_n(4))))
    }

    #[inline(always)]
    fn bytes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::N {
        let high = shifted_twice(isa, block, 0, 2 * i as i32, 2 * i as i32 + 1);
        let high = isa.shl::<2>(isa.and(high, isa.splat_n(0x0101_0101)));
        isa.or(pair_bytes(isa, block, 32, i), high)
    }
}
