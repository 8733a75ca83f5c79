use crate::{output, stdout, torque};

#[test]
fn piped_lines_are_answered_in_turn() {
    let chat = stdout(torque("chat --temp 0 -n 12").write_stdin("Hello\nAnd now?\n"));
    assert!(chat.lines().count() >= 2, "{chat}");
}

#[test]
fn commands_steer_the_conversation() {
    let folder = tempfile::tempdir().unwrap();
    let saved = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        let messages: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        messages.iter().map(|m| m["role"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    let lines = "/system Be brief.\nHello\n/save 1.json\nAgain\\\n on two lines\n/save 2.json\n/undo\n/save 3.json\n\
                 /regen\n/save 4.json\n/clear\n/save 5.json\n/stats\n/nonsense\n/help\n/quit\nunread\n";
    let chat = output(torque("chat --temp 0 -n 8").current_dir(folder.path()).write_stdin(lines));
    assert_eq!(chat.status, 0, "{}", chat.stderr);
    assert_eq!(saved("1.json"), ["system", "user", "assistant"]);
    assert_eq!(saved("2.json"), ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(saved("3.json"), saved("1.json"));
    assert_eq!(saved("4.json"), saved("1.json"));
    assert_eq!(saved("5.json"), ["system"]);
    for part in ["/nonsense is not a command", "/regen", "context", "tokens/s"] {
        assert!(chat.stderr.contains(part), "{part}: {}", chat.stderr);
    }
}

#[test]
fn a_conversation_reads_only_what_is_new() {
    let message = "word ".repeat(100);
    let chat = output(torque("chat --temp 0 -n 4 -v").write_stdin(format!("{message}\nshort\n")));
    let prompts: Vec<usize> = chat
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("prompt ")?.split(' ').next()?.parse().ok())
        .collect();
    assert!(prompts.len() == 2 && prompts[0] >= 100 && prompts[1] < 20, "{}", chat.stderr);
}

#[test]
fn a_full_context_is_said() {
    let chat = output(torque("chat --temp 0 -c 64").write_stdin("word ".repeat(100)));
    assert_eq!(chat.status, 1);
    assert!(chat.stderr.contains("/clear") && chat.stderr.contains("64"), "{}", chat.stderr);
}

#[test]
fn a_conversation_that_begins_alike_is_not_read_again() {
    let system = "You know what files are. ".repeat(20);
    let lines = format!(
        "/system {system}\nWhat is a file?\n/clear\n/system Be brief.\nHello\n/clear\n/system {system}\nHello\n"
    );
    let reused = |flags: &str| -> Vec<usize> {
        let chat = format!("chat --temp 0 -n 4 -v --kv-page 16 --kv-tail 0 -ctk turbo4 -ctv turbo3 {flags}");
        let chat = output(torque(&chat).write_stdin(&lines[..]));
        assert_eq!(chat.status, 0, "{}", chat.stderr);
        let answers = chat.stderr.lines().filter(|line| line.starts_with("prompt "));
        let reused = |line: &str| line.split_once(" more reused")?.0.rsplit(' ').next()?.parse().ok();
        answers.map(|line| reused(line).unwrap_or(0)).collect()
    };
    let [first, other, again] = reused("")[..] else { panic!("three answers") };
    assert!(first == 0 && other < 16 && again > 80, "{first} {other} {again}");
    assert!(reused("-cram 0")[2] < 16);
}
