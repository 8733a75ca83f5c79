//! `torque eval reference`: against recorded logits.

use crate::flags::{DeviceFlags, PolicyFlags, positive};
use crate::model;
use crate::progress::Progress;
use anyhow::Result;
use clap::Args;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use torque_engine::{SessionOptions, evaluate};

/// Compare logits with a reference's, token by token
///
/// The reference is a safetensors file with `tokens` and one row of logits for each. Without flags, this checks the model
/// itself: the scalar backend with an f32 cache.
#[derive(Args)]
#[command(after_help = REFERENCE_EXAMPLES, mut_arg("backend", |backend| backend.default_value("scalar")))]
#[command(mut_arg("cache_type_k", |k| k.help("Format of keys, short: -ctk [default: f32]")))]
#[command(mut_arg("cache_type_v", |v| v.help("Format of values, as for keys, short: -ctv [default: f32]")))]
pub struct Reference {
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
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let policy = self.policy.policy("f32", Some(&self.model))?;
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
        let options =
            SessionOptions { context: None, batch: self.batch_size, policy, ..SessionOptions::default() };
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
