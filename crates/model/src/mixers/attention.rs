//! Attention with keys and values of its own, of another layer, or one from the other.

use crate::arch::Mixing;
use crate::config::AttentionConfig;
use crate::error::Error;
use crate::forward::{Pass, Scratch};
use crate::load::{LayerLoader, Linear};
use torque_backend::{Activation, Attention, Backend, Runs};

pub(crate) struct Weights<B: Backend> {
    q: Linear<B>,
    /// Whether each head of q is followed by a gate for its output.
    gated: bool,
    /// Absent if another layer's keys and values are read.
    k: Option<Linear<B>>,
    /// Absent also if values are the projected keys.
    v: Option<Linear<B>>,
    output: Linear<B>,
    /// As wide as a head or as all heads.
    q_norm: Option<B::Vector>,
    k_norm: Option<B::Vector>,
    v_norm: Option<B::Vector>,
    sinks: Option<B::Vector>,
}

impl<B: Backend> Weights<B> {
    pub fn load(at: &LayerLoader<B>, numbers: &AttentionConfig) -> Result<Weights<B>, Error> {
        let (arch, width) = (at.config().arch, at.config().embedding);
        let [k_dim, v_dim] = numbers.kv.head_dim;
        let (q_rows, kv_heads) = (numbers.heads * k_dim, numbers.kv.heads);
        let (k_rows, v_rows) = (kv_heads * k_dim, kv_heads * v_dim);
        let gated = matches!(arch.mixing, Mixing::Hybrid(_));
        let (q, k, v);
        if at.has("attn_qkv.weight") {
            let [q_part, k_part, v_part] = at.linear_parts("attn_qkv", [q_rows, k_rows, v_rows], width)?;
            (q, k, v) = (q_part, Some(k_part), Some(v_part));
        } else {
            let one = |there: bool, part: &str, rows| there.then(|| at.linear(part, rows, width)).transpose();
            q = at.linear("attn_q", if gated { 2 * q_rows } else { q_rows }, width)?;
            k = one(!numbers.shares, "attn_k", k_rows)?;
            // Where values may come from the keys, they are normalised apart from them.
            let own = at.has("attn_v.weight") || !arch.normalizes_values || k_dim != v_dim;
            v = one(!numbers.shares && own, "attn_v", v_rows)?;
        }
        if numbers.shares {
            // Converters pass on what the checkpoint has and no one reads.
            ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"].iter().for_each(|part| at.ignore(part));
        }
        let norm = |part: &str, used: bool, all: usize| {
            let there = used && (arch.normalizes_heads || at.has(part));
            there.then(|| at.vector(part, &[k_dim, all])).transpose()
        };
        let ones = || at.backend().vector(&vec![1.0; v_dim]);
        Ok(Weights {
            q,
            gated,
            output: at.linear("attn_output", width, numbers.heads * v_dim)?,
            q_norm: norm("attn_q_norm.weight", true, q_rows)?,
            k_norm: norm("attn_k_norm.weight", k.is_some(), k_rows)?,
            v_norm: arch.normalizes_values.then(ones),
            sinks: at.optional("attn_sinks.weight", &[numbers.heads])?,
            k,
            v,
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
        let [k_dim, v_dim] = numbers.kv.head_dim;
        let q = if self.gated { &mut s.projected } else { &mut s.q };
        let k = self.k.as_ref().map(|k| (k, &mut s.k));
        let v = self.v.as_ref().map(|v| (v, &mut s.v));
        pass.linears(h, [Some((&self.q, q)), k, v]);
        if self.gated {
            let (heads, both) = ([numbers.heads, k_dim], Runs { first: 0, stride: 2 * k_dim });
            pass.reshape(&mut s.q, numbers.heads * k_dim);
            backend.copy_columns(heads, &s.projected, both, &mut s.q, Runs::heads(k_dim));
            pass.reshape(&mut s.gate, numbers.heads * k_dim);
            let both = Runs { first: k_dim, ..both };
            backend.copy_columns(heads, &s.projected, both, &mut s.gate, Runs::heads(k_dim));
        }
        pass.norm_heads(self.q_norm.as_ref(), &mut s.q);
        pass.rope(numbers.rope, 0, k_dim, &mut s.q);
        if config.temperature.is_some() {
            backend.scale_rows(pass.temperatures, &mut s.q);
        }
        if self.k.is_some() {
            if self.v.is_none() {
                pass.copy(numbers.kv.heads * k_dim, &s.k, &mut s.v);
            }
            pass.norm_heads(self.v_norm.as_ref(), &mut s.v);
            pass.norm_heads(self.k_norm.as_ref(), &mut s.k);
            pass.rope(numbers.rope, 0, k_dim, &mut s.k);
            for segment in pass.segments {
                backend.append(store, numbers.cache, segment, &s.k, &s.v);
            }
        }
        pass.reshape(&mut s.attended, numbers.heads * v_dim);
        let attention = Attention {
            layer: numbers.cache,
            heads: numbers.heads,
            scale: numbers.scale,
            softcap: config.attention_softcap,
            sinks: self.sinks.as_ref(),
        };
        backend.attention(store, &attention, pass.segments, &mut s.q, &mut s.attended);
        if self.gated {
            backend.glu(Activation::Sigmoid, &s.attended, &mut s.gate);
            pass.linear(&self.output, &s.gate, y);
        } else {
            pass.linear(&self.output, &s.attended, y);
        }
    }
}
