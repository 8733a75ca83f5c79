//! Products of many vectors: reading a prompt, where arithmetic sets the pace. Rows are decoded once, to a
//! panel of floats, and the panel is used for all vectors.
//!
//! Both factors of [`matmul`] are contiguous in the contracted dimension, so a tile of M × N sums takes M + N
//! loads for M · N multiplications. The order of summation is that of [`crate::dot`]: results are the same to
//! the bit.

use crate::Format;
use crate::dot::{Affines, K_BLOCK, Rows, blocks, for_each_chunk, sum_all, vectors};
use torque_simd::{Isa, LANES};

/// Floats that [`matmul`] needs to work with `n` rows of `cols` values.
pub const fn panel_len(n: usize, cols: usize) -> usize {
    let columns = if cols < K_BLOCK { cols.next_multiple_of(LANES) } else { K_BLOCK };
    (n + TOKENS_MAX) * columns + LANES
}

/// The most vectors of any register tile.
const TOKENS_MAX: usize = 4;

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
    // Loads that cross a cache line cost twice.
    let unaligned = panel.as_ptr().align_offset(4 * LANES).min(LANES);
    let panel = &mut panel[unaligned..];
    isa.run(
        #[inline(always)]
        || {
            for (k, columns) in blocks(cols) {
                // Columns that do not fill a vector are followed by zeros.
                let stride = columns.next_multiple_of(LANES);
                let (x_panel, w_panel) = panel.split_at_mut(TOKENS_MAX * stride);
                let w_panel = &mut w_panel[..rows.n * stride];
                for (r, values) in w_panel.chunks_exact_mut(stride).enumerate() {
                    values[columns..].fill(0.0);
                    decode::<F, I>(isa, rows.slice::<F>(r, k, columns), &mut values[..columns]);
                }
                let x = Block { x, tokens, cols, k, columns };
                match const { I::TILE } {
                    (4, 4) => tiles::<I, 4, 4>(isa, x, x_panel, w_panel, rows.n, out),
                    (2, 3) => tiles::<I, 2, 3>(isa, x, x_panel, w_panel, rows.n, out),
                    (2, 2) => tiles::<I, 2, 2>(isa, x, x_panel, w_panel, rows.n, out),
                    _ => tiles::<I, 1, 1>(isa, x, x_panel, w_panel, rows.n, out),
                }
            }
        },
    );
}

/// Columns `k .. k + columns` of the vectors x.
#[derive(Clone, Copy)]
struct Block<'a> {
    x: &'a [f32],
    tokens: usize,
    cols: usize,
    k: usize,
    columns: usize,
}

/// Vectors outside, rows inside: M vectors stay in the first-level cache, the panel in the second. The first
/// block replaces what is in `out`, others add to it.
#[inline(always)]
fn tiles<I: Isa, const M: usize, const N: usize>(
    isa: I,
    x: Block<'_>,
    x_panel: &mut [f32],
    w_panel: &[f32],
    rows: usize,
    out: &mut [f32],
) {
    let stride = x.columns.next_multiple_of(LANES);
    let (x_panel, chunks) = (&mut x_panel[..M * stride], stride / LANES);
    for m in (0..x.tokens).step_by(M) {
        // Vectors and rows that are missing repeat the last one; their results are not written.
        for (i, copy) in x_panel.chunks_exact_mut(stride).enumerate() {
            let row = &x.x[(m + i).min(x.tokens - 1) * x.cols + x.k..][..x.columns];
            copy[..x.columns].copy_from_slice(row);
            copy[x.columns..].fill(0.0);
        }
        let mut xs: [&[[f32; 16]]; M] = [&[]; M];
        for i in 0..M {
            xs[i] = &x_panel[i * stride..][..stride].as_chunks().0[..chunks];
        }
        for n in (0..rows).step_by(N) {
            let mut ws: [&[[f32; 16]]; N] = [&[]; N];
            for j in 0..N {
                ws[j] = &w_panel[(n + j).min(rows - 1) * stride..][..stride].as_chunks().0[..chunks];
            }
            let sums = sum_all(isa, products(isa, xs, ws, chunks));
            for (i, sums) in sums.into_iter().enumerate().take(x.tokens - m) {
                let out = &mut out[(m + i) * rows..][n..rows];
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = if x.k == 0 { sum } else { *out + sum };
                }
            }
        }
    }
}

#[inline(always)]
fn products<I: Isa, const M: usize, const N: usize>(
    isa: I,
    x: [&[[f32; 16]]; M],
    w: [&[[f32; 16]]; N],
    chunks: usize,
) -> [[I::F; N]; M] {
    let mut sums = [[isa.splat(0.0); N]; M];
    for k in 0..chunks {
        let mut values = [isa.splat(0.0); N];
        for j in 0..N {
            values[j] = isa.load(&w[j][k]);
        }
        for i in 0..M {
            let x = isa.load(&x[i][k]);
            for j in 0..N {
                sums[i][j] = isa.fma(values[j], x, sums[i][j]);
            }
        }
    }
    sums
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

/// Rows of w that [`product`] transposes at once, and how many columns.
const TRANSPOSED: (usize, usize) = (64, 128);

/// `out[m * w.rows + n] = Σ_k x[m, k] w[n, k]` over k < `columns`, for short columns: heads.
///
/// Columns are added up one after the other. (A sum in lanes, as in [`matmul`], would spend as long on
/// adding up the lanes as on everything else.)
pub fn product<I: Isa>(isa: I, x: Matrix<'_>, w: Matrix<'_>, columns: usize, out: &mut [f32]) {
    assert_eq!(out.len(), x.rows * w.rows, "shape of out");
    isa.run(
        #[inline(always)]
        || {
            let mut transposed = [[0.0; TRANSPOSED.0]; TRANSPOSED.1];
            for k in (0..columns).step_by(TRANSPOSED.1) {
                let depth = TRANSPOSED.1.min(columns - k);
                let x = Matrix { values: &x.values[k..], ..x };
                for n in (0..w.rows).step_by(TRANSPOSED.0) {
                    let count = TRANSPOSED.0.min(w.rows - n);
                    for i in 0..count {
                        let row = &w.values[(n + i) * w.stride + k..][..depth];
                        transposed[..depth].iter_mut().zip(row).for_each(|(to, value)| to[i] = *value);
                    }
                    let (wide, needed) = (TRANSPOSED.0 / LANES, count.div_ceil(LANES));
                    let vectors = transposed[..depth].as_flattened().as_chunks().0;
                    outer_products(
                        isa,
                        x,
                        depth,
                        vectors,
                        wide,
                        needed,
                        #[inline(always)]
                        |m, first, sums| {
                            let mut values = [0.0; LANES];
                            isa.store(sums, &mut values);
                            let out = &mut out[m * w.rows + n..][first..count.min(first + LANES)];
                            for (out, value) in out.iter_mut().zip(values) {
                                *out = if k == 0 { value } else { *out + value };
                            }
                        },
                    );
                }
            }
        },
    );
}

/// Hands row m, columns `n .. n + 16` of the product a · b to `put(m, n, sums)`. Rows of a have `columns`
/// values; rows of b are `width` vectors apart and `count` long. Every value of a meets whole vectors of b.
#[inline(always)]
pub(crate) fn outer_products<I: Isa>(
    isa: I,
    a: Matrix<'_>,
    columns: usize,
    b: &[[f32; 16]],
    width: usize,
    count: usize,
    put: impl FnMut(usize, usize, I::F),
) {
    match const { vectors::<I>() } {
        8 => outer_tiles::<I, 6, 4>(isa, a, columns, b, width, count, put),
        4 => outer_tiles::<I, 2, 2>(isa, a, columns, b, width, count, put),
        _ => outer_tiles::<I, 1, 1>(isa, a, columns, b, width, count, put),
    }
}

/// M rows of a and N vectors of b at a time.
#[inline(always)]
fn outer_tiles<I: Isa, const M: usize, const N: usize>(
    isa: I,
    a: Matrix<'_>,
    columns: usize,
    b: &[[f32; 16]],
    width: usize,
    count: usize,
    mut put: impl FnMut(usize, usize, I::F),
) {
    for m in (0..a.rows).step_by(M) {
        // Missing rows repeat the last one.
        let mut rows = [&a.values[..0]; M];
        for i in 0..M {
            rows[i] = &a.values[(m + i).min(a.rows - 1) * a.stride..][..columns];
        }
        let mut n = 0;
        while n + N <= count {
            let sums = outer_tile::<I, M, N>(isa, rows, b, width, n);
            for i in 0..M {
                if m + i < a.rows {
                    for j in 0..N {
                        put(m + i, (n + j) * LANES, sums[i][j]);
                    }
                }
            }
            n += N;
        }
        while n < count {
            let sums = outer_tile::<I, M, 1>(isa, rows, b, width, n);
            for i in 0..M {
                if m + i < a.rows {
                    put(m + i, n * LANES, sums[i][0]);
                }
            }
            n += 1;
        }
    }
}

#[inline(always)]
fn outer_tile<I: Isa, const M: usize, const N: usize>(
    isa: I,
    rows: [&[f32]; M],
    b: &[[f32; 16]],
    width: usize,
    n: usize,
) -> [[I::F; N]; M] {
    let mut sums = [[isa.splat(0.0); N]; M];
    for (k, b) in b.chunks_exact(width).enumerate().take(rows[0].len()) {
        let b: &[[f32; 16]; N] = b[n..].first_chunk().expect("N vectors are left");
        let mut values = [isa.splat(0.0); N];
        for j in 0..N {
            values[j] = isa.load(&b[j]);
        }
        for i in 0..M {
            let a = isa.splat(rows[i][k]);
            for j in 0..N {
                sums[i][j] = isa.fma(values[j], a, sums[i][j]);
            }
        }
    }
    sums
}

/// Decodes one row, or whole blocks of one.
#[inline(always)]
pub(crate) fn decode<F: Format, I: Isa>(isa: I, row: &[u8], out: &mut [f32]) {
    let (chunks, tail) = out.as_chunks_mut::<16>();
    let (blocks, rest) = row.split_at(chunks.len() * LANES / F::BLOCK * F::BYTES);
    let mut affines = Affines::none(isa);
    for (block, out) in blocks.chunks_exact(F::BYTES).zip(chunks.chunks_exact_mut(F::BLOCK / LANES)) {
        affines.read::<F, I>(isa, block);
        let out = &mut out[..const { F::BLOCK / LANES }];
        for_each_chunk!(F, i => isa.store(affines.values::<F, I>(isa, block, i), &mut out[i]));
    }
    if !tail.is_empty() {
        F::decode(rest, tail);
    }
}
