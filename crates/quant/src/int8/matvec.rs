//! Few tokens: each row is read once, decoded to bytes in registers, and used for all of them.
//!
//! A row is taken in strips of sixteen groups, whose scales are one vector. Of every 64 codes [`Isa::dot4`]
//! makes sixteen sums of four, four or eight of which share a scale.

use super::{Activations8, BLOCK, WIDTH, by_group};
use crate::Format;
use crate::math::pad;
use torque_simd::{Isa, LANES};

/// Tokens that share a decoded row.
const TOKENS: usize = 4;

/// Bytes of the rows between what is read and what is asked for.
const AHEAD: usize = 4096;

/// As [`super::matmul8`], for few tokens.
pub fn matvec8<F: Format, I: Isa>(isa: I, rows: &[u8], columns: usize, x: &Activations8, out: &mut [f32]) {
    let row_bytes = columns / F::BLOCK * F::BYTES;
    let n = rows.len() / row_bytes;
    assert!(columns == x.columns && columns.is_multiple_of(F::BLOCK), "columns of whole blocks");
    assert_eq!((rows.len(), out.len()), (n * row_bytes, x.tokens * n), "shapes of rows and out");
    for first in (0..x.tokens).step_by(TOKENS) {
        isa.run(
            #[inline(always)]
            || match x.tokens - first {
                1 => all_rows::<F, I, 1>(isa, rows, row_bytes, x, first, out),
                2 => all_rows::<F, I, 2>(isa, rows, row_bytes, x, first, out),
                _ => all_rows::<F, I, TOKENS>(isa, rows, row_bytes, x, first, out),
            },
        );
    }
}

/// T tokens from `first` on; missing ones repeat the last.
#[inline(always)]
fn all_rows<F: Format, I: Isa, const T: usize>(
    isa: I,
    rows: &[u8],
    row_bytes: usize,
    x: &Activations8,
    first: usize,
    out: &mut [f32],
) {
    let n = rows.len() / row_bytes;
    for r in 0..n {
        let sums = product::<F, I, T>(isa, &rows[r * row_bytes..], row_bytes, x, first);
        for (t, sum) in (first..x.tokens).zip(sums) {
            out[t * n + r] = sum;
        }
    }
}

/// Values of a strip, and their bytes.
const fn strip<F: Format>() -> (usize, usize) {
    (16 * F::GROUP, 16 * F::GROUP / F::BLOCK * F::BYTES)
}

/// Products of the first row, `row_bytes` long.
#[inline(always)]
fn product<F: Format, I: Isa, const T: usize>(
    isa: I,
    rows: &[u8],
    row_bytes: usize,
    x: &Activations8,
    first: usize,
) -> [f32; T] {
    let (values, bytes) = const { strip::<F>() };
    let mut sums = Sums { products: [[isa.splat(0.0); 2]; T], shifts: [isa.splat(0.0); T] };
    let strips = rows[..row_bytes].chunks_exact(bytes);
    let rest = strips.remainder();
    let mut at = [0; T];
    for (t, at) in at.iter_mut().enumerate() {
        *at = (first + t).min(x.tokens - 1) * x.width;
    }
    for (s, blocks) in strips.enumerate() {
        for line in 0..bytes.div_ceil(64) {
            isa.prefetch(rows, s * bytes + AHEAD + 64 * line);
        }
        sums.add::<F>(isa, blocks, LANES, x, at);
        at.iter_mut().for_each(|at| *at += values);
    }
    if !rest.is_empty() {
        let groups = rest.len() / F::BYTES * F::BLOCK / F::GROUP;
        // Another row follows; the last one is given zeros.
        match rows[row_bytes - rest.len()..].get(..bytes) {
            Some(blocks) => sums.add::<F>(isa, blocks, groups, x, at),
            None => sums.add::<F>(isa, &pad::<u8, { WIDTH / BLOCK * 34 }>(rest)[..bytes], groups, x, at),
        }
    }
    let mut out = [0.0; T];
    for (t, out) in out.iter_mut().enumerate() {
        let [a, b] = sums.products[t];
        *out = isa.sum(isa.add(isa.add(a, b), sums.shifts[t]));
    }
    out
}

/// Sums in lanes, of T tokens.
struct Sums<V, const T: usize> {
    /// Of codes plus offset: two, so that they need not wait for each other.
    products: [[V; 2]; T],
    /// Of shifts and, negative, offsets.
    shifts: [V; T],
}

impl<V: Copy, const T: usize> Sums<V, T> {
    /// Adds the first groups of a strip, times activations that begin at `at`.
    #[inline(always)]
    fn add<F: Format>(
        &mut self,
        isa: impl Isa<F = V>,
        blocks: &[u8],
        groups: usize,
        x: &Activations8,
        at: [usize; T],
    ) {
        let (values, bytes) = const { strip::<F>() };
        let blocks = &blocks[..bytes];
        let (mut scale, mut shift) = F::strip(isa, blocks);
        if groups < LANES {
            // What follows a row counts for nothing.
            let mask = isa.load_n(&const { masks() }[groups]);
            let masked = |v| isa.from_bits(isa.and(isa.to_bits(v), mask));
            (scale, shift) = (masked(scale), masked(shift));
        }
        let offset = isa.splat(-f32::from(F::OFFSET));
        let mut scales = [scale; T];
        let mut codes: [&[[u8; 64]]; T] = [&[]; T];
        for t in 0..T {
            let of_groups = |of: &[Vec<f32>; 2]| -> V {
                let of = &of[const { by_group::<F>() }][at[t] / F::GROUP..];
                isa.load(of.first_chunk().expect("activations come in whole strips"))
            };
            scales[t] = isa.mul(scale, of_groups(&x.scales));
            if F::OFFSET != 0 {
                self.shifts[t] = isa.fma(isa.mul(scale, offset), of_groups(&x.sums), self.shifts[t]);
            }
            if F::SHIFTED {
                self.shifts[t] = isa.fma(shift, of_groups(&x.sums), self.shifts[t]);
            }
            codes[t] = x.codes[at[t]..][..values].as_chunks().0;
        }
        // Blocks of 32 come in pairs.
        let parts = const { if F::BLOCK < 64 { 1 } else { F::BLOCK / 64 } };
        let part_bytes = const { if F::BLOCK < 64 { 64 / F::BLOCK * F::BYTES } else { F::BYTES } };
        let count = (groups * F::GROUP).div_ceil(64);
        macro_rules! unrolled {
            ($($number:literal)*) => {$(
                if const { $number < 16 * F::GROUP / 64 } && $number < count {
                    let w = F::bytes(isa, &blocks[$number / parts * part_bytes..][..part_bytes], $number % parts);
                    let index = isa.load_n(&const { indices(F::GROUP) }[$number]);
                    for t in 0..T {
                        let whole = isa.dot4(isa.splat_n(0), w, isa.load_n(&codes[t][$number]));
                        let sum = &mut self.products[t][$number % 2];
                        *sum = isa.fma(isa.to_f32(whole), isa.lookup(scales[t], index), *sum);
                    }
                }
            )*};
        }
        // By hand, so that each part knows at compile time where it lies.
        unrolled!(0 1 2 3 4 5 6 7);
    }
}

/// For each 64 values of a strip, the groups of the sixteen sums of four: sixteen 32-bit numbers.
const fn indices(group: usize) -> [[u8; 64]; LANES / 2] {
    let mut indices = [[0; 64]; LANES / 2];
    let mut i = 0;
    while i < LANES / 2 * LANES {
        indices[i / LANES][i % LANES * 4] = (i * 4 / group) as u8;
        i += 1;
    }
    indices
}

/// Ones in the first lanes: how many is the index.
const fn masks() -> [[u8; 64]; LANES] {
    let mut masks = [[0; 64]; LANES];
    let mut lanes = 0;
    while lanes < LANES {
        let mut byte = 0;
        while byte < 4 * lanes {
            masks[lanes][byte] = 255;
            byte += 1;
        }
        lanes += 1;
    }
    masks
}
