//! Feed-forward layers: dense, a mixture of experts, or the sum of both.

use crate::config::ExpertConfig;
use crate::error::Error;
use crate::forward::{Pass, Scratch};
use crate::load::{LayerLoader, Linear, Slice};
use torque_backend::{Backend, Experts, Routing};

pub(crate) struct FeedForward<B: Backend> {
    /// A dense layer, or the expert that every token goes to.
    dense: Option<Dense<B>>,
    routed: Option<Routed<B>>,
}

struct Dense<B: Backend> {
    gate: Linear<B>,
    /// Absent if nothing is gated: then `gate` is the only projection.
    up: Option<Linear<B>>,
    down: Linear<B>,
    /// How much of the output counts: σ of one number a token.
    share: Option<Linear<B>>,
    norm: Option<B::Vector>,
}

struct Routed<B: Backend> {
    router: Linear<B>,
    /// Where the router reads the residual stream: its norm.
    router_norm: Option<B::Vector>,
    /// Likewise of the experts.
    input_norm: Option<B::Vector>,
    experts: Experts<B::Matrix, B::Vector>,
    /// Added to scores for the choice alone.
    selection_bias: Option<Vec<f32>>,
    /// Multiplies the output of each expert.
    factors: Option<Vec<f32>>,
    norm: Option<B::Vector>,
}

impl<B: Backend> FeedForward<B> {
    pub fn load(at: &LayerLoader<B>, inner: usize) -> Result<FeedForward<B>, Error> {
        let routed = match &at.config().experts {
            Some(config) if at.has("ffn_gate_inp.weight") => Some(Routed::load(at, config)?),
            _ => None,
        };
        let dense = match (&routed, &at.config().experts) {
            (Some(_), Some(config)) if config.shared > 0 => {
                Some(Dense::load(at, config.shared, "_shexp", true)?)
            }
            (Some(_), _) if !at.config().arch.experts_beside => None,
            _ => Some(Dense::load(at, inner, "", routed.is_some())?),
        };
        Ok(FeedForward { dense, routed })
    }

    /// From the residual stream `x` and its normalised copy `h` to what is added to it.
    pub fn forward(
        &self,
        pass: &Pass<B>,
        x: &B::Tensor,
        h: &B::Tensor,
        s: &mut Scratch<B>,
        y: &mut B::Tensor,
    ) {
        if let Some(dense) = &self.dense {
            dense.forward(pass, h, s, y);
        }
        match (&self.routed, &self.dense) {
            (Some(routed), None) => routed.forward(pass, x, h, s, y),
            (Some(routed), Some(_)) => {
                // The sum's buffer changes places with the output's while the experts write.
                pass.reshape(&mut s.routed, pass.config().embedding);
                std::mem::swap(&mut s.routed, y);
                routed.forward(pass, x, h, s, y);
                pass.backend.add(&s.routed, y);
            }
            (None, _) => {}
        }
    }
}

impl<B: Backend> Dense<B> {
    /// Tensors are called `ffn_….weight` with a suffix.
    fn load(at: &LayerLoader<B>, inner: usize, suffix: &str, routed: bool) -> Result<Dense<B>, Error> {
        let (width, beside) = (at.config().embedding, at.config().arch.experts_beside);
        let part = |name: &str| format!("ffn_{name}{suffix}");
        let (gate, up) = if at.has(&format!("{}.weight", part("gate"))) {
            (at.linear(&part("gate"), inner, width)?, Some(at.linear(&part("up"), inner, width)?))
        } else if !at.config().arch.gates_feed_forward {
            (at.linear(&part("up"), inner, width)?, None)
        } else {
            let [gate, up] = at.linear_parts(&part("up"), [inner, inner], width)?;
            (gate, Some(up))
        };
        let share = format!("ffn_gate_inp{suffix}");
        let is_shared = !suffix.is_empty() && at.has(&format!("{share}.weight"));
        Ok(Dense {
            gate,
            up,
            down: at.linear(&part("down"), width, inner)?,
            share: is_shared.then(|| at.linear(&share, 1, width)).transpose()?,
            norm: (beside && routed).then(|| at.vector("post_ffw_norm_1.weight", &[width])).transpose()?,
        })
    }

    fn forward(&self, pass: &Pass<B>, h: &B::Tensor, s: &mut Scratch<B>, y: &mut B::Tensor) {
        let (backend, activation) = (pass.backend, pass.config().arch.activation);
        let up = self.up.as_ref().map(|up| (up, &mut s.up));
        let share = self.share.as_ref().map(|share| (share, &mut s.router));
        pass.linears(h, [Some((&self.gate, &mut s.gate)), up, share]);
        match &self.up {
            Some(_) => backend.glu(activation, &s.up, &mut s.gate),
            None => backend.activate(activation, &mut s.gate),
        }
        pass.linear(&self.down, &s.gate, y);
        if self.share.is_some() {
            backend.gate_rows(&s.router, y);
        }
        if let Some(norm) = &self.norm {
            backend.rms_norm_inplace(norm, pass.config().eps, y);
        }
    }
}

impl<B: Backend> Routed<B> {
    fn load(at: &LayerLoader<B>, config: &ExpertConfig) -> Result<Routed<B>, Error> {
        let (width, inner, count) = (at.config().embedding, config.feed_forward, config.count);
        let active = config.used as f64 / count as f64;
        let beside = at.config().arch.experts_beside;
        let own = |name: &str, n: usize| beside.then(|| at.vector(name, &[n])).transpose();
        let all = |part: &str, slice: Slice, columns: usize| -> Result<Vec<B::Matrix>, Error> {
            if at.has(&format!("{part}.0.weight")) {
                // Old files hold one tensor an expert.
                let one = |e| at.matrices(&format!("{part}.{e}.weight"), slice, columns, 1, active);
                return (0..count).map(|e| one(e).map(|mut m| m.remove(0))).collect();
            }
            at.matrices(&format!("{part}_exps.weight"), slice, columns, count, active)
        };
        let (gate, up) = if at.has("ffn_gate_up_exps.weight") {
            let half = |skip| all("ffn_gate_up", Slice { skip, rows: inner, total: 2 * inner }, width);
            (half(0)?, half(inner)?)
        } else {
            (all("ffn_gate", Slice::whole(inner), width)?, all("ffn_up", Slice::whole(inner), width)?)
        };
        let down = all("ffn_down", Slice::whole(width), inner)?;
        let router_norm = match beside {
            true => {
                let root = (width as f32).sqrt();
                let scale: Vec<f32> =
                    at.values("ffn_gate_inp.scale", &[width])?.iter().map(|s| s / root).collect();
                Some(at.backend().vector(&scale))
            }
            false => None,
        };
        let bias = |part: &str, width: usize| {
            let name = format!("ffn_{part}_exps.bias");
            let values = at.has(&name).then(|| at.table(&name, count, width)).transpose()?;
            Ok::<_, Error>(values.map(|values| at.backend().vector(&values)))
        };
        let numbers = |name: &str| at.has(name).then(|| at.values(name, &[count])).transpose();
        Ok(Routed {
            router: at.linear("ffn_gate_inp", count, width)?,
            router_norm,
            input_norm: own("pre_ffw_norm_2.weight", width)?,
            experts: Experts {
                gate,
                up,
                down,
                gate_bias: bias("gate", inner)?,
                up_bias: bias("up", inner)?,
                down_bias: bias("down", width)?,
                activation: at.config().arch.activation,
            },
            selection_bias: numbers("exp_probs_b.bias")?,
            factors: if beside { Some(at.values("ffn_down_exps.scale", &[count])?) } else { None },
            norm: own("post_ffw_norm_2.weight", width)?,
        })
    }

    fn forward(&self, pass: &Pass<B>, x: &B::Tensor, h: &B::Tensor, s: &mut Scratch<B>, y: &mut B::Tensor) {
        let (backend, eps) = (pass.backend, pass.config().eps);
        let config = pass.config().experts.expect("experts are loaded only if the config has them");
        let own = |norm: &Option<B::Vector>, out: &mut B::Tensor| {
            norm.as_ref().map(|norm| {
                pass.reshape(out, pass.config().embedding);
                backend.rms_norm(norm, eps, x, out);
            })
        };
        match own(&self.router_norm, &mut s.normed) {
            Some(()) => pass.linear(&self.router, &s.normed, &mut s.router),
            None => pass.linear(&self.router, h, &mut s.router),
        }
        let routing = Routing {
            used: config.used,
            gating: config.gating,
            selection_bias: self.selection_bias.as_deref(),
            groups: config.groups,
            normalize: config.normalize,
            scale: config.scale,
            factors: self.factors.as_deref(),
        };
        match own(&self.input_norm, &mut s.normed) {
            Some(()) => backend.experts(&self.experts, &routing, &s.router, &s.normed, y),
            None => backend.experts(&self.experts, &routing, &s.router, h, y),
        }
        if let Some(norm) = &self.norm {
            backend.rms_norm_inplace(norm, eps, y);
        }
    }
}
