//! Flags that several commands share, named as in llama.cpp where it has them.

mod kv;
mod model;
mod prompt;
mod sampling;
mod saved;

pub use kv::{
    KvFlags, NamedPolicy, PageFlags, PolicyFlags, SweepFlags, kv_format_names, kv_formats, tuned_file,
};
pub use model::{DeviceFlags, ModelFlags, backend, isa, positive};
pub use prompt::PromptFlags;
pub use sampling::SamplingFlags;
pub use saved::SavedFlags;
