//! `torque eval layers`: which layers of a KV cache matter.

use super::study::{OutputFlags, Study, TextFlags};
use crate::flags::{ModelFlags, PolicyFlags};
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;

/// What the formats of a policy cost in each layer and side alone
///
/// Measures as `torque eval kld` does, once for the keys and once for the values of every layer: they are stored as the policy
/// says, all others in f16. Where the divergence is large, a policy file (--kv-policy) may say a larger format.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Layers {
    #[command(flatten)]
    text: TextFlags,
    #[command(flatten)]
    output: OutputFlags,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    policy: PolicyFlags,
}

const EXAMPLES: &str = "\
Examples:
  torque eval layers -m model.gguf -f wiki.test.raw --chunks 4 -ctk turbo3 -ctv turbo3
  torque eval layers -m model.gguf -f wiki.test.raw --kv-policy mine.toml --report layers.html";

impl Layers {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let policy = self.policy.named_policy(self.model.model.as_deref())?;
        let text = self.text.read()?;
        let mut study = Study::open(&self.model, &self.output)?;
        if !study.layers(&self.text, &text, std::slice::from_ref(&policy), &policy)? {
            return study.stopped();
        }
        study.tell(true)
    }
}
