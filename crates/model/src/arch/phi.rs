//! Phi 3 and 4: fused projections, which the loader takes apart. Their sliding window is not applied.

use super::{Arch, RopePairs, llama::LLAMA};

pub const PHI3: Arch =
    Arch { name: "phi3", models: "Phi 3, 3.5, 4", pairs: Some(RopePairs::Halves), ..LLAMA };
