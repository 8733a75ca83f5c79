//! Sequences of a context: side by side, forked, rolled back, windowed; and the bytes they take.

mod files;

use files::{context, feed, last_logits, load, max_difference, open, reference, short_pages};
use std::sync::Arc;
use torque_backend::{Backend, Scalar};
use torque_cpu::Cpu;
use torque_gguf::Gguf;
use torque_kv::{Age, LayerRule, Overflow, Plan, Policy};
use torque_model::{Context, ContextOptions, Error, Model};

/// A model on the CPU, ready to make contexts.
struct Loaded<B: Backend> {
    backend: Arc<B>,
    model: Arc<Model<B>>,
    tokens: Vec<u32>,
}

impl<B: Backend> Loaded<B> {
    fn new(backend: B, name: &str) -> Loaded<B> {
        let backend = Arc::new(backend);
        Loaded { model: load(&*backend, &open(name)), tokens: reference(name).tokens, backend }
    }

    fn context(&self, policy: &Policy, sequences: usize) -> Context<B> {
        context(&self.backend, &self.model, policy, sequences)
    }

    /// Logits of a fresh sequence after `chunks`, each of them one pass; those of the last.
    fn fresh(&self, policy: &Policy, chunks: &[&[u32]]) -> Vec<f32> {
        let mut context = self.context(policy, 1);
        chunks.iter().fold(Vec::new(), |_, chunk| feed(&mut context, 0, chunk, chunk.len()))
    }
}

fn on_cpu(name: &str) -> Loaded<Cpu> {
    Loaded::new(Cpu::new(Some(2), None).unwrap(), name)
}

/// Policies that exercise the cache: exact, and sealed in short pages.
fn policies() -> [Policy; 4] {
    let exact = Policy::uniform("f16", "f16");
    let mixed = Policy {
        sink: 16,
        tail: 16,
        layers: vec![LayerRule { at: "-1".into(), k: Some("f16".into()), v: Some("turbo4".into()) }],
        ..short_pages("turbo3", "q8_0")
    };
    [exact, short_pages("f16", "f16"), short_pages("turbo3", "turbo3"), mixed]
}

fn describe(policy: &Policy) -> String {
    let Policy { k, v, page, tail, sink, .. } = policy;
    format!("{k}/{v} page {page} tail {tail} sink {sink}")
}

/// Windows, no windows, an awkward head size, routed experts.
const MODELS: [&str; 4] = ["llama-hd64", "llama-hd48", "gemma3", "qwen3moe"];

#[test]
fn sequences_side_by_side_are_each_alone() {
    for name in MODELS {
        let loaded = on_cpu(name);
        for policy in policies() {
            // Prompts of three sequences in one batch, then a few tokens of each at a time. Products take
            // their few-tokens or their many-tokens path in both, which differ in their rounding.
            for (prompt, step) in [(20, 1), (31, 2)] {
                let parts: Vec<Vec<&[u32]>> = (0..3)
                    .map(|i| {
                        let tokens = &loaded.tokens[i * 5..][..prompt + 16 * step];
                        let steps = tokens[prompt..].chunks(step);
                        [&tokens[..prompt]].into_iter().chain(steps).collect()
                    })
                    .collect();
                let mut together = loaded.context(&policy, 3);
                let mut alone: Vec<_> = (0..3).map(|_| loaded.context(&policy, 1)).collect();
                for pass in 0..parts[0].len() {
                    let batch: Vec<(usize, &[u32])> = [2, 0, 1].map(|i| (i, parts[i][pass])).to_vec();
                    together.forward(&batch).unwrap();
                    let mut row = 0;
                    for (i, tokens) in batch {
                        let found = last_logits(&mut together, row..row + tokens.len());
                        row += tokens.len();
                        let expected = feed(&mut alone[i], 0, tokens, tokens.len());
                        let difference = max_difference(&expected, &found);
                        // An expert's tokens are as many as chose it, so routed models cross the paths.
                        let gate = if name == "qwen3moe" { 1e-4 } else { 0.0 };
                        let what = format!("{name}, {}: sequence {i}, pass {pass}", describe(&policy));
                        assert!(difference <= gate, "{what}: {difference:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_prompt_and_a_decode_share_a_batch() {
    let loaded = on_cpu("llama-hd64");
    for policy in policies() {
        let (a, b) = loaded.tokens.split_at(48);
        let mut together = loaded.context(&policy, 2);
        together.forward(&[(0, &a[..40])]).unwrap();
        together.forward(&[(1, &b[..30]), (0, &a[40..41])]).unwrap();
        let found = last_logits(&mut together, 0..31);
        let expected =
            [loaded.fresh(&policy, &[&b[..30]]), loaded.fresh(&policy, &[&a[..40], &a[40..41]])].concat();
        let difference = max_difference(&expected, &found);
        assert!(difference < 1e-4, "{}: {difference:e}", describe(&policy));
    }
}

#[test]
fn a_fork_shares_pages_and_goes_its_own_way() {
    for name in ["llama-hd64", "gemma3"] {
        let loaded = on_cpu(name);
        let (prompt, a, b) = (&loaded.tokens[..40], &loaded.tokens[40..70], &loaded.tokens[60..90]);
        for policy in policies() {
            let what = format!("{name}, {}", describe(&policy));
            let mut context = loaded.context(&policy, 3);
            feed(&mut context, 0, prompt, 40);
            // What a fork replaces is forgotten.
            feed(&mut context, 2, b, 30);
            let (shared, _) = context.kv_bytes();
            context.fork(0, 2);
            assert_eq!(context.len(2), 40, "{what}");
            let after = context.kv_bytes().0;
            assert!(after <= shared, "{what}: {after} bytes, {shared} before the fork");
            context.clear(1);
            assert_eq!(context.kv_bytes().0, after, "{what}");

            for (i, (a, b)) in a.chunks(3).zip(b.chunks(3)).enumerate() {
                context.forward(&[(0, a), (2, b)]).unwrap();
                let found = last_logits(&mut context, 0..6);
                if i == 9 {
                    let fresh = |tokens: &[u32]| {
                        let mut context = loaded.context(&policy, 1);
                        feed(&mut context, 0, prompt, 40);
                        let logits = feed(&mut context, 0, tokens, 3);
                        logits[logits.len() - found.len() / 2..].to_vec()
                    };
                    let all = &loaded.tokens;
                    assert!([fresh(&all[40..70]), fresh(&all[60..90])].concat() == found, "{what}");
                }
            }
            // The survivor keeps what it shared.
            context.clear(0);
            let found = feed(&mut context, 2, &loaded.tokens[..1], 1);
            let mut fresh = loaded.context(&policy, 1);
            feed(&mut fresh, 0, prompt, 40);
            feed(&mut fresh, 0, &loaded.tokens[60..90], 3);
            assert!(found == feed(&mut fresh, 0, &loaded.tokens[..1], 1), "{what}");
            assert_eq!(context.kv_bytes().0, fresh.kv_bytes().0, "{what}");
            context.clear(2);
            assert_eq!(context.kv_bytes().0, 0, "{what}");
        }
    }
}

/// Feeds `before`, rolls back to `to` and feeds others; against a fresh sequence of what is left.
fn roll_back(loaded: &Loaded<impl Backend>, policy: &Policy, before: usize, to: usize) -> (f32, Vec<f32>) {
    let (tokens, others) = (&loaded.tokens[..before], &loaded.tokens[before / 2..][..20]);
    let mut context = loaded.context(policy, 1);
    // The same passes on both sides up to where they part.
    feed(&mut context, 0, &tokens[..to], 1);
    let expected = feed(&mut context, 0, others, 1);
    context.clear(0);
    feed(&mut context, 0, tokens, 1);
    context.truncate(0, to).unwrap();
    assert_eq!(context.len(0), to);
    let found = feed(&mut context, 0, others, 1);
    (max_difference(&expected, &found), found)
}

#[test]
fn a_roll_back_inside_the_tail_is_exact() {
    for name in MODELS {
        let loaded = on_cpu(name);
        let tail = |k: &str, v: &str| Policy { tail: 16, ..short_pages(k, v) };
        // Nothing sealed; and pages of the formats sealed before `to` alone.
        for (policy, before, to) in [
            (Policy::uniform("f16", "f16"), 60, 21),
            (tail("turbo3", "q8_0"), 60, 48),
            (tail("turbo3", "q8_0"), 63, 49),
            (tail("q8_0", "turbo2"), 40, 39),
        ] {
            let (difference, _) = roll_back(&loaded, &policy, before, to);
            assert_eq!(difference, 0.0, "{name}, {}: {before} to {to}", describe(&policy));
        }
        // A page sealed behind `to` is exact if its format is the tail's; pages are cut elsewhere.
        for to in [59, 45, 32] {
            let (difference, _) = roll_back(&loaded, &tail("f16", "f16"), 60, to);
            assert!(difference < 1e-5, "{name}: 60 to {to}: {difference:e}");
        }
    }
}

#[test]
fn a_roll_back_into_a_sealed_page_goes_on() {
    for name in ["llama-hd64", "llama-hd48"] {
        let loaded = on_cpu(name);
        let scalar = Loaded::new(Scalar, name);
        for to in [1, 15, 16, 17, 40] {
            let (difference, _) = roll_back(&loaded, &short_pages("f32", "f32"), 60, to);
            assert!(difference < 2e-5, "{name}: f32 to {to}: {difference:e}");
            // What is left of a page keeps the page's codes, so it is not what a fresh page would be; both
            // backends make the same of it, but for codes that rounding flips.
            let policy = short_pages("turbo8", "turbo8");
            let (_, found) = roll_back(&loaded, &policy, 60, to);
            let (_, expected) = roll_back(&scalar, &policy, 60, to);
            let difference = max_difference(&expected, &found);
            println!("{name} to {to}: {difference:.1e}");
            assert!(difference < 1e-2, "{name}: cpu from scalar, turbo8 to {to}: {difference:e}");
        }
    }
}

#[test]
fn a_roll_back_past_a_dropped_window_is_refused_and_changes_nothing() {
    let loaded = on_cpu("gemma3");
    let policy = short_pages("f16", "f16");
    let mut context = loaded.context(&policy, 1);
    feed(&mut context, 0, &loaded.tokens[..80], 1);
    let bytes = context.kv_bytes();
    let error = context.truncate(0, 10).unwrap_err().to_string();
    assert!(error.contains("window of 20"), "{error}");
    assert_eq!((context.len(0), context.kv_bytes()), (80, bytes));
    let found = feed(&mut context, 0, &loaded.tokens[80..], 1);
    let mut fresh = loaded.context(&policy, 1);
    feed(&mut fresh, 0, &loaded.tokens[..80], 1);
    assert!(feed(&mut fresh, 0, &loaded.tokens[80..], 1) == found);
}

/// Sealed bytes of a sequence of `tokens` tokens fed one by one, from the definitions of page, window
/// and format alone.
fn expected_bytes(plan: &Plan, tokens: usize) -> usize {
    let pages = tokens.saturating_sub(plan.tail) / plan.page;
    let tail_start = pages * plan.page;
    let mut bytes = 0;
    for layer in &plan.layers {
        for page in 0..pages {
            let end = (page + 1) * plan.page;
            // The oldest query there may yet be is at `tail_start`, and sees `window` keys.
            if layer.shape.window.is_some_and(|window| end + window <= tail_start + 1) {
                continue;
            }
            for side in &layer.sides {
                // Sealed pages are as old as the newest of them says; a window holds new ones.
                let tiers = plan.tiers.len().min(side.formats.len() - 1);
                let of_tier = |tier: &usize| plan.tiers[tier - 1..].iter().sum::<usize>() * tail_start;
                let tier = (1..=tiers).rev().find(|tier| end * 100 <= of_tier(tier)).unwrap_or(0);
                let format = if page < plan.sink_pages { side.exact } else { side.formats[tier] };
                let (block, block_bytes) = format.head_block(side.head_dim);
                let mean = if format.is_float() { 0 } else { 2 * side.head_dim };
                bytes += side.heads * (plan.page * side.head_dim / block * block_bytes + mean);
            }
        }
    }
    bytes
}

#[test]
fn bytes_are_those_of_the_plan() {
    for name in ["llama-hd64", "llama-hd48", "gemma2", "gemma3"] {
        let loaded = on_cpu(name);
        let policies = policies().into_iter().chain([
            Policy { tail: 40, ..short_pages("q8_0", "turbo2") },
            Policy { sink: 32, ..short_pages("turbo2", "turbo4") },
            Policy { sink: 16, ..short_pages("q8_0", "turbo4") }.with_decay("25,40,35").unwrap(),
            Policy { guided: false, ..short_pages("q8_0", "turbo4") }.with_decay("25,40,35").unwrap(),
        ]);
        for policy in policies {
            let mut context = loaded.context(&policy, 1);
            let plan = context.plan().clone();
            let tail_bytes = plan.tail_bytes(96);
            for len in 1..=loaded.tokens.len() {
                feed(&mut context, 0, &loaded.tokens[len - 1..len], 1);
                let what = format!("{name}, {}: {len} tokens", describe(&policy));
                let (sealed, tail) = context.kv_bytes();
                assert_eq!((sealed, tail), (expected_bytes(&plan, len), tail_bytes), "{what}");
                let bound = plan.sequence_bytes(len, 96);
                assert!(sealed + tail <= bound, "{what}: {} bytes, bound {bound}", sealed + tail);
                assert!(context.kv_read_bytes(0) <= bound, "{what}");
            }
            // The bound is close where windows hide nothing.
            if plan.windows == [None] {
                assert_eq!(plan.sequence_bytes(96, 96), context.kv_bytes().0 + tail_bytes, "{name}");
            }
        }
    }
}

#[test]
fn windows_drop_pages_and_nothing_else_changes() {
    for name in ["gemma2", "gemma3"] {
        let (cpu, scalar) = (on_cpu(name), Loaded::new(Scalar, name));
        let dropping = short_pages("f16", "f16");
        let keeping = Policy { tail: 1000, ..dropping.clone() };
        fn logits(loaded: &Loaded<impl Backend>, policy: &Policy, chunk: usize) -> Vec<f32> {
            feed(&mut loaded.context(policy, 1), 0, &loaded.tokens, chunk)
        }
        for chunk in [1, 5, 48] {
            let difference = max_difference(&logits(&cpu, &keeping, chunk), &logits(&cpu, &dropping, chunk));
            assert!(difference < 1e-5, "{name} on cpu, chunks of {chunk}: {difference:e}");
            let difference =
                max_difference(&logits(&scalar, &keeping, chunk), &logits(&scalar, &dropping, chunk));
            assert!(difference < 1e-5, "{name} on scalar, chunks of {chunk}: {difference:e}");
        }
        // Layers with a window stop growing, the others do not.
        let mut context = cpu.context(&dropping, 1);
        let plan = context.plan().clone();
        let global =
            plan.windows.iter().position(Option::is_none).expect("every fifth or second layer is global");
        let mut windowed = Vec::new();
        for chunk in cpu.tokens.chunks(16) {
            feed(&mut context, 0, chunk, 16);
            let pages = context.len(0) / 16;
            windowed.push(context.kv_bytes().0 - pages * plan.page_bytes(Age::Tier(0), global));
        }
        assert!(
            windowed[0] < windowed[1] && windowed[2..].iter().all(|&b| b == windowed[2]),
            "{name}: {windowed:?}"
        );
    }
}

#[test]
fn nothing_seals_before_page_and_tail_are_full() {
    let loaded = on_cpu("llama-hd64");
    let run = |policy: &Policy| {
        let mut context = loaded.context(policy, 1);
        let logits = feed(&mut context, 0, &loaded.tokens, 1);
        (logits, context.kv_bytes().0)
    };
    let (exact, none) = run(&Policy::uniform("f16", "f16"));
    assert_eq!(none, 0);
    let (same, none) = run(&Policy::uniform("f16", "turbo2"));
    assert_eq!((none, max_difference(&exact, &same) < 2e-2), (0, true));
}

#[test]
fn errors_change_nothing() {
    fn check<B: Backend>(backend: B, gguf: &Gguf, tokens: &[u32]) {
        let backend = Arc::new(backend);
        let model = load(&*backend, gguf);
        let options = ContextOptions {
            context: 40,
            batch: 32,
            sequences: 2,
            policy: short_pages("turbo3", "q8_0"),
            overflow: Overflow::Stop,
            prefix_bytes: 0,
        };
        let make = || Context::new(backend.clone(), model.clone(), options.clone()).unwrap();
        let mut context = make();
        feed(&mut context, 0, &tokens[..30], 10);
        feed(&mut context, 1, &tokens[30..50], 10);
        let bytes = context.kv_bytes();
        let vocabulary = model.config.vocabulary as u32;
        for (batch, part) in [
            (vec![(0, &tokens[..11])], "context of 40 tokens is full: 30 are there and 11 more"),
            (vec![(1, &tokens[..2]), (0, &tokens[..11])], "30 are there"),
            (vec![(1, &tokens[..2]), (0, &[vocabulary][..])], "outside the vocabulary"),
            (vec![(1, &[u32::MAX][..])], "token 4294967295 is outside"),
        ] {
            let error = context.forward(&batch).unwrap_err();
            assert!(matches!(error, Error::ContextFull { .. } | Error::Token { .. }), "{error:?}");
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!((context.len(0), context.len(1), context.kv_bytes()), (30, 20, bytes), "{part}");
        }
        let error = context.prefill(0, tokens, &mut |_| true).unwrap_err();
        assert!(matches!(error, Error::ContextFull { .. }), "{error:?}");
        assert_eq!((context.len(0), context.kv_bytes()), (30, bytes));

        let found = feed(&mut context, 0, &tokens[30..40], 10);
        let mut fresh = make();
        feed(&mut fresh, 0, &tokens[..30], 10);
        assert!(found == feed(&mut fresh, 0, &tokens[30..40], 10), "{}", backend.name());
    }
    let (gguf, tokens) = (open("llama-hd64"), reference("llama-hd64").tokens);
    check(Scalar, &gguf, &tokens);
    check(Cpu::new(Some(2), None).unwrap(), &gguf, &tokens);
}

#[test]
fn no_tokens_are_nothing() {
    let loaded = on_cpu("llama-hd64");
    let mut context = loaded.context(&Policy::default(), 2);
    let expected = loaded.fresh(&Policy::default(), &[&loaded.tokens[..9]]);
    context.prefill(0, &[], &mut |_| true).unwrap();
    context.forward(&[]).unwrap();
    context.forward(&[(0, &[])]).unwrap();
    context.truncate(0, 5).unwrap();
    context.clear(0);
    assert!(context.is_empty(0));
    context.forward(&[(1, &[]), (0, &loaded.tokens[..9])]).unwrap();
    assert_eq!((context.len(0), context.is_empty(1)), (9, true));
    assert!(expected == last_logits(&mut context, 0..9));
}
