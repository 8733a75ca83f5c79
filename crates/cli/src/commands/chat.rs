//! `torque chat`: a conversation on the model's chat template.

use crate::commands::run::{Out, prefill};
use crate::flags::{KvFlags, ModelFlags, SamplingFlags, SavedFlags};
use crate::report::{self, Before, Speed};
use crate::text::{count, thousands};
use crate::{errors, interrupt, model, note};
use anyhow::{Context, Result, bail};
use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;
use std::time::Instant;
use torque_engine::tokenizer::{ChatTemplate, Encode};
use torque_engine::{Engine, Finish, Overflow, Policy, Request, Session, SessionOptions, generate};

/// Talk to a model
///
/// A line is a message; one that ends in a backslash goes on. Ctrl-C stops an answer, Ctrl-D leaves. When lines are piped in,
/// answers come out, one after the other.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Chat {
    #[command(flatten)]
    model: ModelFlags,
    /// System prompt, short: -sys
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Conversation")]
    system_prompt: Option<String>,
    /// Tokens of an answer at most; -1: until the model ends or the context is full
    #[arg(short = 'n', long, alias = "n-predict", value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    #[arg(help_heading = "Conversation")]
    predict: i64,
    /// Tell what computes at the start, and the speed of every answer
    #[arg(short, long, help_heading = "Conversation")]
    verbose: bool,
    #[command(flatten)]
    kv: KvFlags,
    /// Memory for pages of what was said before /clear, /undo or /system, in MiB, short: -cram. A conversation that begins
    /// alike again takes them
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Context and KV cache")]
    cache_ram: usize,
    #[command(flatten)]
    saved: SavedFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
}

const EXAMPLES: &str = "\
Examples:
  torque chat -m model.gguf
  torque chat -m model.gguf -sys \"Answer in one sentence.\" -ctk turbo4 -ctv turbo3
  torque chat -m model.gguf --kv-load talk.kv --kv-save talk.kv      goes on the next time
  echo \"Why is the sky blue?\" | torque chat -m model.gguf";

/// What can be typed instead of a message.
const COMMANDS: &[(&str, &str)] = &[
    ("/help", "this list"),
    ("/clear", "forget the conversation"),
    ("/system TEXT", "set the system prompt; without TEXT, remove it"),
    ("/undo", "take back the last message and its answer"),
    ("/regen", "another answer to the last message"),
    ("/save FILE", "write the conversation to a file, as JSON"),
    ("/stats", "speed of the last answer, and how full the context is"),
    ("/quit", "leave, as Ctrl-D does"),
];

impl Chat {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        self.sampling.params()?;
        let options = SessionOptions {
            prefix_bytes: self.cache_ram.saturating_mul(1 << 20),
            ..self.kv.session(self.model.model.as_deref())?
        };
        self.saved.check()?;
        interrupt::catch();
        let engine = model::open(&self.model)?;
        let Some(template) = engine.tokenizer().chat_template() else {
            bail!("the model has no chat template; `torque run` continues plain text");
        };
        let (session, said) = self.saved.session(&engine, &options)?;
        if self.verbose {
            report::verbose(&engine, &session, &options.policy)?;
        }
        let mut conversation = Conversation {
            chat: &self,
            engine: &engine,
            template,
            session,
            policy: options.policy,
            system: self.system_prompt.clone(),
            messages: Vec::new(),
            answers: 0,
            speed: None,
        };
        conversation.resume(&said);
        let mut input = Input::open()?;
        if input.is_terminal() {
            let (name, parameters) = (&engine.config().name, count(engine.parameters()));
            let context = thousands(conversation.session.context() as u64);
            note!(
                "{name}, {parameters} parameters, {context} tokens of context. /help lists commands, Ctrl-D leaves."
            );
        }
        let ended = conversation.listen(&mut input);
        let saved = self.saved.save(&conversation.session, &conversation.whole().to_string());
        ended.and(saved).map(|()| ExitCode::SUCCESS)
    }
}

/// A conversation and the session that has read it.
struct Conversation<'a> {
    chat: &'a Chat,
    engine: &'a Engine,
    template: &'a ChatTemplate,
    session: Session,
    policy: Policy,
    system: Option<String>,
    /// Messages of user and assistant in turn, with `role` and `content`.
    messages: Vec<Value>,
    answers: u64,
    speed: Option<Speed>,
}

impl Conversation<'_> {
    /// Takes up what was said in a session that was loaded: nothing, if it was not saved by a conversation.
    fn resume(&mut self, said: &str) {
        let messages: Vec<Value> = serde_json::from_str(said).unwrap_or_default();
        let (system, messages): (Vec<Value>, _) = messages.into_iter().partition(|m| m["role"] == "system");
        let system = system.iter().find_map(|message| message["content"].as_str());
        self.system = self.system.take().or(system.map(str::to_string));
        self.messages = messages;
    }

    /// Answers until there is nothing more to say.
    fn listen(&mut self, input: &mut Input) -> Result<()> {
        while let Some(line) = input.message()? {
            match self.take(&line) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if input.is_terminal() && !errors::is_reader_gone(&error) => errors::error(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Does what a line says; whether to go on.
    fn take(&mut self, line: &str) -> Result<bool> {
        let line = line.trim_end();
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        match command {
            "" => {}
            "/help" => COMMANDS.iter().for_each(|(command, what)| note!("  {command:<14}{what}")),
            "/clear" => self.messages.clear(),
            "/system" => self.system = Some(argument.to_string()).filter(|text| !text.is_empty()),
            "/undo" => self.undo(),
            "/regen" => self.regenerate()?,
            "/save" => self.save(argument)?,
            "/stats" => self.stats(),
            "/quit" | "/exit" => return Ok(false),
            command if command.starts_with('/') => note!("{command} is not a command; /help lists them"),
            _ => self.ask(line)?,
        }
        Ok(true)
    }

    fn ask(&mut self, text: &str) -> Result<()> {
        self.messages.push(json!({ "role": "user", "content": text }));
        let answered = self.answer();
        // A message without an answer would stand before the next one, which templates refuse.
        if !matches!(answered, Ok(true)) {
            self.messages.pop();
        }
        answered.map(drop)
    }

    fn undo(&mut self) {
        match self.messages.len().checked_sub(2) {
            Some(before) => self.messages.truncate(before),
            None => note!("there is nothing to take back"),
        }
    }

    fn regenerate(&mut self) -> Result<()> {
        let Some(answer) = self.messages.pop() else {
            note!("there is no message to answer");
            return Ok(());
        };
        let answered = self.answer();
        if !matches!(answered, Ok(true)) {
            self.messages.push(answer);
        }
        answered.map(drop)
    }

    fn save(&self, path: &str) -> Result<()> {
        if path.is_empty() {
            bail!("/save: expected the name of a file");
        }
        let json = serde_json::to_string_pretty(&self.whole())?;
        std::fs::write(path, json + "\n").with_context(|| format!("/save: cannot write `{path}`"))?;
        note!("{} messages written to {path}", self.messages.len());
        Ok(())
    }

    fn stats(&self) {
        match &self.speed {
            Some(speed) => note!("{}", speed.line(&self.session, &self.policy)),
            None => note!("nothing has been said yet"),
        }
        let used = self.session.tokens().len() - self.session.forgotten().len();
        note!("context {} of {} tokens", thousands(used as u64), thousands(self.session.context() as u64));
        report::forgotten(&self.session);
    }

    /// All messages, the system prompt first.
    fn whole(&self) -> Value {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// Answers the last message; whether there is an answer, which Ctrl-C may prevent.
    fn answer(&mut self) -> Result<bool> {
        let tokenizer = self.engine.tokenizer();
        let prompt = self.template.render(&self.whole(), None, true, &Map::new())?;
        let tokens = tokenizer.encode(&prompt, Encode { add_special: true, parse_special: true });
        if self.session.overflow() == Overflow::Stop && tokens.len() >= self.session.context() {
            let context = self.session.context();
            bail!(
                "the conversation has {} tokens and the context {context}; /undo, /clear, a larger -c, or --context-overflow shift",
                tokens.len()
            );
        }
        let mut sampler = self.chat.sampling.sampler(self.engine, self.answers)?;
        self.answers += 1;
        tokens.iter().for_each(|&token| sampler.accept(token));
        let request = Request { max_tokens: usize::try_from(self.chat.predict).ok(), ..Request::default() };
        let (mut out, mut answer) = (Out::default(), String::new());
        let finish = interrupt::work(|| -> Result<_> {
            let start = Instant::now();
            let kept = self.session.reuse(&tokens);
            if !prefill(&mut self.session, &tokens[kept..])? {
                return Ok(None);
            }
            let speed = Speed::of_prompt(tokens.len() - kept, start.elapsed()).reused(kept);
            let before = Before::of(&self.session);
            let mut text = |piece: &str| {
                answer += piece;
                out.write(piece) && !interrupt::stopped()
            };
            let generation = generate(&mut self.session, tokenizer, &mut sampler, &request, &mut text)?;
            self.speed = Some(speed.decoded(generation, self.engine, before, &self.session));
            Ok(Some(generation.finish))
        })?;
        let Some(finish) = finish else {
            note!("stopped");
            return Ok(false);
        };
        out.end()?;
        if finish == Finish::Context {
            note!(
                "the context of {} tokens is full: /undo, /clear, a larger -c, or --context-overflow shift",
                self.session.context()
            );
        }
        self.messages.push(json!({ "role": "assistant", "content": answer }));
        if let Some(speed) = self.speed.as_ref().filter(|_| self.chat.verbose) {
            note!("{}", speed.line(&self.session, &self.policy));
            report::forgotten(&self.session);
        }
        Ok(true)
    }
}

/// Where messages come from.
enum Input {
    Terminal(Box<DefaultEditor>),
    Pipe,
}

impl Input {
    fn open() -> Result<Input> {
        Ok(if io::stdin().is_terminal() {
            Input::Terminal(Box::new(DefaultEditor::new()?))
        } else {
            Input::Pipe
        })
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// The next message, its continued lines joined; `None` at the end.
    fn message(&mut self) -> Result<Option<String>> {
        let mut message = String::new();
        loop {
            let Some(line) = self.line(if message.is_empty() { "> " } else { ". " })? else {
                return Ok(Some(message).filter(|message| !message.is_empty()));
            };
            match line.strip_suffix('\\') {
                Some(line) => message += &format!("{line}\n"),
                None => return Ok(Some(message + &line)),
            }
        }
    }

    fn line(&mut self, prompt: &str) -> Result<Option<String>> {
        match self {
            Input::Pipe => io::stdin().lock().lines().next().transpose().context("cannot read stdin"),
            Input::Terminal(editor) => {
                let mut interrupted = false;
                loop {
                    match editor.readline(prompt) {
                        Ok(line) => {
                            let _ = editor.add_history_entry(&line);
                            return Ok(Some(line));
                        }
                        Err(ReadlineError::Interrupted) if !interrupted => {
                            interrupted = true;
                            note!("Ctrl-C again leaves, as Ctrl-D does");
                        }
                        Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(None),
                        Err(error) => return Err(error).context("cannot read from the terminal"),
                    }
                }
            }
        }
    }
}
