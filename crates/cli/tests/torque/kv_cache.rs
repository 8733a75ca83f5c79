//! Measures KV caches with the demo models, and keeps what `docs/kv-cache.md` says of them, and its plots.

use crate::{json, shared, torque};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

/// Models, by the names of their columns.
const MODELS: [&str; 2] = ["demo", "demo-kbias"];

/// Models that are tuned: those, and three of other architectures with random weights: two layers with heads of 128, five of
/// seven layers with a window of 20 tokens, and five layers of which one knows no positions.
const TUNED: [&str; 5] = ["demo/demo", "demo/demo-kbias", "zoo/qwen3", "zoo/gemma3", "zoo/smollm3"];

/// Flat policies.
const FLAT: &str = "q8_0,q8_0/turbo3,q4_0,turbo4,turbo4_tcq,turbo4/turbo3,turbo4_tcq/turbo3_tcq,turbo3,turbo3_tcq,turbo3/turbo2,turbo2,turbo2_tcq";

/// Policies whose older pages are smaller.
const DECAYED: &str = "q8_0@aggressive,turbo4@conservative,turbo4@aggressive,turbo3@balanced";

/// What the table of those shows: them, beside flat policies that are as large.
const AGED: [&str; 9] = [
    "q8_0/q8_0@aggressive",
    "turbo4/turbo4",
    "turbo4_tcq/turbo4_tcq",
    "turbo4/turbo4@conservative",
    "turbo3/turbo3",
    "turbo3_tcq/turbo3_tcq",
    "turbo4/turbo4@aggressive",
    "turbo3/turbo2",
    "turbo3/turbo3@balanced",
];

/// Tokens of a chunk, and chunks: about as many tokens are scored, twice as many of the longest.
const LENGTHS: [(usize, usize); 3] = [(1024, 8), (4096, 2), (16_384, 1)];

/// Flat policies at those lengths.
const LONG: &str = "q8_0,q4_0,turbo4,turbo4_tcq,turbo3,turbo3_tcq,turbo2_tcq";

/// Policies whose older pages are smaller, at those lengths, and what the table of those shows.
const LONG_DECAYED: &str = "q8_0@aggressive,turbo4@conservative,turbo4@aggressive,turbo4_tcq@aggressive";
const LONG_AGED: [&str; 9] = [
    "turbo4/turbo4",
    "turbo4_tcq/turbo4_tcq",
    "q8_0/q8_0@aggressive",
    "turbo3/turbo3",
    "turbo3_tcq/turbo3_tcq",
    "turbo4/turbo4@conservative",
    "turbo4/turbo4@aggressive",
    "turbo4_tcq/turbo4_tcq@aggressive",
    "turbo2_tcq/turbo2_tcq",
];

/// Nothing is exact on purpose.
const BARE: &str = "--kv-tail 0 --kv-sink 0";

/// Reports of `torque eval kld`, one a policy; a picture where wanted.
fn sweep(
    model: &str,
    policies: &str,
    flags: &str,
    (context, chunks): (usize, usize),
    picture: Option<&Path>,
) -> Vec<Value> {
    let mut command = torque(&format!("eval kld -c {context} --chunks {chunks} --json -m"));
    command.arg(shared(&format!("demo/{model}.gguf"))).arg("-f").arg(shared("demo/eval.txt"));
    command.args(["--sweep", policies]).args(flags.split_whitespace());
    if let Some(picture) = picture {
        command.arg("--report").arg(picture);
    }
    json(&mut command).as_array().expect("a row a policy").clone()
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"))
}

fn name(row: &Value) -> &str {
    row["name"].as_str().expect("a name")
}

/// The row of a policy.
fn named<'a>(rows: &'a [Value], policy: &str) -> &'a Value {
    rows.iter().find(|row| name(row) == policy).expect(policy)
}

/// Three digits that count.
fn digits(x: f64) -> String {
    format!("{x:.*}", (2.0 - x.log10().floor()).max(0.0) as usize)
}

/// A table of policies: their size if nothing is exact on purpose, and their divergence for every model.
fn table(of_models: &[Vec<Value>]) -> String {
    let mut text = String::from("| keys / values | bits | bytes a token |");
    for model in MODELS {
        write!(text, " KLD, {model} |").unwrap();
    }
    text += &format!("\n|---|---|---|{}\n", "---|".repeat(MODELS.len()));
    for (i, row) in of_models[0].iter().enumerate() {
        let name = name(row);
        let (bits, bytes) = (number(row, "bits_per_value"), number(row, "bytes_per_token"));
        write!(text, "| {name} | {bits:.2} | {bytes:.0} |").unwrap();
        for rows in of_models {
            write!(text, " {} |", digits(number(&rows[i], "kld_mean"))).unwrap();
        }
        text += "\n";
    }
    text
}

/// What stands between the marks of a section, replaced.
fn replaced(document: &str, section: &str, text: &str) -> String {
    let [begin, end] = ["begin", "end"].map(|mark| format!("<!-- {section}: {mark} -->\n"));
    let (before, rest) = document.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    format!("{before}{begin}\n{text}\n{end}{after}")
}

/// The documentation is one file, and tests run side by side.
static DOCUMENT: Mutex<()> = Mutex::new(());

/// Makes sure that sections of the documentation, and its pictures, are what was measured; or with `UPDATE_DOCS` writes them.
/// `how`: the tests that do.
fn keep(sections: &[(&str, String)], pictures: &[(String, String)], how: &str) {
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let path = Path::new(DOCS).join("kv-cache.md");
    let _alone = DOCUMENT.lock().unwrap_or_else(PoisonError::into_inner);
    let found = std::fs::read_to_string(&path).unwrap();
    let expected = sections.iter().fold(found, |text, (section, new)| replaced(&text, section, new));
    let pictures = pictures.iter().map(|(name, picture)| (Path::new(DOCS).join(name), picture));
    for (path, expected) in pictures.chain([(path, &expected)]) {
        if update {
            std::fs::write(&path, expected).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let name = path.file_name().unwrap().display();
        assert!(
            found == *expected,
            "docs/{name} is stale: run `UPDATE_DOCS=1 cargo test --release -p torque-cli {how}`"
        );
    }
}

#[test]
fn the_documentation_says_what_caches_cost() {
    let directory = tempfile::tempdir().unwrap();
    let mut pictures = Vec::new();
    let (mut flat, mut aged, mut exact) = (Vec::new(), Vec::new(), Vec::new());
    for model in MODELS {
        let name = format!("kv-cache-{model}.svg");
        let picture = directory.path().join(&name);
        let bare = sweep(model, FLAT, BARE, LENGTHS[0], Some(&picture));
        pictures.push((name, std::fs::read_to_string(picture).unwrap()));
        let mut rows = sweep(model, DECAYED, BARE, LENGTHS[0], None);
        rows.extend_from_slice(&bare);
        aged.push(AGED.map(|policy| named(&rows, policy).clone()).to_vec());
        flat.push(bare);
        exact.push(sweep(model, FLAT, "", LENGTHS[0], None));
    }
    let sections = [("flat", flat), ("aged", aged), ("exact tail and sinks", exact)];
    keep(&sections.map(|(section, of_models)| (section, table(&of_models))), &pictures, "kv_cache");
}

/// What the tuned policy of no more bytes costs, in parts of what a fixed one costs; none where a model has no such policy
/// of its own.
fn ratio(compared: &Value, policy: &str) -> Option<f64> {
    let pairs = compared.as_array().expect("pairs");
    let pair = pairs.iter().find(|pair| name(&pair["fixed"]) == policy)?;
    assert!(number(&pair["tuned"], "bytes_per_token") <= number(&pair["fixed"], "bytes_per_token") + 0.5);
    Some(number(&pair["tuned"], "kld_mean") / number(&pair["fixed"], "kld_mean"))
}

#[test]
fn the_documentation_says_what_tuning_gives() {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("tuned.svg");
    let of_models = TUNED.map(|model| {
        let mut command = torque("tune --json");
        command.arg(shared(&format!("{model}.gguf"))).arg("-f").arg(shared("demo/eval.txt"));
        command.arg("-o").arg(directory.path().join("tuned.toml"));
        if model == TUNED[0] {
            command.arg("--report").arg(&picture);
        }
        json(&mut command)["compared"].clone()
    });
    // The first model has every policy.
    let policies: Vec<&str> =
        of_models[0].as_array().expect("pairs").iter().map(|pair| name(&pair["fixed"])).collect();
    let names = TUNED.map(|model| model.split_once('/').expect("a folder").1);
    let mut text = format!("| fixed policy | {} |\n|{}\n", names.join(" | "), "---|".repeat(TUNED.len() + 1));
    let mut ratios = vec![Vec::new(); TUNED.len()];
    for policy in policies {
        write!(text, "| {policy} |").unwrap();
        for (compared, ratios) in of_models.iter().zip(&mut ratios) {
            let ratio = ratio(compared, policy);
            ratios.extend(ratio);
            let cell = ratio.map(|ratio| if ratio == 1.0 { "=".into() } else { digits(ratio) });
            write!(text, " {} |", cell.unwrap_or_else(|| "–".into())).unwrap();
        }
        text += "\n";
    }
    let count = |of: &dyn Fn(f64) -> bool| ratios.iter().flatten().filter(|ratio| of(**ratio)).count();
    let (all, won, same) = (count(&|_| true), count(&|ratio| ratio < 1.0), count(&|ratio| ratio == 1.0));
    let unbeaten = ratios.iter().filter(|ratios| ratios.iter().all(|ratio| *ratio <= 1.0)).count();
    writeln!(
        text,
        "\nOf {all} comparisons tuning wins {won}; in {same} (=) the fixed policy is the best of its size, and what tuning finds. \
         No fixed policy is better on {unbeaten} of {} models.",
        TUNED.len()
    )
    .unwrap();
    let picture = std::fs::read_to_string(picture).unwrap();
    keep(&[("tuned", text)], &[("kv-cache-tuned.svg".into(), picture)], "kv_cache");
    assert!(unbeaten >= 4, "{ratios:?}");
}

/// Six to fifteen minutes: `UPDATE_DOCS=1 cargo test --release -p torque-cli longer_contexts -- --ignored`.
#[test]
#[ignore = "takes six to fifteen minutes: cargo test --release -p torque-cli longer_contexts -- --ignored"]
fn the_documentation_says_what_longer_contexts_cost() {
    // `[length][bare, with exact tail and sinks]`; the latter of older tokens in fewer bits too.
    let of_lengths = LENGTHS.map(|length| {
        let exact = if length == LENGTHS[0] { LONG.into() } else { format!("{LONG},{LONG_DECAYED}") };
        [(LONG, BARE), (&exact, "")].map(|(policies, flags)| sweep("demo", policies, flags, length, None))
    });
    let lengths = LENGTHS.map(|(context, _)| format!("{},{:03}", context / 1000, context % 1000));
    let mut flat = String::from("| keys / values | bits |");
    for length in &lengths {
        write!(flat, " {length}: bare | tail, sinks | |").unwrap();
    }
    flat += &format!("\n|---|---|{}\n", "---|".repeat(3 * LENGTHS.len()));
    for (policy, bits) in of_lengths[0][0].iter().map(|row| (name(row), number(row, "bits_per_value"))) {
        write!(flat, "| {policy} | {bits:.2} |").unwrap();
        for of_exact in &of_lengths {
            let [bare, exact] = of_exact.each_ref().map(|rows| number(named(rows, policy), "kld_mean"));
            write!(flat, " {} | {} | {:.1}× |", digits(bare), digits(exact), bare / exact).unwrap();
        }
        flat += "\n";
    }
    let mut aged = String::from("| keys / values |");
    for length in &lengths[1..] {
        write!(aged, " {length}: bits | KLD | perplexity |").unwrap();
    }
    aged += &format!("\n|---|{}\n| f16/f16 |", "---|".repeat(3 * (LENGTHS.len() - 1)));
    let exact = of_lengths[1..].iter().map(|[_, exact]| exact);
    for rows in exact.clone() {
        write!(aged, " 16 | | {:.1} |", number(&rows[0], "f16_perplexity")).unwrap();
    }
    aged += "\n";
    for policy in LONG_AGED {
        write!(aged, "| {policy} |").unwrap();
        for row in exact.clone().map(|rows| named(rows, policy)) {
            let [bits, kld, perplexity] =
                ["bits_per_value", "kld_mean", "perplexity"].map(|key| number(row, key));
            write!(aged, " {bits:.2} | {} | {perplexity:.1} |", digits(kld)).unwrap();
        }
        aged += "\n";
    }
    keep(&[("longer contexts", flat), ("aged, longer contexts", aged)], &[], "longer_contexts -- --ignored");
}
