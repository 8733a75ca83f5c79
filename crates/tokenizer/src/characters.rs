//! Encoding that starts from characters and falls back to bytes: what SentencePiece and Gemma 4 share.

use crate::merge::{Chain, Join, NONE, Symbol};
use crate::vocabulary::Vocabulary;

pub(crate) struct Characters {
    /// For every byte its token `<0xXX>`, or else the unknown token.
    bytes: [Option<u32>; 256],
}

impl Characters {
    pub fn new(vocabulary: &Vocabulary) -> Characters {
        let token = |byte: usize| vocabulary.id_of(format!("<0x{byte:02X}>").as_bytes());
        Characters { bytes: std::array::from_fn(|byte| token(byte).or(vocabulary.unknown)) }
    }

    /// Appends the tokens of a word: its characters, joined as `join` allows. A character that is no token
    /// becomes its bytes; a byte that has no token either is dropped.
    pub fn encode(
        &self,
        word: &str,
        vocabulary: &Vocabulary,
        join: impl Fn(&Symbol, &Symbol) -> Option<Join>,
        chain: &mut Chain,
        out: &mut Vec<u32>,
    ) {
        chain.clear();
        let mut buffer = [0; 4];
        for character in word.chars() {
            let id = vocabulary.mergeable(character.encode_utf8(&mut buffer).as_bytes());
            chain.push(character.len_utf8(), id.unwrap_or(NONE));
        }
        chain.merge(join);
        for symbol in chain.symbols() {
            if symbol.id == NONE {
                let bytes = &word.as_bytes()[symbol.start..symbol.start + symbol.len];
                out.extend(bytes.iter().filter_map(|&byte| self.bytes[byte as usize]));
            } else {
                out.push(symbol.id);
            }
        }
    }
}
