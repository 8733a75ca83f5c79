//! Every model of the zoo against its reference logits, on every backend in this process, with an exact
//! cache. The gates are those of the zoo's README.

mod files;

use bytes::Bytes;
use files::{max_difference, mean_divergence, models, open, reference, run};
use torque_backend::{Backend, Scalar};
use torque_cpu::Cpu;
use torque_gguf::Tensor;
use torque_kv::Policy;
use torque_simd::Level;

fn cpu() -> Cpu {
    Cpu::new(Some(2), None).unwrap()
}

/// Float activations and KV, against `logits_ref`.
const REFERENCE_GATE: f32 = 2e-4;
/// The same tokens in other chunks.
const CHUNK_GATE: f32 = 1e-4;
/// Activations rounded to 8 bits inside products, as the CPU backend does for quantised weights: for every logit, and for the mean divergence. Rounding may choose
/// another expert, which changes a row: routed models are judged by their divergence alone.
const ROUNDED_GATES: [f32; 2] = [1.0, 5e-3];

/// Whether a backend may round activations for this model.
fn rounds<B: Backend>(backend: &B, name: &str) -> bool {
    backend.name() == "cpu" && (name.contains("-q-") || name == "gpt-oss")
}

/// What is wrong with a run, by the gate for float arithmetic or those for rounded activations.
fn judge<B: Backend>(backend: &B, name: &str, gate: f32, expected: &[f32], found: &[f32]) -> Option<String> {
    let reference = reference(name);
    let difference = max_difference(expected, found);
    if !rounds(backend, name) {
        println!("{name}: {difference:.1e}");
        return (difference >= gate).then(|| format!("{name}: {difference:.1e} ≥ {gate:.0e}"));
    }
    let divergence = mean_divergence(expected, found, expected.len() / reference.tokens.len());
    println!("{name}: {difference:.1e}, divergence {divergence:.1e}");
    let wrong = divergence >= ROUNDED_GATES[1] || difference >= ROUNDED_GATES[0] && !reference.routed;
    wrong.then(|| format!("{name}: {difference:.1e}, divergence {divergence:.1e}, with rounded activations"))
}

/// Demands that logits, which `runs(name, file)` gives in pairs, are near each other in every model.
fn for_every_model<B: Backend>(
    backend: impl Fn() -> B,
    gate: f32,
    runs: impl Fn(&str, &torque_gguf::Gguf) -> Vec<[Vec<f32>; 2]>,
) {
    let mut wrong = Vec::new();
    for (name, gguf) in models() {
        for [expected, found] in runs(&name, &gguf) {
            wrong.extend(judge(&backend(), &name, gate, &expected, &found));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn agrees_with_the_reference<B: Backend>(backend: impl Fn() -> B) {
    for_every_model(&backend, REFERENCE_GATE, |name, gguf| {
        let reference = reference(name);
        let logits = run(backend(), gguf, &Policy::uniform("f32", "f32"), &reference.tokens, 96);
        vec![[reference.logits, logits]]
    });
}

/// Two sequences in a pass, which is as many tokens as products in tiles want.
#[test]
fn passes_of_many_tokens_agree_with_the_reference() {
    println!("{}", cpu().device());
    for_every_model(cpu, REFERENCE_GATE, |name, gguf| {
        let reference = reference(name);
        let logits = files::run_together(cpu(), gguf, &Policy::uniform("f32", "f32"), &reference.tokens, 2);
        logits.into_iter().map(|logits| [reference.logits.clone(), logits]).collect()
    });
}

/// Token by token and in chunks that fit nothing, against one batch; pages seal on the way.
fn chunks_do_not_matter<B: Backend>(backend: impl Fn() -> B) {
    for_every_model(&backend, CHUNK_GATE, |name, gguf| {
        let tokens = reference(name).tokens;
        let run = |chunk| run(backend(), gguf, &files::short_pages("f32", "f32"), &tokens, chunk);
        let whole = run(tokens.len());
        [1, 7, 33].map(|chunk| [whole.clone(), run(chunk)]).into()
    });
}

#[test]
fn scalar_runs_agree_with_the_reference() {
    agrees_with_the_reference(|| Scalar);
}

#[test]
fn cpu_runs_agree_with_the_reference() {
    agrees_with_the_reference(cpu);
}

#[test]
fn chunks_do_not_matter_on_scalar() {
    chunks_do_not_matter(|| Scalar);
}

#[test]
fn chunks_do_not_matter_on_cpu() {
    chunks_do_not_matter(cpu);
}

/// A dense model, a routed one, one of quantised weights, and one of every other mixer.
const SAMPLE: [&str; 7] =
    ["gemma3", "qwen3moe", "llama-q-Q4_K_M", "qwen35", "gemma4-ple", "deepseek2", "gpt-oss"];

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    for level in Level::all_available() {
        for name in SAMPLE {
            let (gguf, reference) = (open(name), reference(name));
            for chunk in [96, 1] {
                let backend = Cpu::new(Some(2), Some(level.name())).unwrap();
                let logits = run(backend, &gguf, &Policy::uniform("f32", "f32"), &reference.tokens, chunk);
                let backend = Cpu::new(Some(1), Some(level.name())).unwrap();
                let wrong = judge(&backend, name, REFERENCE_GATE, &reference.logits, &logits);
                assert!(wrong.is_none(), "{} in chunks of {chunk}: {wrong:?}", level.name());
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for name in SAMPLE {
        let (gguf, tokens) = (open(name), reference(name).tokens);
        for chunk in [96, 1] {
            let run = |threads| {
                run(
                    Cpu::new(Some(threads), None).unwrap(),
                    &gguf,
                    &files::short_pages("turbo3", "q8_0"),
                    &tokens,
                    chunk,
                )
            };
            let one = run(1);
            for threads in [2, 3] {
                assert!(one == run(threads), "{name} on {threads} threads, chunks of {chunk}");
            }
        }
    }
}

/// Takes the tensor of a name out of a list.
fn take(list: &mut Vec<Tensor>, name: &str) -> Tensor {
    let index = list.iter().position(|t| t.name == name).unwrap_or_else(|| panic!("no tensor `{name}`"));
    list.remove(index)
}

/// The rows of tensors one after another, for each of `outer` experts.
fn stack(name: String, parts: &[Tensor], outer: u64) -> Tensor {
    let [columns, ..] = parts[0].shape[..] else { panic!("`{name}` has no rows") };
    let rows: u64 = parts.iter().map(|t| t.shape[1]).sum();
    let mut data = Vec::new();
    for index in 0..outer as usize {
        for part in parts {
            let size = part.data.len() / outer as usize;
            data.extend_from_slice(&part.data[index * size..][..size]);
        }
    }
    let shape = [columns, rows].into_iter().chain((outer > 1).then_some(outer)).collect();
    Tensor { name, shape, kind: parts[0].kind, data: data.into() }
}

#[test]
fn other_layouts_of_the_same_weights_are_the_same_model() {
    type Edit = fn(&mut Vec<Tensor>);
    let cases: [(&str, &str, Edit); 5] = [
        ("fused attention", "llama-hd64", |list| {
            for layer in 0..3 {
                let parts =
                    ["attn_q", "attn_k", "attn_v"].map(|p| take(list, &format!("blk.{layer}.{p}.weight")));
                list.push(stack(format!("blk.{layer}.attn_qkv.weight"), &parts, 1));
            }
        }),
        ("fused feed-forward", "llama-hd64", |list| {
            for layer in 0..3 {
                let parts = ["ffn_gate", "ffn_up"].map(|p| take(list, &format!("blk.{layer}.{p}.weight")));
                list.push(stack(format!("blk.{layer}.ffn_up.weight"), &parts, 1));
            }
        }),
        ("fused experts", "llama-moe", |list| {
            for layer in 0..2 {
                let parts =
                    ["ffn_gate_exps", "ffn_up_exps"].map(|p| take(list, &format!("blk.{layer}.{p}.weight")));
                list.push(stack(format!("blk.{layer}.ffn_gate_up_exps.weight"), &parts, 4));
            }
        }),
        ("a tensor an expert", "llama-moe", |list| {
            for (layer, part) in [0, 1].into_iter().flat_map(|l| ["gate", "up", "down"].map(|p| (l, p))) {
                let all = take(list, &format!("blk.{layer}.ffn_{part}_exps.weight"));
                let size = all.data.len() / 4;
                list.extend((0..4).map(|e| Tensor {
                    name: format!("blk.{layer}.ffn_{part}.{e}.weight"),
                    shape: all.shape[..2].to_vec(),
                    kind: all.kind,
                    data: Bytes::slice(&all.data, e * size..(e + 1) * size),
                }));
            }
        }),
        ("DeltaNet projections by key head", "qwen3next", |list| {
            // Two key heads of 64 with two value heads of 64 each, in three layers of four.
            for layer in 0..3 {
                let [qkv, z] =
                    ["attn_qkv", "attn_gate"].map(|p| take(list, &format!("blk.{layer}.{p}.weight")));
                let row = qkv.data.len() / qkv.shape[1] as usize;
                let rows =
                    |of: &Tensor, first: usize, n: usize| of.data.slice(first * row..(first + n) * row);
                let head = |g: usize| {
                    let (q, k, v) = (rows(&qkv, 64 * g, 64), rows(&qkv, 128 + 64 * g, 64), 256 + 128 * g);
                    [q, k, rows(&qkv, v, 128), rows(&z, 128 * g, 128)].concat()
                };
                list.push(Tensor {
                    name: format!("blk.{layer}.ssm_in.weight"),
                    shape: vec![qkv.shape[0], qkv.shape[1] + z.shape[1]],
                    kind: qkv.kind,
                    data: [head(0), head(1)].concat().into(),
                });
            }
        }),
    ];
    for (what, name, edit) in cases {
        let (gguf, reference) = (open(name), reference(name));
        let other = files::rewrite(&gguf, |_| {}, edit).unwrap();
        let [expected, found] = [&gguf, &other]
            .map(|gguf| run(cpu(), gguf, &Policy::uniform("f32", "f32"), &reference.tokens, 96));
        assert!(expected == found, "{what}");
        let active = [&gguf, &other].map(|gguf| files::load(&Scalar, gguf).active_bytes);
        assert_eq!(active[0], active[1], "{what}");
    }
}
