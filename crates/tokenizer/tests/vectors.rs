//! Real and toy vocabularies against the reference tokenizer's output.

use std::path::{Path, PathBuf};

use torque_gguf::Gguf;
use torque_tokenizer::{Encode, Tokenizer};

const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(SHARED).join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    assert!(!files.is_empty(), "no .{extension} in {}", folder.display());
    files
}

fn open(path: &Path) -> Tokenizer {
    let gguf = Gguf::open(path).unwrap();
    let tokenizer =
        Tokenizer::from_metadata(gguf.metadata()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let about_tokens = |warning: &&String| !warning.contains("tokenizer.chat_template");
    assert_eq!(tokenizer.warnings().iter().find(about_tokens), None, "{}", path.display());
    tokenizer
}

/// Fails with everything that differs.
fn check(path: &Path, cases: impl Iterator<Item = (String, Vec<u32>)>, options: Encode) -> usize {
    let tokenizer = open(path);
    let (mut wrong, mut seen) = (String::new(), 0);
    for (text, expected) in cases {
        let found = tokenizer.encode(&text, options);
        if found != expected {
            wrong += &format!("  {text:?}\n    found    {found:?}\n    expected {expected:?}\n");
        }
        let options = Encode { add_special: false, ..options };
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text, options), true), text, "{}", path.display());
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}:\n{wrong}", path.display());
    seen
}

#[test]
fn real_vocabularies_agree_with_the_reference() {
    for path in files("vocab", "gguf") {
        let read =
            |extension: &str| std::fs::read_to_string(format!("{}.{extension}", path.display())).unwrap();
        let (texts, ids) = (read("inp"), read("out"));
        let texts: Vec<_> = texts.split("\n__ggml_vocab_test__\n").map(String::from).collect();
        let ids: Vec<Vec<u32>> =
            ids.lines().map(|l| l.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
        assert!(texts.len() == ids.len() || texts.len() == ids.len() + 1, "{}", path.display());
        let seen = check(&path, texts.into_iter().zip(ids), Encode::default());
        assert!(seen > 40, "{}: only {seen} cases", path.display());
    }
}

#[test]
fn every_architecture_of_the_zoo_agrees_with_the_reference() {
    let mut seen = 0;
    for path in files("zoo", "safetensors") {
        let bytes = std::fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let Some(cases) = header["__metadata__"]["tokenizer_cases"].as_str() else {
            // Quantised files have the vocabulary of the others, and no cases of their own.
            assert!(path.to_string_lossy().contains("-q-"), "{} has no cases", path.display());
            open(&path.with_extension("gguf"));
            continue;
        };
        let cases: Vec<(String, Vec<u32>)> = serde_json::from_str(cases).unwrap();
        seen += check(
            &path.with_extension("gguf"),
            cases.into_iter(),
            Encode { add_special: true, parse_special: false },
        );
    }
    assert!(seen >= 28 * 15, "only {seen} cases");
}
