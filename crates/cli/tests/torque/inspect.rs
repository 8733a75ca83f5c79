use crate::{json, shared, stdout, torque};

#[test]
fn a_model_is_described() {
    let text = stdout(torque("inspect --tensors --metadata").arg(shared("zoo/llama-q-Q4_K_M.gguf")));
    for part in
        ["llama", "q4_k", "q6_k", "turbo3", "blk.0.attn_q.weight", "general.architecture = \"llama\"", "…"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn json_has_the_facts() {
    let facts = json(torque("inspect --json --tensors --metadata").arg(shared("demo/demo.gguf")));
    for (key, value) in [
        ("architecture", "llama".into()),
        ("runs", true.into()),
        ("context", 4096.into()),
        ("layers", 6.into()),
    ] {
        let value: serde_json::Value = value;
        assert_eq!(facts[key], value, "{key}");
    }
    assert_eq!(facts["kv_bytes_per_token"]["f16"], 2.0 * 6.0 * 2.0 * 128.0 * 2.0);
    assert!(facts["kv_bytes_per_token"]["turbo3"].as_f64().unwrap() < 1500.0);
    assert_eq!(
        facts["tensors"].as_array().unwrap().len() as u64,
        facts["types"].as_array().unwrap().iter().map(|t| t["tensors"].as_u64().unwrap()).sum::<u64>()
    );
    assert_eq!(facts["metadata"]["tokenizer.ggml.tokens"].as_array().unwrap().len(), 4096);
    assert_eq!(facts["tokenizer"]["bos"], 0);
}

#[test]
fn every_file_of_the_zoo_is_described() {
    for entry in std::fs::read_dir(shared("zoo")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            let facts = json(torque("inspect --json").arg(&path));
            assert!(facts["parameters"].as_u64().unwrap() > 10_000, "{}", path.display());
            stdout(torque("inspect").arg(&path));
        }
    }
}

#[test]
fn what_cannot_run_is_described_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(shared("demo/demo.gguf")).unwrap();
    for at in 0..4000 {
        if bytes[at..].starts_with(b"llama") {
            bytes[at..at + 5].copy_from_slice(b"bread");
        }
    }
    let path = folder.path().join("bread.gguf");
    std::fs::write(&path, bytes).unwrap();
    let text = stdout(torque("inspect").arg(&path));
    assert!(text.contains("no: ") && text.contains("`bread`") && text.contains("4,096 tokens"), "{text}");
    let facts = json(torque("inspect --json").arg(&path));
    assert_eq!((&facts["runs"], &facts["layers"]), (&false.into(), &6.into()));

    let text = stdout(torque("inspect").arg(shared("vocab/ggml-vocab-phi-3.gguf")));
    assert!(text.contains("no: ") && text.contains("llama, 32,064 tokens"), "{text}");
}
