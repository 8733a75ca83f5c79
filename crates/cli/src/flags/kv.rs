//! The context and what its KV cache is stored in.

use super::positive;
use crate::note;
use crate::report::pair;
use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::path::{Path, PathBuf};
use torque_engine::quant::{FORMATS, by_name};
use torque_engine::{Overflow, Policy, SessionOptions};

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
    /// When the context is full: `stop` ends the text. `shift` forgets the older half of all tokens but those of --keep and
    /// goes on as if the rest had followed these. `evict` forgets them too, and positions grow on beyond the context, for
    /// which models must be trained
    #[arg(long, value_name = "WHAT", value_parser = overflows(), default_value = "stop")]
    pub context_overflow: Overflow,
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
    #[command(flatten)]
    pub pages: PageFlags,
    /// Other formats for some layers: uniform, boundary, or a layer-adaptive mode of llama.cpp's forks, 1 2 5 6 7
    #[arg(long, value_name = "NAME")]
    pub kv_preset: Option<String>,
    /// Seal older tokens again, in smaller formats, those that attention looks at less first: conservative, balanced, aggressive, or hot, warm and cold tokens
    /// in percent, as 25,40,35
    #[arg(long, value_name = "SHARES")]
    pub kv_decay: Option<String>,
    /// Policy (TOML): formats by layer and age, tail, sink. The flags above win over it. `auto`: what `torque tune` has
    /// written beside the model, or turbo4
    #[arg(long, visible_alias = "kv", value_name = "FILE|auto")]
    pub kv_policy: Option<PathBuf>,
}

/// What of a cache is exact, and how it is cut.
#[derive(Args, Clone)]
#[command(next_help_heading = "Context and KV cache")]
pub struct PageFlags {
    /// Newest tokens kept exact [default: 128]
    #[arg(long, value_name = "N")]
    pub kv_tail: Option<usize>,
    /// First tokens kept in f16, and by a full context that forgets [default: 128]
    #[arg(long, visible_alias = "keep", value_name = "N")]
    pub kv_sink: Option<usize>,
    /// Tokens sealed at once, a multiple of 16 [default: 128]
    #[arg(long, value_name = "N")]
    pub kv_page: Option<usize>,
    /// When decoding (in passes of up to 8 tokens), do not read values that weigh little, while this adds on average at most that
    /// share of the error that formats of their size have in any case: 0 for none, 1 for as much again [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub sparse_v: Option<f32>,
}

impl PageFlags {
    /// A policy with what the flags say.
    pub fn over(&self, policy: Policy) -> Policy {
        Policy {
            tail: self.kv_tail.unwrap_or(policy.tail),
            sink: self.kv_sink.unwrap_or(policy.sink),
            page: self.kv_page.unwrap_or(policy.page),
            sparse_v: self.sparse_v.unwrap_or(policy.sparse_v),
            ..policy
        }
    }
}

impl KvFlags {
    /// How to run a sequence.
    pub fn session(&self, model: Option<&Path>) -> Result<SessionOptions> {
        Ok(SessionOptions {
            context: Some(self.ctx_size).filter(|&n| n > 0),
            batch: self.batch_size,
            policy: self.policy.policy("f16", model)?,
            overflow: self.context_overflow,
            ..SessionOptions::default()
        })
    }
}

/// Policies side by side.
#[derive(Args, Clone)]
#[command(next_help_heading = "Context and KV cache")]
pub struct SweepFlags {
    /// Several policies instead of one: a format for both sides, a pair K/V, either with a preset or decay
    /// (turbo3+boundary, q8_0/turbo4@balanced), or a policy file (*.toml) each
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["cache_type_k", "cache_type_v", "kv_policy"])]
    pub sweep: Vec<String>,
    #[command(flatten)]
    pub policy: PolicyFlags,
}

/// A policy and what to call it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedPolicy {
    pub name: String,
    pub policy: Policy,
}

impl SweepFlags {
    /// The policies of the list, each once, or the one that the other flags give.
    pub fn policies(&self, model: Option<&Path>) -> Result<Vec<NamedPolicy>> {
        if self.sweep.is_empty() {
            return Ok(vec![self.policy.named_policy(model)?]);
        }
        let mut policies: Vec<NamedPolicy> = Vec::new();
        for item in &self.sweep {
            let named = self.policy.named(item)?;
            if policies.iter().all(|other| other.policy != named.policy) {
                policies.push(named);
            }
        }
        Ok(policies)
    }
}

impl PolicyFlags {
    /// The policy for the model of a file, with keys and values in `format` where neither file nor flag says otherwise.
    pub fn policy(&self, format: &str, model: Option<&Path>) -> Result<Policy> {
        let policy = match &self.kv_policy {
            None => Policy::uniform(format, format),
            Some(path) if path == Path::new("auto") => tuned_policy(model)?,
            Some(path) => read_policy("--kv-policy", path)?,
        };
        self.over(policy, self.cache_type_v.is_some() || self.kv_policy.is_some())
    }

    /// The policy, with f16 where nothing says otherwise, called by its file or its formats.
    pub fn named_policy(&self, model: Option<&Path>) -> Result<NamedPolicy> {
        let policy = self.policy("f16", model)?;
        let file = self.kv_policy.as_ref().map(|path| file_name(path));
        Ok(NamedPolicy { name: file.unwrap_or_else(|| pair(&policy.k, &policy.v)), policy })
    }

    /// The policy that an item of `--sweep` names, with the other flags over it.
    fn named(&self, item: &str) -> Result<NamedPolicy> {
        if item.ends_with(".toml") {
            let path = Path::new(item);
            let policy = self.over(read_policy("--sweep", path)?, true)?;
            return Ok(NamedPolicy { name: file_name(path), policy });
        }
        let (rest, decay) = item.split_once('@').map_or((item, None), |(rest, decay)| (rest, Some(decay)));
        let (formats, preset) = rest.split_once('+').map_or((rest, None), |(rest, name)| (rest, Some(name)));
        let (k, v) = formats.split_once('/').unwrap_or((formats, formats));
        let [k, v] = [k, v].map(|name| by_name(name).filter(|format| format.kv));
        let (Some(k), Some(v)) = (k, v) else {
            let known = kv_format_names().collect::<Vec<_>>().join(" ");
            bail!(
                "--sweep: `{item}` is none of: a format (turbo3), a pair of formats (q8_0/turbo3), one of them with a preset \
                 (turbo3+boundary) or decay (q8_0/turbo4@balanced), a policy file (*.toml); formats are {known}"
            );
        };
        let mut policy = self.over(Policy::uniform(k.name, v.name), true)?;
        let mut name = pair(k.name, v.name);
        if let Some(preset) = preset {
            policy = policy.with_preset(preset, true).context("--sweep")?;
            name += &format!("+{preset}");
        }
        if let Some(decay) = decay {
            policy = policy.with_decay(decay).context("--sweep")?;
            name += &format!("@{decay}");
        }
        Ok(NamedPolicy { name, policy })
    }

    /// A policy with what flags say about it. `asks_v`: whether its format of values was asked for.
    fn over(&self, policy: Policy, asks_v: bool) -> Result<Policy> {
        let mut policy = self.pages.over(policy);
        policy.k = self.cache_type_k.clone().unwrap_or(policy.k);
        policy.v = self.cache_type_v.clone().unwrap_or(policy.v);
        if let Some(preset) = &self.kv_preset {
            policy = policy.with_preset(preset, asks_v).context("--kv-preset")?;
        }
        if let Some(shares) = &self.kv_decay {
            policy = policy.with_decay(shares).context("--kv-decay")?;
        }
        Ok(policy)
    }
}

/// Where `torque tune` writes a policy and `--kv auto` looks for it: beside the model; of the demo model, here.
pub fn tuned_file(model: Option<&Path>) -> PathBuf {
    model.unwrap_or(Path::new("demo")).with_extension("kv.toml")
}

/// What `torque tune` has written beside a model, or what is safe; says which.
fn tuned_policy(model: Option<&Path>) -> Result<Policy> {
    let path = tuned_file(model);
    if path.exists() {
        note!("KV cache: {}", path.display());
        return read_policy("--kv auto", &path);
    }
    note!("KV cache: {SAFE}; there is no {}, which `torque tune` writes", path.display());
    Ok(Policy::uniform(SAFE, SAFE))
}

/// A format that is good enough for any model: with it, KL divergence from f16 was below 0.0002 wherever it was measured.
const SAFE: &str = "turbo4";

fn read_policy(flag: &str, path: &Path) -> Result<Policy> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("{flag}: cannot read `{}`", path.display()))?;
    Policy::from_toml(&text).with_context(|| format!("{flag}: `{}`", path.display()))
}

fn file_name(path: &Path) -> String {
    path.file_stem().map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into_owned())
}

/// Reads what a full context does.
fn overflows() -> impl TypedValueParser<Value = Overflow> {
    let values = Overflow::ALL.map(|(name, about, _)| PossibleValue::new(name).help(about));
    PossibleValuesParser::new(values).map(|name| {
        let (.., overflow) =
            Overflow::ALL.into_iter().find(|(known, ..)| *known == name).expect("a value of the list");
        overflow
    })
}

/// Reads the name or alias of a format that holds K and V; answers its canonical name.
pub fn kv_formats() -> impl TypedValueParser<Value = String> {
    let formats = FORMATS.iter().filter(|format| format.kv);
    let values = formats.map(|format| PossibleValue::new(format.name).aliases(format.aliases));
    PossibleValuesParser::new(values)
        .map(|name| by_name(&name).expect("the parser accepts the list's names only").name.to_string())
}

/// The names of the formats that hold K and V.
pub fn kv_format_names() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().filter(|format| format.kv).map(|format| format.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        sweep: SweepFlags,
    }

    fn policies(arguments: &str) -> Result<Vec<NamedPolicy>> {
        let words = std::iter::once("torque").chain(arguments.split_whitespace());
        Command::try_parse_from(words).unwrap().sweep.policies(None)
    }

    #[test]
    fn a_sweep_names_policies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "k = 'turbo4'\ntail = 32").unwrap();
        let list = format!(
            "--sweep f16,turbo3,TURBO3,q8_0/turbo3,tbq3,{},q8_0/turbo4+boundary@balanced --kv-sink 0",
            path.display()
        );
        let uniform = |k, v| Policy { sink: 0, ..Policy::uniform(k, v) };
        let decayed = uniform("q8_0", "turbo4").with_preset("boundary", true);
        let decayed = decayed.and_then(|policy| policy.with_decay("balanced")).unwrap();
        let expected = [
            ("f16/f16", uniform("f16", "f16")),
            ("turbo3/turbo3", uniform("turbo3", "turbo3")),
            ("q8_0/turbo3", uniform("q8_0", "turbo3")),
            ("mine", Policy { tail: 32, ..uniform("turbo4", "f16") }),
            ("q8_0/turbo4+boundary@balanced", decayed),
        ];
        let expected = expected.map(|(name, policy)| NamedPolicy { name: name.into(), policy });
        assert_eq!(policies(&list).unwrap(), expected);
        assert_eq!(policies("--cache-type-k q8_0").unwrap()[0].name, "q8_0/f16");
        assert_eq!(policies(&format!("--kv-policy {}", path.display())).unwrap()[0].name, "mine");
    }

    #[test]
    fn wrong_sweeps_say_what_is_wrong() {
        for (list, part) in [
            ("turbo9", "`turbo9`"),
            ("f16/", "`f16/`"),
            ("q4_k", "turbo3"),
            ("f16+side", "`side`"),
            ("f16@old", "`old`"),
            ("no.toml", "no.toml"),
        ] {
            let error = format!("{:#}", policies(&format!("--sweep {list}")).unwrap_err());
            assert!(error.contains("--sweep") && error.contains(part), "{error}");
        }
    }
}
