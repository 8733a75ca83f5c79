//! The stages of the chain, each a function that shortens or changes the list of candidates.

use super::candidates::weight;
use super::{Sampler, dry};

/// A stage that `--samplers` can name.
#[derive(Debug)]
pub struct Stage {
    /// Its name, as llama.cpp prints it.
    pub name: &'static str,
    /// Other names llama.cpp accepts for it.
    pub aliases: &'static [&'static str],
    pub(super) apply: fn(&mut Sampler),
}

/// Every stage, in the order of the default chain.
pub const STAGES: &[Stage] = &[
    Stage { name: "penalties", aliases: &[], apply: penalties },
    Stage { name: "dry", aliases: &[], apply: dry },
    Stage { name: "top_n_sigma", aliases: &["top_nsigma"], apply: top_n_sigma },
    Stage { name: "top_k", aliases: &[], apply: top_k },
    Stage { name: "typ_p", aliases: &["typ", "typical", "typical_p"], apply: typical_p },
    Stage { name: "top_p", aliases: &["nucleus"], apply: top_p },
    Stage { name: "min_p", aliases: &[], apply: min_p },
    Stage { name: "xtc", aliases: &[], apply: xtc },
    Stage { name: "temperature", aliases: &["temp"], apply: temperature },
];

/// The stage of this name or alias; `-` and `_` are the same.
pub fn find(name: &str) -> Option<&'static Stage> {
    let name = name.replace('-', "_");
    STAGES.iter().find(|stage| stage.name == name || stage.aliases.contains(&&name[..]))
}

/// Repetition (Keskar et al. 2019, arXiv:1909.05858, with the sign of the logit respected), frequency and presence
/// penalties for the tokens among the last `repeat_last_n`.
fn penalties(s: &mut Sampler) {
    let p = &s.params;
    if (p.repeat_penalty, p.frequency_penalty, p.presence_penalty) == (1.0, 0.0, 0.0) {
        return;
    }
    for &token in last(&s.history, p.repeat_last_n) {
        s.tally.update(token, |count| count + 1);
    }
    s.candidates.adjust(&s.tally, |_, count, logit| {
        let scaled = if logit <= 0.0 { logit * p.repeat_penalty } else { logit / p.repeat_penalty };
        scaled - count as f32 * p.frequency_penalty - p.presence_penalty
    });
    s.tally.clear();
}

/// Lowers what would continue a repeat; see the module `dry`.
fn dry(s: &mut Sampler) {
    let p = &s.params;
    if p.dry_multiplier == 0.0 || p.dry_base < 1.0 {
        return;
    }
    let window = last(&s.history, p.dry_penalty_last_n);
    s.dry.tally_repeats(window, p.dry_allowed_length as usize, &mut s.tally);
    // A breaker may not be punished for its repetition: it is what ends one.
    let breakers = &s.dry;
    s.candidates.adjust(&s.tally, |token, length, logit| {
        let beyond = length - 1 - p.dry_allowed_length;
        let penalty = dry::penalty(p.dry_multiplier, p.dry_base, beyond);
        if breakers.is_breaker(token) { logit } else { logit - penalty }
    });
    s.tally.clear();
}

/// Keeps the logits above `max − n·σ` (Tang et al. 2024, arXiv:2411.07641). Tokens that are impossible do not count for σ.
fn top_n_sigma(s: &mut Sampler) {
    let n = f64::from(s.params.top_n_sigma);
    if n <= 0.0 {
        return;
    }
    let logits = || s.candidates.iter().map(|c| f64::from(c.logit)).filter(|logit| logit.is_finite());
    let count = logits().count().max(1) as f64;
    let mean = logits().sum::<f64>() / count;
    let variance = logits().map(|logit| (logit - mean) * (logit - mean)).sum::<f64>() / count;
    let bound = f64::from(s.candidates.max()) - n * variance.sqrt();
    s.candidates.retain(|logit| f64::from(logit) >= bound);
}

/// Keeps the `k` most likely tokens.
fn top_k(s: &mut Sampler) {
    let Ok(k @ 1..) = usize::try_from(s.params.top_k) else { return };
    s.candidates.sort_prefix(k);
    s.candidates.truncate(k);
}

/// Keeps the tokens nearest to typical (Meister et al. 2022, arXiv:2202.00666): those whose surprise `−ln p` differs
/// least from its expected value, the entropy. `−ln p = ln Σ − logit`, so the difference is `|logit − Σ p·logit|`.
fn typical_p(s: &mut Sampler) {
    let bound = f64::from(s.params.typical_p);
    if bound >= 1.0 {
        return;
    }
    let max = s.candidates.max();
    let total = s.candidates.total_weight(max);
    let weighted = s.candidates.iter().map(|c| (f64::from(weight(c.logit, max)), f64::from(c.logit)));
    let mean = weighted.filter(|(weight, _)| *weight > 0.0).map(|(w, logit)| w * logit).sum::<f64>() / total;
    s.candidates.sort_by_key(|logit| (f64::from(logit) - mean).abs());
    let mut cumulative = 0.0;
    let enough = s.candidates.iter().position(|c| {
        cumulative += f64::from(weight(c.logit, max));
        cumulative > bound * total
    });
    s.candidates.truncate(enough.map_or(s.candidates.len(), |last| last + 1));
}

/// Keeps the most likely tokens that together reach probability `p` (Holtzman et al. 2020, arXiv:1904.09751).
fn top_p(s: &mut Sampler) {
    let bound = f64::from(s.params.top_p);
    if bound >= 1.0 {
        return;
    }
    let max = s.candidates.max();
    let total = s.candidates.total_weight(max);
    let mut cumulative = 0.0;
    // The nucleus is nearly always small, so only as much of the list is sorted as turns out to be needed.
    let mut sorted = 0;
    for i in 0..s.candidates.len() {
        if i == sorted {
            sorted = (4 * sorted).max(64);
            s.candidates.sort_prefix(sorted);
        }
        cumulative += f64::from(weight(s.candidates.at(i).logit, max));
        if cumulative >= bound * total {
            s.candidates.truncate(i + 1);
            return;
        }
    }
}

/// Keeps the tokens at least `p` times as likely as the most likely one (Nguyen et al. 2024, arXiv:2407.01082).
fn min_p(s: &mut Sampler) {
    let bound = s.params.min_p;
    if bound <= 0.0 {
        return;
    }
    let max = s.candidates.max();
    s.candidates.retain(|logit| weight(logit, max) >= bound);
}

/// "Exclude top choices", p-e-w's proposal (github.com/oobabooga/text-generation-webui/pull/6335): now and then
/// remove every token that is likely enough, except the least likely of them.
fn xtc(s: &mut Sampler) {
    let (probability, threshold) = (f64::from(s.params.xtc_probability), f64::from(s.params.xtc_threshold));
    if probability == 0.0 || threshold > 0.5 || s.rng.uniform() >= probability {
        return;
    }
    let max = s.candidates.max();
    let bound = threshold * s.candidates.total_weight(max);
    let likely = s.candidates.iter().filter(|c| f64::from(weight(c.logit, max)) >= bound).count();
    if likely >= 2 {
        s.candidates.sort_prefix(likely);
        s.candidates.drop_first(likely - 1);
    }
}

/// Divides the logits by the temperature; at 0 only the most likely token stays.
fn temperature(s: &mut Sampler) {
    let (temperature, max) = (s.params.temperature, s.candidates.max());
    if temperature == 0.0 {
        s.candidates.sort_prefix(1);
        s.candidates.truncate(1);
    } else {
        // Softmax does not see a constant, and without it no quotient can overflow to +∞.
        s.candidates.rescale(|logit| (logit - max) / temperature);
    }
}

/// The last `n` tokens, all of them for −1.
fn last(history: &[u32], n: i32) -> &[u32] {
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    &history[history.len().saturating_sub(n)..]
}
