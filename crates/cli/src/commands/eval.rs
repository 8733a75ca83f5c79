//! `torque eval`: how good the numbers are.

use crate::flags::{DeviceFlags, ModelFlags, PolicyFlags, positive};
use crate::progress::Progress;
use crate::{errors, model, text};
use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use torque_engine::tokenizer::Encode;
use torque_engine::{Engine, Policy, SessionOptions, evaluate};

/// Measure quality: against recorded logits, or as perplexity of a text
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Eval {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  torque eval perplexity -m model.gguf -f wiki.test.raw
  torque eval reference model.gguf model.safetensors";

#[derive(Subcommand)]
enum Command {
    Perplexity(Perplexity),
    Reference(Reference),
}

impl Eval {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Perplexity(perplexity) => perplexity.run(),
            Command::Reference(reference) => reference.run(),
        }
    }
}

/// Perplexity of a text, as llama-perplexity measures it
///
/// The text is cut into chunks of the context; the second half of each is scored. Lower is better.
#[derive(Args)]
#[command(after_help = PERPLEXITY_EXAMPLES)]
struct Perplexity {
    /// The text; `-` is stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Score so many chunks only
    #[arg(long, value_name = "N", value_parser = positive)]
    chunks: Option<usize>,
    /// Tokens in a chunk
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = positive)]
    ctx_size: usize,
    /// Tokens processed at once; they see one another exactly, whatever the format of the cache
    #[arg(short, long, value_name = "N", default_value_t = 128, value_parser = positive)]
    batch_size: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    policy: PolicyFlags,
}

const PERPLEXITY_EXAMPLES: &str = "\
Examples:
  torque eval perplexity -m model.gguf -f wiki.test.raw
  torque eval perplexity -m model.gguf -f wiki.test.raw --chunks 8 -c 4096 -ctk turbo3 -ctv turbo3";

impl Perplexity {
    fn run(self) -> Result<ExitCode> {
        let text = text::read(&self.file)?;
        let engine = model::open(&self.model)?;
        let tokens = engine.tokenizer().encode(&text, Encode { add_special: true, parse_special: false });
        let options = SessionOptions {
            context: Some(self.ctx_size),
            batch: self.batch_size,
            policy: self.policy.policy("f16")?,
        };
        self.warn_if_exact(&engine, &options.policy)?;
        let perplexity = evaluate::perplexity(
            &engine,
            &tokens,
            self.ctx_size,
            self.chunks,
            &options,
            &mut |done, of, so_far| {
                let end = if done == of { "\n" } else { "," };
                let _ = write!(io::stderr(), "[{done}]{:.4}{end}", so_far.value());
            },
        )?;
        if self.json {
            let json = json!({
                "perplexity": perplexity.value(),
                "error": perplexity.standard_error(),
                "tokens": perplexity.tokens(),
                "context": self.ctx_size,
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

impl Perplexity {
    /// Warns if the format of the cache cannot show: if every token that is scored sees exact keys and values only.
    fn warn_if_exact(&self, engine: &Engine, policy: &Policy) -> Result<()> {
        let plan = engine.plan(policy)?;
        let (sink, first) = (plan.sink_pages * plan.page, self.ctx_size / 2);
        let last_batch =
            first + (self.ctx_size - first).saturating_sub(1) / self.batch_size * self.batch_size;
        if last_batch < sink + plan.page + plan.tail && (&policy.k[..], &policy.v[..]) != ("f16", "f16") {
            errors::warn(format_args!(
                "with -c {} and -b {} no token sees the formats of the cache: the first {sink} and the newest {} tokens \
                 and those of a batch are exact; see --kv-sink, --kv-tail and -b",
                self.ctx_size, self.batch_size, plan.tail
            ));
        }
        Ok(())
    }
}

/// Compare logits with a reference's, token by token
///
/// The reference is a safetensors file with `tokens` and one row of logits for each. Without flags, this checks the model
/// itself: the scalar backend with an f32 cache.
#[derive(Args)]
#[command(after_help = REFERENCE_EXAMPLES, mut_arg("backend", |backend| backend.default_value("scalar")))]
#[command(mut_arg("cache_type_k", |k| k.help("Format of keys, short: -ctk [default: f32]")))]
#[command(mut_arg("cache_type_v", |v| v.help("Format of values, as for keys, short: -ctv [default: f32]")))]
struct Reference {
    /// Model file
    model: PathBuf,
    /// Reference (safetensors)
    reference: PathBuf,
    /// The tensor to compare with
    #[arg(long, value_name = "NAME", default_value = "logits_ref")]
    target: String,
    /// Leave out tokens whose routing to experts is closer than this to another: `router_margin` in the reference
    #[arg(long, value_name = "X")]
    router_margin: Option<f32>,
    /// Tokens processed at once; they see one another exactly, whatever the format of the cache
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = positive)]
    batch_size: usize,
    /// Print JSON, with more figures
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceFlags,
    #[command(flatten)]
    policy: PolicyFlags,
}

const REFERENCE_EXAMPLES: &str = "\
Examples:
  torque eval reference llama.gguf llama.safetensors
  torque eval reference llama.gguf llama.safetensors --backend cpu -ctk turbo3 -ctv turbo3 \\
      --kv-tail 0 --kv-sink 0 --kv-page 16 -b 16 --target logits_kv_turbo3_turbo3";

impl Reference {
    fn run(self) -> Result<ExitCode> {
        let policy = self.policy.policy("f32")?;
        let engine = model::open_file(&self.model, &self.device.options())?;
        let reference = evaluate::Reference::read(&self.reference)?;
        let margins = match self.router_margin {
            Some(least) => Some((least, reference.floats("router_margin")?)),
            None => None,
        };
        let keep = |token: usize| match &margins {
            Some((least, margins)) => margins.get(token).is_none_or(|margin| margin >= least),
            None => true,
        };
        let options = SessionOptions { context: None, batch: self.batch_size, policy };
        let progress = Progress::spinner("comparing");
        let report = evaluate::reference(&engine, &self.reference, &self.target, &options, &keep);
        drop(progress);
        let report = report?;
        let figures = [
            ("kld_mean", format!("{:.4e}", report.kld_mean)),
            ("kld_max", format!("{:.4e}", report.kld_max)),
            ("top1_agreement", format!("{:.4}", report.top1_agreement)),
            ("max_abs_diff", format!("{:.4e}", report.max_abs_diff)),
        ];
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            figures.iter().try_for_each(|(name, value)| writeln!(out, "{name} {value}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
