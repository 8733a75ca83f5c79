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

/// Measures a chunk of text with the demo model in f16, whose products do not round activations.
fn kld(flags: &str) -> assert_cmd::Command {
    let mut command = torque("eval kld --chunks 1 -m");
    command
        .arg(shared("demo/demo.gguf"))
        .arg("-f")
        .arg(shared("demo/eval.txt"))
        .args(flags.split_whitespace());
    command
}

/// No token is exact on purpose.
const BARE: &str = "--kv-tail 0 --kv-sink 0";

fn number(row: &serde_json::Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"))
}

#[test]
fn smaller_formats_diverge_more_and_f16_does_not() {
    let rows = json(&mut kld(&format!("{BARE} -c 512 --json --sweep f16,q8_0,turbo4,turbo3,turbo2")));
    let klds: Vec<f64> = rows.as_array().unwrap().iter().map(|row| number(row, "kld_mean")).collect();
    assert!(klds.is_sorted_by(|a, b| a < b), "{klds:?}");
    let exact = &rows[0];
    // In other pages than the reference's, sums are rounded elsewhere.
    assert!(number(exact, "kld_max") < 1e-9 && exact["top1_agreement"] == 1.0, "{exact}");
    let same = json(&mut kld("-c 512 --json"));
    assert_eq!((number(&same, "kld_max"), number(&same, "correlation")), (0.0, 1.0));
    let bits: Vec<f64> = rows.as_array().unwrap().iter().map(|row| number(row, "bits_per_value")).collect();
    assert_eq!(bits, [16.0, 8.625, 4.25, 3.25, 2.25]);
}

#[test]
fn a_key_bias_is_no_catastrophe() {
    let turbo3 = |model: &str| {
        let flags =
            format!("eval kld --chunks 1 {BARE} -c 512 --json -ctk turbo3 -ctv turbo3 --kv-page 32 -m");
        let mut command = torque(&flags);
        number(&json(command.arg(shared(model)).arg("-f").arg(shared("demo/eval.txt"))), "kld_mean")
    };
    let [plain, biased] = ["demo/demo.gguf", "demo/demo-kbias.gguf"].map(turbo3);
    assert!(plain > 0.0 && biased < 2.0 * plain, "{biased} with a bias, {plain} without");
}

#[test]
fn one_policy_is_one_object() {
    let row = json(&mut kld(&format!("{BARE} -c 256 --json -ctk q8_0 -ctv turbo3 -b 64")));
    for key in [
        "kld_mean",
        "kld_mean_error",
        "kld_max",
        "kld_median",
        "kld_p90",
        "kld_p99",
        "kld_p99_9",
        "top1_agreement",
        "correlation",
        "perplexity",
        "perplexity_error",
        "f16_perplexity",
        "f16_perplexity_error",
        "bytes_per_token",
        "bits_per_value",
    ] {
        number(&row, key);
    }
    assert_eq!(
        (&row["type_k"], &row["type_v"], &row["name"]),
        (&"q8_0".into(), &"turbo3".into(), &"q8_0/turbo3".into())
    );
    assert_eq!((&row["context"], &row["from"], &row["batch"]), (&256.into(), &128.into(), &64.into()));
    let positions = row["positions"].as_array().unwrap();
    let ranges: Vec<_> = positions.iter().map(|part| (number(part, "from"), number(part, "to"))).collect();
    assert_eq!(ranges, [(128.0, 192.0), (192.0, 255.0)]);
    let table = stdout(&mut kld(&format!("{BARE} -c 256 -ctk q8_0 -ctv turbo3")));
    assert!(table.contains("q8_0/turbo3") && table.contains("same top"), "{table}");
}

#[test]
fn what_is_measured_is_not_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let run = |flags: &str| json(kld(&format!("{BARE} -c 256 -b 64 --json {flags} --resume")).arg(&file));
    let lines = || std::fs::read_to_string(&file).unwrap();
    let first = run("--sweep q8_0,turbo3");
    assert_eq!(lines().lines().count(), 1 + 2);

    // As if the run had ended while the second policy was written.
    let cut = lines().len() - 40;
    std::fs::write(&file, &lines()[..cut]).unwrap();
    assert_eq!(run("--sweep q8_0,turbo3"), first);
    // What the file says counts, so nothing was measured.
    let told = lines().replacen(
        "\"cell\":{\"chunk\":0,\"policy\":{\"k\":\"q8_0\"",
        "\"cell\":{\"chunk\":0,\"policy\":{\"k\":\"turbo2\"",
        1,
    );
    assert_ne!(told, lines());
    std::fs::write(&file, told).unwrap();
    let other = run("--sweep turbo2/q8_0,turbo3");
    assert_eq!((&other[0]["kld_mean"], &other[1]), (&first[0]["kld_mean"], &first[1]));
    // More policies join those that are there.
    run("--sweep turbo3,turbo4");
    assert_eq!(lines().lines().count(), 1 + 3);
}

#[test]
fn layers_are_measured_one_by_one() {
    let mut layers =
        torque(&format!("eval layers --chunks 1 {BARE} -c 256 -b 64 -ctk turbo2 -ctv q8_0 --json -m"));
    layers.arg(shared("demo/demo.gguf"));
    let rows = json(layers.arg("-f").arg(shared("demo/eval.txt")));
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 12);
    let sum = |side: &str| -> f64 {
        rows.iter().filter(|row| row["side"] == side).map(|row| number(row, "kld_mean")).sum()
    };
    assert!(sum("v") > 0.0 && sum("k") > 10.0 * sum("v"), "{} {}", sum("k"), sum("v"));
    assert!(rows.iter().all(|row| number(row, "correlation") < 1.0), "{rows:?}");
}

#[test]
fn facts_are_asked_for() {
    let needle = "eval needle --lengths 128,256 --depths 0,100 --trials 1 --seed 5 -n 24";
    let found = json(&mut torque(&format!("{needle} --json -ctk turbo3")));
    assert_eq!(
        (&found["lengths"], &found["depths"]),
        (&serde_json::json!([128, 256]), &serde_json::json!([0, 100]))
    );
    let grid = found["grid"].as_array().unwrap();
    assert!(grid.len() == 2 && grid.iter().all(|row| row.as_array().unwrap().len() == 2), "{found}");
    assert!(
        (0.0..=1.0).contains(&number(&found, "found")) && number(&found, "digits") >= number(&found, "found")
    );
    let table = stdout(&mut torque(&format!("{needle} --sweep f16,turbo3")));
    assert!(table.contains("f16/f16") && table.contains("100 %") && table.contains("digits"), "{table}");
}

#[test]
fn a_report_is_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quality.html");
    let mut all = torque(
        "eval all -c 256 -b 64 --chunks 1 --kv-tail 0 --kv-sink 0 --sweep f16,turbo4,q8_0/turbo2 --lengths 128 --depths 50 \
         --trials 1 --json --report",
    );
    let found = json(all.arg(&path).arg("-f").arg(shared("demo/eval.txt")));
    assert_eq!(["kld", "layers", "needle"].map(|kind| found[kind].as_array().unwrap().len()), [3, 12, 3]);
    // The smallest policy is the one whose layers are measured.
    assert_eq!(found["layers"][0]["format"], "turbo4");
    let page = std::fs::read_to_string(&path).unwrap();
    for part in
        ["<h2>Quality and size", "<h2>By position", "<h2>Layer by layer", "<h2>Hidden facts", "q8_0/turbo2"]
    {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<svg ").count(), page.matches("</svg>").count());
    assert!(page.matches("<svg ").count() >= 4 + 3, "{}", page.matches("<svg ").count());
    // Nothing is loaded from elsewhere, and no number is none.
    for part in ["src=", "href=", "@import", "NaN", "inf"] {
        assert!(!page.contains(part), "{part}");
    }
}
