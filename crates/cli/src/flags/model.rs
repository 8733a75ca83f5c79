//! Which model, and what runs it.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::PathBuf;
use torque_engine::{BackendKind, EngineOptions};

/// `-m` and what runs it.
#[derive(Args, Clone)]
#[command(next_help_heading = "Model")]
pub struct ModelFlags {
    /// Model file (GGUF; any part of a split one). Without it, the demo model inside this program
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceFlags,
}

/// What runs a model.
#[derive(Args, Clone)]
#[command(next_help_heading = "Model")]
pub struct DeviceFlags {
    /// CPU threads [default: the physical cores]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// What computes: threads and SIMD, or the slow and plain reference
    #[arg(long, value_name = "NAME", default_value = "cpu", value_parser = backend())]
    pub backend: BackendKind,
    /// Instruction set of the CPU backend, such as avx2 [env: TORQUE_ISA] [default: the best there is]
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,
}

impl DeviceFlags {
    /// How to open a model.
    pub fn options(&self) -> EngineOptions {
        EngineOptions { backend: self.backend, threads: self.threads, isa: self.isa.clone().or_else(isa) }
    }
}

/// The instruction set that `TORQUE_ISA` asks for where no flag does, if it says anything.
pub fn isa() -> Option<String> {
    let name = std::env::var_os("TORQUE_ISA")?;
    Some(name.to_string_lossy().into_owned()).filter(|name| !name.is_empty())
}

/// Reads the name of a backend.
pub fn backend() -> impl TypedValueParser<Value = BackendKind> {
    PossibleValuesParser::new(BackendKind::ALL.map(|(name, _)| name)).map(|name| {
        let found = BackendKind::ALL.iter().find(|(known, _)| *known == name);
        found.expect("the parser accepts these names only").1
    })
}

/// Reads a count of at least one.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number from 1 up".into()),
        Ok(n) => Ok(n),
    }
}
