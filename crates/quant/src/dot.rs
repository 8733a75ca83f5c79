//! Encoded rows times a few float vectors: decoding, where every weight is read once and memory sets the pace.
//!
//! Codes are decoded in registers and used for all vectors. Products are summed in sixteen lanes, chunk
//! after chunk, and the lanes are added up at the end as [`Isa::sum`] does, so results do not depend on the
//! instruction set, nor on how rows and vectors are split into calls.

use crate::Format;
use torque_simd::{Isa, LANES};

/// `out[t * rows + r] = Σ_k W[r, k] x[t * cols + k]` for the encoded rows W of `cols` values each.
///
/// For [`crate::Rotation::Block32`] formats, x is rotated already.
pub fn matvec<F: Format, I: Isa>(isa: I, rows: &[u8], cols: usize, x: &[f32], tokens: usize, out: &mut [f32]) {
    let row_bytes = cols / F::BLOCK * F::BYTES;
    let n = rows.len() / row_bytes;
    assert_eq!(cols % F::BLOCK, 0, "columns are whole blocks");
    assert_eq!(rows.len(), n * row_bytes, "rows are whole");
    assert_eq!((x.len(), out.len()), (tokens * cols, tokens * n), "shapes of x and out");
    // As many vectors at once as leave registers for two rows.
    let width_max = if I::TILE.0 * I::TILE.1 >= 16 { 8 } else { 4 };
    let mut t = 0;
    while t < tokens {
        let (x, out) = (&x[t * cols..], &mut out[t * n..]);
        match (tokens - t).min(width_max) {
            1 => isa.run(
                #[inline(always)]
                || matvec_of::<F, I, 4, 1>(isa, rows, row_bytes, cols, x, out),
            ),
            2 => isa.run(
                #[inline(always)]
                || matvec_of::<F, I, 4, 2>(isa, rows, row_bytes, cols, x, out),
            ),
            3 | 4 => isa.run(
                #[inline(always)]
                || matvec_of::<F, I, 2, 4>(isa, rows, row_bytes, cols, x, out),
            ),
            _ => isa.run(
                #[inline(always)]
                || matvec_of::<F, I, 2, 8>(isa, rows, row_bytes, cols, x, out),
            ),
        }
        t += width_max;
    }
}

/// The first min(T, those there are) vectors of x.
#[inline(always)]
fn matvec_of<F: Format, I: Isa, const R: usize, const T: usize>(
    isa: I,
    rows: &[u8],
    row_bytes: usize,
    cols: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let n = rows.len() / row_bytes;
    let tokens = T.min(x.len() / cols);
    // Missing vectors repeat the last one.
    let x: [&[f32]; T] = std::array::from_fn(|t| &x[t.min(tokens - 1) * cols..][..cols]);
    let mut r = 0;
    while r + R <= n {
        let group = std::array::from_fn(|i| &rows[(r + i) * row_bytes..][..row_bytes]);
        isa.prefetch(rows, 0);
        let sums = products::<F, I, R, T>(isa, group, x);
        for (i, sums) in sums.into_iter().enumerate() {
            for (t, sum) in sums.into_iter().enumerate().take(tokens) {
                out[t * n + r + i] = isa.sum(sum);
            }
        }
        r += R;
    }
    while r < n {
        let [sums] = products::<F, I, 1, T>(isa, [&rows[r * row_bytes..][..row_bytes]], x);
        for (t, sum) in sums.into_iter().enumerate().take(tokens) {
            out[t * n + r] = isa.sum(sum);
        }
        r += 1;
    }
}

/// Lane sums of the products of R rows and T vectors.
#[inline(always)]
fn products<F: Format, I: Isa, const R: usize, const T: usize>(
    isa: I,
    rows: [&[u8]; R],
    x: [&[f32]; T],
) -> [[I::F; T]; R] {
    let group = F::GROUP / LANES;
    let chunks = F::BLOCK / LANES;
    let blocks = x[0].len() / F::BLOCK;
    let x_chunks: [&[[f32; 16]]; T] = x.map(|x| &x.as_chunks::<16>().0[..blocks * chunks]);
    let rows_blocks: [&[u8]; R] = rows.map(|row| &row[..blocks * F::BYTES]);
    let mut sums = [[isa.splat(0.0); T]; R];
    for b in 0..blocks {
        for r in 0..R {
            let block = &rows_blocks[r][b * F::BYTES..][..F::BYTES];
            for g in 0..chunks / group {
                let (scale, shift) = F::affine(block, g * group);
                let (scale, shift) = (isa.splat(scale), isa.splat(shift));
                for i in g * group..(g + 1) * group {
                    let w = F::codes(isa, block, i);
                    let w = if F::SHIFTED { isa.fma(w, scale, shift) } else { isa.mul(w, scale) };
                    for t in 0..T {
                        sums[r][t] = isa.fma(w, isa.load(&x_chunks[t][b * chunks + i]), sums[r][t]);
                    }
                }
            }
        }
    }
    sums
}
