//! SentencePiece's byte-pair encoding (`tokenizer.ggml.model` = `llama`): adjacent symbols are joined when
//! their text is a token, the best score first; characters that are no token fall back to `<0xXX>` bytes.

use std::borrow::Cow;

use crate::characters::Characters;
use crate::merge::{Chain, Join, Symbol};
use crate::vocabulary::{SPACE_MARK, Vocabulary};

pub(crate) struct SentencePiece {
    /// Per token; the greatest score is the smallest number.
    priorities: Vec<u32>,
    characters: Characters,
    /// No token has a space after something else, so no merge crosses the beginning of a word and words can
    /// be encoded one by one, which is faster and gives the same result.
    by_words: bool,
    /// Runs of spaces become one, and those at the ends vanish.
    remove_extra_whitespaces: bool,
}

impl SentencePiece {
    /// `scores` has an entry per token.
    pub fn new(
        scores: impl Iterator<Item = f32>,
        remove_extra_whitespaces: bool,
        vocabulary: &Vocabulary,
    ) -> SentencePiece {
        let crosses = |id: u32| {
            let text = vocabulary.text(id);
            let inner = text.windows(SPACE_MARK.len()).enumerate().skip(1);
            inner
                .into_iter()
                .any(|(at, w)| w == SPACE_MARK.as_bytes() && !text[..at].ends_with(SPACE_MARK.as_bytes()))
        };
        SentencePiece {
            priorities: scores.map(descending).collect(),
            characters: Characters::new(vocabulary),
            by_words: !(0..vocabulary.len() as u32).any(crosses),
            remove_extra_whitespaces,
        }
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, text: &str, vocabulary: &Vocabulary, out: &mut Vec<u32>) {
        let mut text = Cow::Borrowed(text);
        if self.remove_extra_whitespaces {
            text = text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").into();
        }
        let mut escaped = String::with_capacity(text.len() + text.len() / 2);
        if vocabulary.space_prefix && !text.is_empty() {
            escaped.push_str(SPACE_MARK);
        }
        for character in text.chars() {
            if character == ' ' { escaped.push_str(SPACE_MARK) } else { escaped.push(character) }
        }

        let mut chain = Chain::default();
        let mut rest = escaped.as_str();
        while !rest.is_empty() {
            let (word, after) = rest.split_at(if self.by_words { first_word(rest) } else { rest.len() });
            let join = |left: &Symbol, right: &Symbol| {
                let id = vocabulary.mergeable(&word.as_bytes()[left.start..right.start + right.len])?;
                Some(Join { priority: self.priorities[id as usize], id })
            };
            self.characters.encode(word, vocabulary, join, &mut chain, out);
            rest = after;
        }
    }
}

/// The length of the first word with the spaces before it.
fn first_word(text: &str) -> usize {
    let spaces = text.len() - text.trim_start_matches(SPACE_MARK).len();
    text[spaces..].find(SPACE_MARK).map_or(text.len(), |length| spaces + length)
}

/// Maps scores to numbers in reverse order: of two scores the greater has the smaller number.
fn descending(score: f32) -> u32 {
    // Adding zero makes −0 equal to 0.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_ordered() {
        let scores = [f32::INFINITY, 3.5, 1e-9, 0.0, -1e-9, -2.0, -31740.0, f32::NEG_INFINITY];
        for pair in scores.windows(2) {
            assert!(descending(pair[0]) < descending(pair[1]), "{pair:?}");
        }
        assert_eq!(descending(0.0), descending(-0.0));
    }

    #[test]
    fn words_begin_with_their_spaces() {
        for (text, expected) in [("▁▁a▁b", "▁▁a"), ("a▁b", "a"), ("▁", "▁"), ("a", "a"), ("▁▁", "▁▁")]
        {
            assert_eq!(&text[..first_word(text)], expected);
        }
    }
}
