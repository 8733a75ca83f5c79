//! `torque formats`: the number formats, and whether they agree with recorded vectors.

use crate::table::Table;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use torque_engine::quant::conformance;

/// List the formats of weights and KV cache, or check them
///
/// The error is that of one encoding and decoding, relative to the values, for values drawn from a normal
/// distribution and for values of which a few channels are thirty times larger.
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
        todo!()
    }
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
