//! turbo2, turbo3, turbo4, turbo8: a rotated head and one scale (KV cache).
//!
//! The group is divided by its length and rotated; its coordinates are then nearly N(0, 1/g), g the
//! group's length, and are rounded to a codebook for that distribution. The published scale makes the
//! decoded vector as long as the input («norm correction»); that of the cache, a little longer.
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

use super::{biased, bytes16, f16_at, inverse, level_bytes, nibbles, read_f16, write_f16};
use crate::codebook::{Codebook, TURBO2, TURBO3, TURBO4};
use crate::format::{Blocks, Format, Rotation};
use crate::rotate;
use torque_simd::{Isa, Scalar};

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

/// Encodes a rotated group of any size, of which `put(i, codes)` gets values `16 i .. 16 i + 16`. Returns the scale, finite
/// if the input is.
///
/// One scale restores the vector's length, a slightly larger one its product with itself. A quarter of the way between
/// them, KL divergence is below that with the length alone by 2 % with turbo4, 4 % with turbo3 and 12 % with turbo2.
#[inline(always)]
pub(super) fn encode_any<I: Isa, const N: usize>(
    isa: I,
    book: &Codebook<N>,
    x: &[f32],
    mut put: impl FnMut(usize, [u8; 16]),
) -> f32 {
    let sixteens = x.as_chunks().0;
    let mut squares = isa.splat(0.0);
    for x in sixteens {
        let x = isa.load(x);
        squares = isa.fma(x, x, squares);
    }
    let norm = isa.sum(squares).sqrt();
    let widen = ((x.len() as f64 / 128.0).sqrt()) as f32;
    let factor = isa.splat(inverse_length(norm) * widen);
    let (levels, beginnings) = (isa.load(&book.lanes()), isa.load(&book.beginnings()));
    let (mut squares, mut product) = (isa.splat(0.0), isa.splat(0.0));
    for (i, x) in sixteens.iter().enumerate() {
        // NaN is large.
        let x = isa.min(isa.mul(isa.load(x), factor), isa.splat(f32::MAX));
        let mut code = isa.splat_n(0);
        for bit in (0..N.ilog2()).rev() {
            let half = isa.splat_n(1 << bit);
            let upper = isa.or(code, half);
            let below = isa.to_bits(isa.sub(x, isa.lookup(beginnings, upper)));
            code = isa.xor(upper, isa.and(isa.shr_by(below, 31 - bit), half));
        }
        let level = isa.lookup(levels, code);
        squares = isa.fma(level, level, squares);
        product = isa.fma(level, x, product);
        put(i, isa.narrow(code));
    }
    // No level is zero, so the decoded vector has a length.
    let length = isa.sum(squares).sqrt();
    // Between the vector and its levels. It is below 0.25 only for a vector that is not Gaussian at all, or zero.
    let cosine = (isa.sum(product) / (widen * length)).max(0.25);
    bounded(norm / length * (0.75 + 0.25 / cosine))
}

/// A scale that half precision holds; NaN stays NaN.
pub(super) fn bounded(scale: f32) -> f32 {
    if scale > F16_MAX { F16_MAX } else { scale }
}

/// The length of a vector and what to multiply it by for a unit vector; zero for a vector too short to have one.
pub(super) fn length(x: &[f32]) -> (f32, f32) {
    let norm = x.iter().fold(0.0, |sum, x| sum + x * x).sqrt();
    (norm, inverse_length(norm))
}

/// What a vector of that length is multiplied by for a unit vector.
pub(super) fn inverse_length(norm: f32) -> f32 {
    if norm > 1e-10 { 1.0 / norm } else { 0.0 }
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

/// Values of a block of so many bytes.
#[inline(always)]
pub(super) fn values(block_bytes: usize, bits: usize) -> usize {
    (block_bytes - 2) * 8 / bits
}

pub(super) fn put2(qs: &mut [u8], i: usize, code: u8) {
    qs[i / 4] |= (code & 3) << (2 * (i % 4));
}

/// Two bits of sixteen codes, from that one on, as [`put2`] puts them.
#[inline(always)]
pub(super) fn pack2(codes: [u8; 16], bit: u32) -> [u8; 4] {
    let (fours, _) = codes.as_chunks();
    // Fields at bits 0, 8, 16 and 24 meet at bits 24, 26, 28 and 30, where none of the others come.
    std::array::from_fn(|i| {
        ((u32::from_le_bytes(fours[i]) >> bit & 0x0303_0303).wrapping_mul(0x0104_1040) >> 24) as u8
    })
}

pub(super) fn get2(qs: &[u8], i: usize) -> u8 {
    qs[i / 4] >> (2 * (i % 4)) & 3
}

/// One bit of sixteen codes: value j at bit j.
#[inline(always)]
pub(super) fn pack1(codes: [u8; 16], bit: u32) -> [u8; 2] {
    let (eights, _) = codes.as_chunks();
    // Bits of eight bytes: byte j's to bit 56 + j, where no other comes.
    std::array::from_fn(|i| {
        let bits = u64::from_le_bytes(eights[i]) >> bit & 0x0101_0101_0101_0101;
        (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
    })
}

/// Sixteen bits of a plane that begins at a byte: those of values `16 i .. 16 i + 16`.
#[inline(always)]
pub(super) fn bits1(block: &[u8], plane: usize, i: usize) -> u16 {
    u16::from_le_bytes(*block[plane + 2 * i..].first_chunk().expect("sixteen values"))
}

/// Two-bit fields of values `16 i .. 16 i + 16`; higher bits are left in place.
#[inline(always)]
pub(super) fn spread2<I: Isa>(isa: I, block: &[u8], i: usize) -> I::N {
    isa.spread2(u32::from_le_bytes(*block[2 + 4 * i..].first_chunk().expect("sixteen values")))
}

/// Levels of a codebook as whole numbers of a unit: those, up to 127, that come nearest to all of them.
pub(super) struct ByteLevels {
    /// The levels, over and over.
    pub levels: [f32; 16],
    /// One unit.
    pub unit: f32,
    /// The largest error of a level, relative to the largest level.
    pub error: f32,
}

/// Of a table of levels, some of which may repeat.
pub(super) const fn byte_levels(lanes: [f32; 16]) -> ByteLevels {
    let (mut largest, mut i) = (0.0, 0);
    while i < 16 {
        largest = lanes[i].max(largest);
        i += 1;
    }
    let mut best = ByteLevels { levels: [0.0; 16], unit: 0.0, error: 1.0 };
    // In sixteenths: half of the range, because finer units do better anyway.
    let mut sixteenths = 64 * 16;
    while sixteenths <= 127 * 16 {
        let top = sixteenths as f32 / 16.0;
        let mut found = ByteLevels { levels: [0.0; 16], unit: largest / top, error: 0.0 };
        let mut i = 0;
        while i < 16 {
            let level = lanes[i] / largest * top;
            let magnitude = (level.abs() + 0.5) as i8 as f32;
            found.levels[i] = if level < 0.0 { -magnitude } else { magnitude };
            let error = (level - found.levels[i]).abs() / top;
            if error > found.error {
                found.error = error;
            }
            i += 1;
        }
        if found.error < best.error {
            best = found;
        }
        sixteenths += 1;
    }
    best
}

/// Scales of [`byte_levels`], of such a unit.
#[inline(always)]
fn row_scales<I: Isa>(isa: I, unit: f32, blocks: Blocks<'_>) -> I::F {
    isa.mul(blocks.tile_scales(isa), isa.splat(unit))
}

/// Calls `put(g, levels)` for every 32 values of sixteen blocks of so many. The index of a level is a two-bit field of the
/// tile and above it a bit of each plane, of which `plane(p, g)` has 32.
#[inline(always)]
pub(super) fn row_levels<I: Isa, const PLANES: usize>(
    isa: I,
    blocks: Blocks<'_>,
    values: usize,
    plane: impl Fn(usize, usize) -> I::N,
    levels: &[u8; 16],
    mut put: impl FnMut(usize, &[I::N]),
) {
    for run in 0..values / 32 {
        let low = [blocks.tile_word(isa, 2 * run), blocks.tile_word(isa, 2 * run + 1)];
        let mut bits = [low[0]; PLANES];
        for p in 0..PLANES {
            bits[p] = plane(p, run);
        }
        let mut codes = [low[0]; 8];
        for half in 0..2 {
            let mut nibbles = [low[0]; PLANES];
            for p in 0..PLANES {
                // Sixteen bits as four nibbles, one a byte, moved to where the bit of an index is.
                let word = isa.and(isa.shr_by(bits[p], 16 * half as u32), isa.splat_n(0xffff));
                let two = isa.and(isa.or(word, isa.shl::<8>(word)), isa.splat_n(0x00ff_00ff));
                let four = isa.and(isa.or(two, isa.shl::<4>(two)), isa.splat_n(0x0f0f_0f0f));
                nibbles[p] = isa.shl_by(four, 2 + p as u32);
            }
            for k in 0..4 {
                let mut index = isa.and(isa.shr_by(low[half], 2 * k as u32), isa.splat_n(0x0303_0303));
                for p in 0..PLANES {
                    let bit = isa.splat_n(0x0404_0404 << p);
                    index = isa.or(index, isa.and(isa.shr_by(nibbles[p], k as u32), bit));
                }
                codes[4 * half + k] = isa.lookup_bytes(levels, index);
            }
        }
        put(run, &codes);
    }
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
    const WIDE: bool = true;
    const PART: usize = 128;
    const STRIDED: bool = true;
    const CODE_ERROR: f32 = byte_levels(TURBO2.lanes()).error;
    const GAIN: f32 = 1.0155;
    const COARSE: bool = true;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_128(&TURBO2, x, |i, code| put2(&mut block[2..], i, code));
        write_f16(block, 0, scale);
    }

    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        Turbo2::encode_on(Scalar, x, block);
    }

    #[inline(always)]
    fn encode_on<I: Isa>(isa: I, x: &[f32], block: &mut [u8]) {
        let (fields, _) = block[2..].as_chunks_mut();
        let scale = encode_any(isa, &TURBO2, x, |i, codes| fields[i] = pack2(codes, 0));
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

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let unit = const { byte_levels(TURBO2.lanes()).unit };
        put(0, row_scales(isa, unit, blocks), isa.splat(0.0));
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, put: impl FnMut(usize, &[I::N])) {
        let levels = &const { level_bytes(byte_levels(TURBO2.lanes()).levels, I::BIAS) };
        let none = |_, _| isa.splat_n(0);
        row_levels::<I, 0>(isa, blocks, values(blocks.block_bytes(), 2), none, levels, put);
    }
}

impl Turbo3 {
    fn put(block: &mut [u8], i: usize, code: u8) {
        let high = 2 + values(block.len(), 3) / 4;
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
    const WIDE: bool = true;
    const PART: usize = 128;
    const STRIDED: bool = true;
    const CODE_ERROR: f32 = byte_levels(TURBO3.lanes()).error;
    const GAIN: f32 = 1.0044;
    const COARSE: bool = true;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_128(&TURBO3, x, |i, code| Turbo3::put(block, i, code));
        write_f16(block, 0, scale);
    }

    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        Turbo3::encode_on(Scalar, x, block);
    }

    #[inline(always)]
    fn encode_on<I: Isa>(isa: I, x: &[f32], block: &mut [u8]) {
        let (fields, bits) = block[2..].split_at_mut(x.len() / 4);
        let ((fields, _), (bits, _)) = (fields.as_chunks_mut(), bits.as_chunks_mut());
        let scale = encode_any(isa, &TURBO3, x, |i, codes| {
            (fields[i], bits[i]) = (pack2(codes, 0), pack1(codes, 2));
        });
        write_f16(block, 0, scale);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let scale = read_f16(block, 0);
        let high = &block[2 + values(block.len(), 3) / 4..];
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
        let high = bits1(block, 2 + values(block.len(), 3) / 4, i);
        isa.lookup8_split(isa.load(&LEVELS), spread2(isa, block, i), high)
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let unit = const { byte_levels(TURBO3.lanes()).unit };
        put(0, row_scales(isa, unit, blocks), isa.splat(0.0));
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, put: impl FnMut(usize, &[I::N])) {
        let levels = &const { level_bytes(byte_levels(TURBO3.lanes()).levels, I::BIAS) };
        let group = values(blocks.block_bytes(), 3);
        row_levels::<I, 1>(
            isa,
            blocks,
            group,
            #[inline(always)]
            |_, run| blocks.tile_word(isa, group / 16 + run),
            levels,
            put,
        );
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
    const WIDE: bool = true;
    const PART: usize = 128;
    const CODE_ERROR: f32 = byte_levels(TURBO4.lanes()).error;
    const GAIN: f32 = 1.0012;
    const COARSE: bool = true;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_128(&TURBO4, x, |i, code| Turbo4::put(block, i, code));
        write_f16(block, 0, scale);
    }

    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        Turbo4::encode_on(Scalar, x, block);
    }

    #[inline(always)]
    fn encode_on<I: Isa>(isa: I, x: &[f32], block: &mut [u8]) {
        let (eights, _) = block[2..].as_chunks_mut();
        let scale = encode_any(isa, &TURBO4, x, |i, codes| {
            eights[i] = std::array::from_fn::<_, 8, _>(|j| codes[j] | codes[j + 8] << 4);
        });
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

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let unit = const { byte_levels(TURBO4.lanes()).unit };
        put(0, row_scales(isa, unit, blocks), isa.splat(0.0));
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, mut put: impl FnMut(usize, &[I::N])) {
        for run in 0..values(blocks.block_bytes(), 4) / 32 {
            // Eight bytes hold sixteen values: words 0 and 1, then their high nibbles.
            let mut words = [blocks.tile_word(isa, 4 * run); 4];
            for i in 1..4 {
                words[i] = blocks.tile_word(isa, 4 * run + i);
            }
            let packed = nibbles(isa, words);
            let mut codes = packed;
            for (j, from) in [0, 1, 4, 5, 2, 3, 6, 7].into_iter().enumerate() {
                codes[j] = isa.lookup_bytes(
                    &const { level_bytes(byte_levels(TURBO4.lanes()).levels, I::BIAS) },
                    packed[from],
                );
            }
            put(run, &codes);
        }
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
    const WIDE: bool = true;
    const PART: usize = 128;
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

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        put(0, blocks.tile_scales(isa), isa.splat(0.0));
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, mut put: impl FnMut(usize, &[I::N])) {
        for run in 0..values(blocks.block_bytes(), 8) / 32 {
            let mut codes = [isa.splat_n(0); 8];
            for j in 0..8 {
                codes[j] = biased(isa, blocks.tile_word(isa, 8 * run + j));
            }
            put(run, &codes);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::by_name;

    #[test]
    fn levels_fit_bytes_well() {
        for (name, bound) in [
            ("turbo2", 4e-4),
            ("turbo3", 1.2e-3),
            ("turbo4", 2.4e-3),
            ("turbo2_nested", 1.1e-3),
            ("turbo3_nested", 2e-3),
            ("turbo4_nested", 2.8e-3),
        ] {
            let error = by_name(name).unwrap().code_error;
            assert!(0.0 < error && error <= bound, "{name}: {error}");
        }
    }
}
