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
///
/// [[layers]]            # later rules win
/// at = "0-1,-2--1"      # ordinals of the layers that have KV; negative counts from the end
/// v = "q8_0"
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
    /// Rules for some layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerRule>,
}

/// Other formats for some layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRule {
    /// Ordinals among the layers that have KV, as a list of numbers and ranges: `0-1,-2--1`.
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
    #[error("layers `{at}`: expected numbers and ranges like `0-1,-2--1`, found `{found}`")]
    Layers { at: String, found: String },
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
fn default_snapshots() -> usize {
    8
}

impl Default for Policy {
    fn default() -> Self {
        Policy { k: f16(), v: f16(), sink: 128, tail: 128, page: 128, snapshots: 8, layers: Vec::new() }
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

    /// The effective (K, V) format of each of `layers` layers with KV.
    pub fn formats(&self, layers: usize) -> Result<Vec<[&'static FormatOps; 2]>, PolicyError> {
        if self.page == 0 || !self.page.is_multiple_of(16) || self.page > 4096 {
            return Err(PolicyError::Page(self.page));
        }
        let mut formats = vec![[kv_format(&self.k)?, kv_format(&self.v)?]; layers];
        for rule in &self.layers {
            let k = rule.k.as_deref().map(kv_format).transpose()?;
            let v = rule.v.as_deref().map(kv_format).transpose()?;
            for layer in select(&rule.at, layers)? {
                formats[layer] = [k.unwrap_or(formats[layer][0]), v.unwrap_or(formats[layer][1])];
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

/// Expands `0-1,-2--1` to layer ordinals.
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
    }

    #[test]
    fn a_policy_survives_printing() {
        let policy = Policy {
            layers: vec![LayerRule { at: "0-1".into(), k: None, v: Some("q8_0".into()) }],
            ..Policy::uniform("turbo4", "turbo3")
        };
        assert_eq!(Policy::from_toml(&policy.to_string()).unwrap(), policy);
        let formats = policy.formats(4).unwrap();
        assert_eq!(formats[1].map(|f| f.name), ["turbo4", "q8_0"]);
        assert_eq!(formats[2].map(|f| f.name), ["turbo4", "turbo3"]);
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
    }
}
