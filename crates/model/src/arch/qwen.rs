//! Qwen 2 to 3, dense and mixture of experts.

use super::{Arch, RopePairs, llama::LLAMA};

pub const QWEN2: Arch = Arch {
    name: "qwen2",
    pairs: RopePairs::Halves,
    required: &["attn_q.bias", "attn_k.bias", "attn_v.bias"],
    ..LLAMA
};

pub const QWEN3: Arch = Arch {
    name: "qwen3",
    pairs: RopePairs::Halves,
    required: &["attn_q_norm.weight", "attn_k_norm.weight"],
    ..LLAMA
};

pub const QWEN3MOE: Arch = Arch {
    name: "qwen3moe",
    required: &["attn_q_norm.weight", "attn_k_norm.weight", "ffn_gate_inp.weight"],
    ..QWEN3
};
