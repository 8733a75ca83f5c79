//! Gated DeltaNet (Yang et al., «Gated Delta Networks», 2024): linear attention with a decaying state that is
//! corrected by what it would have predicted (`../shared/spec/architectures.md` §3.4).

use crate::arch::HeadOrder;
use crate::config::DeltaNetConfig;
use crate::error::Error;
use crate::forward::{Pass, Scratch};
use crate::load::{LayerLoader, Linear};
use torque_backend::{Activation, Backend, DeltaNet};

pub(crate) struct Weights<B: Backend> {
    qkv: Linear<B>,
    z: Linear<B>,
    beta: Linear<B>,
    alpha: Linear<B>,
    conv: B::Vector,
    decay: B::Vector,
    dt_bias: B::Vector,
    norm: B::Vector,
    output: Linear<B>,
}

/// ε in the norm of queries and keys, which no key of the metadata says.
const HEAD_EPS: f32 = 1e-6;

impl<B: Backend> Weights<B> {
    pub fn load(at: &LayerLoader<B>, n: &DeltaNetConfig) -> Result<Weights<B>, Error> {
        let (width, heads) = (at.config().embedding, n.value_heads);
        let [qkv, z] = if at.has("ssm_in.weight") {
            // Old files hold, for each key head, its query, its key, and the values and gates of its value heads.
            let values = n.value_dim * heads / n.key_heads;
            let [q, k, v, z] = by_key_head(n.key_heads, [n.key_dim, n.key_dim, values, values]);
            at.linear_rows("ssm_in", [[q, k, v].concat(), z], width)?
        } else {
            [at.linear("attn_qkv", n.channels(), width)?, at.linear("attn_gate", n.values(), width)?]
        };
        let [beta, alpha] = if at.has("ssm_ba.weight") {
            at.linear_rows("ssm_ba", by_key_head(n.key_heads, [heads / n.key_heads; 2]), width)?
        } else {
            [at.linear("ssm_beta", heads, width)?, at.linear("ssm_alpha", heads, width)?]
        };
        Ok(Weights {
            qkv,
            z,
            beta,
            alpha,
            conv: {
                let (kernel, channels) = (n.kernel, n.channels());
                let by_channel = at.table("ssm_conv1d.weight", channels, kernel)?;
                let by_token =
                    (0..kernel * channels).map(|i| by_channel[i % channels * kernel + i / channels]);
                at.backend().vector(&by_token.collect::<Vec<_>>())
            },
            decay: at.vector("ssm_a", &[heads])?,
            dt_bias: at.vector("ssm_dt.bias", &[heads])?,
            norm: at.vector("ssm_norm.weight", &[n.value_dim])?,
            output: at.linear("ssm_out", width, n.values())?,
        })
    }

    pub fn forward(
        &self,
        pass: &Pass<B>,
        state: usize,
        store: &mut B::Store,
        h: &B::Tensor,
        s: &mut Scratch<B>,
        y: &mut B::Tensor,
    ) {
        let (backend, config) = (pass.backend, pass.config());
        let n = config.delta_net.expect("a config of Gated DeltaNet layers");
        let products = [
            (&self.qkv, &mut s.projected),
            (&self.beta, &mut s.k),
            (&self.alpha, &mut s.v),
            (&self.z, &mut s.gate),
        ];
        pass.linears(h, products.map(Some));
        pass.reshape(&mut s.attended, n.values());
        let net = DeltaNet {
            layer: state,
            key_heads: n.key_heads,
            value_heads: n.value_heads,
            key_dim: n.key_dim,
            value_dim: n.value_dim,
            tiled: n.order == HeadOrder::Tiled,
            conv: &self.conv,
            decay: &self.decay,
            dt_bias: &self.dt_bias,
            eps: HEAD_EPS,
        };
        backend.delta_net(store, &net, pass.segments, &s.projected, &s.v, &s.k, &mut s.attended);
        backend.rms_norm_inplace(&self.norm, config.eps, &mut s.attended);
        backend.glu(Activation::Silu, &s.attended, &mut s.gate);
        pass.linear(&self.output, &s.gate, y);
    }
}

/// The rows of parts that lie together for each key head, part by part: so many rows of each.
fn by_key_head<const N: usize>(key_heads: usize, rows: [usize; N]) -> [Vec<usize>; N] {
    let stride: usize = rows.iter().sum();
    std::array::from_fn(|part| {
        let first: usize = rows[..part].iter().sum();
        (0..key_heads).flat_map(|head| (0..rows[part]).map(move |row| head * stride + first + row)).collect()
    })
}
