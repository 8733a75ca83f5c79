//! OLMo 2 and 3: norms after the sublayers only, query and key normalised over their full width.

use super::{Arch, Norms, RopePairs, llama::LLAMA};

pub const OLMO2: Arch = Arch {
    name: "olmo2",
    pairs: RopePairs::Halves,
    norms: Norms::Post,
    window_period: Some(4),
    required: &["attn_q_norm.weight", "attn_k_norm.weight"],
    ..LLAMA
};
