use crate::{json, output, shared, torque};
use assert_cmd::Command;
use std::path::{Path, PathBuf};

fn tune(model: &Path, flags: &str) -> Command {
    let mut command = torque("tune");
    command.arg(model).args(flags.split_whitespace());
    command
}

/// A copy of the demo model in f16, so that what is written lies beside it.
fn model(folder: &Path) -> PathBuf {
    let model = folder.join("demo.gguf");
    std::fs::copy(shared("demo/demo.gguf"), &model).unwrap();
    model
}

#[test]
fn a_tuned_cache_beats_fixed_ones_and_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let quick =
        "--chunks 1 --chunk-size 512 --kv-sink 0 --kv-tail 0 --formats q8_0,turbo4,turbo3,turbo2 --json";
    let report = folder.path().join("tuned.html");
    let found = json(tune(&model, quick).arg("--report").arg(&report));
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    // No larger than turbo4/turbo3, and of many sizes none costs more than a larger one.
    assert!(number(&found["bytes_per_token"]) <= 1440.5 && number(&found["bytes_per_token"]) > 1000.0);
    let frontier = found["frontier"].as_array().unwrap();
    assert!(frontier.len() > 12 && number(&frontier[0]["kld"]) == 0.0);
    for pair in frontier.windows(2) {
        assert!(number(&pair[0]["bytes_per_token"]) > number(&pair[1]["bytes_per_token"]));
        assert!(number(&pair[0]["kld"]) <= number(&pair[1]["kld"]));
    }
    let compared = found["compared"].as_array().unwrap();
    for pair in compared {
        let [fixed, tuned] = [&pair["fixed"], &pair["tuned"]];
        assert!(number(&tuned["bytes_per_token"]) <= number(&fixed["bytes_per_token"]) + 0.5);
        // Noise apart, on text that neither was made for.
        let allowed = 1.1 * number(&fixed["kld_mean"]) + 3.0 * number(&fixed["kld_mean_error"]);
        assert!(number(&tuned["kld_mean"]) <= allowed, "{pair}");
    }
    // Fixed policies are those of these formats, presets among them, each once.
    let names: Vec<&str> = compared.iter().map(|pair| pair["fixed"]["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"turbo4/turbo3") && names.contains(&"turbo3/turbo3+boundary"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("tcq") || name.contains("uniform")), "{names:?}");
    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.contains("tuned policies") && page.contains("turbo3/turbo3+boundary"), "{page}");
    assert!(page.contains("layer 5 v, turbo3: KLD"), "{page}");

    let better =
        compared.iter().filter(|p| number(&p["tuned"]["kld_mean"]) < number(&p["fixed"]["kld_mean"]));
    assert!(better.count() * 2 > compared.len(), "{compared:?}");

    let run = |flags: &str| {
        let mut command = torque("run -v -n 1 -p hello -m");
        output(command.arg(&model).args(flags.split_whitespace())).stderr
    };
    assert!(run("--kv auto").contains("demo.kv.toml"));
    std::fs::remove_file(folder.path().join("demo.kv.toml")).unwrap();
    let safe = run("--kv auto");
    assert!(safe.contains("KV cache: turbo4; there is no") && safe.contains("turbo4/turbo4"), "{safe}");
}

#[test]
fn what_cannot_be_tuned_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let quick = "--kv-sink 0 --kv-tail 0";
    for (flags, part) in [
        (
            "--chunks 1 --chunk-size 256 --formats turbo4 --bytes-per-token 100",
            "1,632 bytes a token; see --formats",
        ),
        ("--memory 8GiB", "--ctx-size"),
        ("--memory many -c 100", "such as 8GiB"),
        ("--chunk-size 100000", "see --chunk-size"),
        ("--formats q4_k", "q4_k"),
        ("-o /no/such/folder/x.toml", "/no/such/folder"),
        ("--report /no/such/folder/x.html", "--report"),
    ] {
        let told = output(tune(&model, quick).args(flags.split_whitespace()));
        assert!(told.status != 0 && told.stderr.contains(part), "{flags}: {}", told.stderr);
    }
    assert!(!folder.path().join("demo.kv.toml").exists());
}
