use crate::{json, output, shared, stdout, torque};
use std::path::PathBuf;

#[test]
fn formats_are_listed() {
    let rows = json(&mut torque("formats --json"));
    let text = stdout(&mut torque("formats"));
    let markdown = stdout(&mut torque("formats --markdown"));
    for row in rows.as_array().unwrap() {
        let name = row["name"].as_str().unwrap();
        assert!(text.contains(name) && markdown.contains(&format!("| {name}")), "{name}");
        assert!(row["bits"].as_f64().unwrap() > 1.0 && row["gaussian_error"].is_number(), "{row}");
        assert!(row["kv"] == true || row["weights"] == true, "{row}");
    }
    assert!(markdown.lines().all(|line| line.starts_with('|') && line.ends_with('|')), "{markdown}");
}

fn vectors() -> Vec<PathBuf> {
    let files = std::fs::read_dir(shared("conformance")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect()
}

#[test]
fn recorded_vectors_pass() {
    let text = stdout(torque("formats verify").args(vectors()));
    let last = text.lines().last().unwrap();
    assert!(last.ends_with(" passed, 0 failed"), "{last}");
    assert!(text.contains("q4_k gauss.encoded ok"), "{text}");
    let cases = last.split(' ').next().unwrap().parse::<usize>().unwrap();
    assert_eq!(cases, text.lines().count() - 1);
}

#[test]
fn a_corrupted_copy_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(shared("conformance/q4_0.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let path = folder.path().join("q4_0.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let verify = output(torque("formats verify").arg(path));
    assert_eq!(verify.status, 1);
    assert!(
        verify.stdout.lines().any(|line| line.starts_with("q4_0 ") && line.contains(" of ")),
        "{}",
        verify.stdout
    );
    assert!(verify.stdout.trim_end().ends_with("1 failed"), "{}", verify.stdout);
}
