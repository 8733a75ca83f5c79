//! A measurement as a row: of the table, of JSON, of a record.

use crate::table::Table;
use crate::text::count;
use anyhow::{Result, bail};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use torque_engine::human_bytes;

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub model: String,
    pub architecture: String,
    pub size_bytes: u64,
    pub parameters: u64,
    pub backend: String,
    pub isa: String,
    pub threads: usize,
    pub batch: usize,
    pub type_k: String,
    pub type_v: String,
    pub test: String,
    pub n_prompt: usize,
    pub n_gen: usize,
    pub n_depth: usize,
    pub tokens_per_s: f64,
    pub stddev: f64,
    pub gb_per_s: f64,
    /// Tokens per second of each repetition.
    #[serde(deserialize_with = "numbers")]
    pub samples: Vec<f64>,
    /// GB/s that all threads read from memory, in a loop that is not the engine's, before each repetition.
    #[serde(deserialize_with = "numbers")]
    pub machine_gb_per_s: Vec<f64>,
    /// From the start of the program to the first token, of test `load`.
    pub first_token_s: Option<f64>,
    /// The most memory that the program held until then, the mapped file included.
    pub peak_bytes: Option<u64>,
    /// Of the values that attention met where it may leave some out, the share that it left out.
    #[serde(default)]
    pub values_skipped: Option<f64>,
    pub cpu: String,
    pub compiler: String,
    pub revision: String,
    /// UTC.
    pub date: String,
    /// The median of the samples, in medians of the baseline's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_baseline: Option<f64>,
}

impl Row {
    /// What two runs must agree in to be compared.
    pub fn key(&self) -> String {
        let Row { model, backend, isa, threads, batch, type_k, type_v, test, .. } = self;
        let size = human_bytes(self.size_bytes as f64);
        format!("{model} ({size}) {backend}/{isa} -t {threads} -b {batch} {type_k}/{type_v} {test}")
    }

    /// The cells of a record, each under its column's name.
    pub fn cells(&self) -> Result<Vec<(String, String)>> {
        let serde_json::Value::Object(columns) = serde_json::to_value(self)? else {
            bail!("a row is an object");
        };
        let cell = |value: serde_json::Value| match value {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text,
            serde_json::Value::Array(values) => {
                values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
            other => other.to_string(),
        };
        let columns = columns.into_iter().filter(|(name, _)| name != "of_baseline");
        Ok(columns.map(|(name, value)| (name, cell(value))).collect())
    }
}

/// Now, in UTC.
pub fn date() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Reads a list of numbers, or the numbers of a cell.
fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    struct Numbers;
    impl<'de> Visitor<'de> for Numbers {
        type Value = Vec<f64>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("numbers with spaces between")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<f64>, A::Error> {
            let mut numbers = Vec::new();
            while let Some(number) = list.next_element()? {
                numbers.push(number);
            }
            Ok(numbers)
        }
        fn visit_str<E: de::Error>(self, cell: &str) -> Result<Vec<f64>, E> {
            let number = |word: &str| word.parse().map_err(|_| E::custom(format!("`{word}` is no number")));
            cell.split_whitespace().map(number).collect()
        }
        // A cell with one number.
        fn visit_f64<E>(self, number: f64) -> Result<Vec<f64>, E> {
            Ok(vec![number])
        }
        fn visit_u64<E>(self, number: u64) -> Result<Vec<f64>, E> {
            Ok(vec![number as f64])
        }
    }
    from.deserialize_any(Numbers)
}

/// The table that people read.
pub fn table(rows: &[Row], baseline: bool) -> Table {
    let mut columns = vec![
        "model",
        ">size",
        ">params",
        "backend",
        ">threads",
        "type_k",
        "type_v",
        ">test",
        ">tokens/s",
        ">GB/s",
    ];
    let peak = rows.iter().any(|row| row.peak_bytes.is_some());
    columns.extend(peak.then_some(">peak memory"));
    let sparse = rows.iter().any(|row| row.values_skipped.is_some());
    columns.extend(sparse.then_some(">values skipped"));
    columns.extend(baseline.then_some(">of baseline"));
    let mut table = Table::new(&columns).markdown(true);
    for row in rows {
        let speed = match row.first_token_s {
            Some(seconds) => format!("{seconds:.3} s"),
            None => format!("{:.2} ± {:.2}", row.tokens_per_s, row.stddev),
        };
        let mut cells = vec![
            row.model.clone(),
            human_bytes(row.size_bytes as f64),
            count(row.parameters),
            format!("{}/{}", row.backend, row.isa),
            row.threads.to_string(),
            row.type_k.clone(),
            row.type_v.clone(),
            row.test.clone(),
            speed,
            format!("{:.2}", row.gb_per_s),
        ];
        let peak_bytes = row.peak_bytes.map_or("–".into(), |bytes| human_bytes(bytes as f64));
        cells.extend(peak.then_some(peak_bytes));
        let skipped = row.values_skipped.map_or("–".into(), |share| format!("{:.1} %", 100.0 * share));
        cells.extend(sparse.then_some(skipped));
        let ratio = row.of_baseline.map_or("new".into(), |ratio| format!("{ratio:.3}×"));
        cells.extend(baseline.then_some(ratio));
        table.row(cells);
    }
    table
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A row with these samples, which took place while the machine read so many GB/s.
    pub fn row(test: &str, samples: &[f64], machine: &[f64]) -> Row {
        Row {
            model: "a, \"b\"".into(),
            architecture: "llama".into(),
            size_bytes: 1000,
            parameters: 1000,
            backend: "cpu".into(),
            isa: "avx2".into(),
            threads: 2,
            batch: 512,
            type_k: "f16".into(),
            type_v: "turbo3".into(),
            test: test.into(),
            n_prompt: 0,
            n_gen: 128,
            n_depth: 0,
            tokens_per_s: 10.0,
            stddev: 0.5,
            gb_per_s: 20.0,
            samples: samples.into(),
            machine_gb_per_s: machine.into(),
            first_token_s: None,
            peak_bytes: None,
            values_skipped: None,
            cpu: "CPU, 1 GHz".into(),
            compiler: "rustc".into(),
            revision: "abc".into(),
            date: "2026-01-31T00:00:00Z".into(),
            of_baseline: None,
        }
    }

    #[test]
    fn the_table_has_the_columns_that_are_needed() {
        let rows = [row("tg4", &[1.0], &[1.0])];
        let header = |rows: &[Row], baseline| {
            let text = table(rows, baseline).to_string();
            text.lines().next().unwrap().to_string()
        };
        for part in ["peak", "baseline", "skipped"] {
            assert!(!header(&rows, false).contains(part), "{part}");
        }
        let load = Row { peak_bytes: Some(1 << 30), first_token_s: Some(0.25), ..rows[0].clone() };
        let sparse = Row { values_skipped: Some(0.25), ..rows[0].clone() };
        let text = table(&[rows[0].clone(), load, sparse], true).to_string();
        for part in [
            "values skipped",
            "25.0 %",
            "peak memory",
            "of baseline",
            "1.00 GiB",
            "0.250 s",
            "10.00 ± 0.50",
            "new",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
