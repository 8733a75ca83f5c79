//! Where a text comes from.

use crate::text;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// `-p`, `-f`, or a pipe.
#[derive(Args)]
#[command(next_help_heading = "Text")]
pub struct PromptFlags {
    /// The text. Without it and -f, what is piped into the program
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the text, taken as it is; `-` is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Read \n \r \t \' \" \\ \xHH in flags as what they stand for: the default
    #[arg(short, long, overrides_with = "no_escape")]
    escape: bool,
    /// Take backslashes in flags as they are
    #[arg(long)]
    no_escape: bool,
}

impl PromptFlags {
    /// The text; `None` if there is none and nothing is piped.
    pub fn read(&self) -> Result<Option<String>> {
        match (&self.prompt, &self.file) {
            (Some(prompt), _) => Ok(Some(self.unescape(prompt))),
            (None, Some(file)) => text::read(file).map(Some),
            (None, None) => text::piped(),
        }
    }

    /// A text given in a flag, with its escape sequences replaced.
    pub fn unescape(&self, flag: &str) -> String {
        if self.no_escape { flag.to_string() } else { text::unescape(flag) }
    }

    /// Whether the text is not from the command line but from a file or a pipe, which end in a line break that is not meant.
    pub fn is_file(&self) -> bool {
        self.prompt.is_none()
    }
}
