//! `torque tokenize`: text to tokens.

use crate::flags::PromptFlags;
use crate::model;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use torque_engine::gguf::Gguf;
use torque_engine::tokenizer::{Encode, Tokenizer};

/// Show the tokens of a text
///
/// Files without weights will do.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Tokenize {
    /// Model file. Without it, the demo model inside this program
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    text: PromptFlags,
    /// Print the numbers alone, with spaces between
    #[arg(long)]
    ids: bool,
    /// Leave out the token that begins a text (and the one that ends it, if the model has one)
    #[arg(long)]
    no_bos: bool,
    /// Take names of control tokens, such as <|im_end|>, as plain text
    #[arg(long)]
    no_parse_special: bool,
}

const EXAMPLES: &str = "\
Examples:
  torque tokenize -m model.gguf -p \"Hello world\"
  torque tokenize -m model.gguf -f book.txt --ids | wc -w    how many";

impl Tokenize {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let Some(text) = self.text.read()? else { bail!("there is no text; give one with -p, -f or a pipe") };
        let gguf = match &self.model {
            Some(path) => Gguf::open(path)?,
            None => model::demo(),
        };
        let name = || self.model.as_ref().map(|path| format!("`{}`", path.display())).unwrap_or_default();
        let tokenizer = Tokenizer::from_metadata(gguf.metadata()).with_context(name)?;
        let tokens = tokenizer
            .encode(&text, Encode { add_special: !self.no_bos, parse_special: !self.no_parse_special });
        let mut out = BufWriter::new(io::stdout().lock());
        if self.ids {
            let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
            writeln!(out, "{}", ids.join(" "))?;
        } else {
            for &token in &tokens {
                write!(out, "{token:>6} -> '")?;
                out.write_all(tokenizer.token_bytes(token))?;
                writeln!(out, "'")?;
            }
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}
