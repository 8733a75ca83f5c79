//! A full context: the text ends, or the program forgets and goes on.

use crate::{output, stdout, torque};

/// Short pages, so that a short context forgets.
const PAGES: &str = "--kv-page 16 --kv-tail 16 --keep 16 -ctk turbo4 -ctv turbo3";

#[test]
fn a_text_stops_or_goes_on() {
    let run = |flags: &str| {
        let run = format!("run --temp 0 -c 96 -n 200 --ignore-eos {PAGES} {flags} -p");
        output(torque(&run).arg("The kernel"))
    };
    let stop = run("");
    assert_eq!(stop.status, 0, "{}", stop.stderr);
    assert!(
        stop.stderr.contains("context of 96 tokens is full") && stop.stderr.contains("--context-overflow")
    );
    assert_eq!(stop.stdout, run("--no-context-shift").stdout);
    let shift = run("--context-overflow shift");
    for (on, what) in [(&shift, "shift"), (&run("--context-overflow evict"), "evict")] {
        assert_eq!(on.status, 0, "{what}: {}", on.stderr);
        assert!(on.stderr.contains("decode 200 tokens"), "{what}: {}", on.stderr);
        assert!(on.stderr.contains("behind the first 16 are forgotten"), "{what}: {}", on.stderr);
        // Until the context is full it is the same text.
        assert!(on.stdout.starts_with(stop.stdout.trim_end_matches('\n')), "{what}: {}", on.stdout);
    }
    assert_eq!(shift.stdout, run("--context-shift").stdout);
}

#[test]
fn a_text_that_is_too_long_is_read_to_its_end() {
    let text = "The function returns an error if the file is not there. ".repeat(30);
    let run = |overflow: &str| {
        let run =
            format!("run --temp 0 -c 128 -n 8 --no-display-prompt {PAGES} --context-overflow {overflow}");
        output(torque(&run).write_stdin(&text[..]))
    };
    let stop = run("stop");
    assert!(stop.status == 1 && stop.stderr.contains("no room in a context of 128"), "{}", stop.stderr);
    for overflow in ["shift", "evict"] {
        let run = run(overflow);
        assert!(run.status == 0 && run.stdout.len() > 8, "{}", run.stderr);
        assert!(run.stderr.contains("are forgotten"), "{}", run.stderr);
    }
}

#[test]
fn a_conversation_goes_on_when_the_context_is_full() {
    let chat = |flags: &str| {
        let chat = format!("chat --temp 0 -n 20 -c 128 -v {PAGES} {flags}");
        output(torque(&chat).write_stdin("What is a file?\n".repeat(12)))
    };
    let stop = chat("");
    assert!(stop.status == 1 && stop.stderr.contains("larger -c"), "{}", stop.stderr);
    let answered = stop.stderr.matches("decode").count();
    assert!((1..12).contains(&answered), "{}", stop.stderr);
    for overflow in ["shift", "evict"] {
        let chat = chat(&format!("--context-overflow {overflow}"));
        assert_eq!(chat.status, 0, "{overflow}: {}", chat.stderr);
        assert_eq!(chat.stderr.matches("decode").count(), 12, "{overflow}: {}", chat.stderr);
        assert!(chat.stderr.contains("are forgotten"), "{overflow}: {}", chat.stderr);
    }
}

#[test]
fn what_has_forgotten_is_saved_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = |flags: &str, text: &str| {
        let run = format!("run --temp 0 -c 96 --ignore-eos --context-overflow shift {PAGES} {flags}");
        stdout(torque(&run).current_dir(folder.path()).write_stdin(text))
    };
    let text = "The function returns an error";
    let whole = run("-n 160", text);
    let first = run("-n 110 --kv-save s.kv", text);
    assert!(whole.starts_with(first.trim_end_matches('\n')));
    assert_eq!(run("-n 50 --kv-load s.kv", ""), whole);
}

#[test]
fn contexts_that_cannot_forget_are_refused() {
    for (flags, part) in [
        ("-c 300 --context-overflow shift", "`-c 512`"),
        ("-c 300 --context-overflow slide", "stop, shift, evict"),
    ] {
        let run = output(&mut torque(&format!("run -p x -n 1 {flags}")));
        assert!(run.status != 0 && run.stderr.contains(part), "{flags}: {}", run.stderr);
    }
}
