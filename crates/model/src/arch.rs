//! Architectures as data: each is a constant that starts from [`llama`](self) and names its
//! differences (`../shared/spec/architectures.md` §4). A tensor's presence says the rest.

mod gemma;
mod llama;
mod mistral;
mod olmo;
mod phi;
mod qwen;
mod smollm;

use torque_backend::{Activation, RopePairs};

/// Every architecture Torque runs.
pub static ARCHS: &[&Arch] = &[
    &llama::LLAMA,
    &mistral::MISTRAL3,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &qwen::QWEN3MOE,
    &phi::PHI3,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &olmo::OLMO2,
    &smollm::SMOLLM3,
];

/// How one architecture differs from another.
#[derive(Debug)]
pub struct Arch {
    /// `general.architecture`, also the prefix of its keys.
    pub name: &'static str,
    /// Rotary pairs.
    pub pairs: RopePairs,
    /// Between the feed-forward gate and up projection.
    pub activation: Activation,
    /// Where a block is normalised.
    pub norms: Norms,
    /// Embeddings are multiplied by √(embedding length).
    pub scales_embedding: bool,
    /// Default period of the sliding-window pattern: the last of every group is global. `None`: a window
    /// in the metadata is not applied.
    pub window_period: Option<usize>,
    /// Default rotary base of windowed layers, where it is their own; those layers have no rope scaling.
    pub window_rope_base: Option<f32>,
    /// Layers with `(layer + 1) % n == 0` have no rotary embedding.
    pub unrotated_every: Option<usize>,
    /// Model of this many layers scales attention by 1/√(embedding / heads) instead of 1/√head size.
    pub layers_scaled_by_width: Option<usize>,
    /// Per-layer tensors a file must have beyond the base's.
    pub required: &'static [&'static str],
}

/// Where a block is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before each sublayer.
    Pre,
    /// Before and after each sublayer.
    Sandwich,
    /// After each sublayer only.
    Post,
}

impl Norms {
    /// Whether sublayers are normalised before.
    pub fn before(self) -> bool {
        self != Norms::Post
    }

    /// Whether sublayers are normalised after.
    pub fn after(self) -> bool {
        self != Norms::Pre
    }
}

/// The architecture of that name.
pub fn by_name(name: &str) -> Option<&'static Arch> {
    ARCHS.iter().copied().find(|arch| arch.name == name)
}
