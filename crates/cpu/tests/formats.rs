//! Proves the matrix of K format × V format × head size on the CPU backend, and keeps `docs/formats.md`,
//! which is written from it.

use std::collections::BTreeMap;
use std::fmt::Write;
use torque_backend::suite::{self, Cell, HEAD_SIZES};
use torque_cpu::Cpu;
use torque_kv::{KvLayer, Plan, Policy};
use torque_quant::{FORMATS, FormatOps, table};

/// Float arithmetic in another order: a few hundred roundings of 2^-24.
const TOLERANCE: f32 = 2e-5;

#[test]
fn every_cell_works_and_the_documentation_says_so() {
    let backend = Cpu::new(Some(2), None).unwrap();
    let cells = suite::check_every_pair(&backend, &HEAD_SIZES, TOLERANCE);
    let formats = FORMATS.iter().filter(|f| f.kv).count();
    assert_eq!(cells.len(), formats * formats * HEAD_SIZES.len());

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/formats.md");
    let expected = document(&cells);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/formats.md is stale: run `UPDATE_DOCS=1 cargo test --release -p torque-cpu`"
    );
}

fn document(cells: &[Cell]) -> String {
    let mut text = String::from(
        "# Number formats\n\n\
         <!-- Written by crates/cpu/tests/formats.rs from the list of formats and from measurements. -->\n\n\
         Any format of the table marked K, V holds keys or values, in any pair, at any head size. The error is \
         relative squared error on rows of 256: Gaussian numbers, and Gaussian numbers with four channels × 30.\n\n\
         | format | bits | error, Gaussian | error, outliers | holds | other names |\n|---|---|---|---|---|---|\n",
    );
    for row in table::table() {
        let format = row.format;
        let holds = match (format.weights, format.kv) {
            (true, true) => "weights, K, V",
            (true, false) => "weights",
            _ => "K, V",
        };
        let aliases: Vec<_> = format.aliases.iter().map(|a| format!("`{a}`")).collect();
        let (gauss, outliers) = (number(row.gaussian), number(row.outliers));
        let aliases = aliases.join(" ");
        writeln!(text, "| {} | {} | {gauss} | {outliers} | {holds} | {aliases} |", format.name, row.bits)
            .unwrap();
    }
    text += "\nThe formats of GGUF files are those of [ggml](https://github.com/ggml-org/llama.cpp). `turbo2`, `turbo3`, \
             `turbo4` and the weight formats `tq3_1s`, `tq4_1s` follow TurboQuant (Zandieh et al. 2025) as \
             [llama-cpp-turboquant](https://github.com/TheTom/llama-cpp-turboquant) stores it: rotate, then round to an optimal \
             codebook. `turbo4` uses the true Lloyd–Max table and no reserved bytes; `turbo8` is a rotated 8-bit \
             format with one scale a head. `turbo4_tcq`, `turbo3_tcq` and `turbo2_tcq` choose all codes of a head together, as a path \
             through a trellis (trellis coded quantisation, Marcellin and Fischer 1990; windows of a bit stream as states, \
             QTIP, Tseng et al. 2024): for the bits of turbo4, turbo3 and turbo2, a third less error. They follow \
             [buun-llama-cpp](https://github.com/spiritbuun/buun-llama-cpp) by spiritbuun, with a codebook of their own. \
             `turbo4_nested`, `turbo3_nested` and `turbo2_nested` share one codebook, as descriptions that are refined step by step \
             (successive refinement, Equitz and Cover 1991), within 1 % of the least error at each width: a block of fewer bits is the \
             beginning of one of more, so that older pages shrink without being encoded again.\n\n\
             `torque formats` prints the first table; `torque formats verify FILE…` checks recorded vectors, so that other \
             implementations can be compared.\n\n\
             ## What a KV cache costs\n\n\
             Bits per value of sealed pages of 128 tokens, by head size. Formats other than floats also store the mean of \
             each page, 16 bits a channel: 0.125 bits a value. Heads are never padded.\n\n";
    heads_table(&mut text);
    let coarse: Vec<_> = FORMATS.iter().filter(|f| f.coarse).map(|f| f.name).collect();
    writeln!(
        text,
        "\n## Every pair\n\n\
         Error of attention outputs (root mean square, relative) against exact arithmetic on unquantised K and V, the \
         largest over head sizes {}. Synthetic keys with a large constant part, every token sealed, none kept exact, pages \
         of 16. All {} cells run in the tests of every change, as prefill and decode, causal and windowed, with soft cap and \
         with learned sinks, each within {TOLERANCE:.0e} of the scalar reference on the same pages; {:.0e} more for a format \
         whose codes are multiplied as whole numbers, {:.0e} more for one whose levels, queries and weights are then rounded \
         to bytes ({}).\n",
        HEAD_SIZES.map(|d| d.to_string()).join(", "),
        cells.len(),
        suite::attention_tolerance(0.0, ["f32", "q8_0"]),
        suite::attention_tolerance(0.0, ["f32", "turbo3"]),
        coarse.join(", "),
    )
    .unwrap();
    pairs_table(&mut text, cells);
    text
}

fn heads_table(text: &mut String) {
    let sizes = HEAD_SIZES.map(|d| d.to_string());
    writeln!(text, "| format | {} |\n|{}", sizes.join(" | "), "---|".repeat(1 + sizes.len())).unwrap();
    for format in FORMATS.iter().filter(|f| f.kv) {
        let bits = HEAD_SIZES.map(|head_dim| format!("{:.3}", bits(format, head_dim)));
        writeln!(text, "| {} | {} |", format.name, bits.join(" | ")).unwrap();
    }
}

fn bits(format: &FormatOps, head_dim: usize) -> f64 {
    let layer = KvLayer { heads: 1, head_dim: [head_dim; 2], values_in_keys: false, window: None };
    let plan = Plan::new(&Policy::uniform(format.name, format.name), &[layer]).unwrap();
    4.0 * plan.bytes_per_token() / head_dim as f64
}

fn pairs_table(text: &mut String, cells: &[Cell]) {
    let names: Vec<&str> = FORMATS.iter().filter(|f| f.kv).map(|f| f.name).collect();
    let mut worst: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for cell in cells {
        let error = worst.entry((cell.k, cell.v)).or_default();
        *error = error.max(cell.error);
    }
    writeln!(text, "| K \\ V | {} |\n|{}", names.join(" | "), "---|".repeat(1 + names.len())).unwrap();
    for k in &names {
        // Below 1e-6 it is the rounding of the sums, not of the formats.
        let error = |v: &&str| worst[&(*k, *v)];
        let row: Vec<_> =
            names.iter().map(|v| if error(v) < 1e-6 { "< 1e-6".into() } else { number(error(v)) }).collect();
        writeln!(text, "| {k} | {} |", row.join(" | ")).unwrap();
    }
}

/// Two significant digits.
fn number(x: f64) -> String {
    match x {
        0.0 => "0".into(),
        x if x < 1e-3 => format!("{x:.0e}"),
        x if x < 0.01 => format!("{x:.4}"),
        x if x < 0.1 => format!("{x:.3}"),
        x => format!("{x:.2}"),
    }
}
