//! Multi-head latent attention (DeepSeek-V2, 2024), absorbed: what is cached is the latent, and queries and
//! outputs go through the halves of the projection that would make keys and values of it.

use crate::config::{AttentionConfig, LatentConfig};
use crate::error::Error;
use crate::forward::{Pass, Scratch};
use crate::load::{LayerLoader, Linear, Slice};
use torque_backend::{Attention, Backend, Runs};

pub(crate) struct Weights<B: Backend> {
    /// Queries' latent and its norm; absent if queries are projected directly.
    q_a: Option<(Linear<B>, B::Vector)>,
    /// Heads of [nope | rope].
    q: Linear<B>,
    /// The latent, and the channels with a rotary embedding.
    kv_a: [Linear<B>; 2],
    kv_a_norm: B::Vector,
    /// For each head: from the channels of a query without rotary embedding to the latent.
    k_b: Vec<B::Matrix>,
    /// For each head: from the latent to values.
    v_b: Vec<B::Matrix>,
    output: Linear<B>,
}

impl<B: Backend> Weights<B> {
    pub fn load(
        at: &LayerLoader<B>,
        numbers: &AttentionConfig,
        latent: &LatentConfig,
    ) -> Result<Weights<B>, Error> {
        let (width, heads) = (at.config().embedding, numbers.heads);
        let LatentConfig { query_rank, rank, rope, nope, value } = *latent;
        let (q_rows, q_name) =
            (heads * (nope + rope), if query_rank.is_some() { "attn_q_b" } else { "attn_q" });
        let q_a = match query_rank {
            Some(n) => Some((at.linear("attn_q_a", n, width)?, at.vector("attn_q_a_norm.weight", &[n])?)),
            None => None,
        };
        Ok(Weights {
            q_a,
            q: at.linear(q_name, q_rows, query_rank.unwrap_or(width))?,
            kv_a: at.linear_parts("attn_kv_a_mqa", [rank, rope], width)?,
            kv_a_norm: at.vector("attn_kv_a_norm.weight", &[rank])?,
            k_b: at.matrices("attn_k_b.weight", Slice::whole(rank), nope, heads, 1.0)?,
            v_b: at.matrices("attn_v_b.weight", Slice::whole(value), rank, heads, 1.0)?,
            output: at.linear("attn_output", width, heads * value)?,
        })
    }

    pub fn forward(
        &self,
        pass: &Pass<B>,
        numbers: &AttentionConfig,
        store: &mut B::Store,
        h: &B::Tensor,
        s: &mut Scratch<B>,
        y: &mut B::Tensor,
    ) {
        let (backend, config) = (pass.backend, pass.config());
        let LatentConfig { rank, rope, nope, value, .. } =
            config.latent.expect("a config of latent attention");
        let (heads, key) = (numbers.heads, rank + rope);
        let [latent, rotary] = &self.kv_a;
        let q = match &self.q_a {
            Some((q_a, _)) => (q_a, &mut s.projected),
            None => (&self.q, &mut s.q),
        };
        pass.linears(h, [q, (latent, &mut s.v), (rotary, &mut s.gate)].map(Some));
        if let Some((_, norm)) = &self.q_a {
            pass.norm_heads(Some(norm), &mut s.projected);
            pass.linear(&self.q, &s.projected, &mut s.q);
        }
        pass.rope(numbers.rope, nope, nope + rope, &mut s.q);
        // Queries: [latent | rope] a head.
        let (rotated, with_latent) =
            (Runs { first: nope, stride: nope + rope }, Runs { first: rank, stride: key });
        pass.reshape(&mut s.projected, heads * key);
        backend.linear_runs(&self.k_b, &s.q, Runs::heads(nope + rope), &mut s.projected, Runs::heads(key));
        backend.copy_columns([heads, rope], &s.q, rotated, &mut s.projected, with_latent);

        pass.norm_heads(Some(&self.kv_a_norm), &mut s.v);
        pass.rope(numbers.rope, 0, rope, &mut s.gate);
        pass.reshape(&mut s.k, key);
        backend.copy_columns([1, rank], &s.v, Runs::heads(rank), &mut s.k, Runs::heads(rank));
        backend.copy_columns([1, rope], &s.gate, Runs::heads(rope), &mut s.k, with_latent);
        for segment in pass.segments {
            backend.append(store, numbers.cache, segment, &s.k, &s.v);
        }

        pass.reshape(&mut s.attended, heads * rank);
        let (layer, scale, softcap) = (numbers.cache, numbers.scale, config.attention_softcap);
        let attention = Attention { layer, heads, scale, softcap, sinks: None };
        backend.attention(store, &attention, pass.segments, &mut s.projected, &mut s.attended);
        pass.reshape(&mut s.q, heads * value);
        backend.linear_runs(&self.v_b, &s.attended, Runs::heads(rank), &mut s.q, Runs::heads(value));
        pass.linear(&self.output, &s.q, y);
    }
}
