//! How the program ends: exit statuses, and one line about what went wrong.
//!
//! Status 0 is success, also when the reader of the output has gone; 1 an error; 2 a wrong command line; 130 Ctrl-C.

use anstyle::{AnsiColor, Style};
use clap::error::ErrorKind;
use std::io::{self, Write};
use std::process::ExitCode;

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();

/// Writes a line to stderr. Nobody is told if that fails: there is nowhere to tell it.
#[macro_export]
macro_rules! note {
    ($($argument:tt)*) => {
        $crate::errors::line(format_args!($($argument)*))
    };
}

/// What [`note!`] does.
pub fn line(text: std::fmt::Arguments) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Writes a warning to stderr.
pub fn warn(text: impl std::fmt::Display) {
    note!("{YELLOW}torque: warning:{YELLOW:#} {text}");
}

/// Writes an error to stderr.
pub fn error(error: &anyhow::Error) {
    note!("{RED}torque: error:{RED:#} {}", message(error));
}

/// Writes what went wrong; the exit status it means.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_reader_gone(error) {
        return ExitCode::SUCCESS;
    }
    self::error(error);
    ExitCode::FAILURE
}

/// Whether nobody reads the output any more, as in `torque … | head -1`.
pub fn is_reader_gone(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// The causes of an error in one line, without those that another tells as well.
fn message(error: &anyhow::Error) -> String {
    let mut told: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.iter().all(|above| !above.contains(&cause)) {
            told.retain(|above| !cause.contains(above));
            told.push(cause);
        }
    }
    told.join(": ")
}

/// Writes help and version as asked for, or what is wrong with the command line.
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    // clap's text without its `error: ` and its usage, which help shows better.
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let told = text.split("\n\nUsage:").next().unwrap_or_default();
    let told = told.split("\n\nFor more information").next().unwrap_or_default();
    let lines: Vec<&str> = told.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    note!("{RED}torque: error:{RED:#} {}", lines.join("\n  "));
    note!("  `--help` lists what can be given");
    ExitCode::from(2)
}

/// Makes a panic print one line that asks for a report.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let what = (payload.downcast_ref::<&str>().copied())
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = panic.location().map(|at| format!(" ({at})")).unwrap_or_default();
        let where_to = env!("CARGO_PKG_REPOSITORY");
        note!(
            "{RED}torque: this is a bug:{RED:#} {}{place}; please report it at {where_to}/issues with the command you ran",
            what.replace('\n', " ")
        );
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn causes_are_told_once() {
        let cause = || anyhow!("no such file");
        assert_eq!(message(&cause().context("`x.gguf`")), "`x.gguf`: no such file");
        assert_eq!(message(&cause().context("cannot open: no such file")), "cannot open: no such file");
        let cause = anyhow!("cannot open `x.gguf`");
        assert_eq!(message(&cause.context("`x.gguf`")), "cannot open `x.gguf`");
    }
}
