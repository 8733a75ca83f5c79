use crate::{shared, stdout, torque};

#[test]
fn tokens_are_those_of_the_reference() {
    // Every case of one vocabulary, and the first of the others.
    for (vocabulary, cases) in
        [("gpt-2", 100), ("llama-spm", 12), ("phi-3", 12), ("falcon", 6), ("deepseek-llm", 6)]
    {
        let model = shared(&format!("vocab/ggml-vocab-{vocabulary}.gguf"));
        let input = std::fs::read_to_string(format!("{model}.inp")).unwrap();
        let expected = std::fs::read_to_string(format!("{model}.out")).unwrap();
        for (text, ids) in input.split("\n__ggml_vocab_test__\n").zip(expected.lines()).take(cases) {
            let mut command = torque("tokenize --ids --no-bos --no-parse-special -m");
            let found = stdout(command.arg(&model).write_stdin(text));
            assert_eq!(found.trim(), ids.trim(), "{vocabulary}: {text:?}");
        }
    }
}

#[test]
fn pieces_are_listed_one_a_line() {
    let text = stdout(&mut torque("tokenize -p !<|end|>"));
    assert_eq!(text, "     0 -> '<|doc|>'\n     4 -> '!'\n     1 -> '<|end|>'\n");
    assert_eq!(stdout(&mut torque("tokenize --ids -p !<|end|>")), "0 4 1\n");
    assert_eq!(stdout(&mut torque("tokenize --ids --no-bos -p !<|end|>")), "4 1\n");
    let plain = stdout(&mut torque("tokenize --ids --no-bos --no-parse-special -p !<|end|>"));
    assert!(plain.starts_with("4 ") && plain.split(' ').count() > 3, "{plain}");
}
