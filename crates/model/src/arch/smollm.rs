//! SmolLM 3: every fourth layer has no rotary embedding.

use super::{Arch, llama::LLAMA};

pub const SMOLLM3: Arch = Arch { name: "smollm3", models: "SmolLM 3", unrotated_every: Some(4), ..LLAMA };
