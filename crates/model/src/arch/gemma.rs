//! Gemma 2 to 4. The stored norm weights have their +1 already.

use super::{Activation, Arch, Norms, RopePairs, llama::LLAMA};

pub const GEMMA2: Arch = Arch {
    name: "gemma2",
    models: "Gemma 2",
    pairs: Some(RopePairs::Halves),
    activation: Activation::Gelu,
    norms: Norms::Sandwich,
    scales_embedding: true,
    window_period: Some(2),
    layers_scaled_by_width: Some(46),
    ..LLAMA
};

pub const GEMMA3: Arch = Arch {
    name: "gemma3",
    models: "Gemma 3",
    window_period: Some(6),
    window_rope_base: Some(10_000.0),
    layers_scaled_by_width: Some(62),
    normalizes_heads: true,
    ..GEMMA2
};

/// Two kinds of layers with head sizes of their own; per-layer embeddings and experts where the file has
/// them.
pub const GEMMA4: Arch = Arch {
    name: "gemma4",
    models: "Gemma 4: dense, E2B and E4B, mixture of experts",
    attention_scale: Some(1.0),
    layers_scaled_by_width: None,
    normalizes_values: true,
    experts_beside: true,
    ..GEMMA3
};
