//! Llama: the base. Mistral 7B, Nemo and Small and Mixtral are files of this architecture too.

use super::{Activation, Arch, Gating, Mixing, Norms, RopePairs};

pub const LLAMA: Arch = Arch {
    name: "llama",
    models: "Llama 1 to 3, Mistral 7B, Nemo and Small, Mixtral, and others of that form",
    pairs: Some(RopePairs::Interleaved),
    activation: Activation::Silu,
    norms: Norms::Pre,
    layer_norms: false,
    ffn_norm: "ffn_norm",
    scales_embedding: false,
    mixing: Mixing::Attention,
    window_period: None,
    window_rope_base: None,
    unrotated_every: None,
    yarn_rounds: true,
    attention_scale: None,
    layers_scaled_by_width: None,
    normalizes_heads: false,
    normalizes_values: false,
    gates_feed_forward: true,
    experts_beside: false,
    gating: Gating::Softmax,
    normalizes_experts: true,
    required: &[],
};
