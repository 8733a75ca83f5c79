//! The speed of a model: what is measured, and how.

use super::baseline::{mean_and_deviation, median};
use super::row::{self, Row};
use crate::progress::Progress;
use crate::report::skipped;
use crate::{interrupt, model, note};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use torque_engine::kernel_speed::Memory;
use torque_engine::quant;
use torque_engine::synthetic::{self, SHAPES};
use torque_engine::{
    BackendKind, Engine, EngineOptions, Policy, Session, SessionOptions, available_memory, cpu_name,
    human_bytes,
};

/// Where a model comes from.
#[derive(Clone)]
pub enum Source {
    Demo,
    File(PathBuf),
    Synthetic(String, String),
}

impl Source {
    pub fn open(&self, options: &EngineOptions) -> Result<Engine> {
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

/// What is measured: a prompt, or decoding.
#[derive(Clone, Copy)]
pub struct Test {
    pub tokens: usize,
    pub decode: bool,
}

/// One run of a test.
struct Sample {
    seconds: f64,
    /// Bytes that must be read: the weights once a pass, and the keys and values seen.
    bytes: f64,
    /// [`skipped`].
    values_skipped: Option<f64>,
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
        let (kv_before, parts_before) = (session.kv_read_bytes(), session.value_parts());
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
        let bytes = passes as f64 * (engine.active_bytes() as f64 + kv);
        let values_skipped = skipped(parts_before, session.value_parts());
        Ok(Some(Sample { seconds, bytes, values_skipped }))
    }
}

/// An open model, to be measured.
pub struct Subject {
    pub engine: Engine,
    source: Source,
    backend: BackendKind,
    name: String,
}

/// How it is measured.
pub struct Setting<'a> {
    pub batch: usize,
    pub policy: &'a Policy,
    pub depth: usize,
    /// Repetitions that count.
    pub repetitions: usize,
}

impl Subject {
    pub fn open(source: &Source, options: &EngineOptions) -> Result<Subject> {
        let engine = source.open(options)?;
        let name = source.name(&engine);
        Ok(Subject { engine, source: source.clone(), backend: options.backend, name })
    }

    /// All tests after one depth of context, which is filled once. Every repetition does each once. After Ctrl-C, with
    /// the repetitions that there are.
    pub fn measure(&self, tests: &[Test], setting: &Setting, machine: &Memory) -> Result<Vec<Row>> {
        let Subject { engine, name, .. } = self;
        let Setting { batch, policy, depth, repetitions } = *setting;
        let tests: Vec<Test> = tests.iter().copied().filter(|test| test.tokens > 0).collect();
        let Some(longest) = tests.iter().map(|test| test.tokens).max() else { return Ok(Vec::new()) };
        let options = SessionOptions {
            context: Some(depth + longest),
            batch,
            policy: policy.clone(),
            ..SessionOptions::default()
        };
        let mut session = engine.session(&options)?;
        let mut rows: Vec<Row> = tests.iter().map(|test| self.row(setting, test.label(depth))).collect();
        'all: for repetition in 0..=repetitions {
            for (test, row) in tests.iter().zip(&mut rows) {
                if !fill(&mut session, engine, depth)? {
                    break 'all;
                }
                let (k, v) = (&policy.k, &policy.v);
                let told = format!("{name} {k}/{v} {}, {repetition} of {repetitions}", row.test);
                let _progress = Progress::spinner(told);
                let machine_gb_per_s = machine.read();
                let Some(sample) = test.run(&mut session, engine, batch)? else { break 'all };
                // The first one warms caches up.
                if repetition > 0 {
                    row.samples.push(test.tokens as f64 / sample.seconds);
                    row.machine_gb_per_s.push(machine_gb_per_s);
                    row.gb_per_s += sample.bytes / sample.seconds / 1e9;
                    // Every repetition does the same.
                    row.values_skipped = sample.values_skipped;
                }
            }
        }
        for (test, row) in tests.iter().zip(&mut rows) {
            *(if test.decode { &mut row.n_gen } else { &mut row.n_prompt }) = test.tokens;
            row.n_depth = depth;
            row.gb_per_s /= row.samples.len() as f64;
            (row.tokens_per_s, row.stddev) = mean_and_deviation(&row.samples);
        }
        rows.retain(|row| !row.samples.is_empty());
        Ok(rows)
    }

    /// Of a file: from the start of a new program to the first token after a prompt of one; nothing after Ctrl-C.
    pub fn measure_load(&self, setting: &Setting, machine: &Memory) -> Result<Option<Row>> {
        let Source::File(path) = &self.source else { return Ok(None) };
        let mut row = self.row(setting, "load".into());
        let mut seconds = Vec::new();
        let _progress = Progress::spinner(format!("{} load", self.name));
        for repetition in 0..=setting.repetitions {
            let machine_gb_per_s = machine.read();
            let result = self.first_token(path, setting);
            if interrupt::stopped() {
                break;
            }
            let (time, peak) = result?;
            if repetition > 0 {
                seconds.push(time);
                row.samples.push(1.0 / time);
                row.machine_gb_per_s.push(machine_gb_per_s);
                row.gb_per_s += self.engine.active_bytes() as f64 / time / 1e9 / setting.repetitions as f64;
                row.peak_bytes = row.peak_bytes.max(peak);
            }
        }
        if seconds.is_empty() {
            return Ok(None);
        }
        row.n_prompt = 1;
        row.first_token_s = Some(median(&seconds));
        (row.tokens_per_s, row.stddev) = mean_and_deviation(&row.samples);
        Ok(Some(row))
    }

    /// Starts this program anew, as `bench first-token`: the seconds until it has one, and its peak memory.
    fn first_token(&self, path: &Path, setting: &Setting) -> Result<(f64, Option<u64>)> {
        let start = Instant::now();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "first-token", "-m"]).arg(path);
        command.args(["-t", &self.engine.threads().to_string(), "-b", &setting.batch.to_string()]);
        command.args(["--cache-type-k", &setting.policy.k, "--cache-type-v", &setting.policy.v]);
        match self.backend {
            BackendKind::Cpu => command.args(["--isa", &self.engine.device()]),
            BackendKind::Scalar => command.args(["--backend", self.engine.backend()]),
        };
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (mut line, mut error) = (String::new(), String::new());
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line)?;
        let seconds = start.elapsed().as_secs_f64();
        child.stderr.take().expect("it is piped").read_to_string(&mut error)?;
        if !child.wait()?.success() {
            bail!("`bench first-token`: {}", error.trim());
        }
        let peak: u64 = line.trim().parse().with_context(|| format!("`bench first-token` says `{line}`"))?;
        Ok((seconds, Some(peak).filter(|&bytes| bytes > 0)))
    }

    /// A row without measurements.
    fn row(&self, setting: &Setting, test: String) -> Row {
        let engine = &self.engine;
        Row {
            model: self.name.clone(),
            architecture: engine.config().arch.name.into(),
            size_bytes: engine.gguf().tensors().iter().map(|tensor| tensor.data.len() as u64).sum(),
            parameters: engine.parameters(),
            backend: engine.backend().into(),
            isa: engine.device(),
            threads: engine.threads(),
            batch: setting.batch,
            type_k: setting.policy.k.clone(),
            type_v: setting.policy.v.clone(),
            test,
            n_prompt: 0,
            n_gen: 0,
            n_depth: 0,
            tokens_per_s: 0.0,
            stddev: 0.0,
            gb_per_s: 0.0,
            samples: Vec::new(),
            machine_gb_per_s: Vec::new(),
            first_token_s: None,
            peak_bytes: None,
            values_skipped: None,
            cpu: cpu_name(),
            compiler: env!("TORQUE_COMPILER").into(),
            revision: env!("TORQUE_REVISION").into(),
            date: row::date(),
            of_baseline: None,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named_as_in_llama_bench() {
        assert_eq!(Test { tokens: 512, decode: false }.label(0), "pp512");
        assert_eq!(Test { tokens: 128, decode: true }.label(4096), "tg128 @ d4096");
    }
}
