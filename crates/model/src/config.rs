//! A model's numbers: read from the metadata, each checked once.

use crate::arch::{self, Arch, HeadOrder, Mixing};
use crate::error::Error;
use crate::rope::{RopeConfig, Scaling};
use std::borrow::Cow;
use torque_backend::{Gating, RopePairs};
use torque_gguf::Metadata;
use torque_kv::{KvLayer, Plan, Policy, PolicyError, StateShape};

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
    /// Width of the embedding that each layer has of its own (Gemma 4); 0 if there is none.
    pub per_layer_embedding: usize,
    /// c in `c·tanh(s/c)` of attention scores.
    pub attention_softcap: Option<f32>,
    /// c in `c·tanh(y/c)` of logits.
    pub final_softcap: Option<f32>,
    /// Mixture of experts.
    pub experts: Option<ExpertConfig>,
    /// Latent attention.
    pub latent: Option<LatentConfig>,
    /// Gated DeltaNet.
    pub delta_net: Option<DeltaNetConfig>,
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
    /// What it does between tokens.
    pub mixer: MixerConfig,
    /// Width of the dense feed-forward layer.
    pub feed_forward: usize,
}

/// What a layer does between tokens.
#[derive(Clone, Copy, Debug)]
pub enum MixerConfig {
    /// Attention, latent or not.
    Attention(AttentionConfig),
    /// Gated DeltaNet; the numbers are the same in every layer. The ordinal among such layers.
    DeltaNet(usize),
}

/// The numbers of one layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// KV heads, their sizes and window, as cached.
    pub kv: KvLayer,
    /// Ordinal, among the layers that have KV, of the one whose cache it reads.
    pub cache: usize,
    /// Whether that is another layer's; this one then has no keys and values.
    pub shares: bool,
    /// Multiplies scores.
    pub scale: f32,
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
    /// Width of the expert that every token goes to, if the file has one.
    pub shared: usize,
    /// How they are chosen.
    pub gating: Gating,
    /// Groups that experts lie in, and how many of them are kept; `None`: all are one.
    pub groups: Option<(usize, usize)>,
    /// Whether the weights of the chosen are made to sum to 1.
    pub normalize: bool,
    /// Multiplies the weights of the chosen.
    pub scale: f32,
}

/// The numbers of multi-head latent attention.
#[derive(Clone, Copy, Debug)]
pub struct LatentConfig {
    /// Width of the queries' latent; `None`: queries are projected directly.
    pub query_rank: Option<usize>,
    /// Width of the keys' and values' latent.
    pub rank: usize,
    /// Channels of a head with a rotary embedding.
    pub rope: usize,
    /// Channels of a query head without.
    pub nope: usize,
    /// Channels of a value head.
    pub value: usize,
}

/// The numbers of Gated DeltaNet layers.
#[derive(Clone, Copy, Debug)]
pub struct DeltaNetConfig {
    /// Tokens the convolution sees.
    pub kernel: usize,
    /// Key heads.
    pub key_heads: usize,
    /// Value heads.
    pub value_heads: usize,
    /// Channels of a query and key head.
    pub key_dim: usize,
    /// Channels of a value head.
    pub value_dim: usize,
    /// Which key head a value head reads.
    pub order: HeadOrder,
}

impl DeltaNetConfig {
    /// Channels that go through the convolution: all queries, keys and values.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.values()
    }

    /// What a layer remembers.
    fn state(&self) -> StateShape {
        StateShape {
            conv: [self.kernel - 1, self.channels()],
            matrix: [self.value_heads, self.key_dim, self.value_dim],
        }
    }

    /// Channels of all value heads.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }
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

    fn flag(&self, name: &str) -> Result<Option<bool>, Error> {
        Ok(self.metadata.bool(&self.key(name))?)
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
        let experts = expert_config(&keys, arch)?;
        let feed_forward = match keys.per_layer("feed_forward_length", layers, WIDTH_MAX)? {
            Some(widths) => widths,
            None if experts.is_some() && !arch.experts_beside => vec![1; layers],
            None => return Err(Error::MissingKey { key: keys.key("feed_forward_length") }),
        };
        let latent = (arch.mixing == Mixing::Latent).then(|| latent_config(&keys)).transpose()?;
        let delta_net = match arch.mixing {
            Mixing::Hybrid(order) => Some(delta_net_config(&keys, order)?),
            _ => None,
        };
        let (attention, ropes) = attention_configs(&keys, arch, layers, embedding, latent.as_ref())?;
        let interval = match delta_net {
            Some(_) => match keys.size("full_attention_interval")? {
                Some(n) => keys.in_range("full_attention_interval", n, LAYERS_MAX)?,
                None => 4,
            },
            None => 1,
        };
        let layers = mixers(&keys, attention, interval)?
            .into_iter()
            .zip(feed_forward)
            .map(|(mixer, feed_forward)| LayerConfig { mixer, feed_forward })
            .collect();

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
        let eps = match keys.positive("attention.layer_norm_rms_epsilon")? {
            Some(eps) => eps,
            None => keys
                .positive("attention.layer_norm_epsilon")?
                .ok_or(Error::MissingKey { key: keys.key("attention.layer_norm_rms_epsilon") })?,
        };
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
            per_layer_embedding: match keys.size("embedding_length_per_layer_input")?.filter(|n| *n > 0) {
                Some(n) => keys.in_range("embedding_length_per_layer_input", n, WIDTH_MAX)?,
                None => 0,
            },
            experts,
            latent,
            delta_net,
            temperature,
            layers,
            ropes,
        })
    }

    /// What the layers' keys, values and states are stored in, by a policy.
    pub fn plan(&self, policy: &Policy) -> Result<Plan, PolicyError> {
        let states = self.delta_net.map_or(Vec::new(), |n| vec![n.state(); self.recurrent_layers()]);
        Plan::new(policy, &self.kv_layers())?.with_states(states)
    }

    /// The layers that have KV, in order.
    pub fn kv_layers(&self) -> Vec<KvLayer> {
        self.attention_layers().filter(|layer| !layer.shares).map(|layer| layer.kv).collect()
    }

    /// The layers with attention, in order.
    pub fn attention_layers(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.layers.iter().filter_map(|layer| match &layer.mixer {
            MixerConfig::Attention(attention) => Some(attention),
            MixerConfig::DeltaNet(_) => None,
        })
    }

    /// How many layers have a recurrent state.
    pub fn recurrent_layers(&self) -> usize {
        self.layers.iter().filter(|layer| matches!(layer.mixer, MixerConfig::DeltaNet(_))).count()
    }
}

fn expert_config(keys: &Keys, arch: &Arch) -> Result<Option<ExpertConfig>, Error> {
    let count = keys.size("expert_count")?.unwrap_or(0);
    if count == 0 {
        return Ok(None);
    }
    let count = keys.in_range("expert_count", count, 65_536)?;
    let feed_forward = match keys.size("expert_feed_forward_length")? {
        Some(n) => keys.in_range("expert_feed_forward_length", n, WIDTH_MAX)?,
        None => keys.count("feed_forward_length", WIDTH_MAX)?,
    };
    let shared = match keys.size("expert_shared_feed_forward_length")? {
        Some(n) => n,
        None => keys.size("expert_shared_count")?.unwrap_or(0).saturating_mul(feed_forward),
    };
    let gating = match keys.size("expert_gating_func")?.unwrap_or(0) {
        0 => arch.gating,
        1 => Gating::Softmax,
        2 => Gating::Sigmoid,
        3 => Gating::SoftmaxOfChosen,
        other => return Err(keys.bad("expert_gating_func", other, "1, 2 or 3")),
    };
    let groups = keys.size("expert_group_count")?.unwrap_or(1).max(1);
    if count % groups != 0 {
        return Err(keys.bad("expert_group_count", groups, format!("a divisor of the {count} experts")));
    }
    let groups_used = keys.size("expert_group_used_count")?.filter(|n| *n > 0).unwrap_or(groups);
    let groups_used = keys.in_range("expert_group_used_count", groups_used, groups)?;
    Ok(Some(ExpertConfig {
        count,
        used: keys.count("expert_used_count", count / groups * groups_used)?,
        feed_forward,
        shared: if shared == 0 {
            0
        } else {
            keys.in_range("expert_shared_feed_forward_length", shared, WIDTH_MAX)?
        },
        gating,
        groups: (groups > 1).then_some((groups, groups_used)),
        normalize: keys.flag("expert_weights_norm")?.unwrap_or(arch.normalizes_experts),
        scale: keys.float("expert_weights_scale")?.filter(|s| *s != 0.0).unwrap_or(1.0),
    }))
}

fn latent_config(keys: &Keys) -> Result<LatentConfig, Error> {
    let rope = keys.count("rope.dimension_count", HEAD_DIM_MAX)?;
    let rank = keys.count("attention.kv_lora_rank", HEAD_DIM_MAX)?;
    let key = keys.count("attention.key_length_mla", HEAD_DIM_MAX)?;
    if key <= rope {
        let expected = format!("more than the {rope} channels with a rotary embedding");
        return Err(keys.bad("attention.key_length_mla", key, expected));
    }
    let query_rank = match keys.size("attention.q_lora_rank")?.filter(|n| *n > 0) {
        Some(n) => Some(keys.in_range("attention.q_lora_rank", n, WIDTH_MAX)?),
        None => None,
    };
    let value = keys.count("attention.value_length_mla", HEAD_DIM_MAX)?;
    Ok(LatentConfig { query_rank, rank, rope, nope: key - rope, value })
}

fn delta_net_config(keys: &Keys, order: HeadOrder) -> Result<DeltaNetConfig, Error> {
    let key_heads = keys.count("ssm.group_count", HEADS_MAX)?;
    let value_heads = keys.count("ssm.time_step_rank", HEADS_MAX)?;
    let inner = keys.count("ssm.inner_size", WIDTH_MAX)?;
    if value_heads % key_heads != 0 {
        let expected = format!("a multiple of the {key_heads} key heads");
        return Err(keys.bad("ssm.time_step_rank", value_heads, expected));
    }
    if inner % value_heads != 0 {
        return Err(keys.bad(
            "ssm.inner_size",
            inner,
            format!("a multiple of the {value_heads} value heads"),
        ));
    }
    Ok(DeltaNetConfig {
        kernel: keys.count("ssm.conv_kernel", 64)?,
        key_heads,
        value_heads,
        key_dim: keys.count("ssm.state_size", HEAD_DIM_MAX)?,
        value_dim: keys.in_range("ssm.inner_size", inner / value_heads, HEAD_DIM_MAX)?,
        order,
    })
}

/// The attention each layer would have, its cache not chosen yet, and the rotary embeddings.
fn attention_configs(
    keys: &Keys,
    arch: &'static Arch,
    layers: usize,
    embedding: usize,
    latent: Option<&LatentConfig>,
) -> Result<(Vec<AttentionConfig>, Vec<RopeConfig>), Error> {
    let heads = keys
        .per_layer("attention.head_count", layers, HEADS_MAX)?
        .ok_or(Error::MissingKey { key: keys.key("attention.head_count") })?;
    let kv_heads = match latent {
        // The latent is one head, whatever the file says.
        Some(_) => vec![1; layers],
        None => {
            keys.per_layer("attention.head_count_kv", layers, HEADS_MAX)?.unwrap_or_else(|| heads.clone())
        }
    };
    for (h, k) in heads.iter().zip(&kv_heads) {
        if h % k != 0 {
            return Err(keys.bad("attention.head_count_kv", k, format!("a divisor of the {h} heads")));
        }
    }
    let head_dim = |name: &str, default: usize| -> Result<usize, Error> {
        let n = keys.size(name)?.unwrap_or(default);
        keys.in_range(name, n, HEAD_DIM_MAX)
    };
    let width = embedding / heads[0];
    let global = match latent {
        Some(latent) => [latent.rank + latent.rope, latent.rank],
        None => [head_dim("attention.key_length", width)?, head_dim("attention.value_length", width)?],
    };
    let windows = windows(keys, arch, layers)?;
    let windowed = [
        head_dim("attention.key_length_swa", global[0])?,
        head_dim("attention.value_length_swa", global[1])?,
    ];

    let mut ropes = Vec::new();
    if let Some(pairs) = arch.pairs {
        let rope = rope_config(keys, arch, pairs, global[0])?;
        ropes.push(rope);
        if let Some(default) = arch.window_rope_base {
            let base = keys.positive("rope.freq_base_swa")?.unwrap_or(default);
            let channels = rope_channels(keys, "rope.dimension_count_swa", windowed[0])?;
            ropes.push(RopeConfig { base, channels, scaling: Scaling::None, uses_factors: false, ..rope });
        }
    }
    let score_width = match latent {
        Some(latent) => latent.nope + latent.rope,
        None if arch.layers_scaled_by_width == Some(layers) => width,
        None => global[0],
    };
    let grows = match ropes.first().map(|rope| rope.scaling) {
        // YaRN's growth of scores, which latent attention cannot take from cosines and sines: most of its
        // channels have none.
        Some(Scaling::Yarn { factor, log_multiplier, .. }) if latent.is_some() => {
            1.0 + log_multiplier * factor.ln()
        }
        _ => 1.0,
    };
    let scale = arch.attention_scale.unwrap_or(grows * grows / (score_width as f32).sqrt());
    let attention = (0..layers)
        .map(|layer| AttentionConfig {
            heads: heads[layer],
            kv: KvLayer {
                heads: kv_heads[layer],
                head_dim: if windows[layer].is_some() { windowed } else { global },
                values_in_keys: latent.is_some(),
                window: windows[layer],
            },
            cache: 0,
            shares: false,
            scale,
            rope: match arch.unrotated_every {
                Some(n) if (layer + 1) % n == 0 => None,
                _ if windows[layer].is_some() && ropes.len() > 1 => Some(1),
                _ => (!ropes.is_empty()).then_some(0),
            },
        })
        .collect();
    Ok((attention, ropes))
}

/// Chooses between attention and Gated DeltaNet, and whose cache each attention reads.
fn mixers(keys: &Keys, attention: Vec<AttentionConfig>, interval: usize) -> Result<Vec<MixerConfig>, Error> {
    let layers = attention.len();
    let name = "attention.shared_kv_layers";
    let own = match keys.size(name)? {
        Some(n) if n >= layers => return Err(keys.bad(name, n, format!("less than the {layers} layers"))),
        shared => layers - shared.unwrap_or(0),
    };
    let (mut caches, mut states) = (Vec::<KvLayer>::new(), 0);
    (attention.into_iter().enumerate())
        .map(|(layer, mut attention)| {
            if (layer + 1) % interval != 0 {
                states += 1;
                return Ok(MixerConfig::DeltaNet(states - 1));
            }
            if layer < own {
                attention.cache = caches.len();
                caches.push(attention.kv);
            } else {
                // The last of its own kind.
                let kind = attention.kv.window;
                let expected =
                    || keys.bad(name, layers - own, format!("an earlier layer like layer {layer}"));
                attention.cache = caches.iter().rposition(|kv| kv.window == kind).ok_or_else(expected)?;
                attention.shares = true;
                attention.kv = caches[attention.cache];
            }
            Ok(MixerConfig::Attention(attention))
        })
        .collect()
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

/// Rotated channels of a head: all of them if the key is missing.
fn rope_channels(keys: &Keys, name: &str, head_dim: usize) -> Result<usize, Error> {
    let channels = keys.size(name)?.unwrap_or(head_dim);
    if channels == 0 || channels % 2 != 0 || channels > head_dim {
        return Err(keys.bad(name, channels, format!("an even number up to {head_dim}")));
    }
    Ok(channels)
}

fn rope_config(keys: &Keys, arch: &Arch, pairs: RopePairs, head_dim: usize) -> Result<RopeConfig, Error> {
    let channels = rope_channels(keys, "rope.dimension_count", head_dim)?;
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
            log_multiplier: keys.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0),
            rounds: arch.yarn_rounds,
        },
        Some(other) => {
            let expected = "none, linear, yarn or longrope".into();
            return Err(Error::BadKey { key, found: format!("`{other}`"), expected });
        }
    };
    Ok(RopeConfig {
        pairs,
        channels,
        base,
        scaling,
        attention_factor,
        original_context: original.unwrap_or(0),
        uses_factors: true,
    })
}
