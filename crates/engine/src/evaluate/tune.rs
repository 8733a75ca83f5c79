//! Which format each layer and side of a KV cache is worth: the policies that cost least at their size.
//!
//! A side's share in the divergence is measured with that side alone in a probing format, and what a format costs with all
//! keys, or all values, in it. Divergences of sides add up, so that the best policy at every size follows from both: from
//! f16 on, always the step that saves most bytes for the divergence it adds.

use super::{CacheCell, CacheReport, Chunks, LayerSide, layer_sides};
use crate::engine::Engine;
use crate::error::Error;
use serde::Serialize;
use std::collections::BTreeMap;
use torque_kv::{LayerRule, Plan, Policy, Side};

/// What the share of a layer is measured in.
const PROBE: &str = "turbo3";

/// What is known of a model before it is tuned: which policies to measure.
pub struct Tuner {
    /// Sink, tail and page of all policies.
    base: Policy,
    plan: Plan,
    /// Smaller than f16, all of them.
    formats: Vec<String>,
    sides: Vec<LayerSide>,
}

/// A policy of the frontier.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// What the cache is sealed in.
    pub policy: Policy,
    /// Bytes of a sealed token, all layers.
    pub bytes_per_token: f64,
    /// The divergence that is expected.
    pub kld: f64,
}

/// A side of a layer in some format.
#[derive(Clone, Debug)]
struct Stored {
    format: String,
    bytes: f64,
    kld: f64,
}

impl Tuner {
    /// Of a model, for policies with the sink, tail and page of `base`, out of f16 and these formats.
    pub fn new(engine: &Engine, base: &Policy, formats: &[String]) -> Result<Tuner, Error> {
        let base = Policy { k: "f16".into(), v: "f16".into(), layers: vec![], tiers: vec![], ..base.clone() };
        let probe = Policy { k: PROBE.into(), v: PROBE.into(), ..base.clone() };
        let formats: Vec<String> = formats.iter().filter(|format| *format != "f16").cloned().collect();
        let (plan, sides) = (engine.plan(&base)?, layer_sides(engine, &probe)?);
        let tuner = Tuner { base, plan, formats, sides };
        for policy in tuner.probes() {
            engine.plan(&policy)?;
        }
        Ok(tuner)
    }

    /// All keys, or all values, in a format.
    fn whole(&self, side: Side, format: &str) -> Policy {
        let mut policy = self.base.clone();
        *(if side == Side::K { &mut policy.k } else { &mut policy.v }) = format.into();
        policy
    }

    /// What there is to be measured, with [`super::cache`].
    pub fn probes(&self) -> Vec<Policy> {
        let whole = Side::BOTH.into_iter().flat_map(|s| self.formats.iter().map(move |f| self.whole(s, f)));
        self.sides.iter().map(|side| side.policy.clone()).chain(whole).collect()
    }

    /// The policies that cost least at their size, largest first: f16 everywhere is the first.
    pub fn frontier(
        &self,
        engine: &Engine,
        chunks: &Chunks,
        batch: usize,
        cells: &[CacheCell],
    ) -> Result<Vec<Choice>, Error> {
        let measured = |policy: &Policy| {
            CacheReport::new(engine, chunks, batch, "", policy, cells).map(|r| r.divergence.kld_mean)
        };
        let mut alone = Vec::new();
        for side in &self.sides {
            alone.push(measured(&side.policy)?.max(0.0));
        }
        let total = |side: Side| -> f64 {
            self.sides.iter().zip(&alone).filter(|(s, _)| s.side == side).map(|(_, kld)| kld).sum()
        };
        // `[side][format]`, of all layers.
        let mut whole = [Vec::new(), Vec::new()];
        for side in Side::BOTH {
            for format in &self.formats {
                whole[side as usize].push(measured(&self.whole(side, format))?);
            }
        }
        let mut ladders = Vec::new();
        for (side, alone) in self.sides.iter().zip(&alone) {
            let share = alone / total(side.side).max(f64::MIN_POSITIVE);
            let plan = self.plan.layers[side.layer].side(side.side);
            let bytes = |format: &str| {
                let format = torque_quant::by_name(format).expect("a plan was made with it");
                plan.part_bytes(format, self.plan.page) as f64 / self.plan.page as f64
            };
            let mut stored = vec![Stored { format: "f16".into(), bytes: bytes("f16"), kld: 0.0 }];
            for (format, kld) in self.formats.iter().zip(&whole[side.side as usize]) {
                stored.push(Stored { format: format.clone(), bytes: bytes(format), kld: share * kld });
            }
            ladders.push(convex(stored));
        }
        let mut at = vec![0; ladders.len()];
        let mut frontier = vec![self.choice(&ladders, &at)];
        loop {
            // Divergence for each byte that the next step of a side saves.
            let price = |(ladder, at): (&Vec<Stored>, &usize)| -> Option<f64> {
                let (now, next) = (&ladder[*at], ladder.get(at + 1)?);
                Some((next.kld - now.kld) / (now.bytes - next.bytes))
            };
            let prices = ladders.iter().zip(&at).map(price).enumerate();
            let cheapest =
                prices.filter_map(|(i, price)| Some((price?, i))).min_by(|a, b| a.0.total_cmp(&b.0));
            let Some((_, cheapest)) = cheapest else { return Ok(frontier) };
            at[cheapest] += 1;
            frontier.push(self.choice(&ladders, &at));
        }
    }

    fn choice(&self, ladders: &[Vec<Stored>], at: &[usize]) -> Choice {
        let stored: Vec<&Stored> = ladders.iter().zip(at).map(|(ladder, at)| &ladder[*at]).collect();
        let mut layers: BTreeMap<usize, [Option<&str>; 2]> = BTreeMap::new();
        for (side, stored) in self.sides.iter().zip(&stored) {
            layers.entry(side.layer).or_default()[side.side as usize] = Some(&stored.format);
        }
        Choice {
            policy: policy(&self.base, &layers),
            bytes_per_token: stored.iter().map(|s| s.bytes).sum(),
            kld: stored.iter().map(|s| s.kld).sum(),
        }
    }
}

/// The ways to store a side, largest first, without those that others between them beat: prices of steps only rise.
fn convex(mut stored: Vec<Stored>) -> Vec<Stored> {
    stored.sort_by(|a, b| b.bytes.total_cmp(&a.bytes).then(a.kld.total_cmp(&b.kld)));
    let mut hull: Vec<Stored> = Vec::new();
    let price = |a: &Stored, b: &Stored| (b.kld - a.kld) / (a.bytes - b.bytes);
    for next in stored {
        if hull.last().is_some_and(|last| last.bytes == next.bytes) {
            continue;
        }
        // The first is exact, and stays.
        while let [.., before, last] = &hull[..]
            && price(last, &next) <= price(before, last)
        {
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

/// The policy of these layers: the commonest formats, and rules for the others.
fn policy(base: &Policy, layers: &BTreeMap<usize, [Option<&str>; 2]>) -> Policy {
    let commonest = |side: Side| {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        layers.values().filter_map(|of| of[side as usize]).for_each(|f| *counts.entry(f).or_default() += 1);
        counts.into_iter().max_by_key(|(_, n)| *n).map_or("f16", |(format, _)| format).to_string()
    };
    let [k, v] = Side::BOTH.map(commonest);
    // Layers that are alike share a rule.
    let mut rules: Vec<(LayerRule, Vec<usize>)> = Vec::new();
    for (layer, [of_k, of_v]) in layers {
        let other = |format: Option<&str>, common: &str| format.filter(|f| *f != common).map(str::to_string);
        let rule = LayerRule { at: String::new(), k: other(*of_k, &k), v: other(*of_v, &v) };
        if rule.k.is_none() && rule.v.is_none() {
            continue;
        }
        match rules.iter_mut().find(|(like, _)| *like == rule) {
            Some((_, layers)) => layers.push(*layer),
            None => rules.push((rule, vec![*layer])),
        }
    }
    let rule = |(rule, layers): (LayerRule, Vec<usize>)| {
        let at: Vec<String> = layers.iter().map(usize::to_string).collect();
        LayerRule { at: at.join(","), ..rule }
    };
    Policy { k, v, layers: rules.into_iter().map(rule).collect(), ..base.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(points: &[(f64, f64)]) -> Vec<Stored> {
        points.iter().map(|&(bytes, kld)| Stored { format: bytes.to_string(), bytes, kld }).collect()
    }

    #[test]
    fn steps_that_others_beat_are_left_out() {
        let sizes =
            |points: &[(f64, f64)]| -> Vec<f64> { convex(stored(points)).iter().map(|s| s.bytes).collect() };
        assert_eq!(sizes(&[(16.0, 0.0), (8.0, 1.0), (4.0, 3.0), (2.0, 9.0)]), [16.0, 8.0, 4.0, 2.0]);
        // 8 costs more than what lies between 16 and 4; of two that are equally large the better one counts.
        assert_eq!(sizes(&[(16.0, 0.0), (8.0, 3.0), (4.0, 3.0), (2.0, 9.0)]), [16.0, 4.0, 2.0]);
        assert_eq!(sizes(&[(4.0, 3.0), (16.0, 0.0), (4.0, 5.0)]), [16.0, 4.0]);
        assert_eq!(sizes(&[(16.0, 0.0), (8.0, 0.0), (4.0, 0.0)]), [16.0, 4.0]);
    }

    #[test]
    fn a_policy_names_what_differs() {
        let layers = [["q8_0", "turbo3"], ["turbo4", "turbo3"], ["q8_0", "turbo2"], ["turbo4", "turbo3"]];
        let layers = layers.iter().map(|of| of.map(Some)).enumerate().collect();
        let policy = policy(&Policy { sink: 0, ..Policy::default() }, &layers);
        let formats = policy.formats(4).unwrap();
        let names: Vec<_> = formats.iter().map(|[k, v]| [k[0].name, v[0].name]).collect();
        assert_eq!(
            names,
            [["q8_0", "turbo3"], ["turbo4", "turbo3"], ["q8_0", "turbo2"], ["turbo4", "turbo3"]]
        );
        assert_eq!((&policy.v[..], policy.sink, policy.layers.len()), ("turbo3", 0, 2));
    }
}
