//! `torque bench`: speed of prompts and decoding, at any depth of context, and of single kernels.

mod baseline;
mod first_token;
mod gate;
mod kernels;
mod measure;
mod record;
mod row;

use crate::flags::{self, backend, kv_formats, positive};
use crate::{errors, interrupt, note};
use anyhow::{Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use measure::{Setting, Source, Subject, Test};
use record::Record;
use row::Row;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use torque_engine::kernel_speed::Memory;
use torque_engine::quant::FORMATS;
use torque_engine::synthetic::SHAPES;
use torque_engine::{BackendKind, EngineOptions, Policy, cpu_name, physical_cores};

/// Measure the speed of prompts and decoding
///
/// Lists have commas, as in llama-bench, and every combination is a row. ppN is a prompt of N tokens, tgN the decoding of N
/// tokens, each after D tokens of context; load is the time from the start of the program to the first token after a prompt of
/// one, of files. GB/s is what must be read from memory: weights, keys and values.
#[derive(Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Bench {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    speed: Speed,
}

#[derive(Subcommand)]
enum Command {
    Gate(gate::Gate),
    #[command(hide = true)]
    FirstToken(first_token::FirstToken),
}

#[derive(Args)]
struct Speed {
    /// Model files. Without them and --synthetic, the demo model inside this program
    #[arg(short, long, value_name = "FILE", value_delimiter = ',', help_heading = "Model")]
    model: Vec<PathBuf>,
    /// Models of this shape with random weights, made in memory
    #[arg(long, value_name = "SHAPE", value_delimiter = ',', value_parser = shapes(), help_heading = "Model")]
    synthetic: Vec<String>,
    /// Formats of the weights of --synthetic
    #[arg(long = "type", value_name = "FORMAT", value_delimiter = ',', value_parser = weight_formats(), ignore_case = true)]
    #[arg(default_value = "q4_k", help_heading = "Model")]
    types: Vec<String>,
    /// What computes
    #[arg(long, value_name = "NAME", default_value = "cpu", value_parser = backend(), help_heading = "Model")]
    backend: BackendKind,
    /// Instruction sets of the CPU backend [env: TORQUE_ISA] [default: the best there is]
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Model")]
    isa: Vec<String>,
    /// CPU threads [default: the physical cores]
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = positive)]
    threads: Vec<usize>,
    /// Tokens of prompts; 0: none
    #[arg(short = 'p', long, value_name = "N", value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,
    /// Tokens to decode; 0: none
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "128")]
    n_gen: Vec<usize>,
    /// Tokens of context before each measurement
    #[arg(short = 'd', long, value_name = "N", value_delimiter = ',', default_value = "0")]
    n_depth: Vec<usize>,
    /// Tokens of a prompt processed at once
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "512", value_parser = positive)]
    batch_size: Vec<usize>,
    /// Formats of keys, short: -ctk
    #[arg(long, value_name = "FORMAT", value_delimiter = ',', value_parser = kv_formats(), ignore_case = true)]
    #[arg(default_value = "f16")]
    cache_type_k: Vec<String>,
    /// Formats of values, as for keys, short: -ctv
    #[arg(long, value_name = "FORMAT", value_delimiter = ',', value_parser = kv_formats(), ignore_case = true)]
    #[arg(default_value = "f16", hide_possible_values = true)]
    cache_type_v: Vec<String>,
    /// Values that weigh little need not be read, see `torque run --help`; the share that was not is in the table
    #[arg(long, value_name = "SHARE")]
    sparse_v: Option<f32>,
    /// Repetitions, after one that does not count
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive)]
    repetitions: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Add the rows to the record of this machine and day, DIR/MACHINE/DATE.csv
    #[arg(long, value_name = "DIR", help_heading = "Records")]
    record: Option<PathBuf>,
    /// Compare with an earlier run, JSON or CSV; exit status 1 if a row is slower beyond noise
    ///
    /// A row is slower if its median fell by more than three standard errors of the two medians, and the drift of the
    /// machine. Both are measured: the errors from the spread of the samples, where every repetition does each test once; the drift
    /// by a loop that reads memory before each repetition, from how far its medians lie apart between the halves of a run and
    /// between the runs. Rows of another processor, or that the file has not, are new. Needs -r 3 or more.
    #[arg(long, value_name = "FILE", help_heading = "Records")]
    baseline: Option<PathBuf>,
    /// Measure single kernels instead, beside what the machine allows: all, or those with a FILTER in their names or formats
    ///
    /// Kernels and formats are chosen apart: `q4_0,q4_k,product` are the products of two formats. One thread, on each instruction
    /// set or those of --isa. `product` is of weights (2048 inputs) and tokens, `scores` and `accumulate` are of keys and values
    /// (heads of 128) and queries, `seal` encodes a page. The limit is what one thread reads from memory or multiplies, whichever
    /// takes longer; both are measured first. From a cache, it is the multiplications alone.
    #[arg(long, value_name = "FILTER", value_delimiter = ',', num_args = 0..=1, help_heading = "Kernels")]
    #[arg(conflicts_with_all = ["model", "synthetic", "record", "baseline"])]
    kernels: Option<Vec<String>>,
}

const EXAMPLES: &str = "\
Examples:
  torque bench -m model.gguf
  torque bench --synthetic 1b --type q8_0,q4_k -t 1,2
  torque bench -m model.gguf -p 0 -d 0,4096,32768 -ctk f16,turbo4 -ctv f16,turbo3 --json > speed.json
  torque bench -m model.gguf -p 0 -d 0,4096,32768 -ctk f16,turbo4 -ctv f16,turbo3 --baseline speed.json
  torque bench --kernels q4_0,q4_k,product --isa avx2
  torque bench gate -m model.gguf -ctk turbo3 -ctv turbo3 --baseline gate.json";

fn shapes() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(SHAPES.iter().map(|shape| shape.name))
}

fn weight_formats() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(FORMATS.iter().filter(|format| format.weights).map(|format| format.name))
}

impl Bench {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            None => self.speed.run(),
            Some(Command::Gate(gate)) => gate.run(),
            Some(Command::FirstToken(first_token)) => first_token.run(),
        }
    }
}

impl Speed {
    fn run(self) -> Result<ExitCode> {
        interrupt::catch();
        if let Some(filters) = &self.kernels {
            kernels::run(filters, &self.isas(), self.json)?;
            return Ok(self.status());
        }
        let baseline = self.baseline.as_ref().map(|path| record::read(path)).transpose()?;
        if baseline.is_some() && self.repetitions < baseline::REPETITIONS {
            bail!("--baseline: {} repetitions do not tell noise; see -r", self.repetitions);
        }
        let record = match &self.record {
            Some(folder) => Some(Record::new(folder, &cpu_name(), physical_cores(), &row::date())?),
            None => None,
        };
        let mut rows = Vec::new();
        let result = interrupt::work(|| self.measure(&mut rows));
        let whole = !interrupt::stopped();
        let slower =
            baseline.as_ref().filter(|_| whole).map(|baseline| baseline::compare(&mut rows, baseline));
        if self.json {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&rows)?)?;
        } else if !rows.is_empty() {
            write!(anstream::stdout(), "{}", row::table(&rows, baseline.is_some()))?;
        }
        let recorded = record.as_ref().map(|record| record.add(&rows));
        result?;
        if let Some(path) = recorded.transpose()? {
            note!("recorded in {}", path.display());
        }
        if let Some(slower) = slower.transpose()? {
            if rows.iter().all(|row| row.of_baseline.is_none()) {
                errors::warn("the baseline has no such row of this processor: nothing is compared");
            }
            if let Some(slower) = slower {
                bail!(slower);
            }
        }
        Ok(self.status())
    }

    fn status(&self) -> ExitCode {
        if interrupt::stopped() { ExitCode::from(interrupt::STATUS) } else { ExitCode::SUCCESS }
    }

    /// The instruction sets that are asked for.
    fn isas(&self) -> Vec<String> {
        if self.isa.is_empty() { flags::isa().into_iter().collect() } else { self.isa.clone() }
    }

    /// Adds a row for every combination, until Ctrl-C.
    fn measure(&self, rows: &mut Vec<Row>) -> Result<()> {
        let prompts = self.n_prompt.iter().map(|&tokens| Test { tokens, decode: false });
        let decodings = self.n_gen.iter().map(|&tokens| Test { tokens, decode: true });
        let tests: Vec<Test> = prompts.chain(decodings).collect();
        for source in self.sources() {
            for isa in or_default(&self.isas()) {
                for threads in or_default(&self.threads) {
                    let options = EngineOptions { backend: self.backend, threads, isa: isa.clone() };
                    let subject = Subject::open(&source, &options)?;
                    let machine = Memory::new(subject.engine.threads());
                    self.measure_all(&subject, &tests, &machine, rows)?;
                }
            }
        }
        Ok(())
    }

    /// Every combination of a model on a device. How it loads is measured once, with the first.
    fn measure_all(
        &self,
        subject: &Subject,
        tests: &[Test],
        machine: &Memory,
        rows: &mut Vec<Row>,
    ) -> Result<()> {
        let mut first = true;
        for &batch in &self.batch_size {
            for k in &self.cache_type_k {
                for v in &self.cache_type_v {
                    let mut policy = Policy::uniform(k, v);
                    policy.sparse_v = self.sparse_v.unwrap_or(policy.sparse_v);
                    for &depth in &self.n_depth {
                        let setting =
                            Setting { batch, policy: &policy, depth, repetitions: self.repetitions };
                        if std::mem::take(&mut first) {
                            rows.extend(subject.measure_load(&setting, machine)?);
                        }
                        if interrupt::stopped() {
                            return Ok(());
                        }
                        rows.extend(subject.measure(tests, &setting, machine)?);
                    }
                }
            }
        }
        Ok(())
    }

    fn sources(&self) -> Vec<Source> {
        let files = self.model.iter().cloned().map(Source::File);
        let types = |shape: &String| {
            let shape = shape.clone();
            self.types.iter().map(move |format| Source::Synthetic(shape.clone(), format.clone()))
        };
        let sources: Vec<Source> = files.chain(self.synthetic.iter().flat_map(types)).collect();
        if sources.is_empty() { vec![Source::Demo] } else { sources }
    }
}

fn or_default<T: Clone>(given: &[T]) -> Vec<Option<T>> {
    if given.is_empty() { vec![None] } else { given.iter().cloned().map(Some).collect() }
}
