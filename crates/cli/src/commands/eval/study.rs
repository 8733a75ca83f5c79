//! A run of measurements on one model: what is asked of it, what is there already, progress, and what to do with the findings.

use super::findings::{Findings, Text};
use super::journal::Journal;
use super::page;
use crate::flags::{ModelFlags, NamedPolicy, positive};
use crate::progress::watch;
use crate::{errors, interrupt, model, note, text};
use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use torque_engine::evaluate::{
    self, CacheCell, CacheReport, Chunks, LayerReport, Needle, Retrieval, Step, digest, layer_sides,
};
use torque_engine::tokenizer::Encode;
use torque_engine::{Engine, Error, Plan, Policy};

/// Which text, and how it is cut.
#[derive(Args)]
pub struct TextFlags {
    /// The text; `-` is stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Score so many chunks only
    #[arg(long, value_name = "N", value_parser = positive)]
    chunks: Option<usize>,
    /// Tokens in a chunk
    #[arg(short, long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    ctx_size: usize,
    /// Score tokens of a chunk from this position on [default: the second half]
    #[arg(long, value_name = "N")]
    from: Option<usize>,
    /// Tokens processed at once; they see one another exactly, whatever the format of the cache [default: a page]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    batch_size: Option<usize>,
}

impl TextFlags {
    /// The text.
    pub fn read(&self) -> Result<String> {
        text::read(&self.file)
    }

    /// Its tokens.
    pub fn tokens(&self, engine: &Engine, text: &str) -> Vec<u32> {
        engine.tokenizer().encode(text, Encode { add_special: true, parse_special: false })
    }

    /// Its chunks.
    pub fn chunks<'a>(&self, engine: &Engine, tokens: &'a [u32]) -> Result<Chunks<'a>> {
        let chunks = Chunks::new(engine, tokens, self.ctx_size, self.chunks, self.from);
        chunks.with_context(|| format!("`{}` with -c {}", self.file.display(), self.ctx_size))
    }

    /// Tokens processed at once: a page of the policy whose pages are shortest, unless a flag says otherwise.
    pub fn batch<'a>(&self, policies: impl IntoIterator<Item = &'a Policy>) -> usize {
        let page = policies.into_iter().map(|policy| policy.page).min().unwrap_or(1);
        self.batch_size.unwrap_or(page).clamp(1, self.ctx_size)
    }
}

/// What to do with findings.
#[derive(Args)]
pub struct OutputFlags {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page with plots, which needs nothing else to be looked at; or, as FILE.svg, the plot of quality
    /// against size alone
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Keep what is measured in a file, and go on from what is there
    #[arg(long, value_name = "FILE.jsonl")]
    resume: Option<PathBuf>,
}

/// An open model and what is known about it.
pub struct Study<'a> {
    engine: Engine,
    output: &'a OutputFlags,
    journal: Option<Journal>,
    findings: Findings,
}

impl<'a> Study<'a> {
    /// Opens model and files.
    pub fn open(model: &ModelFlags, output: &'a OutputFlags) -> Result<Study<'a>> {
        interrupt::catch();
        let journal = output.resume.as_deref().map(Journal::open).transpose()?;
        output.report.as_deref().map_or(Ok(()), page::check)?;
        let engine = model::open(model)?;
        Ok(Study { findings: Findings::new(&engine), engine, output, journal })
    }

    /// The model.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The policy with the fewest bytes a token.
    pub fn smallest(&self, policies: &[NamedPolicy]) -> Result<NamedPolicy> {
        let mut sizes = Vec::new();
        for named in policies {
            sizes.push((self.engine.plan(&named.policy)?.bytes_per_token(), named));
        }
        let smallest = sizes.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        Ok(smallest.expect("there is a policy").1.clone())
    }

    /// Measures the divergence of policies. Whether all is done, and nobody has stopped it.
    pub fn kld(&mut self, flags: &TextFlags, text: &str, policies: &[NamedPolicy]) -> Result<bool> {
        let tokens = flags.tokens(&self.engine, text);
        let chunks = flags.chunks(&self.engine, &tokens)?;
        let batch = flags.batch(policies.iter().map(|named| &named.policy));
        let plain: Vec<Policy> = policies.iter().map(|named| named.policy.clone()).collect();
        let Some(cells) = self.cells("reading the text", &chunks, &tokens, batch, &plain)? else {
            return Ok(false);
        };
        for NamedPolicy { name, policy } in policies {
            let report = CacheReport::new(&self.engine, &chunks, batch, name, policy, &cells)?;
            self.findings.kld.push(report);
        }
        self.findings.text = Some(Text::new(&flags.file, &chunks, batch));
        Ok(true)
    }

    /// Measures what a policy costs in each layer and side, in batches as they suit all `policies`. Whether all is done, and nobody
    /// has stopped it.
    pub fn layers(
        &mut self,
        flags: &TextFlags,
        text: &str,
        policies: &[NamedPolicy],
        NamedPolicy { name, policy }: &NamedPolicy,
    ) -> Result<bool> {
        let sides = layer_sides(&self.engine, policy)?;
        if sides.is_empty() {
            errors::warn(
                "the policy keeps all layers in f16, and there is nothing to measure; see -ctk and -ctv",
            );
        }
        let tokens = flags.tokens(&self.engine, text);
        let chunks = flags.chunks(&self.engine, &tokens)?;
        let batch = flags.batch(policies.iter().map(|named| &named.policy));
        let policies: Vec<Policy> = sides.iter().map(|side| side.policy.clone()).collect();
        let Some(cells) = self.cells("layer by layer", &chunks, &tokens, batch, &policies)? else {
            return Ok(false);
        };
        for side in &sides {
            let report = CacheReport::new(&self.engine, &chunks, batch, side.format, &side.policy, &cells)?;
            self.findings.layers.push(LayerReport::new(side, report));
        }
        self.findings.layers_of.clone_from(name);
        self.findings.text = Some(Text::new(&flags.file, &chunks, batch));
        Ok(true)
    }

    /// Asks for hidden facts. Whether all is done, and nobody has stopped it.
    pub fn needle(&mut self, needle: &Needle, policies: &[NamedPolicy]) -> Result<bool> {
        let most = self.engine.config().context;
        if let Some(length) = needle.lengths.iter().find(|length| **length > most) {
            errors::warn(format_args!(
                "the model was trained with a context of {most} tokens, less than {length}"
            ));
        }
        // Lengths, depths, trials and policies are where an answer belongs, not how it came to be.
        let settings = json!({
            "model": self.model(),
            "text": needle.text.as_ref().map(|text| hex(digest([text.as_bytes()]))),
            "seed": needle.seed,
            "answer": needle.answer,
            "batch": needle.batch,
        });
        let mut answers = self.begin("needle", settings)?;
        let plain: Vec<Policy> = policies.iter().map(|named| named.policy.clone()).collect();
        let whole = self.watch("asking for facts", "needle", |engine, step| {
            evaluate::needle(engine, needle, &plain, &mut answers, step)
        })?;
        for NamedPolicy { name, policy } in policies.iter().filter(|_| whole) {
            let found = Retrieval::new(&self.engine, needle, name, policy, &answers)?;
            self.findings.needle.push(found);
        }
        self.findings.trials = needle.trials;
        if whole && self.findings.needle.iter().all(|found| found.found == 0.0) {
            errors::warn(
                "no fact was found with any cache: the model cannot do this, which says nothing about caches",
            );
        }
        Ok(whole)
    }

    /// What policies did to chunks, as far as it is not known; `None` if somebody has stopped it.
    fn cells(
        &mut self,
        label: &str,
        chunks: &Chunks,
        tokens: &[u32],
        batch: usize,
        policies: &[Policy],
    ) -> Result<Option<Vec<CacheCell>>> {
        warn_if_exact(&self.engine, chunks, batch, policies)?;
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let settings = json!({
            "model": self.model(),
            "text": hex(digest([&bytes[..]])),
            "context": chunks.context,
            "from": chunks.from,
            "batch": batch,
        });
        let mut cells = self.begin("kld", settings)?;
        let whole = self.watch(label, "kld", |engine, step| {
            evaluate::cache(engine, chunks, policies, batch, &mut cells, step)
        })?;
        Ok(whole.then_some(cells))
    }

    /// Tells models apart.
    fn model(&self) -> Value {
        json!({ "name": self.engine.config().name, "tensors": self.engine.fingerprint() })
    }

    /// What the journal has of a kind.
    fn begin<Cell: DeserializeOwned>(&mut self, kind: &str, settings: Value) -> Result<Vec<Cell>> {
        self.journal.as_mut().map_or(Ok(Vec::new()), |journal| journal.begin(kind, &settings))
    }

    /// Works with a progress bar, and keeps what is done in the journal.
    fn watch<Cell: Serialize>(
        &self,
        label: &str,
        kind: &str,
        work: impl FnOnce(&Engine, &mut dyn FnMut(Step<Cell>) -> bool) -> Result<bool, Error>,
    ) -> Result<bool> {
        let mut kept = Ok(());
        let keep = |cell: &Cell| {
            kept = self.journal.as_ref().map_or(Ok(()), |journal| journal.add(kind, cell));
            kept.is_ok()
        };
        let whole = watch(label, keep, |step| work(&self.engine, step))?;
        kept?;
        Ok(whole)
    }

    /// After Ctrl-C.
    pub fn stopped(&self) -> Result<ExitCode> {
        match &self.output.resume {
            Some(path) => note!("stopped; the same command goes on from {}", path.display()),
            None => note!("stopped; with --resume FILE, what is done would not be lost"),
        }
        Ok(ExitCode::from(interrupt::STATUS))
    }

    /// Prints the findings, as rows where there may be several, and writes the report.
    pub fn tell(&self, rows: bool) -> Result<ExitCode> {
        if let Some(path) = &self.output.report {
            page::write(path, &self.findings)?;
        }
        if self.output.json {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&self.findings.json(rows))?)?;
        } else {
            write!(anstream::stdout(), "{}", self.findings.tables())?;
        }
        if let Some(path) = &self.output.report {
            note!("report written to {}", path.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Numbers of 64 bits are no numbers to every reader of JSON.
fn hex(number: u64) -> String {
    format!("{number:016x}")
}

/// Warns of policies whose formats cannot show: if every token that is scored sees exact keys and values only.
pub fn warn_if_exact<'a>(
    engine: &Engine,
    chunks: &Chunks,
    batch: usize,
    policies: impl IntoIterator<Item = &'a Policy>,
) -> Result<()> {
    for policy in policies {
        let plan = engine.plan(policy)?;
        let is_exact = plan
            .layers
            .iter()
            .flat_map(|layer| &layer.sides)
            .all(|side| side.formats.iter().all(|format| format.name == "f16"));
        if let Some(unseen) = unseen(&plan, chunks, batch).filter(|_| !is_exact) {
            errors::warn(format_args!(
                "with -c {} and -b {batch} {unseen}; see --kv-sink, --kv-tail and -b",
                chunks.context
            ));
            break;
        }
    }
    Ok(())
}

/// Why formats of a cache cannot show, if they cannot.
pub fn unseen(plan: &Plan, chunks: &Chunks, batch: usize) -> Option<String> {
    let last_batch = chunks.from + chunks.scored() / batch * batch;
    let sink = plan.sink_pages * plan.page;
    (last_batch < sink + plan.page + plan.tail).then(|| {
        format!(
            "no token sees the formats of the cache: the first {sink} and the newest {} tokens and those of a batch are exact",
            plan.tail
        )
    })
}
