//! The `torque` command: runs language models from GGUF files with a compressed KV cache.
#![forbid(unsafe_code)]

mod argv;
mod commands;
mod errors;
mod flags;
mod interrupt;
mod model;
mod progress;
mod report;
mod table;
mod text;

use clap::{Parser, Subcommand};
use commands::{bench, chat, completions, demo, eval, formats, inspect, run, tokenize, tune};
use std::process::ExitCode;

/// Run language models from GGUF files with a compressed KV cache
///
/// Without a command, a small model inside this program shows what it does.
#[derive(Parser)]
#[command(name = "torque", version = env!("TORQUE_VERSION"), args_conflicts_with_subcommands = true)]
#[command(disable_help_subcommand = true, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  torque                                             the demo: nothing to download
  torque chat -m model.gguf                          talk to a model
  torque run -m model.gguf -p \"Once upon a time\"     continue a text
  torque run -m model.gguf -f long.txt -ctk turbo4 -ctv turbo3
                                                     … with a KV cache a quarter the size
  torque inspect model.gguf                          what is in a file, and what its context costs";

#[derive(Subcommand)]
enum Command {
    Run(run::Run),
    Chat(chat::Chat),
    Inspect(inspect::Inspect),
    Tokenize(tokenize::Tokenize),
    Formats(formats::Formats),
    Bench(bench::Bench),
    Eval(eval::Eval),
    Tune(tune::Tune),
    Completions(completions::Completions),
}

fn main() -> ExitCode {
    errors::report_panics();
    let cli = match Cli::try_parse_from(argv::with_long_names(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => return errors::usage(&error),
    };
    let result = match cli.command {
        None => demo::run(),
        Some(Command::Run(run)) => run.run(),
        Some(Command::Chat(chat)) => chat.run(),
        Some(Command::Inspect(inspect)) => inspect.run(),
        Some(Command::Tokenize(tokenize)) => tokenize.run(),
        Some(Command::Formats(formats)) => formats.run(),
        Some(Command::Bench(bench)) => bench.run(),
        Some(Command::Eval(eval)) => eval.run(),
        Some(Command::Tune(tune)) => tune.run(),
        Some(Command::Completions(completions)) => completions.run(),
    };
    result.unwrap_or_else(|error| errors::report(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_gives_examples() {
        fn check(command: &clap::Command) {
            let examples = command.get_after_help().map(|help| help.to_string()).unwrap_or_default();
            assert!(examples.starts_with("Examples:\n"), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn every_flag_has_help() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
