//! Products in whole numbers: activations rounded to 8 bits, weights by their codes.
//!
//! ```text
//! out[t][n] = Σ_g scale[n, g]·a[t, g]·(Σ_k code[n, k]·x8[t, k]) + shift[n, g]·sum[t, g]
//! ```
//!
//! x8 are the activations of a block of 32 in units of a, their largest magnitude / 127; sum is their sum
//! over a group. Inner sums are exact, so the only error is that of rounding the activations: at most a/2
//! each.
//!
//! Sixteen rows lie in the lanes of a vector, and groups are added up first to last. A result therefore
//! depends neither on the instruction set, nor on how many rows and tokens are multiplied together: a token
//! has the same logits alone and in a batch.

mod tiles;

use crate::format::{Blocks, Format, offset};
use crate::math::{magnitude, unit};
use tiles::Panel;
use torque_simd::{Isa, LANES};

/// Activations that share a scale.
pub const BLOCK: usize = 32;

/// Rows are followed by zeros up to whole multiples of this: sixteen groups of 32.
const WIDTH: usize = 16 * 32;

/// The activations of a token, rounded to 8 bits.
#[derive(Debug, Default)]
pub struct Rounded {
    columns: usize,
    /// `[width]`: whole numbers from −127 to 127, as bytes.
    codes: Vec<u8>,
    /// Of every 16 codes, and of every 32.
    groups: [Groups; 2],
}

/// What goes with each group of codes.
#[derive(Debug, Default)]
struct Groups {
    /// What one unit of a code is.
    scales: Vec<f32>,
    /// The sum of the values that the codes stand for.
    sums: Vec<f32>,
    /// The sum of the codes: of the first two of every four, and of the others ([`Isa::dot2`]).
    totals: Vec<[u8; 4]>,
}

impl Rounded {
    /// Rounds `x`, whose length is a multiple of 32.
    pub fn round<I: Isa>(&mut self, isa: I, x: &[f32]) {
        assert!(x.len().is_multiple_of(BLOCK), "whole blocks of activations");
        if self.columns != x.len() {
            self.columns = x.len();
            let width = x.len().next_multiple_of(WIDTH);
            self.codes = vec![0; width];
            for (groups, size) in self.groups.iter_mut().zip([16, 32]) {
                groups.scales = vec![0.0; width / size];
                groups.sums = vec![0.0; width / size];
                groups.totals = vec![[0; 4]; width / size];
            }
        }
        isa.run(
            #[inline(always)]
            || x.as_chunks().0.iter().enumerate().for_each(|(b, x)| self.round_block(isa, x, b)),
        );
    }

    /// Rounds block b.
    #[inline(always)]
    fn round_block<I: Isa>(&mut self, isa: I, x: &[f32; BLOCK], b: usize) {
        let x = [isa.load(x.first_chunk().expect("32")), isa.load(x.last_chunk().expect("32"))];
        let largest = isa.max_lane(isa.max(magnitude(isa, x[0]), magnitude(isa, x[1])));
        let (scale, inverse) = unit(largest, 127.0);
        let firsts = isa.load(
            &const { [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0] },
        );
        let mut both = [0; 2];
        for half in 0..2 {
            let code = isa.round(isa.mul(x[half], isa.splat(inverse)));
            let at = 2 * b + half;
            self.codes[at * LANES..][..LANES].copy_from_slice(&isa.narrow(code));
            let code = isa.to_f32(code);
            let (total, first) = (isa.sum(code) as i16, isa.sum(isa.mul(code, firsts)) as i16);
            let totals = [first, total - first];
            self.groups[0].set(at, scale, totals);
            both = [both[0] + totals[0], both[1] + totals[1]];
        }
        self.groups[1].set(b, scale, both);
    }

    /// The groups that go with those of a format.
    fn groups(&self, group: usize) -> &Groups {
        &self.groups[group / 32]
    }

    /// Makes them others, in the memory there is.
    pub fn copy_from(&mut self, from: &Rounded) {
        self.columns = from.columns;
        self.codes.clone_from(&from.codes);
        for (to, from) in self.groups.iter_mut().zip(&from.groups) {
            to.scales.clone_from(&from.scales);
            to.sums.clone_from(&from.sums);
            to.totals.clone_from(&from.totals);
        }
    }
}

impl Groups {
    #[inline(always)]
    fn set(&mut self, g: usize, scale: f32, totals: [i16; 2]) {
        let total = f32::from(totals[0] + totals[1]);
        let [[a, b], [c, d]] = [totals[0].to_le_bytes(), totals[1].to_le_bytes()];
        (self.scales[g], self.sums[g], self.totals[g]) = (scale, total * scale, [a, b, c, d]);
    }

    /// Groups `first .. first + count`: scales, sums and totals.
    #[inline(always)]
    fn get(&self, first: usize, count: usize) -> (&[f32], &[f32], &[[u8; 4]]) {
        (&self.scales[first..][..count], &self.sums[first..][..count], &self.totals[first..][..count])
    }
}

/// As [`crate::dot::matvec`], for any number of tokens of rounded activations.
pub fn multiply<F: Format, I: Isa>(isa: I, rows: &[u8], columns: usize, x: &[Rounded], out: &mut [f32]) {
    const { assert!(F::GROUP == 16 || F::GROUP == 32, "weights have groups of 16 or 32") };
    assert!(columns.is_multiple_of(F::BLOCK), "{}: {columns} columns", F::NAME);
    assert!(x.iter().all(|x| x.columns == columns), "as many activations as columns");
    let row_bytes = columns / F::BLOCK * F::BYTES;
    let n = rows.len() / row_bytes;
    assert_eq!((rows.len(), out.len()), (n * row_bytes, x.len() * n), "shapes of rows and out");
    let (full, rest) = rows.split_at(n / LANES * LANES * row_bytes);
    sixteens::<F, I>(isa, Rows { bytes: full, row_bytes, columns }, x, out, n);
    if !rest.is_empty() {
        // Fewer than sixteen rows are followed by zeros.
        let (first, count) = (n / LANES * LANES, n % LANES);
        let bytes = [rest, &vec![0; (LANES - count) * row_bytes]].concat();
        let mut results = vec![0.0; x.len() * LANES];
        sixteens::<F, I>(isa, Rows { bytes: &bytes, row_bytes, columns }, x, &mut results, LANES);
        for (results, out) in results.chunks_exact(LANES).zip(out.chunks_exact_mut(n)) {
            out[first..].copy_from_slice(&results[..count]);
        }
    }
}

/// Encoded rows, sixteen or a multiple.
#[derive(Clone, Copy)]
struct Rows<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
    columns: usize,
}

impl<'a> Rows<'a> {
    fn len(self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    /// The blocks at column k of sixteen rows.
    #[inline(always)]
    fn blocks<F: Format>(self, first: usize, k: usize) -> Blocks<'a> {
        Blocks::new(&self.bytes[first * self.row_bytes + k / F::BLOCK * F::BYTES..], self.row_bytes, F::BYTES)
    }

    /// Asks for a share of the next sixteen rows: as many bytes, one after the other, as a group at column k has. (More
    /// at once would keep loads waiting.)
    #[inline(always)]
    fn prefetch<F: Format, I: Isa>(self, isa: I, first: usize, k: usize) {
        let bytes = const { LANES * F::BYTES / (F::BLOCK / F::GROUP) };
        let at = (first + LANES) * self.row_bytes + k / F::GROUP * bytes;
        for line in 0..bytes.div_ceil(64) {
            isa.prefetch(self.bytes, at + line * 64);
        }
    }
}

/// `out[t * stride + r]` of sixteen rows, or a multiple.
fn sixteens<F: Format, I: Isa>(isa: I, rows: Rows, x: &[Rounded], out: &mut [f32], stride: usize) {
    if x.len() <= FEW {
        return isa.run(
            #[inline(always)]
            || match x.len() {
                0 => (),
                1 => few_tokens::<F, I, 1>(isa, rows, x, out, stride),
                2 => few_tokens::<F, I, 2>(isa, rows, x, out, stride),
                _ => few_tokens::<F, I, FEW>(isa, rows, x, out, stride),
            },
        );
    }
    let mut panels = [Panel::ZERO; PANELS];
    for first in (0..rows.len()).step_by(PANELS * LANES) {
        let panels = &mut panels[..((rows.len() - first) / LANES).min(PANELS)];
        for k in (0..rows.columns).step_by(WIDTH) {
            let width = WIDTH.min(rows.columns - k);
            isa.run(
                #[inline(always)]
                || {
                    for (p, panel) in panels.iter_mut().enumerate() {
                        fill::<F, I>(isa, panel, rows, first + p * LANES, k, width);
                    }
                },
            );
            let tiles = const {
                match (F::GROUP, F::SHIFTED, F::WIDE, center::<F, I>() > 0) {
                    (32, false, true, false) => tiles::tiles::<I, 32, false, true, false>,
                    (32, false, false, false) => tiles::tiles::<I, 32, false, false, false>,
                    (32, true, false, false) => tiles::tiles::<I, 32, true, false, false>,
                    (32, true, false, true) => tiles::tiles::<I, 32, true, false, true>,
                    (16, false, false, false) => tiles::tiles::<I, 16, false, false, false>,
                    (16, true, false, false) => tiles::tiles::<I, 16, true, false, false>,
                    _ => panic!("another kind of format"),
                }
            };
            tiles(isa, panels, [offset::<F, I>(), center::<F, I>()], x, k, width, &mut out[first..], stride);
        }
    }
}

/// Tokens for which codes are decoded in registers; for more they are laid out in panels.
const FEW: usize = 4;

/// Panels that are multiplied together.
const PANELS: usize = 2;

/// What sums of 16 bits leave out of every code, besides the offset, so that they hold the products of a group: it is
/// added to the sum of 32 bits.
const fn center<F: Format, I: Isa>() -> i32 {
    let (words, offset, top) = (F::GROUP as i32 / 4, F::OFFSET as i32, F::TOP as i32);
    if F::WIDE || !I::PAIRS {
        return 0;
    }
    // Products of two codes a word.
    let most = i16::MAX as i32 / (2 * 127 * words);
    let center = if offset > 0 || top <= most { 0 } else { (top + 1) / 2 };
    assert!(if offset + center > 0 { offset + center } else { top } <= most, "a group fits 16 bits");
    assert!(top <= 2 * (offset + center) || offset + center == 0, "codes lie around what is left out");
    center
}

/// What sums of products with codes begin with: less what `offset` adds to them. Sums of 16 bits may wrap on the way
/// to what they hold in the end. Totals are as in [`Groups`], a group a lane.
#[inline(always)]
fn starts<I: Isa>(isa: I, totals: I::N, offset: i32, wide: bool) -> I::N {
    if offset == 0 {
        return isa.splat_n(0);
    }
    let factors = isa.splat_n((-offset & 0xffff) | -offset << 16);
    if wide || !I::PAIRS {
        isa.dot_pairs(isa.splat_n(0), totals, factors)
    } else {
        isa.mul_pairs(totals, factors)
    }
}

/// Adds four products a lane.
#[inline(always)]
fn add<I: Isa>(isa: I, sums: I::N, w: I::N, x: I::N, wide: bool) -> I::N {
    if wide {
        isa.dot4_wide(sums, w, x)
    } else if I::PAIRS {
        isa.dot2(sums, w, x)
    } else {
        isa.dot4(sums, w, x)
    }
}

/// Sums of 32 bits, and what was left out of them.
#[inline(always)]
fn end<I: Isa>(isa: I, sums: I::N, left_out: I::N, wide: bool) -> I::N {
    if wide || !I::PAIRS { sums } else { isa.dot_pairs(left_out, sums, isa.splat_n(0x0001_0001)) }
}

/// T tokens, few: codes stay in registers and are used for all. Missing tokens repeat the last one.
#[inline(always)]
fn few_tokens<F: Format, I: Isa, const T: usize>(
    isa: I,
    rows: Rows,
    x: &[Rounded],
    out: &mut [f32],
    stride: usize,
) {
    let mut tokens = [&x[0]; T];
    for t in 0..T {
        tokens[t] = &x[t.min(x.len() - 1)];
    }
    // Made once: the compiler would clear it for every block.
    let mut affines = [(isa.splat(0.0), isa.splat(0.0)); 16];
    for first in (0..rows.len()).step_by(LANES) {
        let mut sums = [isa.splat(0.0); T];
        for k in (0..rows.columns).step_by(F::BLOCK) {
            let blocks = rows.blocks::<F>(first, k);
            let mut groups = [(&[][..], &[][..], &[][..]); T];
            let mut codes: [&[[u8; 4]]; T] = [&[]; T];
            for t in 0..T {
                groups[t] = tokens[t].groups(F::GROUP).get(k / F::GROUP, F::BLOCK / F::GROUP);
                codes[t] = &tokens[t].codes.as_chunks().0[k / 4..][..F::BLOCK / 4];
            }
            F::row_affines(
                isa,
                blocks,
                #[inline(always)]
                |g, scales, shifts| affines[g] = (scales, shifts),
            );
            for part in 0..F::BLOCK / F::PART {
                F::row_codes(
                    isa,
                    blocks,
                    part,
                    #[inline(always)]
                    |g, w| {
                        rows.prefetch::<F, I>(isa, first, k + g * F::GROUP);
                        let (scales, shifts) = affines[g];
                        for t in 0..T {
                            let (x_scales, x_sums, totals) = groups[t];
                            let totals = isa.splat_n(i32::from_le_bytes(totals[g]));
                            let center = const { center::<F, I>() };
                            let mut products = starts(isa, totals, offset::<F, I>() + center, F::WIDE);
                            for j in 0..F::GROUP / 4 {
                                let x = i32::from_le_bytes(codes[t][g * (F::GROUP / 4) + j]);
                                products = add(isa, products, w[j], isa.splat_n(x), F::WIDE);
                            }
                            let left_out = starts(isa, totals, -center, true);
                            let whole = end(isa, products, left_out, F::WIDE);
                            let scales = isa.mul(scales, isa.splat(x_scales[g]));
                            sums[t] = isa.fma(isa.to_f32(whole), scales, sums[t]);
                            if F::SHIFTED {
                                sums[t] = isa.fma(shifts, isa.splat(x_sums[g]), sums[t]);
                            }
                        }
                    },
                );
            }
        }
        for t in 0..x.len() {
            isa.store(sums[t], out[t * stride + first..].first_chunk_mut().expect("sixteen results"));
        }
    }
}

/// Lays out columns `k .. k + width` of sixteen rows.
#[inline(always)]
fn fill<F: Format, I: Isa>(isa: I, panel: &mut Panel, rows: Rows, first: usize, k: usize, width: usize) {
    for at in (0..width).step_by(F::BLOCK) {
        let blocks = rows.blocks::<F>(first, k + at);
        F::row_affines(
            isa,
            blocks,
            #[inline(always)]
            |g, scales, shifts| {
                isa.store(scales, &mut panel.scales[at / F::GROUP + g]);
                if F::SHIFTED {
                    isa.store(shifts, &mut panel.shifts[at / F::GROUP + g]);
                }
            },
        );
        for part in 0..F::BLOCK / F::PART {
            F::row_codes(
                isa,
                blocks,
                part,
                #[inline(always)]
                |g, codes| {
                    rows.prefetch::<F, I>(isa, first, k + at + g * F::GROUP);
                    for j in 0..F::GROUP / 4 {
                        isa.store_n(codes[j], &mut panel.codes[(at + g * F::GROUP) / 4 + j]);
                    }
                },
            );
        }
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

    /// Codes and activations as large as they come, with signs that add up: sums of 16 bits must hold them.
    #[test]
    fn extreme_products_are_the_same_on_every_instruction_set() {
        let signs: [fn(usize) -> bool; 6] =
            [|_| true, |_| false, |i| i % 16 > 0, |i| i % 16 == 0, |i| i % 4 < 2, |i| i % 4 > 1];
        let values = |columns: usize| {
            let one = |i: usize, plus: fn(usize) -> bool| if plus(i) { 1.0 } else { -1.0 };
            signs.map(|plus| Vec::from_iter((0..columns).map(|i| one(i, plus)))).concat()
        };
        for format in FORMATS.iter().filter(|f| f.weights && f.whole) {
            let columns = format.block;
            let x = values(columns);
            let mut bytes = vec![0; signs.len() * format.row_bytes(columns)];
            for (x, row) in x.chunks_exact(columns).zip(bytes.chunks_exact_mut(format.bytes)) {
                (format.encode_rotated)(x, row);
            }
            for tokens in [1, signs.len()] {
                let mut results = Vec::new();
                for level in Level::all_available() {
                    let kernels = (format.kernels)(level);
                    let mut rounded = Vec::from_iter((0..tokens).map(|_| Rounded::default()));
                    for (x, rounded) in x.chunks_exact(columns).zip(&mut rounded) {
                        (kernels.round)(rounded, x);
                    }
                    let mut out = vec![f32::NAN; tokens * signs.len()];
                    (kernels.multiply)(&bytes, columns, &rounded, &mut out);
                    results.push(out);
                }
                assert!(results.iter().all(|r| *r == results[0]), "{} {tokens}: {results:?}", format.name);
            }
        }
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
                format.decode_row(&bytes, &mut decoded);
                let x = gauss(tokens * columns);
                let mut results = Vec::new();
                for level in Level::all_available() {
                    let kernels = (format.kernels)(level);
                    let mut rounded = Vec::from_iter((0..tokens).map(|_| Rounded::default()));
                    for (x, rounded) in x.chunks_exact(columns).zip(&mut rounded) {
                        (kernels.round)(rounded, x);
                    }
                    let mut out = vec![f32::NAN; tokens * rows];
                    (kernels.multiply)(&bytes, columns, &rounded, &mut out);
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
                    // A token among others is what it is alone, and so are rows.
                    for t in [0, tokens - 1] {
                        let mut alone = vec![f32::NAN; rows];
                        (kernels.multiply)(&bytes, columns, &rounded[t..=t], &mut alone);
                        assert_eq!(alone, out[t * rows..][..rows], "{} {rows}×{tokens}", format.name);
                        let mut last = [f32::NAN];
                        let row = &bytes[(rows - 1) * format.row_bytes(columns)..];
                        (kernels.multiply)(row, columns, &rounded[t..=t], &mut last);
                        assert_eq!(last, alone[rows - 1..], "{} {rows}×{tokens}", format.name);
                    }
                    results.push(out);
                }
                assert!(results.iter().all(|r| *r == results[0]), "{}: instruction sets differ", format.name);
            }
        }
    }
}
