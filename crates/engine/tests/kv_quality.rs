//! What a quantised KV cache costs, against reference logits and against the same formats stored row by
//! row (`logits_kv_K_V` of the zoo).

use std::path::{Path, PathBuf};
use torque_engine::evaluate::{self, Reference};
use torque_engine::measure::{Divergence, DivergenceReport};
use torque_engine::tokenizer::Encode;
use torque_engine::{ARCHS, BackendKind, Engine, EngineOptions, Policy, SessionOptions};

fn shared(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(path)
}

fn engine(path: &Path) -> Engine {
    let options = EngineOptions { backend: BackendKind::Cpu, threads: Some(2), isa: None };
    Engine::open(path, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// Models of known architectures: (name, engine, path of the reference).
fn models() -> Vec<(String, Engine, PathBuf)> {
    let mut paths: Vec<_> =
        std::fs::read_dir(shared("zoo")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let gguf = paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "gguf"));
    gguf.filter_map(|path| {
        let gguf = torque_engine::gguf::Gguf::open(&path).unwrap();
        let arch = gguf.metadata().string("general.architecture").unwrap().unwrap();
        ARCHS.iter().any(|a| a.name == arch).then(|| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_string();
            (name, engine(&path), path.with_extension("safetensors"))
        })
    })
    .collect()
}

/// Which tokens count: in routed models the smallest rounding chooses other experts where the choice is close.
fn counted(reference: &Path) -> impl Fn(usize) -> bool {
    let margins = Reference::read(reference).unwrap().floats("router_margin").ok();
    move |row| margins.as_ref().is_none_or(|margins| margins[row] >= 0.05)
}

/// Divergence from `logits_ref` with a policy, fed token by token so that pages seal as early as they can.
fn ours(engine: &Engine, reference: &Path, policy: Policy) -> DivergenceReport {
    let options = SessionOptions { context: None, batch: 1, policy, ..SessionOptions::default() };
    evaluate::reference(engine, reference, "logits_ref", &options, &counted(reference)).unwrap()
}

/// Divergence of a stored tensor from `logits_ref`, if the file has it.
fn stored(engine: &Engine, reference: &Path, tensor: &str) -> Option<DivergenceReport> {
    let (file, counted) = (Reference::read(reference).unwrap(), counted(reference));
    file.names().unwrap().contains(&tensor.to_string()).then(|| {
        let (expected, found) = (file.floats("logits_ref").unwrap(), file.floats(tensor).unwrap());
        let mut divergence = Divergence::default();
        let width = engine.config().vocabulary;
        let rows = expected.chunks(width).zip(found.chunks(width)).enumerate();
        rows.filter(|(row, _)| counted(*row)).for_each(|(_, (e, f))| divergence.add(e, f));
        divergence.report()
    })
}

/// Whether products of the model round activations to 8 bits.
fn rounds(name: &str, engine: &Engine) -> bool {
    engine.backend() == "cpu" && (name.contains("-q-") || name == "gpt-oss")
}

/// Demands the zoo's gates for an f16 cache, or those for rounded activations, which may choose other experts:
/// then the divergence alone counts.
fn check_near_exact(name: &str, engine: &Engine, report: &DivergenceReport) {
    let (max, kld) = match rounds(name, engine) {
        true if engine.config().experts.is_some() => (f64::INFINITY, 5e-3),
        true => (1.0, 5e-3),
        false => (5e-2, 1e-5),
    };
    assert!(report.max_abs_diff < max && report.kld_mean < kld, "{name}: {report:?}");
}

/// The shortest pages, all of them sealed: at most 15 tokens are exact.
fn sealed(k: &str, v: &str) -> Policy {
    Policy { page: 16, ..Policy::uniform(k, v).bare() }
}

#[test]
fn an_f16_cache_costs_nothing() {
    for (name, engine, reference) in models() {
        let report = ours(&engine, &reference, sealed("f16", "f16"));
        println!("{name}: max {:.1e}, KLD {:.1e}", report.max_abs_diff, report.kld_mean);
        check_near_exact(&name, &engine, &report);
    }
}

const PAIRS: [[&str; 2]; 6] = [
    ["q8_0", "q8_0"],
    ["q8_0", "turbo4"],
    ["q8_0", "turbo3"],
    ["turbo4", "turbo4"],
    ["turbo3", "turbo3"],
    ["turbo2", "turbo2"],
];

#[test]
fn pages_cost_no_more_than_rows() {
    let mut worse = Vec::new();
    println!("{:20} {}", "ours / rows", PAIRS.map(|[k, v]| format!("{:>15}", format!("{k}/{v}"))).join(" "));
    for (name, engine, reference) in models() {
        let (mut cells, rounds_activations) = (Vec::new(), rounds(&name, &engine));
        for [k, v] in PAIRS {
            let Some(rows) = stored(&engine, &reference, &format!("logits_kv_{k}_{v}")) else {
                cells.push("–".to_string());
                continue;
            };
            let (ours, rows) = (ours(&engine, &reference, sealed(k, v)).kld_mean, rows.kld_mean);
            cells.push(format!("{ours:.4} / {rows:.4}"));
            // A page's mean takes a key bias out, which rows spend their codes on.
            let share = if name == "qwen2-kbias" { 0.4 } else { 0.9 };
            // The rows of the quantised model come from exact activations, and from rounded YaRN bounds.
            let allowance = if name == "gpt-oss" && rounds_activations { 1e-3 } else { 2e-4 };
            if ours > share * rows + allowance {
                worse.push(format!("{name} {k}/{v}: {ours:.5}, row by row {rows:.5}"));
            }
        }
        if cells.iter().any(|cell| cell != "–") {
            println!("{name:20} {}", cells.iter().map(|c| format!("{c:>15}")).collect::<Vec<_>>().join(" "));
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}

#[test]
fn a_short_text_is_all_tail() {
    // 96 tokens with the default page and tail: nothing seals, whatever the formats.
    for (name, engine, reference) in models() {
        let [exact, found] =
            ["f16", "q8_0"].map(|format| ours(&engine, &reference, Policy::uniform(format, format)));
        assert_eq!(exact, found, "{name}");
        // A rotated tail rounds elsewhere.
        let rotated = ours(&engine, &reference, Policy::uniform("turbo2", "turbo2"));
        check_near_exact(&name, &engine, &rotated);
    }
}

/// Mean KLD of symmetric turbo3 from f16 on two chunks of 512 tokens of text, second halves.
fn turbo3_cost(file: &str, page: usize) -> f64 {
    let engine = engine(&shared(file));
    let text = std::fs::read_to_string(shared("demo/eval.txt")).unwrap();
    let tokens = engine.tokenizer().encode(&text, Encode::default());
    let logits = |policy: Policy| {
        let options = SessionOptions { context: Some(512), batch: page, policy, ..SessionOptions::default() };
        let mut session = engine.session(&options).unwrap();
        let mut rows: Vec<f32> = Vec::new();
        for chunk in tokens.chunks_exact(512).take(2) {
            session.truncate(0);
            session.append(&chunk[..256]).unwrap();
            let second_half = &mut |_: usize, logits: &[f32]| {
                rows.extend(logits);
                true
            };
            session.append_each(&chunk[256..], second_half).unwrap();
        }
        rows
    };
    let exact = logits(Policy::default());
    let found = logits(Policy { page, ..Policy::uniform("turbo3", "turbo3").bare() });
    let mut divergence = Divergence::default();
    let width = engine.config().vocabulary;
    exact.chunks(width).zip(found.chunks(width)).for_each(|(e, f)| divergence.add(e, f));
    let report = divergence.report();
    assert_eq!(report.rows, 512);
    report.kld_mean
}

#[test]
fn a_key_bias_does_not_ruin_the_cache() {
    // Tokens of the page that is not full yet are exact, so short pages are the harder test.
    for page in [128, 16] {
        let [plain, biased] = ["demo/demo.gguf", "demo/demo-kbias.gguf"].map(|file| turbo3_cost(file, page));
        println!("turbo3/turbo3, pages of {page}: KLD {plain:.5}, with a key bias {biased:.5}");
        assert!(plain > 0.0 && biased < 2.0 * plain, "KLD {biased} with a key bias, {plain} without");
    }
}
