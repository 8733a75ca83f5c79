use crate::{stdout, torque};

const MODEL: &[&str] = &["-m", "--model", "-t", "--threads", "--backend", "--isa"];
const TEXT: &[&str] = &["-p", "--prompt", "-f", "--file", "-e", "--escape", "--no-escape"];
const KV: &[&str] = &[
    "--cache-type-k",
    "-ctk",
    "--cache-type-v",
    "-ctv",
    "--kv-policy",
    "--kv-tail",
    "--kv-sink",
    "--kv-page",
];
const SAVED: &[&str] = &["--kv-load", "--kv-save"];
const CONTEXT: &[&str] = &["-c", "--ctx-size", "-b", "--batch-size"];
const SAMPLING: &[&str] = &[
    "-s",
    "--seed",
    "--temp",
    "--top-k",
    "--top-p",
    "--min-p",
    "--typical",
    "--top-nsigma",
    "--repeat-penalty",
    "--repeat-last-n",
    "--presence-penalty",
    "--frequency-penalty",
    "--dry-multiplier",
    "--dry-base",
    "--dry-allowed-length",
    "--dry-penalty-last-n",
    "--dry-sequence-breaker",
    "--xtc-probability",
    "--xtc-threshold",
    "-l",
    "--logit-bias",
    "--samplers",
];
const OUTPUT: &[&str] = &[
    "-n",
    "--predict",
    "-r",
    "--reverse-prompt",
    "--ignore-eos",
    "--no-display-prompt",
    "--special",
    "-sp",
    "-v",
];

const STUDY: &[&str] = &["--json", "--report", "--resume"];
const FACTS: &[&str] = &["--lengths", "--depths", "--trials", "-s", "--seed", "-n"];

#[test]
fn help_mentions_every_flag() {
    for (command, flags) in [
        ("run", &[MODEL, TEXT, KV, SAVED, CONTEXT, SAMPLING, OUTPUT][..]),
        ("chat", &[MODEL, KV, SAVED, CONTEXT, SAMPLING, &["-sys", "--system-prompt", "-n", "-v"]]),
        ("inspect", &[&["--json", "--tensors", "--metadata"]]),
        ("formats", &[&["--json", "--markdown", "verify"]]),
        ("formats verify", &[&["FILE"]]),
        ("tokenize", &[TEXT, &["-m", "--ids", "--no-bos", "--no-parse-special"]]),
        (
            "bench",
            &[
                &[
                    "-m",
                    "--synthetic",
                    "--type",
                    "-p",
                    "-n",
                    "-d",
                    "-r",
                    "-t",
                    "-b",
                    "-ctk",
                    "-ctv",
                    "--json",
                ],
                &["--isa", "--kernels", "--record", "--baseline", "gate"],
            ],
        ),
        ("bench gate", &[MODEL, KV, &["--baseline", "--write", "-n", "-d", "-r"]]),
        ("eval", &[&["kld", "layers", "needle", "all", "reference", "perplexity"]]),
        ("eval kld", &[MODEL, KV, CONTEXT, STUDY, &["-f", "--chunks", "--from", "--sweep"]]),
        ("eval layers", &[MODEL, KV, CONTEXT, STUDY, &["-f", "--chunks", "--from"]]),
        ("eval needle", &[MODEL, KV, STUDY, FACTS, &["-f", "--sweep"]]),
        ("eval all", &[MODEL, KV, CONTEXT, STUDY, FACTS, &["-f", "--chunks", "--from", "--sweep"]]),
        ("eval reference", &[KV, &["--target", "--backend", "--router-margin", "--json"]]),
        ("eval perplexity", &[MODEL, KV, CONTEXT, &["-f", "--chunks", "--json"]]),
        ("completions", &[&["SHELL"]]),
        (
            "",
            &[&[
                "run",
                "chat",
                "inspect",
                "tokenize",
                "formats",
                "bench",
                "eval",
                "completions",
                "--version",
            ]],
        ),
    ] {
        for ask in ["-h", "--help"] {
            let help = stdout(&mut torque(&format!("{command} {ask}")));
            let words: Vec<&str> = help.split([' ', ',', '\n', '<', '>', '.', '[', ']', ':']).collect();
            for flag in flags.iter().copied().flatten() {
                assert!(words.contains(flag), "`torque {command} {ask}` does not mention {flag}: {help}");
            }
            assert!(help.contains("Examples:"), "{help}");
        }
    }
}

#[test]
fn the_version_is_told() {
    let version = stdout(&mut torque("--version"));
    assert!(version.starts_with(concat!("torque ", env!("CARGO_PKG_VERSION"))), "{version}");
}

#[test]
fn shells_complete_the_program() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&mut torque(&format!("completions {shell}"))).contains("cache-type-k"), "{shell}");
    }
}
