//! Architectures as data and one forward pass over them.
#![forbid(unsafe_code)]

pub mod arch;
pub mod config;
mod context;
mod error;
mod forward;
mod load;
mod mixers;
pub mod rope;

pub use arch::{ARCHS, Arch};
pub use config::Config;
pub use context::{Context, ContextOptions};
pub use error::Error;
pub use load::Model;
