//! `torque eval kld`: what a KV cache changes of a model's predictions.

use super::study::{OutputFlags, Study, TextFlags};
use crate::flags::{ModelFlags, SweepFlags};
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;

/// KL divergence from the model's own predictions with a cache in f16
///
/// The text is cut into chunks of the context, and the second half of each is scored: how far the distribution of the next token
/// has moved (KLD, in nats: mean, percentiles, by position), how often the most likely token is still the same, how the logits
/// correlate, and the perplexity. All policies of --sweep share one pass with a cache in f16.
///
/// What is exact by default stays so: the first and the newest tokens, and those of a batch to one another. With --kv-sink 0
/// --kv-tail 0 everything is sealed that can be.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Kld {
    #[command(flatten)]
    text: TextFlags,
    #[command(flatten)]
    output: OutputFlags,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    sweep: SweepFlags,
}

const EXAMPLES: &str = "\
Examples:
  torque eval kld -m model.gguf -f wiki.test.raw -c 4096 --chunks 8 -ctk turbo3 -ctv turbo3
  torque eval kld -m model.gguf -f wiki.test.raw --sweep q8_0,turbo4/turbo3,turbo3,mine.toml --report kld.html
  torque eval kld -m model.gguf -f book.txt -c 32768 --from 0 -ctv turbo2 --resume kld.jsonl --json";

impl Kld {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let policies = self.sweep.policies(self.model.model.as_deref())?;
        let text = self.text.read()?;
        let mut study = Study::open(&self.model, &self.output)?;
        if !study.kld(&self.text, &text, &policies)? {
            return study.stopped();
        }
        study.tell(!self.sweep.sweep.is_empty())
    }
}
