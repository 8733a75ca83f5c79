//! Phi 3 and 4: fused projections, which the loader takes apart. Their sliding window is not applied.

use super::{Arch, RopePairs, llama::LLAMA};

pub const PHI3: Arch = Arch { name: "phi3", pairs: RopePairs::Halves, ..LLAMA };
