//! Per-layer embeddings (Gemma 4 E2B and E4B): every layer has a small embedding of each token of its own.

use crate::error::Error;
use crate::forward::{Pass, Scratch};
use crate::load::{LayerLoader, Linear, Loader};
use torque_backend::{Activation, Backend, Runs};

/// What is computed once a pass, for all layers.
pub(crate) struct Inputs<B: Backend> {
    /// `[vocabulary, layers·width]`.
    table: B::Matrix,
    projection: Linear<B>,
    norm: B::Vector,
}

/// One layer's part.
pub(crate) struct Weights<B: Backend> {
    gate: Linear<B>,
    projection: Linear<B>,
    norm: B::Vector,
}

impl<B: Backend> Inputs<B> {
    pub fn load(loader: &Loader<B>) -> Result<Option<Inputs<B>>, Error> {
        let config = loader.config;
        let (layers, width) = (config.layers.len(), config.per_layer_embedding);
        if width == 0 {
            return Ok(None);
        }
        Ok(Some(Inputs {
            table: loader.table("per_layer_token_embd.weight", Some(config.vocabulary), layers * width)?.0,
            projection: loader.linear("per_layer_model_proj", layers * width, config.embedding)?,
            norm: loader.vector("per_layer_proj_norm.weight", &[width])?,
        }))
    }

    /// From the embeddings `x` to `s.per_layer`, `[tokens, layers·width]`.
    pub fn forward(&self, pass: &Pass<B>, x: &B::Tensor, s: &mut Scratch<B>) {
        let (backend, config) = (pass.backend, pass.config());
        pass.reshape(&mut s.per_layer, self.projection.rows);
        backend.embed(&self.table, pass.tokens, &mut s.per_layer);
        backend.scale((config.per_layer_embedding as f32).sqrt(), &mut s.per_layer);
        pass.linear(&self.projection, x, &mut s.projected);
        backend.scale(1.0 / (config.embedding as f32).sqrt(), &mut s.projected);
        backend.rms_norm_inplace(&self.norm, config.eps, &mut s.projected);
        backend.add(&s.projected, &mut s.per_layer);
        backend.scale(std::f32::consts::FRAC_1_SQRT_2, &mut s.per_layer);
    }
}

impl<B: Backend> Weights<B> {
    pub fn load(at: &LayerLoader<B>) -> Result<Option<Weights<B>>, Error> {
        let (inner, width) = (at.config().per_layer_embedding, at.config().embedding);
        if inner == 0 {
            return Ok(None);
        }
        Ok(Some(Weights {
            gate: at.linear("inp_gate", inner, width)?,
            projection: at.linear("proj", width, inner)?,
            norm: at.vector("post_norm.weight", &[width])?,
        }))
    }

    /// From the residual stream `x` to what is added to it.
    pub fn forward(
        &self,
        pass: &Pass<B>,
        layer: usize,
        x: &B::Tensor,
        s: &mut Scratch<B>,
        y: &mut B::Tensor,
    ) {
        let (backend, width) = (pass.backend, self.gate.rows);
        pass.linear(&self.gate, x, &mut s.gate);
        pass.reshape(&mut s.up, width);
        let own = Runs { first: layer * width, stride: 0 };
        backend.copy_columns([1, width], &s.per_layer, own, &mut s.up, Runs::heads(width));
        backend.glu(Activation::Gelu, &s.up, &mut s.gate);
        pass.linear(&self.projection, &s.gate, y);
        backend.rms_norm_inplace(&self.norm, pass.config().eps, y);
    }
}
