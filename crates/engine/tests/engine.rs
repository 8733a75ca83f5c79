//! The engine from outside: evaluation, generation, sessions, memory, and synthetic models, on every backend.

use std::path::{Path, PathBuf};
use torque_engine::evaluate::{self, Chunks};
use torque_engine::measure::Perplexity;
use torque_engine::sampler::{Sampler, SamplerParams};
use torque_engine::synthetic::{self, SHAPES};
use torque_engine::tokenizer::Encode;
use torque_engine::{
    BackendKind, Engine, EngineOptions, Error, Finish, Generation, Policy, Request, Session, SessionOptions,
    generate,
};

fn shared(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(path)
}

fn options(backend: BackendKind) -> EngineOptions {
    EngineOptions { backend, threads: Some(2), isa: None }
}

fn open(file: &str, backend: BackendKind) -> Engine {
    Engine::open(shared(file), &options(backend)).unwrap_or_else(|error| panic!("{error}"))
}

fn exact(context: usize) -> SessionOptions {
    SessionOptions {
        context: Some(context),
        batch: 64,
        policy: Policy::uniform("f32", "f32"),
        ..SessionOptions::default()
    }
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d.is_nan() { f32::INFINITY } else { d.max(max) })
}

#[test]
fn reference_logits_are_met_on_every_backend() {
    for (kind, backend) in BackendKind::ALL {
        for name in ["llama-hd64", "gemma2", "qwen3moe", "llama-q-Q4_0"] {
            let engine = open(&format!("zoo/{name}.gguf"), backend);
            assert_eq!(engine.backend(), kind);
            let path = shared(&format!("zoo/{name}.safetensors"));
            let report = evaluate::reference(&engine, &path, "logits_ref", &exact(96), &|_| true).unwrap();
            // The gates of the zoo: float activations, or activations rounded to 8 bits.
            let rounds = engine.backend() == "cpu" && name.contains("-q-");
            let (max, kld) = if rounds { (1.0, 5e-3) } else { (2e-4, 1e-8) };
            assert!(report.max_abs_diff < max && report.kld_mean < kld, "{name} on {kind}: {report:?}");
            assert!(rounds || report.top1_agreement == 1.0, "{name} on {kind}");
            let some =
                evaluate::reference(&engine, &path, "logits_ref", &exact(96), &|row| row % 3 == 0).unwrap();
            assert_eq!(some.rows, report.rows.div_ceil(3));
        }
    }
}

#[test]
fn a_reference_of_another_model_is_refused() {
    let engine = open("zoo/llama-hd64.gguf", BackendKind::Cpu);
    let check = |file: &str, target: &str, part: &str| {
        let error = evaluate::reference(&engine, &shared(file), target, &exact(96), &|_| true)
            .unwrap_err()
            .to_string();
        assert!(error.contains(part) && error.contains(file), "{error}");
    };
    check("zoo/qwen3.safetensors", "logits_ref", "vocabulary of 400");
    check("zoo/llama-hd64.safetensors", "logits", "no tensor `logits`");
    check("zoo/llama-hd64.safetensors", "tokens", "I32; expected F32 or F16");
    check("zoo/README.md", "logits_ref", "not a safetensors file");
    check("zoo/nothing.safetensors", "logits_ref", "No such file");
}

#[test]
fn perplexity_is_what_others_measure() {
    let engine = open("demo/demo.gguf", BackendKind::Cpu);
    let text = std::fs::read_to_string(shared("demo/eval.txt")).unwrap();
    let tokens = engine.tokenizer().encode(&text, Encode { add_special: true, parse_special: false });
    let mut seen = Vec::new();
    let chunks = Chunks::new(&engine, &tokens, 1024, Some(8), None).unwrap();
    let progress = &mut |done, of, _: &Perplexity| seen.push((done, of));
    let perplexity = evaluate::perplexity(&engine, &chunks, &SessionOptions::default(), progress).unwrap();
    println!("{perplexity}");
    assert_eq!(seen, (1..=8).map(|i| (i, 8)).collect::<Vec<_>>());
    // The last token of a chunk has no successor to predict.
    assert_eq!(perplexity.tokens(), 8 * 511);
    let ratio = perplexity.value() / 81.27;
    assert!((0.99..1.01).contains(&ratio), "{perplexity}; llama.cpp says 81.27");
}

#[test]
fn perplexity_is_the_same_on_every_backend() {
    let [cpu, scalar] = [BackendKind::Cpu, BackendKind::Scalar].map(|backend| {
        let engine = open("zoo/llama-hd64.gguf", backend);
        let tokens: Vec<u32> = (0..200).map(|i| (i * i * 31 + i * 7) % 400).collect();
        let chunks = Chunks::new(&engine, &tokens, 64, None, None).unwrap();
        evaluate::perplexity(&engine, &chunks, &exact(64), &mut |_, _, _| {}).unwrap()
    });
    assert_eq!((cpu.tokens(), scalar.tokens()), (3 * 31, 3 * 31));
    assert!((cpu.value() / scalar.value() - 1.0).abs() < 1e-5, "{cpu} and {scalar}");
}

#[test]
fn too_short_a_text_is_an_error() {
    let engine = open("zoo/llama-hd64.gguf", BackendKind::Cpu);
    for (tokens, context) in [(63, 64), (0, 64), (10, 1), (10, 0)] {
        let tokens = vec![5; tokens];
        let result = Chunks::new(&engine, &tokens, context, None, None);
        assert!(matches!(result, Err(Error::TextTooShort { .. })), "{} of {context}", tokens.len());
    }
}

/// A session with a prompt of the model's own reference tokens.
fn prompted(engine: &Engine, prompt: &[u32], options: &SessionOptions) -> Session {
    let mut session = engine.session(options).unwrap();
    session.append(prompt).unwrap();
    session
}

/// The greedy continuation of a session: text and what happened.
fn greedy(engine: &Engine, session: &mut Session, request: &Request) -> (String, Generation) {
    let params = SamplerParams { temperature: 0.0, ..SamplerParams::default() };
    let mut sampler = Sampler::new(params, engine.config().vocabulary).unwrap();
    let mut text = String::new();
    let generation = generate(session, engine.tokenizer(), &mut sampler, request, &mut |piece| {
        text += piece;
        true
    })
    .unwrap();
    (text, generation)
}

const PROMPT: &str = "The function returns";

fn demo() -> (Engine, Vec<u32>) {
    let engine = open("demo/demo.gguf", BackendKind::Cpu);
    let prompt = engine.tokenizer().encode(PROMPT, Encode { add_special: true, parse_special: false });
    (engine, prompt)
}

#[test]
fn greedy_text_is_the_same_on_every_backend() {
    let request = Request { max_tokens: Some(16), ignore_eos: true, ..Request::default() };
    for file in ["demo/demo.gguf", "zoo/llama-hd64.gguf", "zoo/gemma3.gguf", "zoo/llama-q-TQ4_1S.gguf"] {
        let texts = [BackendKind::Cpu, BackendKind::Scalar].map(|backend| {
            let engine = open(file, backend);
            let prompt =
                engine.tokenizer().encode(PROMPT, Encode { add_special: true, parse_special: false });
            let mut session = prompted(&engine, &prompt, &exact(64));
            let (text, generation) = greedy(&engine, &mut session, &request);
            assert_eq!((generation.tokens, generation.finish), (16, Finish::Length), "{file}");
            (text, session.tokens().to_vec())
        });
        assert_eq!(texts[0], texts[1], "{file}");
    }
}

#[test]
fn a_generation_ends_where_it_is_told_to() {
    let (engine, prompt) = demo();
    let run = |context: usize, request: Request| {
        let mut session = prompted(&engine, &prompt, &exact(context));
        let (text, generation) = greedy(&engine, &mut session, &request);
        (text, generation, session.tokens().len())
    };
    let endless = Request { ignore_eos: true, ..Request::default() };
    let most = |max| Request { max_tokens: Some(max), ..endless.clone() };
    let (text, generation, len) = run(256, most(40));
    assert_eq!((generation.tokens, generation.finish, len), (40, Finish::Length, prompt.len() + 40));
    assert!(text.split_whitespace().count() > 10, "{text}");
    assert_eq!(run(256, most(40)).0, text, "greedy text is always the same");

    let (none, generation, _) = run(256, most(0));
    assert_eq!((none.as_str(), generation.tokens, generation.finish), ("", 0, Finish::Length));

    // The context fills: what fits is the beginning of the same text.
    let (start, generation, len) = run(prompt.len() + 11, endless.clone());
    assert_eq!((generation.tokens, generation.finish, len), (11, Finish::Context, prompt.len() + 11));
    assert!(text.starts_with(&start) && !start.is_empty(), "{start}");

    // Stop strings that begin and end inside tokens.
    for (from, len) in [(20, 1), (17, 9), (31, 23)] {
        let stop: String = text.chars().skip(from).take(len).collect();
        let before = &text[..text.find(&stop).unwrap()];
        let request = Request { stop: vec!["not in the text".into(), stop.clone()], ..most(40) };
        let (found, generation, _) = run(256, request);
        assert_eq!((found.as_str(), generation.finish), (before, Finish::Stop), "stop `{stop}`");
    }
    // A stop string that never completes is shown.
    let last: String = text.chars().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect();
    let (found, generation, _) = run(256, Request { stop: vec![last + "\u{0}"], ..most(40) });
    assert_eq!((found, generation.finish), (text.clone(), Finish::Length));

    // The receiver has enough.
    let mut session = prompted(&engine, &prompt, &exact(256));
    let params = SamplerParams { temperature: 0.0, ..SamplerParams::default() };
    let mut sampler = Sampler::new(params, engine.config().vocabulary).unwrap();
    let mut calls = 0;
    let generation = generate(&mut session, engine.tokenizer(), &mut sampler, &most(40), &mut |_| {
        calls += 1;
        calls < 5
    })
    .unwrap();
    assert_eq!((generation.finish, calls), (Finish::Cancelled, 5));
    let mut empty = engine.session(&exact(64)).unwrap();
    let result = generate(&mut empty, engine.tokenizer(), &mut sampler, &most(1), &mut |_| true);
    assert!(matches!(result, Err(Error::EmptyPrompt)));
}

#[test]
fn the_end_of_a_turn_ends_a_generation() {
    let (engine, prompt) = demo();
    let end = engine.tokenizer().end_of_generation()[0];
    let mut session = prompted(&engine, &prompt, &exact(64));
    let params = SamplerParams { temperature: 0.0, logit_bias: vec![(end, 1e4)], ..SamplerParams::default() };
    for (ignore_eos, expected) in [(false, (1, Finish::EndOfTurn)), (true, (3, Finish::Length))] {
        let mut sampler = Sampler::new(params.clone(), engine.config().vocabulary).unwrap();
        let request = Request { max_tokens: Some(3), ignore_eos, ..Request::default() };
        let found =
            generate(&mut session, engine.tokenizer(), &mut sampler, &request, &mut |_| true).unwrap();
        assert_eq!((found.tokens, found.finish), expected);
    }
}

#[test]
fn a_rewound_session_is_a_fresh_one() {
    let short_pages = |k: &str, v: &str| Policy { page: 16, ..Policy::uniform(k, v).bare() };
    for (name, backend) in BackendKind::ALL {
        for file in ["zoo/llama-hd64.gguf", "zoo/gemma3.gguf"] {
            let engine = open(file, backend);
            // In f32, or roundings of the cache would be amplified.
            for policy in [Policy::uniform("f32", "f32"), short_pages("f32", "f32")] {
                let options =
                    SessionOptions { context: Some(128), batch: 32, policy, ..SessionOptions::default() };
                let base: Vec<u32> = (0..70).map(|i| (i * 37 + 11) % 300).collect();
                let mut session = prompted(&engine, &base, &options);
                // Other endings, the same text, a prefix, and nothing in common.
                for (keep, new) in [(60, 20), (60, 0), (33, 40), (70, 5), (1, 9), (0, 9)] {
                    let what = format!("{file} on {name}: {keep} kept, {new} new");
                    let text: Vec<u32> =
                        base[..keep].iter().copied().chain((0..new).map(|i| (i * 13 + 2) % 300)).collect();
                    let kept = session.reuse(&text);
                    assert!(kept < text.len(), "{what}: a token is left to run");
                    assert_eq!(session.tokens(), &text[..kept], "{what}");
                    // Logits of a token that is gone are gone.
                    assert_eq!(session.logits().is_empty(), kept < base.len(), "{what}");
                    session.append(&text[kept..]).unwrap();
                    let fresh = prompted(&engine, &text, &options);
                    let difference = max_difference(fresh.logits(), session.logits());
                    assert!(difference < 1e-5, "{what}: {difference:e}");
                    assert_eq!(session.tokens(), fresh.tokens(), "{what}");
                    session.reuse(&base);
                    session.append(&base[session.tokens().len()..]).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_truncated_session_has_the_tokens_asked_for() {
    // The windows of the second are gone at once, and it starts over. The third goes back to snapshots of its state,
    // at 80 and 64 tokens to exact ones, at 32 to one in 8 bits.
    for (file, tolerance) in
        [("zoo/llama-hd64.gguf", [1e-5; 2]), ("zoo/gemma3.gguf", [1e-5; 2]), ("zoo/qwen35.gguf", [1e-5, 0.1])]
    {
        let engine = open(file, BackendKind::Cpu);
        let policy = Policy { page: 16, ..Policy::uniform("f32", "f32").bare() };
        let options = SessionOptions { context: Some(128), batch: 32, policy, ..SessionOptions::default() };
        let tokens: Vec<u32> = (0..90).map(|i| (i * 37 + 11) % 300).collect();
        for to in [89, 64, 33, 1, 0, 200] {
            let mut session = prompted(&engine, &tokens, &options);
            session.truncate(to);
            let left = to.min(90);
            assert_eq!(session.tokens(), &tokens[..left], "{file}");
            assert_eq!(session.logits().is_empty(), to < 90, "{file}");
            session.append(&[7]).unwrap();
            let fresh = prompted(&engine, &[&tokens[..left], &[7]].concat(), &options);
            let difference = max_difference(fresh.logits(), session.logits());
            assert!(difference < tolerance[usize::from(to == 33)], "{file} to {to}: {difference:e}");
        }
    }
}

#[test]
fn a_prefix_is_not_run_again() {
    let engine = open("zoo/llama-hd64.gguf", BackendKind::Cpu);
    let tokens: Vec<u32> = (0..60).collect();
    let mut session = prompted(&engine, &tokens, &exact(128));
    assert_eq!(session.reuse(&tokens[..40]), 39);
    session.append(&tokens[39..]).unwrap();
    let longer: Vec<u32> = (0..70).collect();
    assert_eq!(session.reuse(&longer), 60);
    let logits = session.logits().to_vec();
    assert_eq!((session.reuse(&tokens), session.logits()), (60, &logits[..]));
    assert_eq!(session.reuse(&[]), 0);
}

#[test]
fn rows_are_the_logits_of_their_tokens() {
    let engine = open("zoo/llama-hd64.gguf", BackendKind::Cpu);
    let tokens: Vec<u32> = (0..50).collect();
    let options = SessionOptions { batch: 20, ..exact(64) };
    let mut session = engine.session(&options).unwrap();
    let mut rows = Vec::new();
    session
        .append_each(&tokens, &mut |i, row| {
            assert_eq!(i, rows.len());
            rows.push(row.to_vec());
            true
        })
        .unwrap();
    assert_eq!((rows.len(), session.logits()), (50, rows[49].as_slice()));
    for i in [0, 19, 20, 49] {
        let alone = prompted(&engine, &tokens[..=i], &options);
        assert!(max_difference(alone.logits(), &rows[i]) < 1e-5, "row {i}");
    }
    // A receiver may stop early; progress may too. The logits are those of the last token that is there.
    let check = |session: &Session, len: usize| {
        assert_eq!(session.tokens(), &tokens[..len]);
        assert!(max_difference(session.logits(), &rows[len - 1]) < 1e-5, "{len} tokens");
    };
    let mut session = engine.session(&options).unwrap();
    session.append_each(&tokens, &mut |i, _| i < 3).unwrap();
    check(&session, 20);
    let mut session = engine.session(&options).unwrap();
    assert_eq!(session.append_with(&tokens, &mut |done| done < 40).unwrap(), 40);
    check(&session, 40);
    // So are they when a later batch is refused.
    let bad = [&tokens[..45], &[u32::MAX][..]].concat();
    let mut session = engine.session(&options).unwrap();
    session.append(&bad).unwrap_err();
    check(&session, 40);
    let mut session = engine.session(&options).unwrap();
    session.append_each(&bad, &mut |_, _| true).unwrap_err();
    check(&session, 40);
}

#[test]
fn a_context_beyond_memory_says_what_fits() {
    let engine = open("demo/demo.gguf", BackendKind::Cpu);
    for context in [1 << 36, 1 << 45, usize::MAX] {
        let error =
            engine.session(&SessionOptions { context: Some(context), ..Default::default() }).err().unwrap();
        let Error::Memory { fits, .. } = &error else { panic!("{error:?}") };
        assert!(*fits > 0 && *fits < context);
        assert!(error.to_string().contains(&format!("`-c {fits}`")), "{error}");
    }
    // The default is the model's own context, or less.
    let session = engine.session(&SessionOptions::default()).unwrap();
    assert!((1..=engine.config().context).contains(&session.context()));
}

#[test]
fn a_full_session_says_so_and_stays_usable() {
    let engine = open("zoo/llama-hd64.gguf", BackendKind::Cpu);
    let tokens: Vec<u32> = (0..30).collect();
    let mut session = prompted(&engine, &tokens, &exact(32));
    let before = session.logits().to_vec();
    let error = session.append(&[1, 2, 3]).unwrap_err().to_string();
    assert!(error.contains("context of 32 tokens is full"), "{error}");
    assert_eq!((session.tokens(), session.logits()), (&tokens[..], &before[..]));
    session.append(&[1, 2]).unwrap();
    assert_eq!(session.tokens().len(), 32);
}

#[test]
fn every_weight_format_runs_the_same_on_every_backend() {
    let shapes = SHAPES.iter().filter(|shape| shape.name.starts_with("tiny"));
    let formats: Vec<_> = torque_engine::quant::FORMATS.iter().filter(|format| format.weights).collect();
    assert!(formats.len() > 10);
    for (shape, format) in shapes.flat_map(|shape| formats.iter().map(move |format| (shape, *format))) {
        // Activations rounded to 8 bits may go to other experts, and then all is different.
        if shape.name == "tiny-moe" && format.whole {
            continue;
        }
        let gguf = synthetic::build(shape, format, 2).unwrap();
        let [cpu, scalar] = [BackendKind::Cpu, BackendKind::Scalar].map(|backend| {
            let engine = Engine::from_gguf(gguf.clone(), &options(backend)).unwrap();
            assert_eq!((engine.config().layers.len(), engine.config().vocabulary), (2, 512));
            assert!(engine.warnings().is_empty(), "{:?}", engine.warnings());
            let mut session = prompted(&engine, &[1, 2, 3, 500, 5, 6, 7, 8, 9, 10], &exact(32));
            let mut logits = session.logits().to_vec();
            // A few at a time and one by one: the paths for few tokens.
            session.append(&[9, 8, 7]).unwrap();
            logits.extend(session.logits());
            session.append(&[11]).unwrap();
            logits.extend(session.logits());
            logits
        });
        let scale = scalar.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let difference = max_difference(&scalar, &cpu);
        // Products go through activations rounded to 8 bits where that is fast.
        let bound = if format.is_float() { 1e-4 } else { 0.1 };
        let what = format!("{} {}", shape.name, format.name);
        assert!(scale > 0.1 && difference < bound * scale, "{what}: {difference:e} of {scale}");
    }
}

#[test]
fn active_bytes_count_the_experts_of_one_token() {
    let check = |name: &str, share: f64| {
        let shape = SHAPES.iter().find(|shape| shape.name == name).unwrap();
        let gguf = synthetic::build(shape, torque_engine::quant::by_name("q8_0").unwrap(), 2).unwrap();
        let engine = Engine::from_gguf(gguf, &options(BackendKind::Cpu)).unwrap();
        let tensors = engine.gguf().tensors().iter();
        let matrices = tensors.filter(|t| t.shape.len() > 1 && t.name != "token_embd.weight");
        let expected: f64 = matrices
            .map(|t| t.data.len() as f64 * if t.name.ends_with("exps.weight") { share } else { 1.0 })
            .sum();
        assert!((engine.active_bytes() as f64 - expected).abs() <= 1.0, "{name}: {expected}");
    };
    check("tiny", 1.0);
    check("tiny-moe", 2.0 / 5.0);
}
