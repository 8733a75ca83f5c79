//! The context and what its KV cache is stored in.

use super::positive;
use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::path::PathBuf;
use torque_engine::quant::FORMATS;
use torque_engine::{Policy, SessionOptions};

/// Context and KV cache.
#[derive(Args, Clone)]
#[command(next_help_heading = "Context and KV cache")]
pub struct KvFlags {
    /// Tokens of context; 0: as many as the model was trained with, or as fit in memory
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub ctx_size: usize,
    /// Tokens of a prompt processed at once
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub batch_size: usize,
    #[command(flatten)]
    pub policy: PolicyFlags,
}

/// What keys and values are stored in.
#[derive(Args, Clone)]
#[command(next_help_heading = "Context and KV cache")]
pub struct PolicyFlags {
    /// Format of keys, short: -ctk [default: f16]
    #[arg(long, value_name = "FORMAT", value_parser = kv_formats(), ignore_case = true)]
    pub cache_type_k: Option<String>,
    /// Format of values, as for keys, short: -ctv [default: f16]
    #[arg(long, value_name = "FORMAT", value_parser = kv_formats(), ignore_case = true, hide_possible_values = true)]
    pub cache_type_v: Option<String>,
    /// Newest tokens kept exact [default: 128]
    #[arg(long, value_name = "N")]
    pub kv_tail: Option<usize>,
    /// First tokens kept in f16 [default: 128]
    #[arg(long, value_name = "N")]
    pub kv_sink: Option<usize>,
    /// Tokens sealed at once, a multiple of 16 [default: 128]
    #[arg(long, value_name = "N")]
    pub kv_page: Option<usize>,
    /// Other formats for some layers: uniform, boundary, or a layer-adaptive mode of llama.cpp's forks, 1 2 5 6 7
    #[arg(long, value_name = "NAME")]
    pub kv_preset: Option<String>,
    /// Seal older tokens again, in smaller formats: conservative, balanced, aggressive, or hot, warm and cold tokens
    /// in percent, as 25,40,35
    #[arg(long, value_name = "SHARES")]
    pub kv_decay: Option<String>,
    /// Policy (TOML): formats by layer and age, tail, sink. The flags above win over it
    #[arg(long, value_name = "FILE")]
    pub kv_policy: Option<PathBuf>,
}

impl KvFlags {
    /// How to run a sequence.
    pub fn session(&self) -> Result<SessionOptions> {
        Ok(SessionOptions {
            context: Some(self.ctx_size).filter(|&n| n > 0),
            batch: self.batch_size,
            policy: self.policy.policy("f16")?,
        })
    }
}

impl PolicyFlags {
    /// The policy, with keys and values in `format` where neither file nor flag says otherwise.
    pub fn policy(&self, format: &str) -> Result<Policy> {
        let mut policy = match &self.kv_policy {
            None => Policy::uniform(format, format),
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.with_context(|| format!("--kv-policy: cannot read `{}`", path.display()))?;
                Policy::from_toml(&text).with_context(|| format!("--kv-policy: `{}`", path.display()))?
            }
        };
        policy.k = self.cache_type_k.clone().unwrap_or(policy.k);
        policy.v = self.cache_type_v.clone().unwrap_or(policy.v);
        policy.tail = self.kv_tail.unwrap_or(policy.tail);
        policy.sink = self.kv_sink.unwrap_or(policy.sink);
        policy.page = self.kv_page.unwrap_or(policy.page);
        if let Some(preset) = &self.kv_preset {
            let asks_v = self.cache_type_v.is_some() || self.kv_policy.is_some();
            policy = policy.with_preset(preset, asks_v).context("--kv-preset")?;
        }
        if let Some(shares) = &self.kv_decay {
            policy = policy.with_decay(shares).context("--kv-decay")?;
        }
        Ok(policy)
    }
}

/// Reads the name or alias of a format that holds K and V; answers its canonical name.
pub fn kv_formats() -> impl TypedValueParser<Value = String> {
    let formats = FORMATS.iter().filter(|format| format.kv);
    let values = formats.map(|format| PossibleValue::new(format.name).aliases(format.aliases));
    PossibleValuesParser::new(values).map(|name| {
        let format = torque_engine::quant::by_name(&name);
        format.expect("the parser accepts the list's names only").name.to_string()
    })
}

/// The names of the formats that hold K and V.
pub fn kv_format_names() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().filter(|format| format.kv).map(|format| format.name)
}
