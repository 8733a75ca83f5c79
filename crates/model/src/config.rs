//! A model's numbers: read from the metadata, each checked once.

use crate::arch::{self, Arch};
use crate::error::Error;
use crate::rope::{RopeConfig, Scaling};
use std::borrow::Cow;
use torque_gguf::Metadata;
use torque_kv::KvLayer;

/// A model's dimensions and constants.
#[derive(Clone, Debug)]
pub struct Config {
    /// The architecture.
    pub arch: &'static Arch,
    /// `general.name`, or the architecture's.
    pub name: String,
    /// Tokens.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub embedding: usize,
    /// Tokens the model was trained on at once.
    pub context: usize,
    /// ε of every norm.
    pub eps: f32,
    /// Multiplies embeddings.
    pub embedding_scale: Option<f32>,
    /// c in `c·tanh(s/c)` of attention scores.
    pub attention_softcap: Option<f32>,
    /// c in `c·tanh(y/c)` of logits.
    pub final_softcap: Option<f32>,
    /// Mixture of experts.
    pub experts: Option<ExpertConfig>,
    /// Queries grow with position: `q *= 1 + scale·ln(1 + ⌊position / every⌋)`.
    pub temperature: Option<Temperature>,
    /// Rotary embeddings the layers choose from.
    pub ropes: Vec<RopeConfig>,
    /// Layers.
    pub layers: Vec<LayerConfig>,
}

/// The numbers of one layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerConfig {
    /// Query heads.
    pub heads: usize,
    /// KV heads, their sizes and window.
    pub kv: KvLayer,
    /// Width of the dense feed-forward layer.
    pub feed_forward: usize,
    /// Multiplies attention scores.
    pub attention_scale: f32,
    /// Index into [`Config::ropes`].
    pub rope: Option<usize>,
}

/// The numbers of a mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct ExpertConfig {
    /// Experts.
    pub count: usize,
    /// Experts a token goes to.
    pub used: usize,
    /// Width of an expert.
    pub feed_forward: usize,
    /// Multiplies the weights of the chosen.
    pub scale: f32,
}

/// Query temperature (Mistral 3).
#[derive(Clone, Copy, Debug)]
pub struct Temperature {
    /// How much a query grows.
    pub scale: f32,
    /// Positions in a step.
    pub every: usize,
}

impl Temperature {
    /// The factor of a query at `position`.
    pub fn factor(&self, position: usize) -> f32 {
        1.0 + self.scale * (1.0 + (position / self.every) as f32).ln()
    }
}

/// Metadata under an architecture's prefix.
struct Keys<'a> {
    metadata: &'a Metadata,
    arch: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn bad(&self, name: &str, found: impl ToString, expected: impl ToString) -> Error {
        Error::BadKey { key: self.key(name), found: found.to_string(), expected: expected.to_string() }
    }

    fn size(&self, name: &str) -> Result<Option<usize>, Error> {
        Ok(self.metadata.u32(&self.key(name))?.map(|n| n as usize))
    }

    fn float(&self, name: &str) -> Result<Option<f32>, Error> {
        match self.metadata.f32(&self.key(name))? {
            Some(x) if !x.is_finite() => Err(self.bad(name, x, "a finite number")),
            other => Ok(other),
        }
    }

    fn positive(&self, name: &str) -> Result<Option<f32>, Error> {
        match self.float(name)? {
            Some(x) if x <= 0.0 => Err(self.bad(name, x, "a positive number")),
            other => Ok(other),
        }
    }

    /// A number that must be there and lie in `1..=max`.
    fn count(&self, name: &str, max: usize) -> Result<usize, Error> {
        let n = self.size(name)?.ok_or(Error::MissingKey { key: self.key(name) })?;
        self.in_range(name, n, max)
    }

    fn in_range(&self, name: &str, n: usize, max: usize) -> Result<usize, Error> {
        if (1..=max).contains(&n) { Ok(n) } else { Err(self.bad(name, n, format!("1 to {max}"))) }
    }

    /// A number for each layer, written once or as an array.
    fn per_layer(&self, name: &str, layers: usize, max: usize) -> Result<Option<Vec<usize>>, Error> {
        let key = self.key(name);
        let values = match self.metadata.get(&key) {
            None => return Ok(None),
            Some(torque_gguf::Value::Array(_)) => self.metadata.required::<Cow<[u32]>>(&key)?.into_owned(),
            Some(_) => vec![self.metadata.required(&key)?; layers],
        };
        if values.len() < layers {
            return Err(self.bad(name, format!("an array of {}", values.len()), format!("{layers} entries")));
        }
        values[..layers]
            .iter()
            .map(|&n| self.in_range(name, n as usize, max))
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

/// Bounds no real model reaches, so that products of sizes cannot overflow.
const LAYERS_MAX: usize = 4096;
const WIDTH_MAX: usize = 1 << 20;
const HEADS_MAX: usize = 4096;
const HEAD_DIM_MAX: usize = 8192;
const VOCABULARY_MAX: usize = 1 << 24;

impl Config {
    /// Reads the metadata of a model file.
    pub fn from_metadata(metadata: &Metadata) -> Result<Config, Error> {
        let name = metadata.string("general.architecture")?.ok_or(Error::NoArchitecture)?;
        let arch = arch::by_name(name).ok_or_else(|| Error::UnknownArchitecture(name.into()))?;
        let keys = Keys { metadata, arch: arch.name };

        let blocks = keys.count("block_count", LAYERS_MAX)?;
        // Multi-token-prediction blocks are counted, and not part of plain inference.
        let layers = blocks.saturating_sub(keys.size("nextn_predict_layers")?.unwrap_or(0));
        if layers == 0 {
            return Err(keys.bad("nextn_predict_layers", blocks, format!("less than the {blocks} blocks")));
        }
        let embedding = keys.count("embedding_length", WIDTH_MAX)?;
        let heads = keys
            .per_layer("attention.head_count", layers, HEADS_MAX)?
            .ok_or(Error::MissingKey { key: keys.key("attention.head_count") })?;
        let kv_heads =
            keys.per_layer("attention.head_count_kv", layers, HEADS_MAX)?.unwrap_or_else(|| heads.clone());
        for (h, k) in heads.iter().zip(&kv_heads) {
            if h % k != 0 {
                return Err(keys.bad("attention.head_count_kv", k, format!("a divisor of the {h} heads")));
            }
        }
        let head_dim = |name: &str| -> Result<usize, Error> {
            let n = keys.size(name)?.unwrap_or(embedding / heads[0]);
            keys.in_range(name, n, HEAD_DIM_MAX)
        };
        let head_dim = [head_dim("attention.key_length")?, head_dim("attention.value_length")?];
        let experts = expert_config(&keys)?;
        let feed_forward = match keys.per_layer("feed_forward_length", layers, WIDTH_MAX)? {
            Some(widths) => widths,
            None if experts.is_some() => vec![1; layers],
            None => return Err(Error::MissingKey { key: keys.key("feed_forward_length") }),
        };
        let windows = windows(&keys, arch, layers)?;
        let attention_scale = if arch.layers_scaled_by_width == Some(layers) {
            1.0 / (embedding as f32 / heads[0] as f32).sqrt()
        } else {
            1.0 / (head_dim[0] as f32).sqrt()
        };
        let rope = rope_config(&keys, arch, head_dim[0])?;
        let window_rope = arch.window_rope_base.map(|default| -> Result<_, Error> {
            let base = keys.positive("rope.freq_base_swa")?.unwrap_or(default);
            Ok(RopeConfig { base, scaling: Scaling::None, uses_factors: false, ..rope })
        });
        let mut ropes = vec![rope];
        ropes.extend(window_rope.transpose()?);

        let temperature = match keys.float("attention.temperature_scale")? {
            Some(scale) if scale != 0.0 => Some(Temperature {
                scale,
                every: keys.count("rope.scaling.original_context_length", usize::MAX)?,
            }),
            _ => None,
        };
        let vocabulary = match keys.size("vocab_size")? {
            Some(n) => n,
            None => metadata
                .strings("tokenizer.ggml.tokens")?
                .ok_or(Error::MissingKey { key: "tokenizer.ggml.tokens".into() })?
                .len(),
        };
        let eps = keys
            .positive("attention.layer_norm_rms_epsilon")?
            .ok_or(Error::MissingKey { key: keys.key("attention.layer_norm_rms_epsilon") })?;
        let cap = |name: &str| Ok::<_, Error>(keys.float(name)?.filter(|c| *c > 0.0));
        Ok(Config {
            arch,
            name: metadata.string("general.name")?.unwrap_or(arch.name).to_string(),
            vocabulary: keys.in_range("vocab_size", vocabulary, VOCABULARY_MAX)?,
            embedding,
            context: keys.count("context_length", usize::MAX)?,
            eps,
            embedding_scale: arch.scales_embedding.then(|| (embedding as f32).sqrt()),
            attention_softcap: cap("attn_logit_softcapping")?,
            final_softcap: cap("final_logit_softcapping")?,
            experts,
            temperature,
            layers: (0..layers)
                .map(|layer| LayerConfig {
                    heads: heads[layer],
                    kv: KvLayer { heads: kv_heads[layer], head_dim, window: windows[layer] },
                    feed_forward: feed_forward[layer],
                    attention_scale,
                    rope: match arch.unrotated_every {
                        Some(n) if (layer + 1) % n == 0 => None,
                        _ if windows[layer].is_some() && ropes.len() > 1 => Some(1),
                        _ => Some(0),
                    },
                })
                .collect(),
            ropes,
        })
    }

    /// The layers that have KV, in order.
    pub fn kv_layers(&self) -> Vec<KvLayer> {
        self.layers.iter().map(|layer| layer.kv).collect()
    }
}

fn expert_config(keys: &Keys) -> Result<Option<ExpertConfig>, Error> {
    let count = keys.size("expert_count")?.unwrap_or(0);
    if count == 0 {
        return Ok(None);
    }
    let feed_forward = match keys.size("expert_feed_forward_length")? {
        Some(n) => keys.in_range("expert_feed_forward_length", n, WIDTH_MAX)?,
        None => keys.count("feed_forward_length", WIDTH_MAX)?,
    };
    Ok(Some(ExpertConfig {
        count: keys.in_range("expert_count", count, 65_536)?,
        used: keys.count("expert_used_count", count)?,
        feed_forward,
        scale: keys.float("expert_weights_scale")?.filter(|s| *s != 0.0).unwrap_or(1.0),
    }))
}

/// The sliding window of each layer.
fn windows(keys: &Keys, arch: &Arch, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let (Some(default_period), Some(window)) = (arch.window_period, keys.size("attention.sliding_window")?)
    else {
        return Ok(vec![None; layers]);
    };
    let window = keys.in_range("attention.sliding_window", window, usize::MAX)?;
    let name = "attention.sliding_window_pattern";
    let pattern: Vec<bool> = match keys.metadata.get(&keys.key(name)) {
        Some(torque_gguf::Value::Array(_)) => {
            let pattern = keys.metadata.bools(&keys.key(name))?.unwrap_or_default().to_vec();
            if pattern.len() < layers {
                return Err(keys.bad(
                    name,
                    format!("an array of {}", pattern.len()),
                    format!("{layers} entries"),
                ));
            }
            pattern
        }
        _ => {
            let period = keys.size(name)?.unwrap_or(default_period);
            (0..layers).map(|layer| period > 0 && layer % period < period - 1).collect()
        }
    };
    Ok((0..layers).map(|layer| pattern[layer].then_some(window)).collect())
}

fn rope_config(keys: &Keys, arch: &'static Arch, head_dim: usize) -> Result<RopeConfig, Error> {
    let channels = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
    if channels == 0 || channels % 2 != 0 || channels > head_dim {
        return Err(keys.bad("rope.dimension_count", channels, format!("an even number up to {head_dim}")));
    }
    let base = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let original = keys.size("rope.scaling.original_context_length")?;
    let attention_factor = keys.float("rope.scaling.attn_factor")?.filter(|f| *f != 0.0).unwrap_or(1.0);
    let factor = || {
        keys.positive("rope.scaling.factor")?
            .ok_or_else(|| Error::MissingKey { key: keys.key("rope.scaling.factor") })
    };
    let key = keys.key("rope.scaling.type");
    let scaling = match keys.metadata.string(&key)? {
        None | Some("none" | "longrope") => Scaling::None,
        Some("linear") => Scaling::Linear { factor: factor()? },
        Some("yarn") => Scaling::Yarn {
            factor: factor()?,
            original: original
                .filter(|n| *n > 0)
                .ok_or(Error::MissingKey { key: keys.key("rope.scaling.original_context_length") })?,
            beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            grows: keys.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0) == 0.0,
        },
        Some(other) => {
            let expected = "none, linear, yarn or longrope".into();
            return Err(Error::BadKey { key, found: format!("`{other}`"), expected });
        }
    };
    Ok(RopeConfig {
        pairs: arch.pairs,
        channels,
        base,
        scaling,
        attention_factor,
        original_context: original.unwrap_or(0),
        uses_factors: true,
    })
}
