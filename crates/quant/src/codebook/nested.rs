//! One codebook for three widths: its sixteen cells are in pairs the eight cells of 3 bits, and in fours the four of 2 bits.
//!
//! The best cells of one width do not nest in those of another, but nearly: thresholds that are shared lie between those that
//! each width would choose. The sum of the three squared errors, relative to the smallest that each width can have, is
//! smallest here; none of them is 1 % above its own.
//!
//! Descriptions that are refined without loss are W. Equitz, T. Cover, «Successive refinement of information», 1991.

use super::{Codebook, INFINITE, LLOYD_16, SIGMA_128, cell_mean, lloyd_max, mass};

/// Positive thresholds of N(0, 1), from zero on.
const THRESHOLDS: [f64; 8] = thresholds();

/// Every code, with the levels of 4 bits, for N(0, 1/128). The codes of fewer bits are the high bits of these.
pub const NESTED: Codebook<16> = {
    let mut book = Codebook { levels: levels(2), thresholds: [0.0; 16] };
    let mut i = 0;
    while i < 8 {
        let threshold = (THRESHOLDS[i] * SIGMA_128) as f32;
        book.thresholds[7 + i] = threshold;
        book.thresholds[7 - i] = -threshold;
        i += 1;
    }
    // Zero was written twice.
    book.thresholds[7] = 0.0;
    book
};

/// What each of the sixteen codes stands for in `2 + planes` bits, for N(0, 1/128).
pub const fn levels(planes: usize) -> [f32; 16] {
    let mut levels = [0.0; 16];
    let (cells, mut i) = (4 >> planes, 0);
    while i < 8 {
        let level = (mean(&THRESHOLDS, cells, i / cells) * SIGMA_128) as f32;
        (levels[8 + i], levels[7 - i]) = (level, -level);
        i += 1;
    }
    levels
}

/// The root of the mean square of the levels of `2 + planes` bits for N(0, 1).
pub const fn length(planes: usize) -> f64 {
    let energy = energy(&THRESHOLDS, planes);
    // By Newton's method.
    let (mut length, mut i) = (1.0, 0);
    while i < 10 {
        length = (length + energy / length) / 2.0;
        i += 1;
    }
    length
}

/// Lloyd's iteration with another rule for thresholds. One that belongs to several widths lies where the errors of the cells
/// below and above it are equal together: Σ w ((t − a)² − (t − b)²) = 0, where a and b are the levels of a width on both
/// sides of it, and w is one over the least error of that width.
const fn thresholds() -> [f64; 8] {
    let weights = [lloyd_max_error::<4>(), lloyd_max_error::<8>(), lloyd_max_error::<16>()];
    let mut thresholds = [0.0; 8];
    let mut i = 1;
    while i < 8 {
        thresholds[i] = (LLOYD_16[7 + i] + LLOYD_16[8 + i]) / 2.0;
        i += 1;
    }
    loop {
        let (mut moved, mut next) = (0.0, thresholds);
        let mut i = 1;
        while i < 8 {
            let (mut squares, mut sum) = (0.0, 0.0);
            let mut planes = 0;
            while planes < 3 {
                // So many of the sixteen cells are one cell of this width.
                let cells = 4 >> planes;
                if i % cells == 0 {
                    let a = mean(&thresholds, cells, i / cells - 1);
                    let b = mean(&thresholds, cells, i / cells);
                    squares += (b * b - a * a) / weights[planes];
                    sum += (b - a) / weights[planes];
                }
                planes += 1;
            }
            next[i] = squares / (2.0 * sum);
            moved += (next[i] - thresholds[i]).abs();
            i += 1;
        }
        thresholds = next;
        if moved < 1e-10 {
            return thresholds;
        }
    }
}

/// Where cell i of the upper half begins.
const fn beginning(thresholds: &[f64; 8], i: usize) -> f64 {
    if i < 8 { thresholds[i] } else { INFINITE }
}

/// The mean of cell i of the upper half, if so many of the sixteen cells are one.
const fn mean(thresholds: &[f64; 8], cells: usize, i: usize) -> f64 {
    cell_mean(beginning(thresholds, i * cells), beginning(thresholds, (i + 1) * cells))
}

/// The mean square of the levels of `2 + planes` bits: 1 − their squared error, because they are means.
const fn energy(thresholds: &[f64; 8], planes: usize) -> f64 {
    let (cells, mut energy, mut i) = (4 >> planes, 0.0, 0);
    while i < 8 / cells {
        let mean = mean(thresholds, cells, i);
        let (low, high) = (beginning(thresholds, i * cells), beginning(thresholds, (i + 1) * cells));
        energy += 2.0 * mean * mean * (mass(high) - mass(low));
        i += 1;
    }
    energy
}

/// The squared error of N(0, 1) rounded to its N Lloyd–Max levels.
const fn lloyd_max_error<const N: usize>() -> f64 {
    let levels = lloyd_max::<N>();
    let (mut error, mut low, mut i) = (1.0, 0.0, N / 2);
    while i < N {
        let high = if i + 1 < N { (levels[i] + levels[i + 1]) / 2.0 } else { INFINITE };
        error -= 2.0 * levels[i] * levels[i] * (mass(high) - mass(low));
        low = high;
        i += 1;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of Max, 1960.
    #[test]
    fn least_errors_are_those_of_max() {
        let errors = [lloyd_max_error::<4>(), lloyd_max_error::<8>(), lloyd_max_error::<16>()];
        let near = errors.iter().zip([0.1175, 0.03454, 0.009497]).all(|(a, b)| (a / b - 1.0).abs() < 1e-3);
        assert!(near, "{errors:?}");
    }

    #[test]
    fn every_width_is_nearly_as_good_as_its_own_codebook() {
        let least = [lloyd_max_error::<4>(), lloyd_max_error::<8>(), lloyd_max_error::<16>()];
        for (planes, least) in least.into_iter().enumerate() {
            let ratio = (1.0 - energy(&THRESHOLDS, planes)) / least;
            println!("{} bits: {ratio:.5} of the least error", 2 + planes);
            assert!((1.0..1.0075).contains(&ratio), "{} bits: {ratio}", 2 + planes);
        }
    }

    /// A threshold moved either way makes the sum of the relative errors larger.
    #[test]
    fn thresholds_are_the_best() {
        let least = [lloyd_max_error::<4>(), lloyd_max_error::<8>(), lloyd_max_error::<16>()];
        let sum = |thresholds: &[f64; 8]| {
            let error = |planes: usize| (1.0 - energy(thresholds, planes)) / least[planes];
            (0..3).map(error).sum::<f64>()
        };
        for i in 1..8 {
            for step in [-1e-3, 1e-3] {
                let mut moved = THRESHOLDS;
                moved[i] += step;
                assert!(sum(&moved) > sum(&THRESHOLDS), "threshold {i}, {step}");
            }
        }
    }

    /// Levels of each width are the means of what has their codes, and codes are the high bits of the sixteen.
    #[test]
    fn levels_are_means_of_their_cells() {
        const STEPS: u32 = 1 << 18;
        for planes in 0..3 {
            let (mut sums, mut counts) = ([0.0; 16], [0.0; 16]);
            for i in 0..STEPS {
                let x = (f64::from(i) + 0.5) / f64::from(STEPS) * 12.0 - 6.0;
                let code = NESTED.code((x * SIGMA_128) as f32) >> (2 - planes);
                let density = (-x * x / 2.0).exp();
                sums[usize::from(code)] += x * density;
                counts[usize::from(code)] += density;
            }
            for (code, level) in levels(planes).into_iter().enumerate() {
                let cell = code >> (2 - planes);
                let mean = sums[cell] / counts[cell] * SIGMA_128;
                assert!(
                    (f64::from(level) - mean).abs() < 1e-5,
                    "{planes} planes, code {code}: {level} {mean}"
                );
            }
        }
    }
}
