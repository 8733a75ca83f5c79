//! `torque eval needle`: facts that are found again in a long text.

use super::study::{OutputFlags, Study};
use crate::flags::{ModelFlags, SweepFlags, positive};
use crate::text;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;
use torque_engine::{Engine, evaluate};

/// Facts hidden in long texts: how often the model finds them
///
/// Hides "The access code for WORD is NNNNNN." between the sentences of a text, at every depth of every length, asks for it
/// in the model's chat form, and looks for the number in the answer. Words, numbers and texts are random, and the same for all
/// policies and in every run with the same --seed.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Needle {
    /// The text to hide facts in; `-` is stdin [default: sentences made up for the purpose]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    needle: NeedleFlags,
    #[command(flatten)]
    output: OutputFlags,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    sweep: SweepFlags,
}

const EXAMPLES: &str = "\
Examples:
  torque eval needle -m model.gguf --sweep f16,turbo4/turbo3,turbo2 --report needle.html
  torque eval needle -m model.gguf -f book.txt --lengths 8192,32768 --depths 0,50,100 -ctk turbo3 -ctv turbo3
  torque eval needle -m model.gguf --trials 10 --seed 7 --resume needle.jsonl --json";

/// Which facts, and where.
#[derive(Args)]
#[command(next_help_heading = "Facts")]
pub struct NeedleFlags {
    /// Tokens of prompts [default: 512,1024,2048,4096 as far as the model was trained]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = positive)]
    lengths: Vec<usize>,
    /// Where the facts lie, in percent of the text
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,25,50,75,100", value_parser = percent)]
    depths: Vec<usize>,
    /// Facts for each length and depth
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    trials: usize,
    /// What words, numbers and texts are drawn from
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Tokens of an answer at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 48, value_parser = positive)]
    predict: usize,
}

fn percent(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|percent| *percent <= 100);
    number.ok_or_else(|| "expected a whole number from 0 to 100".into())
}

impl NeedleFlags {
    /// What to ask a model, in a text or in made-up sentences.
    pub fn needle(&self, engine: &Engine, text: Option<String>) -> evaluate::Needle {
        let context = engine.config().context;
        let lengths = match &self.lengths[..] {
            [] => [512, 1024, 2048, 4096].into_iter().filter(|length| *length <= context).collect(),
            given => given.to_vec(),
        };
        evaluate::Needle {
            lengths: if lengths.is_empty() { vec![context] } else { lengths },
            depths: self.depths.clone(),
            trials: self.trials,
            seed: self.seed,
            text,
            answer: self.predict,
            // As small as a page, so that the question sees sealed pages.
            batch: 128,
        }
    }
}

impl Needle {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let policies = self.sweep.policies(self.model.model.as_deref())?;
        let text = self.file.as_ref().map(|path| text::read(path)).transpose()?;
        let mut study = Study::open(&self.model, &self.output)?;
        let needle = self.needle.needle(study.engine(), text);
        if !study.needle(&needle, &policies)? {
            return study.stopped();
        }
        study.tell(!self.sweep.sweep.is_empty())
    }
}
