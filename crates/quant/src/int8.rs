//! Products in whole numbers: activations rounded to 8 bits, weights by their codes.
//!
//! ```text
//! out[t][n] = Σ_g scale[n, g]·a[t, g]·(Σ_k code[n, k]·x8[t, k]) + shift[n, g]·sum[t, g]
//! ```
//!
//! x8 are the activations of a block of 32 in units of a, their largest magnitude / 127; sum is their sum
//! over a group. Inner sums are exact, so the only error is that of rounding the activations: at most a/2
//! each.

mod matmul;
mod matvec;

pub use matmul::{Panel8, matmul8};
pub use matvec::matvec8;

use crate::Format;
use torque_simd::{Isa, LANES};

/// Activations that share a scale.
pub const BLOCK: usize = 32;

/// Activations of some tokens, rounded to 8 bits.
///
/// Rows are as long as the columns and then zero, up to whole strips of every format.
#[derive(Debug, Default)]
pub struct Activations8 {
    tokens: usize,
    columns: usize,
    /// Columns and zeros.
    width: usize,
    /// `[tokens, width]`: whole numbers from −127 to 127, as bytes.
    codes: Vec<u8>,
    /// `[tokens, width / 16]` and `[tokens, width / 32]`: what one unit of a code is.
    scales: [Vec<f32>; 2],
    /// Likewise: sums of the values that the codes stand for.
    sums: [Vec<f32>; 2],
    /// `[tokens, width / 16]`: −128 times the sum of 16 codes.
    starts: Vec<i32>,
}

/// Widths are whole multiples of this: of sixteen groups of 32.
const WIDTH: usize = 16 * 32;

/// Which of the scales and sums go with a format's groups.
const fn by_group<F: Format>() -> usize {
    match F::GROUP {
        16 => 0,
        32 => 1,
        _ => panic!("weights have groups of 16 or 32"),
    }
}

impl Activations8 {
    /// Rounds `x`, `[tokens, columns]`; columns are a multiple of 32.
    pub fn round<I: Isa>(&mut self, isa: I, x: &[f32], columns: usize) {
        assert!(columns.is_multiple_of(BLOCK) && x.len().is_multiple_of(columns), "rows of whole blocks");
        let width = columns.next_multiple_of(WIDTH);
        let tokens = x.len() / columns;
        (self.tokens, self.columns, self.width) = (tokens, columns, width);
        self.codes.resize(tokens * width, 0);
        self.starts.resize(tokens * width / 16, 0);
        for (i, group) in [16, 32].into_iter().enumerate() {
            self.scales[i].resize(tokens * width / group, 0.0);
            self.sums[i].resize(tokens * width / group, 0.0);
        }
        isa.run(
            #[inline(always)]
            || {
                for (t, x) in x.chunks_exact(columns).enumerate() {
                    for b in 0..width / BLOCK {
                        let x = x.as_chunks().0.get(b).unwrap_or(&[0.0; BLOCK]);
                        self.round_block(isa, x, t * width / BLOCK + b);
                    }
                }
            },
        );
    }

    /// Rounds the block that lies b blocks from the beginning.
    #[inline(always)]
    fn round_block<I: Isa>(&mut self, isa: I, x: &[f32; BLOCK], b: usize) {
        let x = [isa.load(x.first_chunk().expect("32")), isa.load(x.last_chunk().expect("32"))];
        let magnitude = |v| isa.max(v, isa.sub(isa.splat(0.0), v));
        let largest = isa.max_lane(isa.max(magnitude(x[0]), magnitude(x[1])));
        // A scale that is subnormal, or of an infinite activation, has no inverse worth having.
        let scale = largest / 127.0;
        let inverse = if scale > f32::MIN_POSITIVE && scale.is_finite() { 1.0 / scale } else { 0.0 };
        let mut both = 0.0;
        for half in 0..2 {
            let code = isa.round(isa.mul(x[half], isa.splat(inverse)));
            let at = 2 * b + half;
            self.codes[at * LANES..][..LANES].copy_from_slice(&isa.narrow(code));
            let sum = isa.sum(isa.to_f32(code));
            self.starts[at] = -128 * sum as i32;
            (self.scales[0][at], self.sums[0][at]) = (scale, sum * scale);
            both += sum;
        }
        (self.scales[1][b], self.sums[1][b]) = (scale, both * scale);
    }

    /// Takes some tokens of others.
    pub fn take_rows(&mut self, from: &Activations8, tokens: &[usize]) {
        fn take<T: Copy>(to: &mut Vec<T>, from: &[T], row: usize, tokens: &[usize]) {
            to.clear();
            tokens.iter().for_each(|t| to.extend_from_slice(&from[t * row..][..row]));
        }
        let width = from.width;
        (self.tokens, self.columns, self.width) = (tokens.len(), from.columns, width);
        take(&mut self.codes, &from.codes, width, tokens);
        take(&mut self.starts, &from.starts, width / 16, tokens);
        for (i, group) in [16, 32].into_iter().enumerate() {
            take(&mut self.scales[i], &from.scales[i], width / group, tokens);
            take(&mut self.sums[i], &from.sums[i], width / group, tokens);
        }
    }

    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FORMATS;
    use torque_simd::Level;

    /// Σ |w|·a/2 over a row: what rounding activations can cost.
    fn bound(row: &[f32], x: &[f32]) -> f64 {
        let half_unit = |x: &[f32]| x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 254.0;
        (row.chunks(BLOCK).zip(x.chunks(BLOCK)))
            .map(|(w, x)| {
                let weight: f32 = w.iter().map(|w| w.abs()).sum();
                f64::from(weight * half_unit(x) * 1.01)
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
        for format in FORMATS.iter().filter(|f| f.weights && f.whole) {
            // Not whole strips.
            let columns = 512 + format.block;
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
                            let bound = bound(w, x);
                            assert!(error <= bound, "{} {rows}×{tokens}: {error} > {bound}", format.name);
                        }
                    }
                    let mut few = vec![f32::NAN; tokens * rows];
                    (kernels.matvec8)(&bytes, columns, &rounded, &mut few);
                    for (a, b) in out.iter().zip(&few) {
                        assert!((a - b).abs() < 1e-4, "{} {rows}×{tokens}: {a}, few {b}", format.name);
                    }
                    // A token among others is what it is alone.
                    let (mut last, mut alone) = (Activations8::default(), vec![f32::NAN; rows]);
                    last.take_rows(&rounded, &[tokens - 1]);
                    (kernels.matvec8)(&bytes, columns, &last, &mut alone);
                    assert_eq!(alone, few[(tokens - 1) * rows..], "{}", format.name);
                    out.extend(few);
                    results.push(out);
                }
                assert!(results.iter().all(|r| *r == results[0]), "{}: instruction sets differ", format.name);
            }
        }
    }
}
