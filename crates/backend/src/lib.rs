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
use torque_kv::{Freed, Moved, PageId, Plan, Section, Sequence, Span};
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

/// What joins a gate to what it lets through; by itself, a non-linearity: what it makes of 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `σ(gate)·up`.
    Sigmoid,
    /// `silu(gate)·up`; silu(x) = x·σ(x).
    Silu,
    /// `gelu(gate)·up`, the tanh form: gelu(x) = 0.5 x (1 + tanh(√(2/π)(x + 0.044715 x³))).
    Gelu,
    /// That of gpt-oss: `g·σ(1.702 g)·(u + 1)` with g = min(gate, 7) and u = up between −7 and 7.
    ClampedSwiglu,
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
#[derive(Clone, Copy)]
pub struct Angles<'a> {
    /// Which channels form a pair.
    pub pairs: RopePairs,
    /// Channels of a head before the rotated ones.
    pub first: usize,
    /// Rotated channels of a head; the others pass unchanged.
    pub channels: usize,
    /// `[rows, channels / 2]` of (cos, sin), any multiplier included.
    pub cos_sin: &'a [[f32; 2]],
}

impl Angles<'_> {
    /// Turns the pairs of a head of row t.
    pub fn turn(&self, t: usize, head: &mut [f32]) {
        let (pairs, head) = (self.channels / 2, &mut head[self.first..]);
        for (i, [cos, sin]) in self.cos_sin[t * pairs..][..pairs].iter().enumerate() {
            let (i, j) = match self.pairs {
                RopePairs::Interleaved => (2 * i, 2 * i + 1),
                RopePairs::Halves => (i, i + pairs),
            };
            let (a, b) = (head[i], head[j]);
            head[i] = a * cos - b * sin;
            head[j] = a * sin + b * cos;
        }
    }
}

/// Runs of columns in every row, of equal width: run g begins at `first + g·stride`.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// Where the first begins.
    pub first: usize,
    /// From one to the next.
    pub stride: usize,
}

impl Runs {
    /// Heads of `width`, one after the other.
    pub fn heads(width: usize) -> Runs {
        Runs { first: 0, stride: width }
    }

    /// The columns of run g.
    pub fn columns(&self, g: usize, width: usize) -> Range<usize> {
        let start = self.first + g * self.stride;
        start..start + width
    }
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

/// Parameters of one gated DeltaNet layer.
pub struct DeltaNet<'a, V> {
    /// Ordinal among the recurrent layers.
    pub layer: usize,
    /// Heads of q and k.
    pub key_heads: usize,
    /// Heads of v, each with a state: a multiple of the key heads.
    pub value_heads: usize,
    /// Values of a q or k head.
    pub key_dim: usize,
    /// Values of a v head.
    pub value_dim: usize,
    /// Whether value head j has key head j mod key_heads; else j / (value_heads / key_heads).
    pub tiled: bool,
    /// The convolution, `[kernel, channels]`, its last row for the current token. GGUF stores it the other way
    /// round, channel by channel.
    pub conv: &'a V,
    /// What multiplies the step: negative, `[value_heads]`.
    pub decay: &'a V,
    /// `[value_heads]`.
    pub dt_bias: &'a V,
    /// Added to a head's sum of squares when q and k are normalised.
    pub eps: f32,
}

impl<V> DeltaNet<'_, V> {
    /// Inputs of the convolution: `2·key_heads·key_dim + value_heads·value_dim`, all q heads, k heads, v heads.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// The key head of a value head.
    pub fn key_head(&self, value_head: usize) -> usize {
        if self.tiled {
            value_head % self.key_heads
        } else {
            value_head / (self.value_heads / self.key_heads)
        }
    }
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
pub struct Experts<M, V> {
    /// Gate projections, one an expert, all of one shape.
    pub gate: Vec<M>,
    /// Up projections, of the same shape.
    pub up: Vec<M>,
    /// Down projections.
    pub down: Vec<M>,
    /// What is added to the gate projections, expert after expert: `[experts, feed_forward]`.
    pub gate_bias: Option<V>,
    /// To the up projections.
    pub up_bias: Option<V>,
    /// To the down projections: `[experts, embedding]`.
    pub down_bias: Option<V>,
    /// Between them.
    pub activation: Activation,
}

/// What router logits say about experts. The numbers are those of `expert_gating_func`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// p is the softmax over all experts.
    Softmax = 1,
    /// p is the sigmoid of each logit.
    Sigmoid = 2,
    /// Experts are chosen by logit; p is the softmax over the chosen.
    SoftmaxOfChosen = 3,
}

/// How experts are chosen from router logits, and what they count.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// Experts a token goes to: at most all.
    pub used: usize,
    /// From logits to p.
    pub gating: Gating,
    /// Added to p (to the logit, if experts are chosen by it) for the choice alone: `[experts]`.
    pub selection_bias: Option<&'a [f32]>,
    /// Experts form this many groups of equals, and are chosen from this many of them: those with the
    /// largest sum of their best two.
    pub groups: Option<(usize, usize)>,
    /// Whether the p of the chosen are rescaled to sum to 1.
    pub normalize: bool,
    /// Multiplies every weight.
    pub scale: f32,
    /// Multiplies the output of each expert: `[experts]`.
    pub factors: Option<&'a [f32]>,
}

impl Routing<'_> {
    /// The usual one: the `used` likeliest, their probabilities rescaled to sum to 1.
    pub fn top(used: usize) -> Self {
        Routing {
            used,
            gating: Gating::Softmax,
            selection_bias: None,
            groups: None,
            normalize: true,
            scale: 1.0,
            factors: None,
        }
    }
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
    /// For each of some matrices w that read the same x, `out[t][o] = Σ_i w[o][i]·x[t][i]`.
    fn linear(&self, x: &Self::Tensor, products: &mut [(&Self::Matrix, &mut Self::Tensor)]);
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
    /// `x = (x − mean(x)) / √(mean((x − mean(x))²) + eps) · weight + bias`, over whole rows.
    fn layer_norm_inplace(&self, weight: &Self::Vector, bias: &Self::Vector, eps: f32, x: &mut Self::Tensor);
    /// `x = activation(x, 1)`.
    fn activate(&self, activation: Activation, x: &mut Self::Tensor);
    /// `x[t] *= σ(gate[t])`; `gate` is one value a row.
    fn gate_rows(&self, gate: &Self::Tensor, x: &mut Self::Tensor);
    /// Copies runs of columns: `out[t][to.first + g·to.stride + i] = x[t][from.first + g·from.stride + i]`
    /// for g below runs, i below width.
    fn copy_columns(
        &self,
        runs_by_width: [usize; 2],
        x: &Self::Tensor,
        from: Runs,
        out: &mut Self::Tensor,
        to: Runs,
    );
    /// A product for every run of columns: `out[t][to.first + g·to.stride + o] =
    /// Σ_i w[g][o][i]·x[t][from.first + g·from.stride + i]`. The matrices are of one shape.
    fn linear_runs(&self, w: &[Self::Matrix], x: &Self::Tensor, from: Runs, out: &mut Self::Tensor, to: Runs);
    /// `gate = activation(gate, up)`.
    fn glu(&self, activation: Activation, up: &Self::Tensor, gate: &mut Self::Tensor);
    /// For each pair (a, b) of every head: `(a·cos − b·sin, a·sin + b·cos)`.
    fn rope(&self, angles: &Angles, head_dim: usize, x: &mut Self::Tensor);
    /// `out[i] = x[rows[i]]`.
    fn take_rows(&self, x: &Self::Tensor, rows: &[usize], out: &mut Self::Tensor);
    /// `out[t] = Σ_e w_e·(down_e·activation(gate_e·x[t] + b, up_e·x[t] + b) + b)` over the experts e that
    /// [`scalar::route`] chooses from `router[t]`, with their weights w.
    fn experts(
        &self,
        experts: &Experts<Self::Matrix, Self::Vector>,
        routing: &Routing,
        router: &Self::Tensor,
        x: &Self::Tensor,
        out: &mut Self::Tensor,
    );

    /// An empty cache for `sequences` sequences and batches of up to `batch` tokens.
    fn store(&self, plan: &Plan, sequences: usize, batch: usize) -> Self::Store;
    /// Writes the keys and values of a segment, whose tokens are appended already, to its tail.
    /// `k` and `v` hold the whole batch: `[rows, kv_heads·head_dim]`. Where values lie in the keys
    /// ([`torque_kv::KvLayer::values_in_keys`]), `v` is not read.
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
    /// `q` and `out`: `[rows, heads·head_dim]`, with the head sizes of K and V. Leaves `q` unspecified.
    ///
    /// Where the plan is [sparse](Plan::sparse_v), values that weigh little may be left out of passes of few rows.
    ///
    /// If the plan is [guided](Plan::guided), adds to the mass of every sealed page, where the layer has no window, the sum of w over its
    /// keys, of all query heads of the last row of each segment.
    fn attention(
        &self,
        store: &mut Self::Store,
        attention: &Attention<Self::Vector>,
        segments: &[Segment],
        q: &mut Self::Tensor,
        out: &mut Self::Tensor,
    );
    /// Of the values that attention met where it may leave some out ([`Plan::sparse_v`]), a head in a page each: how many there were since
    /// the start, and how many it left out.
    fn value_parts(&self) -> [u64; 2] {
        [0, 0]
    }
    /// The mass of every page, by its number, since it was taken last; those beyond the end have none.
    fn take_mass(&self, store: &mut Self::Store) -> Vec<f32>;
    /// Gated DeltaNet. For row t of a sequence, `u = qkv[t]`, over the state that its row before left (zero
    /// at first):
    /// `c = silu(Σ_j conv[j]·u_{t − kernel + 1 + j})`, split into heads q, k and v;
    /// `q = q / √(Σq² + eps) / √key_dim`, `k = k / √(Σk² + eps)`, head by head;
    /// and for each value head, k and q those of its key head, `S [key_dim, value_dim]`:
    /// `a = exp(decay·ln(1 + e^(alpha[t] + dt_bias)))`, `b = σ(beta[t])`,
    /// `S ← a·S`, `δ = b·(v − kᵀS)`, `S ← S + k δᵀ`, `out[t] = qᵀS`.
    ///
    /// `qkv`: `[rows, channels]`; `alpha` and `beta`: `[rows, value_heads]`; `out`:
    /// `[rows, value_heads·value_dim]`. Leaves the state in the store, and the snapshots of it that the
    /// sequence names ([`Sequence::snapshots`]).
    fn delta_net(
        &self,
        store: &mut Self::Store,
        net: &DeltaNet<Self::Vector>,
        segments: &[Segment],
        qkv: &Self::Tensor,
        alpha: &Self::Tensor,
        beta: &Self::Tensor,
        out: &mut Self::Tensor,
    );
    /// Takes the state of recurrent layers back to the length of `sequence`, which was truncated or cleared
    /// just now: to the snapshot there, or to zero.
    fn rewind(&self, store: &mut Self::Store, sequence: &Sequence);
    /// Keeps the snapshot that a sequence has at the end of a page together with the page.
    fn keep_state(&self, store: &mut Self::Store, sequence: &Sequence, span: Span);
    /// Makes the state of recurrent layers, and their one snapshot, what is kept with a page. `sequence` ends with the page
    /// ([`Sequence::adopt`]).
    fn take_state(&self, store: &mut Self::Store, sequence: &Sequence, page: PageId);
    /// Frees what is kept with pages.
    fn drop_states(&self, store: &mut Self::Store, pages: &[PageId]);
    /// Encodes the first rows of a tail as `span.page`, all layers, and drops them from the tail.
    /// `sequence` has made the page already ([`Sequence::seal`]).
    fn seal(&self, store: &mut Self::Store, sequence: &Sequence, span: Span);
    /// Encodes a page again in the formats of an older tier, and frees what it took before. The page is of that tier
    /// already ([`torque_kv::Pages::grow_old`]).
    fn reseal(&self, store: &mut Self::Store, page: PageId, tier: usize);
    /// Turns keys as [`Backend::rope`] does, all by the one row of their layer's angles (`None`: they stay), and encodes them
    /// again in the format they have. The moved parts, values included, are then those of [`Moved::to`].
    fn turn(&self, store: &mut Self::Store, moved: &[Moved], angles: &[Option<Angles>]);
    /// Frees a page's parts of one window class.
    fn free(&self, store: &mut Self::Store, freed: &[Freed]);
    /// Copies a tail and the state of recurrent layers from one slot to another.
    fn copy_tail(&self, store: &mut Self::Store, from: &Sequence, to_slot: usize);
    /// Copies a section of a sequence to the host; `out` has its length ([`torque_kv::SavedSequence::sections`]). The bytes
    /// are the same on every device.
    fn export(&self, store: &Self::Store, sequence: &Sequence, section: Section, out: &mut [u8]);
    /// Brings a section that was exported to the device. Its pages are new ones ([`Sequence::restore`]).
    fn import(&self, store: &mut Self::Store, sequence: &Sequence, section: Section, bytes: &[u8]);
    /// Bytes the store holds now: (sealed pages and snapshots, tails and states).
    fn store_bytes(&self, store: &Self::Store) -> (usize, usize);
}
