//! Llama: the base. Mistral 7B, Nemo and Small and Mixtral are files of this architecture too.

use super::{Activation, Arch, Norms, RopePairs};

pub const LLAMA: Arch = Arch {
    name: "llama",
    pairs: RopePairs::Interleaved,
    activation: Activation::Silu,
    norms: Norms::Pre,
    scales_embedding: false,
    window_period: None,
    window_rope_base: None,
    unrotated_every: None,
    layers_scaled_by_width: None,
    required: &[],
};
