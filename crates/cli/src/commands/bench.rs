//! `torque bench`: speed of prompts and decoding, at any depth of context.

use crate::flags::{backend, kv_formats, positive};
use crate::progress::Progress;
use crate::table::Table;
use crate::text::count;
use crate::{interrupt, model, note};
use anyhow::Result;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use torque_engine::quant::{self, FORMATS};
use torque_engine::synthetic::{self, SHAPES};
use torque_engine::{
    BackendKind, Engine, EngineOptions, Policy, Session, SessionOptions, available_memory, human_bytes,
};

/// Measure the speed of prompts and decoding
///
/// Lists have commas, as in llama-bench, and every combination is a row. ppN is a prompt of N tokens, tgN the decoding of N
/// tokens, each after D tokens of context. GB/s is what must be read from memory: weights, keys and values.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Bench {
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
    /// Instruction sets of the CPU backend [default: the best there is]
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
    /// Repetitions, after one that does not count
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive)]
    repetitions: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  torque bench -m model.gguf
  torque bench --synthetic 1b --type q8_0,q4_k -t 1,2
  torque bench -m model.gguf -p 0 -d 0,4096,32768 -ctk f16,turbo4 -ctv f16,turbo3 --json > speed.json";

fn shapes() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(SHAPES.iter().map(|shape| shape.name))
}

fn weight_formats() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(FORMATS.iter().filter(|format| format.weights).map(|format| format.name))
}

/// Where a model comes from.
#[derive(Clone)]
enum Source {
    Demo,
    File(PathBuf),
    Synthetic(String, String),
}

impl Source {
    fn open(&self, options: &EngineOptions) -> Result<Engine> {
        match self {
            Source::Demo => Ok(Engine::from_gguf(model::demo(), options)?),
            Source::File(path) => model::open_file(path, options),
            Source::Synthetic(shape, format) => {
                let shape = SHAPES
                    .iter()
                    .find(|known| known.name == shape)
                    .expect("the parser accepts these names only");
                let format = quant::by_name(format).expect("the parser accepts these names only");
                let layers = shape.layers_that_fit(format, available_memory());
                if layers < shape.layers {
                    let bytes = human_bytes(shape.bytes(format, shape.layers) as f64);
                    let all = shape.layers;
                    note!("{layers} of {all} layers: all of {} in {} are {bytes}", shape.name, format.name);
                }
                let _progress = Progress::spinner(format!("making {} in {}", shape.name, format.name));
                Ok(Engine::from_gguf(synthetic::build(shape, format, layers)?, options)?)
            }
        }
    }

    fn name(&self, engine: &Engine) -> String {
        match self {
            Source::Synthetic(_, format) => format!("{} {format}", engine.config().name),
            _ => engine.config().name.clone(),
        }
    }
}

/// One measurement.
#[derive(Serialize)]
struct Row {
    model: String,
    architecture: &'static str,
    size_bytes: u64,
    parameters: u64,
    backend: &'static str,
    isa: String,
    threads: usize,
    batch: usize,
    type_k: String,
    type_v: String,
    test: String,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    tokens_per_s: f64,
    stddev: f64,
    gb_per_s: f64,
    /// Tokens per second of each repetition.
    samples: Vec<f64>,
}

impl Bench {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        interrupt::catch();
        let mut rows = Vec::new();
        let result = interrupt::work(|| self.measure(&mut rows));
        if self.json {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&rows)?)?;
        } else if !rows.is_empty() {
            write!(anstream::stdout(), "{}", table(&rows))?;
        }
        result?;
        Ok(if interrupt::stopped() { ExitCode::from(interrupt::STATUS) } else { ExitCode::SUCCESS })
    }

    /// Adds a row for every combination, until Ctrl-C.
    fn measure(&self, rows: &mut Vec<Row>) -> Result<()> {
        let threads: Vec<Option<usize>> = or_default(&self.threads);
        let sets: Vec<Option<String>> = or_default(&self.isa);
        for source in self.sources() {
            for isa in &sets {
                for &threads in &threads {
                    let options = EngineOptions { backend: self.backend, threads, isa: isa.clone() };
                    let engine = source.open(&options)?;
                    let name = source.name(&engine);
                    for &batch in &self.batch_size {
                        for k in &self.cache_type_k {
                            for v in &self.cache_type_v {
                                for &depth in &self.n_depth {
                                    self.measure_at(&engine, &name, batch, [k, v], depth, rows)?;
                                }
                            }
                        }
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

    /// All tests after one depth of context, which is filled once.
    fn measure_at(
        &self,
        engine: &Engine,
        name: &str,
        batch: usize,
        [k, v]: [&String; 2],
        depth: usize,
        rows: &mut Vec<Row>,
    ) -> Result<()> {
        let prompts = self.n_prompt.iter().map(|&n| Test { tokens: n, decode: false });
        let decodings = self.n_gen.iter().map(|&n| Test { tokens: n, decode: true });
        let tests: Vec<Test> = prompts.chain(decodings).filter(|test| test.tokens > 0).collect();
        let Some(longest) = tests.iter().map(|test| test.tokens).max() else { return Ok(()) };
        let options = SessionOptions { context: Some(depth + longest), batch, policy: Policy::uniform(k, v) };
        let mut session = engine.session(&options)?;
        for test in tests {
            let label = test.label(depth);
            let mut samples = Vec::new();
            let mut gigabytes = 0.0;
            for repetition in 0..=self.repetitions {
                if !fill(&mut session, engine, depth)? {
                    return Ok(());
                }
                let _progress = Progress::spinner(format!(
                    "{name} {k}/{v} {label}, {repetition} of {}",
                    self.repetitions
                ));
                let Some(sample) = test.run(&mut session, engine, batch)? else { return Ok(()) };
                // The first one warms caches up.
                if repetition > 0 {
                    samples.push(test.tokens as f64 / sample.seconds);
                    gigabytes += sample.bytes / sample.seconds / 1e9 / self.repetitions as f64;
                }
            }
            let (tokens_per_s, stddev) = mean_and_deviation(&samples);
            rows.push(Row {
                model: name.to_string(),
                architecture: engine.config().arch.name,
                size_bytes: engine.gguf().tensors().iter().map(|tensor| tensor.data.len() as u64).sum(),
                parameters: engine.parameters(),
                backend: engine.backend(),
                isa: engine.device(),
                threads: engine.threads(),
                batch,
                type_k: k.clone(),
                type_v: v.clone(),
                test: label,
                n_prompt: if test.decode { 0 } else { test.tokens },
                n_gen: if test.decode { test.tokens } else { 0 },
                n_depth: depth,
                tokens_per_s,
                stddev,
                gb_per_s: gigabytes,
                samples,
            });
        }
        Ok(())
    }
}

/// What is measured: a prompt, or decoding.
#[derive(Clone, Copy)]
struct Test {
    tokens: usize,
    decode: bool,
}

/// One run of a test.
struct Sample {
    seconds: f64,
    /// Bytes that must be read: the weights once a pass, and the keys and values seen.
    bytes: f64,
}

impl Test {
    fn label(self, depth: usize) -> String {
        let kind = if self.decode { "tg" } else { "pp" };
        let depth = if depth > 0 { format!(" @ d{depth}") } else { String::new() };
        format!("{kind}{}{depth}", self.tokens)
    }

    /// Runs the test; `None` after Ctrl-C.
    fn run(self, session: &mut Session, engine: &Engine, batch: usize) -> Result<Option<Sample>> {
        let tokens = text(engine, self.tokens, session.tokens().len());
        let kv_before = session.kv_read_bytes();
        let start = Instant::now();
        let step = if self.decode { 1 } else { tokens.len() };
        for tokens in tokens.chunks(step) {
            if session.append_with(tokens, &mut |_| !interrupt::stopped())? < tokens.len() {
                return Ok(None);
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let passes = if self.decode { self.tokens } else { self.tokens.div_ceil(batch) };
        let kv = (kv_before + session.kv_read_bytes()) as f64 / 2.0;
        Ok(Some(Sample { seconds, bytes: passes as f64 * (engine.active_bytes() as f64 + kv) }))
    }
}

/// Brings a session to `depth` tokens: cuts off what follows them, or reads them if they are not there. Whether that was
/// done before Ctrl-C.
fn fill(session: &mut Session, engine: &Engine, depth: usize) -> Result<bool> {
    let there = session.rewind(depth);
    if there == depth {
        return Ok(!interrupt::stopped());
    }
    let tokens = text(engine, depth - there, there);
    let progress = Progress::new(format!("filling {depth} tokens of context"), tokens.len(), "tokens");
    let done = session.append_with(&tokens, &mut |done| {
        progress.set(done);
        !interrupt::stopped()
    })?;
    Ok(done == tokens.len())
}

/// Pseudo-random tokens, the same ones for the same position.
fn text(engine: &Engine, tokens: usize, position: usize) -> Vec<u32> {
    let vocabulary = engine.config().vocabulary as u64;
    // SplitMix64 (Steele et al. 2014): any position alone gives a good random number.
    let token = |position: usize| {
        let mut x = (position as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % vocabulary) as u32
    };
    (position..position + tokens).map(token).collect()
}

fn or_default<T: Clone>(given: &[T]) -> Vec<Option<T>> {
    if given.is_empty() { vec![None] } else { given.iter().cloned().map(Some).collect() }
}

/// Mean and sample standard deviation.
fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

fn table(rows: &[Row]) -> Table {
    let columns = [
        "model",
        ">size",
        ">params",
        "backend",
        ">threads",
        "type_k",
        "type_v",
        ">test",
        ">tokens/s",
        ">GB/s",
    ];
    let mut table = Table::new(&columns).markdown(true);
    for row in rows {
        table.row([
            row.model.clone(),
            human_bytes(row.size_bytes as f64),
            count(row.parameters),
            format!("{}/{}", row.backend, row.isa),
            row.threads.to_string(),
            row.type_k.clone(),
            row.type_v.clone(),
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.tokens_per_s, row.stddev),
            format!("{:.2}", row.gb_per_s),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_that_of_a_sample() {
        assert_eq!(mean_and_deviation(&[2.0, 4.0]), (3.0, std::f64::consts::SQRT_2));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
    }

    #[test]
    fn tests_are_named_as_in_llama_bench() {
        assert_eq!(Test { tokens: 512, decode: false }.label(0), "pp512");
        assert_eq!(Test { tokens: 128, decode: true }.label(4096), "tg128 @ d4096");
    }
}
