//! Codebooks: the levels a rotated value is rounded to.
//!
//! Rotated values are Gaussian, so the best N levels are the Lloyd–Max levels of the normal
//! distribution: each threshold lies midway between two levels, each level is the mean of its cell.
//!
//! S. Lloyd, «Least squares quantization in PCM», 1957/1982; J. Max, «Quantizing for minimum
//! distortion», 1960.

pub mod nested;

/// A codebook of N levels. Code i stands for `levels[i]`; a value belongs to the first cell whose upper
/// threshold exceeds it, and to the last cell if none does (so does NaN).
#[derive(Clone, Copy, Debug)]
pub struct Codebook<const N: usize> {
    /// Ascending.
    pub levels: [f32; N],
    /// `thresholds[i]` separates code i from code i + 1. The last one separates nothing.
    pub thresholds: [f32; N],
}

impl<const N: usize> Codebook<N> {
    /// Levels and their midpoints, all multiplied by `scale`.
    pub const fn new(levels: [f64; N], scale: f64) -> Codebook<N> {
        let mut book = Codebook { levels: [0.0; N], thresholds: [0.0; N] };
        let mut i = 0;
        while i < N {
            book.levels[i] = (levels[i] * scale) as f32;
            if i + 1 < N {
                book.thresholds[i] = ((levels[i] + levels[i + 1]) / 2.0 * scale) as f32;
            }
            i += 1;
        }
        book
    }

    /// A table published with six decimals, in millionths; thresholds are the midpoints of the printed
    /// levels, rounded to six decimals, halves away from zero.
    pub const fn printed(millionths: [i32; N]) -> Codebook<N> {
        let mut book = Codebook { levels: [0.0; N], thresholds: [0.0; N] };
        let mut i = 0;
        while i < N {
            book.levels[i] = (millionths[i] as f64 / 1e6) as f32;
            if i + 1 < N {
                let sum = millionths[i] + millionths[i + 1];
                book.thresholds[i] = (((sum + sum % 2) / 2) as f64 / 1e6) as f32;
            }
            i += 1;
        }
        book
    }

    /// The code of `x`.
    #[inline]
    pub fn code(&self, x: f32) -> u8 {
        // `!(x < t)` rather than `x >= t`: NaN goes up.
        #[expect(clippy::neg_cmp_op_on_partial_ord)]
        let above = |t: &&f32| !(x < **t);
        self.thresholds[..N - 1].iter().filter(above).count() as u8
    }

    /// A table to search: entry i is the threshold that code i begins at. It is −0 and never 0, so that the sign of
    /// `x - threshold` says whether x lies below, zeros included.
    pub const fn beginnings(&self) -> [f32; 16] {
        let mut lanes = [0.0; 16];
        let mut i = 1;
        while i < N {
            let threshold = self.thresholds[i - 1];
            lanes[i] = if threshold == 0.0 { -0.0 } else { threshold };
            i += 1;
        }
        lanes
    }

    /// The levels as one sixteen-lane table, repeated from the start.
    pub const fn lanes(&self) -> [f32; 16] {
        let mut lanes = [0.0; 16];
        let mut i = 0;
        while i < 16 {
            lanes[i] = self.levels[i % N];
            i += 1;
        }
        lanes
    }
}

/// The Lloyd–Max levels of N(0, 1).
pub const fn lloyd_max<const N: usize>() -> [f64; N] {
    let mut levels = equal_mass::<N>();
    let mut rounds = 0;
    loop {
        let mut moved = 0.0;
        let mut next = [0.0; N];
        // The distribution is even: work on the upper half, mirror it.
        let mut i = N / 2;
        while i < N {
            let low = (levels[i - 1] + levels[i]) / 2.0;
            let high = if i + 1 < N { (levels[i] + levels[i + 1]) / 2.0 } else { INFINITE };
            next[i] = cell_mean(low, high);
            next[N - 1 - i] = -next[i];
            moved += (next[i] - levels[i]).abs();
            i += 1;
        }
        levels = next;
        rounds += 1;
        if moved < 1e-10 || rounds == 10_000 {
            return levels;
        }
    }
}

/// The means of N cells of N(0, 1) that hold the same mass: where Lloyd's iteration starts.
pub const fn equal_mass<const N: usize>() -> [f64; N] {
    let mut levels = [0.0; N];
    let mut low = 0.0;
    let mut i = N / 2;
    while i < N {
        let high = if i + 1 < N { quantile((i + 1) as f64 / N as f64 - 0.5) } else { INFINITE };
        levels[i] = cell_mean(low, high);
        levels[N - 1 - i] = -levels[i];
        low = high;
        i += 1;
    }
    levels
}

/// Beyond every value: the mass above is below 1e-27.
const INFINITE: f64 = 11.0;

/// The mean of N(0, 1) between two thresholds.
const fn cell_mean(low: f64, high: f64) -> f64 {
    (density(low) - density(high)) / (mass(high) - mass(low))
}

/// The density of N(0, 1).
const fn density(x: f64) -> f64 {
    const SQRT_2_PI: f64 = 2.506_628_274_631_000_5;
    exp_negative(-x * x / 2.0) / SQRT_2_PI
}

/// The mass of N(0, 1) between 0 and x ≥ 0: `density(x) · (x + x³/3 + x⁵/(3·5) + …)`.
const fn mass(x: f64) -> f64 {
    if x >= INFINITE {
        return 0.5;
    }
    let (mut term, mut sum, mut k) = (x, x, 1.0);
    while term > sum * 1e-17 {
        k += 2.0;
        term *= x * x / k;
        sum += term;
    }
    density(x) * sum
}

/// The x ≥ 0 with `mass(x) = p`, p < 1/2, by Newton's method.
const fn quantile(p: f64) -> f64 {
    let mut x = 0.0;
    let mut i = 0;
    while i < 40 {
        x += (p - mass(x)) / density(x);
        i += 1;
    }
    x
}

/// `e^x` for x ≤ 0: the series on x / 2^k, squared k times.
const fn exp_negative(x: f64) -> f64 {
    let (mut small, mut halvings) = (x, 0);
    while small < -0.25 {
        small /= 2.0;
        halvings += 1;
    }
    let (mut term, mut sum, mut k) = (1.0, 1.0, 1.0);
    while k < 14.0 {
        term *= small / k;
        sum += term;
        k += 1.0;
    }
    while halvings > 0 {
        sum *= sum;
        halvings -= 1;
    }
    sum
}

/// `x` rounded to six decimals, in millionths.
pub const fn to_millionths<const N: usize>(x: [f64; N]) -> [i32; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        out[i] = (x[i] * 1e6).round() as i32;
        i += 1;
    }
    out
}

/// The sixteen Lloyd–Max levels of N(0, 1).
pub const LLOYD_16: [f64; 16] = lloyd_max();

/// 1 / √128: the standard deviation of a coordinate of a unit vector of 128.
pub const SIGMA_128: f64 = 0.088_388_347_648_318_45;

/// turbo2, a published table: within 0.1 % of the Lloyd–Max levels of N(0, 1/128), from no rule we know.
pub const TURBO2: Codebook<4> = Codebook::printed([-133_462, -39_994, 39_994, 133_462]);

/// turbo3, a published table: within 2 % of the Lloyd–Max levels of N(0, 1/128), from no rule we know.
pub const TURBO3: Codebook<8> =
    Codebook::printed([-190_685, -117_832, -65_717, -21_460, 21_460, 65_717, 117_832, 190_685]);

/// turbo4: Lloyd–Max for N(0, 1/128).
pub const TURBO4: Codebook<16> = Codebook::new(LLOYD_16, SIGMA_128);

/// turbo4 as others published it: the means of sixteen cells of equal mass of N(0, 1/128), and their
/// midpoints, each rounded to six decimals.
pub(crate) const TURBO4_EQUAL_MASS: Codebook<16> = {
    let exact = equal_mass::<16>();
    let mut book = Codebook { levels: [0.0; 16], thresholds: [0.0; 16] };
    let mut i = 0;
    while i < 16 {
        book.levels[i] = ((exact[i] * SIGMA_128 * 1e6).round() / 1e6) as f32;
        if i + 1 < 16 {
            let midpoint = (exact[i] + exact[i + 1]) / 2.0;
            book.thresholds[i] = ((midpoint * SIGMA_128 * 1e6).round() / 1e6) as f32;
        }
        i += 1;
    }
    book
};

/// tq3, a published table for N(0, 1), not symmetric and not Lloyd–Max.
pub const TQ3: Codebook<8> =
    Codebook::printed([-1_996_684, -1_291_398, -740_341, -247_508, 230_106, 725_222, 1_277_503, 1_988_943]);

/// tq4: Lloyd–Max for N(0, 1), published with six decimals.
pub const TQ4: Codebook<16> = Codebook::printed(to_millionths(LLOYD_16));

#[cfg(test)]
mod tests {
    use super::*;

    fn check<const N: usize>(
        name: &str,
        book: Codebook<N>,
        levels: &[f32],
        thresholds: &[f32],
        tolerance: f32,
    ) {
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance);
        assert!(near(&book.levels[N / 2..], levels), "{name}: {:?}", book.levels);
        assert!(near(&book.thresholds[N / 2..], thresholds), "{name}: {:?}", book.thresholds);
    }

    /// The upper halves of the tables as printed, to the last bit.
    #[test]
    fn published_tables() {
        check("turbo2", TURBO2, &[0.039994, 0.133462], &[0.086728], 0.0);
        let levels = [0.021460, 0.065717, 0.117832, 0.190685];
        check("turbo3", TURBO3, &levels, &[0.043589, 0.091775, 0.154259], 0.0);
        let levels = [0.230106, 0.725222, 1.277503, 1.988943];
        check("tq3", TQ3, &levels, &[0.477664, 1.001363, 1.633223], 0.0);
        let levels = [0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.73259];
        let thresholds = [0.258222, 0.522404, 0.799550, 1.099286, 1.437139, 1.843532, 2.400804];
        check("tq4", TQ4, &levels, &thresholds, 0.0);
        let levels = [0.006938, 0.020989, 0.035597, 0.051262, 0.068756, 0.089527, 0.117195, 0.173926];
        let thresholds = [0.013963, 0.028293, 0.043430, 0.060009, 0.079142, 0.103361, 0.145560];
        check("turbo4 of equal mass", TURBO4_EQUAL_MASS, &levels, &thresholds, 0.0);
    }

    /// The table other engines print for 16 levels, which agrees to 4e-5.
    #[test]
    fn turbo4_is_lloyd_max() {
        let levels = [0.011353, 0.034311, 0.058069, 0.083317, 0.111065, 0.143047, 0.182907, 0.241556];
        let thresholds = [0.022832, 0.046190, 0.070693, 0.097191, 0.127056, 0.162977, 0.212232];
        check("turbo4", TURBO4, &levels, &thresholds, 4e-5);
    }

    /// Max's own table of 1960, four decimals.
    #[test]
    fn small_codebooks_are_those_of_max() {
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 5e-4);
        assert!(near(&lloyd_max::<2>(), &[-0.7980, 0.7980]));
        assert!(near(&lloyd_max::<4>(), &[-1.510, -0.4528, 0.4528, 1.510]));
        assert!(near(&lloyd_max::<8>()[4..], &[0.2451, 0.7560, 1.344, 2.152]));
    }

    #[test]
    fn codes_are_cells() {
        assert_eq!(TURBO2.code(0.0), 2);
        assert_eq!(TURBO2.code(-0.0), 2);
        assert_eq!(TURBO2.code(TURBO2.thresholds[0]), 1);
        assert_eq!(TURBO2.code(f32::NAN), 3);
        assert_eq!(TURBO4.code(f32::NEG_INFINITY), 0);
        for (i, level) in TURBO4.levels.iter().enumerate() {
            assert_eq!(usize::from(TURBO4.code(*level)), i);
        }
    }
}
