use crate::{json, output, stdout, torque};

/// Greedy text of the demo model. It changes with the model only.
const PROMPT: &str = "The kernel";
const GOLDEN: &str = " is a lot of the kernel is aware of the kernel. It is a way to be able to get the kernel to use the kernel. It is not";

#[test]
fn greedy_text_of_the_demo_model() {
    for backend in ["cpu", "scalar"] {
        let run = format!("run --temp 0 -n 32 --backend {backend}");
        assert_eq!(stdout(torque(&run).args(["-p", PROMPT])), format!("{PROMPT}{GOLDEN}\n"), "{backend}");
    }
}

#[test]
fn the_demo_shows_text_and_a_table() {
    let demo = stdout(&mut torque(""));
    for part in ["KV cache", "f16/f16", "turbo2/turbo2", "tokens/s", "torque chat"] {
        assert!(demo.contains(part), "{part}: {demo}");
    }
}

#[test]
fn seeds_reproduce() {
    let text = |seed: u64| stdout(&mut torque(&format!("run -p The -n 16 -s {seed}")));
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}

#[test]
fn prompts_come_from_flags_files_and_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, format!("{PROMPT}\n")).unwrap();
    let greedy = || torque("run --temp 0 -n 32");
    let expected = format!("{PROMPT}{GOLDEN}\n");
    assert_eq!(stdout(greedy().arg("-f").arg(&file)), expected);
    assert_eq!(stdout(greedy().write_stdin(PROMPT)), expected);
    assert_eq!(stdout(greedy().args(["-f", "-"]).write_stdin(format!("{PROMPT}\n"))), expected);
}

#[test]
fn escapes_are_read_in_flags() {
    let prompt = |flags: &str| stdout(torque(&format!("run -n 0 {flags}")).args(["-p", r"a\tb\\"]));
    assert_eq!(prompt(""), "a\tb\\\n");
    assert_eq!(prompt("-e"), "a\tb\\\n");
    assert_eq!(prompt("--no-escape"), "a\\tb\\\\\n");
}

#[test]
fn what_is_not_text_goes_to_stderr() {
    let run = output(torque("run --temp 0 -n 32 --no-display-prompt -v").args(["-p", PROMPT]));
    assert_eq!(run.stdout, format!("{GOLDEN}\n"));
    for part in [
        "tokens/s",
        "GB/s",
        "KV",
        "layer 0-5: f16/f16, 2 × 128",
        "bytes per token",
        "context",
        "thread",
        "seed",
    ] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
}

#[test]
fn generation_ends_before_a_stop_text() {
    let stop = GOLDEN.split_whitespace().nth(4).unwrap();
    let before = &GOLDEN[..GOLDEN.find(stop).unwrap()];
    let run = stdout(torque("run --temp 0 -n 32 --no-display-prompt").args(["-p", PROMPT, "-r", stop]));
    assert_eq!(run.trim_end_matches('\n'), before);
}

#[test]
fn control_tokens_show_when_asked_for() {
    let run = |flags: &str| stdout(&mut torque(&format!("run -p x -n 0 {flags}")));
    assert_eq!(run(""), "x\n");
    assert_eq!(run("--special"), "<|doc|>x\n");
    assert_eq!(run("-sp"), "<|doc|>x\n");
}

#[test]
fn every_pair_of_formats_runs() {
    let formats = json(&mut torque("formats --json"));
    let names: Vec<&str> = formats
        .as_array()
        .unwrap()
        .iter()
        .filter(|f| f["kv"] == true)
        .map(|f| f["name"].as_str().unwrap())
        .collect();
    assert!(names.len() > 8, "{names:?}");
    // Each format on either side, against a neighbour; short pages, so that they are sealed.
    for (i, k) in names.iter().enumerate() {
        let v = names[(i + 1) % names.len()];
        let flags = format!("run -ctk {k} -ctv {v} --kv-page 16 --kv-tail 0 --kv-sink 0 --temp 0 -n 24 -v");
        let run = output(torque(&flags).args(["-p", PROMPT]));
        assert_eq!(run.status, 0, "{k}/{v}: {}", run.stderr);
        assert!(run.stdout.len() > PROMPT.len() + 24, "{k}/{v}: {}", run.stdout);
        assert!(run.stderr.contains(&format!("{k}/{v}")), "{}", run.stderr);
    }
}

#[test]
fn a_policy_file_sets_formats_by_layer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.toml");
    std::fs::write(&file, "k = 'q8_0'\nv = 'turbo3'\n[[layers]]\nat = '0,-1'\nv = 'q8_0'\n").unwrap();
    let run = output(torque("run -p x -n 1 -v --kv-policy").arg(&file));
    assert!(
        run.stderr.contains("layer 0,5: q8_0/q8_0") && run.stderr.contains("layer 1-4: q8_0/turbo3"),
        "{}",
        run.stderr
    );
    let run = output(torque("run -p x -n 1 -v -ctk f16 --kv-policy").arg(&file));
    assert!(run.stderr.contains("layer 1-4: f16/turbo3"), "{}", run.stderr);
}

#[test]
fn every_sampling_flag_is_accepted() {
    let run = "run -p The -n 8 -s 1 --temp 0.9 --top-k 50 --top-p 0.9 --min-p 0.02 --typical 0.95 --top-nsigma 2 \
               --repeat-penalty 1.1 --repeat-last-n -1 --presence-penalty 0.1 --frequency-penalty -0.1 \
               --dry-multiplier 0.8 --dry-base 1.75 --dry-allowed-length 2 --dry-penalty-last-n -1 \
               --dry-sequence-breaker none --xtc-probability 0.5 --xtc-threshold 0.1 --logit-bias 5-inf -l 7+0.5 \
               --samplers penalties;dry;top_k;temperature --ignore-eos";
    assert!(stdout(&mut torque(run)).starts_with("The"));
}

#[test]
fn a_bias_forbids_and_forces_tokens() {
    let forced = stdout(&mut torque("run -p x -n 3 --temp 0 --no-display-prompt -l 10+1000"));
    assert_eq!(forced, "'''\n".replace("'''", &"'".repeat(3)));
}

#[test]
fn policies_are_told() {
    let told = |flags: &str| output(&mut torque(&format!("run -v -n 1 -p hello {flags}")));
    let text = told("-ctk q8_0 -ctv turbo4 --kv-decay balanced --kv-preset boundary").stderr;
    assert!(
        text.contains("layer 2-3: q8_0>turbo4_nested>turbo3_nested/turbo4>turbo3_nested>turbo2_nested"),
        "{text}"
    );
    assert!(text.contains("layer 0-1,4-5: q8_0") && text.contains("35 % and 50 %"), "{text}");
    for (flags, part) in [
        ("--kv-decay bold", "conservative, balanced, aggressive"),
        ("--kv-decay 50,30,30", "add up to 100"),
        ("--sparse-v 2", "sparse_v is 2; it is a share from 0 to 1"),
        ("--kv-preset 3", "uniform boundary 1 2 5 6 7"),
    ] {
        let output = told(flags);
        assert!(output.status == 1 && output.stderr.contains(part), "{flags}: {}", output.stderr);
    }
}
