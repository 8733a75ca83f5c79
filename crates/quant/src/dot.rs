//! Encoded rows times a few float vectors: decoding, where every weight is read once and memory sets the
//! pace. Codes become floats in registers and are used for all vectors at once.
//!
//! # Order of summation
//!
//! Here and in [`crate::gemm`] a product is summed in sixteen lanes over [`K_BLOCK`] columns, the lanes are
//! added up as [`Isa::sum`] does, and so are the blocks, first to last. A result therefore depends neither
//! on the instruction set, nor on how many rows and vectors are multiplied together: a token has the same
//! logits alone and in a batch.

use crate::Format;
use crate::math::pad;
use torque_simd::{Isa, LANES};

/// Columns summed in lanes before the lanes are added up. A tile's share of eight vectors, or of a panel
/// of decoded rows, then stays in the first-level cache.
pub const K_BLOCK: usize = 1024;

/// `out[t * n + r] = Σ_k W[r, k] x[t * cols + k]`: `tokens` vectors x times n encoded rows W of `cols` values.
///
/// Columns are whole blocks; those of float formats are any number. For
/// [`Rotation::Block32`](crate::Rotation::Block32) formats x is rotated already.
pub fn matvec<F: Format, I: Isa>(
    isa: I,
    rows: &[u8],
    cols: usize,
    x: &[f32],
    tokens: usize,
    out: &mut [f32],
) {
    let rows = Rows::new::<F>(rows, cols);
    assert_eq!((x.len(), out.len()), (tokens * cols, tokens * rows.n), "shapes of x and out");
    let width = const { vectors::<I>() };
    for t in (0..tokens).step_by(width) {
        let (x, out) = (&x[t * cols..], &mut out[t * rows.n..]);
        let left = tokens - t;
        isa.run(
            #[inline(always)]
            || match const { vectors::<I>() } {
                1 => row_by_row::<F, I, 4, 1>(isa, rows, x, out),
                _ if left == 1 => row_by_row::<F, I, 4, 1>(isa, rows, x, out),
                4 => block_by_block::<F, I, 1, 4>(isa, rows, x, out),
                _ if left <= 4 => block_by_block::<F, I, 4, 4>(isa, rows, x, out),
                _ => block_by_block::<F, I, 2, 8>(isa, rows, x, out),
            },
        );
    }
}

/// Vectors that are multiplied with a decoded chunk at once: 8, 4 or 1, as registers allow. Fewer vectors
/// than that take a narrower kernel, 4 or 1 wide, and repeat the last one.
#[inline(always)]
pub(crate) const fn vectors<I: Isa>() -> usize {
    match I::TILE.0 * I::TILE.1 {
        16.. => 8,
        4.. => 4,
        _ => 1,
    }
}

/// Encoded rows of `cols` values.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
    pub cols: usize,
    /// How many.
    pub n: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub fn new<F: Format>(bytes: &'a [u8], cols: usize) -> Self {
        // Only float formats have blocks of one vector, and they may end inside one.
        assert!(F::BLOCK == LANES || cols.is_multiple_of(F::BLOCK), "{}: {cols} columns", F::NAME);
        let row_bytes = cols * F::BYTES / F::BLOCK;
        let n = bytes.len() / row_bytes;
        assert_eq!(bytes.len(), n * row_bytes, "{}: rows are whole", F::NAME);
        Rows { bytes, row_bytes, cols, n }
    }

    /// Columns `k .. k + columns` of row r.
    #[inline(always)]
    pub fn slice<F: Format>(&self, r: usize, k: usize, columns: usize) -> &'a [u8] {
        &self.bytes[r * self.row_bytes + k * F::BYTES / F::BLOCK..][..columns * F::BYTES / F::BLOCK]
    }

    /// The K blocks as first column and width: whole vectors, then what is left of a float row.
    #[inline(always)]
    pub fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let whole = self.cols / LANES * LANES;
        let cols = self.cols;
        let blocks = (0..whole).step_by(K_BLOCK).map(move |k| (k, K_BLOCK.min(whole - k)));
        blocks.chain((whole < cols).then_some((whole, cols - whole)))
    }
}

/// Rows outside, K blocks inside: a linear walk through memory.
#[inline(always)]
fn row_by_row<F: Format, I: Isa, const R: usize, const T: usize>(
    isa: I,
    rows: Rows<'_>,
    x: &[f32],
    out: &mut [f32],
) {
    for r in (0..rows.n).step_by(R) {
        for (k, columns) in rows.blocks() {
            tile::<F, I, R, T>(isa, rows, r, k, columns, x, out);
        }
    }
}

/// K blocks outside, rows inside: the block of x stays in the first-level cache.
#[inline(always)]
fn block_by_block<F: Format, I: Isa, const R: usize, const T: usize>(
    isa: I,
    rows: Rows<'_>,
    x: &[f32],
    out: &mut [f32],
) {
    for (k, columns) in rows.blocks() {
        for r in (0..rows.n).step_by(R) {
            tile::<F, I, R, T>(isa, rows, r, k, columns, x, out);
        }
    }
}

/// Adds the products of rows `r .. r + R` and the first T vectors, or all there are, in one K block. The
/// first block replaces what was there. Missing rows and vectors repeat the last one.
#[inline(always)]
fn tile<F: Format, I: Isa, const R: usize, const T: usize>(
    isa: I,
    rows: Rows<'_>,
    r: usize,
    k: usize,
    columns: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let tokens = T.min(x.len() / rows.cols);
    let x: [&[f32]; T] = std::array::from_fn(|t| &x[t.min(tokens - 1) * rows.cols + k..][..columns]);
    let w: [&[u8]; R] = std::array::from_fn(|i| rows.slice::<F>((r + i).min(rows.n - 1), k, columns));
    let sums =
        if columns < LANES { tail::<F, I, R, T>(isa, w, x) } else { products::<F, I, R, T>(isa, w, x) };
    let sums = sum_all(isa, sums);
    for (i, sums) in sums.into_iter().enumerate().take(rows.n - r) {
        for (t, sum) in sums.into_iter().enumerate().take(tokens) {
            let out = &mut out[t * rows.n + r + i];
            *out = if k == 0 { sum } else { *out + sum };
        }
    }
}

/// Lane sums of the products of R rows and T vectors, in whole blocks.
#[inline(always)]
fn products<F: Format, I: Isa, const R: usize, const T: usize>(
    isa: I,
    rows: [&[u8]; R],
    x: [&[f32]; T],
) -> [[I::F; T]; R] {
    let chunks = F::BLOCK / LANES;
    let group = F::GROUP / LANES;
    let blocks = x[0].len() / F::BLOCK;
    let x: [&[[f32; 16]]; T] = x.map(|x| &x.as_chunks().0[..blocks * chunks]);
    let rows: [&[u8]; R] = rows.map(|row| &row[..blocks * F::BYTES]);
    let mut sums = [[isa.splat(0.0); T]; R];
    for b in 0..blocks {
        for r in 0..R {
            let block = &rows[r][b * F::BYTES..][..F::BYTES];
            for g in 0..chunks / group {
                let affine = Affine::new::<F>(isa, block, g * group);
                for i in g * group..(g + 1) * group {
                    let w = affine.values::<F>(isa, block, i);
                    for t in 0..T {
                        sums[r][t] = isa.fma(w, isa.load(&x[t][b * chunks + i]), sums[r][t]);
                    }
                }
            }
        }
    }
    sums
}

/// The same for fewer than sixteen columns of a float format, as if zeros followed.
#[inline(never)]
fn tail<F: Format, I: Isa, const R: usize, const T: usize>(
    isa: I,
    rows: [&[u8]; R],
    x: [&[f32]; T],
) -> [[I::F; T]; R] {
    let rows = rows.map(pad::<u8, 64>);
    let x = x.map(pad::<f32, 16>);
    products::<F, I, R, T>(isa, rows.each_ref().map(|row| &row[..F::BYTES]), x.each_ref().map(|x| &x[..]))
}

/// Scale and shift of a group, in every lane.
#[derive(Clone, Copy)]
pub(crate) struct Affine<V> {
    scale: V,
    shift: V,
}

impl<V: Copy> Affine<V> {
    /// Those of chunk i of a block.
    #[inline(always)]
    pub fn new<F: Format>(isa: impl Isa<F = V>, block: &[u8], i: usize) -> Self {
        let (scale, shift) = F::affine(block, i);
        Affine { scale: isa.splat(scale), shift: isa.splat(shift) }
    }

    /// Chunk i of a block, decoded.
    #[inline(always)]
    pub fn values<F: Format>(self, isa: impl Isa<F = V>, block: &[u8], i: usize) -> V {
        let codes = F::codes(isa, block, i);
        if F::SHIFTED { isa.fma(codes, self.scale, self.shift) } else { isa.mul(codes, self.scale) }
    }
}

/// The lanes of every vector, added up.
#[inline(always)]
pub(crate) fn sum_all<I: Isa, const M: usize, const N: usize>(isa: I, v: [[I::F; N]; M]) -> [[f32; N]; M] {
    let mut sums = [[0.0; N]; M];
    let mut done = 0;
    // Sixteen at a time, when that is cheaper than one by one.
    while M * N - done >= 6 {
        let at = |i: usize| (done + i).min(M * N - 1);
        let mut sixteen = [0.0; 16];
        isa.store(isa.reduce16(std::array::from_fn(|i| v[at(i) / N][at(i) % N])), &mut sixteen);
        for i in 0..16.min(M * N - done) {
            sums[(done + i) / N][(done + i) % N] = sixteen[i];
        }
        done += 16.min(M * N - done);
    }
    while done < M * N {
        sums[done / N][done % N] = isa.sum(v[done / N][done % N]);
        done += 1;
    }
    sums
}
