//! Every model of the zoo against its reference logits, on every backend in this process, with an exact
//! cache. The gates are those of the zoo's README.

mod files;

use bytes::Bytes;
use files::{max_difference, models, open, reference, run};
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
/// Activations rounded to 8 bits inside products, as the CPU backend does for quantised models where
/// whole-number products are instructions.
const ROUNDED_GATE: f32 = 1.0;

/// Whether a backend may round activations for this model.
fn rounds<B: Backend>(backend: &B, name: &str) -> bool {
    backend.device() == "avx512" && name.contains("-q-")
}

/// Demands that the difference `difference(name, file)` finds in every model is below the gate.
fn for_every_model<B: Backend>(
    backend: impl Fn() -> B,
    gate: f32,
    difference: impl Fn(&str, &torque_gguf::Gguf) -> f32,
) {
    let mut wrong = Vec::new();
    for (name, gguf) in models() {
        let gate = if rounds(&backend(), &name) { ROUNDED_GATE } else { gate };
        let difference = difference(&name, &gguf);
        println!("{name}: {difference:.1e}");
        if difference >= gate {
            wrong.push(format!("{name}: {difference:.1e} ≥ {gate:.0e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn agrees_with_the_reference<B: Backend>(backend: impl Fn() -> B) {
    for_every_model(&backend, REFERENCE_GATE, |name, gguf| {
        let reference = reference(name);
        let logits = run(backend(), gguf, &Policy::uniform("f32", "f32"), &reference.tokens, 96);
        max_difference(&logits, &reference.logits)
    });
}

/// Token by token and in chunks that fit nothing, against one batch; pages seal on the way.
fn chunks_do_not_matter<B: Backend>(backend: impl Fn() -> B) {
    for_every_model(&backend, CHUNK_GATE, |name, gguf| {
        let tokens = reference(name).tokens;
        let run = |chunk| run(backend(), gguf, &files::short_pages("f32", "f32"), &tokens, chunk);
        let whole = run(tokens.len());
        [1, 7, 33].map(|chunk| max_difference(&whole, &run(chunk))).into_iter().fold(0.0, f32::max)
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

/// A dense model, a routed one, and one of quantised weights.
const SAMPLE: [&str; 3] = ["gemma3", "qwen3moe", "llama-q-Q4_K_M"];

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    for level in Level::all_available() {
        for name in SAMPLE {
            let (gguf, reference) = (open(name), reference(name));
            for chunk in [96, 1] {
                let backend = Cpu::new(Some(2), Some(level.name())).unwrap();
                let gate = if rounds(&backend, name) { ROUNDED_GATE } else { REFERENCE_GATE };
                let logits = run(backend, &gguf, &Policy::uniform("f32", "f32"), &reference.tokens, chunk);
                let difference = max_difference(&logits, &reference.logits);
                assert!(difference < gate, "{name} on {}, chunks of {chunk}: {difference:.1e}", level.name());
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
    let cases: [(&str, &str, Edit); 4] = [
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
