//! turbo2, turbo3, turbo4, turbo8: a rotated head and one scale (KV cache).
//!
//! The group is divided by its length and rotated; its coordinates are then nearly N(0, 1/g), g the
//! group's length, and are rounded to a codebook for that distribution. The stored scale makes the
//! decoded vector as long as the input («norm correction»).
//!
//! ```text
//! all     0..2   scale f16                                    value i = scale · level[code i]
//! turbo2  g/4    two bits a value, value 4j + k at bits 2k of byte j
//! turbo3  g/4    the low two bits, as in turbo2
//!         g/8    the high bit, value 8j + k at bit k of byte j
//! turbo4  g/2    for every 16 values eight bytes: value j in the low nibble of byte j, value j + 8 in
//!                the high one, so that one shift separates them
//! turbo8  g      signed bytes, no codebook: scale = largest / 127
//! ```
//!
//! The levels are those of N(0, 1/128) for every g; the factor √(128/g) is part of the scale.
//! turbo2 and turbo3 agree byte for byte with their published form when g = 128.

use super::{bytes16, f16_at, inverse, read_f16, write_f16};
use crate::codebook::{Codebook, TURBO2, TURBO3, TURBO4};
use crate::format::{Format, Rotation};
use crate::rotate;
use torque_simd::Isa;

/// 2.125 bits for groups of 128.
pub struct Turbo2;

/// 3.125 bits for groups of 128.
pub struct Turbo3;

/// 4.125 bits for groups of 128.
pub struct Turbo4;

/// 8.125 bits for groups of 128.
pub struct Turbo8;

/// The largest half-precision number: a cached block must stay finite.
const F16_MAX: f32 = 65504.0;

/// Encodes a group of 128 and returns the corrected norm, unbounded as in the published format.
pub(crate) fn encode_128<const N: usize>(
    book: &Codebook<N>,
    x: &[f32],
    mut put: impl FnMut(usize, u8),
) -> f32 {
    assert_eq!(x.len(), 128, "`encode` takes groups of 128, `encode_rotated` any group");
    let (norm, inv) = length(x);
    let mut unit: [f32; 128] = std::array::from_fn(|i| x[i] * inv);
    rotate::wht_forward(&mut unit);
    round(book, norm, unit.into_iter(), &mut put)
}

/// Encodes a rotated group of any size and returns the corrected norm, finite if the input is.
fn encode_any<const N: usize>(book: &Codebook<N>, x: &[f32], mut put: impl FnMut(usize, u8)) -> f32 {
    let (norm, inv) = length(x);
    let widen = ((x.len() as f64 / 128.0).sqrt()) as f32;
    bounded(round(book, norm, x.iter().map(|x| x * inv * widen), &mut put))
}

/// A scale that half precision holds; NaN stays NaN.
fn bounded(scale: f32) -> f32 {
    if scale > F16_MAX { F16_MAX } else { scale }
}

/// The length of a vector and what to multiply it by for a unit vector; zero for a vector too short to have one.
fn length(x: &[f32]) -> (f32, f32) {
    let norm = x.iter().fold(0.0, |sum, x| sum + x * x).sqrt();
    (norm, if norm > 1e-10 { 1.0 / norm } else { 0.0 })
}

/// Rounds coordinates to levels. Returns the scale that restores the length `norm`.
fn round<const N: usize>(
    book: &Codebook<N>,
    norm: f32,
    coordinates: impl Iterator<Item = f32>,
    put: &mut impl FnMut(usize, u8),
) -> f32 {
    let mut squares = 0.0;
    for (i, x) in coordinates.enumerate() {
        let code = book.code(x);
        let level = book.levels[usize::from(code)];
        squares += level * level;
        put(i, code);
    }
    // No level is zero, so the decoded vector has a length.
    norm / f32::sqrt(squares)
}

/// Values of a block, from its bytes.
#[inline(always)]
fn values(block: &[u8], bits: usize) -> usize {
    (block.len() - 2) * 8 / bits
}

fn put2(qs: &mut [u8], i: usize, code: u8) {
    qs[i / 4] |= (code & 3) << (2 * (i % 4));
}

fn get2(qs: &[u8], i: usize) -> u8 {
    qs[i / 4] >> (2 * (i % 4)) & 3
}

/// Two-bit fields of values `16 i .. 16 i + 16`; higher bits are left in place.
#[inline(always)]
fn spread2<I: Isa>(isa: I, block: &[u8], i: usize) -> I::N {
    isa.spread2(u32::from_le_bytes(*block[2 + 4 * i..].first_chunk().expect("sixteen values")))
}

impl Format for Turbo2 {
    const NAME: &'static str = "turbo2";
    const WHOLE: bool = false;
    const ALIASES: &'static [&'static str] = &["turbo2_0", "tbq2"];
    const GGML_TYPE: Option<u32> = None;
    const BLOCK: usize = 128;
    const BYTES: usize = 34;
    const GROUP: usize = 128;
    const ROTATION: Rotation = Rotation::Head;
    const WEIGHTS: bool = false;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_128(&TURBO2, x, |i, code| put2(&mut block[2..], i, code));
        write_f16(block, 0, scale);
    }

    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_any(&TURBO2, x, |i, code| put2(&mut block[2..], i, code));
        write_f16(block, 0, scale);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let scale = read_f16(block, 0);
        for (i, y) in y.iter_mut().enumerate() {
            *y = TURBO2.levels[usize::from(get2(&block[2..], i))] * scale;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        const LEVELS: [f32; 16] = TURBO2.lanes();
        // The table repeats every four entries, so the neighbour's bits do no harm.
        isa.lookup8(isa.load(&LEVELS), spread2(isa, block, i))
    }
}

impl Turbo3 {
    fn put(block: &mut [u8], i: usize, code: u8) {
        let high = 2 + values(block, 3) / 4;
        put2(&mut block[2..], i, code);
        block[high + i / 8] |= (code >> 2) << (i % 8);
    }
}

impl Format for Turbo3 {
    const NAME: &'static str = "turbo3";
    const WHOLE: bool = false;
    const ALIASES: &'static [&'static str] = &["turbo3_0", "tbq3"];
    const GGML_TYPE: Option<u32> = None;
    const BLOCK: usize = 128;
    const BYTES: usize = 50;
    const GROUP: usize = 128;
    const ROTATION: Rotation = Rotation::Head;
    const WEIGHTS: bool = false;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_128(&TURBO3, x, |i, code| Turbo3::put(block, i, code));
        write_f16(block, 0, scale);
    }

    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_any(&TURBO3, x, |i, code| Turbo3::put(block, i, code));
        write_f16(block, 0, scale);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let scale = read_f16(block, 0);
        let high = &block[2 + values(block, 3) / 4..];
        for (i, y) in y.iter_mut().enumerate() {
            let code = get2(&block[2..], i) | (high[i / 8] >> (i % 8) & 1) << 2;
            *y = TURBO3.levels[usize::from(code)] * scale;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        const LEVELS: [f32; 16] = TURBO3.lanes();
        let at = 2 + values(block, 3) / 4 + 2 * i;
        let high = u16::from_le_bytes([block[at], block[at + 1]]);
        isa.lookup8_split(isa.load(&LEVELS), spread2(isa, block, i), high)
    }
}

impl Turbo4 {
    fn put(block: &mut [u8], i: usize, code: u8) {
        block[2 + i / 16 * 8 + i % 8] |= code << (i % 16 / 8 * 4);
    }
}

impl Format for Turbo4 {
    const NAME: &'static str = "turbo4";
    const WHOLE: bool = false;
    const ALIASES: &'static [&'static str] = &["turbo4_0", "tbq4"];
    const GGML_TYPE: Option<u32> = None;
    const BLOCK: usize = 128;
    const BYTES: usize = 66;
    const GROUP: usize = 128;
    const ROTATION: Rotation = Rotation::Head;
    const WEIGHTS: bool = false;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_128(&TURBO4, x, |i, code| Turbo4::put(block, i, code));
        write_f16(block, 0, scale);
    }

    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_any(&TURBO4, x, |i, code| Turbo4::put(block, i, code));
        write_f16(block, 0, scale);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let scale = read_f16(block, 0);
        for (i, y) in y.iter_mut().enumerate() {
            let code = block[2 + i / 16 * 8 + i % 8] >> (i % 16 / 8 * 4) & 15;
            *y = TURBO4.levels[usize::from(code)] * scale;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        const LEVELS: [f32; 16] = TURBO4.lanes();
        let low = u64::from_le_bytes(*block[2 + 8 * i..].first_chunk().expect("sixteen values"));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&(low >> 4).to_le_bytes());
        isa.lookup(isa.load(&LEVELS), isa.widen_u8(&bytes))
    }
}

impl Format for Turbo8 {
    const NAME: &'static str = "turbo8";
    const ALIASES: &'static [&'static str] = &["turbo8_0", "tbq8"];
    const GGML_TYPE: Option<u32> = None;
    const BLOCK: usize = 128;
    const BYTES: usize = 130;
    const GROUP: usize = 128;
    const ROTATION: Rotation = Rotation::Head;
    const WEIGHTS: bool = false;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        let mut rotated: [f32; 128] = x.try_into().expect("`encode` takes groups of 128");
        rotate::wht_forward(&mut rotated);
        Turbo8::encode_rotated(&rotated, block);
    }

    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        let largest = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        let id = inverse(write_f16(block, 0, bounded(largest / 127.0)));
        for (q, x) in block[2..].iter_mut().zip(x) {
            *q = (x * id).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
        }
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let scale = read_f16(block, 0);
        for (y, q) in y.iter_mut().zip(&block[2..]) {
            *y = f32::from(*q as i8) * scale;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        isa.to_f32(isa.widen_i8(bytes16(block, 2 + 16 * i)))
    }
}
