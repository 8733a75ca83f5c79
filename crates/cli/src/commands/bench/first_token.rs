//! `torque bench first-token`: a program that ends with its first token, for `torque bench` to time.

use crate::flags::{KvFlags, ModelFlags};
use crate::model;
use anyhow::Result;
use clap::Args;
use std::io::{self, Write};
use std::process::ExitCode;
use torque_engine::peak_memory;

/// Compute one token and print the most memory that this took, in bytes
#[derive(Args)]
#[command(after_help = "Examples:\n  torque bench first-token -m model.gguf")]
pub struct FirstToken {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    kv: KvFlags,
}

impl FirstToken {
    pub fn run(self) -> Result<ExitCode> {
        let engine = model::open(&self.model)?;
        let mut session = engine.session(&self.kv.session(self.model.model.as_deref())?)?;
        session.append(&[0])?;
        // Finding the likeliest is what is left to do for a token.
        std::hint::black_box(session.logits().iter().copied().fold(f32::NEG_INFINITY, f32::max));
        writeln!(io::stdout(), "{}", peak_memory().unwrap_or(0))?;
        Ok(ExitCode::SUCCESS)
    }
}
