//! What was found, as tables and as JSON.

use crate::table::Table;
use crate::text::{significant, thousands};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::path::Path;
use torque_engine::Engine;
use torque_engine::evaluate::{CacheReport, Chunks, LayerReport, Retrieval};

/// Everything that was measured on a model.
pub struct Findings {
    /// The model's name.
    pub model: String,
    /// Its backend and device.
    pub device: String,
    /// Bytes of a token in f16.
    pub f16_bytes_per_token: f64,
    /// The text, if one was read.
    pub text: Option<Text>,
    /// Divergence, a policy each.
    pub kld: Vec<CacheReport>,
    /// What `torque tune` found beside these, a size each.
    pub tuned: Vec<CacheReport>,
    /// Divergence of a policy in one layer and side each.
    pub layers: Vec<LayerReport>,
    /// That policy's name.
    pub layers_of: String,
    /// Facts found, a policy each.
    pub needle: Vec<Retrieval>,
    /// Facts for each length and depth.
    pub trials: usize,
}

/// A text and how it was read.
#[derive(Clone, Serialize)]
pub struct Text {
    text: String,
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks.
    pub chunks: usize,
    /// The first position that was scored.
    pub from: usize,
    /// Tokens processed at once.
    pub batch: usize,
}

impl Text {
    /// Of a file, or of what is called so.
    pub fn new(path: &Path, chunks: &Chunks, batch: usize) -> Text {
        let (context, from) = (chunks.context, chunks.from);
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Text { text: name, context, chunks: chunks.count, from, batch }
    }

    /// In words.
    pub fn describe(&self) -> String {
        let Text { text, context, chunks, from, batch } = self;
        let plural = if *chunks == 1 { "" } else { "s" };
        let [context, from] = [context, from].map(|tokens| thousands(*tokens as u64));
        format!(
            "{text}, {chunks} chunk{plural} of {context} tokens, scored from position {from} on, {batch} at a time"
        )
    }
}

impl Findings {
    /// None yet.
    pub fn new(engine: &Engine) -> Findings {
        let f16 = engine.plan(&Default::default()).map_or(0.0, |plan| plan.bytes_per_token());
        Findings {
            model: engine.config().name.clone(),
            device: format!("{} ({})", engine.backend(), engine.device()),
            f16_bytes_per_token: f16,
            text: None,
            kld: Vec::new(),
            tuned: Vec::new(),
            layers: Vec::new(),
            layers_of: String::new(),
            needle: Vec::new(),
            trials: 0,
        }
    }

    /// One kind as a list, or alone if it is no list; several by their names.
    pub fn json(&self, list: bool) -> Value {
        let mut kinds = Map::new();
        let mut add = |kind: &str, rows: Vec<Value>| {
            if !rows.is_empty() {
                kinds.insert(kind.into(), rows.into());
            }
        };
        add("kld", self.kld.iter().map(|report| self.row(report, &report.policy, &self.text)).collect());
        add("layers", self.layers.iter().map(|row| self.row(row, &row.report.policy, &self.text)).collect());
        let trials = json!({ "trials": self.trials });
        add("needle", self.needle.iter().map(|found| self.row(found, &found.policy, &trials)).collect());
        match (kinds.len(), list) {
            (0, _) => json!([]),
            (1, true) => kinds.into_iter().next().expect("there is one").1,
            (1, false) => kinds.into_iter().next().expect("there is one").1[0].take(),
            _ => kinds.into(),
        }
    }

    /// What was found, with what it was found on.
    fn row(&self, found: &impl Serialize, policy: &torque_engine::Policy, on: &impl Serialize) -> Value {
        let fields = |value: Value| value.as_object().cloned().unwrap_or_default();
        let to_value = |value| fields(serde_json::to_value(value).expect("plain numbers and names"));
        let mut row = fields(json!({ "model": self.model, "type_k": policy.k, "type_v": policy.v }));
        row.extend(fields(serde_json::to_value(on).expect("plain numbers and names")));
        row.extend(to_value(found));
        row.into()
    }

    /// Tables for people.
    pub fn tables(&self) -> String {
        let mut out = String::new();
        let mut add = |title: &str, table: Table| {
            let gap = if out.is_empty() { "" } else { "\n" };
            let _ = write!(out, "{gap}{title}\n\n{table}");
        };
        let text = self.text.as_ref().map(Text::describe).unwrap_or_default();
        if !self.kld.is_empty() {
            add(&format!("Divergence from a cache in f16: {text}"), self.kld_table());
        }
        if !self.layers.is_empty() {
            add(&format!("Each layer and side of {} alone: {text}", self.layers_of), self.layers_table());
        }
        if !self.needle.is_empty() {
            add("Facts found, by depth and tokens of the prompt", self.needle_table());
        }
        out
    }

    fn kld_table(&self) -> Table {
        let mut table = Table::new(&[
            "KV cache",
            ">bits",
            ">bytes/token",
            ">KLD",
            ">±",
            ">99 %",
            ">max",
            ">same top",
            ">perplexity",
            ">f16",
        ]);
        for report in &self.kld {
            let divergence = &report.divergence;
            table.row([
                report.name.clone(),
                format!("{:.2}", report.bits_per_value),
                thousands(report.bytes_per_token.round() as u64),
                significant(divergence.kld_mean),
                significant(divergence.kld_mean_error),
                significant(divergence.kld_p99),
                significant(divergence.kld_max),
                percent(divergence.top1_agreement),
                format!("{:.3}", report.perplexity),
                format!("{:.3}", report.f16_perplexity),
            ]);
        }
        table
    }

    fn layers_table(&self) -> Table {
        let mut table =
            Table::new(&[">layer", "side", "format", ">KLD", ">±", ">max", ">same top", ">1 − correlation"]);
        for LayerReport { layer, side, format, report } in &self.layers {
            let divergence = &report.divergence;
            table.row([
                layer.to_string(),
                side.to_string(),
                format.to_string(),
                significant(divergence.kld_mean),
                significant(divergence.kld_mean_error),
                significant(divergence.kld_max),
                percent(divergence.top1_agreement),
                significant(1.0 - divergence.correlation),
            ]);
        }
        table
    }

    fn needle_table(&self) -> Table {
        let lengths = self.needle.first().map(|found| found.lengths.clone()).unwrap_or_default();
        let lengths: Vec<String> =
            lengths.iter().map(|length| format!(">{}", thousands(*length as u64))).collect();
        let mut columns = vec!["KV cache", ">bytes/token", ">depth"];
        columns.extend(lengths.iter().map(String::as_str));
        columns.extend([">found", ">digits"]);
        let mut table = Table::new(&columns);
        for found in &self.needle {
            for (index, (depth, row)) in found.depths.iter().zip(&found.grid).enumerate() {
                let once = |text: String| if index == 0 { text } else { String::new() };
                let mut cells = vec![
                    once(found.name.clone()),
                    once(thousands(found.bytes_per_token.round() as u64)),
                    format!("{depth} %"),
                ];
                cells.extend(row.iter().map(|share| format!("{:.0} %", 100.0 * share)));
                cells.extend([once(percent(found.found)), once(percent(found.digits))]);
                table.row(cells);
            }
        }
        table
    }
}

/// `97.1 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_count() {
        for (value, text) in [
            (0.0, "0"),
            (0.008204, "0.00820"),
            (0.0000099, "9.90e-6"),
            (0.000114, "0.000114"),
            (5.2e-8, "5.20e-8"),
            (12.34, "12.3"),
            (1234.0, "1234"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(significant(value), text);
        }
        assert_eq!(percent(0.9712), "97.1 %");
    }
}
