use super::*;
use proptest::prelude::*;

const NEG: f32 = f32::NEG_INFINITY;
const NAN: f32 = f32::NAN;

#[track_caller]
fn close(found: f64, expected: f64, tolerance: f64) {
    assert!(found == expected || (found - expected).abs() <= tolerance, "found {found}, expected {expected}");
}

#[test]
fn softmax_in_logarithms() {
    let check = |logits: &[f32], expected: &[f64]| {
        let found: Vec<_> = log_softmax(logits).collect();
        assert_eq!(found.len(), expected.len());
        for (token, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            close(found, expected, 1e-12);
            close(negative_log_likelihood(logits, token as u32), -expected, 1e-12);
        }
    };
    let half = 0.5f64.ln();
    check(&[], &[]);
    check(&[3.0], &[0.0]);
    check(&[7.0, 7.0], &[half, half]);
    check(&[100.0, 100.0], &[half, half]);
    check(&[0.0, 1000.0], &[-1000.0, 0.0]);
    check(&[0.0, NEG, 0.0, NAN], &[half, f64::NEG_INFINITY, half, f64::NEG_INFINITY]);
    check(&[NEG, NEG], &[f64::NEG_INFINITY, f64::NEG_INFINITY]);
    close(log_sum_exp(&[0.0; 1000]), 1000f64.ln(), 1e-12);
}

/// Two tokens, with the divergence in closed form.
#[test]
fn divergence_of_two_coins() {
    for (p, q) in [(0.5, 0.5), (0.5, 0.9), (0.9, 0.5), (0.99, 0.01), (0.3, 0.300_001)] {
        // Logits that f32 holds exactly are the ones whose distribution is compared.
        let [a, b] = [p, q].map(|x: f64| [(x / (1.0 - x)).ln() as f32, 0.0]);
        let [p, q] = [a, b].map(|row| 1.0 / (1.0 + (-f64::from(row[0])).exp()));
        let expected = p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
        close(kl_divergence(&a, &b), expected, 1e-15);
    }
}

#[test]
fn divergence_at_the_edges() {
    let check = |p: &[f32], q: &[f32], expected| close(kl_divergence(p, q), expected, 1e-15);
    check(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], 0.0);
    check(&[1.0, 2.0, 3.0], &[101.0, 102.0, 103.0], 0.0);
    check(&[0.0, NEG], &[0.0, 0.0], 2f64.ln());
    check(&[0.0, 0.0], &[0.0, NEG], f64::INFINITY);
    check(&[0.0, 0.0], &[0.0, NAN], f64::INFINITY);
    check(&[0.0, NEG], &[0.0, NEG], 0.0);
    check(&[0.0, NEG], &[NEG, 0.0], f64::INFINITY);
    check(&[NEG, NEG], &[0.0, 0.0], f64::INFINITY);
    check(&[0.0, 0.0], &[NAN, NAN], f64::INFINITY);
    check(&[0.0, f32::INFINITY], &[0.0, 0.0], f64::INFINITY);
    check(&[], &[], f64::INFINITY);
}

proptest! {
    #[test]
    fn divergence_agrees_with_the_sum(rows in prop::collection::vec((-30f32..30.0, -30f32..30.0), 1..200)) {
        let (p, q): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let expected: f64 =
            log_softmax(&p).zip(log_softmax(&q)).map(|(p, q)| p.exp() * (p - q)).sum();
        let found = kl_divergence(&p, &q);
        prop_assert!((found - expected).abs() <= 1e-12 * (1.0 + expected), "{} {}", found, expected);
        prop_assert!(found >= 0.0);
    }
}

#[test]
fn report_of_three_rows() {
    let mut divergence = Divergence::default();
    assert_eq!(divergence.report(), DivergenceReport::default());
    divergence.add(&[0.0, 0.0], &[0.0, 0.0]);
    divergence.add(&[0.0, NEG], &[0.0, 0.0]); // ln 2, and Δp = −1/2
    divergence.add_next(&[0.0, 0.0, NEG], &[-1.0, 0.0, NEG], 1);
    let tilted = 1.0 / (1.0 + (-1f64).exp());
    let third = -2f64.ln() - 0.5 * (tilted.ln() + (1.0 - tilted).ln()); // 0.1201
    let report = divergence.report();
    let ln2 = 2f64.ln();
    let mean = (ln2 + third) / 3.0;
    assert_eq!(report.rows, 3);
    close(report.kld_mean, mean, 1e-15);
    let variance = (mean.powi(2) + (ln2 - mean).powi(2) + (third - mean).powi(2)) / 2.0;
    close(report.kld_mean_error, (variance / 3.0).sqrt(), 1e-15);
    close(report.kld_max, ln2, 1e-15);
    close(report.kld_median, third, 1e-15);
    close(report.kld_p90, third + 0.8 * (ln2 - third), 1e-12);
    close(report.kld_p95, third + 0.9 * (ln2 - third), 1e-12);
    close(report.kld_p99, third + 0.98 * (ln2 - third), 1e-12);
    close(report.kld_p99_9, third + 0.998 * (ln2 - third), 1e-12);
    close(report.top1_agreement, 2.0 / 3.0, 1e-15);
    close(report.max_abs_diff, f64::INFINITY, 0.0);
    close(report.mean_dp, (tilted - 0.5 - 0.5) / 3.0, 1e-15);
    close(report.rms_dp, ((0.25 + (tilted - 0.5).powi(2)) / 3.0).sqrt(), 1e-15);
    close(report.max_dp, 0.5, 1e-15);
}

#[test]
fn largest_difference_of_logits() {
    let mut divergence = Divergence::default();
    divergence.add(&[1.0, -2.0, NEG], &[1.25, -1.5, NEG]);
    divergence.add(&[1.0, -2.0, 0.0], &[1.0, -2.0, 0.125]);
    close(divergence.report().max_abs_diff, 0.5, 0.0);
}

#[test]
fn correlation_of_rows() {
    let check = |p: &[f32], q: &[f32], expected| {
        let mut divergence = Divergence::default();
        divergence.add(p, q);
        close(divergence.report().correlation, expected, 1e-12);
    };
    check(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], 1.0);
    check(&[1.0, 2.0, 3.0], &[-3.0, 1.0, 5.0], 1.0);
    check(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0], -1.0);
    // Deviations (−1, 0, 1) and (−1/3, 2/3, −1/3): their product sums to 0.
    check(&[1.0, 2.0, 3.0], &[1.0, 2.0, 1.0], 0.0);
    // Deviations (−1.5, −0.5, 0.5, 1.5) and (−1.25, −0.25, −0.25, 1.75): 4.5 / √(5 · 4.75).
    check(&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 2.0, 4.0], 4.5 / 23.75f64.sqrt());
    // What is impossible on a side does not count; a constant correlates with constants only.
    check(&[1.0, 2.0, 3.0, NEG], &[2.0, 4.0, 6.0, 0.0], 1.0);
    check(&[1.0, 1.0], &[2.0, 2.0], 1.0);
    check(&[1.0, 1.0], &[1.0, 2.0], 0.0);
}

#[test]
fn rows_survive_json() {
    let mut divergence = Divergence::default();
    divergence.add_next(&[1.0, -2.0, 0.5], &[1.25, -1.5, 0.0], 2);
    divergence.add_next(&[0.0, 0.0], &[0.0, NEG], 1); // all is infinite but Δp = −1/2
    let json = serde_json::to_string(divergence.rows()).unwrap();
    let rows: Vec<Row> = serde_json::from_str(&json).unwrap();
    assert_eq!((rows[1].kld, rows[1].dp, rows[1].likelihood[1]), (f64::INFINITY, -0.5, f64::INFINITY));
    close(rows[0].kld, divergence.rows()[0].kld, 1e-15);
    let again: Divergence = rows.into_iter().collect();
    close(again.report().kld_p99, f64::INFINITY, 0.0);
    let [reference, ours] = again.perplexity().map(|perplexity| perplexity.value());
    let first = negative_log_likelihood(&[1.0, -2.0, 0.5], 2);
    close(reference, ((first + 2f64.ln()) / 2.0).exp(), 1e-12);
    close(ours, f64::INFINITY, 0.0);
}

#[test]
fn report_survives_json() {
    let mut divergence = Divergence::default();
    divergence.add(&[1.0, -2.0, 0.5], &[1.25, -1.5, 0.0]);
    divergence.add(&[0.5, 0.0, 0.5], &[1.0, -1.0, 0.0]);
    let report = divergence.report();
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains("\"kld_p99_9\""), "{json}");
    let back: DivergenceReport = serde_json::from_str(&json).unwrap();
    close(back.kld_mean, report.kld_mean, 1e-15);
}

#[test]
fn perplexity_and_its_error() {
    let mut perplexity = Perplexity::default();
    assert!(perplexity.value().is_nan());
    [1.0, 2.0, 3.0, 4.0].into_iter().for_each(|nll| perplexity.add(nll));
    close(perplexity.value(), 2.5f64.exp(), 1e-12);
    // The variance of the four, 5/3, over four values.
    close(perplexity.standard_error(), 2.5f64.exp() * (5.0f64 / 12.0).sqrt(), 1e-12);
    assert_eq!(perplexity.to_string(), "PPL = 12.1825 +/- 7.86377");

    // A token held impossible, and another: infinite, and not NaN.
    [f64::INFINITY, f64::INFINITY, 1.0].into_iter().for_each(|nll| perplexity.add(nll));
    assert_eq!((perplexity.value(), perplexity.tokens()), (f64::INFINITY, 7));

    // A uniform guess among n tokens has perplexity n, and no error.
    let mut uniform = Perplexity::default();
    (0..10).for_each(|token| uniform.add(negative_log_likelihood(&[0.3; 10], token)));
    close(uniform.value(), 10.0, 1e-12);
    close(uniform.standard_error(), 0.0, 1e-12);
}

/// `cargo test --release -p torque-engine divergence_time -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn divergence_time() {
    let row = |seed: u32| -> Vec<f32> {
        (0..151_936u32).map(|i| (i.wrapping_mul(2_654_435_761) ^ seed) as f32 / 4e8 - 5.0).collect()
    };
    let (p, q) = (row(1), row(77777));
    let mut divergence = Divergence::default();
    let times = (0..20).map(|_| {
        let start = std::time::Instant::now();
        divergence.add(&p, &q);
        start.elapsed()
    });
    println!("a row of {}: {:?}", p.len(), times.min().unwrap());
}
