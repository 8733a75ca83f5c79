//! Products of many vectors: reading a prompt, where arithmetic sets the pace. Rows are decoded once, to a
//! panel of floats, and the panel is used for all vectors.
//!
//! Both factors are contiguous in the contracted dimension, so a tile of M × N sums takes M + N loads for
//! M · N multiplications. The order of summation is that of [`crate::dot`]: results are the same to the bit.

use crate::Format;
use crate::dot::{Affine, K_BLOCK, Rows, sum_all};
use crate::math::pad;
use torque_simd::{Isa, LANES};

/// Floats that [`matmul`] needs for `n` rows of `cols` values.
pub const fn panel_len(n: usize, cols: usize) -> usize {
    n * if cols < K_BLOCK { cols } else { K_BLOCK }
}

/// As [`crate::dot::matvec`], for any number of vectors, with a panel of [`panel_len`] floats to work in.
///
/// A panel should stay in the second-level cache: 48 to 96 rows.
pub fn matmul<F: Format, I: Isa>(
    isa: I,
    rows: &[u8],
    cols: usize,
    x: &[f32],
    tokens: usize,
    panel: &mut [f32],
    out: &mut [f32],
) {
    let rows = Rows::new::<F>(rows, cols);
    assert_eq!((x.len(), out.len()), (tokens * cols, tokens * rows.n), "shapes of x and out");
    isa.run(
        #[inline(always)]
        || {
            for (k, columns) in rows.blocks() {
                let panel = &mut panel[..rows.n * columns];
                for (r, values) in panel.chunks_exact_mut(columns).enumerate() {
                    decode::<F, I>(isa, rows.slice::<F>(r, k, columns), values);
                }
                let x = Matrix { values: &x[k..], stride: cols, rows: tokens };
                let w = Matrix { values: panel, stride: columns, rows: rows.n };
                multiply(isa, x, w, columns, out, k > 0);
            }
        },
    );
}

/// Decodes rows of `cols` values: an embedding, or whatever is wanted as floats.
pub fn decode_rows<F: Format, I: Isa>(isa: I, rows: &[u8], cols: usize, out: &mut [f32]) {
    let rows = Rows::new::<F>(rows, cols);
    assert_eq!(out.len(), rows.n * cols, "shape of out");
    isa.run(
        #[inline(always)]
        || {
            for (r, out) in out.chunks_exact_mut(cols).enumerate() {
                decode::<F, I>(isa, rows.slice::<F>(r, 0, cols), out);
            }
        },
    );
}

/// `out[m * w.rows + n] (+)= Σ_k x[m, k] w[n, k]` over k < `columns`, in blocks of [`K_BLOCK`].
pub fn product<I: Isa>(isa: I, x: Matrix<'_>, w: Matrix<'_>, columns: usize, out: &mut [f32]) {
    assert_eq!(out.len(), x.rows * w.rows, "shape of out");
    isa.run(
        #[inline(always)]
        || {
            for k in (0..columns).step_by(K_BLOCK) {
                let (x, w) = (x.columns_from(k), w.columns_from(k));
                multiply(isa, x, w, K_BLOCK.min(columns - k), out, k > 0);
            }
        },
    );
}

/// Rows of floats, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// From the first value of the first row to the last of the last.
    pub values: &'a [f32],
    /// Floats from one row to the next.
    pub stride: usize,
    /// How many rows.
    pub rows: usize,
}

impl Matrix<'_> {
    #[inline(always)]
    fn columns_from(self, k: usize) -> Self {
        Matrix { values: &self.values[k..], ..self }
    }
}

/// Decodes one row, or whole blocks of one.
#[inline(always)]
fn decode<F: Format, I: Isa>(isa: I, row: &[u8], out: &mut [f32]) {
    let (chunks, tail) = out.as_chunks_mut::<16>();
    let (blocks, rest) = row.split_at(chunks.len() * LANES / F::BLOCK * F::BYTES);
    for (block, out) in blocks.chunks_exact(F::BYTES).zip(chunks.chunks_exact_mut(F::BLOCK / LANES)) {
        for (g, out) in out.chunks_exact_mut(F::GROUP / LANES).enumerate() {
            let first = g * F::GROUP / LANES;
            let affine = Affine::new::<F>(isa, block, first);
            for (i, out) in out.iter_mut().enumerate() {
                isa.store(affine.values::<F>(isa, block, first + i), out);
            }
        }
    }
    if !tail.is_empty() {
        F::decode(rest, tail);
    }
}

/// One K block of a product. Replaces what was there unless `add`.
#[inline(always)]
fn multiply<I: Isa>(isa: I, x: Matrix<'_>, w: Matrix<'_>, columns: usize, out: &mut [f32], add: bool) {
    match const { I::TILE } {
        (4, 6) => tiles::<I, 4, 6>(isa, x, w, columns, out, add),
        (2, 3) => tiles::<I, 2, 3>(isa, x, w, columns, out, add),
        (2, 2) => tiles::<I, 2, 2>(isa, x, w, columns, out, add),
        _ => tiles::<I, 1, 1>(isa, x, w, columns, out, add),
    }
}

/// Vectors outside, rows inside: M vectors stay in the first-level cache, the panel in the second.
#[inline(always)]
fn tiles<I: Isa, const M: usize, const N: usize>(
    isa: I,
    x: Matrix<'_>,
    w: Matrix<'_>,
    columns: usize,
    out: &mut [f32],
    add: bool,
) {
    // Rows that do not fill a tile repeat the last one; the repetitions are not written.
    for m in (0..x.rows).step_by(M) {
        let xs: [&[f32]; M] =
            std::array::from_fn(|i| &x.values[(m + i).min(x.rows - 1) * x.stride..][..columns]);
        for n in (0..w.rows).step_by(N) {
            let ws: [&[f32]; N] =
                std::array::from_fn(|j| &w.values[(n + j).min(w.rows - 1) * w.stride..][..columns]);
            let sums = sum_all(isa, products(isa, xs, ws, columns));
            for (i, sums) in sums.into_iter().enumerate().take(x.rows - m) {
                let out = &mut out[(m + i) * w.rows..][n..w.rows];
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = if add { *out + sum } else { sum };
                }
            }
        }
    }
}

#[inline(always)]
fn products<I: Isa, const M: usize, const N: usize>(
    isa: I,
    x: [&[f32]; M],
    w: [&[f32]; N],
    columns: usize,
) -> [[I::F; N]; M] {
    let chunks = columns / LANES;
    let xs: [&[[f32; 16]]; M] = x.map(|x| &x.as_chunks().0[..chunks]);
    let ws: [&[[f32; 16]]; N] = w.map(|w| &w.as_chunks().0[..chunks]);
    let mut sums = [[isa.splat(0.0); N]; M];
    for k in 0..chunks {
        let w = ws.map(|w| isa.load(&w[k]));
        for i in 0..M {
            let x = isa.load(&xs[i][k]);
            for j in 0..N {
                sums[i][j] = isa.fma(w[j], x, sums[i][j]);
            }
        }
    }
    if !columns.is_multiple_of(LANES) {
        let padded = |v: &[f32]| isa.load(&pad(&v[chunks * LANES..]));
        let (x, w) = (x.map(padded), w.map(padded));
        for i in 0..M {
            for j in 0..N {
                sums[i][j] = isa.fma(w[j], x[i], sums[i][j]);
            }
        }
    }
    sums
}
