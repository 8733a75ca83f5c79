//! Model files that are wrong: every message names the key or tensor, and nothing panics.

mod files;

use files::{open, rewrite};
use proptest::prelude::*;
use std::sync::Arc;
use torque_backend::Scalar;
use torque_gguf::{Array, Gguf, Metadata, Tensor, TensorType, Value};
use torque_kv::{Overflow, Policy};
use torque_model::{ARCHS, Context, ContextOptions, Model};

/// The message that loading a file gives, `None` if it loads.
fn load(gguf: &Gguf) -> Option<String> {
    Model::load(gguf, &Scalar).err().map(|error| error.to_string())
}

/// Edits the metadata of a zoo file and loads it.
fn with_metadata(name: &str, edit: impl FnOnce(&mut Metadata)) -> Option<String> {
    let gguf = rewrite(&open(name), edit, |_| {}).expect("metadata of any kind is a GGUF file");
    load(&gguf)
}

/// Edits the tensors of a zoo file and loads it.
fn with_tensors(name: &str, edit: impl FnOnce(&mut Vec<Tensor>)) -> Option<String> {
    let gguf = rewrite(&open(name), |_| {}, edit).expect("tensors of any kind are a GGUF file");
    load(&gguf)
}

#[track_caller]
fn check(what: &str, found: Option<String>, parts: &[&str]) {
    let found = found.unwrap_or_else(|| panic!("{what}: loaded"));
    for part in parts {
        assert!(found.contains(part), "{what}: expected `{part}` in: {found}");
    }
}

fn architecture(gguf: &Gguf) -> String {
    gguf.metadata().string("general.architecture").unwrap().unwrap().to_string()
}

/// One file of every architecture, and more where they differ in what they say.
const FILES: [&str; 21] = [
    "llama-hd64",
    "llama-moe",
    "mistral3",
    "qwen2-kbias",
    "qwen3moe",
    "gemma2",
    "gemma3",
    "phi3-longrope",
    "phi3-phi4",
    "olmo2",
    "smollm3",
    "qwen3next",
    "qwen35",
    "qwen35moe",
    "gemma4-dense",
    "gemma4-ple",
    "gemma4-moe",
    "gpt-oss",
    "deepseek2",
    "glm4",
    "gpt2",
];

/// Keys that every architecture needs, without its prefix.
const REQUIRED: [&str; 6] = [
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "context_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
];

#[test]
fn every_file_survives_rewriting() {
    for name in FILES {
        assert_eq!(load(&rewrite(&open(name), |_| {}, |_| {}).unwrap()), None, "{name}");
    }
}

#[test]
fn missing_keys_are_named() {
    for name in FILES {
        let prefix = architecture(&open(name));
        for key in REQUIRED {
            let key = format!("{prefix}.{key}");
            let found = with_metadata(name, |m| drop(m.remove(&key)));
            if name == "deepseek2" && key.ends_with("feed_forward_length") {
                continue; // Most of its layers are routed; a dense one finds its width wrong.
            }
            let layer_norm = name == "gpt2" && key.ends_with("epsilon");
            let all_routed = ["qwen3moe", "qwen3next", "qwen35moe", "gpt-oss"].contains(&name);
            if found.is_none() && (layer_norm || all_routed && key.ends_with("feed_forward_length")) {
                continue; // It has a key of another name: of layer norms, or of the experts.
            }
            check(name, found, &[&format!("`{key}` is missing")]);
        }
        check(
            name,
            with_metadata(name, |m| drop(m.remove("general.architecture"))),
            &["`general.architecture`"],
        );
        let found = with_metadata(name, |m| {
            m.remove("tokenizer.ggml.tokens");
            m.remove(&format!("{prefix}.vocab_size"));
        });
        check(name, found, &["`tokenizer.ggml.tokens` is missing"]);
    }
}

/// (file, key without prefix, value, what the message says beside the key).
fn absurd() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let n = Value::U32;
    let text = || Value::String("six".into());
    let mut cases: Vec<_> = REQUIRED[..5]
        .iter()
        .flat_map(|&key| {
            let float = Value::F32(2.5);
            [(n(0), "0; expected 1 to "), (text(), "string"), (float, "f32"), (Value::I32(-1), "i32 -1")]
                .map(|(value, part)| ("llama-hd64", key, value, part))
        })
        .collect();
    let huge = || n(u32::MAX);
    cases.extend([
        ("llama-hd64", "block_count", huge(), "expected 1 to 4096"),
        ("llama-hd64", "block_count", Value::U64(1 << 40), "expected u32"),
        ("llama-hd64", "embedding_length", huge(), "expected 1 to 1048576"),
        ("llama-hd64", "feed_forward_length", huge(), "expected 1 to 1048576"),
        (
            "llama-hd64",
            "feed_forward_length",
            Value::Array(Array::U32(vec![96; 2])),
            "array of 2; expected 3",
        ),
        ("llama-hd64", "feed_forward_length", Value::Array(Array::U32(vec![])), "array of 0; expected 3"),
        ("llama-hd64", "feed_forward_length", Value::Array(Array::F32(vec![96.0; 3])), "array of f32"),
        ("llama-hd64", "attention.head_count", huge(), "expected 1 to 4096"),
        ("llama-hd64", "attention.head_count_kv", huge(), "expected 1 to 4096"),
        ("llama-hd64", "attention.head_count_kv", n(0), "expected 1 to 4096"),
        ("llama-hd64", "attention.head_count_kv", n(3), "a divisor of the 4 heads"),
        ("llama-hd64", "attention.head_count_kv", Value::Array(Array::U32(vec![2, 2, 3])), "a divisor"),
        ("llama-hd64", "attention.key_length", n(0), "expected 1 to 8192"),
        ("llama-hd64", "attention.value_length", huge(), "expected 1 to 8192"),
        ("llama-hd64", "attention.key_length", text(), "string"),
        ("llama-hd64", "attention.layer_norm_rms_epsilon", text(), "string"),
        ("llama-hd64", "attention.layer_norm_rms_epsilon", n(1), "expected f32"),
        ("llama-hd64", "attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "finite"),
        ("llama-hd64", "attention.layer_norm_rms_epsilon", Value::F32(-1.0), "expected"),
        ("llama-hd64", "nextn_predict_layers", n(3), "less than the 3 blocks"),
        ("llama-hd64", "nextn_predict_layers", huge(), "less than the 3 blocks"),
        ("llama-hd64", "rope.dimension_count", n(0), "an even number up to 64"),
        ("llama-hd64", "rope.dimension_count", n(65), "an even number up to 64"),
        ("llama-hd64", "rope.dimension_count", n(128), "an even number up to 64"),
        ("llama-hd64", "rope.freq_base", Value::F32(0.0), "a positive number"),
        ("llama-hd64", "rope.freq_base", Value::F32(-1.0), "a positive number"),
        ("llama-hd64", "rope.freq_base", Value::F32(f32::INFINITY), "finite"),
        ("llama-hd64", "rope.scaling.type", Value::String("magic".into()), "`magic`; expected none, linear"),
        ("llama-hd64", "rope.scaling.type", n(2), "string"),
        ("llama-hd64", "vocab_size", n(0), "expected 1 to "),
        ("llama-hd64", "vocab_size", huge(), "expected 1 to "),
        ("mistral3", "rope.scaling.factor", Value::F32(0.0), "a positive number"),
        ("mistral3", "rope.scaling.factor", Value::F32(f32::NAN), "finite"),
        ("mistral3", "rope.scaling.yarn_beta_fast", Value::F32(f32::NAN), "finite"),
        ("mistral3", "rope.scaling.original_context_length", n(0), ""),
        ("mistral3", "attention.temperature_scale", Value::F32(f32::INFINITY), "finite"),
        ("llama-moe", "expert_count", huge(), "expected 1 to 65536"),
        ("llama-moe", "expert_used_count", n(0), "expected 1 to 4"),
        ("llama-moe", "expert_used_count", n(5), "expected 1 to 4"),
        ("llama-moe", "expert_feed_forward_length", n(0), "expected 1 to 1048576"),
        ("llama-moe", "expert_weights_scale", Value::F32(f32::NAN), "finite"),
        ("qwen3moe", "expert_used_count", huge(), "expected 1 to 8"),
        ("gemma2", "attention.sliding_window", n(0), "expected 1 to "),
        ("gemma2", "attention.sliding_window", text(), "string"),
        ("gemma2", "attn_logit_softcapping", Value::F32(f32::NAN), "finite"),
        ("gemma2", "final_logit_softcapping", n(30), "expected f32"),
        (
            "gemma3",
            "attention.sliding_window_pattern",
            Value::Array(Array::Bool(vec![true; 6])),
            "array of 6; expected 7",
        ),
        (
            "gemma3",
            "attention.sliding_window_pattern",
            Value::Array(Array::F32(vec![1.0; 7])),
            "array of f32",
        ),
        ("gemma3", "rope.freq_base_swa", Value::F32(f32::NAN), "finite"),
        ("gemma3", "rope.freq_base_swa", Value::F32(-2.0), "a positive number"),
        ("gemma4-ple", "attention.shared_kv_layers", n(6), "less than the 6 layers"),
        ("gemma4-ple", "attention.shared_kv_layers", n(5), "an earlier layer like layer"),
        ("gemma4-ple", "embedding_length_per_layer_input", huge(), "expected 1 to 1048576"),
        ("gemma4-dense", "attention.key_length_swa", n(0), "expected 1 to 8192"),
        ("gemma4-dense", "rope.dimension_count_swa", n(3), "an even number up to 64"),
        ("gpt-oss", "attention.sliding_window", n(0), "expected 1 to "),
        ("qwen35", "full_attention_interval", n(0), "expected 1 to 4096"),
        ("qwen35", "ssm.conv_kernel", n(0), "expected 1 to 64"),
        ("qwen35", "ssm.state_size", n(0), "expected 1 to 8192"),
        ("qwen35", "ssm.group_count", huge(), "expected 1 to 4096"),
        ("qwen35", "ssm.inner_size", n(193), "a multiple of the 3 value heads"),
        ("qwen3next", "ssm.time_step_rank", n(3), "a multiple of the 2 key heads"),
        ("deepseek2", "attention.kv_lora_rank", n(0), "expected 1 to 8192"),
        ("deepseek2", "attention.key_length_mla", n(4), "more than the "),
        ("deepseek2", "attention.value_length_mla", huge(), "expected 1 to 8192"),
        ("deepseek2", "expert_gating_func", n(9), "1, 2 or 3"),
        ("deepseek2", "expert_group_count", n(3), "a divisor of the 8 experts"),
        ("deepseek2", "expert_group_used_count", huge(), "expected 1 to "),
    ]);
    cases
}

#[test]
fn absurd_keys_are_named() {
    for (name, key, value, part) in absurd() {
        let key = format!("{}.{key}", architecture(&open(name)));
        let what = format!("{name} with {key} = {value:?}");
        check(&what, with_metadata(name, |m| drop(m.insert(&key, value))), &[&format!("`{key}`"), part]);
    }
}

#[test]
fn scaling_needs_its_numbers() {
    for (kind, key) in [
        ("linear", "rope.scaling.factor"),
        ("yarn", "rope.scaling.factor"),
        ("yarn", "rope.scaling.original_context_length"),
    ] {
        let found = with_metadata("llama-hd64", |m| {
            m.insert("llama.rope.scaling.type", kind);
            m.insert("llama.rope.scaling.factor", 4.0f32);
            m.insert("llama.rope.scaling.original_context_length", 64u32);
            m.remove(&format!("llama.{key}"));
        });
        check(kind, found, &[&format!("`llama.{key}` is missing")]);
    }
}

#[test]
fn numbers_that_disagree_with_the_tensors_name_a_tensor() {
    for (name, key, value, parts) in [
        ("llama-hd64", "block_count", 4, ["`blk.3.", "missing"]),
        ("llama-hd64", "embedding_length", 128, ["`token_embd.weight`", "[96, 400]; expected [128, 400]"]),
        ("llama-hd64", "vocab_size", 401, ["`token_embd.weight`", "expected [96, 401]"]),
        ("llama-hd64", "feed_forward_length", 1 << 20, ["`blk.0.ffn_gate.weight`", "expected [96, 1048576]"]),
        ("llama-hd64", "attention.head_count", 8, ["`blk.0.attn_q.weight`", "expected [96, 512]"]),
        ("llama-hd64", "attention.key_length", 128, ["`blk.0.attn_q.weight`", "expected [96, 512]"]),
        ("llama-hd64", "attention.value_length", 48, ["`blk.0.attn_v.weight`", "expected [96, 96]"]),
        ("llama-moe", "expert_count", 5, ["`blk.0.ffn_", "5"]),
        ("llama-moe", "expert_count", 3, ["`blk.0.ffn_", "3"]),
        ("llama-moe", "expert_feed_forward_length", 7, ["`blk.0.ffn_gate_exps.weight`", "7"]),
        ("qwen3moe", "expert_count", 65_536, ["`blk.0.ffn_", "65536"]),
    ] {
        let key = format!("{}.{key}", architecture(&open(name)));
        check(
            &format!("{name} with {key} = {value}"),
            with_metadata(name, |m| drop(m.insert(&key, value))),
            &parts,
        );
    }
}

/// Tensors that an architecture's files have or have not.
fn optional(arch: &str, tensor: &str) -> bool {
    let any = [
        "output.weight",
        "rope_freqs.weight",
        "rope_factors_long.weight",
        "rope_factors_short.weight",
        "layer_output_scale.weight",
    ];
    let bias = match arch {
        "qwen2" => false,
        "gpt2" => !tensor.ends_with("norm.bias"),
        _ => !tensor.ends_with("ssm_dt.bias"),
    };
    // Values may come from the keys, and layers may read the cache of another.
    let of_other =
        arch == "gemma4" && ["attn_v.", "attn_k.", "attn_k_norm."].iter().any(|n| tensor.contains(n));
    any.iter().any(|name| tensor.ends_with(name)) || tensor.ends_with(".bias") && bias || of_other
}

#[test]
fn missing_tensors_are_named() {
    for name in FILES {
        let gguf = open(name);
        for tensor in gguf.tensors() {
            let found = with_tensors(name, |list| list.retain(|t| t.name != tensor.name));
            let optional = optional(&architecture(&gguf), &tensor.name);
            let Some(found) = found else {
                assert!(optional, "{name} loads without `{}`", tensor.name);
                continue;
            };
            // Where parts may be fused or layers dense, what is missing is another.
            let instead = [
                ("attn_qkv", "attn_q"),
                ("ssm_ba", "ssm_beta"),
                ("ffn_gate_shexp", "ffn_up_shexp"),
                ("ffn_gate_up_exps", "ffn_gate_exps"),
                ("ffn_gate", "ffn_up"),
                ("ffn_gate_inp", "ffn_"),
            ];
            let instead = instead.iter().find(|(part, _)| tensor.name.ends_with(&format!(".{part}.weight")));
            match instead.filter(|(part, _)| {
                *part != "ffn_gate_inp" || ["llama-moe", "gemma4-moe", "deepseek2"].contains(&name)
            }) {
                Some((part, other)) => check(
                    name,
                    Some(found),
                    &[tensor.name.strip_suffix(&format!("{part}.weight")).unwrap(), other],
                ),
                None => check(name, Some(found), &[&format!("tensor `{}` is missing", tensor.name)]),
            }
        }
    }
}

#[test]
fn wrong_shapes_say_what_was_expected() {
    for name in FILES {
        let gguf = open(name);
        for (i, tensor) in gguf.tensors().iter().enumerate() {
            // Of layers that read another's cache, keys and values are not looked at.
            let shares = name == "gemma4-ple"
                && ["blk.3.", "blk.4.", "blk.5."].iter().any(|b| tensor.name.starts_with(b));
            let learned = tensor.name == "position_embd.weight"; // As long as it is.
            if learned || shares && ["attn_k", "attn_v"].iter().any(|part| tensor.name.contains(part)) {
                continue;
            }
            let mut found_shape = tensor.shape.clone();
            // One row, or one value of a vector, more.
            *found_shape.last_mut().unwrap() += 1;
            let found = with_tensors(name, |list| {
                let bytes =
                    tensor.kind.row_bytes(found_shape[0]).unwrap() * found_shape[1..].iter().product::<u64>();
                list[i].data = vec![0; bytes as usize].into();
                list[i].shape = found_shape.clone();
            });
            // OLMo's are as wide as all heads; most are as wide as one, which is what the message says.
            let expected =
                match name == "olmo2" && ["q_norm", "k_norm"].iter().any(|n| tensor.name.contains(n)) {
                    true => format!("shape {found_shape:?}; expected [32]"),
                    false => format!("shape {found_shape:?}; expected {:?}", tensor.shape),
                };
            check(name, found, &[&format!("tensor `{}`", tensor.name), &expected]);
        }
    }
}

#[test]
fn a_tensor_without_dimensions_is_one_value() {
    let found = with_metadata_and_tensors(
        "llama-hd64",
        |m| drop(m.insert("llama.embedding_length", 1u32)),
        |list| {
            // Vectors become single values, and the tables as narrow as that.
            for tensor in list.iter_mut().filter(|t| t.shape.len() == 1 || !t.name.starts_with("blk.")) {
                let values = tensor.shape.get(1).copied();
                tensor.shape = values.map_or(vec![], |n| vec![1, n]);
                tensor.kind = TensorType::named("f32").unwrap();
                tensor.data = vec![0; 4 * values.unwrap_or(1) as usize].into();
            }
        },
    );
    check("a width of 1", found, &["tensor `blk.0.attn_q.weight` has shape [96, 256]; expected [1, 256]"]);
}

fn with_metadata_and_tensors(
    name: &str,
    edit: impl FnOnce(&mut Metadata),
    tensors: impl FnOnce(&mut Vec<Tensor>),
) -> Option<String> {
    load(&rewrite(&open(name), edit, tensors).unwrap())
}

#[test]
fn unusable_types_are_named_with_the_usable_ones() {
    let gguf = open("llama-q-Q4_0");
    for kind in ["iq2_xxs", "iq1_s", "i32", "f64"] {
        for name in
            ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output_norm.weight"]
        {
            let kind = TensorType::named(kind).unwrap();
            let shape = &gguf.tensor(name).unwrap().shape;
            let bytes = kind.row_bytes(shape[0]).unwrap() * shape[1..].iter().product::<u64>();
            let found = with_tensors("llama-q-Q4_0", |list| {
                let tensor = list.iter_mut().find(|t| t.name == name).unwrap();
                (tensor.kind, tensor.data) = (kind, vec![0; bytes as usize].into());
            });
            let parts =
                [&format!("tensor `{name}` has type {}", kind.name()), "usable are", "q4_0", "f16", "tq3_1s"];
            check(name, found, &parts);
        }
    }
}

#[test]
fn unknown_architectures_are_told_the_known() {
    let found = with_metadata("llama-hd64", |m| drop(m.insert("general.architecture", "bert")));
    let known: Vec<_> = ARCHS.iter().map(|arch| arch.name).collect();
    check("bert", found, &["`bert` is not known", &known.join(" ")]);
}

#[test]
fn tensors_that_would_change_the_result_are_refused() {
    let one = |name: &str| Tensor {
        name: name.into(),
        shape: vec![1],
        kind: TensorType::named("f32").unwrap(),
        data: vec![0; 4].into(),
    };
    for name in
        ["blk.0.attn_q.scale", "blk.2.attn_gate.weight", "blk.1.ffn_gate_inp.weight", "blk.0.anything"]
    {
        let found = with_tensors("llama-hd64", |list| list.push(one(name)));
        check(name, found, &[&format!("tensor `{name}`"), "`llama`"]);
    }
    // Blocks past the last layer, and tensors of no block, are listed.
    let names = ["blk.3.nextn.eh_proj.weight", "blk.x.y", "mm.patch.weight"];
    let gguf = rewrite(&open("llama-hd64"), |_| {}, |list| list.extend(names.map(one))).unwrap();
    assert_eq!(Model::load(&gguf, &Scalar).unwrap().unused, names);
}

#[test]
fn experts_must_be_all_there() {
    let check_router = |experts: u64| {
        let found = with_tensors("llama-moe", |list| {
            let tensor = list.iter_mut().find(|t| t.name == "blk.1.ffn_down_exps.weight").unwrap();
            let row = tensor.kind.row_bytes(tensor.shape[0]).unwrap();
            tensor.shape[2] = experts;
            tensor.data = vec![0; (row * tensor.shape[1] * experts) as usize].into();
        });
        let expected = format!("{experts}]; expected");
        check("llama-moe", found, &["`blk.1.ffn_down_exps.weight`", &expected]);
    };
    check_router(3);
    check_router(8);
}

/// Loads a file and, where that succeeds, runs two passes: what loads must run.
fn load_and_run(gguf: &Gguf) {
    let backend = Arc::new(Scalar);
    let Ok(model) = Model::load(gguf, &*backend) else { return };
    let options = ContextOptions {
        context: 8,
        batch: 2,
        sequences: 1,
        policy: Policy::uniform("q8_0", "turbo3").bare(),
        overflow: Overflow::Stop,
        prefix_bytes: 0,
    };
    let Ok(mut context) = Context::new(backend, Arc::new(model), options) else { return };
    context.forward(&[(0, &[1, 2])]).unwrap();
    context.forward(&[(0, &[3])]).unwrap();
    context.logits(&[0], &mut Vec::new());
}

/// Numbers that break code: edges, and small ones that fit some shapes.
fn number() -> impl Strategy<Value = Value> {
    let edges = [0, 1, 2, 3, 4, 16, 17, 63, 64, 65, 96, 255, 4096, 1 << 20, 1 << 31, u32::MAX];
    prop_oneof![
        proptest::sample::select(edges.to_vec()).prop_map(Value::U32),
        (0u32..300).prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
    ]
}

fn float() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<f32>().prop_map(Value::F32),
        (-2.0f32..2.0).prop_map(Value::F32),
        proptest::sample::select(vec![0.0, -0.0, f32::MIN_POSITIVE, 1e-30, 1e30, f32::NAN, f32::INFINITY])
            .prop_map(Value::F32),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_metadata_makes_it_panic(
        file in 0..FILES.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), number(), float()), 1..4),
    ) {
        let gguf = open(FILES[file]);
        let prefix = architecture(&gguf);
        let keys: Vec<&str> = gguf.metadata().iter().map(|(key, _)| key).filter(|key| key.starts_with(&prefix)).collect();
        let edit = |m: &mut Metadata| for (index, number, float) in &edits {
            let key = *index.get(&keys);
            let value = match m.get(key).expect("a key of this file") {
                Value::F32(_) | Value::F64(_) => float.clone(),
                _ => number.clone(),
            };
            m.insert(key, value);
        };
        load_and_run(&rewrite(&gguf, edit, |_| {}).unwrap());
    }
}
