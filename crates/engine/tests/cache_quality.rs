//! What a cache's formats change, as [`evaluate`] tells it: against the logits of two sessions side by side, resumed, by layer, and
//! as facts that are found again.

use std::path::{Path, PathBuf};
use torque_engine::evaluate::{
    self, CacheCell, CacheReport, Chunks, LayerReport, Needle, Retrieval, Step, layer_sides,
};
use torque_engine::measure;
use torque_engine::tokenizer::Encode;
use torque_engine::{Engine, EngineOptions, Error, LayerRule, Policy, SessionOptions, Side};

fn open(file: &str) -> Engine {
    let root: PathBuf = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).into();
    let options = EngineOptions { threads: Some(2), ..EngineOptions::default() };
    Engine::open(root.join(file), &options).unwrap_or_else(|error| panic!("{error}"))
}

const BATCH: usize = 32;

fn bare(k: &str, v: &str) -> Policy {
    Policy { page: 16, ..Policy::uniform(k, v).bare() }
}

fn text(engine: &Engine) -> Vec<u32> {
    (0..500).map(|i| i * i * 37 % engine.config().vocabulary as u32).collect()
}

/// Everything that is missing.
fn finish(engine: &Engine, chunks: &Chunks, policies: &[Policy], cells: &mut Vec<CacheCell>) {
    assert!(evaluate::cache(engine, chunks, policies, BATCH, cells, &mut |_| true).unwrap());
}

fn report(engine: &Engine, chunks: &Chunks, policy: &Policy, cells: &[CacheCell]) -> CacheReport {
    CacheReport::new(engine, chunks, BATCH, "name", policy, cells).unwrap()
}

#[test]
fn rows_are_those_of_two_sessions() {
    let engine = open("zoo/llama-hd128-rope3.gguf");
    let tokens = text(&engine);
    let chunks = Chunks::new(&engine, &tokens, 160, Some(2), None).unwrap();
    let (policy, mut cells) = (bare("turbo3", "turbo2"), Vec::new());
    finish(&engine, &chunks, std::slice::from_ref(&policy), &mut cells);
    assert_eq!(
        cells.iter().map(|cell| (cell.chunk, cell.rows.len())).collect::<Vec<_>>(),
        [(0, 79), (1, 79)]
    );
    for cell in &cells {
        let chunk = chunks.tokens(cell.chunk);
        let logits = |policy: &Policy| {
            let options = SessionOptions {
                context: Some(160),
                batch: BATCH,
                policy: policy.clone(),
                ..SessionOptions::default()
            };
            let mut rows: Vec<Vec<f32>> = Vec::new();
            let row = &mut |_: usize, logits: &[f32]| {
                rows.push(logits.to_vec());
                true
            };
            let mut session = engine.session(&options).unwrap();
            // From half of the chunk on, a batch begins anew.
            session.append(&chunk[..80]).unwrap();
            session.append_each(&chunk[80..], row).unwrap();
            rows
        };
        let (exact, found) = (logits(&Policy::default()), logits(&policy));
        for (i, row) in cell.rows.iter().enumerate() {
            assert_eq!(row.kld, measure::kl_divergence(&exact[i], &found[i]));
            let next = chunk[80 + i + 1];
            let likelihood = [&exact, &found].map(|rows| measure::negative_log_likelihood(&rows[i], next));
            assert_eq!(row.likelihood, likelihood);
        }
    }
    let report = report(&engine, &chunks, &policy, &cells);
    assert_eq!(report.divergence.rows, 2 * 79);
    assert!(report.divergence.kld_mean > 0.0 && report.perplexity != report.f16_perplexity);
    // The first channel's mean is two bytes for each of sixteen tokens: a bit a value.
    assert_eq!(report.bits_per_value, (3.125 + 2.125) / 2.0 + 1.0);
    let ranges: Vec<_> = report.positions.iter().map(|part| (part.from, part.to)).collect();
    assert_eq!(ranges, [(80, 112), (112, 144), (144, 159)]);
    let rows = |part: &evaluate::PositionReport| (part.to - part.from) as f64;
    let sum: f64 = report.positions.iter().map(|part| part.kld_mean * rows(part)).sum();
    assert!((sum / 79.0 / report.divergence.kld_mean - 1.0).abs() < 1e-9);
}

#[test]
fn smaller_formats_cost_more_and_f16_nothing() {
    let engine = open("zoo/llama-hd128-rope3.gguf");
    let tokens = text(&engine);
    let chunks = Chunks::new(&engine, &tokens, 200, None, Some(0)).unwrap();
    assert_eq!((chunks.count, chunks.scored()), (2, 199));
    let policies = [Policy::default(), bare("turbo4", "turbo4"), bare("turbo2", "turbo2")];
    let mut cells = Vec::new();
    finish(&engine, &chunks, &policies, &mut cells);
    let [exact, turbo4, turbo2] = policies.each_ref().map(|policy| report(&engine, &chunks, policy, &cells));
    assert_eq!((exact.divergence.kld_max, exact.divergence.correlation), (0.0, 1.0));
    assert_eq!(exact.perplexity, turbo2.f16_perplexity);
    let [turbo4, turbo2] = [turbo4, turbo2].map(|report| report.divergence);
    assert!(turbo4.kld_mean > 0.0 && turbo2.kld_mean > 2.0 * turbo4.kld_mean, "{turbo4:?} {turbo2:?}");
    assert!(turbo2.correlation < turbo4.correlation && turbo4.correlation < 1.0, "{turbo4:?} {turbo2:?}");
}

#[test]
fn what_is_stopped_goes_on() {
    let engine = open("zoo/llama-hd64.gguf");
    let tokens = text(&engine);
    let chunks = Chunks::new(&engine, &tokens, 100, Some(3), None).unwrap();
    let policies = [bare("q8_0", "q8_0"), bare("turbo3", "turbo3")];
    let mut whole = Vec::new();
    let mut seen = Vec::new();
    let all = evaluate::cache(&engine, &chunks, &policies, BATCH, &mut whole, &mut |step| {
        if let Step::Tokens { done, of } = step {
            seen.push((done, of));
        }
        true
    });
    assert!(all.unwrap());
    // Two policies and f16.
    assert_eq!((seen[0], seen.last()), ((3 * 32, 900), Some(&(900, 900))));

    // Stopped after the first policy of the first chunk.
    let mut cells = Vec::new();
    let stopped = evaluate::cache(&engine, &chunks, &policies, BATCH, &mut cells, &mut |step| {
        matches!(step, Step::Tokens { .. })
    });
    assert_eq!((stopped.unwrap(), cells.len()), (false, 1));
    let mut of = 0;
    let all = evaluate::cache(&engine, &chunks, &policies, BATCH, &mut cells, &mut |step| {
        if let Step::Tokens { of: tokens, .. } = step {
            of = tokens;
        }
        true
    });
    assert_eq!((all.unwrap(), of), (true, 800));
    for policy in &policies {
        let [found, expected] =
            [&cells, &whole].map(|cells| report(&engine, &chunks, policy, cells).divergence);
        assert_eq!(found, expected);
    }
    // Nothing is left.
    let again =
        evaluate::cache(&engine, &chunks, &policies, BATCH, &mut cells, &mut |_| panic!("nothing to do"));
    assert_eq!((again.unwrap(), cells.len()), (true, 6));
}

#[test]
fn layers_are_measured_alone() {
    let engine = open("zoo/llama-hd64.gguf");
    let rule = LayerRule { at: "0".into(), k: Some("f16".into()), v: None };
    let policy = Policy { layers: vec![rule], ..bare("turbo2", "q8_0") };
    let sides = layer_sides(&engine, &policy).unwrap();
    let layers = engine.plan(&policy).unwrap().layers.len();
    assert_eq!(sides.len(), 2 * layers - 1, "the keys of the first layer are f16 anyway");
    let tokens = text(&engine);
    let chunks = Chunks::new(&engine, &tokens, 200, Some(1), None).unwrap();
    let policies: Vec<Policy> = sides.iter().map(|side| side.policy.clone()).collect();
    let mut cells = Vec::new();
    finish(&engine, &chunks, &policies, &mut cells);
    for side in &sides {
        let kv = &engine.layer_kv(&side.policy).unwrap();
        for (layer, kv) in kv.iter().enumerate() {
            let expected = |this: Side, format: &'static str| {
                if (layer, this) == (side.layer, side.side) { format } else { "f16" }
            };
            assert_eq!((&kv.k[..], &kv.v[..]), (expected(Side::K, "turbo2"), expected(Side::V, "q8_0")));
        }
        let found = LayerReport::new(side, report(&engine, &chunks, &side.policy, &cells));
        let format = if found.side == "k" { "turbo2" } else { "q8_0" };
        assert_eq!(found.format, format);
        assert!(found.report.divergence.kld_mean > 0.0, "{found:?}");
    }
    // Values of a latent layer lie in its keys.
    let latent = open("zoo/deepseek2.gguf");
    let sides = layer_sides(&latent, &bare("q8_0", "q8_0")).unwrap();
    assert!(!sides.is_empty() && sides.iter().all(|side| side.side == Side::K), "{sides:?}");
}

#[test]
fn positions_that_cannot_be_scored_are_an_error() {
    let engine = open("zoo/llama-hd64.gguf");
    let tokens = text(&engine);
    assert!(Chunks::new(&engine, &tokens, 64, None, Some(62)).is_ok());
    let result = Chunks::new(&engine, &tokens, 64, None, Some(63));
    assert!(matches!(result, Err(Error::NothingScored { from: 63, context: 64 })));
}

#[test]
fn facts_are_hidden_where_they_should_be() {
    let engine = open("demo/demo.gguf");
    let needle = Needle {
        lengths: vec![256, 400],
        depths: vec![0, 50, 100],
        trials: 1,
        seed: 7,
        text: None,
        answer: 20,
        batch: 128,
    };
    let policies = [Policy::default(), bare("turbo2", "turbo2")];
    let mut answers = Vec::new();
    assert!(evaluate::needle(&engine, &needle, &policies, &mut answers, &mut |_| true).unwrap());
    assert_eq!(answers.len(), 2 * 2 * 3);
    for answer in &answers {
        assert!(answer.tokens + 20 <= answer.length && answer.tokens + 60 > answer.length, "{answer:?}");
        assert!(answer.code.len() == 6 && answer.code.parse::<u32>().is_ok(), "{answer:?}");
        // The model has learnt the form of answers.
        assert!(answer.answer.contains("access code for"), "{answer:?}");
    }
    let codes: Vec<&str> = answers.iter().map(|answer| &answer.code[..]).collect();
    assert_eq!(codes[..6], codes[6..], "every policy is asked the same");
    let mut again = answers[..5].to_vec();
    assert!(evaluate::needle(&engine, &needle, &policies, &mut again, &mut |_| true).unwrap());
    assert_eq!(again, answers, "whatever was there before");

    // One right answer of four to the question in the middle.
    answers.truncate(6);
    answers.iter_mut().for_each(|answer| answer.answer.clear());
    answers[1].answer = format!("It is {}.", answers[1].code);
    let found = Retrieval::new(&engine, &needle, "f16", &policies[0], &answers).unwrap();
    assert_eq!(found.grid, [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]);
    assert!((found.found - 1.0 / 6.0).abs() < 1e-12 && (found.digits - 1.0 / 6.0).abs() < 1e-12);
}

#[test]
fn facts_need_room_and_a_chat_form() {
    let ask = |engine: &Engine, length: usize, text: Option<&str>| {
        let text = text.map(str::to_string);
        let needle = Needle {
            lengths: vec![length],
            depths: vec![50],
            trials: 1,
            seed: 1,
            text,
            answer: 20,
            batch: 128,
        };
        let mut answers = Vec::new();
        evaluate::needle(engine, &needle, &[Policy::default()], &mut answers, &mut |_| true)
    };
    let demo = open("demo/demo.gguf");
    assert!(matches!(ask(&demo, 40, None), Err(Error::NeedleTooLong { length: 40, .. })));
    assert!(matches!(ask(&demo, 256, Some(" \n ")), Err(Error::EmptyText)));
    assert!(ask(&demo, 256, Some("A sentence. Another one.")).unwrap());
    assert!(matches!(ask(&open("zoo/llama-hd64.gguf"), 256, None), Err(Error::NoChatTemplate)));
    // A text is what a prompt begins with, in the words of the file.
    let tokens = demo.tokenizer().encode("A sentence.", Encode { add_special: true, parse_special: false });
    assert_eq!(tokens.first().copied(), demo.tokenizer().bos());
}
