//! OLMo 2 and 3: norms after the sublayers only, query and key normalised over their full width.

use super::{Arch, Norms, RopePairs, llama::LLAMA};

pub const OLMO2: Arch = Arch {
    name: "olmo2",
    models: "OLMo 2, 3",
    pairs: Some(RopePairs::Halves),
    norms: Norms::Post,
    window_period: Some(4),
    normalizes_heads: true,
    ..LLAMA
};
