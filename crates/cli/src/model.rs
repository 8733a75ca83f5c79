//! Opening models, from a file or from inside this program.

use crate::errors;
use crate::flags::ModelFlags;
use crate::progress::Progress;
use anyhow::{Context, Result};
use bytes::Bytes;
use std::path::Path;
use torque_engine::gguf::Gguf;
use torque_engine::{Engine, EngineOptions};

/// Bytes that start where a memory map would, so that numbers can be read in place.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// The demo model; `assets/README.md` says what it is.
static DEMO: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../assets/demo.gguf"));

/// The demo model's file.
pub fn demo() -> Gguf {
    Gguf::from_bytes(Bytes::from_static(&DEMO.0)).expect("the embedded model is a valid file")
}

/// Opens the model of `-m`, or the demo model, and prints warnings about it.
pub fn open(flags: &ModelFlags) -> Result<Engine> {
    let options = flags.device.options();
    match &flags.model {
        Some(path) => open_file(path, &options),
        None => Ok(Engine::from_gguf(demo(), &options)?),
    }
}

/// Opens a model file and prints warnings about it.
pub fn open_file(path: &Path, options: &EngineOptions) -> Result<Engine> {
    let progress = Progress::spinner(format!("opening {}", path.display()));
    let engine = Engine::open(path, options).with_context(|| format!("`{}`", path.display()))?;
    drop(progress);
    engine.warnings().iter().for_each(errors::warn);
    Ok(engine)
}
