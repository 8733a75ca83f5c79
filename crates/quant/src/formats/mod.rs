//! One file a family of formats.

/// A loop, written out: the compiler would leave a long one as it is, and what depends on its number would not be
/// constant.
macro_rules! written_out {
    ($n:ident of $($number:literal)* => $body:expr) => {
        $({
            const $n: usize = $number;
            $body
        })*
    };
}

mod fit;
mod float;
mod iq4;
mod mxfp4;
mod nested;
mod q2_k;
mod q3_k;
mod q4;
mod q4_k;
mod q5;
mod q6_k;
mod q8_0;
mod tcq;
mod tq;
mod turbo;

pub use float::{Bf16, F16, F32};
pub use iq4::{Iq4Nl, Iq4Xs};
pub use mxfp4::Mxfp4;
pub use nested::{Nested, Turbo2Nested, Turbo3Nested, Turbo4Nested};
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4::{Q4_0, Q4_1};
pub use q4_k::{Q4K, Q5K};
pub use q5::{Q5_0, Q5_1};
pub use q6_k::Q6K;
pub use q8_0::Q8_0;
pub use tcq::{Trellis, Turbo2Tcq, Turbo3Tcq, Turbo4Tcq};
pub use tq::{Tq3_1s, Tq4_1s};
pub(crate) use turbo::encode_128;
pub use turbo::{Turbo2, Turbo3, Turbo4, Turbo8};

use torque_simd::Isa;

/// The half-precision number at a byte offset.
pub(crate) fn read_f16(block: &[u8], offset: usize) -> f32 {
    half::f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

/// Stores a number in half precision, rounding to nearest even, and returns what was stored.
pub(crate) fn write_f16(block: &mut [u8], offset: usize, x: f32) -> f32 {
    let rounded = half::f16::from_f32(x);
    block[offset..offset + 2].copy_from_slice(&rounded.to_le_bytes());
    rounded.to_f32()
}

/// The sixteen bytes at an offset.
#[inline(always)]
fn bytes16(block: &[u8], offset: usize) -> &[u8; 16] {
    block[offset..].first_chunk().expect("a block is as long as its format says")
}

/// The half-precision number at a byte offset, as kernels read it for every block.
#[inline(always)]
fn f16_at<I: Isa>(isa: I, block: &[u8], offset: usize) -> f32 {
    isa.f16(u16::from_le_bytes([block[offset], block[offset + 1]]))
}

/// Two half-precision numbers of every block: the words of `w`, low and high.
#[inline(always)]
fn two_f16<I: Isa>(isa: I, w: I::N) -> (I::F, I::F) {
    (isa.low_f16(w), isa.low_f16(isa.shr::<16>(w)))
}

/// The low four bits of each byte, then the high four: 32 codes that [`pack_nibbles`] wrote.
#[inline(always)]
fn nibbles<I: Isa>(isa: I, w: [I::N; 4]) -> [I::N; 8] {
    let mut codes = [w[0]; 8];
    for j in 0..4 {
        codes[j] = isa.and(w[j], isa.splat_n(0x0f0f_0f0f));
        codes[4 + j] = isa.and(isa.shr::<4>(w[j]), isa.splat_n(0x0f0f_0f0f));
    }
    codes
}

/// Whole numbers as signed bytes, plus a bias.
const fn level_bytes(levels: [f32; 16], bias: u8) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = (levels[i] as i8 as u8).wrapping_add(bias);
        i += 1;
    }
    bytes
}

/// Signed bytes plus [`Isa::BIAS`].
#[inline(always)]
fn biased<I: Isa>(isa: I, v: I::N) -> I::N {
    if I::BIAS == 0 { v } else { isa.xor(v, isa.splat_n(0x8080_8080u32 as i32)) }
}

/// Byte k of each lane, shifted right by `shift` bits and cut to `mask`.
#[inline(always)]
fn byte_of<I: Isa>(isa: I, w: I::N, k: usize, shift: usize, mask: i32) -> I::N {
    isa.and(isa.shr_by(w, (8 * k + shift) as u32), isa.splat_n(mask))
}

/// Calls `each(g, number)` for all sixteen bytes of each lane of four words, first to last.
#[inline(always)]
fn each_byte<I: Isa>(isa: I, words: [I::N; 4], mut each: impl FnMut(usize, I::N)) {
    written_out!(W of 0 1 2 3 => for k in 0..4 {
        each(4 * W + k, byte_of(isa, words[W], k, 0, 255));
    });
}

/// The little-endian word at an offset.
#[inline(always)]
fn word(block: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*block[offset..].first_chunk().expect("a block is as long as its format says"))
}

/// Lane l is byte l of the sixteen at `offset`, shifted right by `shift` bits; higher bits are left in place.
#[inline(always)]
fn shifted<I: Isa>(isa: I, block: &[u8], offset: usize, shift: usize) -> I::N {
    isa.shr_by(isa.widen_u8(bytes16(block, offset)), shift as u32)
}

/// The value of largest magnitude, sign and all: the first of equals, and zero if there is none.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max, x| if x.abs() > f32::abs(max) { *x } else { max })
}

/// `1 / x`, or zero for zero.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The smallest and the largest value; the largest finite numbers, swapped, if all are NaN.
fn span(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, f32::MIN), |(min, max), x| {
        (if *x < min { *x } else { min }, if *x > max { *x } else { max })
    })
}

/// Writes 32 four-bit codes: code j to the low nibble of byte j, code j + 16 to the high one.
fn pack_nibbles(qs: &mut [u8], code: impl Fn(usize) -> u8) {
    for (j, q) in qs.iter_mut().enumerate() {
        *q = code(j) | code(j + 16) << 4;
    }
}

/// Code i of 32 that [`pack_nibbles`] wrote.
fn unpack_nibble(qs: &[u8], i: usize) -> u8 {
    qs[i % 16] >> (i / 16 * 4) & 15
}
