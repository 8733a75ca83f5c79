//! GPT-2, and OpenAI's open-weight models: gpt-oss.

use super::{Activation, Arch, Gating, RopePairs, llama::LLAMA};

/// Layer norms, learned positions and ungated feed-forward layers.
pub const GPT2: Arch = Arch {
    name: "gpt2",
    models: "GPT-2",
    pairs: None,
    activation: Activation::Gelu,
    layer_norms: true,
    gates_feed_forward: false,
    ..LLAMA
};

/// Windows on even layers, attention sinks, experts chosen by biased logits.
pub const GPT_OSS: Arch = Arch {
    name: "gpt-oss",
    models: "gpt-oss 20B and 120B",
    pairs: Some(RopePairs::Halves),
    activation: Activation::ClampedSwiglu,
    ffn_norm: "post_attention_norm",
    window_period: Some(2),
    yarn_rounds: false,
    gating: Gating::SoftmaxOfChosen,
    required: &["attn_sinks.weight", "ffn_gate_inp.weight"],
    ..LLAMA
};
