//! `torque eval all`: every measure of a KV cache, in one report.

use super::needle::NeedleFlags;
use super::study::{OutputFlags, Study, TextFlags};
use crate::flags::{ModelFlags, SweepFlags};
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;

/// KL divergence, sensitivity of layers and hidden facts, one after the other
///
/// What `torque eval kld`, `layers` and `needle` measure. Layers are those of the smallest policy. With --resume, what any of them has
/// measured with the same flags is taken from the file.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct All {
    #[command(flatten)]
    text: TextFlags,
    #[command(flatten)]
    needle: NeedleFlags,
    #[command(flatten)]
    output: OutputFlags,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    sweep: SweepFlags,
}

const EXAMPLES: &str = "\
Examples:
  torque eval all -m model.gguf -f wiki.test.raw --sweep q8_0,turbo4,turbo4/turbo3,turbo3 --report quality.html
  torque eval all -m model.gguf -f wiki.test.raw -c 8192 --chunks 4 --sweep turbo4,turbo3 --resume quality.jsonl";

impl All {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let policies = self.sweep.policies(self.model.model.as_deref())?;
        let text = self.text.read()?;
        let mut study = Study::open(&self.model, &self.output)?;
        let smallest = study.smallest(&policies)?;
        let needle = self.needle.needle(study.engine(), None);
        let whole = study.kld(&self.text, &text, &policies)?
            && study.layers(&self.text, &text, &policies, &smallest)?
            && study.needle(&needle, &policies)?;
        if whole { study.tell(true) } else { study.stopped() }
    }
}
