//! The kernels of a format, chosen for an instruction set at run time.

use crate::attend::Part;
use crate::attend::whole::{self, Codes, Split};
use crate::gemm::Matrix;
use crate::int8::{self, Rounded};
use crate::{Format, FormatOps, attend, dot, gemm, tiles};
use torque_simd::tiles::Tile;
use torque_simd::{Isa, Level, dispatch};

/// What a format and an instruction set can do, as functions. Shapes are those of the functions named.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// [`dot::matvec`]: `(rows, cols, x, tokens, out)`.
    pub matvec: fn(&[u8], usize, &[f32], usize, &mut [f32]),
    /// [`gemm::matmul`]: `(rows, cols, x, tokens, panel, out)`.
    #[allow(clippy::type_complexity)]
    pub matmul: fn(&[u8], usize, &[f32], usize, &mut [f32], &mut [f32]),
    /// [`int8::multiply`]: `(rows, cols, x, out)`. Weights of formats in whole numbers have this product, others
    /// the two above.
    pub multiply: fn(&[u8], usize, &[Rounded], &mut [f32]),
    /// [`Rounded::round`]: `(out, x)`.
    pub round: fn(&mut Rounded, &[f32]),
    /// [`tiles::decode`]: `(rows, cols, first, out)`. Weights of all formats but floats.
    pub decode_tiles: fn(&[u8], usize, usize, &mut [Tile]),
    /// [`tiles::round`]: `(x, cols, out)`.
    pub round_tiles: fn(&[f32], usize, &mut [Tile]),
    /// [`Format::encode_blocks`]: `(x, values, out)`.
    pub encode: fn(&[f32], usize, &mut [u8]),
    /// [`attend::scores`]: `(part, q, out)`.
    pub scores: fn(Part<'_>, &[f32], &mut [f32]),
    /// [`attend::accumulate`]: `(part, weights, out)`.
    pub accumulate: fn(Part<'_>, &[f32], &mut [f32]),
    /// [`attend::decode_tile`]: `(part, out)`.
    pub decode_tile: fn(Part<'_>, &mut [f32]),
    /// [`whole::unpack`] of keys and of values: `(part, out)`.
    pub unpack: [fn(Part<'_>, &mut Codes) -> bool; 2],
}

impl Kernels {
    /// The kernels of a format.
    ///
    /// # Panics
    ///
    /// If the processor lacks the level.
    pub fn of<F: Format>(level: Level) -> Kernels {
        dispatch!(level, |isa| Kernels::with::<F, _>(isa))
    }

    fn with<F: Format, I: Isa>(_: I) -> Kernels {
        Kernels {
            matvec: const {
                if F::WEIGHTS && !F::WHOLE {
                    |rows, cols, x, tokens, out| dot::matvec::<F, I>(isa(), rows, cols, x, tokens, out)
                } else {
                    |_, _, _, _, _| panic!("{} has no weights in floats", F::NAME)
                }
            },
            matmul: const {
                if F::WEIGHTS && !F::WHOLE {
                    |rows, cols, x, tokens, panel, out| {
                        gemm::matmul::<F, I>(isa(), rows, cols, x, tokens, panel, out)
                    }
                } else {
                    |_, _, _, _, _, _| panic!("{} has no weights in floats", F::NAME)
                }
            },
            multiply: const {
                if F::WHOLE && F::WEIGHTS {
                    |rows, cols, x, out| int8::multiply::<F, I>(isa(), rows, cols, x, out)
                } else {
                    |_, _, _, _| panic!("{} has no weights in whole numbers", F::NAME)
                }
            },
            round: |out, x| out.round(isa::<I>(), x),
            decode_tiles: const {
                match (FormatOps::of::<F>().has_tiles(), F::WHOLE) {
                    (true, true) => {
                        |rows, cols, first, out| tiles::decode::<F, I>(isa(), rows, cols, first, out)
                    }
                    (true, false) => {
                        |rows, cols, first, out| tiles::decode_rotated::<F, I>(isa(), rows, cols, first, out)
                    }
                    (false, _) => |_, _, _, _| panic!("{} has no weights in tiles", F::NAME),
                }
            },
            round_tiles: |x, cols, out| tiles::round::<I>(isa(), x, cols, out),
            encode: |x, values, out| {
                let isa = isa::<I>();
                isa.run(
                    #[inline(always)]
                    || F::encode_blocks(isa, x, values, out),
                )
            },
            scores: const {
                if F::KV {
                    |part, q, out| attend::scores::<F, I>(isa(), part, q, out)
                } else {
                    |_, _, _| panic!("{} holds no K and V", F::NAME)
                }
            },
            accumulate: const {
                if F::KV {
                    |part, weights, out| attend::accumulate::<F, I>(isa(), part, weights, out)
                } else {
                    |_, _, _| panic!("{} holds no K and V", F::NAME)
                }
            },
            decode_tile: const {
                if F::KV {
                    |part, out| attend::decode_tile::<F, I>(isa(), part, out)
                } else {
                    |_, _| panic!("{} holds no K and V", F::NAME)
                }
            },
            unpack: const {
                if F::KV {
                    [
                        |part, out| whole::unpack::<F, I, false>(isa(), part, out),
                        |part, out| whole::unpack::<F, I, true>(isa(), part, out),
                    ]
                } else {
                    [|_, _| panic!("{} holds no K and V", F::NAME); 2]
                }
            },
        }
    }
}

/// The instruction set of a function pointer, which cannot hold a value.
#[inline(always)]
fn isa<I: Isa>() -> I {
    I::new().expect("kernels are chosen for a level that the processor has")
}

/// Products that no format takes part in.
#[derive(Clone, Copy, Debug)]
pub struct SharedKernels {
    /// [`gemm::product`]: `(x, w, columns, out)`.
    pub product: fn(Matrix<'_>, Matrix<'_>, usize, &mut [f32]),
    /// [`attend::accumulate_tile`]: `(v, tokens, head_dim, weights, out)`.
    pub accumulate_tile: fn(&[f32], usize, usize, &[f32], &mut [f32]),
    /// [`whole::scores`]: `(keys, q, split, out)`.
    pub scores: fn(&Codes, &[f32], &mut Split, &mut [f32]),
    /// [`whole::accumulate`]: `(values, weights, room, out)`.
    pub accumulate: fn(&Codes, &[f32], &mut Split, &mut [f32]),
    /// [`crate::math::softmax_step`]: `(scores, shift, [max, sum, squares]) -> [own sum, own squares, factor]`.
    pub softmax_step: fn(&mut [f32], f32, &mut [f32; 3]) -> [f32; 3],
}

impl SharedKernels {
    /// The kernels of a level.
    ///
    /// # Panics
    ///
    /// If the processor lacks the level.
    pub fn of(level: Level) -> SharedKernels {
        dispatch!(level, |isa| SharedKernels::with(isa))
    }

    fn with<I: Isa>(_: I) -> SharedKernels {
        SharedKernels {
            product: |x, w, columns, out| gemm::product::<I>(isa(), x, w, columns, out),
            accumulate_tile: |v, tokens, head_dim, weights, out| {
                attend::accumulate_tile::<I>(isa(), v, tokens, head_dim, weights, out)
            },
            scores: |keys, q, split, out| whole::scores::<I>(isa(), keys, q, split, out),
            accumulate: |values, weights, room, out| {
                whole::accumulate::<I>(isa(), values, weights, room, out)
            },
            softmax_step: |scores, shift, state| crate::math::softmax_step::<I>(isa(), scores, shift, state),
        }
    }
}

#[cfg(test)]
mod tests;
