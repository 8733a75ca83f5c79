//! Models of real shapes with random weights, made in memory: what a benchmark needs without a download.

use crate::error::Error;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use std::collections::HashMap;
use std::sync::Mutex;
use std::thread;
use torque_gguf::{self as gguf, Array, Gguf, Metadata, TensorType, Value};
use torque_quant::FormatOps;

/// The shape of a synthetic model: what its file says.
pub struct Shape {
    /// Name on the command line.
    pub name: &'static str,
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub embedding: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Keys under the architecture's prefix, of a model of so many layers, beyond those of every model.
    keys: fn(usize) -> Vec<(&'static str, Value)>,
    /// Tensors of a layer, by its number.
    layer: fn(usize) -> Vec<Tensor>,
    /// The other tensors.
    ends: fn() -> Vec<Tensor>,
}

/// A tensor: its name (of a layer's, the part after the number), shape in GGUF order, and what it holds.
#[derive(Clone)]
struct Tensor {
    name: &'static str,
    shape: Vec<usize>,
    values: Values,
}

#[derive(Clone)]
enum Values {
    /// Gaussian numbers in the format that is measured.
    Weights,
    /// Gaussian numbers in f32.
    Floats,
    /// One number in f32.
    Constant(f32),
}

/// Every shape.
pub static SHAPES: &[Shape] = &[
    Shape {
        name: "1b",
        architecture: "llama",
        layers: 16,
        embedding: 2048,
        vocabulary: 32_000,
        keys: |_| [attention_keys(16, 8, 128, 5e5), sizes(&[("feed_forward_length", 6144)])].concat(),
        layer: |_| [attention(2048, 16 * 128, 8 * 128), dense(2048, 6144)].concat(),
        ends: || ends(2048, 32_000),
    },
    Shape {
        name: "qwen3-30b-a3b",
        architecture: "qwen3moe",
        layers: 48,
        embedding: 2048,
        vocabulary: 151_936,
        keys: |_| [attention_keys(32, 4, 128, 1e6), expert_keys(128, 8, 768)].concat(),
        layer: |_| [attention(2048, 32 * 128, 4 * 128), head_norms(128), experts(2048, 128, 768)].concat(),
        ends: || ends(2048, 151_936),
    },
    Shape {
        name: "qwen35-35b-a3b",
        architecture: "qwen35moe",
        layers: 40,
        embedding: 2048,
        vocabulary: 248_320,
        keys: |_| [attention_keys(16, 2, 256, 1e7), expert_keys(256, 8, 512), qwen35_keys()].concat(),
        layer: |layer| [hybrid(layer, 2048), qwen35_experts(2048, 256, 512)].concat(),
        ends: || ends(2048, 248_320),
    },
    Shape {
        name: "gemma4-26b-a4b",
        architecture: "gemma4",
        layers: 30,
        embedding: 2816,
        vocabulary: 262_144,
        keys: gemma4_keys,
        layer: |layer| [gemma4_attention(layer, 2816), gemma4_experts(2816, 2112, 128, 704)].concat(),
        // The embeddings are the output too.
        ends: || vec![weights("token_embd.weight", &[2816, 262_144]), ones("output_norm.weight", 2816)],
    },
    Shape {
        name: "tiny",
        architecture: "llama",
        layers: 2,
        embedding: 256,
        vocabulary: 512,
        keys: |_| [attention_keys(4, 2, 64, 5e5), sizes(&[("feed_forward_length", 512)])].concat(),
        layer: |_| [attention(256, 4 * 64, 2 * 64), dense(256, 512)].concat(),
        ends: || ends(256, 512),
    },
    Shape {
        name: "tiny-moe",
        architecture: "qwen3moe",
        layers: 2,
        embedding: 256,
        vocabulary: 512,
        keys: |_| [attention_keys(4, 2, 64, 1e6), expert_keys(5, 2, 256)].concat(),
        layer: |_| [attention(256, 4 * 64, 2 * 64), head_norms(64), experts(256, 5, 256)].concat(),
        ends: || ends(256, 512),
    },
];

fn sizes(keys: &[(&'static str, u32)]) -> Vec<(&'static str, Value)> {
    keys.iter().map(|(key, n)| (*key, Value::U32(*n))).collect()
}

fn attention_keys(heads: u32, kv_heads: u32, head_dim: u32, rope_base: f32) -> Vec<(&'static str, Value)> {
    let mut keys = sizes(&[
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
    ]);
    keys.push(("rope.freq_base", Value::F32(rope_base)));
    keys
}

fn expert_keys(count: u32, used: u32, width: u32) -> Vec<(&'static str, Value)> {
    let (count, used) = (("expert_count", count), ("expert_used_count", used));
    sizes(&[count, used, ("expert_feed_forward_length", width)])
}

fn weights(name: &'static str, shape: &[usize]) -> Tensor {
    Tensor { name, shape: shape.to_vec(), values: Values::Weights }
}

fn floats(name: &'static str, shape: &[usize]) -> Tensor {
    Tensor { values: Values::Floats, ..weights(name, shape) }
}

fn constant(name: &'static str, width: usize, value: f32) -> Tensor {
    Tensor { values: Values::Constant(value), ..weights(name, &[width]) }
}

fn ones(name: &'static str, width: usize) -> Tensor {
    constant(name, width, 1.0)
}

fn attention(width: usize, q: usize, kv: usize) -> Vec<Tensor> {
    vec![
        ones("attn_norm.weight", width),
        weights("attn_q.weight", &[width, q]),
        weights("attn_k.weight", &[width, kv]),
        weights("attn_v.weight", &[width, kv]),
        weights("attn_output.weight", &[q, width]),
    ]
}

fn head_norms(head_dim: usize) -> Vec<Tensor> {
    vec![ones("attn_q_norm.weight", head_dim), ones("attn_k_norm.weight", head_dim)]
}

/// The keys of Qwen 3.5 beside those of attention and experts.
fn qwen35_keys() -> Vec<(&'static str, Value)> {
    sizes(&[
        ("expert_shared_feed_forward_length", 512),
        ("full_attention_interval", 4),
        ("rope.dimension_count", 64),
        ("ssm.conv_kernel", 4),
        ("ssm.state_size", 128),
        ("ssm.group_count", 16),
        ("ssm.time_step_rank", 32),
        ("ssm.inner_size", 32 * 128),
    ])
}

/// A layer of Qwen 3.5: every fourth is gated attention, the others are Gated DeltaNet.
fn hybrid(layer: usize, width: usize) -> Vec<Tensor> {
    if layer % 4 == 3 {
        let mut tensors = [attention(width, 16 * 256, 2 * 256), head_norms(256)].concat();
        // Each head of q has a gate.
        tensors[1].shape[1] *= 2;
        return tensors;
    }
    let (keys, values) = (16 * 128, 32 * 128);
    vec![
        ones("attn_norm.weight", width),
        weights("attn_qkv.weight", &[width, 2 * keys + values]),
        weights("attn_gate.weight", &[width, values]),
        floats("ssm_conv1d.weight", &[4, 2 * keys + values]),
        constant("ssm_a", 32, -0.1),
        floats("ssm_dt.bias", &[32]),
        weights("ssm_beta.weight", &[width, 32]),
        weights("ssm_alpha.weight", &[width, 32]),
        ones("ssm_norm.weight", 128),
        weights("ssm_out.weight", &[values, width]),
    ]
}

/// Experts of Qwen 3.5, and the one of the same width that every token goes to.
fn qwen35_experts(width: usize, count: usize, inner: usize) -> Vec<Tensor> {
    let mut tensors = experts(width, count, inner);
    tensors[0].name = "post_attention_norm.weight";
    tensors.extend([
        floats("ffn_gate_inp_shexp.weight", &[width]),
        weights("ffn_gate_shexp.weight", &[width, inner]),
        weights("ffn_up_shexp.weight", &[width, inner]),
        weights("ffn_down_shexp.weight", &[inner, width]),
    ]);
    tensors
}

/// Whether a layer of Gemma 4 sees all tokens.
fn is_global(layer: usize) -> bool {
    layer % 6 == 5
}

fn gemma4_keys(layers: usize) -> Vec<(&'static str, Value)> {
    let kv_heads = (0..layers).map(|layer| if is_global(layer) { 2 } else { 8 }).collect();
    let windows = (0..layers).map(|layer| !is_global(layer)).collect();
    let own = [
        ("attention.head_count_kv", Value::Array(Array::U32(kv_heads))),
        ("attention.sliding_window_pattern", Value::Array(Array::Bool(windows))),
        ("final_logit_softcapping", Value::F32(30.0)),
    ];
    let sizes = sizes(&[
        ("feed_forward_length", 2112),
        ("attention.sliding_window", 1024),
        ("attention.key_length_swa", 256),
        ("attention.value_length_swa", 256),
        ("rope.dimension_count_swa", 256),
    ]);
    // Later keys win over earlier ones of the same name.
    [attention_keys(16, 2, 512, 1e6), expert_keys(128, 8, 704), sizes, own.into()].concat()
}

/// Attention of Gemma 4; values of global layers come from the keys.
fn gemma4_attention(layer: usize, width: usize) -> Vec<Tensor> {
    let global = is_global(layer);
    let (head_dim, kv_heads) = if global { (512, 2) } else { (256, 8) };
    let mut tensors = [attention(width, 16 * head_dim, kv_heads * head_dim), head_norms(head_dim)].concat();
    tensors.retain(|tensor| !global || tensor.name != "attn_v.weight");
    tensors.push(ones("post_attention_norm.weight", width));
    tensors
}

/// The dense layer of Gemma 4 and the experts beside it.
fn gemma4_experts(width: usize, inner: usize, count: usize, expert: usize) -> Vec<Tensor> {
    let names =
        ["post_ffw_norm.weight", "post_ffw_norm_1.weight", "pre_ffw_norm_2.weight", "post_ffw_norm_2.weight"];
    let mut tensors = dense(width, inner);
    tensors.extend(names.map(|name| ones(name, width)));
    tensors.extend([
        ones("ffn_gate_inp.scale", width),
        floats("ffn_gate_inp.weight", &[width, count]),
        weights("ffn_gate_up_exps.weight", &[width, 2 * expert, count]),
        weights("ffn_down_exps.weight", &[expert, width, count]),
        ones("ffn_down_exps.scale", count),
    ]);
    tensors
}

fn dense(width: usize, inner: usize) -> Vec<Tensor> {
    vec![
        ones("ffn_norm.weight", width),
        weights("ffn_gate.weight", &[width, inner]),
        weights("ffn_up.weight", &[width, inner]),
        weights("ffn_down.weight", &[inner, width]),
    ]
}

fn experts(width: usize, count: usize, inner: usize) -> Vec<Tensor> {
    vec![
        ones("ffn_norm.weight", width),
        floats("ffn_gate_inp.weight", &[width, count]),
        weights("ffn_gate_exps.weight", &[width, inner, count]),
        weights("ffn_up_exps.weight", &[width, inner, count]),
        weights("ffn_down_exps.weight", &[inner, width, count]),
    ]
}

fn ends(width: usize, vocabulary: usize) -> Vec<Tensor> {
    let table = [width, vocabulary];
    vec![
        weights("token_embd.weight", &table),
        weights("output.weight", &table),
        ones("output_norm.weight", width),
    ]
}

impl Tensor {
    /// What it is stored in. Rows that are not whole blocks of a format are q8_0, as quantisers do.
    fn format(&self, format: &'static FormatOps) -> &'static FormatOps {
        let name = match self.values {
            Values::Weights if format.fits(self.shape[0]) => return format,
            Values::Weights => "q8_0",
            Values::Floats | Values::Constant(_) => "f32",
        };
        torque_quant::by_name(name).expect("a format of the list")
    }

    fn rows(&self) -> usize {
        self.shape[1..].iter().product()
    }

    fn bytes(&self, format: &'static FormatOps) -> usize {
        self.rows() * self.format(format).row_bytes(self.shape[0])
    }
}

impl Shape {
    /// Bytes of the tensors of that many layers.
    pub fn bytes(&self, format: &'static FormatOps, layers: usize) -> usize {
        let tensors = (0..layers).flat_map(self.layer).chain((self.ends)());
        tensors.map(|tensor| tensor.bytes(format)).sum()
    }

    /// How many layers there is memory for, and a tenth of it to work in: at least one.
    pub fn layers_that_fit(&self, format: &'static FormatOps, memory: u64) -> usize {
        let fits = |layers: &usize| self.bytes(format, *layers) as u64 <= memory / 10 * 9;
        (1..=self.layers).rev().find(fits).unwrap_or(1)
    }

    fn metadata(&self, layers: usize) -> Metadata {
        let mut m = Metadata::default();
        let name = match layers == self.layers {
            true => format!("synthetic {}", self.name),
            false => format!("synthetic {}, {layers} of {} layers", self.name, self.layers),
        };
        m.insert("general.architecture", self.architecture);
        m.insert("general.name", name);
        let sizes = sizes(&[
            ("block_count", layers as u32),
            ("context_length", 131_072),
            ("embedding_length", self.embedding as u32),
        ]);
        for (key, value) in sizes.into_iter().chain((self.keys)(layers)) {
            m.insert(format!("{}.{key}", self.architecture), value);
        }
        m.insert(format!("{}.attention.layer_norm_rms_epsilon", self.architecture), 1e-5f32);
        m.insert("tokenizer.ggml.model", "gpt2");
        m.insert("tokenizer.ggml.pre", "default");
        let tokens: Vec<String> = (0..self.vocabulary).map(|i| format!("t{i}")).collect();
        m.insert("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
        m.insert("tokenizer.ggml.merges", Value::Array(Array::String(Vec::new())));
        m
    }
}

/// Encoded rows every tensor of the same width is made of.
const POOL_ROWS: usize = 64;

/// Makes the first layers of a model of this shape, with Gaussian weights in one format. Rows repeat (there
/// are 64 different ones of each width): what is measured reads them all the same.
pub fn build(shape: &Shape, format: &'static FormatOps, layers: usize) -> Result<Gguf, Error> {
    let of_layer = |layer| {
        (shape.layer)(layer).into_iter().map(move |tensor| (format!("blk.{layer}.{}", tensor.name), tensor))
    };
    let ends = (shape.ends)().into_iter().map(|tensor| (tensor.name.to_string(), tensor));
    let tensors: Vec<(String, Tensor)> = (0..layers).flat_map(of_layer).chain(ends).collect();

    let mut rng = StdRng::seed_from_u64(1);
    let mut pools = HashMap::new();
    for (_, tensor) in &tensors {
        let (columns, format) = (tensor.shape[0], tensor.format(format));
        pools.entry((columns, format.name)).or_insert_with(|| pool(columns, format, &mut rng));
    }

    // A large model takes as long as memory takes to be written, so all cores write.
    let (next, made) = (Mutex::new(tensors.iter().enumerate()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let take = || next.lock().expect("no thread panics").next();
                while let Some((i, (name, tensor))) = take() {
                    let stored = tensor.format(format);
                    let data = fill(tensor, &pools[&(tensor.shape[0], stored.name)], i as u64);
                    let tensor = gguf::Tensor {
                        name: name.clone(),
                        shape: tensor.shape.iter().map(|&n| n as u64).collect(),
                        kind: TensorType::named(stored.name).expect("every weight format is a GGUF type"),
                        data: data.into(),
                    };
                    made.lock().expect("no thread panics").push((i, tensor));
                }
            });
        }
    });
    let mut made = made.into_inner().expect("no thread panics");
    made.sort_by_key(|(i, _)| *i);
    Ok(Gguf::from_tensors(shape.metadata(layers), made.into_iter().map(|(_, tensor)| tensor).collect())?)
}

/// A tensor's bytes.
fn fill(tensor: &Tensor, pool: &[Vec<u8>], seed: u64) -> Vec<u8> {
    if let Values::Constant(value) = tensor.values {
        return value.to_le_bytes().repeat(tensor.shape[0] * tensor.rows());
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bytes = Vec::with_capacity(tensor.rows() * pool[0].len());
    (0..tensor.rows()).for_each(|_| bytes.extend_from_slice(&pool[rng.random_range(0..POOL_ROWS)]));
    bytes
}

/// Encoded Gaussian rows, scaled so that activations keep their size.
fn pool(columns: usize, format: &FormatOps, rng: &mut StdRng) -> Vec<Vec<u8>> {
    let scale = 1.0 / (columns as f32).sqrt();
    (0..POOL_ROWS)
        .map(|_| {
            let row: Vec<f32> = (0..columns).map(|_| rng.sample::<f32, _>(StandardNormal) * scale).collect();
            let mut encoded = vec![0; format.row_bytes(columns)];
            format.encode_row(&row, &mut encoded);
            encoded
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_file() {
        for (shape, format) in [("tiny", "q4_0"), ("tiny-moe", "q6_k"), ("tiny-moe", "f16")] {
            let shape = SHAPES.iter().find(|known| known.name == shape).unwrap();
            let format = torque_quant::by_name(format).unwrap();
            for layers in 1..=shape.layers {
                let gguf = build(shape, format, layers).unwrap();
                let bytes: usize = gguf.tensors().iter().map(|tensor| tensor.data.len()).sum();
                assert_eq!(bytes, shape.bytes(format, layers));
            }
        }
    }

    #[test]
    fn parameters_are_those_of_the_real_models() {
        for (name, parameters) in
            [("qwen3-30b-a3b", 30.5e9), ("qwen35-35b-a3b", 34.7e9), ("gemma4-26b-a4b", 25.2e9)]
        {
            let shape = SHAPES.iter().find(|shape| shape.name == name).unwrap();
            let tensors = (0..shape.layers).flat_map(shape.layer).chain((shape.ends)());
            let found: usize = tensors.map(|tensor| tensor.shape.iter().product::<usize>()).sum();
            assert!((found as f64 / parameters - 1.0).abs() < 0.01, "{name}: {found}");
        }
    }

    #[test]
    fn as_many_layers_as_memory_holds() {
        let shape = SHAPES.iter().find(|shape| shape.name == "qwen3-30b-a3b").unwrap();
        let format = torque_quant::by_name("q4_k").unwrap();
        let layers = shape.layers_that_fit(format, 8 << 30);
        let limit = (8 << 30) / 10 * 9;
        assert!(shape.bytes(format, layers) <= limit && shape.bytes(format, layers + 1) > limit);
        assert_eq!(shape.layers_that_fit(format, 64 << 30), 48);
        assert_eq!(shape.layers_that_fit(format, 0), 1);
    }
}
