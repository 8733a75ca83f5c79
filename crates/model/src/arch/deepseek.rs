//! DeepSeek V2 to R1, Kimi and others with multi-head latent attention.

use super::{Arch, Mixing, llama::LLAMA};

pub const DEEPSEEK2: Arch = Arch {
    name: "deepseek2",
    models: "DeepSeek V2, V3, R1, Kimi K2, GLM 4.7 Flash",
    mixing: Mixing::Latent,
    normalizes_experts: false,
    ..LLAMA
};
