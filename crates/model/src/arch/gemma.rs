//! Gemma 2 and 3. The stored norm weights have their +1 already.

use super::{Activation, Arch, Norms, RopePairs, llama::LLAMA};

pub const GEMMA2: Arch = Arch {
    name: "gemma2",
    pairs: RopePairs::Halves,
    activation: Activation::Gelu,
    norms: Norms::Sandwich,
    scales_embedding: true,
    window_period: Some(2),
    layers_scaled_by_width: Some(46),
    ..LLAMA
};

pub const GEMMA3: Arch = Arch {
    name: "gemma3",
    window_period: Some(6),
    window_rope_base: Some(10_000.0),
    layers_scaled_by_width: Some(62),
    required: &["attn_q_norm.weight", "attn_k_norm.weight"],
    ..GEMMA2
};
