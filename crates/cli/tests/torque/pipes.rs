//! Readers that go away, and Ctrl-C.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

fn spawn(arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_torque"))
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The exit status and stderr.
fn finish(mut child: Child) -> (Option<i32>, String) {
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (child.wait().unwrap().code(), stderr)
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let model = crate::shared("demo/demo.gguf");
    let kld = format!("eval kld -c 64 --chunks 1 -f {}", crate::shared("demo/eval.txt"));
    for arguments in [
        &kld,
        &format!("{kld} --json"),
        "run -p The -n 2000 --ignore-eos",
        "formats",
        "formats --json",
        "tokenize -p abcdefg",
        &format!("inspect {model} --metadata --tensors --json"),
        &format!("inspect {model} --metadata --tensors"),
        "--help",
        "completions bash",
        "",
    ] {
        let mut child = spawn(arguments);
        drop(child.stdout.take());
        let (status, stderr) = finish(child);
        assert_eq!(status, Some(0), "{arguments}: {stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("bug"), "{arguments}: {stderr}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_with_its_last_line() {
    let mut child = spawn("run -p The --ignore-eos --temp 2");
    let mut text = BufReader::new(child.stdout.take().unwrap());
    let mut beginning = [0; 16];
    text.read_exact(&mut beginning).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    while text.read_until(b'\n', &mut Vec::new()).unwrap() > 0 {}
    let (status, stderr) = finish(child);
    assert_eq!(status, Some(130), "{stderr}");
    assert!(stderr.contains("decode") && stderr.contains("tokens/s"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_what_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let text = crate::shared("demo/eval.txt");
    let mut child = spawn(&format!("eval kld -c 256 -ctk turbo3 -f {text} --resume {}", path.display()));
    let lines = || std::fs::read_to_string(&path).unwrap_or_default().lines().count();
    while lines() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let (status, stderr) = finish(child);
    assert_eq!(status, Some(130), "{stderr}");
    assert!(stderr.contains("goes on from") && stderr.contains("run.jsonl"), "{stderr}");
    assert!(lines() >= 3);
}
