//! Tokens to text, one at a time.

use std::sync::Arc;

use crate::vocabulary::Vocabulary;

/// Turns tokens into text as they are generated. What it has given out so far is always complete characters;
/// together with [`flush`](Detokenizer::flush) it equals [`Tokenizer::decode`](crate::Tokenizer::decode) of
/// all tokens.
#[derive(Clone)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    with_special: bool,
    at_start: bool,
    /// The beginning of a character whose other bytes have not come yet.
    pending: Vec<u8>,
}

impl Detokenizer {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>, with_special: bool) -> Detokenizer {
        Detokenizer { vocabulary, with_special, at_start: true, pending: Vec::new() }
    }

    pub(crate) fn continuing(vocabulary: Arc<Vocabulary>, with_special: bool) -> Detokenizer {
        Detokenizer { at_start: false, ..Detokenizer::new(vocabulary, with_special) }
    }

    /// The text that this token completes; often a word, sometimes nothing. Bytes that cannot become a
    /// character any more turn into U+FFFD.
    pub fn push(&mut self, token: u32) -> String {
        self.vocabulary.decode(token, self.with_special, &mut self.at_start, &mut self.pending);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, after) = rest.split_at(error.valid_up_to());
            text += &String::from_utf8_lossy(valid);
            // No length means that the bytes end inside a character.
            let Some(invalid) = error.error_len() else {
                self.pending = after.to_vec();
                return text;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &after[invalid..];
        }
        text += &String::from_utf8_lossy(rest);
        self.pending.clear();
        text
    }

    /// Ends the text: U+FFFD if it stops inside a character, else nothing. The next token begins a new text.
    pub fn flush(&mut self) -> String {
        self.at_start = true;
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}
