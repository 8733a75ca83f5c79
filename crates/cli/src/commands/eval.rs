//! `torque eval`: how good the numbers are.

mod all;
pub(super) mod findings;
mod journal;
mod kld;
mod layers;
mod needle;
pub(super) mod page;
mod perplexity;
mod plot;
mod reference;
pub(super) mod study;

use anyhow::Result;
use clap::{Args, Subcommand};
use std::process::ExitCode;

/// Measure quality: what a KV cache changes, perplexity of a text, or against recorded logits
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Eval {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  torque eval kld -m model.gguf -f wiki.test.raw -ctk turbo3 -ctv turbo3
  torque eval all -m model.gguf -f wiki.test.raw --sweep q8_0,turbo4,turbo3 --report quality.html
  torque eval perplexity -m model.gguf -f wiki.test.raw
  torque eval reference model.gguf model.safetensors";

#[derive(Subcommand)]
enum Command {
    Kld(kld::Kld),
    Layers(layers::Layers),
    Needle(needle::Needle),
    All(all::All),
    Perplexity(perplexity::Perplexity),
    Reference(reference::Reference),
}

impl Eval {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Kld(kld) => kld.run(),
            Command::Layers(layers) => layers.run(),
            Command::Needle(needle) => needle.run(),
            Command::All(all) => all.run(),
            Command::Perplexity(perplexity) => perplexity.run(),
            Command::Reference(reference) => reference.run(),
        }
    }
}
