//! The ops a device must provide, and their scalar reference.
//!
//! A model is a sequence of these ops; nothing else touches activations, weights or the KV cache.
//! Every op is documented by its formula. Ops cannot fail and allocate nothing that lasts: all that
//! can be wrong with a model is found while loading it.
//!
//! Activations are `[rows, width]` tensors of `f32`, one row a token.
#![forbid(unsafe_code)]

pub mod host;
pub mod scalar;
pub mod suite;

use bytes::Bytes;
use std::ops::Range;
use torque_kv::{Freed, Plan, Sequence, Span};
use torque_quant::FormatOps;

pub use scalar::Scalar;

/// A weight matrix as the file holds it: `rows` rows of `columns` values.
#[derive(Clone)]
pub struct MatrixData {
    /// Format of the rows.
    pub format: &'static FormatOps,
    /// Outputs.
    pub rows: usize,
    /// Inputs: the contiguous direction.
    pub columns: usize,
    /// `rows` rows of `format.row_bytes(columns)` bytes.
    pub bytes: Bytes,
}

/// The non-linearity of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// The tanh form: 0.5 x (1 + tanh(√(2/π)(x + 0.044715 x³))).
    Gelu,
}

/// Which channels of a head a rotary embedding pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// Channels 2i and 2i + 1.
    Interleaved,
    /// Channels i and i + n/2 of the first n.
    Halves,
}

/// Cosines and sines of a batch's positions.
pub struct Angles<'a> {
    /// Which channels form a pair.
    pub pairs: RopePairs,
    /// Rotated channels of a head; the others pass unchanged.
    pub channels: usize,
    /// `[rows, channels / 2]` of (cos, sin), any multiplier included.
    pub cos_sin: &'a [[f32; 2]],
}

/// Parameters of one layer's attention.
pub struct Attention<'a, V> {
    /// Ordinal among the layers that have KV.
    pub layer: usize,
    /// Query heads; query head h reads KV head h / (heads / kv_heads).
    pub heads: usize,
    /// Multiplies every score.
    pub scale: f32,
    /// c in `c·tanh(s/c)`, applied to scaled scores.
    pub softcap: Option<f32>,
    /// One more logit a head in the softmax denominator, without a value: `[heads]`.
    pub sinks: Option<&'a V>,
}

/// Rows of a batch that belong to one sequence.
pub struct Segment<'a> {
    /// The rows; row i is at position `sequence.len() - rows.len() + i`: its tokens are appended.
    pub rows: Range<usize>,
    /// The sequence, the batch's tokens included.
    pub sequence: &'a Sequence,
}

impl Segment<'_> {
    /// Position of the first row.
    pub fn position(&self) -> usize {
        self.sequence.len() - self.rows.len()
    }
}

/// The experts of one layer.
pub struct Experts<M> {
    /// Gate projections, one an expert.
    pub gate: Vec<M>,
    /// Up projections.
    pub up: Vec<M>,
    /// Down projections.
    pub down: Vec<M>,
    /// Between them.
    pub activation: Activation,
}

/// How experts are chosen from router logits.
#[derive(Clone, Copy, Debug)]
pub struct Routing {
    /// Experts a token goes to.
    pub used: usize,
    /// Whether the chosen weights are rescaled to sum to 1.
    pub normalize: bool,
    /// Multiplies every weight.
    pub scale: f32,
}

/// What a device must provide.
pub trait Backend: Send + Sync + 'static {
    /// Activations: `[rows, width]` of `f32`.
    type Tensor: Send;
    /// Parameters that are one row of `f32`: norm weights and biases.
    type Vector: Send + Sync;
    /// A weight matrix.
    type Matrix: Send + Sync;
    /// The bytes of a KV cache: tails and sealed pages.
    type Store: Send;

    /// The name used on the command line.
    fn name(&self) -> &'static str;
    /// The instruction set or device it runs on.
    fn device(&self) -> String;
    /// Threads that compute.
    fn threads(&self) -> usize;

    /// A tensor with room for `capacity` values.
    fn tensor(&self, capacity: usize) -> Self::Tensor;
    /// Makes it `[rows, width]`, within its capacity. Its contents are then unspecified.
    fn reshape(&self, x: &mut Self::Tensor, rows: usize, width: usize);
    /// Copies values from the host.
    fn write(&self, values: &[f32], x: &mut Self::Tensor);
    /// Copies a tensor's rows to the host.
    fn read(&self, x: &Self::Tensor, out: &mut [f32]);
    /// Brings parameters to the device.
    fn vector(&self, values: &[f32]) -> Self::Vector;
    /// Brings a weight matrix to the device; on the CPU it stays in the file's map.
    fn matrix(&self, data: MatrixData) -> Self::Matrix;

    /// `out[t] = table[tokens[t]]`.
    fn embed(&self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Tensor);
    /// `out[t][o] = Σ_i w[o][i]·x[t][i]`.
    fn linear(&self, w: &Self::Matrix, x: &Self::Tensor, out: &mut Self::Tensor);
    /// `x[t] += bias`.
    fn add_bias(&self, bias: &Self::Vector, x: &mut Self::Tensor);
    /// `x += y`.
    fn add(&self, y: &Self::Tensor, x: &mut Self::Tensor);
    /// `x *= factor`.
    fn scale(&self, factor: f32, x: &mut Self::Tensor);
    /// `x[t] *= factors[t]`.
    fn scale_rows(&self, factors: &[f32], x: &mut Self::Tensor);
    /// `x = c·tanh(x/c)`.
    fn softcap(&self, c: f32, x: &mut Self::Tensor);
    /// `out = x / √(mean(x²) + eps) · weight`, over groups as wide as the weight: whole rows, or heads.
    fn rms_norm(&self, weight: &Self::Vector, eps: f32, x: &Self::Tensor, out: &mut Self::Tensor);
    /// [`Backend::rms_norm`] in place.
    fn rms_norm_inplace(&self, weight: &Self::Vector, eps: f32, x: &mut Self::Tensor);
    /// `gate = activation(gate)·up`.
    fn glu(&self, activation: Activation, up: &Self::Tensor, gate: &mut Self::Tensor);
    /// For each pair (a, b) of every head: `(a·cos − b·sin, a·sin + b·cos)`.
    fn rope(&self, angles: &Angles, head_dim: usize, x: &mut Self::Tensor);
    /// `out[i] = x[rows[i]]`.
    fn take_rows(&self, x: &Self::Tensor, rows: &[usize], out: &mut Self::Tensor);
    /// `out[t] = Σ_e w_e·down_e(activation(gate_e·x[t]) · up_e·x[t])` over the `used` experts e with the
    /// largest `p = softmax(router[t])` (ties: lower index), `w_e = p_e·scale`, or `p_e·scale/Σ p` if
    /// normalised.
    fn experts(
        &self,
        experts: &Experts<Self::Matrix>,
        routing: &Routing,
        router: &Self::Tensor,
        x: &Self::Tensor,
        out: &mut Self::Tensor,
    );

    /// An empty cache for `sequences` sequences and batches of up to `batch` tokens.
    fn store(&self, plan: &Plan, sequences: usize, batch: usize) -> Self::Store;
    /// Writes the keys and values of a segment, whose tokens are appended already, to its tail.
    /// `k` and `v` hold the whole batch: `[rows, kv_heads·head_dim]`.
    fn append(
        &self,
        store: &mut Self::Store,
        layer: usize,
        segment: &Segment,
        k: &Self::Tensor,
        v: &Self::Tensor,
    );
    /// For row t at position p and each query head: `out[t] = Σ_s w_s·v_s`, w the softmax over the
    /// keys s ≤ p of the sequence, p − s < window, of `softcap(scale·q·k_s)` (and the sink).
    /// `q` and `out`: `[rows, heads·head_dim]`. Leaves `q` unspecified.
    fn attention(
        &self,
        store: &Self::Store,
        attention: &Attention<Self::Vector>,
        segments: &[Segment],
        q: &mut Self::Tensor,
        out: &mut Self::Tensor,
    );
    /// Encodes the first rows of a tail as `span.page`, all layers, and drops them from the tail.
    /// `sequence` has made the page already ([`Sequence::seal`]).
    fn seal(&self, store: &mut Self::Store, sequence: &Sequence, span: Span);
    /// Frees a page's parts of one window class.
    fn free(&self, store: &mut Self::Store, freed: &[Freed]);
    /// Copies a tail of `tokens` tokens from one slot to another.
    fn copy_tail(&self, store: &mut Self::Store, from: &Sequence, to_slot: usize);
    /// Bytes the store holds now: (sealed pages, tails).
    fn store_bytes(&self, store: &Self::Store) -> (usize, usize);
}
