//! The policy of a KV cache: a printable, serialisable value that says which layer and side gets
//! which format, what stays exact, and how long a page is.

use serde::{Deserialize, Serialize};
use std::fmt;
use torque_quant::FormatOps;

/// Which formats a cache is sealed in. Written as TOML:
///
/// ```toml
/// k = "turbo4"
/// v = "turbo3"
/// sink = 128            # first tokens kept in f16
/// tail = 128            # newest tokens kept exact
/// snapshots = 8         # copies of a recurrent state, to go back to
/// guided = true         # what attention looks at grows old later
/// sparse_v = 0.1        # leave out values that weigh little; see [`Plan::sparse_v`](crate::Plan::sparse_v)
///
/// [[layers]]            # later rules win
/// at = "0-1,-2--1"      # ordinals of the layers that have KV; negative counts from the end
/// v = "q8_0"
///
/// [[tiers]]             # older tokens, oldest last: sealed again, in smaller formats
/// percent = 40          # of what is sealed
/// k = "turbo3"
///
/// [[tiers]]
/// percent = 35
/// v = "turbo2"
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Format of sealed keys.
    #[serde(default = "f16")]
    pub k: String,
    /// Format of sealed values. Values that lie in the keys ([`crate::KvLayer::values_in_keys`]) have the
    /// format of the keys, whatever is said here.
    #[serde(default = "f16")]
    pub v: String,
    /// Tokens at the start of a sequence whose pages are sealed in f16, rounded up to whole pages.
    #[serde(default = "default_exact")]
    pub sink: usize,
    /// Newest tokens that are never sealed.
    #[serde(default = "default_exact")]
    pub tail: usize,
    /// Tokens in a page: a multiple of 16.
    #[serde(default = "default_page")]
    pub page: usize,
    /// Copies of the recurrent state kept for each sequence, to go back to, if the model has recurrent layers.
    #[serde(default = "default_snapshots")]
    pub snapshots: usize,
    /// What attention may lose by leaving out values that weigh little: a share of the least that formats of their size can lose, 0 for
    /// none.
    #[serde(default)]
    pub sparse_v: f32,
    /// Rules for some layers. What they name holds at every age.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerRule>,
    /// Whether, of the tokens about to grow old, those that attention looks at less do so first ([`crate::Pages::grow_old`]). As many
    /// grow old as by age alone.
    #[serde(default = "default_guided")]
    pub guided: bool,
    /// Older tokens, the oldest last. Layers with a sliding window, and sinks, have no age.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
}

/// Other formats for older tokens of a sequence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// How much of the sealed part of a sequence belongs to it, percent.
    pub percent: usize,
    /// Format of keys; that of younger ones if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<String>,
    /// Format of values, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<String>,
}

/// Shares of a sequence, in percent, that [`Policy::with_decay`] knows by name: hot, warm and cold.
pub const DECAYS: &[(&str, [usize; 3])] =
    &[("conservative", [25, 40, 35]), ("balanced", [15, 35, 50]), ("aggressive", [5, 25, 70])];

/// What tokens decay to first: the largest of these that is smaller. A nested format then decays to those that begin it, so that
/// a page on its way is encoded at most once. What is a step from two bits gains nothing by that, and turbo2 has the smaller error.
const LADDER: &[&str] = &["turbo4_nested", "turbo3_nested", "turbo2"];

/// Formats for some layers that [`Policy::with_preset`] knows by name.
pub struct Preset {
    /// On the command line.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// The format of values elsewhere, where none is asked for.
    v: Option<&'static str>,
    /// [`LayerRule`]s: at, k, v.
    rules: &'static [(&'static str, Option<&'static str>, Option<&'static str>)],
}

/// Every preset. Those with numbers are layer-adaptive modes of the forks of llama.cpp, but count the layers that have
/// KV, whatever their number, and keep the formats that are asked for.
pub const PRESETS: &[Preset] = &[
    Preset { name: "uniform", about: "the same formats in every layer", v: None, rules: &[] },
    Preset {
        name: "boundary",
        about: "the first and last two layers in q8_0",
        v: None,
        rules: &[("first2,last2", Some("q8_0"), Some("q8_0"))],
    },
    Preset {
        name: "1",
        about: "the first and last four layers in q8_0",
        v: None,
        rules: &[("first4,last4", Some("q8_0"), Some("q8_0"))],
    },
    Preset {
        name: "2",
        about: "the last eight layers in q8_0",
        v: None,
        rules: &[("last8", Some("q8_0"), Some("q8_0"))],
    },
    Preset {
        name: "5",
        about: "values of the first and last two layers in turbo4, of others in turbo2",
        v: Some("turbo2"),
        rules: &[("first2,last2", None, Some("turbo4"))],
    },
    Preset {
        name: "6",
        about: "values of the last eight layers in turbo4, of others in turbo2",
        v: Some("turbo2"),
        rules: &[("last8", None, Some("turbo4"))],
    },
    Preset {
        name: "7",
        about: "values of the first and last two layers in q8_0, of others in turbo2",
        v: Some("turbo2"),
        rules: &[("first2,last2", None, Some("q8_0"))],
    },
];

/// Other formats for some layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRule {
    /// Ordinals among the layers that have KV, as a list of numbers and ranges, `0-1,-2--1`, and of `first2` or `last2`,
    /// which are all layers if there are no more.
    pub at: String,
    /// Format of sealed keys in these layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<String>,
    /// Format of sealed values in these layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<String>,
}

/// What is wrong with a policy.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PolicyError {
    #[error("KV cache format `{name}` is not known; known are {known}")]
    UnknownFormat { name: String, known: String },
    #[error("format `{0}` holds weights only and cannot hold K or V; known are {1}")]
    NotForKv(String, String),
    #[error("page length {0} is not a multiple of 16 between 16 and 4096")]
    Page(usize),
    #[error(
        "layers `{at}`: expected numbers, ranges, `first2` or `last2`, as in `0-1,-2--1`, found `{found}`"
    )]
    Layers { at: String, found: String },
    #[error("sparse_v is {0}; it is a share from 0 to 1")]
    Sparse(f32),
    #[error("tiers of older tokens take {0} % of a sequence; 100 is all of it")]
    Shares(usize),
    #[error(
        "decay `{found}`: expected {known}, or percentages of hot, warm and cold tokens that add up to 100, as in `25,40,35`"
    )]
    Decay { found: String, known: String },
    #[error(
        "tier {tier} of older tokens would be sealed in {format}, which is larger than {younger} before it"
    )]
    Grows { tier: usize, format: String, younger: String },
    #[error("preset `{found}` is not known; known are {known}")]
    Preset { found: String, known: String },
    #[error("layers `{at}` names layer {layer}, but the model has {layers} layers with KV")]
    NoSuchLayer { at: String, layer: i64, layers: usize },
    #[error("KV head size {0} is not a multiple of 16, which every KV format needs")]
    HeadSize(usize),
    #[error(
        "no rotation exists for head size {head_dim}, which `{format}` needs; use an unrotated format such as q8_0"
    )]
    NoRotation { head_dim: usize, format: String },
    #[error("state size {0} of a recurrent layer is not a multiple of 16")]
    StateSize(usize),
    #[error("KV cache policy: {0}")]
    Toml(#[from] toml::de::Error),
}

fn f16() -> String {
    "f16".into()
}
fn default_exact() -> usize {
    128
}
fn default_page() -> usize {
    128
}
fn default_guided() -> bool {
    true
}
fn default_snapshots() -> usize {
    8
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            k: f16(),
            v: f16(),
            sink: 128,
            tail: 128,
            page: 128,
            snapshots: 8,
            sparse_v: 0.0,
            guided: true,
            layers: Vec::new(),
            tiers: Vec::new(),
        }
    }
}

impl Policy {
    /// The same formats in every layer, with the default sink, tail and page.
    pub fn uniform(k: &str, v: &str) -> Policy {
        Policy { k: k.into(), v: v.into(), ..Policy::default() }
    }

    /// No tail and no sink: every token is sealed as soon as its page is full.
    pub fn bare(self) -> Policy {
        Policy { sink: 0, tail: 0, ..self }
    }

    /// Reads a policy from TOML.
    pub fn from_toml(text: &str) -> Result<Policy, PolicyError> {
        Ok(toml::from_str(text)?)
    }

    /// Makes older tokens decay: `hot,warm,cold` in percent or a name of [`DECAYS`]. Warm ones are sealed in the next
    /// smaller format than the policy's, cold ones in the next: of turbo4_nested, turbo3_nested and turbo2_nested, or in turbo2
    /// where the policy's has three bits.
    pub fn with_decay(self, shares: &str) -> Result<Policy, PolicyError> {
        let bad = || {
            let known: Vec<_> = DECAYS.iter().map(|(name, _)| *name).collect();
            PolicyError::Decay { found: shares.into(), known: known.join(", ") }
        };
        let [_, warm, cold] = match DECAYS.iter().find(|(name, _)| *name == shares) {
            Some((_, shares)) => *shares,
            None => {
                let percents: Result<Vec<usize>, _> = shares.split(',').map(|n| n.trim().parse()).collect();
                let percents: [usize; 3] = percents.ok().and_then(|p| p.try_into().ok()).ok_or_else(bad)?;
                let sum = percents.iter().fold(0usize, |sum, n| sum.saturating_add(*n));
                if sum == 100 { percents } else { return Err(bad()) }
            }
        };
        let mut tiers = Vec::new();
        let (mut k, mut v) = (self.k.clone(), self.v.clone());
        for percent in [warm, cold] {
            (k, v) = (smaller(&k)?, smaller(&v)?);
            tiers.push(Tier { percent, k: Some(k.clone()), v: Some(v.clone()) });
        }
        Ok(Policy { tiers, ..self })
    }

    /// Adds the rules of a preset. `asks_v`: whether the format of values was asked for.
    pub fn with_preset(mut self, name: &str, asks_v: bool) -> Result<Policy, PolicyError> {
        let preset = PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
            let known: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
            PolicyError::Preset { found: name.into(), known: known.join(" ") }
        })?;
        if let (Some(v), false) = (preset.v, asks_v) {
            self.v = v.into();
        }
        let rule = |(at, k, v): &(&str, Option<&str>, Option<&str>)| LayerRule {
            at: (*at).into(),
            k: k.map(str::to_string),
            v: v.map(str::to_string),
        };
        self.layers.extend(preset.rules.iter().map(rule));
        Ok(self)
    }

    /// The effective formats of K and V of each of `layers` layers with KV: of new pages, then of those of every tier,
    /// or one for all ages.
    #[allow(clippy::type_complexity)]
    pub fn formats(&self, layers: usize) -> Result<Vec<[Vec<&'static FormatOps>; 2]>, PolicyError> {
        if self.page == 0 || !self.page.is_multiple_of(16) || self.page > 4096 {
            return Err(PolicyError::Page(self.page));
        }
        if !(0.0..=1.0).contains(&self.sparse_v) {
            return Err(PolicyError::Sparse(self.sparse_v));
        }
        let percent = self.tiers.iter().fold(0usize, |sum, tier| sum.saturating_add(tier.percent));
        if percent > 100 {
            return Err(PolicyError::Shares(percent));
        }
        let mut ages = [vec![kv_format(&self.k)?], vec![kv_format(&self.v)?]];
        for (i, tier) in self.tiers.iter().enumerate() {
            for (ages, name) in ages.iter_mut().zip([&tier.k, &tier.v]) {
                let younger = *ages.last().expect("there is a youngest");
                let format = name.as_deref().map_or(Ok(younger), kv_format)?;
                if format.bits() > younger.bits() {
                    let (format, younger) = (format.name.into(), younger.name.into());
                    return Err(PolicyError::Grows { tier: i + 1, format, younger });
                }
                ages.push(format);
            }
        }
        let mut formats = vec![ages; layers];
        for rule in &self.layers {
            let named = |name: &Option<String>| name.as_deref().map(kv_format).transpose();
            let named = [named(&rule.k)?, named(&rule.v)?];
            for layer in select(&rule.at, layers)? {
                for (formats, format) in formats[layer].iter_mut().zip(named) {
                    if let Some(format) = format {
                        *formats = vec![format];
                    }
                }
            }
        }
        Ok(formats)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(self).expect("a policy is plain strings and numbers"))
    }
}

/// Looks up a format that may hold K or V.
fn kv_format(name: &str) -> Result<&'static FormatOps, PolicyError> {
    let known = || {
        let names: Vec<_> = torque_quant::FORMATS.iter().filter(|f| f.kv).map(|f| f.name).collect();
        names.join(" ")
    };
    match torque_quant::by_name(name) {
        None => Err(PolicyError::UnknownFormat { name: name.into(), known: known() }),
        Some(format) if !format.kv => Err(PolicyError::NotForKv(name.into(), known())),
        Some(format) => Ok(format),
    }
}

/// The largest format that begins a format, or else the largest of [`LADDER`] that is smaller; itself if none is.
fn smaller(name: &str) -> Result<String, PolicyError> {
    let format = kv_format(name)?;
    // The list goes from larger formats to smaller ones.
    if let Some(planes) = torque_quant::FORMATS.iter().find(|other| other.begins(format)) {
        return Ok(planes.name.into());
    }
    let bits = |name: &str| kv_format(name).map(FormatOps::bits);
    for step in LADDER {
        if bits(step)? < format.bits() {
            return Ok(step.to_string());
        }
    }
    Ok(format.name.into())
}

/// Expands `0-1,-2--1` or `first2,last2` to layer ordinals.
fn select(at: &str, layers: usize) -> Result<Vec<usize>, PolicyError> {
    let bad = |found: &str| PolicyError::Layers { at: at.into(), found: found.into() };
    let ordinal = |text: &str| -> Result<usize, PolicyError> {
        let layer: i64 = text.trim().parse().map_err(|_| bad(text))?;
        let from_start = if layer < 0 { layer.saturating_add(layers as i64) } else { layer };
        usize::try_from(from_start).ok().filter(|&l| l < layers).ok_or(PolicyError::NoSuchLayer {
            at: at.into(),
            layer,
            layers,
        })
    };
    let mut selected = Vec::new();
    for item in at.split(',') {
        let count = |word| item.trim().strip_prefix(word).map(|n| n.parse().map_err(|_| bad(item)));
        if let Some(count) = count("first") {
            selected.extend(0..layers.min(count?));
            continue;
        }
        if let Some(count) = count("last") {
            selected.extend(layers.saturating_sub(count?)..layers);
            continue;
        }
        // The dash of a range is the first one that does not open a number.
        let dash = item.char_indices().skip_while(|(_, c)| *c == ' ').skip(1).find(|(_, c)| *c == '-');
        let (first, last) = match dash {
            Some((at, _)) => (ordinal(&item[..at])?, ordinal(&item[at + 1..])?),
            None => (ordinal(item)?, ordinal(item)?),
        };
        if last < first {
            return Err(bad(item));
        }
        selected.extend(first..=last);
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_lists_expand() {
        let check = |at: &str, expected: &[usize]| assert_eq!(select(at, 8).unwrap(), expected, "{at}");
        check("0", &[0]);
        check("0-2", &[0, 1, 2]);
        check("-1", &[7]);
        check("0-1,-2--1", &[0, 1, 6, 7]);
        check("5--1", &[5, 6, 7]);
        check(" 3 , 4 - 5", &[3, 4, 5]);
        check("first2, last1", &[0, 1, 7]);
        check("first20", &[0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn wrong_layer_lists_say_what_is_wrong() {
        let check = |at: &str, part: &str| {
            let error = select(at, 8).unwrap_err().to_string();
            assert!(error.contains(part), "{at}: {error}");
        };
        check("", "expected numbers");
        check("a", "found `a`");
        check("8", "8 layers with KV");
        check("-9", "layer -9");
        check("3-1", "found `3-1`");
        check("1,,2", "expected numbers");
        check("first", "found `first`");
        check("last-1", "found `last-1`");
    }

    #[test]
    fn a_policy_survives_printing() {
        let policy = Policy {
            layers: vec![LayerRule { at: "0-1".into(), k: None, v: Some("q8_0".into()) }],
            ..Policy::uniform("turbo4", "turbo3")
        };
        assert_eq!(Policy::from_toml(&policy.to_string()).unwrap(), policy);
        assert_eq!(names(&policy, 4)[1..3], ["turbo4 | q8_0", "turbo4 | turbo3"]);
    }

    /// The formats of every layer: ages of keys, then of values.
    fn names(policy: &Policy, layers: usize) -> Vec<String> {
        let side = |ages: &Vec<&FormatOps>| ages.iter().map(|f| f.name).collect::<Vec<_>>().join(" ");
        let formats = policy.formats(layers).unwrap();
        formats.iter().map(|[k, v]| format!("{} | {}", side(k), side(v))).collect()
    }

    #[test]
    fn older_tokens_decay_to_smaller_formats() {
        let decayed = |k, v, shares| Policy::uniform(k, v).with_decay(shares).unwrap();
        let policy = decayed("q8_0", "turbo3", "balanced");
        assert_eq!(names(&policy, 1), ["q8_0 turbo4_nested turbo3_nested | turbo3 turbo2 turbo2"]);
        assert_eq!(policy.tiers.iter().map(|t| t.percent).collect::<Vec<_>>(), [35, 50]);
        assert_eq!(Policy::from_toml(&policy.to_string()).unwrap(), policy);
        assert_eq!(decayed("turbo4", "f16", "10, 20,70").tiers[1].percent, 70);
        for shares in ["", "bold", "10,20", "10,20,71", "10,20,-1", "99999999999999999999,0,0"] {
            let error = Policy::default().with_decay(shares).unwrap_err().to_string();
            assert!(error.contains("conservative, balanced, aggressive"), "{error}");
        }
        // A nested format decays to its own planes, whatever it was before.
        assert_eq!(
            names(&decayed("f16", "turbo4", "balanced"), 1),
            ["f16 turbo4_nested turbo3_nested | turbo4 turbo3_nested turbo2_nested"]
        );
        let nested = names(&decayed("turbo4_nested", "turbo3_nested", "balanced"), 1);
        assert_eq!(
            nested,
            ["turbo4_nested turbo3_nested turbo2_nested | turbo3_nested turbo2_nested turbo2_nested"]
        );
        // What a rule names stays as it is.
        let policy = policy.with_preset("boundary", true).unwrap();
        assert_eq!(
            names(&policy, 5)[1..3],
            ["q8_0 | q8_0", "q8_0 turbo4_nested turbo3_nested | turbo3 turbo2 turbo2"]
        );
    }

    #[test]
    fn presets_count_the_layers_that_are_there() {
        let of = |name: &str, layers| {
            names(&Policy::uniform("turbo4", "turbo3").with_preset(name, false).unwrap(), layers)
        };
        assert_eq!(of("uniform", 1), ["turbo4 | turbo3"]);
        assert_eq!(of("7", 5)[1..3], ["turbo4 | q8_0", "turbo4 | turbo2"]);
        assert_eq!(of("2", 9)[..2], ["turbo4 | turbo3", "q8_0 | q8_0"]);
        for preset in PRESETS {
            (1..20).for_each(|layers| assert_eq!(of(preset.name, layers).len(), layers));
        }
        let asked = Policy::uniform("f16", "turbo4").with_preset("7", true).unwrap();
        assert_eq!(names(&asked, 9)[4], "f16 | turbo4");
        let error = Policy::default().with_preset("3", false).unwrap_err().to_string();
        assert!(error.contains("uniform boundary 1 2 5 6 7"), "{error}");
    }

    #[test]
    fn wrong_policies_are_refused() {
        let check = |toml: &str, part: &str| {
            let error = Policy::from_toml(toml).and_then(|p| p.formats(8)).unwrap_err().to_string();
            assert!(error.contains(part), "{toml}: {error}");
        };
        check("k = 'turbo9'", "`turbo9` is not known");
        check("v = 'q4_k'", "weights only");
        check("page = 24", "page length 24");
        check("page = 0", "page length 0");
        check("sinks = 3", "unknown field `sinks`");
        check("sparse_v = 1.5", "sparse_v is 1.5");
        check("sparse_v = nan", "from 0 to 1");
        check("tiers = [{ percent = 60 }, { percent = 41 }]", "101 % of a sequence");
        check("tiers = [{ percent = 60, k = 'turbo9' }]", "`turbo9` is not known");
        check("v = 'turbo3'\ntiers = [{ percent = 60, v = 'turbo4' }]", "larger than turbo3");
    }
}
