//! `torque tune`: the KV cache a model wants.

use super::eval::findings::{Findings, Text};
use super::eval::page;
use super::eval::study::unseen;
use crate::flags::{DeviceFlags, ModelFlags, PageFlags, kv_formats, positive, tuned_file};
use crate::progress::watch;
use crate::report::pair;
use crate::table::Table;
use crate::text::{self, significant, thousands};
use crate::{interrupt, model, note};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use torque_engine::evaluate::{self, CacheCell, CacheReport, Choice, Chunks, LayerReport, PROBE, Tuner};
use torque_engine::tokenizer::Encode;
use torque_engine::{Engine, PRESETS, Policy};

/// Find the KV cache that costs a model least, and write it beside the model
///
/// Measures what every layer's keys and values add to the KL divergence from a cache in f16, and what every format costs; solves for
/// the policy that costs least at a size, or the smallest that costs no more than you allow; and measures it against fixed policies
/// of the same size, on text that it was not tuned on. `--kv auto` uses the file.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Tune {
    /// Model file (GGUF). Without it, the demo model inside this program
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Bytes a token may take [default: those of turbo4/turbo3]
    #[arg(long, value_name = "N")]
    bytes_per_token: Option<f64>,
    /// Memory that the cache may take with the context of --ctx-size, such as 8GiB
    #[arg(long, value_name = "SIZE", value_parser = text::bytes, requires = "ctx_size", conflicts_with = "bytes_per_token")]
    memory: Option<usize>,
    /// Tokens of context that have to fit in --memory
    #[arg(short, long, value_name = "N", value_parser = positive)]
    ctx_size: Option<usize>,
    /// Divergence that is allowed, in nats: the smallest cache within it
    #[arg(long, value_name = "KLD", conflicts_with_all = ["bytes_per_token", "memory"])]
    max_kld: Option<f64>,
    /// What there is to choose from, beside f16
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = kv_formats(), hide_possible_values = true)]
    #[arg(default_value = "q8_0,turbo4_tcq,turbo4,turbo3_tcq,turbo3,turbo2_tcq,turbo2")]
    formats: Vec<String>,
    /// The text; `-` is stdin [default: the manual inside this program]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Chunks of the text to tune on, every second one; those between are to compare
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    chunks: usize,
    /// Tokens in a chunk
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    chunk_size: usize,
    /// Where the policy is written [default: MODEL.kv.toml]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page with the comparison and the layers as plots; or, as FILE.svg, the plot of the comparison alone
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceFlags,
    #[command(flatten)]
    pages: PageFlags,
}

const EXAMPLES: &str = "\
Examples:
  torque tune model.gguf                              the best cache of the size of turbo4/turbo3
  torque tune model.gguf --max-kld 0.001              the smallest cache that good
  torque tune model.gguf -c 131072 --memory 8GiB      the best cache that fits
  torque tune model.gguf --report tuned.html          … and plots of what was found
  torque run -m model.gguf --kv auto -f long.txt      … and its use";

/// What is read where no text is given.
const MANUAL: &str = concat!(
    include_str!("../../../../docs/guide.md"),
    include_str!("../../../../ARCHITECTURE.md"),
    include_str!("../../../../CONTRIBUTING.md"),
    include_str!("../../../../README.md"),
);

/// What a tuned policy of the same formats is compared with.
const FIXED: &[[&str; 2]] = &[
    ["q8_0", "q8_0"],
    ["q8_0", "turbo4"],
    ["q8_0", "turbo3"],
    ["turbo4", "turbo4"],
    ["turbo4_tcq", "turbo4_tcq"],
    ["turbo4", "turbo3"],
    ["turbo4_tcq", "turbo3_tcq"],
    ["turbo3", "turbo3"],
    ["turbo3_tcq", "turbo3_tcq"],
    ["turbo3", "turbo2"],
    ["turbo3_tcq", "turbo2_tcq"],
    ["turbo2", "turbo2"],
    ["turbo2_tcq", "turbo2_tcq"],
];

/// Where presets of `--kv-preset`, with which it is compared too, say nothing.
const UNDER_PRESETS: &str = "turbo3";

/// The size that is aimed at where nothing is said.
const USUAL: [&str; 2] = ["turbo4", "turbo3"];

/// What is found: the frontier, the policy that was chosen, and how others compare.
struct Found {
    /// How the others were compared.
    text: Text,
    /// What every layer and side costs alone.
    layers: Vec<LayerReport>,
    frontier: Vec<Choice>,
    chosen: Choice,
    /// On text that it was not tuned on.
    report: CacheReport,
    /// A fixed policy, and the tuned one that is no larger.
    pairs: Vec<[CacheReport; 2]>,
}

impl Tune {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        interrupt::catch();
        let path = self.output();
        // What cannot be written is told before the work, not after.
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
        {
            bail!("cannot write `{}`: there is no folder `{}`", path.display(), folder.display());
        }
        self.report.as_deref().map_or(Ok(()), page::check)?;
        let text = match &self.file {
            Some(path) => text::read(path)?,
            None => MANUAL.into(),
        };
        let flags = ModelFlags { model: self.model.clone(), device: self.device.clone() };
        let engine = model::open(&flags)?;
        let Some(found) = self.find(&engine, &text)? else {
            note!("stopped; nothing was written");
            return Ok(ExitCode::from(interrupt::STATUS));
        };
        let written = format!(
            "# Written by `torque tune` for {}: {:.0} bytes a token, KL divergence {} from f16.\n{}",
            engine.config().name,
            found.chosen.bytes_per_token,
            significant(found.report.divergence.kld_mean),
            found.chosen.policy
        );
        std::fs::write(&path, written).with_context(|| format!("cannot write `{}`", path.display()))?;
        if self.json {
            let json = json!({
                "file": path,
                "policy": found.chosen.policy,
                "bytes_per_token": found.chosen.bytes_per_token,
                "kld_expected": found.chosen.kld,
                "kld_mean": found.report.divergence.kld_mean,
                "top1_agreement": found.report.divergence.top1_agreement,
                "frontier": found.frontier,
                "compared": found.pairs.iter().map(|[fixed, tuned]| json!({ "fixed": fixed, "tuned": tuned })).collect::<Vec<_>>(),
            });
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&json)?)?;
        } else {
            write!(anstream::stdout(), "{}", self.tables(&engine, &found)?)?;
        }
        if let Some(path) = &self.report {
            page::write(path, &found.findings(&engine))?;
            note!("report written to {}", path.display());
        }
        note!("written to {}; use it with --kv auto", path.display());
        Ok(ExitCode::SUCCESS)
    }

    fn output(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| tuned_file(self.model.as_deref()))
    }

    /// Measures, solves and compares; `None` if somebody has stopped it.
    fn find(&self, engine: &Engine, text: &str) -> Result<Option<Found>> {
        let base = self.pages.over(Policy::default());
        let tokens = engine.tokenizer().encode(text, Encode { add_special: true, parse_special: false });
        // To tune on and to compare, by turns: a text may change its subject.
        let of = |parity| -> Vec<u32> {
            tokens.chunks(self.chunk_size).skip(parity).step_by(2).flatten().copied().collect()
        };
        let halves = [of(0), of(1)];
        let cut = |tokens| Chunks::new(engine, tokens, self.chunk_size, Some(self.chunks), None);
        let context = || format!("the text has {} tokens; see --chunk-size", tokens.len());
        let (tuned_on, others) =
            (cut(&halves[0]).with_context(context)?, cut(&halves[1]).with_context(context)?);
        let batch = base.page.min(self.chunk_size);

        if let Some(unseen) = unseen(&engine.plan(&base)?, &tuned_on, batch) {
            bail!("with --chunk-size {} {unseen}; see --kv-sink and --kv-tail", self.chunk_size);
        }
        let tuner = Tuner::new(engine, &base, &self.formats)?;
        let probes = tuner.probes();
        if probes.is_empty() {
            bail!("the model has no KV cache to tune");
        }
        let Some(cells) = measure(engine, "measuring layers and formats", &tuned_on, &probes, batch)? else {
            return Ok(None);
        };
        let frontier = tuner.frontier(engine, &tuned_on, batch, &cells)?;
        let layers = tuner.layers(engine, &tuned_on, batch, &cells)?;
        let size = |policy: &Policy| engine.plan(policy).map(|plan| plan.bytes_per_token());
        let no_larger = |bytes: f64| frontier.iter().find(|choice| choice.bytes_per_token <= bytes + 0.5);

        // The fixed policies, and what stands against each.
        let mut pairs = Vec::new();
        for (name, fixed) in self.fixed(engine, &base)? {
            if let Some(tuned) = no_larger(size(&fixed)?) {
                pairs.push((name, fixed, tuned));
            }
        }
        let chosen = match (self.max_kld, self.bytes_per_token, self.memory.zip(self.ctx_size)) {
            (Some(most), ..) => frontier.iter().rev().find(|choice| choice.kld <= most),
            (_, Some(bytes), _) => no_larger(bytes),
            (_, _, Some((memory, context))) => {
                let mut fits = None;
                for choice in &frontier {
                    if engine.plan(&choice.policy)?.sequence_bytes(context, batch) <= memory {
                        fits = Some(choice);
                        break;
                    }
                }
                fits
            }
            _ => no_larger(size(&Policy { k: USUAL[0].into(), v: USUAL[1].into(), ..base.clone() })?),
        };
        let smallest = frontier.last().expect("the smallest is never beaten");
        let chosen = chosen.with_context(|| {
            format!(
                "nothing is that small: the smallest cache of these formats takes {} bytes a token; see --formats",
                thousands(smallest.bytes_per_token.ceil() as u64)
            )
        })?;

        let mut policies = vec![chosen.policy.clone()];
        for policy in pairs.iter().flat_map(|(_, fixed, tuned)| [fixed, &tuned.policy]) {
            if !policies.contains(policy) {
                policies.push(policy.clone());
            }
        }
        let Some(cells) = measure(engine, "comparing with fixed policies", &others, &policies, batch)? else {
            return Ok(None);
        };
        let report =
            |name: &str, policy: &Policy| CacheReport::new(engine, &others, batch, name, policy, &cells);
        let compared: Result<Vec<_>, _> = (pairs.iter())
            .map(|(name, fixed, tuned)| Ok([report(name, fixed)?, report("tuned", &tuned.policy)?]))
            .collect::<Result<_, torque_engine::Error>>();
        let (report, chosen) = (report("tuned", &chosen.policy)?, chosen.clone());
        let name = self.file.as_deref().unwrap_or(Path::new("the manual"));
        let text = Text::new(name, &others, batch);
        Ok(Some(Found { text, layers, pairs: compared?, report, chosen, frontier }))
    }

    /// The fixed policies of the formats that were asked for, those that are the same for this model once.
    fn fixed(&self, engine: &Engine, base: &Policy) -> Result<Vec<(String, Policy)>> {
        let uniform = |[k, v]: [&str; 2]| Policy { k: k.into(), v: v.into(), ..base.clone() };
        let mut named: Vec<_> = FIXED.iter().map(|of| (pair(of[0], of[1]), uniform(*of))).collect();
        for preset in PRESETS {
            let policy = uniform([UNDER_PRESETS; 2]).with_preset(preset.name, false)?;
            named.push((format!("{}+{}", pair(&policy.k, &policy.v), preset.name), policy));
        }
        let (mut fixed, mut seen) = (Vec::new(), Vec::new());
        for (name, policy) in named {
            let plan = engine.plan(&policy)?;
            let formats: Vec<&str> =
                plan.layers.iter().flat_map(|layer| &layer.sides).map(|side| side.formats[0].name).collect();
            if formats.iter().all(|name| self.formats.iter().any(|f| f == name)) && !seen.contains(&formats) {
                seen.push(formats);
                fixed.push((name, policy));
            }
        }
        Ok(fixed)
    }

    fn tables(&self, engine: &Engine, found: &Found) -> Result<String> {
        let mut layers = Table::new(&[">layer", "keys", "values", ">bytes/token"]);
        for kv in engine.layer_kv(&found.chosen.policy)? {
            layers.row([kv.layer.to_string(), kv.k, kv.v, format!("{:.0}", kv.bytes_per_token)]);
        }
        let mut fixed = Table::new(&[
            "fixed policy",
            ">bytes/token",
            ">KLD",
            ">tuned bytes/token",
            ">tuned KLD",
            ">ratio",
        ]);
        for [of_fixed, tuned] in &found.pairs {
            let (a, b) = (of_fixed.divergence.kld_mean, tuned.divergence.kld_mean);
            fixed.row([
                of_fixed.name.clone(),
                thousands(of_fixed.bytes_per_token.round() as u64),
                significant(a),
                thousands(tuned.bytes_per_token.round() as u64),
                significant(b),
                // A fixed policy may be the best of its size itself.
                if a == b { "same".into() } else { significant(b / a) },
            ]);
        }
        let report = &found.report;
        Ok(format!(
            "The frontier, from f16 down: what is expected of the best policy at each size\n\n{}\n\
             The policy: {} bytes a token, {:.2} bits a value, KL divergence {} ± {}, same top token {:.1} %\n\n{layers}\n\
             Against fixed policies, on text that none was tuned on\n\n{fixed}",
            frontier_plot(&found.frontier, &found.chosen),
            thousands(found.chosen.bytes_per_token.round() as u64),
            report.bits_per_value,
            significant(report.divergence.kld_mean),
            significant(report.divergence.kld_mean_error),
            100.0 * report.divergence.top1_agreement,
        ))
    }
}

impl Found {
    /// For a report.
    fn findings(self, engine: &Engine) -> Findings {
        let (mut kld, mut tuned): (Vec<_>, Vec<_>) = self.pairs.into_iter().map(Into::into).unzip();
        tuned.push(self.report.clone());
        kld.insert(0, self.report);
        Findings {
            text: Some(self.text),
            kld,
            tuned,
            layers: self.layers,
            layers_of: PROBE.into(),
            ..Findings::new(engine)
        }
    }
}

/// What policies do to chunks; `None` if somebody has stopped it.
fn measure(
    engine: &Engine,
    label: &str,
    chunks: &Chunks,
    policies: &[Policy],
    batch: usize,
) -> Result<Option<Vec<CacheCell>>> {
    let mut cells = Vec::new();
    let whole =
        watch(label, |_| true, |step| evaluate::cache(engine, chunks, policies, batch, &mut cells, step))?;
    Ok(whole.then_some(cells))
}

/// Divergence against size, a line a choice, as bars on a logarithmic scale.
fn frontier_plot(frontier: &[Choice], chosen: &Choice) -> String {
    const LINES: usize = 16;
    const WIDTH: f64 = 44.0;
    let inexact: Vec<&Choice> = frontier.iter().filter(|choice| choice.kld > 0.0).collect();
    let [Some(first), Some(last)] = [inexact.first(), inexact.last()] else { return String::new() };
    let (low, high) = ((first.kld / 1.5).ln(), last.kld.ln());
    let is_chosen = |choice: &Choice| choice.policy == chosen.policy;
    let step = inexact.len().div_ceil(LINES).max(1);
    let shown = inexact.iter().enumerate().filter(|(i, choice)| i % step == 0 || is_chosen(choice));
    let mut table = Table::new(&[">bytes/token", ">KLD", ""]);
    for (_, choice) in shown {
        let length = ((choice.kld.ln() - low) / (high - low).max(1e-9) * WIDTH).clamp(1.0, WIDTH);
        let mark = if is_chosen(choice) { " ◄ chosen" } else { "" };
        table.row([
            thousands(choice.bytes_per_token.round() as u64),
            significant(choice.kld),
            format!("{}{mark}", "█".repeat(length as usize)),
        ]);
    }
    table.to_string()
}
