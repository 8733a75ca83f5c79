//! The program as its users meet it: real runs on the embedded demo model and on the files of `../shared`.

mod bad_input;
mod bench;
mod chat;
mod eval;
mod formats;
mod help;
mod inspect;
mod kv_cache;
mod overflow;
mod pipes;
mod run;
mod saved;
mod tokenize;
mod tune;

use assert_cmd::Command;
use assert_cmd::cargo::cargo_bin_cmd;
use std::path::PathBuf;

/// A file every implementation is tested with.
fn shared(path: &str) -> String {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    root.join(path).to_str().unwrap().to_string()
}

/// The program with these arguments, which are separated by spaces.
fn torque(arguments: &str) -> Command {
    let mut command = cargo_bin_cmd!("torque");
    command.env_remove("NO_COLOR").env_remove("TORQUE_ISA").args(arguments.split_whitespace());
    command
}

/// What the program wrote.
struct Output {
    status: i32,
    stdout: String,
    stderr: String,
}

fn output(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output { status: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Stdout of a run that must succeed.
fn stdout(command: &mut Command) -> String {
    let output = output(command);
    assert_eq!(output.status, 0, "{command:?}: {}", output.stderr);
    output.stdout
}

/// Stdout of a run that must succeed, as JSON.
fn json(command: &mut Command) -> serde_json::Value {
    let text = stdout(command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command:?}: {error}: {text}"))
}
