//! Measures KV caches with the demo models, and keeps what `docs/kv-cache.md` says of them, and its plots.

use crate::{json, shared, torque};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

/// Models, by the names of their columns.
const MODELS: [&str; 2] = ["demo", "demo-kbias"];

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

/// Nothing is exact on purpose.
const BARE: &str = "--kv-tail 0 --kv-sink 0";

/// Reports of `torque eval kld`, one a policy; a picture where wanted.
fn sweep(model: &str, policies: &str, flags: &str, picture: Option<&Path>) -> Vec<Value> {
    let mut command = torque("eval kld -c 1024 --chunks 8 --json -m");
    command.arg(shared(&format!("demo/{model}.gguf"))).arg("-f").arg(shared("demo/eval.txt"));
    command.args(["--sweep", policies]).args(flags.split_whitespace());
    if let Some(picture) = picture {
        command.arg("--report").arg(picture);
    }
    json(&mut command).as_array().expect("a row a policy").clone()
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
        let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
        let name = row["name"].as_str().expect("a name");
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

#[test]
fn the_documentation_says_what_caches_cost() {
    let directory = tempfile::tempdir().unwrap();
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let path = Path::new(DOCS).join("kv-cache.md");
    let found = std::fs::read_to_string(&path).unwrap();
    let mut expected = found.clone();
    let mut files = Vec::new();
    let (mut flat, mut aged, mut exact) = (Vec::new(), Vec::new(), Vec::new());
    for model in MODELS {
        let name = format!("kv-cache-{model}.svg");
        let picture = directory.path().join(&name);
        let bare = sweep(model, FLAT, BARE, Some(&picture));
        files.push((Path::new(DOCS).join(name), std::fs::read_to_string(picture).unwrap()));
        let mut rows = sweep(model, DECAYED, BARE, None);
        rows.extend_from_slice(&bare);
        let named = |name: &str| rows.iter().find(|row| row["name"] == name).expect(name).clone();
        aged.push(AGED.map(named).to_vec());
        flat.push(bare);
        exact.push(sweep(model, FLAT, "", None));
    }
    for (section, of_models) in [("flat", flat), ("aged", aged), ("exact tail and sinks", exact)] {
        expected = replaced(&expected, section, &table(&of_models));
    }
    files.push((path, expected));
    for (path, expected) in files {
        if update {
            std::fs::write(&path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let name = path.file_name().unwrap().display();
        assert!(
            found == expected,
            "docs/{name} is stale: run `UPDATE_DOCS=1 cargo test --release -p torque-cli kv_cache`"
        );
    }
}
