//! q6_k: 256 values of six bits; sixteen sub-blocks of 16 with signed eight-bit scales.
//!
//! ```text
//! 0..128   ql[128]      value 128 n + 32 k + l: its low four bits in nibble k / 2 of byte 64 n + 32 (k % 2) + l
//! 128..192 qh[64]       its high two at bits 2k of byte 32 n + l
//! 192..208 scales[16] i8
//! 208..210 d f16        value = d · scale · (q − 32)
//! ```

use super::fit::{EPSILON, fit_symmetric, nearest};
use super::q2_k::{pack_pairs, pair_bytes, pairs, unpack_pair};
use super::{bytes16, f16_at, field, low_nibbles, write_f16};
use crate::format::Format;
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
    fn affines<I: Isa>(isa: I, block: &[u8], scales: &mut [f32; 16], _: &mut [f32; 16]) {
        let integers = isa.to_f32(isa.widen_i8(bytes16(block, 192)));
        isa.store(isa.mul(isa.splat(f16_at(isa, block, 208)), integers), scales);
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        let (byte, shift) = low_bits(16 * i);
        let low = field(isa, block, byte, shift, 15);
        let code = isa.or(low, isa.shl::<4>(isa.and(pairs(isa, block, 128, i), isa.splat_n(3))));
        isa.to_f32(isa.add_n(code, isa.splat_n(-32)))
    }

    #[inline(always)]
    fn bytes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::N {
        let low = isa.load_n(block[64 * (i / 2)..].first_chunk().expect("64 bytes for 128 values"));
        let low = low_nibbles(isa, isa.shr_by(low, i as u32 % 2 * 4));
        isa.or(low, isa.shl::<4>(pair_bytes(isa, block, 128, i)))
    }
}
