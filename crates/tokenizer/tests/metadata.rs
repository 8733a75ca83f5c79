//! What the metadata says, and what happens when it is wrong.

use torque_gguf::{Metadata, Value};
use torque_tokenizer::{Encode, Error, Tokenizer};

const CONTROL: i32 = 3;

/// `a b c ab <s> </s> <|im_end|> <unk>` of one kind of tokenizer.
fn toy(model: &str) -> Metadata {
    let tokens = ["a", "b", "c", "ab", "<s>", "</s>", "<|im_end|>", "<unk>"];
    let mut types = vec![1, 1, 1, 1, CONTROL, CONTROL, CONTROL, 2];
    types.truncate(tokens.len());
    Metadata::from_iter::<[(&str, Value); _]>([
        ("tokenizer.ggml.model", model.to_string().into()),
        ("tokenizer.ggml.pre", "gpt-2".to_string().into()),
        ("tokenizer.ggml.tokens", tokens.map(String::from).to_vec().into()),
        ("tokenizer.ggml.token_type", types.into()),
        ("tokenizer.ggml.scores", vec![0f32; tokens.len()].into()),
        ("tokenizer.ggml.merges", vec!["a b".to_string()].into()),
        ("tokenizer.ggml.bos_token_id", 4u32.into()),
        ("tokenizer.ggml.eos_token_id", 5u32.into()),
        ("tokenizer.ggml.unknown_token_id", 7u32.into()),
        ("tokenizer.ggml.add_space_prefix", false.into()),
    ])
}

/// A key and its new value, or `None` to remove it.
type Change = (&'static str, Option<Value>);

/// The toy with some keys changed.
fn changed(model: &str, changes: &[Change]) -> Result<Tokenizer, Error> {
    let mut metadata = toy(model);
    for (key, value) in changes {
        match value {
            Some(value) => metadata.insert(*key, value.clone()),
            None => metadata.remove(key),
        };
    }
    Tokenizer::from_metadata(&metadata)
}

#[test]
fn errors_name_the_key() {
    let strings =
        |texts: &[&str]| Some(Value::from(texts.iter().map(|text| text.to_string()).collect::<Vec<_>>()));
    let cases: &[(&str, &'static str, Option<Value>, &str)] = &[
        ("gpt2", "tokenizer.ggml.model", None, "`tokenizer.ggml.model`"),
        ("t5", "", None, "`tokenizer.ggml.model` is `t5`; supported are `gpt2`, `llama` and `gemma4`"),
        ("gpt2", "tokenizer.ggml.tokens", None, "`tokenizer.ggml.tokens`"),
        ("gpt2", "tokenizer.ggml.tokens", Some(1u32.into()), "`tokenizer.ggml.tokens`"),
        (
            "gpt2",
            "tokenizer.ggml.tokens",
            strings(&["a"]),
            "`tokenizer.ggml.token_type` has 8 entries, but `tokenizer.ggml.tokens` has 1",
        ),
        ("gpt2", "tokenizer.ggml.merges", None, "`tokenizer.ggml.merges`"),
        ("gemma4", "tokenizer.ggml.merges", None, "`tokenizer.ggml.merges`"),
        ("llama", "tokenizer.ggml.scores", None, "`tokenizer.ggml.scores`"),
        (
            "llama",
            "tokenizer.ggml.scores",
            Some(vec![0f32].into()),
            "`tokenizer.ggml.scores` has 1 entries, but `tokenizer.ggml.tokens` has 8",
        ),
        (
            "gpt2",
            "tokenizer.ggml.bos_token_id",
            Some(8u32.into()),
            "`tokenizer.ggml.bos_token_id` is 8, but the vocabulary has 8 tokens",
        ),
        (
            "llama",
            "tokenizer.ggml.eot_token_id",
            Some(u32::MAX.into()),
            "`tokenizer.ggml.eot_token_id` is 4294967295, but the vocabulary has 8 tokens",
        ),
    ];
    for (model, key, value, expected) in cases {
        let error = changed(model, &[(key, value.clone())]).err().unwrap_or_else(|| panic!("{key} passes"));
        assert!(error.to_string().contains(expected), "{key}: {error}");
    }
    let missing =
        [("tokenizer.ggml.bos_token_id", None), ("tokenizer.ggml.add_bos_token", Some(true.into()))];
    let error = changed("gpt2", &missing).err().unwrap();
    assert!(error.to_string().contains("tokenizer.ggml.bos_token_id"), "{error}");
}

#[test]
fn oddities_are_warned_of() {
    let strings =
        |texts: &[&str]| Some(Value::from(texts.iter().map(|text| text.to_string()).collect::<Vec<_>>()));
    let cases: &[(&'static str, Option<Value>, &str)] = &[
        ("tokenizer.ggml.pre", None, "`tokenizer.ggml.pre` is missing; words are cut by the rule `default`"),
        (
            "tokenizer.ggml.pre",
            Some("new".to_string().into()),
            "`new`, which is not known; words are cut by the rule `default`",
        ),
        (
            "tokenizer.ggml.merges",
            strings(&["a b", "a x", "ab", "b c"]),
            "`tokenizer.ggml.merges`: 3 of 4 name tokens",
        ),
        (
            "tokenizer.ggml.tokens",
            strings(&["a", "b", "c", "ab", "a", "a", "", ""]),
            "`tokenizer.ggml.tokens` holds 2 texts twice",
        ),
    ];
    for (key, value, expected) in cases {
        let tokenizer = changed("gpt2", &[(key, value.clone())]).unwrap();
        let about_tokens: Vec<_> =
            tokenizer.warnings().iter().filter(|w| !w.contains("chat_template")).collect();
        assert!(about_tokens.len() == 1 && about_tokens[0].contains(expected), "{key}: {about_tokens:?}");
        assert_eq!(tokenizer.encode("ab", Encode::default()), [3], "{key}");
    }
}

#[test]
fn bos_and_eos_follow_the_file_and_its_kind() {
    const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
    const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    const PRE: &str = "tokenizer.ggml.pre";
    let yes = || Some(Value::from(true));
    let no = || Some(Value::from(false));
    let cases: &[(&str, &[Change], &[u32])] = &[
        ("gpt2", &[], &[2]),
        ("gpt2", &[(ADD_BOS, yes())], &[4, 2]),
        ("gpt2", &[(ADD_EOS, yes())], &[2, 5]),
        ("gpt2", &[(PRE, Some("llama-bpe".to_string().into()))], &[4, 2]),
        ("gpt2", &[(PRE, Some("llama-bpe".to_string().into())), (ADD_BOS, no())], &[2]),
        ("llama", &[], &[4, 2]),
        ("llama", &[(ADD_BOS, no())], &[2]),
        ("gemma4", &[(ADD_BOS, no())], &[4, 2]),
    ];
    for (model, changes, expected) in cases {
        let tokenizer = changed(model, changes).unwrap();
        let add = Encode { add_special: true, parse_special: true };
        assert_eq!(tokenizer.encode("c", add), *expected, "{model} {changes:?}");
        assert_eq!(tokenizer.encode("c", Encode::default()), [2], "{model} {changes:?}");
        let twice = tokenizer.encode("<s>c", add);
        assert_eq!(twice.iter().filter(|&&id| id == 4).count(), 1, "{model} {changes:?}: {twice:?}");
    }
}

#[test]
fn generation_ends_where_the_family_ends_it() {
    type Ids = &'static [(&'static str, u32)];
    let cases: &[(&[&str], Ids, &[u32])] = &[
        // Qwen
        (&["<|endoftext|>", "<|im_start|>", "<|im_end|>"], &[("eos", 2)], &[0, 2]),
        // gpt-oss: `<|end|>` closes the thoughts, not the answer, even if the file says otherwise.
        (
            &["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"],
            &[("eos", 4)],
            &[4, 5],
        ),
        (&["<|start|>", "<|end|>", "<|return|>", "<|call|>"], &[("eos", 2), ("eot", 1)], &[2, 3]),
        // Gemma 3 and 4, where `</s>` is an HTML tag.
        (&["<eos>", "<start_of_turn>", "<end_of_turn>", "</s>"], &[("eos", 0)], &[0, 2]),
        (&["<eos>", "<|turn>", "<turn|>", "</s>", "<|tool_response>"], &[("eos", 0), ("eot", 2)], &[0, 2, 4]),
        // DeepSeek
        (&["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜end▁of▁sentence｜>"], &[("eos", 2)], &[2]),
        // GLM: the model opens the next message. By the ids of the file, and by name.
        (
            &["<|endoftext|>", "<|user|>", "<|observation|>"],
            &[("eos", 0), ("eot", 1), ("eom", 2)],
            &[0, 1, 2],
        ),
        (&["<|endoftext|>", "<|user|>", "<|observation|>", "[gMASK]"], &[("eos", 0)], &[0, 1, 2]),
        // Elsewhere `<|user|>` is no end.
        (&["<|endoftext|>", "<|user|>", "<|end|>"], &[("eos", 0)], &[0, 2]),
    ];
    for (tokens, ids, expected) in cases {
        let mut metadata = toy("gpt2");
        let count = tokens.len();
        metadata.insert(
            "tokenizer.ggml.tokens",
            Value::from(tokens.iter().map(|text| text.to_string()).collect::<Vec<_>>()),
        );
        metadata.insert("tokenizer.ggml.token_type", Value::from(vec![1i32; count]));
        metadata.insert("tokenizer.ggml.merges", Value::from(Vec::<String>::new()));
        for key in ["bos", "eos", "unknown"] {
            metadata.remove(&format!("tokenizer.ggml.{key}_token_id"));
        }
        for (name, id) in *ids {
            metadata.insert(format!("tokenizer.ggml.{name}_token_id"), Value::from(*id));
        }
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        assert_eq!(tokenizer.end_of_generation(), *expected, "{tokens:?}");
        for &id in *expected {
            let typed = tokenizer.encode(tokens[id as usize], Encode::default());
            assert!(!typed.contains(&id), "{tokens:?}: users can type {}", tokens[id as usize]);
        }
    }
}

#[test]
fn control_tokens_need_permission() {
    for model in ["gpt2", "llama", "gemma4"] {
        let tokenizer = changed(model, &[]).unwrap();
        let parse = Encode { add_special: false, parse_special: true };
        assert_eq!(tokenizer.encode("ab<|im_end|>c", parse), [3, 6, 2], "{model}");
        let typed = tokenizer.encode("ab<|im_end|>c", Encode::default());
        assert!(!typed.contains(&6), "{model}: {typed:?}");
        // What no token stands for becomes the unknown token.
        assert_eq!(tokenizer.encode("axb", Encode::default()), [0, 7, 1], "{model}");
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.eot()), (Some(4), Some(5), Some(6)));
        assert_eq!(tokenizer.end_of_generation(), [5, 6], "{model}");
        assert_eq!(tokenizer.decode(&[0, 6, 2, 99], false), "ac", "{model}");
        assert_eq!(tokenizer.decode(&[0, 6, 2, 99], true), "a<|im_end|>c", "{model}");
    }
}

#[test]
fn extra_spaces_go_if_the_file_says_so() {
    let tokens: Vec<String> = ["▁", "a", "b"].map(String::from).to_vec();
    let changes = [
        ("tokenizer.ggml.tokens", Some(tokens.into())),
        ("tokenizer.ggml.token_type", None),
        ("tokenizer.ggml.scores", Some(vec![0f32; 3].into())),
        ("tokenizer.ggml.bos_token_id", None),
        ("tokenizer.ggml.eos_token_id", None),
        ("tokenizer.ggml.unknown_token_id", None),
        ("tokenizer.ggml.add_bos_token", Some(false.into())),
        ("tokenizer.ggml.add_space_prefix", Some(true.into())),
        ("tokenizer.ggml.remove_extra_whitespaces", Some(true.into())),
    ];
    let tokenizer = changed("llama", &changes).unwrap();
    assert_eq!(tokenizer.encode("  a   b ", Encode::default()), [0, 1, 0, 2]);
    let tokenizer = changed("llama", &changes[..8]).unwrap();
    assert_eq!(tokenizer.encode(" a  b", Encode::default()), [0, 0, 1, 0, 0, 2]);
}
