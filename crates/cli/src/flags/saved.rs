//! Sessions on disk.

use crate::progress::Progress;
use crate::text::thousands;
use crate::{errors, note};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;
use torque_engine::{Engine, Error, Fault, Session, SessionOptions, check_target, human_bytes};

/// Where a session is from, and where it goes.
#[derive(Args)]
#[command(next_help_heading = "Context and KV cache")]
pub struct SavedFlags {
    /// Go on from a saved session: what the text begins with and is in it is not read again. A damaged file, or one of
    /// another model, is told and ignored
    #[arg(long, value_name = "FILE")]
    pub kv_load: Option<PathBuf>,
    /// Save the session at the end; may be the file of --kv-load
    #[arg(long, value_name = "FILE")]
    pub kv_save: Option<PathBuf>,
}

impl SavedFlags {
    /// Refuses early what cannot be saved at the end.
    pub fn check(&self) -> Result<()> {
        self.kv_save.as_deref().map_or(Ok(()), check_target).context("--kv-save")
    }

    /// The session of `--kv-load` and its note, or a new one.
    pub fn session(&self, engine: &Engine, options: &SessionOptions) -> Result<(Session, String)> {
        let new = || Ok((engine.session(options)?, String::new()));
        let Some(path) = &self.kv_load else { return new() };
        let start = Instant::now();
        let progress = Progress::spinner(format!("loading {}", path.display()));
        let loaded = Session::load(engine, path, options);
        drop(progress);
        match loaded {
            Ok((session, text)) => {
                let tokens = thousands(session.tokens().len() as u64);
                note!("{tokens} tokens restored from {}", told(path, start));
                Ok((session, text))
            }
            Err(error) => match &error {
                // The first time, there is nothing to load yet.
                Error::Saved { fault: Fault::Io(io), .. }
                    if self.same_file() && io.kind() == ErrorKind::NotFound =>
                {
                    new()
                }
                Error::Saved { fault, .. } if !matches!(fault, Fault::Io(_)) => {
                    if self.same_file() && !fault.is_damage() {
                        bail!("{error}; --kv-save would replace it, so name another file");
                    }
                    errors::warn(format_args!("--kv-load: {error}; starting without it"));
                    new()
                }
                _ => Err(anyhow::Error::from(error).context("--kv-load")),
            },
        }
    }

    /// Saves the session with a note, if there is something to save.
    pub fn save(&self, session: &Session, text: &str) -> Result<()> {
        let Some(path) = self.kv_save.as_ref().filter(|_| !session.tokens().is_empty()) else {
            return Ok(());
        };
        let start = Instant::now();
        session.save(path, text).context("--kv-save")?;
        note!("{} tokens saved to {}", thousands(session.tokens().len() as u64), told(path, start));
        Ok(())
    }

    fn same_file(&self) -> bool {
        let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        self.kv_load.as_ref().map(real) == self.kv_save.as_ref().map(real)
    }
}

/// A file, its size, and the time since `start`.
fn told(path: &Path, start: Instant) -> String {
    let bytes = path.metadata().map_or(0, |metadata| metadata.len());
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    format!("{}: {} in {milliseconds:.0} ms", path.display(), human_bytes(bytes as f64))
}
