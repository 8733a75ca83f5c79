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
    for arguments in [
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
