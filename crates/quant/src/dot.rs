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

/// Runs a body for every chunk of a block of format F, unrolled: a chunk then knows where it lies.
macro_rules! for_each_chunk {
    ($F:ident, $i:ident => $body:expr) => {
        for_each_chunk!($F, $i => $body; 0 1)
    };
    ($F:ident, $i:ident => $body:expr; $($n:literal)*) => {{
        const { assert!($F::BLOCK <= 32) };
        $(if const { $n < $F::BLOCK / LANES } {
            let $i = $n;
            $body
        })*
    }};
}
pub(crate) use for_each_chunk;

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
}

/// The K blocks as first column and width: whole vectors, then what is left of a float row.
#[inline(always)]
pub(crate) fn blocks(cols: usize) -> impl Iterator<Item = (usize, usize)> {
    let whole = cols / LANES * LANES;
    let blocks = (0..whole).step_by(K_BLOCK).map(move |k| (k, K_BLOCK.min(whole - k)));
    blocks.chain((whole < cols).then_some((whole, cols - whole)))
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
        for (k, columns) in blocks(rows.cols) {
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
    for (k, columns) in blocks(rows.cols) {
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
    let mut xs = [&x[..0]; T];
    for t in 0..T {
        xs[t] = &x[t.min(tokens - 1) * rows.cols + k..][..columns];
    }
    let mut w = [&rows.bytes[..0]; R];
    for i in 0..R {
        w[i] = rows.slice::<F>((r + i).min(rows.n - 1), k, columns);
    }
    // The next rows are asked for a block at a time: a processor does not foresee that several rows end at once.
    let ahead = R * rows.row_bytes;
    let sums = if columns < LANES {
        tail::<F, I, R, T>(isa, w, xs)
    } else {
        products::<F, I, R, T>(isa, w, xs, ahead)
    };
    let sums = sum_all(isa, sums);
    for (i, sums) in sums.into_iter().enumerate().take(rows.n - r) {
        for (t, sum) in sums.into_iter().enumerate().take(tokens) {
            let out = &mut out[t * rows.n + r + i];
            *out = if k == 0 { sum } else { *out + sum };
        }
    }
}

/// Lane sums of the products of R rows and T vectors, in whole blocks. Asks for the bytes that lie `ahead`.
#[inline(always)]
fn products<F: Format, I: Isa, const R: usize, const T: usize>(
    isa: I,
    rows: [&[u8]; R],
    x: [&[f32]; T],
    ahead: usize,
) -> [[I::F; T]; R] {
    let chunks = const { F::BLOCK / LANES };
    let blocks = x[0].len() / F::BLOCK;
    let x = vectors_of(x, blocks * chunks);
    let mut sums = [[isa.splat(0.0); T]; R];
    if blocks == 0 {
        return sums;
    }
    let mut affines = [Affines::none(isa); R];
    for b in 0..blocks {
        let mut block = [&rows[0][..F::BYTES]; R];
        for r in 0..R {
            block[r] = &rows[r][b * F::BYTES..][..F::BYTES];
            affines[r].read::<F, I>(isa, block[r]);
            isa.prefetch(block[r], ahead);
        }
        let mut xs = [&x[0][..chunks]; T];
        for t in 0..T {
            xs[t] = &x[t][b * chunks..][..chunks];
        }
        for_each_chunk!(F, i => for r in 0..R {
            let w = affines[r].values::<F, I>(isa, block[r], i);
            for t in 0..T {
                sums[r][t] = isa.fma(w, isa.load(&xs[t][i]), sums[r][t]);
            }
        });
    }
    sums
}

/// Rows as vectors, of which there are `chunks` in each.
#[inline(always)]
pub(crate) fn vectors_of<const N: usize>(rows: [&[f32]; N], chunks: usize) -> [&[[f32; 16]]; N] {
    let mut vectors: [&[[f32; 16]]; N] = [&[]; N];
    for i in 0..N {
        vectors[i] = &rows[i].as_chunks().0[..chunks];
    }
    vectors
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
    products::<F, I, R, T>(isa, rows.each_ref().map(|row| &row[..F::BYTES]), x.each_ref().map(|x| &x[..]), 0)
}

/// Scales and shifts of a block's one group, or two, in every lane.
#[derive(Clone, Copy)]
pub(crate) struct Affines<V>([(V, V); 2]);

impl<V: Copy> Affines<V> {
    #[inline(always)]
    pub fn none(isa: impl Isa<F = V>) -> Self {
        Affines([(isa.splat(0.0), isa.splat(0.0)); 2])
    }

    #[inline(always)]
    pub fn read<F: Format, I: Isa<F = V>>(&mut self, isa: I, block: &[u8]) {
        const { assert!(F::BLOCK / F::GROUP <= 2) };
        for g in 0..F::BLOCK / F::GROUP {
            let (scale, shift) = F::affine(isa, block, g * (F::GROUP / LANES));
            self.0[g] = (isa.splat(scale), isa.splat(shift));
        }
    }

    /// Chunk i of the block, decoded.
    #[inline(always)]
    pub fn values<F: Format, I: Isa<F = V>>(&self, isa: I, block: &[u8], i: usize) -> V {
        let (scale, shift) = self.0[i / (F::GROUP / LANES)];
        decoded::<F, I>(isa, F::codes(isa, block, i), scale, shift)
    }
}

/// What codes stand for.
#[inline(always)]
pub(crate) fn decoded<F: Format, I: Isa>(isa: I, codes: I::F, scale: I::F, shift: I::F) -> I::F {
    if F::SHIFTED { isa.fma(codes, scale, shift) } else { isa.mul(codes, scale) }
}

/// The lanes of every vector, added up.
#[inline(always)]
pub(crate) fn sum_all<I: Isa, const M: usize, const N: usize>(isa: I, v: [[I::F; N]; M]) -> [[f32; N]; M] {
    let mut sums = [[0.0; N]; M];
    if const { M * N < 6 } {
        for i in 0..M {
            for j in 0..N {
                sums[i][j] = isa.sum(v[i][j]);
            }
        }
    } else {
        const { assert!(M * N <= 32) };
        sum_sixteen::<I, 0, M, N>(isa, &v, &mut sums);
        if const { M * N > 16 } {
            sum_sixteen::<I, 16, M, N>(isa, &v, &mut sums);
        }
    }
    sums
}

/// Vectors `FIRST .. FIRST + 16`, or as many as there are. Every index is constant once unrolled, so that
/// the vectors can stay in registers.
#[inline(always)]
fn sum_sixteen<I: Isa, const FIRST: usize, const M: usize, const N: usize>(
    isa: I,
    v: &[[I::F; N]; M],
    sums: &mut [[f32; N]; M],
) {
    let mut sixteen = [isa.splat(0.0); 16];
    for i in 0..16 {
        if FIRST + i < M * N {
            sixteen[i] = v[(FIRST + i) / N][(FIRST + i) % N];
        }
    }
    let mut lanes = [0.0; 16];
    isa.store(isa.reduce16(sixteen), &mut lanes);
    for i in 0..16 {
        if FIRST + i < M * N {
            sums[(FIRST + i) / N][(FIRST + i) % N] = lanes[i];
        }
    }
}
