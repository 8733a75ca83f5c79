use crate::{json, output, shared, stdout, torque};

fn reference(model: &str, flags: &str) -> serde_json::Value {
    let [gguf, safetensors] =
        ["gguf", "safetensors"].map(|extension| shared(&format!("zoo/{model}.{extension}")));
    json(torque(&format!("eval reference --json {flags}")).args([gguf, safetensors]))
}

#[test]
fn logits_are_those_of_the_reference() {
    for flags in ["", "--backend cpu"] {
        let report = reference("llama-hd64", flags);
        assert!(report["kld_mean"].as_f64().unwrap() < 1e-8, "{flags}: {report}");
        assert!(report["max_abs_diff"].as_f64().unwrap() < 2e-4, "{flags}: {report}");
        assert_eq!(report["top1_agreement"], 1.0);
        assert!(report["kld_max"].is_number());
    }
}

#[test]
fn smaller_caches_diverge_more() {
    let exact = "--backend cpu -b 16 --kv-tail 0 --kv-sink 0 --kv-page 16";
    let kld = |format: &str| {
        let report = reference("llama-hd128-rope3", &format!("{exact} -ctk {format} -ctv {format}"));
        report["kld_mean"].as_f64().unwrap()
    };
    let (q8_0, turbo4, turbo2) = (kld("q8_0"), kld("turbo4"), kld("turbo2"));
    assert!(q8_0 > 0.0 && q8_0 < turbo4 && turbo4 < turbo2, "{q8_0} {turbo4} {turbo2}");
}

#[test]
fn figures_are_printed_one_a_line() {
    let files = ["gguf", "safetensors"].map(|extension| shared(&format!("zoo/qwen3moe.{extension}")));
    let text = stdout(torque("eval reference --backend cpu --router-margin 0.05").args(files));
    let names: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["kld_mean", "kld_max", "top1_agreement", "max_abs_diff"]);
    assert!(text.lines().all(|line| line.split(' ').nth(1).unwrap().parse::<f64>().is_ok()), "{text}");
}

#[test]
fn formats_that_cannot_show_are_told() {
    let perplexity = |flags: &str| {
        let mut command = torque("eval perplexity --chunks 1 -ctk turbo3 -f");
        output(command.arg(shared("demo/eval.txt")).args(flags.split(' ')))
    };
    assert!(perplexity("-c 256").stderr.contains("warning: with -c 256"));
    assert!(!perplexity("-c 256 -b 64 --kv-sink 0 --kv-tail 0").stderr.contains("warning"));
}

#[test]
fn perplexity_of_the_demo_model() {
    let perplexity = || {
        let mut command = torque("eval perplexity --chunks 2 -c 256 -f");
        command.arg(shared("demo/eval.txt"));
        command
    };
    let text = stdout(&mut perplexity());
    assert!(text.starts_with("PPL = ") && text.contains(" +/- ") && text.lines().count() == 1, "{text}");
    let report = json(perplexity().arg("--json"));
    assert!((10.0..300.0).contains(&report["perplexity"].as_f64().unwrap()), "{report}");
    assert!(text.contains(&format!("{:.4}", report["perplexity"].as_f64().unwrap())), "{text} {report}");
    assert_eq!(report["tokens"], 2 * 127);
}
