//! Flags that several commands share, named as in llama.cpp where it has them.

mod kv;
mod model;
mod prompt;
mod sampling;

pub use kv::{KvFlags, kv_formats};
pub use model::{ModelFlags, positive};
pub use prompt::PromptFlags;
pub use sampling::SamplingFlags;
