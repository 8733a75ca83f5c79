//! `torque eval perplexity`: how well a text is predicted.

use super::study::{TextFlags, warn_if_exact};
use crate::flags::{ModelFlags, PolicyFlags};
use crate::model;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::io::{self, Write};
use std::process::ExitCode;
use torque_engine::{SessionOptions, evaluate};

/// Perplexity of a text, as llama-perplexity measures it
///
/// The text is cut into chunks of the context; the second half of each is scored. Lower is better.
#[derive(Args)]
#[command(after_help = EXAMPLES, mut_arg("ctx_size", |context| context.default_value("512")))]
pub struct Perplexity {
    #[command(flatten)]
    text: TextFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    policy: PolicyFlags,
}

const EXAMPLES: &str = "\
Examples:
  torque eval perplexity -m model.gguf -f wiki.test.raw
  torque eval perplexity -m model.gguf -f wiki.test.raw --chunks 8 -c 4096 -ctk turbo3 -ctv turbo3";

impl Perplexity {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let policy = self.policy.policy("f16", self.model.model.as_deref())?;
        let text = self.text.read()?;
        let engine = model::open(&self.model)?;
        let tokens = self.text.tokens(&engine, &text);
        let chunks = self.text.chunks(&engine, &tokens)?;
        let batch = self.text.batch([&policy]);
        warn_if_exact(&engine, &chunks, batch, [&policy])?;
        let options =
            SessionOptions { context: Some(chunks.context), batch, policy, ..SessionOptions::default() };
        let perplexity = evaluate::perplexity(&engine, &chunks, &options, &mut |done, of, so_far| {
            let end = if done == of { "\n" } else { "," };
            let _ = write!(io::stderr(), "[{done}]{:.4}{end}", so_far.value());
        })?;
        if self.json {
            let json = json!({
                "perplexity": perplexity.value(),
                "error": perplexity.standard_error(),
                "tokens": perplexity.tokens(),
                "context": chunks.context,
                "type_k": options.policy.k,
                "type_v": options.policy.v,
            });
            writeln!(io::stdout(), "{json}")?;
        } else {
            writeln!(io::stdout(), "{perplexity}")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
