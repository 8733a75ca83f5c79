//! `torque bench gate`: whether a change made decoding slower or its numbers worse.

use super::baseline;
use super::measure::{Setting, Source, Subject, Test};
use super::row::Row;
use crate::flags::{ModelFlags, PolicyFlags, positive};
use crate::progress::Progress;
use crate::{errors, interrupt};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::slice::from_ref;
use torque_engine::evaluate::{self, Chunks, Step};
use torque_engine::kernel_speed::Memory;
use torque_engine::measure::Divergence;
use torque_engine::tokenizer::Encode;
use torque_engine::{Engine, Policy};

/// Tell whether decoding has become slower, or its numbers worse
///
/// Measures the speed of decoding, and on a text inside this program the KL divergence of the chosen cache formats from f16
/// and the perplexity, and compares all three with the file of --baseline. Speed is judged as `torque bench --baseline` does.
/// The numbers are the same in every run of a program, so they may only be off by what rounding moves: the divergence may rise
/// by 2 % and 1e-6, the perplexity by 0.5 %.
///
/// Exit status: 0 nothing is worse, or the file was written; 1 something is worse; 2 that cannot be told, also for noise above
/// 25 %.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Gate {
    /// The file to compare with (JSON); written if it is not there
    #[arg(long, value_name = "FILE")]
    baseline: PathBuf,
    /// Write the file anew
    #[arg(long)]
    write: bool,
    /// Tokens to decode
    #[arg(short, long, value_name = "N", default_value_t = 32, value_parser = positive)]
    n_gen: usize,
    /// Tokens of context before them
    #[arg(short = 'd', long, value_name = "N", default_value_t = 1024)]
    n_depth: usize,
    /// Repetitions, after one that does not count
    #[arg(short, long, value_name = "N", default_value_t = 10, value_parser = positive)]
    repetitions: usize,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    policy: PolicyFlags,
}

const EXAMPLES: &str = "\
Examples:
  torque bench gate -m model.gguf -ctk turbo3 -ctv turbo3 --baseline gate.json     first writes the file, then compares
  torque bench gate -m model.gguf -ctk turbo3 -ctv turbo3 --baseline gate.json --write
                                                                                   after a change that is welcome";

/// That it cannot be told.
const CANNOT: u8 = 2;

/// A text that never changes, and how many of its tokens are read, so many at once.
const TEXT: &str = include_str!("../../../../../LICENSE-APACHE");
const TOKENS: usize = 1024;
const BATCH: usize = 128;

/// Noise above which a speed within it says nothing.
const NOISE: f64 = 0.25;

/// What divergence and perplexity may rise by: rounding.
const DIVERGENCE: (f64, f64) = (1.02, 1e-6);
const PERPLEXITY: f64 = 1.005;

/// What is measured, and what the file holds.
#[derive(Serialize, Deserialize)]
struct Measured {
    policy: Policy,
    quality: Quality,
    speed: Row,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Quality {
    tokens: usize,
    kl_divergence: f64,
    perplexity: f64,
}

impl Gate {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        interrupt::catch();
        let result = interrupt::work(|| self.judge());
        Ok(result.unwrap_or_else(|error| {
            if errors::is_reader_gone(&error) {
                return ExitCode::SUCCESS;
            }
            errors::error(&error);
            ExitCode::from(CANNOT)
        }))
    }

    fn judge(&self) -> Result<ExitCode> {
        if self.repetitions < baseline::REPETITIONS {
            bail!(
                "{} repetitions do not tell noise; `-r {}` or more do",
                self.repetitions,
                baseline::REPETITIONS
            );
        }
        let file = || format!("--baseline: `{}`", self.baseline.display());
        let earlier: Option<Measured> = match self.write || !self.baseline.exists() {
            true => None,
            false => {
                let text = fs::read_to_string(&self.baseline).with_context(file)?;
                let earlier = serde_json::from_str(&text);
                Some(earlier.with_context(|| format!("{} is none of `torque bench gate`", file()))?)
            }
        };
        let Some(now) = self.measure()? else { return Ok(ExitCode::from(interrupt::STATUS)) };
        match earlier {
            None => {
                fs::write(&self.baseline, serde_json::to_string_pretty(&now)? + "\n").with_context(file)?;
                let Measured { speed, quality, .. } = &now;
                let mut out = io::stdout().lock();
                writeln!(out, "speed    {} {:.2} tokens/s", speed.test, baseline::median(&speed.samples))?;
                writeln!(out, "quality  KL divergence {:.6}", quality.kl_divergence)?;
                writeln!(out, "quality  perplexity {:.4}", quality.perplexity)?;
                writeln!(out, "written to {}; later runs are compared with it", self.baseline.display())?;
                Ok(ExitCode::SUCCESS)
            }
            Some(earlier) => self.compare(&now, &earlier),
        }
    }

    /// Speed and quality; nothing after Ctrl-C.
    fn measure(&self) -> Result<Option<Measured>> {
        let source = self.model.model.clone().map_or(Source::Demo, Source::File);
        let subject = Subject::open(&source, &self.model.device.options())?;
        let policy = self.policy.policy("f16", self.model.model.as_deref())?;
        let Some(quality) = quality(&subject.engine, &policy)? else { return Ok(None) };
        let setting =
            Setting { batch: 512, policy: &policy, depth: self.n_depth, repetitions: self.repetitions };
        let test = Test { tokens: self.n_gen, decode: true };
        let rows = subject.measure(&[test], &setting, &Memory::new(subject.engine.threads()))?;
        let speed = rows.into_iter().next().filter(|_| !interrupt::stopped());
        Ok(speed.map(|speed| Measured { policy, quality, speed }))
    }

    fn compare(&self, now: &Measured, earlier: &Measured) -> Result<ExitCode> {
        let (speed, before) = (&now.speed, &earlier.speed);
        for (what, ours, theirs) in [
            ("processor", &speed.cpu, &before.cpu),
            ("run", &speed.key(), &before.key()),
            ("policy", &now.policy.to_string(), &earlier.policy.to_string()),
            ("length", &now.quality.tokens.to_string(), &earlier.quality.tokens.to_string()),
        ] {
            if ours != theirs {
                let file = self.baseline.display();
                let (ours, theirs) = (ours.replace('\n', " "), theirs.replace('\n', " "));
                bail!(
                    "--baseline: `{file}` is of another {what}: {theirs}; now it is {ours}; --write makes it anew"
                );
            }
        }
        let verdict = baseline::Verdict::of(speed, before)?;
        let unclear = verdict.noise > NOISE && !verdict.is_slower() && !verdict.is_faster();
        let (ratio, noise) = (verdict.ratio, 100.0 * verdict.noise);
        let mut out = io::stdout().lock();
        let word = |worse| if worse { "WORSE  " } else { "ok     " };
        writeln!(
            out,
            "{} {} {:.2} → {:.2} tokens/s: {ratio:.3}×, noise {noise:.1} %",
            if unclear { "UNCLEAR" } else { word(verdict.is_slower()) },
            speed.test,
            baseline::median(&before.samples),
            baseline::median(&speed.samples)
        )?;
        let (now, earlier) = (now.quality, earlier.quality);
        let [diverges, perplexed] = now.worse(&earlier);
        let kl = |quality: Quality| format!("{:.6}", quality.kl_divergence);
        writeln!(out, "{} KL divergence {} → {}", word(diverges), kl(earlier), kl(now))?;
        let (before, after) = (earlier.perplexity, now.perplexity);
        writeln!(out, "{} perplexity {before:.4} → {after:.4}", word(perplexed))?;
        if verdict.is_slower() || diverges || perplexed {
            return Ok(ExitCode::FAILURE);
        }
        if unclear {
            bail!(
                "noise of {noise:.1} % hides the speed: wait for a quiet machine, or give a larger -n or -r"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Quality {
    /// Whether divergence and perplexity are worse than they were. What is no number is.
    fn worse(&self, earlier: &Quality) -> [bool; 2] {
        let within = |now: f64, most: f64| now <= most;
        [
            !within(self.kl_divergence, earlier.kl_divergence * DIVERGENCE.0 + DIVERGENCE.1),
            !within(self.perplexity, earlier.perplexity * PERPLEXITY),
        ]
    }
}

/// On the text; nothing after Ctrl-C.
fn quality(engine: &Engine, policy: &Policy) -> Result<Option<Quality>> {
    let mut tokens = engine.tokenizer().encode(TEXT, Encode { add_special: true, parse_special: false });
    tokens.truncate(TOKENS.min(engine.config().context));
    let chunks = Chunks::new(engine, &tokens, tokens.len(), None, Some(0))?;
    let bar = Progress::new("reading the text", 2 * tokens.len(), "tokens");
    let mut cells = Vec::new();
    let whole = evaluate::cache(engine, &chunks, from_ref(policy), BATCH, &mut cells, &mut |step| {
        if let Step::Tokens { done, .. } = step {
            bar.set(done);
        }
        !interrupt::stopped()
    })?;
    let divergence: Divergence = cells.into_iter().flat_map(|cell| cell.rows).collect();
    Ok(whole.then(|| Quality {
        tokens: tokens.len(),
        kl_divergence: divergence.report().kld_mean,
        perplexity: divergence.perplexity()[1].value(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_move_by_rounding_only() {
        let quality = |kl_divergence, perplexity| Quality { tokens: 1024, kl_divergence, perplexity };
        let earlier = quality(0.01, 10.0);
        for (now, expected) in [
            (quality(0.01, 10.0), [false, false]),
            (quality(0.0101, 10.04), [false, false]),
            (quality(0.0103, 10.0), [true, false]),
            (quality(0.001, 10.06), [false, true]),
            (quality(f64::INFINITY, f64::NAN), [true, true]),
        ] {
            assert_eq!(now.worse(&earlier), expected, "{now:?}");
        }
        let exact = quality(0.0, 10.0);
        assert_eq!([exact.worse(&exact)[0], quality(5e-7, 1.0).worse(&exact)[0]], [false, false]);
        assert!(quality(2e-6, 1.0).worse(&exact)[0]);
    }
}
