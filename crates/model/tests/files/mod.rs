//! The model zoo beside the repository: files, reference logits, and runs of them.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use safetensors::SafeTensors;
use std::path::PathBuf;
use std::sync::Arc;
use torque_backend::Backend;
use torque_gguf::{Gguf, Metadata, Tensor, Writer};
use torque_kv::{Overflow, Policy};
use torque_model::{ARCHS, Context, ContextOptions, Error, Model};

fn zoo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/zoo"))
}

pub fn open(name: &str) -> Gguf {
    Gguf::open(zoo().join(format!("{name}.gguf"))).expect("the zoo lies beside the repository")
}

/// The models of known architectures: (name, parsed file).
pub fn models() -> Vec<(String, Gguf)> {
    let mut models: Vec<_> = std::fs::read_dir(zoo())
        .expect("the zoo lies beside the repository")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_string(), Gguf::open(&path).unwrap()))
        .filter(|(_, gguf)| {
            let name = gguf.metadata().string("general.architecture").unwrap().unwrap();
            ARCHS.iter().any(|arch| arch.name == name)
        })
        .collect();
    models.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(models.len() >= 49, "only {} models found", models.len());
    models
}

/// What a correct reader makes of a model.
pub struct Reference {
    pub tokens: Vec<u32>,
    /// `[tokens, vocabulary]`.
    pub logits: Vec<f32>,
    /// Whether the model has experts.
    pub routed: bool,
    /// For each token how far, in logits, the closest choice of an expert is from another one; empty without experts.
    pub margins: Vec<f32>,
}

pub fn reference(name: &str) -> Reference {
    let bytes = std::fs::read(zoo().join(format!("{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words =
        |name: &str| -> Vec<[u8; 4]> { file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec() };
    let floats = |name: &str| -> Vec<f32> { words(name).into_iter().map(f32::from_le_bytes).collect() };
    let routed = file.names().contains(&"router_margin");
    Reference {
        tokens: words("tokens").into_iter().map(u32::from_le_bytes).collect(),
        logits: floats("logits_ref"),
        routed,
        margins: if routed { floats("router_margin") } else { Vec::new() },
    }
}

/// A policy whose short pages are sealed at once, so that short texts exercise sealing.
pub fn short_pages(k: &str, v: &str) -> Policy {
    Policy { page: 16, ..Policy::uniform(k, v).bare() }
}

pub fn load<B: Backend>(backend: &B, gguf: &Gguf) -> Arc<Model<B>> {
    Arc::new(Model::load(gguf, backend).unwrap())
}

/// A context of `sequences` sequences of the model's length. Batches hold up to 96 tokens.
pub fn context<B: Backend>(
    backend: &Arc<B>,
    model: &Arc<Model<B>>,
    policy: &Policy,
    sequences: usize,
) -> Context<B> {
    let options = ContextOptions {
        context: model.config.context,
        batch: 96,
        sequences,
        policy: policy.clone(),
        overflow: Overflow::Stop,
        prefix_bytes: 0,
    };
    Context::new(backend.clone(), model.clone(), options).unwrap()
}

/// A context of one sequence of `length` tokens that does this when it is full. Pages are of 16 tokens, the first is a sink,
/// and none are kept from being sealed.
pub fn full_context<B: Backend>(
    backend: &Arc<B>,
    model: &Arc<Model<B>>,
    policy: &Policy,
    length: usize,
    overflow: Overflow,
) -> Result<Context<B>, Error> {
    let policy = Policy { sink: 16, ..policy.clone() };
    let options =
        ContextOptions { context: length, batch: 16, sequences: 2, policy, overflow, prefix_bytes: 0 };
    Context::new(backend.clone(), model.clone(), options)
}

/// Feeds one sequence in chunks and returns the logits of every token.
pub fn feed<B: Backend>(context: &mut Context<B>, sequence: usize, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut logits = Vec::new();
    for chunk in tokens.chunks(chunk) {
        context.forward(&[(sequence, chunk)]).unwrap();
        logits.extend(last_logits(context, 0..chunk.len()));
    }
    logits
}

/// Logits of some rows of the last pass.
pub fn last_logits<B: Backend>(context: &mut Context<B>, rows: std::ops::Range<usize>) -> Vec<f32> {
    let mut logits = Vec::new();
    context.logits(&rows.collect::<Vec<_>>(), &mut logits);
    logits
}

/// Logits of every token of a fresh sequence fed in chunks.
pub fn run<B: Backend>(backend: B, gguf: &Gguf, policy: &Policy, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let backend = Arc::new(backend);
    let model = load(&*backend, gguf);
    feed(&mut context(&backend, &model, policy, 1), 0, tokens, chunk)
}

/// Logits of every token of fresh sequences fed at once, each with the same tokens.
pub fn run_together<B: Backend>(
    backend: B,
    gguf: &Gguf,
    policy: &Policy,
    tokens: &[u32],
    sequences: usize,
) -> Vec<Vec<f32>> {
    let (backend, batch) = (Arc::new(backend), sequences * tokens.len());
    let model = load(&*backend, gguf);
    let (context, policy) = (model.config.context, policy.clone());
    let options =
        ContextOptions { context, batch, sequences, policy, overflow: Overflow::Stop, prefix_bytes: 0 };
    let mut context = Context::new(backend, model, options).unwrap();
    context.forward(&(0..sequences).map(|sequence| (sequence, tokens)).collect::<Vec<_>>()).unwrap();
    let rows = |sequence: usize| sequence * tokens.len()..(sequence + 1) * tokens.len();
    (0..sequences).map(|sequence| last_logits(&mut context, rows(sequence))).collect()
}

/// The largest difference; infinite if anything is not a number.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d.is_nan() { f32::INFINITY } else { d.max(max) })
}

/// The mean over rows of the Kullback–Leibler divergence of the softmax of b from that of a.
pub fn mean_divergence(a: &[f32], b: &[f32], width: usize) -> f32 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let max = row.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
        let sum = row.iter().map(|x| f64::from(x - max).exp()).sum::<f64>().ln();
        row.iter().map(|x| f64::from(x - max) - sum).collect()
    };
    let rows = a.chunks(width).zip(b.chunks(width)).map(|(a, b)| {
        let pairs = log_softmax(a).into_iter().zip(log_softmax(b));
        pairs.map(|(a, b)| a.exp() * (a - b)).sum::<f64>()
    });
    (rows.sum::<f64>() / (a.len() / width) as f64) as f32
}

/// The file again with other metadata and tensors, as read from bytes.
pub fn rewrite(
    gguf: &Gguf,
    edit: impl FnOnce(&mut Metadata),
    tensors: impl FnOnce(&mut Vec<Tensor>),
) -> Result<Gguf, torque_gguf::Error> {
    let mut metadata = gguf.metadata().clone();
    edit(&mut metadata);
    let mut list = gguf.tensors().to_vec();
    tensors(&mut list);
    let mut writer = Writer::new(metadata)?;
    for tensor in list {
        writer.tensor(tensor.name, &tensor.shape, tensor.kind, tensor.data)?;
    }
    Gguf::from_bytes(writer.to_bytes()?.into())
}
