//! Sessions on disk.

use crate::{output, shared, stdout, torque};
use std::path::Path;

const TEXT: &str =
    "The kernel is a lot of the kernel and the scheduler is a part of it. The function returns an error if";

/// A folder, and a run of the demo model in it.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn run(folder: &Path, flags: &str, text: &str) -> crate::Output {
    let short_pages = "--kv-page 16 --kv-tail 0 --kv-sink 0 -ctk turbo4 -ctv turbo3";
    let run = format!("run --temp 0 --ignore-eos {short_pages} {flags}");
    output(torque(&run).current_dir(folder).write_stdin(text))
}

/// How many tokens of a prompt were read.
fn prompt_tokens(run: &crate::Output) -> usize {
    let line = run.stderr.lines().find_map(|line| line.strip_prefix("prompt "));
    line.and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{}", run.stderr))
}

#[test]
fn a_session_goes_on_in_another_run() {
    let folder = folder();
    let folder = folder.path();
    let whole = run(folder, "-n 48", TEXT);
    // Both flags name one file, which is not there the first time.
    let first = run(folder, "-n 24 --kv-load s.kv --kv-save s.kv", TEXT);
    assert_eq!(first.status, 0, "{}", first.stderr);
    assert!(
        first.stderr.contains("tokens saved to s.kv: ") && !first.stderr.contains("warning"),
        "{}",
        first.stderr
    );
    // Without a text it goes on where it ended; with the text of both, nothing but its end is new.
    let second = run(folder, "-n 24 --kv-load s.kv", "");
    assert!(second.stderr.contains("tokens restored from s.kv: "), "{}", second.stderr);
    assert_eq!((second.stdout, second.status), (whole.stdout, 0), "{}", second.stderr);
    let text = format!("{} And then", first.stdout.trim_end_matches('\n'));
    let (again, known) = (run(folder, "-n 1", &text), run(folder, "-n 1 --kv-load s.kv", &text));
    assert!(prompt_tokens(&again) > 40 && prompt_tokens(&known) < 5, "{} {}", again.stderr, known.stderr);
}

#[test]
fn files_that_are_no_use_are_told_and_ignored() {
    let folder = folder();
    let folder = folder.path();
    let expected = run(folder, "-n 8 --kv-save s.kv", TEXT);
    let sound = std::fs::read(folder.join("s.kv")).unwrap();
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 1;
    let mut version = sound.clone();
    version[8] = 9;
    let half = sound[..sound.len() / 2].to_vec();
    for (bytes, told, is_damage) in [
        (damaged, "damaged: page", true),
        (half, "is cut off", true),
        (version, "version 9", false),
        (b"GGUF".to_vec(), "not a session", false),
    ] {
        std::fs::write(folder.join("bad.kv"), &bytes).unwrap();
        let ignored = run(folder, "-n 8 --kv-load bad.kv", TEXT);
        assert_eq!((&ignored.stdout, ignored.status), (&expected.stdout, 0), "{}", ignored.stderr);
        assert!(ignored.stderr.contains("warning") && ignored.stderr.contains(told), "{}", ignored.stderr);
        // What is damaged is replaced; what may be of use to others is not.
        let same = run(folder, "-n 8 --kv-load bad.kv --kv-save bad.kv", TEXT);
        assert_eq!(same.status, i32::from(!is_damage), "{told}: {}", same.stderr);
        let now = std::fs::read(folder.join("bad.kv")).unwrap();
        assert_eq!(now, if is_damage { &sound[..] } else { &bytes[..] }, "{told}");
    }
    // Of another policy, of another model, not there.
    let policy = "--kv-page 16 --kv-tail 0 --kv-sink 0 -ctk q8_0 -ctv turbo3";
    let other = output(torque(&format!("run -n 1 -p x --kv-load s.kv {policy}")).current_dir(folder));
    let told = "saved with `-ctk` turbo4; asked for is q8_0; starting without it";
    assert!(other.status == 0 && other.stderr.contains(told), "{}", other.stderr);
    let zoo = format!("run -n 1 -m {} -p x --kv-load s.kv", shared("zoo/llama-hd64.gguf"));
    let other = output(torque(&zoo).current_dir(folder));
    assert!(other.status == 0 && other.stderr.contains("another model, `"), "{}", other.stderr);
    let missing = run(folder, "-n 8 --kv-load missing.kv", TEXT);
    assert!(missing.status == 1 && missing.stderr.contains("missing.kv"), "{}", missing.stderr);
}

#[test]
fn what_cannot_be_saved_is_told_before_anything_is_read() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("model.gguf"), "GGUF and much more").unwrap();
    for target in ["model.gguf", "no/such/folder.kv", "."] {
        let refused = run(folder, &format!("-n 8 --kv-save {target}"), TEXT);
        assert_eq!((refused.status, &refused.stdout[..]), (1, ""), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("--kv-save") && refused.stderr.contains(target),
            "{}",
            refused.stderr
        );
    }
}

/// A disk that fills is a limit on the size of files here.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_what_was_there() {
    let folder = folder();
    let folder = folder.path();
    run(folder, "-n 1 --kv-save s.kv", "A short text");
    let before = std::fs::read(folder.join("s.kv")).unwrap();
    let torque = assert_cmd::cargo::cargo_bin!("torque");
    let limited = "trap '' XFSZ; ulimit -f 1; exec \"$0\" run --temp 0 -n 4 -p 'Another text' --kv-save s.kv";
    let mut shell = assert_cmd::Command::new("sh");
    let full = output(shell.args(["-c", limited]).arg(torque).current_dir(folder));
    assert_eq!(full.status, 1, "{}", full.stderr);
    for part in ["--kv-save", "s.kv", "nothing has changed", "large"] {
        assert!(full.stderr.contains(part), "{part}: {}", full.stderr);
    }
    assert!(full.stdout.starts_with("Another text"), "the text is not lost: {}", full.stdout);
    assert_eq!(std::fs::read(folder.join("s.kv")).unwrap(), before);
    assert_eq!(folder.read_dir().unwrap().count(), 1, "nothing else is left behind");
}

#[test]
fn a_conversation_goes_on_in_another_run() {
    let folder = folder();
    let folder = folder.path();
    let chat = |lines: &str| {
        let flags = "chat --temp 0 -n 8 -v --kv-load talk.kv --kv-save talk.kv";
        let chat = output(torque(flags).current_dir(folder).write_stdin(lines.to_string()));
        assert_eq!(chat.status, 0, "{}", chat.stderr);
        chat
    };
    let message = "word ".repeat(100);
    let first = chat(&format!("/system Be brief.\n{message}\n"));
    assert!(prompt_tokens(&first) > 100, "{}", first.stderr);
    let second = chat("short\n/save said.json\n");
    assert!(prompt_tokens(&second) < 30, "{}", second.stderr);
    let said = std::fs::read_to_string(folder.join("said.json")).unwrap();
    let said: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    let roles: Vec<_> = said.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    // Nothing said, nothing lost.
    let before = std::fs::read(folder.join("talk.kv")).unwrap();
    stdout(torque("chat --kv-save talk.kv").current_dir(folder).write_stdin("/quit\n"));
    assert_eq!(std::fs::read(folder.join("talk.kv")).unwrap(), before);
}
