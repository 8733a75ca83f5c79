//! Every model of the zoo against its reference logits, on the scalar backend.

use safetensors::SafeTensors;
use std::path::PathBuf;
use std::sync::Arc;
use torque_backend::Scalar;
use torque_gguf::Gguf;
use torque_kv::Policy;
use torque_model::{ARCHS, Context, ContextOptions, Model};

fn zoo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/zoo"))
}

/// The models of known architectures: (name, parsed file).
fn models() -> Vec<(String, Gguf)> {
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
    assert!(models.len() >= 29, "only {} models found", models.len());
    models
}

struct Reference {
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

fn reference(name: &str) -> Reference {
    let bytes = std::fs::read(zoo().join(format!("{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> { file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec() };
    Reference {
        tokens: words("tokens").into_iter().map(u32::from_le_bytes).collect(),
        logits: words("logits_ref").into_iter().map(f32::from_le_bytes).collect(),
    }
}

/// Logits of every token, fed in chunks of `chunk`.
fn run(gguf: &Gguf, policy: Policy, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let backend = Arc::new(Scalar);
    let model = Arc::new(Model::load(gguf, &*backend).unwrap());
    let context = model.config.context;
    let options = ContextOptions { context, batch: chunk, sequences: 1, policy };
    let mut context = Context::new(backend, model, options).unwrap();
    let mut logits = Vec::new();
    for chunk in tokens.chunks(chunk) {
        context.forward(&[(0, chunk)]).unwrap();
        let mut rows = Vec::new();
        context.logits(&(0..chunk.len()).collect::<Vec<_>>(), &mut rows);
        logits.extend(rows);
    }
    logits
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn float_runs_agree_with_the_reference() {
    let mut wrong = Vec::new();
    for (name, gguf) in models() {
        let reference = reference(&name);
        let logits = run(&gguf, Policy::uniform("f32", "f32"), &reference.tokens, 96);
        let difference = max_difference(&logits, &reference.logits);
        println!("{name}: {difference:.1e}");
        if difference.is_nan() || difference >= 2e-4 {
            wrong.push(format!("{name}: {difference:.1e}"));
        }
    }
    assert!(wrong.is_empty(), "max difference 2e-4 exceeded: {wrong:#?}");
}
