//! Many tokens: weights are laid out for them once, sixteen rows at a time.
//!
//! [`Isa::dot4`] wants one side unsigned: codes carry 128 more than they are, and the sum starts at
//! −128 Σ x8.

use super::{Activations8, by_group};
use crate::Format;
use torque_simd::{Isa, LANES};

/// Rows of a panel: one a lane.
pub const ROWS: usize = LANES;

/// Sixteen rows of weights, laid out for [`Isa::dot4`].
#[derive(Debug, Default)]
pub struct Panel8 {
    /// `[columns / 4]` of sixteen rows' next four codes plus 128.
    codes: Vec<[u8; 64]>,
    /// `[columns / group]` of sixteen rows' scales.
    scales: Vec<[f32; 16]>,
    /// Likewise; empty for formats without shift.
    shifts: Vec<[f32; 16]>,
}

/// As [`crate::dot::matvec`], for any number of tokens of rounded activations, with panels to work in.
pub fn matmul8<F: Format, I: Isa>(
    isa: I,
    rows: &[u8],
    columns: usize,
    x: &Activations8,
    panels: &mut Vec<Panel8>,
    out: &mut [f32],
) {
    let row_bytes = columns / F::BLOCK * F::BYTES;
    let n = rows.len() / row_bytes;
    assert!(columns == x.columns && columns.is_multiple_of(F::BLOCK), "columns of whole blocks");
    assert_eq!((rows.len(), out.len()), (n * row_bytes, x.tokens() * n), "shapes of rows and out");
    panels.resize_with(n.div_ceil(ROWS), Panel8::default);
    isa.run(
        #[inline(always)]
        || {
            for (panel, rows) in panels.iter_mut().zip(rows.chunks(ROWS * row_bytes)) {
                pack::<F, I>(isa, rows, row_bytes, columns, panel);
            }
            // Tokens outside, panels inside: the tokens' codes stay in the first-level cache.
            for first in (0..x.tokens()).step_by(TOKENS) {
                for (p, panel) in panels.iter().enumerate() {
                    let width = ROWS.min(n - p * ROWS);
                    let sums = match x.tokens() - first {
                        1 => pad(product::<F, I, 1>(isa, panel, x, first)),
                        2..=4 => pad(product::<F, I, 4>(isa, panel, x, first)),
                        _ => product::<F, I, TOKENS>(isa, panel, x, first),
                    };
                    for (t, sums) in (first..x.tokens()).zip(sums) {
                        out[t * n + p * ROWS..][..width].copy_from_slice(&sums[..width]);
                    }
                }
            }
        },
    );
}

/// Tokens of a register tile: as many integer and float sums as registers hold.
const TOKENS: usize = 12;

#[inline(always)]
fn pad<const T: usize>(sums: [[f32; 16]; T]) -> [[f32; 16]; TOKENS] {
    let mut all = [[0.0; 16]; TOKENS];
    all[..T].copy_from_slice(&sums);
    all
}

/// Lays out up to sixteen rows. Missing ones stay what they were: their results are not read.
#[inline(always)]
fn pack<F: Format, I: Isa>(isa: I, rows: &[u8], row_bytes: usize, columns: usize, panel: &mut Panel8) {
    panel.codes.resize(columns / 4, [0; 64]);
    panel.scales.resize(columns / F::GROUP, [0.0; 16]);
    panel.shifts.resize(if F::SHIFTED { columns / F::GROUP } else { 0 }, [0.0; 16]);
    for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
        for (b, block) in row.chunks_exact(F::BYTES).enumerate() {
            for i in 0..F::BLOCK / LANES {
                let codes = isa.round(F::codes(isa, block, i));
                let bytes = isa.narrow(isa.add_n(codes, isa.splat_n(128)));
                let at = (b * F::BLOCK + i * LANES) / 4;
                for (four, bytes) in panel.codes[at..at + 4].iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *four[4 * r..].first_chunk_mut().expect("sixteen rows of four") = *bytes;
                }
            }
            for g in 0..F::BLOCK / F::GROUP {
                let (scale, shift) = F::affine(isa, block, g * F::GROUP / LANES);
                let at = b * (F::BLOCK / F::GROUP) + g;
                panel.scales[at][r] = scale;
                if F::SHIFTED {
                    panel.shifts[at][r] = shift;
                }
            }
        }
    }
}

/// `out[i][r]` for tokens `first ..`. Missing tokens repeat the last one.
#[inline(always)]
fn product<'a, F: Format, I: Isa, const T: usize>(
    isa: I,
    panel: &Panel8,
    x: &'a Activations8,
    first: usize,
) -> [[f32; 16]; T] {
    let halves = F::GROUP / LANES;
    let groups = x.columns / F::GROUP;
    let token = |i: usize| (first + i).min(x.tokens() - 1) * x.width;
    let codes: [&[[u8; 4]]; T] =
        std::array::from_fn(|i| &x.codes[token(i)..].as_chunks().0[..groups * F::GROUP / 4]);
    let of_groups = |values: &'a [Vec<f32>; 2], i| &values[by_group::<F>()][token(i) / F::GROUP..][..groups];
    let scales: [&[f32]; T] = std::array::from_fn(|i| of_groups(&x.scales, i));
    let sums: [&[f32]; T] = std::array::from_fn(|i| of_groups(&x.sums, i));
    let starts: [&[i32]; T] = std::array::from_fn(|i| &x.starts[token(i) / LANES..][..groups * halves]);
    let weights = &panel.codes[..groups * F::GROUP / 4];
    let mut out = [isa.splat(0.0); T];
    for g in 0..groups {
        let mut whole = [isa.splat_n(0); T];
        for i in 0..T {
            let mut start = starts[i][g * halves];
            if halves == 2 {
                start += starts[i][g * halves + 1];
            }
            whole[i] = isa.splat_n(start);
        }
        for k in g * (F::GROUP / 4)..(g + 1) * (F::GROUP / 4) {
            let w = isa.load_n(&weights[k]);
            for i in 0..T {
                whole[i] = isa.dot4(whole[i], w, isa.splat_n(i32::from_le_bytes(codes[i][k])));
            }
        }
        let scale = isa.load(&panel.scales[g]);
        for i in 0..T {
            let scale = isa.mul(scale, isa.splat(scales[i][g]));
            out[i] = isa.fma(isa.to_f32(whole[i]), scale, out[i]);
        }
        if F::SHIFTED {
            let shift = isa.load(&panel.shifts[g]);
            for i in 0..T {
                out[i] = isa.fma(shift, isa.splat(sums[i][g]), out[i]);
            }
        }
    }
    let mut lanes = [[0.0; 16]; T];
    for i in 0..T {
        isa.store(out[i], &mut lanes[i]);
    }
    lanes
}
