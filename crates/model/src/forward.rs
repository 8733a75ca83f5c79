//! The forward pass: every block of every architecture, in one screen.

use crate::config::LayerConfig;
use crate::load::{AttentionWeights, FeedForward, Layer, Linear, Model};
use crate::rope::Frequencies;
use torque_backend::{Angles, Attention, Backend, Routing, Segment};

/// Buffers of a forward pass of up to `batch` tokens, allocated once.
pub(crate) struct Activations<B: Backend> {
    /// The residual stream: `[tokens, embedding]`.
    x: B::Tensor,
    /// A normalised copy of it.
    h: B::Tensor,
    /// What a sublayer adds to it.
    y: B::Tensor,
    /// `[tokens, heads·head_dim]`.
    q: B::Tensor,
    /// `[tokens, kv_heads·head_dim]`.
    k: B::Tensor,
    v: B::Tensor,
    /// `[tokens, heads·head_dim]`.
    attended: B::Tensor,
    /// `[tokens, feed_forward]`.
    gate: B::Tensor,
    up: B::Tensor,
    /// `[tokens, experts]`.
    router: B::Tensor,
    /// `[rows, vocabulary]`.
    logits: B::Tensor,
    /// (cos, sin) of the batch's positions, for each rotary embedding.
    angles: Vec<Vec<[f32; 2]>>,
    /// Query temperature of each row.
    temperatures: Vec<f32>,
}

/// Rows of logits computed at once: their buffer is this many vocabularies.
pub(crate) const LOGIT_ROWS: usize = 32;

impl<B: Backend> Activations<B> {
    pub fn new(backend: &B, model: &Model<B>, batch: usize) -> Activations<B> {
        let config = &model.config;
        let widest = |width: &dyn Fn(&LayerConfig) -> usize| {
            let width = config.layers.iter().map(width).max().unwrap_or(0);
            backend.tensor(batch * width)
        };
        let rows = || backend.tensor(batch * config.embedding);
        Activations {
            x: rows(),
            h: rows(),
            y: rows(),
            q: widest(&|l| l.heads * l.kv.head_dim[0]),
            k: widest(&|l| l.kv.heads * l.kv.head_dim[0]),
            v: widest(&|l| l.kv.heads * l.kv.head_dim[1]),
            attended: widest(&|l| l.heads * l.kv.head_dim[1]),
            gate: widest(&|l| l.feed_forward),
            up: widest(&|l| l.feed_forward),
            router: backend.tensor(batch * config.experts.map_or(0, |e| e.count)),
            logits: backend.tensor(batch.min(LOGIT_ROWS) * config.vocabulary),
            angles: vec![Vec::new(); config.ropes.len()],
            temperatures: Vec::new(),
        }
    }
}

/// Runs `tokens` through the model. Each segment's tokens are appended to its sequence already; their
/// keys and values go to the store's tails. Leaves the last block's output in `activations`.
pub(crate) fn forward<B: Backend>(
    backend: &B,
    model: &Model<B>,
    ropes: &[Frequencies],
    store: &mut B::Store,
    a: &mut Activations<B>,
    tokens: &[u32],
    segments: &[Segment],
) {
    let config = &model.config;
    let positions = || segments.iter().flat_map(|s| s.position()..s.sequence.len());
    for (rope, angles) in ropes.iter().zip(&mut a.angles) {
        angles.clear();
        positions().for_each(|position| rope.angles(position, angles));
    }
    a.temperatures.clear();
    a.temperatures.extend(config.temperature.iter().flat_map(|t| positions().map(|p| t.factor(p))));

    for x in [&mut a.x, &mut a.h, &mut a.y] {
        backend.reshape(x, tokens.len(), config.embedding);
    }
    backend.embed(&model.embedding, tokens, &mut a.x);
    if let Some(scale) = config.embedding_scale {
        backend.scale(scale, &mut a.x);
    }
    for (index, (layer, numbers)) in model.layers.iter().zip(&config.layers).enumerate() {
        let h = normalised(backend, model, layer.attention_norm.as_ref(), &a.x, &mut a.h);
        project(backend, &layer.attention, h, tokens.len(), &mut a.q, &mut a.k, &mut a.v);
        attention(backend, model, ropes, store, a, index, numbers, layer, segments);
        add_sublayer(backend, model, layer.attention_post_norm.as_ref(), &mut a.y, &mut a.x);

        let h = normalised(backend, model, layer.ffn_norm.as_ref(), &a.x, &mut a.h);
        match &layer.ffn {
            FeedForward::Dense { gate, up, down } => {
                linear(backend, gate, h, tokens.len(), &mut a.gate);
                linear(backend, up, h, tokens.len(), &mut a.up);
                backend.glu(config.arch.activation, &a.up, &mut a.gate);
                linear(backend, down, &a.gate, tokens.len(), &mut a.y);
            }
            FeedForward::Routed { router, experts } => {
                let config = config.experts.expect("experts are loaded only if the config has them");
                linear(backend, router, h, tokens.len(), &mut a.router);
                let routing = Routing { used: config.used, normalize: true, scale: config.scale };
                backend.experts(experts, &routing, &a.router, h, &mut a.y);
            }
        }
        add_sublayer(backend, model, layer.ffn_post_norm.as_ref(), &mut a.y, &mut a.x);
    }
}

/// Logits of some rows of the last [`forward`]: at most [`LOGIT_ROWS`].
pub(crate) fn logits<B: Backend>(
    backend: &B,
    model: &Model<B>,
    a: &mut Activations<B>,
    rows: &[usize],
    out: &mut [f32],
) {
    let config = &model.config;
    backend.reshape(&mut a.y, rows.len(), config.embedding);
    backend.take_rows(&a.x, rows, &mut a.y);
    backend.rms_norm_inplace(&model.output_norm, config.eps, &mut a.y);
    backend.reshape(&mut a.logits, rows.len(), config.vocabulary);
    backend.linear(model.output.as_ref().unwrap_or(&model.embedding), &a.y, &mut a.logits);
    if let Some(cap) = config.final_softcap {
        backend.softcap(cap, &mut a.logits);
    }
    backend.read(&a.logits, out);
}

fn linear<B: Backend>(backend: &B, w: &Linear<B>, x: &B::Tensor, tokens: usize, out: &mut B::Tensor) {
    backend.reshape(out, tokens, w.rows);
    backend.linear(&w.weight, x, out);
    if let Some(bias) = &w.bias {
        backend.add_bias(bias, out);
    }
}

/// `x` itself where a sublayer is not normalised before.
fn normalised<'a, B: Backend>(
    backend: &B,
    model: &Model<B>,
    norm: Option<&B::Vector>,
    x: &'a B::Tensor,
    h: &'a mut B::Tensor,
) -> &'a B::Tensor {
    let Some(norm) = norm else { return x };
    backend.rms_norm(norm, model.config.eps, x, h);
    h
}

fn add_sublayer<B: Backend>(
    backend: &B,
    model: &Model<B>,
    norm: Option<&B::Vector>,
    y: &mut B::Tensor,
    x: &mut B::Tensor,
) {
    if let Some(norm) = norm {
        backend.rms_norm_inplace(norm, model.config.eps, y);
    }
    backend.add(y, x);
}

fn project<B: Backend>(
    backend: &B,
    weights: &AttentionWeights<B>,
    h: &B::Tensor,
    tokens: usize,
    q: &mut B::Tensor,
    k: &mut B::Tensor,
    v: &mut B::Tensor,
) {
    linear(backend, &weights.q, h, tokens, q);
    linear(backend, &weights.k, h, tokens, k);
    linear(backend, &weights.v, h, tokens, v);
}

/// From projected q, k and v in `a` to the sublayer's output in `a.y`.
fn attention<B: Backend>(
    backend: &B,
    model: &Model<B>,
    ropes: &[Frequencies],
    store: &mut B::Store,
    a: &mut Activations<B>,
    index: usize,
    numbers: &LayerConfig,
    layer: &Layer<B>,
    segments: &[Segment],
) {
    let (config, weights) = (&model.config, &layer.attention);
    let head_dim = numbers.kv.head_dim[0];
    for (norm, x) in [(&weights.q_norm, &mut a.q), (&weights.k_norm, &mut a.k)] {
        if let Some(norm) = norm {
            backend.rms_norm_inplace(norm, config.eps, x);
        }
        if let Some(rope) = numbers.rope {
            let Frequencies { config, .. } = &ropes[rope];
            let angles = Angles { pairs: config.pairs, channels: config.channels, cos_sin: &a.angles[rope] };
            backend.rope(&angles, head_dim, x);
        }
    }
    if config.temperature.is_some() {
        backend.scale_rows(&a.temperatures, &mut a.q);
    }
    let tokens = segments.last().map_or(0, |s| s.rows.end);
    segments.iter().for_each(|segment| backend.append(store, index, segment, &a.k, &a.v));
    backend.reshape(&mut a.attended, tokens, numbers.heads * numbers.kv.head_dim[1]);
    let parameters = Attention {
        layer: index,
        heads: numbers.heads,
        scale: numbers.attention_scale,
        softcap: config.attention_softcap,
        sinks: None,
    };
    backend.attention(store, &parameters, segments, &mut a.q, &mut a.attended);
    linear(backend, &weights.output, &a.attended, tokens, &mut a.y);
}
