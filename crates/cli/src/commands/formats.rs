//! `torque formats`: the number formats, and whether they agree with recorded vectors.

use crate::table::Table;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use torque_engine::quant::{self, conformance};

/// List the formats of weights and KV cache, or check them
///
/// The errors are what encoding and decoding once does: Σ (x − decoded)² / Σ x², for values of a normal distribution, and
/// for the same with a few channels thirty times as large.
#[derive(Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Formats {
    /// Print JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print a Markdown table
    #[arg(long)]
    markdown: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  torque formats
  torque formats verify vectors/*.safetensors";

#[derive(Subcommand)]
enum Command {
    Verify(Verify),
}

impl Formats {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Some(Command::Verify(verify)) => verify.run(),
            None => self.list(),
        }
    }

    fn list(self) -> Result<ExitCode> {
        let rows = quant::table::table();
        let mut out = anstream::stdout().lock();
        if self.json {
            let rows: Vec<Json> = rows.iter().map(row_json).collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let columns =
            ["format", ">bits", ">error, Gaussian", ">error, outliers", "weights", "K and V", "also called"];
        let mut table = Table::new(&columns).markdown(self.markdown);
        for row in &rows {
            let yes = |holds: bool| if holds { "yes" } else { "–" }.to_string();
            table.row([
                row.format.name.to_string(),
                format!("{:.3}", row.bits),
                error(row.gaussian),
                error(row.outliers),
                yes(row.format.weights),
                yes(row.format.kv),
                row.format.aliases.join(" "),
            ]);
        }
        write!(out, "{table}")?;
        Ok(ExitCode::SUCCESS)
    }
}

fn row_json(row: &quant::table::Row) -> Json {
    json!({
        "name": row.format.name,
        "aliases": row.format.aliases,
        "bits": row.bits,
        "block": row.format.block,
        "block_bytes": row.format.bytes,
        "ggml_type": row.format.ggml_type,
        "gaussian_error": row.gaussian,
        "outlier_error": row.outliers,
        "weights": row.format.weights,
        "kv": row.format.kv,
    })
}

/// Six decimals, and what is smaller as a power of ten.
fn error(x: f64) -> String {
    if x == 0.0 || x >= 5e-7 { format!("{x:.6}") } else { format!("{x:.0e}") }
}

/// Check the formats against recorded vectors (safetensors)
///
/// Bytes must be the same and decoded values the same to the bit. One line for each case, then a count; the exit status
/// is 1 if any case fails.
#[derive(Args)]
#[command(after_help = VERIFY_EXAMPLES)]
struct Verify {
    /// Files of vectors
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  torque formats verify q4_k.safetensors
  torque formats verify *.safetensors | grep differ";

impl Verify {
    fn run(self) -> Result<ExitCode> {
        let mut out = io::stdout().lock();
        let (mut passed, mut failed) = (0, 0);
        for path in &self.files {
            let file = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            let outcomes = conformance::verify(&file).with_context(|| format!("`{}`", path.display()))?;
            for outcome in outcomes {
                let (subject, case) = (&outcome.subject, &outcome.case);
                if outcome.passed() {
                    passed += 1;
                    writeln!(out, "{subject} {case} ok")?;
                } else {
                    failed += 1;
                    writeln!(out, "{subject} {case} {} of {} differ", outcome.differing, outcome.total)?;
                }
            }
        }
        writeln!(out, "{passed} passed, {failed} failed")?;
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
