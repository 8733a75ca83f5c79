//! Architectures as data: each is a constant that starts from [`llama`](self) and names its
//! differences (`../shared/spec/architectures.md` §4). A tensor's presence says the rest.

mod deepseek;
mod gemma;
mod glm;
mod gpt;
mod llama;
mod mistral;
mod olmo;
mod phi;
mod qwen;
mod smollm;

use std::fmt;
use torque_backend::{Activation, Gating, RopePairs};

/// Every architecture Torque runs.
pub static ARCHS: &[&Arch] = &[
    &llama::LLAMA,
    &mistral::MISTRAL3,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &qwen::QWEN3MOE,
    &qwen::QWEN3NEXT,
    &qwen::QWEN35,
    &qwen::QWEN35MOE,
    &phi::PHI3,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gemma::GEMMA4,
    &gpt::GPT_OSS,
    &deepseek::DEEPSEEK2,
    &glm::GLM4,
    &olmo::OLMO2,
    &smollm::SMOLLM3,
    &gpt::GPT2,
];

/// How one architecture differs from another.
#[derive(Debug)]
pub struct Arch {
    /// `general.architecture`, also the prefix of its keys.
    pub name: &'static str,
    /// Models of the architecture.
    pub models: &'static str,
    /// Rotary pairs; `None`: no rotary embedding.
    pub pairs: Option<RopePairs>,
    /// Between the feed-forward gate and up projection.
    pub activation: Activation,
    /// Where a block is normalised.
    pub norms: Norms,
    /// Norms are layer norms, with a bias.
    pub layer_norms: bool,
    /// The tensor of the norm before the feed-forward layer.
    pub ffn_norm: &'static str,
    /// Embeddings are multiplied by √(embedding length).
    pub scales_embedding: bool,
    /// What layers do between tokens.
    pub mixing: Mixing,
    /// Default period of the sliding-window pattern: the last of every group is global. `None`: a window
    /// in the metadata is not applied.
    pub window_period: Option<usize>,
    /// Default rotary base of windowed layers, where it is their own; those layers have no rope scaling.
    pub window_rope_base: Option<f32>,
    /// Layers with `(layer + 1) % n == 0` have no rotary embedding.
    pub unrotated_every: Option<usize>,
    /// YaRN's bounds are whole pairs.
    pub yarn_rounds: bool,
    /// Multiplies attention scores, instead of 1/√head size.
    pub attention_scale: Option<f32>,
    /// Model of this many layers scales attention by 1/√(embedding / heads) instead of 1/√head size.
    pub layers_scaled_by_width: Option<usize>,
    /// Queries and keys are normalised, each head or all at once.
    pub normalizes_heads: bool,
    /// Values are normalised too, without a weight.
    pub normalizes_values: bool,
    /// Feed-forward layers have a gate.
    pub gates_feed_forward: bool,
    /// Experts lie beside a dense layer and, with norms of their own, read the residual stream.
    pub experts_beside: bool,
    /// How experts are chosen unless the metadata says it.
    pub gating: Gating,
    /// Whether the weights of chosen experts are made to sum to 1 unless the metadata says it.
    pub normalizes_experts: bool,
    /// Per-layer tensors a file must have beyond the base's.
    pub required: &'static [&'static str],
}

/// What layers do between tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixing {
    /// Attention in every layer.
    Attention,
    /// Attention whose output is gated in every `full_attention_interval`-th layer, Gated DeltaNet in the
    /// others.
    Hybrid(HeadOrder),
    /// Multi-head latent attention.
    Latent,
}

impl fmt::Display for Mixing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Mixing::Attention => "attention",
            Mixing::Hybrid(_) => "Gated DeltaNet, gated attention",
            Mixing::Latent => "multi-head latent attention",
        })
    }
}

/// Which key head a value head of a Gated DeltaNet reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadOrder {
    /// Head j reads key head `j / (value heads / key heads)`.
    Grouped,
    /// Head j reads key head `j % key heads`.
    Tiled,
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
