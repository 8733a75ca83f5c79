//! Which layers and sides of a KV cache matter: what a policy costs in one of them alone.

use super::CacheReport;
use crate::engine::Engine;
use crate::error::Error;
use serde::Serialize;
use torque_kv::{LayerRule, Policy, Side};

/// One layer and side of a policy, everything else in f16.
#[derive(Clone, Debug)]
pub struct LayerSide {
    /// Ordinal among layers with KV.
    pub layer: usize,
    /// Keys or values.
    pub side: Side,
    /// What the policy stores it in; of several ages, the oldest.
    pub format: &'static str,
    /// The policy that stores it alone in that.
    pub policy: Policy,
}

/// Every layer and side that a policy does not keep in f16.
pub fn layer_sides(engine: &Engine, policy: &Policy) -> Result<Vec<LayerSide>, Error> {
    let plan = engine.plan(policy)?;
    let sides = plan.layers.iter().enumerate().flat_map(|(layer, plan)| {
        // Values that lie in the keys are no side of their own.
        Side::BOTH
            .into_iter()
            .take(plan.sides.len())
            .map(move |side| (layer, side, plan.side(side).formats.last().expect("one at least").name))
    });
    let alone = |(layer, side, format): (usize, Side, &'static str)| {
        let named = |this| (side == this).then(|| format.to_string());
        let rule = LayerRule { at: layer.to_string(), k: named(Side::K), v: named(Side::V) };
        let (sink, tail, page) = (policy.sink, policy.tail, policy.page);
        let policy = Policy { sink, tail, page, layers: vec![rule], ..Policy::default() };
        LayerSide { layer, side, format, policy }
    };
    Ok(sides.filter(|(_, _, format)| *format != "f16").map(alone).collect())
}

/// What a layer and side costs.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Ordinal among layers with KV.
    pub layer: usize,
    /// `k` or `v`.
    pub side: &'static str,
    /// What it is stored in.
    pub format: &'static str,
    /// The rest.
    #[serde(flatten)]
    pub report: CacheReport,
}

impl LayerReport {
    /// Of a layer and side, with what its policy costs.
    pub fn new(side: &LayerSide, report: CacheReport) -> LayerReport {
        let name = if side.side == Side::K { "k" } else { "v" };
        LayerReport { layer: side.layer, side: name, format: side.format, report }
    }
}
