//! `torque run`: continues a text.

use crate::flags::{KvFlags, ModelFlags, PromptFlags, SamplingFlags, SavedFlags};
use crate::progress::Progress;
use crate::report::{self, Before, Speed};
use crate::{interrupt, model, note};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;
use torque_engine::tokenizer::Encode;
use torque_engine::{Finish, Overflow, Request, Session, generate};

/// Continue a text
///
/// The text goes to stdout, everything else to stderr, where one line at the end tells the speed. Names in the text
/// such as <|im_start|> are taken as the model's tokens.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Run {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    prompt: PromptFlags,
    #[command(flatten)]
    output: OutputFlags,
    #[command(flatten)]
    kv: KvFlags,
    #[command(flatten)]
    saved: SavedFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
}

#[derive(Args)]
#[command(next_help_heading = "Text")]
struct OutputFlags {
    /// Tokens to generate; -1: until the model ends or the context is full
    #[arg(short = 'n', long, alias = "n-predict", value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    predict: i64,
    /// Stop before this text; may be given again
    #[arg(short, long, value_name = "STOP", allow_hyphen_values = true)]
    reverse_prompt: Vec<String>,
    /// Go on when the model ends its text
    #[arg(long)]
    ignore_eos: bool,
    /// Write the continuation only
    #[arg(long)]
    no_display_prompt: bool,
    /// Write control tokens too, short: -sp
    #[arg(long)]
    special: bool,
    /// Tell the formats of the KV cache layer by layer, the context that fits, and what computes
    #[arg(short, long)]
    verbose: bool,
}

const EXAMPLES: &str = "\
Examples:
  torque run -p \"The kernel\" -n 64                        the demo model
  torque run -m model.gguf -p \"1, 2, 3,\" --temp 0         always the same
  torque run -m model.gguf -f book.txt -ctk turbo4 -ctv turbo3 -v
                                                          a long text in a small cache
  torque run -m model.gguf -f book.txt --kv-save book.kv --kv-load book.kv
                                                          the second time, the book is not read again
  git diff | torque run -m model.gguf -n 80 2>/dev/null   in a pipe";

impl Run {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        self.sampling.params()?;
        let options = self.kv.session(self.model.model.as_deref())?;
        self.saved.check()?;
        let mut prompt = self.prompt.read()?;
        if prompt.is_none() && self.saved.kv_load.is_none() {
            bail!("there is no text to continue; give one with -p, -f or a pipe");
        }
        if self.prompt.is_file() {
            prompt = prompt.map(|text| text.strip_suffix('\n').map(str::to_string).unwrap_or(text));
        }
        interrupt::catch();
        let engine = model::open(&self.model)?;
        let mut sampler = self.sampling.sampler(&engine, 0)?;
        let (mut session, _) = self.saved.session(&engine, &options)?;
        if self.output.verbose {
            report::verbose(&engine, &session, &options.policy)?;
        }
        let tokens = match prompt.as_deref().unwrap_or_default() {
            // Without a text, a session goes on where it ended.
            "" if !session.tokens().is_empty() => session.tokens().to_vec(),
            text => engine.tokenizer().encode(text, Encode { add_special: true, parse_special: true }),
        };
        if tokens.is_empty() {
            bail!(
                "the text to continue is empty, and this model has no token to begin with; give one with -p"
            );
        }
        if session.overflow() == Overflow::Stop && tokens.len() >= session.context() {
            bail!(
                "the text has {} tokens, which leaves no room in a context of {}; see -c and --context-overflow",
                tokens.len(),
                session.context()
            );
        }

        let mut out = Out::default();
        if !self.output.no_display_prompt {
            out.write(&engine.tokenizer().decode(&tokens, self.output.special));
        }
        let request = Request {
            max_tokens: usize::try_from(self.output.predict).ok(),
            ignore_eos: self.output.ignore_eos,
            stop: self.output.reverse_prompt.iter().map(|stop| self.prompt.unescape(stop)).collect(),
            show_special: self.output.special,
        };
        let (speed, finish) = interrupt::work(|| -> Result<_> {
            let start = Instant::now();
            let kept = session.reuse(&tokens);
            let whole = prefill(&mut session, &tokens[kept..])?;
            let speed = Speed::of_prompt(session.tokens().len() - kept, start.elapsed()).reused(kept);
            if !whole {
                return Ok((speed, Finish::Cancelled));
            }
            tokens.iter().for_each(|&token| sampler.accept(token));
            let before = Before::of(&session);
            let mut text = |piece: &str| out.write(piece) && !interrupt::stopped();
            let generation = generate(&mut session, engine.tokenizer(), &mut sampler, &request, &mut text)?;
            Ok((speed.decoded(generation, &engine, before, &session), generation.finish))
        })?;
        let written = out.end();
        note!("{} · seed {}", speed.line(&session, &options.policy), sampler.seed());
        if finish == Finish::Context {
            note!(
                "the context of {} tokens is full; -c makes it larger, --context-overflow shift forgets and goes on",
                session.context()
            );
        }
        report::forgotten(&session);
        self.saved.save(&session, "")?;
        written?;
        Ok(if interrupt::stopped() { ExitCode::from(interrupt::STATUS) } else { ExitCode::SUCCESS })
    }
}

/// Appends tokens with a progress bar, until done or Ctrl-C; whether it is done.
pub fn prefill(session: &mut Session, tokens: &[u32]) -> Result<bool> {
    let progress = Progress::new("reading", tokens.len(), "tokens");
    let done = session.append_with(tokens, &mut |done| {
        progress.set(done);
        !interrupt::stopped()
    })?;
    Ok(done == tokens.len())
}

/// Text on stdout as it comes. After an error nothing more is written; `end` tells it.
#[derive(Default)]
pub struct Out {
    ends_line: bool,
    error: Option<io::Error>,
}

impl Out {
    /// Writes a piece; whether that worked.
    pub fn write(&mut self, piece: &str) -> bool {
        if self.error.is_none() && !piece.is_empty() {
            self.ends_line = piece.ends_with('\n');
            let mut stdout = io::stdout().lock();
            self.error = stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush()).err();
        }
        self.error.is_none()
    }

    /// Ends the line.
    pub fn end(mut self) -> Result<()> {
        if !self.ends_line {
            self.write("\n");
        }
        self.error.map_or(Ok(()), Err).context("cannot write to stdout")
    }
}
