//! Byte-pair encoding with a list of merges: `gpt2` (byte-level) and `gemma4` (characters, bytes as a
//! fallback).

use hashbrown::HashMap;

use crate::characters::Characters;
use crate::merge::{Chain, Join, NONE, Symbol};
use crate::pre::{PreTokenizer, Splitter};
use crate::vocabulary::{ALPHABET, SPACE_MARK, Vocabulary};

/// Pairs of tokens that may be joined, in order of rank.
struct Merges {
    joins: HashMap<(u32, u32), Join>,
    /// Merges that name a token which is not in the vocabulary. They can never apply.
    skipped: usize,
}

impl Merges {
    /// Merges from lines of two token texts with a space between.
    fn new(lines: &[String], vocabulary: &Vocabulary) -> Merges {
        let mut merges = Merges { joins: HashMap::with_capacity(lines.len()), skipped: 0 };
        let mut joined = Vec::new();
        for (rank, line) in lines.iter().enumerate() {
            let join = split_merge(line).and_then(|(left, right)| {
                joined.clear();
                joined.extend_from_slice(left);
                joined.extend_from_slice(right);
                let pair = (vocabulary.mergeable(left)?, vocabulary.mergeable(right)?);
                Some((pair, Join { priority: rank as u32, id: vocabulary.mergeable(&joined)? }))
            });
            match join {
                // Of equal pairs the first counts.
                Some((pair, join)) => _ = merges.joins.entry(pair).or_insert(join),
                None => merges.skipped += 1,
            }
        }
        merges
    }

    fn get(&self, left: u32, right: u32) -> Option<Join> {
        self.joins.get(&(left, right)).copied()
    }
}

/// The two parts of a merge. The first part may itself start with a space.
fn split_merge(line: &str) -> Option<(&[u8], &[u8])> {
    let bytes = line.as_bytes();
    let space = bytes.iter().skip(1).position(|&byte| byte == b' ')? + 1;
    Some((&bytes[..space], &bytes[space + 1..]))
}

/// Byte-level encoding: every byte is a token to begin with.
pub(crate) struct ByteLevel {
    splitter: Splitter,
    ignore_merges: bool,
    merges: Merges,
    /// For every byte its token, or else the unknown token, or else `NONE`.
    bytes: [u32; 256],
}

impl ByteLevel {
    pub fn new(pre: &PreTokenizer, merges: &[String], vocabulary: &Vocabulary) -> ByteLevel {
        let token = |character: &char| vocabulary.id_of(character.encode_utf8(&mut [0; 4]).as_bytes());
        ByteLevel {
            splitter: pre.splitter(),
            ignore_merges: pre.ignore_merges,
            merges: Merges::new(merges, vocabulary),
            bytes: ALPHABET
                .each_ref()
                .map(|character| token(character).or(vocabulary.unknown).unwrap_or(NONE)),
        }
    }

    /// Merges that were skipped because the vocabulary lacks one of their tokens.
    pub fn skipped_merges(&self) -> usize {
        self.merges.skipped
    }

    /// Appends the tokens of a text. A byte that has no token becomes the unknown token, or nothing.
    pub fn encode(&self, text: &str, vocabulary: &Vocabulary, out: &mut Vec<u32>) {
        let mut chain = Chain::default();
        let mut spelled = String::new();
        self.splitter.split(text, &mut |word| {
            if self.ignore_merges {
                spelled.clear();
                spelled.extend(word.bytes().map(|byte| ALPHABET[byte as usize]));
                if let Some(id) = vocabulary.mergeable(spelled.as_bytes()) {
                    return out.push(id);
                }
            }
            chain.clear();
            for byte in word.bytes() {
                chain.push(1, self.bytes[byte as usize]);
            }
            chain.merge(|left, right| self.merges.get(left.id, right.id));
            out.extend(chain.symbols().map(|symbol| symbol.id).filter(|&id| id != NONE));
        });
    }
}

/// Gemma 4's encoding: characters with U+2581 for spaces, cut only around runs of newlines.
pub(crate) struct CharacterLevel {
    merges: Merges,
    characters: Characters,
}

impl CharacterLevel {
    pub fn new(merges: &[String], vocabulary: &Vocabulary) -> CharacterLevel {
        CharacterLevel { merges: Merges::new(merges, vocabulary), characters: Characters::new(vocabulary) }
    }

    /// Merges that were skipped because the vocabulary lacks one of their tokens.
    pub fn skipped_merges(&self) -> usize {
        self.merges.skipped
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, text: &str, vocabulary: &Vocabulary, out: &mut Vec<u32>) {
        let text = text.replace(' ', SPACE_MARK);
        let mut chain = Chain::default();
        for word in text.as_bytes().chunk_by(|a, b| (*a == b'\n') == (*b == b'\n')) {
            if word[0] == b'\n'
                && let Some(id) = vocabulary.mergeable(word)
            {
                out.push(id);
                continue;
            }
            let word = std::str::from_utf8(word).expect("the text is cut only beside newlines");
            let join = |left: &Symbol, right: &Symbol| self.merges.get(left.id, right.id);
            self.characters.encode(word, vocabulary, join, &mut chain, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_have_two_parts() {
        let cases = [
            ("a b", Some(("a", "b"))),
            ("  b", Some((" ", "b"))),
            ("a  ", Some(("a", " "))),
            ("ab", None),
            ("", None),
            (" ", None),
        ];
        for (line, expected) in cases {
            let expected = expected.map(|(left, right)| (left.as_bytes(), right.as_bytes()));
            assert_eq!(split_merge(line), expected, "{line:?}");
        }
    }
}
