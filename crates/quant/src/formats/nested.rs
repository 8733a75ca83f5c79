//! turbo4_nested, turbo3_nested, turbo2_nested: formats whose blocks begin with each other (KV cache).
//!
//! A head is rounded to sixteen cells whose pairs are the eight cells of 3 bits, and whose fours the four of 2 bits
//! ([`crate::codebook::nested`]), and the bits of its codes are stored apart, the important ones first:
//!
//! ```text
//! all             0..2   scale f16, and corrections in it    value i = scale · level[code i], the levels of the width
//!                 g/4    bits 3 and 2 of all codes, two a value, as in turbo2
//! turbo3, turbo4  g/8    bit 1, value 8j + k at bit k of byte j
//! turbo4          g/8    bit 0, likewise
//! ```
//!
//! So a page of turbo4_nested becomes one of turbo3_nested, and then of turbo2_nested, by leaving bytes out: nothing is
//! decoded and encoded again, which would add the error of the smaller format to that of the larger one. What remains is to
//! the bit what the smaller format makes of the exact values.
//!
//! The scale is that of 4 bits. In fewer bits it would leave the length of vectors off by 2 or 3 %, which adds little to the error
//! of a vector and much to that of a score, where the errors of channels cancel and that of the length does not. Hence two
//! corrections of two bits each, in what half precision can spare: the lowest two bits of the scale are that of 3 bits, the third
//! and the sign that of 2 bits. (A scale below 2⁻¹⁴ is subnormal, and its corrections are read wrong: off by a few percent of
//! next to nothing.)
//!
//! W. Equitz, T. Cover, «Successive refinement of information», IEEE Transactions on Information Theory 37, 1991, say what
//! can be described in steps at no cost, Gaussian numbers among them. Scalar codebooks pay 0.7 % of their error.

use super::turbo::{
    bits1, bounded, byte_levels, encode_128, encode_any, get2, pack1, pack2, put2, row_levels, spread2,
    values,
};
use super::{f16_at, level_bytes};
use crate::codebook::TURBO2;
use crate::codebook::nested::{NESTED, length, levels};
use crate::format::{Blocks, Format, PLANES_MAX, Rotation};
use torque_simd::{Isa, Scalar};

/// `2 + PLANES` bits and a scale.
pub struct Nested<const PLANES: usize>;

/// 2.125 bits for groups of 128.
pub type Turbo2Nested = Nested<0>;

/// 3.125 bits for groups of 128.
pub type Turbo3Nested = Nested<1>;

/// 4.125 bits for groups of 128.
pub type Turbo4Nested = Nested<2>;

/// Squares of levels by code, in 2, 3 and 4 bits.
const SQUARES: [[f32; 16]; 1 + PLANES_MAX] = {
    let mut squares = [levels(0), levels(1), levels(2)];
    let mut i = 0;
    while i < 3 * 16 {
        squares[i / 16][i % 16] *= squares[i / 16][i % 16];
        i += 1;
    }
    squares
};

/// The standard deviation of the length of Gaussian vectors of 128 in 2 and in 3 bits, in units of 1/√128.
const DEVIATIONS: [f32; PLANES_MAX] = [0.369, 0.222];

/// How much longer than that of 4 bits the scale of 2 and of 3 bits is on average.
const LONGER: [f32; PLANES_MAX] = [(length(2) / length(0)) as f32, (length(2) / length(1)) as f32];

/// Writes the scale of 4 bits, and corrections by the sums of the squares of the levels of all widths.
fn write_scale(block: &mut [u8], scale: f32, squares: [f32; 1 + PLANES_MAX]) {
    let correction = |planes: usize| {
        let needed = (squares[PLANES_MAX] / squares[planes]).sqrt() / LONGER[planes];
        u16::from(TURBO2.code((needed - 1.0) / DEVIATIONS[planes]))
    };
    let (two, three) = (correction(0), correction(1));
    let bits = half::f16::from_f32(bounded(scale)).to_bits();
    // The nearest number with such low bits; zero stays zero, and what is finite stays so.
    let low = if bits == 0 { 0 } else { three | (two & 1) << 2 };
    let nearest = ((bits + 4).saturating_sub(low) & !7) + low;
    let finite = half::f16::MAX.to_bits() & !7 | low;
    let nearest = if bits <= half::f16::MAX.to_bits() { nearest.min(finite) } else { bits };
    block[..2].copy_from_slice(&(nearest | (two & 2) << 14).to_le_bytes());
}

impl<const PLANES: usize> Nested<PLANES> {
    /// Levels by index: a two-bit field, and above it a bit of every plane.
    const LEVELS: [f32; 16] = {
        let (by_code, mut lanes, mut index) = (levels(PLANES), [0.0; 16], 0);
        while index < 16 {
            let (mut code, mut plane) = ((index & 3) << PLANES_MAX, 0);
            while plane < PLANES {
                code |= (index >> (2 + plane) & 1) << Self::bit(plane);
                plane += 1;
            }
            lanes[index] = by_code[code];
            index += 1;
        }
        lanes
    };

    /// What the scale is multiplied by, by the lowest three bits and the sign of what is stored. Vectors are then as long as in
    /// 4 bits, and not longer as in turbo2 and turbo3, because they stand beside more exact ones: noisy scores add weight already.
    const FACTORS: [f32; 16] = {
        let (mut factors, mut i) = ([1.0; 16], 0);
        while i < 16 && PLANES < PLANES_MAX {
            let correction = if PLANES == 0 { i >> 2 } else { i & 3 };
            factors[i] = LONGER[PLANES] * (1.0 + DEVIATIONS[PLANES] * TURBO2.levels[correction]);
            i += 1;
        }
        factors
    };

    /// Twice the first eight levels, and twice the way from them to the others.
    const fn halves() -> [[f32; 16]; 2] {
        let (mut halves, mut i) = ([Self::LEVELS; 2], 0);
        while i < 16 {
            halves[0][i] = Self::LEVELS[i % 8];
            halves[1][i] = Self::LEVELS[i % 8 + 8] - Self::LEVELS[i % 8];
            i += 1;
        }
        halves
    }

    /// The bit of a code that is in a plane.
    const fn bit(plane: usize) -> u32 {
        (PLANES_MAX - 1 - plane) as u32
    }

    /// Where a plane begins in a block.
    #[inline(always)]
    fn plane(block: &[u8], plane: usize) -> usize {
        let group = values(block.len(), 2 + PLANES);
        2 + group / 4 + plane * group / 8
    }

    fn put(block: &mut [u8], i: usize, code: u8) {
        put2(&mut block[2..], i, code >> PLANES_MAX);
        for plane in 0..PLANES {
            let at = Self::plane(block, plane) + i / 8;
            block[at] |= (code >> Self::bit(plane) & 1) << (i % 8);
        }
    }
}

impl<const PLANES: usize> Format for Nested<PLANES> {
    const NAME: &'static str = ["turbo2_nested", "turbo3_nested", "turbo4_nested"][PLANES];
    const WHOLE: bool = false;
    const GGML_TYPE: Option<u32> = None;
    const BLOCK: usize = 128;
    const BYTES: usize = 34 + 16 * PLANES;
    const GROUP: usize = 128;
    const ROTATION: Rotation = Rotation::Head;
    const WEIGHTS: bool = false;
    const WIDE: bool = true;
    const PART: usize = 128;
    const STRIDED: bool = true;
    const CODE_ERROR: f32 = byte_levels(Self::LEVELS).error;
    const GAIN: f32 = 1.0012;
    const PLANES: Option<usize> = Some(PLANES);
    const COARSE: bool = true;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let mut squares = [0.0; 1 + PLANES_MAX];
        let scale = encode_128(&NESTED, x, |i, code| {
            Self::put(block, i, code);
            squares.iter_mut().zip(SQUARES).for_each(|(sum, squares)| *sum += squares[usize::from(code)]);
        });
        write_scale(block, scale, squares);
    }

    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        Self::encode_on(Scalar, x, block);
    }

    #[inline(always)]
    fn encode_on<I: Isa>(isa: I, x: &[f32], block: &mut [u8]) {
        let (fields, planes) = block[2..].split_at_mut(x.len() / 4);
        let (fields, _) = fields.as_chunks_mut();
        let mut squares = [isa.splat(0.0); 1 + PLANES_MAX];
        let scale = encode_any(
            isa,
            &NESTED,
            x,
            #[inline(always)]
            |i, codes| {
                let code = isa.widen_u8(&codes);
                for j in 0..1 + PLANES_MAX {
                    squares[j] = isa.add(squares[j], isa.lookup(isa.load(&SQUARES[j]), code));
                }
                fields[i] = pack2(codes, PLANES_MAX as u32);
                for (plane, bits) in planes.chunks_exact_mut(x.len() / 8).enumerate() {
                    bits.as_chunks_mut().0[i] = pack1(codes, Self::bit(plane));
                }
            },
        );
        let mut sums = [0.0; 1 + PLANES_MAX];
        for j in 0..1 + PLANES_MAX {
            sums[j] = isa.sum(squares[j]);
        }
        write_scale(block, scale, sums);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let (scale, _) = Self::affine(Scalar, block, 0);
        for (i, y) in y.iter_mut().enumerate() {
            let bit = |plane| (block[Self::plane(block, plane) + i / 8] >> (i % 8) & 1) << (2 + plane);
            let index = (0..PLANES).fold(get2(&block[2..], i), |index, plane| index | bit(plane));
            *y = Self::LEVELS[usize::from(index)] * scale;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        let stored = f16_at(isa, block, 0);
        // Half precision ends at bit 13 of a float.
        let index = stored.to_bits() >> 13 & 7 | stored.to_bits() >> 28 & 8;
        (stored.abs() * const { Self::FACTORS }[index as usize], 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        let ([first, step], low) = (const { Self::halves() }, spread2(isa, block, i));
        match PLANES {
            0 => isa.lookup8(isa.load(&first), low),
            1 => isa.lookup8_split(isa.load(&first), low, bits1(block, Self::plane(block, 0), i)),
            _ => {
                let third = bits1(block, Self::plane(block, 0), i);
                let level = isa.lookup8_split(isa.load(&first), low, third);
                let step = isa.lookup8_split(isa.load(&step), low, third);
                isa.add_where(bits1(block, Self::plane(block, 1), i), level, step)
            }
        }
    }

    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
        let unit = const { byte_levels(Self::LEVELS).unit };
        let stored = isa.to_bits(blocks.tile_scales(isa));
        let low = isa.and(isa.shr::<13>(stored), isa.splat_n(7));
        let index = isa.or(low, isa.and(isa.shr::<28>(stored), isa.splat_n(8)));
        let factors = isa.lookup(isa.load(&const { Self::FACTORS }), index);
        let scale = isa.from_bits(isa.and(stored, isa.splat_n(i32::MAX)));
        put(0, isa.mul(isa.mul(scale, factors), isa.splat(unit)), isa.splat(0.0));
    }

    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, put: impl FnMut(usize, &[I::N])) {
        let levels = &const { level_bytes(byte_levels(Self::LEVELS).levels, I::BIAS) };
        row_levels::<I, PLANES>(
            isa,
            blocks,
            values(blocks.block_bytes(), 2),
            #[inline(always)]
            |plane, run| blocks.plane_word(isa, plane, run),
            levels,
            put,
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::FORMATS;
    use crate::rotate::Pcg64;
    use proptest::prelude::*;

    /// What a vector lacks of its length in fewer bits than four. Without corrections it is 0.033 and 0.020.
    #[test]
    fn every_width_restores_the_length() {
        let mut rng = Pcg64::seed(4);
        let mut uniform = || (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
        let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        for (format, bound) in FORMATS.iter().filter(|f| f.planes.is_some()).zip([0.004, 0.010, 0.016]) {
            let deviation = |_| {
                let x: Vec<f32> = (0..128).map(|_| normal() as f32).collect();
                let (mut block, mut y) = (vec![0; format.bytes], vec![0.0; 128]);
                (format.encode_rotated)(&x, &mut block);
                (format.decode)(&block, &mut y);
                let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
                (length(&y) / length(&x) / format.gain - 1.0).powi(2)
            };
            let found = ((0..1000).map(deviation).sum::<f32>() / 1000.0).sqrt();
            println!("{}: {found}", format.name);
            assert!(found < bound, "{}: {found}", format.name);
        }
    }

    proptest! {
        /// Dropping planes is encoding in fewer bits, to the bit.
        #[test]
        fn blocks_begin_with_each_other(
            x in prop::collection::vec(prop_oneof![9 => -10.0f32..10.0, 1 => prop::num::f32::ANY], 128),
        ) {
            let nested = || FORMATS.iter().filter(|format| format.planes.is_some());
            for (finer, coarser) in nested().flat_map(|finer| nested().map(move |coarser| (finer, coarser))) {
                if !coarser.begins(finer) {
                    continue;
                }
                for head_dim in [16, 48, 64, 80, 128] {
                    let (values, _) = finer.head_block(head_dim);
                    let block = |format: &crate::FormatOps| {
                        let mut block = vec![0xff; format.head_block(head_dim).1];
                        (format.encode_rotated)(&x[..values], &mut block);
                        block
                    };
                    prop_assert!(block(finer).starts_with(&block(coarser)), "{} {}", finer.name, coarser.name);
                }
                let (mut fine, mut coarse) = (vec![0; finer.bytes], vec![0; coarser.bytes]);
                (finer.encode)(&x, &mut fine);
                (coarser.encode)(&x, &mut coarse);
                prop_assert!(fine.starts_with(&coarse), "{} {}", finer.name, coarser.name);
            }
        }
    }
}
