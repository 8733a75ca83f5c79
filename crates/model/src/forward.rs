//! The forward pass: every block of every architecture, in one screen.

use crate::arch::Mixing;
use crate::config::{Config, MixerConfig};
use crate::load::{Linear, Model, Norm};
use crate::rope::Frequencies;
use torque_backend::{Angles, Backend, Runs, Segment};

/// Buffers of a forward pass of up to `batch` tokens, allocated once.
pub(crate) struct Activations<B: Backend> {
    /// The residual stream: `[tokens, embedding]`.
    x: B::Tensor,
    /// A normalised copy of it.
    h: B::Tensor,
    /// What a sublayer adds to it.
    y: B::Tensor,
    scratch: Scratch<B>,
    /// `[rows, vocabulary]`.
    logits: B::Tensor,
    /// (cos, sin) of the batch's positions, for each rotary embedding.
    angles: Vec<Vec<[f32; 2]>>,
    /// Query temperature of each row.
    temperatures: Vec<f32>,
}

/// What sublayers work in.
pub(crate) struct Scratch<B: Backend> {
    /// Projections that are taken apart, or go through another: `[tokens, widest]`.
    pub projected: B::Tensor,
    /// `[tokens, heads·head_dim]`.
    pub q: B::Tensor,
    /// `[tokens, kv_heads·head_dim]`.
    pub k: B::Tensor,
    pub v: B::Tensor,
    /// `[tokens, heads·head_dim]`.
    pub attended: B::Tensor,
    /// `[tokens, feed_forward]`, or as wide as what else is gated.
    pub gate: B::Tensor,
    pub up: B::Tensor,
    /// `[tokens, experts]`.
    pub router: B::Tensor,
    /// A copy of the residual stream with a norm of its own: `[tokens, embedding]`.
    pub normed: B::Tensor,
    /// What routed experts add to a dense layer: `[tokens, embedding]`.
    pub routed: B::Tensor,
    /// `[tokens, layers·per_layer_embedding]`.
    pub per_layer: B::Tensor,
}

/// Rows of logits computed at once: their buffer is this many vocabularies.
pub(crate) const LOGIT_ROWS: usize = 32;

impl<B: Backend> Activations<B> {
    pub fn new(backend: &B, model: &Model<B>, batch: usize) -> Activations<B> {
        let config = &model.config;
        let rows = |width: usize| backend.tensor(batch * width);
        let width = config.embedding;
        let routed = |width: usize| rows(if config.experts.is_some() { width } else { 0 });
        Activations {
            x: rows(width),
            h: rows(width),
            y: rows(width),
            scratch: {
                let w = Widths::of(config);
                Scratch {
                    projected: rows(w.projected),
                    q: rows(w.q),
                    k: rows(w.k),
                    v: rows(w.v),
                    attended: rows(w.attended),
                    gate: rows(w.gate),
                    up: rows(w.up),
                    router: routed(config.experts.map_or(0, |e| e.count)),
                    normed: routed(width),
                    routed: routed(width),
                    per_layer: rows(config.layers.len() * config.per_layer_embedding),
                }
            },
            logits: backend.tensor(batch.min(LOGIT_ROWS) * config.vocabulary),
            angles: vec![Vec::new(); config.ropes.len()],
            temperatures: Vec::new(),
        }
    }
}

/// The widest a buffer of [`Scratch`] must be.
#[derive(Default)]
struct Widths {
    projected: usize,
    q: usize,
    k: usize,
    v: usize,
    attended: usize,
    gate: usize,
    up: usize,
}

impl Widths {
    fn of(config: &Config) -> Widths {
        let mut w = Widths {
            projected: config.layers.len() * config.per_layer_embedding,
            gate: config.per_layer_embedding,
            up: config.per_layer_embedding,
            ..Widths::default()
        };
        let fit = |width: &mut usize, wanted: usize| *width = wanted.max(*width);
        let shared = config.experts.map_or(0, |e| e.shared);
        for layer in &config.layers {
            fit(&mut w.gate, layer.feed_forward.max(shared));
            fit(&mut w.up, layer.feed_forward.max(shared));
            match (&layer.mixer, &config.latent, &config.delta_net) {
                (MixerConfig::Attention(n), Some(latent), _) => {
                    let [k_dim, v_dim] = n.kv.head_dim;
                    let queries = n.heads * (latent.nope + latent.rope);
                    fit(&mut w.projected, (n.heads * k_dim).max(latent.query_rank.unwrap_or(0)));
                    fit(&mut w.q, queries.max(n.heads * latent.value));
                    fit(&mut w.k, k_dim);
                    fit(&mut w.v, v_dim);
                    fit(&mut w.attended, n.heads * v_dim);
                    fit(&mut w.gate, latent.rope);
                }
                (MixerConfig::Attention(n), None, _) => {
                    let [k_dim, v_dim] = n.kv.head_dim;
                    fit(&mut w.q, n.heads * k_dim);
                    fit(&mut w.k, n.kv.heads * k_dim);
                    fit(&mut w.v, n.kv.heads * v_dim);
                    fit(&mut w.attended, n.heads * v_dim);
                    if matches!(config.arch.mixing, Mixing::Hybrid(_)) {
                        // Queries and the gates of their heads' outputs.
                        fit(&mut w.projected, 2 * n.heads * k_dim);
                        fit(&mut w.gate, n.heads * k_dim);
                    }
                }
                (MixerConfig::DeltaNet(_), _, numbers) => {
                    let n = numbers.as_ref().expect("a config with such layers has their numbers");
                    fit(&mut w.projected, n.channels());
                    fit(&mut w.k, n.value_heads);
                    fit(&mut w.v, n.value_heads);
                    fit(&mut w.attended, n.values());
                    fit(&mut w.gate, n.values());
                }
            }
        }
        w
    }
}

/// What is the same for all layers of a pass.
pub(crate) struct Pass<'a, B: Backend> {
    pub backend: &'a B,
    model: &'a Model<B>,
    ropes: &'a [Frequencies],
    angles: &'a [Vec<[f32; 2]>],
    /// Query temperature of each row, if there is one.
    pub temperatures: &'a [f32],
    pub tokens: &'a [u32],
    pub segments: &'a [Segment<'a>],
}

impl<'a, B: Backend> Pass<'a, B> {
    pub fn config(&self) -> &'a Config {
        &self.model.config
    }

    /// Makes a tensor `[tokens, width]`.
    pub fn reshape(&self, x: &mut B::Tensor, width: usize) {
        self.backend.reshape(x, self.tokens.len(), width);
    }

    /// Makes `out` a copy of x, `[tokens, width]`.
    pub fn copy(&self, width: usize, x: &B::Tensor, out: &mut B::Tensor) {
        self.reshape(out, width);
        self.backend.copy_columns([1, width], x, Runs::heads(width), out, Runs::heads(width));
    }

    pub fn linear(&self, w: &Linear<B>, x: &B::Tensor, out: &mut B::Tensor) {
        self.linears(x, [Some((w, out))]);
    }

    /// Products of matrices that read the same x, those that are there.
    pub fn linears<const N: usize>(
        &self,
        x: &B::Tensor,
        products: [Option<(&Linear<B>, &mut B::Tensor)>; N],
    ) {
        let mut products: Vec<_> = products.into_iter().flatten().collect();
        products.iter_mut().for_each(|(w, out)| self.reshape(out, w.rows));
        let mut of_weights: Vec<_> = products.iter_mut().map(|(w, out)| (&w.weight, &mut **out)).collect();
        self.backend.linear(x, &mut of_weights);
        for (w, out) in products {
            if let Some(bias) = &w.bias {
                self.backend.add_bias(bias, out);
            }
        }
    }

    /// Normalises groups as wide as the weight, if there is one.
    pub fn norm_heads(&self, weight: Option<&B::Vector>, x: &mut B::Tensor) {
        if let Some(weight) = weight {
            self.backend.rms_norm_inplace(weight, self.config().eps, x);
        }
    }

    /// Rotates heads of `head_dim` from channel `first` on, if there is a rotary embedding.
    pub fn rope(&self, rope: Option<usize>, first: usize, head_dim: usize, x: &mut B::Tensor) {
        let Some(rope) = rope else { return };
        let config = &self.ropes[rope].config;
        let (pairs, channels) = (config.pairs, config.channels);
        self.backend.rope(&Angles { pairs, first, channels, cos_sin: &self.angles[rope] }, head_dim, x);
    }

    fn norm_inplace(&self, norm: &Norm<B>, x: &mut B::Tensor) {
        norm_inplace(self.backend, self.config(), norm, x);
    }

    /// `x` itself where a sublayer is not normalised before.
    fn normalised<'t>(
        &self,
        norm: Option<&Norm<B>>,
        x: &'t B::Tensor,
        h: &'t mut B::Tensor,
    ) -> &'t B::Tensor {
        let Some(norm) = norm else { return x };
        let width = self.config().embedding;
        match norm.bias {
            None => self.backend.rms_norm(&norm.weight, self.config().eps, x, h),
            Some(_) => {
                self.copy(width, x, h);
                self.norm_inplace(norm, h);
            }
        }
        h
    }

    fn add_sublayer(&self, norm: Option<&Norm<B>>, y: &mut B::Tensor, x: &mut B::Tensor) {
        if let Some(norm) = norm {
            self.norm_inplace(norm, y);
        }
        self.backend.add(y, x);
    }
}

fn norm_inplace<B: Backend>(backend: &B, config: &Config, norm: &Norm<B>, x: &mut B::Tensor) {
    match &norm.bias {
        None => backend.rms_norm_inplace(&norm.weight, config.eps, x),
        Some(bias) => backend.layer_norm_inplace(&norm.weight, bias, config.eps, x),
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
    // Where sinks have moved up to the rest, a text begins where they are now.
    let places =
        || segments.iter().flat_map(|s| (s.position()..s.sequence.len()).map(|p| p - s.sequence.moved()));
    a.temperatures.extend(config.temperature.iter().flat_map(|t| places().map(|p| t.factor(p))));
    let (angles, temperatures) = (&a.angles, &a.temperatures);
    let pass = &Pass { backend, model, ropes, angles, temperatures, tokens, segments };
    let (x, y, s) = (&mut a.x, &mut a.y, &mut a.scratch);

    for x in [&mut *x, &mut *y, &mut a.h] {
        pass.reshape(x, config.embedding);
    }
    backend.embed(&model.embedding, tokens, x);
    if let Some(scale) = config.embedding_scale {
        backend.scale(scale, x);
    }
    if let Some(table) = &model.position_embedding {
        let positions: Vec<u32> = positions().map(|p| p as u32).collect();
        backend.embed(table, &positions, y);
        backend.add(y, x);
    }
    if let Some(inputs) = &model.per_layer {
        inputs.forward(pass, x, s);
    }
    for (index, (layer, numbers)) in model.layers.iter().zip(&config.layers).enumerate() {
        let h = pass.normalised(layer.mixer_norm.as_ref(), x, &mut a.h);
        layer.mixer.forward(pass, &numbers.mixer, store, h, s, y);
        pass.add_sublayer(layer.mixer_post_norm.as_ref(), y, x);

        let h = pass.normalised(layer.ffn_norm.as_ref(), x, &mut a.h);
        layer.ffn.forward(pass, x, h, s, y);
        pass.add_sublayer(layer.ffn_post_norm.as_ref(), y, x);

        if let Some(own) = &layer.per_layer {
            own.forward(pass, index, x, s, y);
            backend.add(y, x);
        }
        if let Some(scale) = layer.scale {
            backend.scale(scale, x);
        }
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
    norm_inplace(backend, config, &model.output_norm, &mut a.y);
    backend.reshape(&mut a.logits, rows.len(), config.vocabulary);
    backend.linear(&a.y, &mut [(model.output.as_ref().unwrap_or(&model.embedding), &mut a.logits)]);
    if let Some(cap) = config.final_softcap {
        backend.softcap(cap, &mut a.logits);
    }
    backend.read(&a.logits, out);
}
