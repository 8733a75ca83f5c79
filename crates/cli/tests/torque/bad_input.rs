//! What is wrong is told in one line, with the name of the file or flag, and an exit status.

use crate::{output, shared, torque};

/// One line of error that contains `parts`, an exit status, and nothing on stdout.
fn check(arguments: &[&str], stdin: &[u8], status: i32, parts: &[&str]) {
    let found = output(torque("").args(arguments).write_stdin(stdin));
    assert_eq!(found.status, status, "{arguments:?}: {}", found.stderr);
    let lines: Vec<&str> = found.stderr.lines().filter(|line| line.starts_with("torque: error: ")).collect();
    assert_eq!(lines.len(), 1, "{arguments:?}: {}", found.stderr);
    for part in parts {
        assert!(found.stderr.contains(part), "{arguments:?} does not say {part}: {}", found.stderr);
    }
    assert!(found.stdout.is_empty(), "{arguments:?}: {}", found.stdout);
}

#[test]
fn files_that_are_not_models() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    };
    let demo = std::fs::read(shared("demo/demo.gguf")).unwrap();
    let text = file("text.gguf", b"This is not a model");
    let empty = file("empty.gguf", b"");
    let header = file("header.gguf", &demo[..100]);
    let half = file("half.gguf", &demo[..demo.len() / 2]);
    for command in [
        &["run", "-p", "x", "-m"][..],
        &["chat", "-m"],
        &["inspect"],
        &["tokenize", "-p", "x", "-m"],
        &["bench", "-m"],
    ] {
        for path in [&text, &empty, &header, &half] {
            check(&[command, &[path]].concat(), b"", 1, &[path]);
        }
        check(&[command, &["/no/such/model.gguf"]].concat(), b"", 1, &["/no/such/model.gguf"]);
    }
}

#[test]
fn models_that_cannot_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bread.gguf");
    let mut bytes = std::fs::read(shared("demo/demo.gguf")).unwrap();
    let at = bytes.windows(5).position(|window| window == b"llama").unwrap();
    bytes[at..at + 5].copy_from_slice(b"bread");
    std::fs::write(&path, bytes).unwrap();
    check(
        &["run", "-p", "x", "-m", path.to_str().unwrap()],
        b"",
        1,
        &["bread.gguf", "`bread`", "llama", "qwen3"],
    );
    let vocabulary = shared("vocab/ggml-vocab-llama-spm.gguf");
    check(&["run", "-p", "x", "-m", &vocabulary], b"", 1, &["ggml-vocab-llama-spm.gguf"]);
    check(&["chat", "-m", &shared("zoo/llama-hd64.gguf")], b"hello\n", 1, &["chat template"]);
}

#[test]
fn numbers_that_are_too_large_or_no_numbers() {
    check(&["run", "-p", "x", "-c", "99999999999"], b"", 1, &["99999999999", "memory", "-c"]);
    check(&["run", "-p", "a b c d e f g h", "-c", "4"], b"", 1, &["context of 4", "-c"]);
    check(&["run", "-p", "x", "-t", "0"], b"", 2, &["--threads", "from 1 up"]);
    check(&["run", "-p", "x", "-c", "many"], b"", 2, &["--ctx-size", "many"]);
    check(&["run", "-p", "x", "--isa", "mmx"], b"", 1, &["mmx"]);
    check(&["bench", "-p", "8,x"], b"", 2, &["--n-prompt"]);
}

#[test]
fn samplers_out_of_range() {
    check(&["run", "-p", "x", "--top-p", "1.5"], b"", 1, &["--top-p", "0 to 1", "1.5"]);
    check(&["run", "-p", "x", "--temp", "-1"], b"", 1, &["--temp", "-1"]);
    check(&["run", "-p", "x", "--samplers", "tfs"], b"", 1, &["--samplers", "`tfs`", "top_k"]);
    check(&["run", "-p", "x", "--logit-bias", "5"], b"", 2, &["--logit-bias"]);
    check(&["run", "-p", "x", "--logit-bias", "5000+1"], b"", 1, &["--logit-bias", "5000"]);
}

#[test]
fn formats_and_policies_nobody_knows() {
    check(&["run", "-p", "x", "-ctk", "q9_9"], b"", 2, &["--cache-type-k", "q9_9", "turbo3"]);
    check(&["run", "-p", "x", "-ctv", "q4_k"], b"", 2, &["--cache-type-v", "q4_k", "turbo3"]);
    check(&["run", "-p", "x", "--kv-page", "7"], b"", 1, &["page", "7", "16"]);
    check(&["run", "-p", "x", "--kv-policy", "/no/such.toml"], b"", 1, &["--kv-policy", "/no/such.toml"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.toml");
    std::fs::write(&path, "k = 'turbo9'").unwrap();
    check(&["run", "-p", "x", "--kv-policy", path.to_str().unwrap()], b"", 1, &["turbo9"]);
    std::fs::write(&path, "colour = 'red'").unwrap();
    check(&["run", "-p", "x", "--kv-policy", path.to_str().unwrap()], b"", 1, &["policy.toml", "colour"]);
}

#[test]
fn texts_that_are_no_texts() {
    check(&["run"], b"caf\xe9", 1, &["stdin", "UTF-8"]);
    check(&["run", "-f", "/no/such.txt"], b"", 1, &["/no/such.txt"]);
    let phi = shared("zoo/phi3-phi4.gguf");
    check(&["run", "-m", &phi, "-p", ""], b"", 1, &["empty", "-p"]);
    check(&["eval", "perplexity", "-f", "-"], b"too short", 1, &["512"]);
}

#[test]
fn studies_that_cannot_be() {
    let text = shared("demo/eval.txt");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    check(&["eval", "kld"], b"", 2, &["--file"]);
    check(&["eval", "kld", "-f", "-"], b"too short", 1, &["1024", "-c"]);
    check(&["eval", "layers", "-f", &text, "-c", "64", "--from", "63"], b"", 1, &["position 63", "64"]);
    check(&["eval", "kld", "-f", &text, "--sweep", "f16,turbo9"], b"", 1, &["--sweep", "`turbo9`", "turbo3"]);
    check(&["eval", "kld", "-f", &text, "--sweep", "no.toml"], b"", 1, &["--sweep", "no.toml"]);
    check(
        &["eval", "kld", "-f", &text, "--sweep", "f16", "-ctk", "q8_0"],
        b"",
        2,
        &["--sweep", "--cache-type-k"],
    );
    check(&["eval", "needle", "--depths", "110"], b"", 2, &["--depths", "100"]);
    check(&["eval", "needle", "--lengths", "60"], b"", 1, &["60"]);
    let no_chat = shared("zoo/llama-hd64.gguf");
    check(&["eval", "needle", "-m", &no_chat, "--lengths", "128"], b"", 1, &["chat template"]);
    std::fs::write(path("poem"), "a poem\n").unwrap();
    check(&["eval", "kld", "-f", &text, "--resume", &path("poem")], b"", 1, &["--resume", "poem", "line 1"]);
    check(&["eval", "kld", "-f", &text, "--resume", &path("no/such")], b"", 1, &["--resume", "no/such"]);
    check(&["eval", "kld", "-f", &text, "--report", &path("no/such")], b"", 1, &["--report", "no/such"]);

    // What was measured with other settings is not mixed with these.
    let run = path("run.jsonl");
    let kld = |context: &'static str, text: &str, model: Option<&str>| {
        let mut command = torque("eval kld --chunks 1 --resume");
        command.args([&run, "-f", text, "-c", context]).args(model.map(|_| "-m")).args(model);
        output(&mut command)
    };
    assert_eq!(kld("64", &text, None).status, 0);
    for (context, text, model, part) in [
        ("128", &text, None, "another context: 64, not 128"),
        ("64", &shared("spec/architectures.md"), None, "another text"),
        ("64", &text, Some(shared("demo/demo.gguf")), "another model"),
    ] {
        let found = kld(context, text, model.as_deref());
        assert_eq!((found.status, found.stdout.as_str()), (1, ""));
        assert!(found.stderr.contains(part) && found.stderr.contains("run.jsonl"), "{}", found.stderr);
    }
}

#[test]
fn baselines_and_records_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.json");
    let broken = path.to_str().unwrap();
    for text in ["", "[{]", "[]", "model,test\na,b\n", "{}"] {
        std::fs::write(&path, text).unwrap();
        check(&["bench", "--baseline", broken], b"", 1, &["--baseline", "broken.json"]);
    }
    check(&["bench", "--baseline", "/no/such.json"], b"", 1, &["--baseline", "/no/such.json"]);
    // A folder cannot be made inside a file.
    check(&["bench", "--record", broken], b"", 1, &["--record", "broken.json"]);
    check(&["bench", "--kernels", "q9"], b"", 1, &["`q9`", "accumulate", "turbo3"]);
    check(&["bench", "--kernels", "q4_k,seal"], b"", 1, &["q4_k,seal"]);
    check(&["bench", "--kernels", "seal", "--record", "x"], b"", 2, &["--kernels", "--record"]);
    check(&["bench", "gate"], b"", 2, &["--baseline"]);
}

#[test]
fn command_lines_that_say_nothing() {
    check(&["fly"], b"", 2, &["fly"]);
    check(&["run", "--fly"], b"", 2, &["--fly"]);
    check(&["run", "-p", "x", "-f", "y"], b"", 2, &["--prompt", "--file"]);
    check(&["run", "-p", "x", "-ngl", "99"], b"", 2, &["--n-gpu-layers"]);
    check(&["formats", "verify"], b"", 2, &["FILE"]);
}

#[test]
fn references_that_do_not_fit() {
    let llama = shared("zoo/llama-hd64.gguf");
    let other = shared("zoo/qwen3.safetensors");
    check(
        &["eval", "reference", &llama, &other, "--target", "nothing"],
        b"",
        1,
        &["qwen3.safetensors", "nothing"],
    );
    check(&["eval", "reference", &llama, &llama], b"", 1, &["llama-hd64.gguf", "safetensors"]);
    check(&["formats", "verify", &llama], b"", 1, &["llama-hd64.gguf"]);
}
