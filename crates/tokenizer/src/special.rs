//! Tokens that are found in the text before anything else, and tokens that are known by name.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::vocabulary::{TokenType, Vocabulary};

/// A part of a text.
#[derive(Debug, PartialEq)]
pub(crate) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Finds special tokens in text. Of tokens that begin at the same place the longest is taken.
pub(crate) struct SpecialTokens {
    /// User-defined tokens, which are always taken out.
    user_defined: Finder,
    /// Those and control tokens, for text that was rendered by a chat template.
    all: Finder,
}

struct Finder {
    automaton: AhoCorasick,
    ids: Vec<u32>,
    /// Per pattern, whether the token swallows the white space after it.
    strips_right: Vec<bool>,
}

impl SpecialTokens {
    /// The special tokens of a vocabulary. `strips_right` says which swallow the white space after them.
    pub fn new(vocabulary: &Vocabulary, strips_right: impl Fn(u32) -> bool) -> SpecialTokens {
        let finder = |wanted: &dyn Fn(TokenType) -> bool| {
            let found =
                |&(id, token_type): &(u32, TokenType)| wanted(token_type) && !vocabulary.text(id).is_empty();
            let ids: Vec<u32> = vocabulary.types().filter(found).map(|(id, _)| id).collect();
            let automaton = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(ids.iter().map(|&id| vocabulary.text(id)))
                .expect("the texts of a vocabulary stay far below the automaton's 2³¹ states");
            Finder { automaton, strips_right: ids.iter().map(|&id| strips_right(id)).collect(), ids }
        };
        SpecialTokens {
            user_defined: finder(&|token_type| token_type == TokenType::UserDefined),
            all: finder(&TokenType::is_special),
        }
    }

    /// Calls `emit` with the fragments of a text, in order. Text fragments are not empty.
    pub fn split<'t>(&self, text: &'t str, parse_special: bool, mut emit: impl FnMut(Fragment<'t>)) {
        let finder = if parse_special { &self.all } else { &self.user_defined };
        let mut done = 0;
        for found in finder.automaton.find_iter(text) {
            // Tokens are UTF-8, so they begin and end between characters. White space that was swallowed may
            // hide a match.
            if found.start() < done {
                continue;
            }
            if found.start() > done {
                emit(Fragment::Text(&text[done..found.start()]));
            }
            emit(Fragment::Token(finder.ids[found.pattern().as_usize()]));
            done = found.end();
            if finder.strips_right[found.pattern().as_usize()] {
                done = text.len() - text[done..].trim_ascii_start().len();
            }
        }
        if done < text.len() {
            emit(Fragment::Text(&text[done..]));
        }
    }
}

/// Names of the token that ends a turn, in order of preference.
pub(crate) const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

/// Name of the token that ends a message but not the turn: a tool is called.
pub(crate) const END_OF_MESSAGE: &[&str] = &["<|eom_id|>"];

/// Names of tokens after which nothing more is generated.
const END_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // Code models end an infilled middle with one of these.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Tokens of the list above that mean something else when all the others named are in the vocabulary too: in
/// the harmony format (gpt-oss) `<|end|>` separates the messages of one answer, in Gemma `</s>` is an HTML
/// tag.
const NOT_AN_END: &[(&str, &[&str])] = &[
    ("<|end|>", &["<|return|>", "<|call|>"]),
    ("<|end|>", &["<|calls|>", "<|flush|>"]),
    ("</s>", &["<|tool_response>"]),
    ("</s>", &["<end_of_turn>"]),
];

/// Tokens that end the generation when the other named is in the vocabulary too: GLM opens the next message
/// instead of closing its own.
const ALSO_AN_END: &[(&str, &str)] = &[("<|user|>", "[gMASK]"), ("<|observation|>", "[gMASK]")];

/// The tokens of a vocabulary that end the generation by their name.
pub(crate) fn end_of_generation(vocabulary: &Vocabulary) -> Vec<u32> {
    let id = |name: &str| vocabulary.id_of(name.as_bytes());
    let ends = END_OF_GENERATION.iter().copied().filter(|name| is_end(vocabulary, name.as_bytes()));
    let also = ALSO_AN_END.iter().filter(|(_, with)| id(with).is_some()).map(|(name, _)| *name);
    ends.chain(also).filter_map(id).collect()
}

/// The first token of a list of names that end something which the vocabulary has.
pub(crate) fn first_named(vocabulary: &Vocabulary, names: &[&str]) -> Option<u32> {
    let ends = names.iter().filter(|name| is_end(vocabulary, name.as_bytes()));
    ends.filter_map(|name| vocabulary.id_of(name.as_bytes())).next()
}

/// Whether a token of this name can end anything in this vocabulary.
pub(crate) fn is_end(vocabulary: &Vocabulary, name: &[u8]) -> bool {
    let there = |name: &&str| vocabulary.id_of(name.as_bytes()).is_some();
    !NOT_AN_END.iter().any(|(not, with)| not.as_bytes() == name && with.iter().all(&there))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::Spelling;
    use Fragment::{Text, Token};

    fn vocabulary(tokens: &[(&str, TokenType)]) -> Vocabulary {
        let texts: Vec<String> = tokens.iter().map(|(text, _)| text.to_string()).collect();
        Vocabulary::new(
            &texts,
            tokens.iter().map(|(_, token_type)| *token_type).collect(),
            Spelling::SpaceMark,
        )
    }

    #[test]
    fn special_tokens_are_cut_out() {
        use TokenType::*;
        let vocabulary = vocabulary(&[
            ("<a>", Control),
            ("<a><b>", Control),
            ("  ", UserDefined),
            ("", Control),
            ("x", Normal),
        ]);
        let special = SpecialTokens::new(&vocabulary, |id| id == 0);
        let cases: &[(&str, bool, &[Fragment])] = &[
            ("", true, &[]),
            ("x<a>x", false, &[Text("x<a>x")]),
            ("x<a>x", true, &[Text("x"), Token(0), Text("x")]),
            ("<a><b>", true, &[Token(1)]),
            ("<a> \n x", true, &[Token(0), Text("x")]),
            ("<a>   x", true, &[Token(0), Text("x")]),
            ("é  é", false, &[Text("é"), Token(2), Text("é")]),
            ("   ", false, &[Token(2), Text(" ")]),
        ];
        for (text, parse_special, expected) in cases {
            let mut fragments = Vec::new();
            special.split(text, *parse_special, |fragment| fragments.push(fragment));
            assert_eq!(fragments, *expected, "{text:?}");
        }
    }

    #[test]
    fn ends_are_found_by_name() {
        let cases: &[(&[&str], &[u32])] = &[
            (&["<|im_start|>", "<|im_end|>", "<|endoftext|>"], &[1, 2]),
            (&["<|end|>", "<|user|>"], &[0]),
            (&["<|end|>", "<|call|>", "<|return|>"], &[2, 1]),
            (&["</s>", "<|tool_response>"], &[1]),
            (&["<eos>", "</s>", "<|turn>", "<turn|>", "<|tool_response>", "<|channel>"], &[0, 3, 4]),
            (&["<eos>", "<start_of_turn>", "<end_of_turn>", "</s>"], &[2, 0]),
            (
                &["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|observation|>", "<|assistant|>"],
                &[0, 3, 4],
            ),
            (&["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"], &[1]),
        ];
        for (texts, expected) in cases {
            let tokens: Vec<_> = texts.iter().map(|text| (*text, TokenType::Control)).collect();
            assert_eq!(end_of_generation(&vocabulary(&tokens)), *expected, "{texts:?}");
        }
    }
}
