//! Tiles in plain loops.

use super::{Sums, Tile, Tiles};

/// Registers in memory. Products follow the pseudo code of TDPBF16PS (Intel's Software Developer's Manual, volume 2) operation by
/// operation; which NaN comes of several is left open.
#[derive(Clone, Debug)]
pub struct Emulated([Tile; 8]);

impl Tiles for Emulated {
    fn new() -> Option<Emulated> {
        Some(Emulated([Tile::ZERO; 8]))
    }

    fn zero<const T: u8>(&mut self) {
        self.0[usize::from(T)] = Tile::ZERO;
    }
    fn load<const T: u8>(&mut self, tile: &Tile) {
        self.0[usize::from(T)] = *tile;
    }
    fn load_sums<const T: u8>(&mut self, sums: &Sums) {
        for (to, from) in self.0[usize::from(T)].0.iter_mut().zip(&sums.0) {
            to.as_chunks_mut().0.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_le_bytes());
        }
    }
    fn store_sums<const T: u8>(&self, sums: &mut Sums) {
        for (to, from) in sums.0.iter_mut().zip(&self.0[usize::from(T)].0) {
            to.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| *to = f32::from_le_bytes(*from));
        }
    }
    fn multiply_add<const C: u8, const A: u8, const B: u8>(&mut self) {
        let mut sums = Sums::ZERO;
        self.store_sums::<C>(&mut sums);
        let [a, b] = [A, B].map(|tile| self.0[usize::from(tile)].0);
        for (a, sums) in a.iter().zip(&mut sums.0) {
            for (n, sum) in sums.iter_mut().enumerate() {
                // First and second numbers of pairs apart.
                let mut halves = [0.0; 2];
                for (p, b) in b.iter().enumerate() {
                    for (j, half) in halves.iter_mut().enumerate() {
                        *half = fma(number(a, 2 * p + j), number(b, 2 * n + j), *half);
                    }
                }
                *sum = fma(1.0, *sum, fma(1.0, halves[0], halves[1]));
            }
        }
        self.load_sums::<C>(&sums);
    }
}

fn number(row: &[u8; 64], i: usize) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(row.as_chunks().0[i])) << 16)
}

/// `a * b + c`, rounded to nearest even. Subnormal numbers count as zero, and so do subnormal results.
pub(super) fn fma(a: f32, b: f32, c: f32) -> f32 {
    let [a, b, c] = [a, b, c].map(|x| if x.is_subnormal() { 0.0f32.copysign(x) } else { x });
    // What has so small a result has this one exactly.
    let exact = f64::from(a) * f64::from(b) + f64::from(c);
    // Tiny is what would be less than the smallest normal number if it were rounded to as many bits.
    let tiny = f64::from(f32::MIN_POSITIVE) * (1.0 - 1.0 / f64::from(1 << 25));
    match exact != 0.0 && exact.abs() < tiny {
        true => 0.0f32.copysign(exact as f32),
        false => a.mul_add(b, c),
    }
}
