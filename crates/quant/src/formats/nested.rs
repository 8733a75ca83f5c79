//! turbo4_nested, turbo3_nested, turbo2_nested: formats whose blocks begin with each other (KV cache).
//!
//! A head is rounded to sixteen cells whose pairs are the eight cells of 3 bits, and whose fours the four of 2 bits
//! ([`crate::codebook::nested`]), and the bits of its codes are stored apart, the important ones first:
//!
//! ```text
//! all             0..2   scale f16                           value i = scale · level[code i], the levels of the width
//!                 g/4    bits 3 and 2 of all codes, two a value, as in turbo2
//! turbo3, turbo4  g/8    bit 1, value 8j + k at bit k of byte j
//! turbo4          g/8    bit 0, likewise
//! ```
//!
//! So a page of turbo4_nested becomes one of turbo3_nested, and then of turbo2_nested, by leaving bytes out: nothing is
//! decoded and encoded again, which would add the error of the smaller format to that of the larger one. What remains is to
//! the bit what the smaller format makes of the exact values.
//!
//! The scale is that of 4 bits, because it must serve all widths; levels of fewer bits are longer than the means of their
//! cells by what restores the length of vectors on average.
//!
//! W. Equitz, T. Cover, «Successive refinement of information», IEEE Transactions on Information Theory 37, 1991, say what
//! can be described in steps at no cost, Gaussian numbers among them. Scalar codebooks pay 0.7 % of their error.

use super::turbo::{
    bits1, byte_levels, encode_128, encode_any, get2, pack1, pack2, put2, row_levels, row_scales, spread2,
    values,
};
use super::{f16_at, level_bytes, read_f16, write_f16};
use crate::codebook::nested::{NESTED, lanes, length};
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

impl<const PLANES: usize> Nested<PLANES> {
    /// Levels by index: a two-bit field, and above it a bit of every plane. Those of fewer than four bits make vectors as long,
    /// on average, as those of four: not longer, because they stand beside more exact ones, and noisy scores add weight already.
    const LEVELS: [f32; 16] = lanes(PLANES, length(PLANES_MAX) / length(PLANES));

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
    const GAIN: f32 = [1.004, 1.001, 1.0012][PLANES];
    const PLANES: Option<usize> = Some(PLANES);
    const COARSE: bool = true;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_128(&NESTED, x, |i, code| Self::put(block, i, code));
        write_f16(block, 0, scale);
    }

    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        Self::encode_on(Scalar, x, block);
    }

    #[inline(always)]
    fn encode_on<I: Isa>(isa: I, x: &[f32], block: &mut [u8]) {
        let (fields, planes) = block[2..].split_at_mut(x.len() / 4);
        let (fields, _) = fields.as_chunks_mut();
        let scale = encode_any(isa, &NESTED, x, |i, codes| {
            fields[i] = pack2(codes, PLANES_MAX as u32);
            for (plane, bits) in planes.chunks_exact_mut(x.len() / 8).enumerate() {
                bits.as_chunks_mut().0[i] = pack1(codes, Self::bit(plane));
            }
        });
        write_f16(block, 0, scale);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let scale = read_f16(block, 0);
        for (i, y) in y.iter_mut().enumerate() {
            let bit = |plane| (block[Self::plane(block, plane) + i / 8] >> (i % 8) & 1) << (2 + plane);
            let index = (0..PLANES).fold(get2(&block[2..], i), |index, plane| index | bit(plane));
            *y = Self::LEVELS[usize::from(index)] * scale;
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
        (f16_at(isa, block, 0), 0.0)
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
        put(0, row_scales(isa, unit, blocks), isa.splat(0.0));
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
    use super::*;
    use crate::FORMATS;
    use proptest::prelude::*;

    #[test]
    fn levels_fit_bytes_well() {
        let errors = [Turbo2Nested::CODE_ERROR, Turbo3Nested::CODE_ERROR, Turbo4Nested::CODE_ERROR];
        println!("{errors:?}");
        assert!(
            errors.into_iter().zip([1.1e-3, 2e-3, 2.8e-3]).all(|(error, bound)| error <= bound),
            "{errors:?}"
        );
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
