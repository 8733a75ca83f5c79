//! Text survives encoding and decoding, in one go and token by token.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use torque_gguf::Gguf;
use torque_tokenizer::{Encode, Tokenizer};

const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");

/// Of each kind a real vocabulary, if there is one, and a toy.
static TOKENIZERS: LazyLock<Vec<(&str, Tokenizer)>> = LazyLock::new(|| {
    let files = [
        "vocab/ggml-vocab-deepseek-llm.gguf",
        "vocab/ggml-vocab-falcon.gguf",
        "vocab/ggml-vocab-gpt-2.gguf",
        "vocab/ggml-vocab-llama-spm.gguf",
        "vocab/ggml-vocab-phi-3.gguf",
        "demo/demo.gguf",
        "zoo/gemma3.gguf",
        "zoo/gemma4-dense.gguf",
        "zoo/mistral3.gguf",
        "zoo/qwen35.gguf",
        "zoo/smollm3.gguf",
    ];
    let open = |file| {
        let gguf = Gguf::open(Path::new(SHARED).join(file)).unwrap();
        (file, Tokenizer::from_metadata(gguf.metadata()).unwrap())
    };
    files.into_iter().map(open).collect()
});

/// Anything at all, with a preference for what tokenizers trip over. U+2581 is how SentencePiece writes a
/// space.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        r"\PC{0,6}",
        any::<String>(),
        r"[ \t\r\n]{1,5}",
        r"[a-zA-Z0-9'., ]{1,12}",
        "(<s>|</s>|<\\|im_end\\|>|<0x41>|<unk>|<\\|end\\|>|\u{301}|🧑‍🚀)",
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat().replace('\u{2581}', "_"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoding_inverts_encoding(text in text()) {
        for (file, tokenizer) in TOKENIZERS.iter() {
            let tokens = tokenizer.encode(&text, Encode::default());
            prop_assert_eq!(tokenizer.decode(&tokens, false), text.as_str(), "{}", file);
            prop_assert!(!tokens.iter().any(|&id| tokenizer.is_control(id)), "{file} takes text for a control token");

            let tokens = tokenizer.encode(&text, Encode { add_special: true, parse_special: false });
            prop_assert_eq!(tokenizer.decode(&tokens, false), text.as_str(), "{} with special tokens", file);
        }
    }

    #[test]
    fn the_stream_equals_the_whole(
        seeds in prop::collection::vec(any::<u32>(), 0..40),
        text in text(),
        with_special in any::<bool>(),
    ) {
        for (file, tokenizer) in TOKENIZERS.iter() {
            let mut tokens = tokenizer.encode(&text, Encode::default());
            // Any sequence of tokens at all, among them one that does not exist.
            tokens.extend(seeds.iter().map(|seed| seed % (tokenizer.len() as u32 + 1)));
            let mut detokenizer = tokenizer.detokenizer(with_special);
            let mut streamed: String = tokens.iter().map(|&token| detokenizer.push(token)).collect();
            streamed += &detokenizer.flush();
            prop_assert_eq!(streamed, tokenizer.decode(&tokens, with_special), "{}", file);
        }
    }
}

#[test]
fn a_character_comes_out_when_it_is_complete() {
    let (_, tokenizer) = TOKENIZERS.iter().find(|(file, _)| file.contains("smollm3")).unwrap();
    let bytes = |bytes: &[u8]| -> Vec<u32> {
        let token =
            |byte: &u8| (0..tokenizer.len() as u32).find(|&id| tokenizer.token_bytes(id) == [*byte]).unwrap();
        bytes.iter().map(token).collect()
    };
    let cases: &[(&[u8], &[&str], &str)] = &[
        ("🙂a".as_bytes(), &["", "", "", "🙂", "a"], ""),
        (b"\xF0\x9F", &["", ""], "\u{FFFD}"),
        // The third byte shows that the first two never become a character.
        (b"\xF0\x9Fa", &["", "", "\u{FFFD}a"], ""),
        (b"\xFFa", &["\u{FFFD}", "a"], ""),
        (b"\xC3\xC3\xA9", &["", "\u{FFFD}", "é"], ""),
    ];
    for (input, expected, rest) in cases {
        let mut detokenizer = tokenizer.detokenizer(true);
        let pushed: Vec<String> = bytes(input).into_iter().map(|token| detokenizer.push(token)).collect();
        assert_eq!(pushed, *expected, "{input:x?}");
        assert_eq!(detokenizer.flush(), *rest, "{input:x?}");
    }
}

#[test]
fn the_space_before_the_first_word_is_ours() {
    let (_, tokenizer) = TOKENIZERS.iter().find(|(file, _)| file.contains("llama-spm")).unwrap();
    let parse = Encode { add_special: true, parse_special: true };
    for text in ["Hello", " Hello", "", " ", "<s>", "Hi<s>there</s> you"] {
        let tokens = tokenizer.encode(text, parse);
        let whole = if text.starts_with("<s>") { text.to_string() } else { format!("<s>{text}") };
        assert_eq!(tokenizer.decode(&tokens, true), whole);
    }
    assert_eq!(tokenizer.encode("<s>a", parse), tokenizer.encode("a", parse), "BOS is not doubled");
    let mut detokenizer = tokenizer.detokenizer(false);
    let hello = tokenizer.encode("Hello", Encode::default());
    assert_eq!(detokenizer.push(hello[0]), "Hello");
    assert_eq!(detokenizer.push(hello[0]), " Hello");
}
