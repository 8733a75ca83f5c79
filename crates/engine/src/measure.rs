//! Quality as numbers: how far one model's logits are from another's, and how well they predict a text.
//!
//! Everything is computed in `f64` from `f32` logits. NaN is read as −∞, "impossible", as the sampler does.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `ln Σ e^logit`, −∞ when no token is possible.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = largest(logits).1;
    if max.is_infinite() {
        return max;
    }
    max + logits.iter().map(|&logit| (number(logit) - max).exp()).sum::<f64>().ln()
}

/// The logarithms of the probabilities that softmax gives, `logit − ln Σ e^logit`, one per logit.
pub fn log_softmax(logits: &[f32]) -> impl Iterator<Item = f64> + '_ {
    let log_sum = log_sum_exp(logits);
    logits.iter().map(move |&logit| log_probability(number(logit), log_sum))
}

/// The negative log-likelihood of a token, in nats.
///
/// # Panics
/// If the token has no logit.
pub fn negative_log_likelihood(logits: &[f32], token: u32) -> f64 {
    -log_probability(number(logits[token as usize]), log_sum_exp(logits))
}

/// `KL(P‖Q) = Σ p·(ln p − ln q)` in nats, for the distributions softmax makes of two rows of logits.
///
/// It is infinite when P holds possible what Q holds impossible, and when a row has no distribution (every logit is
/// −∞, or one is +∞).
///
/// # Panics
/// If the rows have different lengths.
pub fn kl_divergence(p_logits: &[f32], q_logits: &[f32]) -> f64 {
    Comparison::of(p_logits, q_logits).kl_divergence
}

/// Two rows of logits compared, in two passes over them: one for the maxima, one for the sums.
struct Comparison {
    kl_divergence: f64,
    decorrelation: f64,
    max_abs_diff: f64, // of logits, not of probabilities
    top: [usize; 2],   // the most likely token of each
    log_sum: [f64; 2], // `log_sum_exp` of each
}

impl Comparison {
    fn of(p_logits: &[f32], q_logits: &[f32]) -> Self {
        assert_eq!(p_logits.len(), q_logits.len(), "rows of the same vocabulary");
        let ((p_top, p_max), (q_top, q_max)) = (largest(p_logits), largest(q_logits));
        // With weights w = e^(p − p_max): KL = Σ w·(p − q) / Σ w − (ln Σ e^p − ln Σ e^q).
        let (mut p_sum, mut q_sum, mut gap_sum, mut max_abs_diff) = (0.0, 0.0, 0.0, 0.0f64);
        let mut pairs = Pairs::default();
        for (&p, &q) in p_logits.iter().zip(q_logits) {
            let (p, q) = (number(p), number(q));
            let (p_weight, gap) = ((p - p_max).exp(), p - q);
            p_sum += p_weight;
            q_sum += (q - q_max).exp();
            pairs.add(p - p_max, q - q_max);
            // Impossible in P: 0·ln 0 = 0, whatever Q says.
            gap_sum += if p_weight > 0.0 { p_weight * gap } else { 0.0 };
            max_abs_diff = max_abs_diff.max(gap.abs()); // ignores NaN, which is −∞ on both sides
        }
        let log_sum = [p_max + p_sum.ln(), q_max + q_sum.ln()];
        let divergence = gap_sum / p_sum - (log_sum[0] - log_sum[1]);
        // Rounding may leave a tiny negative number; NaN comes from a row without a distribution.
        let kl_divergence = if divergence.is_nan() { f64::INFINITY } else { divergence.max(0.0) };
        Self {
            kl_divergence,
            decorrelation: pairs.decorrelation(),
            max_abs_diff,
            top: [p_top, q_top],
            log_sum,
        }
    }
}

/// The sums of a correlation. Values that are near zero where they are large, as distances from a maximum are, lose nothing.
#[derive(Default)]
struct Pairs {
    count: f64,
    sum: [f64; 2],
    squares: [f64; 2],
    product: f64,
}

impl Pairs {
    /// Adds a pair; one that is not of two finite numbers does not count.
    fn add(&mut self, x: f64, y: f64) {
        if x.is_finite() && y.is_finite() {
            self.count += 1.0;
            self.sum = [self.sum[0] + x, self.sum[1] + y];
            self.squares = [self.squares[0] + x * x, self.squares[1] + y * y];
            self.product += x * y;
        }
    }

    /// `1 − r`, with Pearson's r. Two constants correlate, a constant and something else do not.
    fn decorrelation(&self) -> f64 {
        let mean = |sum: f64| sum / self.count.max(1.0);
        let [x, y] = [0, 1].map(|i| (self.squares[i] - self.sum[i] * mean(self.sum[i])).max(0.0));
        let both = self.product - self.sum[0] * mean(self.sum[1]);
        match (x > 0.0, y > 0.0) {
            (false, false) => 0.0,
            (true, true) => (1.0 - both / (x * y).sqrt()).max(0.0),
            _ => 1.0,
        }
    }
}

/// One row of logits compared with the reference's. Written as a list of numbers, with `null` for what is infinite.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "[Option<f64>; 7]", from = "[Option<f64>; 7]")]
pub struct Row {
    /// KL(reference‖ours), in nats.
    pub kld: f64,
    /// Whether the most likely token is the same.
    pub same_top: bool,
    /// `1 − r`, with Pearson's correlation r of the two rows.
    pub decorrelation: f64,
    /// The largest difference of two logits of a token.
    pub max_abs_diff: f64,
    /// Δp of the row's token: our probability minus the reference's.
    pub dp: f64,
    /// Negative log-likelihood of the row's token, of the reference and ours.
    pub likelihood: [f64; 2],
}

impl From<Row> for [Option<f64>; 7] {
    fn from(row: Row) -> Self {
        let same_top = f64::from(u8::from(row.same_top));
        let [reference, ours] = row.likelihood;
        [row.kld, same_top, row.decorrelation, row.max_abs_diff, row.dp, reference, ours]
            .map(|number| Some(number).filter(|number| number.is_finite()))
    }
}

impl From<[Option<f64>; 7]> for Row {
    fn from(numbers: [Option<f64>; 7]) -> Self {
        let [kld, same_top, decorrelation, max_abs_diff, dp, reference, ours] =
            numbers.map(|number| number.unwrap_or(f64::INFINITY));
        Row { kld, same_top: same_top > 0.0, decorrelation, max_abs_diff, dp, likelihood: [reference, ours] }
    }
}

/// How far our logits are from a reference's, over many rows: the figures of `llama-perplexity --kl-divergence`.
#[derive(Debug, Clone, Default)]
pub struct Divergence {
    rows: Vec<Row>,
}

/// What [`Divergence`] has found. Divergences are in nats. All figures are 0 when there were no rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DivergenceReport {
    /// Rows compared.
    pub rows: usize,
    /// Mean of KL(reference‖ours).
    pub kld_mean: f64,
    /// Standard error of that mean.
    pub kld_mean_error: f64,
    /// The largest KL divergence of a row.
    pub kld_max: f64,
    /// Its 99.9th percentile.
    pub kld_p99_9: f64,
    /// Its 99th percentile.
    pub kld_p99: f64,
    /// Its 95th percentile.
    pub kld_p95: f64,
    /// Its 90th percentile.
    pub kld_p90: f64,
    /// Its median.
    pub kld_median: f64,
    /// The fraction of rows with the same most likely token.
    pub top1_agreement: f64,
    /// The mean of the rows' Pearson correlations.
    pub correlation: f64,
    /// The largest difference of two logits of a token.
    pub max_abs_diff: f64,
    /// Mean of Δp: our probability of the row's token minus the reference's.
    pub mean_dp: f64,
    /// Root mean square of Δp.
    pub rms_dp: f64,
    /// The largest |Δp|.
    pub max_dp: f64,
}

impl Divergence {
    /// Compares a row; Δp is taken at the reference's most likely token.
    ///
    /// # Panics
    /// If the rows have different lengths.
    pub fn add(&mut self, reference: &[f32], ours: &[f32]) {
        let row = Comparison::of(reference, ours);
        let token = row.top[0];
        self.add_row(row, reference, ours, token);
    }

    /// Compares a row; Δp is taken at the token that follows in the text, as `llama-perplexity` does.
    ///
    /// # Panics
    /// If the rows have different lengths, or the token no logit.
    pub fn add_next(&mut self, reference: &[f32], ours: &[f32], next: u32) {
        self.add_row(Comparison::of(reference, ours), reference, ours, next as usize);
    }

    fn add_row(&mut self, row: Comparison, reference: &[f32], ours: &[f32], token: usize) {
        let log_p = [(reference, row.log_sum[0]), (ours, row.log_sum[1])]
            .map(|(logits, log_sum)| log_probability(number(logits[token]), log_sum));
        self.rows.push(Row {
            kld: row.kl_divergence,
            same_top: row.top[0] == row.top[1],
            decorrelation: row.decorrelation,
            max_abs_diff: row.max_abs_diff,
            dp: log_p[1].exp() - log_p[0].exp(),
            likelihood: log_p.map(|log_p| -log_p),
        });
    }

    /// The rows, in the order they came.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The perplexity of the rows' tokens, of the reference and ours.
    pub fn perplexity(&self) -> [Perplexity; 2] {
        let mut perplexity = [Perplexity::default(); 2];
        for row in &self.rows {
            perplexity.iter_mut().zip(row.likelihood).for_each(|(perplexity, nll)| perplexity.add(nll));
        }
        perplexity
    }

    /// The figures so far.
    pub fn report(&self) -> DivergenceReport {
        if self.rows.is_empty() {
            return DivergenceReport::default();
        }
        let mut sorted: Vec<f64> = self.rows.iter().map(|row| row.kld).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let mut kld = Moments::default();
        sorted.iter().for_each(|&value| kld.add(value));
        let mean = |figure: fn(&Row) -> f64| self.rows.iter().map(figure).sum::<f64>() / sorted.len() as f64;
        let max = |figure: fn(&Row) -> f64| self.rows.iter().map(figure).fold(0.0, f64::max);
        DivergenceReport {
            rows: sorted.len(),
            kld_mean: kld.mean,
            kld_mean_error: kld.standard_error(),
            kld_max: sorted[sorted.len() - 1],
            kld_p99_9: percentile(&sorted, 0.999),
            kld_p99: percentile(&sorted, 0.99),
            kld_p95: percentile(&sorted, 0.95),
            kld_p90: percentile(&sorted, 0.90),
            kld_median: percentile(&sorted, 0.5),
            top1_agreement: mean(|row| f64::from(u8::from(row.same_top))),
            correlation: 1.0 - mean(|row| row.decorrelation),
            max_abs_diff: max(|row| row.max_abs_diff),
            mean_dp: mean(|row| row.dp),
            rms_dp: mean(|row| row.dp * row.dp).sqrt(),
            max_dp: max(|row| row.dp.abs()),
        }
    }
}

impl FromIterator<Row> for Divergence {
    fn from_iter<T: IntoIterator<Item = Row>>(rows: T) -> Self {
        Divergence { rows: rows.into_iter().collect() }
    }
}

/// `e` to the mean negative log-likelihood of a text's tokens. Prints as `llama-perplexity` does: `PPL = 6.1234 +/- 0.04567`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Perplexity {
    likelihood: Moments,
}

impl Perplexity {
    /// Adds a token's [`negative_log_likelihood`].
    pub fn add(&mut self, negative_log_likelihood: f64) {
        self.likelihood.add(negative_log_likelihood);
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.likelihood.count
    }

    /// The perplexity; NaN before the first token.
    pub fn value(&self) -> f64 {
        if self.tokens() == 0 { f64::NAN } else { self.likelihood.mean.exp() }
    }

    /// The standard error of the perplexity, to first order: its value times the standard error of the mean. NaN
    /// before the second token.
    pub fn standard_error(&self) -> f64 {
        self.value() * self.likelihood.standard_error()
    }
}

impl fmt::Display for Perplexity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PPL = {:.4} +/- {:.5}", self.value(), self.standard_error())
    }
}

/// Mean and spread in one pass (Welford 1962), without the cancellation of a difference of two sums.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: u64,
    mean: f64,
    squares: f64, // Σ (x − mean)²
}

impl Moments {
    fn add(&mut self, x: f64) {
        self.count += 1;
        if self.mean.is_infinite() {
            return; // for good: one impossible token makes the perplexity of the text infinite
        }
        let before = x - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (x - self.mean);
    }

    /// Of the mean; NaN with fewer than two values.
    fn standard_error(&self) -> f64 {
        let count = self.count as f64;
        (self.squares / (count * (count - 1.0))).sqrt()
    }
}

/// Between the two nearest ranks of a sorted list, linearly.
fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let rank = fraction * (sorted.len() - 1) as f64;
    let below = sorted[rank as usize];
    let above = sorted[(rank as usize + 1).min(sorted.len() - 1)];
    let between = rank.fract();
    if between == 0.0 { below } else { below + between * (above - below) }
}

/// The place and value of the largest logit, the first of several; 0 and −∞ when none is possible.
fn largest(logits: &[f32]) -> (usize, f64) {
    let mut top = (0, f32::NEG_INFINITY);
    for (i, &logit) in logits.iter().enumerate() {
        if logit > top.1 {
            top = (i, logit);
        }
    }
    (top.0, f64::from(top.1))
}

/// The logit in `f64`, −∞ for NaN.
fn number(logit: f32) -> f64 {
    f64::from(logit.max(f32::NEG_INFINITY))
}

/// −∞ also when every token is impossible.
fn log_probability(logit: f64, log_sum: f64) -> f64 {
    if logit == f64::NEG_INFINITY { logit } else { logit - log_sum }
}

#[cfg(test)]
mod tests;
