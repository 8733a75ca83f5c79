//! The stages against distributions worked out by hand, and the statistics of the draws.

use super::*;

/// The logits of these probabilities.
fn logits(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() + 3.0).collect()
}

/// Parameters with only these stages in the chain.
fn only(samplers: &[&str], change: impl FnOnce(&mut SamplerParams)) -> SamplerParams {
    let samplers = samplers.iter().map(|name| name.to_string()).collect();
    let mut params = SamplerParams { samplers, seed: Some(1), ..SamplerParams::default() };
    change(&mut params);
    params
}

/// The tokens that may be drawn and their probabilities, by token.
fn distribution(sampler: &mut Sampler, logits: &[f32]) -> Vec<(u32, f64)> {
    sampler.load(logits);
    sampler.run_chain();
    let max = sampler.candidates.max();
    let total = sampler.candidates.total_weight(max);
    let mut list: Vec<_> =
        sampler.candidates.iter().map(|c| (c.id, f64::from(weight(c.logit, max)) / total)).collect();
    list.sort_by_key(|(id, _)| *id);
    list
}

/// What the chain leaves of a distribution after a history.
#[track_caller]
fn check(params: SamplerParams, history: &[u32], logits: &[f32], expected: &[(u32, f64)]) {
    let mut sampler = Sampler::new(params, logits.len()).unwrap();
    history.iter().for_each(|&token| sampler.accept(token));
    let found = distribution(&mut sampler, logits);
    let close = |(a, b): (&(u32, f64), &(u32, f64))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5;
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(close),
        "found {found:?}, expected {expected:?}"
    );
}

const FOUR: [f32; 4] = [0.2, 0.4, 0.1, 0.3];

#[test]
fn truncating_stages() {
    let ties = [0.0; 4];
    let four = logits(&FOUR);
    let all = [(0, 0.2), (1, 0.4), (2, 0.1), (3, 0.3)];
    let top1 = [(1, 1.0)];
    let top2 = [(1, 4.0 / 7.0), (3, 3.0 / 7.0)];
    let top3 = [(0, 2.0 / 9.0), (1, 4.0 / 9.0), (3, 3.0 / 9.0)];

    check(only(&[], |_| ()), &[], &four, &all);

    let top_k = |k| only(&["top_k"], |p| p.top_k = k);
    check(top_k(1), &[], &four, &top1);
    check(top_k(2), &[], &four, &top2);
    check(top_k(3), &[], &four, &top3);
    for k in [-1, 0, 4, 5, i32::MAX] {
        check(top_k(k), &[], &four, &all);
    }
    check(top_k(2), &[], &ties, &[(0, 0.5), (1, 0.5)]);

    let top_p = |bound| only(&["top_p"], |p| p.top_p = bound);
    check(top_p(0.0), &[], &four, &top1);
    check(top_p(0.39), &[], &four, &top1);
    check(top_p(0.41), &[], &four, &top2);
    check(top_p(0.71), &[], &four, &top3);
    check(top_p(0.91), &[], &four, &all);
    check(top_p(1.0), &[], &four, &all);

    let min_p = |bound| only(&["min_p"], |p| p.min_p = bound);
    check(min_p(0.0), &[], &four, &all);
    check(min_p(0.24), &[], &four, &all);
    check(min_p(0.26), &[], &four, &top3);
    check(min_p(0.51), &[], &four, &top2);
    check(min_p(1.0), &[], &four, &top1);
    check(min_p(1.0), &[], &ties, &[(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]);

    // The entropy is 1.280 nats; the surprises are 1.609, 0.916, 2.303, 1.204. Nearest first: 3, 0, 1, 2.
    let typical = |bound| only(&["typ_p"], |p| p.typical_p = bound);
    check(typical(0.0), &[], &four, &[(3, 1.0)]);
    check(typical(0.29), &[], &four, &[(3, 1.0)]);
    check(typical(0.31), &[], &four, &[(0, 0.4), (3, 0.6)]);
    check(typical(0.51), &[], &four, &top3);
    check(typical(0.91), &[], &four, &all);
    check(typical(1.0), &[], &four, &all);

    // Mean 2 and σ = √2 of 0 … 4; what is impossible does not count.
    let ladder = [0.0, 1.0, 2.0, 3.0, 4.0, f32::NEG_INFINITY];
    let sigma = |n| only(&["top_n_sigma"], |p| p.top_n_sigma = n);
    let e = 1.0 + (-1f64).exp();
    check(sigma(0.5), &[], &ladder, &[(4, 1.0)]);
    check(sigma(1.0), &[], &ladder, &[(3, 1.0 - 1.0 / e), (4, 1.0 / e)]);
    check(sigma(-1.0), &[], &four, &all);
}

#[test]
fn xtc_removes_all_but_the_least_of_the_likely() {
    let four = logits(&FOUR);
    let all = [(0, 0.2), (1, 0.4), (2, 0.1), (3, 0.3)];
    let xtc = |probability, threshold| {
        only(&["xtc"], |p| {
            p.xtc_probability = probability;
            p.xtc_threshold = threshold;
        })
    };
    check(xtc(1.0, 0.15), &[], &four, &[(0, 2.0 / 3.0), (2, 1.0 / 3.0)]);
    check(xtc(1.0, 0.25), &[], &four, &[(0, 2.0 / 6.0), (2, 1.0 / 6.0), (3, 3.0 / 6.0)]);
    check(xtc(1.0, 0.35), &[], &four, &all);
    check(xtc(1.0, 0.0), &[], &four, &[(2, 1.0)]);
    check(xtc(0.0, 0.15), &[], &four, &all);
    check(xtc(1.0, 0.51), &[], &four, &all);

    // Half of the time it acts.
    let mut sampler = Sampler::new(xtc(0.5, 0.15), 4).unwrap();
    let acted = (0..1000).filter(|_| distribution(&mut sampler, &four).len() == 2).count();
    assert!((450..550).contains(&acted), "{acted}");
}

#[test]
fn temperature_sharpens_and_zero_is_greedy() {
    let four = logits(&FOUR);
    let temperature = |t| only(&["temperature"], |p| p.temperature = t);
    check(temperature(1.0), &[], &four, &[(0, 0.2), (1, 0.4), (2, 0.1), (3, 0.3)]);
    check(
        temperature(0.5),
        &[],
        &four,
        &[(0, 4.0 / 30.0), (1, 16.0 / 30.0), (2, 1.0 / 30.0), (3, 9.0 / 30.0)],
    );
    check(temperature(f32::MAX), &[], &four, &[(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]);
    check(temperature(f32::MIN_POSITIVE), &[], &four, &[(0, 0.0), (1, 1.0), (2, 0.0), (3, 0.0)]);
    check(temperature(0.0), &[], &four, &[(1, 1.0)]);
    check(temperature(0.0), &[], &[1.0, 5.0, 5.0], &[(1, 1.0)]);
}

/// The logits after a stage that changes them, shown as a distribution over `[2, −1, 0]`.
#[test]
fn penalties_follow_their_formulas() {
    let row = [2.0, -1.0, 0.0];
    let softmax = |logits: [f64; 3]| -> Vec<(u32, f64)> {
        let total: f64 = logits.iter().map(|x| x.exp()).sum();
        logits.iter().enumerate().map(|(i, x)| (i as u32, x.exp() / total)).collect()
    };
    let penalties = |repeat, frequency, presence, last_n| {
        only(&["penalties"], |p| {
            p.repeat_penalty = repeat;
            p.frequency_penalty = frequency;
            p.presence_penalty = presence;
            p.repeat_last_n = last_n;
        })
    };
    let history = [0, 1, 0, 99];
    check(penalties(1.0, 0.0, 0.0, -1), &history, &row, &softmax([2.0, -1.0, 0.0]));
    check(penalties(2.0, 0.0, 0.0, -1), &history, &row, &softmax([1.0, -2.0, 0.0]));
    check(penalties(1.0, 0.5, 0.0, -1), &history, &row, &softmax([1.0, -1.5, 0.0]));
    check(penalties(1.0, 0.0, 0.5, -1), &history, &row, &softmax([1.5, -1.5, 0.0]));
    check(penalties(2.0, 0.5, 0.25, -1), &history, &row, &softmax([-0.25, -2.75, 0.0]));
    check(penalties(1.0, 0.5, 0.0, 2), &history, &row, &softmax([1.5, -1.0, 0.0]));
    check(penalties(1.0, 0.5, 0.0, 0), &history, &row, &softmax([2.0, -1.0, 0.0]));
    check(penalties(1.0, -0.5, 0.0, -1), &history, &row, &softmax([3.0, -0.5, 0.0]));

    // After top-k the list is short and out of order, and the penalties find their tokens all the same.
    let late = only(&["top_k", "penalties"], |p| {
        p.top_k = 2;
        p.frequency_penalty = 1.0;
    });
    check(late, &history, &row, &[(0, 0.5), (2, 0.5)]);

    let dry = |base, allowed, last_n| {
        only(&["dry"], |p| {
            p.dry_multiplier = 0.5;
            p.dry_base = base;
            p.dry_allowed_length = allowed;
            p.dry_penalty_last_n = last_n;
        })
    };
    // "1 2" is there before, then came 0: the repeat would be 0's, of two tokens.
    let history = [1, 2, 0, 1, 2];
    check(dry(3.0, 2, -1), &history, &row, &softmax([1.5, -1.0, 0.0]));
    check(dry(3.0, 1, -1), &history, &row, &softmax([0.5, -1.0, 0.0]));
    check(dry(3.0, 3, -1), &history, &row, &softmax([2.0, -1.0, 0.0]));
    check(dry(3.0, 1, 4), &history, &row, &softmax([1.5, -1.0, 0.0]));
    check(dry(3.0, 1, 0), &history, &row, &softmax([2.0, -1.0, 0.0]));
    check(dry(0.9, 1, -1), &history, &row, &softmax([2.0, -1.0, 0.0]));
    let mut breaker = dry(3.0, 1, -1);
    breaker.dry_sequence_breakers = vec![vec![0]];
    check(breaker, &history, &row, &softmax([2.0, -1.0, 0.0]));

    let bias = only(&["temperature"], |p| {
        p.temperature = 1.0;
        p.logit_bias = vec![(0, -2.0), (1, f32::NEG_INFINITY)];
    });
    check(bias, &[], &row, &[(0, 0.5), (1, 0.0), (2, 0.5)]);
}

#[test]
fn stages_run_in_the_order_given() {
    // 0.4 0.3 0.2 0.1: top-p 0.75 keeps three, then top-k two; or top-k two, then top-p keeps both.
    let four = logits(&[0.4, 0.3, 0.2, 0.1]);
    // At temperature 0.25 the first token has 0.72 of it all, and top-p 0.7 keeps it alone.
    let order = |samplers: &[&str]| {
        only(samplers, |p| {
            p.top_p = 0.7;
            p.temperature = 0.25;
        })
    };
    check(order(&["temp", "nucleus"]), &[], &four, &[(0, 1.0)]);
    check(order(&["top-p", "temperature"]), &[], &four, &[(0, 256.0 / 337.0), (1, 81.0 / 337.0)]);
}

/// The list names what the default chain does; each name and alias finds one stage.
#[test]
fn names_are_unique() {
    let names: Vec<_> = STAGES.iter().flat_map(|s| s.aliases.iter().chain([&s.name])).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(!names[..i].contains(name), "{name} is there twice");
        assert!(stages::find(name).is_some());
        assert!(stages::find(&name.replace('_', "-")).is_some());
    }
    assert!(stages::find("").is_none());
}

#[test]
fn impossible_tokens_are_never_drawn() {
    let rows: [(&[f32], u32); 6] = [
        (&[f32::NAN, 1.0, f32::NAN], 1),
        (&[f32::NEG_INFINITY, f32::NEG_INFINITY, -1e30], 2),
        (&[f32::NAN; 3], 0),
        (&[f32::NEG_INFINITY; 3], 0),
        (&[0.0, f32::INFINITY, 0.0], 1),
        (&[f32::MIN, f32::MAX, f32::MIN], 1),
    ];
    // Every stage alone, each with a parameter that makes it act, then all together.
    let active = |samplers: &[&str]| {
        only(samplers, |p| {
            p.top_k = 2;
            p.typical_p = 0.5;
            p.top_n_sigma = 1.0;
            p.repeat_penalty = 1.5;
            p.dry_multiplier = 1e38;
            p.dry_allowed_length = 0;
            p.xtc_probability = 1.0;
        })
    };
    let names: Vec<_> = STAGES.iter().map(|stage| stage.name).collect();
    for chain in names.iter().map(std::slice::from_ref).chain([&names[..], &[]]) {
        for (row, expected) in rows {
            let mut sampler = Sampler::new(active(chain), row.len()).unwrap();
            [2, 1, 1, 5].into_iter().for_each(|token| sampler.accept(token));
            assert_eq!(sampler.sample(row), expected, "{chain:?} {row:?}");
        }
    }
}

/// Pearson's χ² of 100,000 draws against the distribution, at a fixed seed. The 99.9 % quantile for 9 degrees of freedom
/// is 27.88.
#[test]
fn draws_follow_the_distribution() {
    let probabilities = [0.01, 0.3, 0.02, 0.05, 0.12, 0.2, 0.03, 0.15, 0.08, 0.04f32];
    let row = logits(&probabilities);
    for samplers in [&[][..], &["top_k"]] {
        let mut sampler = Sampler::new(only(samplers, |_| ()), row.len()).unwrap();
        let draws = 100_000;
        let mut counts = [0u32; 10];
        (0..draws).for_each(|_| counts[sampler.sample(&row) as usize] += 1);
        let chi_square: f64 = probabilities
            .iter()
            .zip(counts)
            .map(|(&p, count)| {
                let expected = f64::from(p) * f64::from(draws);
                (f64::from(count) - expected).powi(2) / expected
            })
            .sum();
        assert!(chi_square < 27.88, "χ² = {chi_square}, counts {counts:?}");
    }
}

/// A row of logits that looks like a model's: a few large, a long tail.
fn model_row(vocab: usize, step: usize) -> Vec<f32> {
    let mut rng = Rng::new(step as u64);
    (0..vocab).map(|_| ((rng.uniform() + 1e-9).ln() * -1.5) as f32 - 2.0).collect()
}

fn generate(sampler: &mut Sampler, vocab: usize, tokens: usize) -> Vec<u32> {
    (0..tokens)
        .map(|step| {
            let token = sampler.sample(&model_row(vocab, step));
            sampler.accept(token);
            token
        })
        .collect()
}

#[test]
fn a_seed_gives_the_same_tokens() {
    let params = |seed| SamplerParams { seed, frequency_penalty: 0.1, ..SamplerParams::default() };
    let mut sampler = Sampler::new(params(Some(42)), 1000).unwrap();
    let tokens = generate(&mut sampler, 1000, 50);
    sampler.reset();
    assert_eq!(generate(&mut sampler, 1000, 50), tokens);
    assert_ne!(generate(&mut Sampler::new(params(Some(43)), 1000).unwrap(), 1000, 50), tokens);

    // A random seed, once known, gives its tokens again.
    let mut random = Sampler::new(params(None), 1000).unwrap();
    let tokens = generate(&mut random, 1000, 50);
    let mut again = Sampler::new(params(Some(random.seed())), 1000).unwrap();
    assert_eq!(generate(&mut again, 1000, 50), tokens);
}

#[test]
fn tokens_outside_the_vocabulary_are_named() {
    let bias = only(&[], |p| p.logit_bias = vec![(4, 1.0)]);
    let error = Sampler::new(bias, 4).unwrap_err().to_string();
    assert_eq!(error, "--logit-bias: expected a token below 4, found 4");
    let breaker = only(&[], |p| p.dry_sequence_breakers = vec![vec![0, 9]]);
    let error = Sampler::new(breaker, 4).unwrap_err().to_string();
    assert_eq!(error, "--dry-sequence-breaker: expected a token below 4, found 9");
}

/// These tokens are part of what a seed promises: they change only when the sampler does, never with the platform.
#[test]
fn golden_tokens() {
    let row: Vec<f32> = (0..1000).map(|i| (i * 7919 % 1000) as f32 / 64.0).collect();
    let chains: [(&[&str], [u32; 8]); 3] = [
        (&[], [742, 173, 284, 342, 50, 877, 235, 815]),
        (&["typ_p", "temperature"], [667, 976, 680, 766, 507, 62, 13, 705]),
        (&["dry", "top_k", "top_p", "xtc", "temperature"], [605, 877, 198, 198, 877, 877, 457, 926]),
    ];
    for (chain, expected) in chains {
        let params = only(chain, |p| {
            p.seed = Some(42);
            p.typical_p = 0.6;
            p.dry_multiplier = 0.8;
            p.xtc_probability = 0.5;
            p.xtc_threshold = 0.02;
        });
        let mut sampler = Sampler::new(params, row.len()).unwrap();
        let tokens = expected.map(|_| {
            let token = sampler.sample(&row);
            sampler.accept(token);
            token
        });
        assert_eq!(tokens, expected, "{chain:?}");
    }
}

/// `cargo test --release -p torque-engine sampling_time -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn sampling_time() {
    let vocab = 151_936;
    let row = model_row(vocab, 0);
    for samplers in [&["temperature"][..], &["top_k"], &["top_p"], &["typ_p"], &["min_p"]] {
        let mut sampler = Sampler::new(only(samplers, |p| p.typical_p = 0.9), vocab).unwrap();
        time(&format!("{samplers:?}"), &mut sampler, &row);
    }
    time("default", &mut Sampler::new(SamplerParams::default(), vocab).unwrap(), &row);
    let greedy = SamplerParams { temperature: 0.0, ..SamplerParams::default() };
    time("greedy", &mut Sampler::new(greedy, vocab).unwrap(), &row);
    let dry = SamplerParams { dry_multiplier: 0.8, ..SamplerParams::default() };
    let mut sampler = Sampler::new(dry, vocab).unwrap();
    (0..32768).for_each(|i| sampler.accept(i % 1000));
    time("dry over 32K tokens", &mut sampler, &row);

    fn time(what: &str, sampler: &mut Sampler, row: &[f32]) {
        sampler.sample(row);
        let best = (0..20).map(|_| {
            let start = std::time::Instant::now();
            std::hint::black_box(sampler.sample(row));
            start.elapsed()
        });
        println!("{what}: {:?}", best.min().unwrap());
    }
}
