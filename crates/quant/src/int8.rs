//! Products in whole numbers: activations rounded to 8 bits, weights by their codes.
//!
//! ```text
//! out[t][n] = Σ_g scale[n, g]·a[t, g]·(Σ_k code[n, k]·x8[t, k]) + shift[n, g]·sum[t, g]
//! ```
//!
//! x8 are the activations of a block of 32 in units of a, their largest magnitude / 127; sum is their sum
//! over a group. Inner sums are exact, so the only error is that of rounding the activations: at most a/2
//! each. (Rotated formats also round their levels, see [`Format::STEP`].)
//!
//! [`Isa::dot4`] wants one side unsigned: codes carry 128 more than they are, and the sum starts at
//! −128 Σ x8.

use crate::Format;
use torque_simd::{Isa, LANES};

/// Activations that share a scale.
pub const BLOCK: usize = 32;

/// Activations of some tokens, rounded to 8 bits.
#[derive(Debug, Default)]
pub struct Activations8 {
    columns: usize,
    /// `[tokens, columns]`.
    codes: Vec<i8>,
    /// `[tokens, columns / 32]`: what one unit of a code is.
    scales: Vec<f32>,
    /// `[tokens, columns / 16]`: sums of 16 values.
    sums: Vec<f32>,
    /// `[tokens, columns / 16]`: −128 times the sum of 16 codes.
    starts: Vec<i32>,
}

/// One token of [`Activations8`].
struct Token8<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    starts: &'a mut [i32],
}

impl Activations8 {
    /// Rounds `x`, `[tokens, columns]`; columns are a multiple of 32.
    pub fn round<I: Isa>(&mut self, isa: I, x: &[f32], columns: usize) {
        assert!(columns.is_multiple_of(BLOCK) && x.len().is_multiple_of(columns), "rows of whole blocks");
        self.columns = columns;
        self.codes.resize(x.len(), 0);
        self.scales.resize(x.len() / BLOCK, 0.0);
        self.sums.resize(x.len() / LANES, 0.0);
        self.starts.resize(x.len() / LANES, 0);
        isa.run(
            #[inline(always)]
            || {
                round_all(
                    isa,
                    x,
                    Token8 {
                        codes: &mut self.codes,
                        scales: &mut self.scales,
                        sums: &mut self.sums,
                        starts: &mut self.starts,
                    },
                )
            },
        );
    }

    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.codes.len() / self.columns.max(1)
    }
}

#[inline(always)]
fn round_all<I: Isa>(isa: I, x: &[f32], out: Token8) {
    let halves = out.codes.as_chunks_mut::<32>().0.iter_mut().zip(x.as_chunks::<32>().0);
    let sums = out.sums.as_chunks_mut::<2>().0.iter_mut().zip(out.starts.as_chunks_mut::<2>().0);
    for (((codes, x), (sums, starts)), scale) in halves.zip(sums).zip(out.scales) {
        let x = [isa.load(x.first_chunk().expect("32")), isa.load(x.last_chunk().expect("32"))];
        let magnitude = |v| isa.max(v, isa.sub(isa.splat(0.0), v));
        let largest = isa.max_lane(isa.max(magnitude(x[0]), magnitude(x[1])));
        // A scale that is subnormal, or of an infinite activation, has no inverse worth having.
        *scale = largest / 127.0;
        let inverse = if *scale > f32::MIN_POSITIVE && scale.is_finite() { 1.0 / *scale } else { 0.0 };
        for half in 0..2 {
            let code = isa.round(isa.mul(x[half], isa.splat(inverse)));
            let bytes = isa.narrow(code);
            for i in 0..16 {
                codes[16 * half + i] = bytes[i] as i8;
            }
            let sum = isa.sum(isa.to_f32(code));
            sums[half] = sum * *scale;
            starts[half] = -128 * sum as i32;
        }
    }
}

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

/// Columns that share a scale in a product: a format's group, or a block of activations if that is less.
const fn group<F: Format>() -> usize {
    if F::GROUP < BLOCK { F::GROUP } else { BLOCK }
}

/// Lays out up to sixteen rows. Missing ones stay what they were: their results are not read.
#[inline(always)]
fn pack<F: Format, I: Isa>(isa: I, rows: &[u8], row_bytes: usize, columns: usize, panel: &mut Panel8) {
    panel.codes.resize(columns / 4, [0; 64]);
    panel.scales.resize(columns / group::<F>(), [0.0; 16]);
    panel.shifts.resize(if F::SHIFTED { columns / group::<F>() } else { 0 }, [0.0; 16]);
    let per_step = isa.splat(1.0 / F::STEP);
    for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
        for (b, block) in row.chunks_exact(F::BYTES).enumerate() {
            for i in 0..F::BLOCK / LANES {
                let codes = F::codes(isa, block, i);
                let codes = isa.round(if F::STEP == 1.0 { codes } else { isa.mul(codes, per_step) });
                let bytes = isa.narrow(isa.add_n(codes, isa.splat_n(128)));
                let at = (b * F::BLOCK + i * LANES) / 4;
                for (four, bytes) in panel.codes[at..at + 4].iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *four[4 * r..].first_chunk_mut().expect("sixteen rows of four") = *bytes;
                }
            }
            for g in 0..F::BLOCK / group::<F>() {
                let (scale, shift) = F::affine(isa, block, g * group::<F>() / LANES);
                let at = b * (F::BLOCK / group::<F>()) + g;
                panel.scales[at][r] = scale * F::STEP;
                if F::SHIFTED {
                    panel.shifts[at][r] = shift;
                }
            }
        }
    }
}

/// `out[i][r]` for tokens `first ..`. Missing tokens repeat the last one.
#[inline(always)]
fn product<F: Format, I: Isa, const T: usize>(
    isa: I,
    panel: &Panel8,
    x: &Activations8,
    first: usize,
) -> [[f32; 16]; T] {
    let columns = x.columns;
    let group = group::<F>();
    let halves = group / LANES;
    let groups = columns / group;
    let token = |i: usize| (first + i).min(x.tokens() - 1);
    let codes: [&[[i8; 4]]; T] = std::array::from_fn(|i| {
        &x.codes[token(i) * columns..][..columns].as_chunks::<4>().0[..groups * group / 4]
    });
    let scales: [&[f32]; T] =
        std::array::from_fn(|i| &x.scales[token(i) * columns / BLOCK..][..columns / BLOCK]);
    let sums: [&[f32]; T] = std::array::from_fn(|i| &x.sums[token(i) * columns / LANES..][..columns / LANES]);
    let starts: [&[i32]; T] =
        std::array::from_fn(|i| &x.starts[token(i) * columns / LANES..][..columns / LANES]);
    let weights = &panel.codes[..groups * group / 4];
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
        for k in g * (group / 4)..(g + 1) * (group / 4) {
            let w = isa.load_n(&weights[k]);
            for i in 0..T {
                let [a, b, c, d] = codes[i][k];
                let x = i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
                whole[i] = isa.dot4(whole[i], w, isa.splat_n(x));
            }
        }
        let scale = isa.load(&panel.scales[g]);
        for i in 0..T {
            let scale = isa.mul(scale, isa.splat(scales[i][g * group / BLOCK]));
            out[i] = isa.fma(isa.to_f32(whole[i]), scale, out[i]);
        }
        if F::SHIFTED {
            let shift = isa.load(&panel.shifts[g]);
            for i in 0..T {
                let mut sum = sums[i][g * halves];
                if halves == 2 {
                    sum += sums[i][g * halves + 1];
                }
                out[i] = isa.fma(shift, isa.splat(sum), out[i]);
            }
        }
    }
    let mut lanes = [[0.0; 16]; T];
    for i in 0..T {
        isa.store(out[i], &mut lanes[i]);
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FORMATS, FormatOps};
    use torque_simd::Level;

    /// Σ |w|·a/2 over a row: what rounding activations can cost.
    fn bound(format: &FormatOps, row: &[f32], x: &[f32]) -> f64 {
        let half_unit = |x: &[f32]| x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 254.0;
        let levels = if format.name.starts_with("tq") { 0.01 } else { 0.0 };
        let largest = row.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        (row.chunks(BLOCK).zip(x.chunks(BLOCK)))
            .map(|(w, x)| {
                let weight: f32 = w.iter().map(|w| w.abs()).sum();
                let rounding = weight * half_unit(x) * 1.01;
                f64::from(rounding + levels * largest * x.iter().map(|x| x.abs()).sum::<f32>())
            })
            .sum::<f64>()
            + 1e-5
    }

    #[test]
    fn products_are_within_the_rounding_of_activations() {
        let mut seed = 1u64;
        let mut gauss = |n: usize| -> Vec<f32> {
            (0..n)
                .map(|_| {
                    (0..6)
                        .map(|_| {
                            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                            (seed >> 40) as f32 / (1 << 24) as f32 - 0.5
                        })
                        .sum()
                })
                .collect()
        };
        let columns = 512;
        for format in FORMATS.iter().filter(|f| f.weights && !f.is_float()) {
            for (rows, tokens) in [(16, 1), (5, 3), (37, 13), (16, 30)] {
                let mut bytes = vec![0; rows * format.row_bytes(columns)];
                format.encode_row(&gauss(rows * columns), &mut bytes);
                let mut decoded = vec![0.0; rows * columns];
                ((format.kernels)(Level::Scalar).decode_rows)(&bytes, columns, &mut decoded);
                let x = gauss(tokens * columns);
                let mut results = Vec::new();
                for level in Level::all_available() {
                    let kernels = (format.kernels)(level);
                    let (mut rounded, mut panels) = (Activations8::default(), Vec::new());
                    (kernels.round)(&mut rounded, &x, columns);
                    let mut out = vec![f32::NAN; tokens * rows];
                    (kernels.matmul8)(&bytes, columns, &rounded, &mut panels, &mut out);
                    for t in 0..tokens {
                        for r in 0..rows {
                            let (w, x) = (&decoded[r * columns..][..columns], &x[t * columns..][..columns]);
                            let exact: f64 =
                                w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                            let error = (exact - f64::from(out[t * rows + r])).abs();
                            let bound = bound(format, w, x);
                            assert!(error <= bound, "{} {rows}×{tokens}: {error} > {bound}", format.name);
                        }
                    }
                    results.push(out);
                }
                assert!(results.iter().all(|r| *r == results[0]), "{}: instruction sets differ", format.name);
            }
        }
    }
}
