//! Models of real shapes with random weights, made in memory: what a benchmark needs without a download.

use crate::error::Error;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use torque_gguf::{Array, Gguf, Metadata, TensorType, Value, Writer};
use torque_quant::FormatOps;

/// The shape of a synthetic model.
#[derive(Debug)]
pub struct Shape {
    /// Name on the command line.
    pub name: &'static str,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub embedding: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Tokens.
    pub vocabulary: usize,
}

/// Every shape.
pub static SHAPES: &[Shape] = &[
    Shape {
        name: "1b",
        layers: 16,
        embedding: 2048,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        feed_forward: 6144,
        vocabulary: 32_000,
    },
    Shape {
        name: "tiny",
        layers: 2,
        embedding: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        feed_forward: 512,
        vocabulary: 512,
    },
];

/// Encoded rows every tensor of the same width is made of.
const POOL_ROWS: usize = 64;

/// Makes a Llama model of this shape with Gaussian weights in one format. Rows repeat (there are 64
/// different ones of each width): what is measured reads them all the same.
pub fn build(shape: &Shape, format: &FormatOps) -> Result<Gguf, Error> {
    let kind = TensorType::named(format.name).expect("every weight format is a GGUF type");
    let mut rng = StdRng::seed_from_u64(1);
    let mut writer = Writer::new(metadata(shape))?;
    let (width, q, kv) = (shape.embedding, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let pools: Vec<(usize, Vec<Vec<u8>>)> = {
        let mut widths = vec![width, q, shape.feed_forward];
        widths.dedup();
        widths.into_iter().map(|columns| (columns, pool(columns, format, &mut rng))).collect()
    };
    let mut matrix = |name: String, columns: usize, rows: usize| -> Result<(), Error> {
        let (_, pool) = pools.iter().find(|(c, _)| *c == columns).expect("a pool for every width");
        let mut bytes = Vec::with_capacity(rows * pool[0].len());
        (0..rows).for_each(|_| bytes.extend_from_slice(&pool[rng.random_range(0..POOL_ROWS)]));
        writer.tensor(name, &[columns as u64, rows as u64], kind, bytes)?;
        Ok(())
    };
    matrix("token_embd.weight".into(), width, shape.vocabulary)?;
    matrix("output.weight".into(), width, shape.vocabulary)?;
    for layer in 0..shape.layers {
        for (part, columns, rows) in [
            ("attn_q", width, q),
            ("attn_k", width, kv),
            ("attn_v", width, kv),
            ("attn_output", q, width),
            ("ffn_gate", width, shape.feed_forward),
            ("ffn_up", width, shape.feed_forward),
            ("ffn_down", shape.feed_forward, width),
        ] {
            matrix(format!("blk.{layer}.{part}.weight"), columns, rows)?;
        }
    }
    let ones: Vec<u8> = (0..width).flat_map(|_| 1.0f32.to_le_bytes()).collect();
    let f32 = TensorType::named("f32").expect("listed");
    let norms =
        (0..shape.layers).flat_map(|l| ["attn_norm", "ffn_norm"].map(|n| format!("blk.{l}.{n}.weight")));
    for name in norms.chain(["output_norm.weight".to_string()]) {
        writer.tensor(name, &[width as u64], f32, ones.clone())?;
    }
    Ok(Gguf::from_bytes(writer.to_bytes()?.into())?)
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

fn metadata(shape: &Shape) -> Metadata {
    let mut m = Metadata::default();
    let number = |n: usize| Value::U32(n as u32);
    m.insert("general.architecture", Value::String("llama".into()));
    m.insert("general.name", Value::String(format!("synthetic {}", shape.name)));
    m.insert("llama.block_count", number(shape.layers));
    m.insert("llama.context_length", number(131_072));
    m.insert("llama.embedding_length", number(shape.embedding));
    m.insert("llama.feed_forward_length", number(shape.feed_forward));
    m.insert("llama.attention.head_count", number(shape.heads));
    m.insert("llama.attention.head_count_kv", number(shape.kv_heads));
    m.insert("llama.attention.key_length", number(shape.head_dim));
    m.insert("llama.attention.value_length", number(shape.head_dim));
    m.insert("llama.rope.freq_base", Value::F32(500_000.0));
    m.insert("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    m.insert("tokenizer.ggml.model", Value::String("gpt2".into()));
    m.insert("tokenizer.ggml.pre", Value::String("default".into()));
    let tokens: Vec<String> = (0..shape.vocabulary).map(|i| format!("t{i}")).collect();
    m.insert("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    m.insert("tokenizer.ggml.merges", Value::Array(Array::String(Vec::new())));
    m
}
