//! Tells the program which revision it was built from, where that is known, and by which compiler.

use std::process::Command;

/// What a program answers.
fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
}

fn main() {
    let package = env!("CARGO_PKG_VERSION");
    let revision = ask("git", &["rev-parse", "--short", "HEAD"]);
    let version = match &revision {
        Some(revision) => format!("{package} ({revision})"),
        None => package.to_string(),
    };
    let compiler = std::env::var("RUSTC").ok().and_then(|rustc| ask(&rustc, &["--version"]));
    println!("cargo::rustc-env=TORQUE_VERSION={version}");
    println!("cargo::rustc-env=TORQUE_REVISION={}", revision.as_deref().unwrap_or(package));
    println!("cargo::rustc-env=TORQUE_COMPILER={}", compiler.as_deref().unwrap_or("unknown"));
    println!("cargo::rerun-if-changed=build.rs");
    // HEAD says which branch; its log changes with every commit.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = ask("git", &["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}
