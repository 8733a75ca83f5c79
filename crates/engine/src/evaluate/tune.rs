//! Which format each layer and side of a KV cache is worth: the policies that cost least at their size.
//!
//! A side's share in the divergence is measured with that side alone in a probing format, and what a format costs with all
//! keys, or all values, in it. Divergences of sides add up, so that the best policy of every size follows from both, side by side.

use super::{CacheCell, CacheReport, Chunks, LayerReport, LayerSide, layer_sides};
use crate::engine::Engine;
use crate::error::Error;
use serde::Serialize;
use std::collections::BTreeMap;
use torque_kv::{LayerRule, Plan, Policy, Side};

/// What the share of a layer is measured in.
pub const PROBE: &str = "turbo3";

/// A policy whose layers differ must promise so much less divergence than one of the same formats everywhere: measurements of a
/// few thousand tokens err by several percent, and shares are taken from one format for all.
const GAIN: f64 = 0.1;

/// How many sizes are told apart, if there are more: the policies of deep models are countless.
const SIZES: f64 = 1024.0;

/// What is known of a model before it is tuned: which policies to measure.
pub struct Tuner {
    /// Sink, tail and page of all policies.
    base: Policy,
    plan: Plan,
    /// What there is to choose from, beside f16.
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

/// Some sides, one after the other, each in a format.
#[derive(Clone, Debug, Default)]
struct Way {
    formats: Vec<&'static str>,
    bytes: f64,
    kld: f64,
}

impl Way {
    /// One side more.
    fn and(&self, next: &Way) -> Way {
        let formats = [&self.formats[..], &next.formats[..]].concat();
        Way { formats, bytes: self.bytes + next.bytes, kld: self.kld + next.kld }
    }
}

impl Tuner {
    /// Of a model, for policies with the sink, tail and page of `base`, out of f16 and these formats.
    pub fn new(engine: &Engine, base: &Policy, formats: &[String]) -> Result<Tuner, Error> {
        let (k, v) = ("f16".into(), "f16".into());
        let base = Policy { k, v, layers: vec![], tiers: vec![], sparse_v: 0.0, ..base.clone() };
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

    /// What every layer and side costs alone, of what was measured.
    pub fn layers(
        &self,
        engine: &Engine,
        chunks: &Chunks,
        batch: usize,
        cells: &[CacheCell],
    ) -> Result<Vec<LayerReport>, Error> {
        let report = |side: &LayerSide| {
            let report = CacheReport::new(engine, chunks, batch, side.format, &side.policy, cells)?;
            Ok(LayerReport::new(side, report))
        };
        self.sides.iter().map(report).collect()
    }

    /// The policies that nothing smaller or as large beats, largest first, of what was measured.
    pub fn frontier(
        &self,
        engine: &Engine,
        chunks: &Chunks,
        batch: usize,
        cells: &[CacheCell],
    ) -> Result<Vec<Choice>, Error> {
        let measured = |policy: &Policy| {
            CacheReport::new(engine, chunks, batch, "", policy, cells).map(|r| r.divergence.kld_mean.max(0.0))
        };
        let mut alone = Vec::new();
        for side in &self.sides {
            alone.push(measured(&side.policy)?);
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
        // `[side of a layer][format]`, f16 first.
        let mut stored: Vec<Vec<Way>> = Vec::new();
        for (side, alone) in self.sides.iter().zip(&alone) {
            let share = alone / total(side.side).max(f64::MIN_POSITIVE);
            let plan = self.plan.layers[side.layer].side(side.side);
            let stored_in = |(name, whole): (&str, f64)| {
                let format = torque_quant::by_name(name).expect("a plan was made with it");
                let bytes = plan.part_bytes(format, self.plan.page) as f64 / self.plan.page as f64;
                Way { formats: vec![format.name], bytes, kld: share * whole }
            };
            let names =
                self.formats.iter().map(String::as_str).zip(whole[side.side as usize].iter().copied());
            stored.push([("f16", 0.0)].into_iter().chain(names).map(stored_in).collect());
        }
        let every = |ways: Vec<Way>, side: &Vec<Way>| {
            unbeaten(ways.iter().flat_map(|way| side.iter().map(|next| way.and(next))).collect(), SIZES)
        };
        let mixed = stored.iter().fold(vec![Way::default()], every);
        let everywhere = |of: [usize; 2]| {
            let sides = self.sides.iter().zip(&stored);
            sides.fold(Way::default(), |sum, (side, stored)| sum.and(&stored[of[side.side as usize]]))
        };
        let formats = 0..=self.formats.len();
        let pairs = formats.clone().flat_map(|k| formats.clone().map(move |v| [k, v]));
        let ways = rather_plain(mixed, pairs.map(everywhere).collect());
        Ok(ways.iter().map(|way| self.choice(way)).collect())
    }

    fn choice(&self, stored: &Way) -> Choice {
        let mut layers: BTreeMap<usize, [Option<&str>; 2]> = BTreeMap::new();
        for (side, format) in self.sides.iter().zip(&stored.formats) {
            layers.entry(side.layer).or_default()[side.side as usize] = Some(format);
        }
        Choice { policy: policy(&self.base, &layers), bytes_per_token: stored.bytes, kld: stored.kld }
    }
}

/// The ways to store some sides that nothing smaller or as large beats, largest first. Where they would be more than so many,
/// sizes that are nearly the same count as one; the smallest is always there.
fn unbeaten(mut ways: Vec<Way>, most: f64) -> Vec<Way> {
    let bytes = || ways.iter().map(|way| way.bytes);
    let (smallest, largest) = (bytes().fold(f64::INFINITY, f64::min), bytes().fold(0.0, f64::max));
    let step = (largest - smallest) / most;
    ways.sort_by(|a, b| a.kld.total_cmp(&b.kld).then(a.bytes.total_cmp(&b.bytes)));
    let mut below = f64::INFINITY;
    ways.retain(|way| {
        let saved = below - way.bytes;
        let keep = saved > 0.0 && (saved >= step || way.bytes == smallest);
        if keep {
            below = way.bytes;
        }
        keep
    });
    ways
}

/// The unbeaten among ways with the same formats everywhere and `mixed` ones, which have to promise [`GAIN`].
fn rather_plain(mixed: Vec<Way>, plain: Vec<Way>) -> Vec<Way> {
    let handicap = |ways: &mut [Way], factor: f64| {
        let mixed = ways.iter_mut().filter(|way| plain.iter().all(|plain| plain.formats != way.formats));
        mixed.for_each(|way| way.kld *= factor);
    };
    let mut ways = [mixed, plain.clone()].concat();
    handicap(&mut ways, 1.0 / (1.0 - GAIN));
    let mut ways = unbeaten(ways, SIZES);
    handicap(&mut ways, 1.0 - GAIN);
    // Nothing is expected to be better than what is larger, though it was measured so within that.
    let mut least = 0.0;
    for way in &mut ways {
        least = way.kld.max(least);
        way.kld = least;
    }
    ways
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

    /// Bytes of what is unbeaten.
    fn sizes(points: &[(f64, f64)], most: f64) -> Vec<f64> {
        let ways = points.iter().map(|&(bytes, kld)| Way { formats: vec![], bytes, kld }).collect();
        unbeaten(ways, most).iter().map(|way| way.bytes).collect()
    }

    #[test]
    fn what_something_smaller_beats_is_left_out() {
        assert_eq!(sizes(&[(2.0, 9.0), (16.0, 0.0), (8.0, 4.0), (4.0, 3.0)], 99.0), [16.0, 4.0, 2.0]);
        // Of two that are equally large the better one counts, of two that are equally good the smaller one.
        assert_eq!(sizes(&[(4.0, 5.0), (4.0, 3.0), (16.0, 0.0), (8.0, 0.0)], 99.0), [8.0, 4.0]);
        // Of sizes that are nearly equal one is left, but the smallest is.
        assert_eq!(
            sizes(&[(9.0, 0.0), (8.5, 1.0), (8.0, 2.0), (4.0, 3.0), (3.5, 4.0)], 5.5),
            [9.0, 8.0, 4.0, 3.5]
        );
    }

    #[test]
    fn the_frontier_of_sums_is_the_best_of_all() {
        // Bytes and divergence of the formats of four sides: none of every combination may beat what was found.
        let sides = [[(16.0, 0.0), (8.0, 1.0), (4.0, 7.0)], [(16.0, 0.0), (8.0, 0.1), (4.0, 0.3)]];
        let sides = [
            sides[0],
            sides[1],
            sides[1].map(|(b, k)| (b / 2.0, 5.0 * k)),
            sides[0].map(|(b, k)| (b, k / 3.0)),
        ];
        let stored = |&(bytes, kld): &(f64, f64)| Way { formats: vec![], bytes, kld };
        let all = |so_far: Vec<Way>, side: &[(f64, f64); 3]| -> Vec<Way> {
            so_far.iter().flat_map(|way| side.iter().map(|next| way.and(&stored(next)))).collect()
        };
        let every = sides.iter().fold(vec![Way::default()], all);
        let found = sides.iter().fold(vec![Way::default()], |ways, side| unbeaten(all(ways, side), SIZES));
        for way in &every {
            let best = found.iter().find(|found| found.bytes <= way.bytes).expect("the smallest is there");
            assert!(best.kld <= way.kld + 1e-12, "{best:?} {way:?}");
        }
        assert!(found.len() > 8 && found.len() < every.len());
    }

    #[test]
    fn layers_differ_where_it_is_worth_it() {
        let of = |bytes, kld, formats: [&'static str; 2]| Way { formats: formats.to_vec(), bytes, kld };
        let plain = || vec![of(16.0, 0.0, ["a", "a"]), of(8.0, 1.0, ["b", "b"])];
        let found = |mixed: f64| -> Vec<(f64, f64)> {
            let ways = rather_plain(vec![of(7.0, mixed, ["a", "c"])], plain());
            ways.iter().map(|way| (way.bytes, way.kld)).collect()
        };
        assert_eq!(found(0.5), [(16.0, 0.0), (7.0, 0.5)]);
        // Hardly better, so where there is room for the plain one it is taken.
        assert_eq!(found(1.0 - GAIN / 2.0), [(16.0, 0.0), (8.0, 1.0), (7.0, 1.0)]);
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
