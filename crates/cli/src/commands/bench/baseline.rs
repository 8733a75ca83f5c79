//! Whether a run is slower than an earlier one, beyond noise.
//!
//! Both runs tell their noise themselves. A row is slower if its median m₁ is far enough below the baseline's m₀:
//!
//! ```text
//! ln(m₀ / m₁) > 3 · √((e₀ / m₀)² + (e₁ / m₁)²) + drift
//! ```
//!
//! where small logarithms are fractions, and e are the standard errors of the medians, from the spread of their samples. The
//! samples of a run are interleaved: every repetition does all tests once, so the spread holds what changes in seconds. What
//! changes more slowly is the machine, which is told by a loop that reads memory before each repetition and is not the
//! engine's: drift is the largest of three differences between its medians: of the first and the second half of either run,
//! and of the runs.

use super::row::Row;
use anyhow::{Result, bail};

/// Standard errors that two medians may lie apart by chance.
const ERRORS: f64 = 3.0;
/// Repetitions below which a spread says nothing.
pub const REPETITIONS: usize = 3;
/// The standard error of a median of Gaussian samples, in those of a mean: √(π/2).
const OF_MEDIAN: f64 = 1.2533;

/// How a row compares with the baseline's.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    /// The median, in medians of the baseline.
    pub ratio: f64,
    /// How far the logarithm of the ratio may be from 0 by noise alone: a fraction, while it is small.
    pub noise: f64,
}

impl Verdict {
    /// Compares two rows of the same key.
    pub fn of(row: &Row, baseline: &Row) -> Result<Verdict> {
        for (samples, whose) in [(&row.samples, "this run"), (&baseline.samples, "the baseline")] {
            if samples.len() < REPETITIONS {
                let (key, n) = (row.key(), samples.len());
                bail!(
                    "{key}: {n} repetitions in {whose} do not tell its noise; `-r {REPETITIONS}` or more do"
                );
            }
        }
        let (ours, theirs) = (median(&row.samples), median(&baseline.samples));
        let errors = (error(&row.samples) / ours).hypot(error(&baseline.samples) / theirs);
        let noise = ERRORS * errors + drift(&row.machine_gb_per_s, &baseline.machine_gb_per_s);
        Ok(Verdict { ratio: ours / theirs, noise })
    }

    /// Whether it is slower, beyond noise.
    pub fn is_slower(&self) -> bool {
        self.ratio.ln() < -self.noise
    }

    /// Whether it is faster, beyond noise.
    pub fn is_faster(&self) -> bool {
        self.ratio.ln() > self.noise
    }
}

/// Compares rows with a baseline and tells each its ratio; what to say about the worst of those that are slower. Rows that
/// the baseline has not are new.
pub fn compare(rows: &mut [Row], baseline: &[Row]) -> Result<Option<String>> {
    let mut slower = Vec::new();
    for row in rows {
        let key = row.key();
        // Of a record, the newest.
        let same = |earlier: &&Row| earlier.cpu == row.cpu && earlier.key() == key;
        let Some(earlier) = baseline.iter().rev().find(same) else { continue };
        let verdict = Verdict::of(row, earlier)?;
        row.of_baseline = Some(verdict.ratio);
        if verdict.is_slower() {
            slower.push((verdict, key));
        }
    }
    slower.sort_by(|a, b| a.0.ratio.total_cmp(&b.0.ratio));
    let Some((Verdict { ratio, noise }, key)) = slower.first() else { return Ok(None) };
    let others = match slower.len() - 1 {
        0 => String::new(),
        n => format!(", and {n} more"),
    };
    let noise = 100.0 * noise;
    Ok(Some(format!("slower than the baseline: {key} at {ratio:.3}×, where noise is {noise:.1} %{others}")))
}

/// The machine's own change, as a logarithm. A run that does not tell counts as steady.
fn drift(ours: &[f64], theirs: &[f64]) -> f64 {
    let change = |a: &[f64], b: &[f64]| match a.is_empty() || b.is_empty() {
        true => 0.0,
        false => (median(a) / median(b)).ln().abs(),
    };
    let halves = |all: &[f64]| {
        let (first, second) = all.split_at(all.len() / 2);
        change(first, second)
    };
    halves(ours).max(halves(theirs)).max(change(ours, theirs))
}

/// The middle one, or the mean of the middle two.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

/// Mean and sample standard deviation.
pub fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// The standard error of the median.
fn error(samples: &[f64]) -> f64 {
    OF_MEDIAN * mean_and_deviation(samples).1 / (samples.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::row;
    use super::*;

    /// Numbers that look random, from −1 to 1, of variance 1/3.
    fn noise(seed: u64) -> impl Iterator<Item = f64> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .skip(8)
    }

    /// `n` samples around a value, in which the machine reads steadily.
    fn around(value: f64, spread: f64, n: usize, seed: u64) -> Row {
        let samples: Vec<f64> = noise(seed).take(n).map(|x| value * (1.0 + spread * x)).collect();
        row("tg128", &samples, &vec![40.0; n])
    }

    #[test]
    fn medians_and_deviations() {
        assert_eq!(mean_and_deviation(&[2.0, 4.0]), (3.0, std::f64::consts::SQRT_2));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[1.0, 4.0, 2.0, 3.0])), (2.0, 2.5));
    }

    #[test]
    fn noise_alone_rarely_fails() {
        for n in [3, 5, 10] {
            let slower = (0..1000)
                .filter(|&i| {
                    Verdict::of(&around(50.0, 0.05, n, 2 * i + 1), &around(50.0, 0.05, n, 2 * i + 2))
                        .unwrap()
                        .is_slower()
                })
                .count();
            assert!(slower < 30, "{slower} of 1000 with {n} repetitions");
        }
    }

    #[test]
    fn what_is_slower_fails() {
        for (n, fall) in [(5, 0.2), (10, 0.1), (20, 0.07)] {
            let seen = (0..1000)
                .filter(|&i| {
                    let ours = around(50.0 * (1.0 - fall), 0.05, n, 2 * i + 1);
                    Verdict::of(&ours, &around(50.0, 0.05, n, 2 * i + 2)).unwrap().is_slower()
                })
                .count();
            assert!(seen > 900, "{seen} of 1000: {fall} slower, {n} repetitions");
        }
        // Without noise, anything does.
        let [ours, theirs] = [49.9, 50.0].map(|x| row("tg", &[x; 3], &[40.0; 3]));
        assert!(Verdict::of(&ours, &theirs).unwrap().is_slower());
        let back = Verdict::of(&theirs, &ours).unwrap();
        assert!(!back.is_slower() && back.is_faster());
        // Whatever the noise, a millionth is less.
        let [little, much] = [1e-3, 1e3].map(|x| row("tg", &[x, 2.0 * x, 6.0 * x], &[40.0; 3]));
        assert!(Verdict::of(&little, &much).unwrap().is_slower());
        assert!(Verdict::of(&much, &little).unwrap().is_faster());
        assert!(!Verdict::of(&theirs, &theirs).unwrap().is_slower());
    }

    #[test]
    fn a_slower_machine_is_no_slower_program() {
        let theirs = row("tg", &[50.0, 50.1, 50.2], &[40.0; 3]);
        let ours = |machine: [f64; 4]| row("tg", &[45.0, 45.1, 45.2, 45.1], &machine);
        let slower = |machine| Verdict::of(&ours(machine), &theirs).unwrap().is_slower();
        assert!(slower([40.0; 4]));
        // It read more slowly than at the time of the baseline, or during a half of the run.
        assert!(!slower([35.0; 4]));
        assert!(!slower([40.0, 40.0, 34.0, 34.0]));
    }

    #[test]
    fn the_worst_row_is_named() {
        let baseline = ["a", "b", "c"].map(|test| row(test, &[10.0, 10.1, 10.2], &[40.0; 3]));
        let mut rows = [
            row("a", &[9.0, 9.1, 9.2], &[40.0; 3]),
            row("b", &[7.0, 7.1, 7.2], &[40.0; 3]),
            row("c", &[10.0, 10.1, 10.2], &[40.0; 3]),
            row("d", &[1.0, 1.1, 1.2], &[40.0; 3]),
        ];
        let worst = compare(&mut rows, &baseline).unwrap().unwrap();
        assert!(worst.contains(" b at 0.703×") && worst.contains("1 more"), "{worst}");
        let told: Vec<bool> = rows.iter().map(|row| row.of_baseline.is_some()).collect();
        assert_eq!(told, [true, true, true, false]);
        assert_eq!(compare(&mut rows[2..], &baseline).unwrap(), None);
        // Another processor's speed says nothing.
        let other = Row { cpu: "another".into(), ..row("c", &[99.0, 99.1, 99.2], &[40.0; 3]) };
        let mut new = rows[2..3].to_vec();
        new[0].of_baseline = None;
        assert_eq!((compare(&mut new, &[other]).unwrap(), new[0].of_baseline), (None, None));
        // A record may hold a row of an earlier hour too.
        let earlier = row("c", &[99.0, 99.1, 99.2], &[40.0; 3]);
        let record = [[earlier].as_slice(), &baseline].concat();
        assert_eq!(compare(&mut rows[2..3], &record).unwrap(), None);
    }

    #[test]
    fn two_samples_have_no_noise() {
        let [two, three] = [2, 3].map(|n| around(1.0, 0.1, n, 1));
        for (ours, theirs, whose) in [(&two, &three, "this run"), (&three, &two, "the baseline")] {
            let error = Verdict::of(ours, theirs).unwrap_err().to_string();
            assert!(error.contains(whose) && error.contains("-r 3"), "{error}");
        }
    }
}
