//! The tokens themselves: their text in the file, their bytes in the output, their types.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// U+2581, which stands for a space in SentencePiece vocabularies.
pub(crate) const SPACE_MARK: &str = "\u{2581}";

/// Token types, numbered as in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenType {
    /// The type with this number. Numbers that mean nothing are taken as normal, as converters write 0 for
    /// "undefined".
    pub fn from_number(number: i32) -> TokenType {
        use TokenType::*;
        [Unknown, Control, UserDefined, Unused, Byte]
            .into_iter()
            .find(|t| *t as i32 == number)
            .unwrap_or(Normal)
    }

    /// Whether the token is taken out of the text before merging, and its text is meant literally.
    pub fn is_special(self) -> bool {
        matches!(self, TokenType::Unknown | TokenType::Control | TokenType::UserDefined)
    }
}

/// How the text of a normal token in the file stands for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Every byte is one character of the byte-level alphabet.
    ByteLevel,
    /// UTF-8 with U+2581 for a space; `<0xXX>` tokens for single bytes.
    SpaceMark,
}

/// Byte strings end to end in one allocation.
#[derive(Default)]
struct Arena {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Arena {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..self.ends[index]]
    }
}

/// All tokens of a model.
pub(crate) struct Vocabulary {
    /// Text as in the file.
    texts: Arena,
    /// Bytes that the token stands for.
    pieces: Arena,
    types: Vec<TokenType>,
    by_text: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// A token of this text stands for the space before the first word, which decoding takes away again.
    pub space_prefix: bool,
    /// What stands for bytes that have no token.
    pub unknown: Option<u32>,
    /// Texts that occur twice; the first one is found by text.
    pub duplicates: usize,
}

impl Vocabulary {
    /// Tokens from their texts and types, which have equal lengths below 2³².
    pub fn new(texts: &[String], types: Vec<TokenType>, spelling: Spelling) -> Vocabulary {
        let mut vocabulary = Vocabulary {
            texts: Arena::default(),
            pieces: Arena::default(),
            by_text: HashTable::with_capacity(types.len()),
            types,
            hasher: DefaultHashBuilder::default(),
            space_prefix: false,
            unknown: None,
            duplicates: 0,
        };
        let mut piece = Vec::new();
        for (id, text) in texts.iter().enumerate() {
            piece.clear();
            spell(text, vocabulary.types[id], spelling, &mut piece);
            vocabulary.pieces.push(&piece);
            vocabulary.texts.push(text.as_bytes());
            if text.is_empty() {
                continue;
            }
            if vocabulary.id_of(text.as_bytes()).is_some() {
                vocabulary.duplicates += 1;
                continue;
            }
            let Vocabulary { texts, by_text, hasher, .. } = &mut vocabulary;
            let hash = hasher.hash_one(text.as_bytes());
            by_text.insert_unique(hash, id as u32, |&id| hasher.hash_one(texts.get(id as usize)));
        }
        vocabulary
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// The token with this text, of whatever type.
    pub fn id_of(&self, text: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.by_text.find(hash, |&id| self.texts.get(id as usize) == text).copied()
    }

    /// The token with this text that merging may produce. Control, unknown and byte tokens do not arise from
    /// ordinary text, as in SentencePiece itself; otherwise text could forge a turn of the conversation.
    pub fn mergeable(&self, text: &[u8]) -> Option<u32> {
        use TokenType::*;
        self.id_of(text).filter(|&id| matches!(self.types[id as usize], Normal | UserDefined | Unused))
    }

    /// The text of a token as in the file.
    pub fn text(&self, id: u32) -> &[u8] {
        self.texts.get(id as usize)
    }

    /// The bytes that a token stands for; none for an id outside the vocabulary.
    pub fn piece(&self, id: u32) -> &[u8] {
        if (id as usize) < self.len() { self.pieces.get(id as usize) } else { &[] }
    }

    /// The type of a token; `Unknown` for an id outside the vocabulary.
    pub fn token_type(&self, id: u32) -> TokenType {
        self.types.get(id as usize).copied().unwrap_or(TokenType::Unknown)
    }

    /// Changes the type of a token inside the vocabulary.
    pub fn set_type(&mut self, id: u32, token_type: TokenType) {
        self.types[id as usize] = token_type;
    }

    /// All tokens with their types.
    pub fn types(&self) -> impl Iterator<Item = (u32, TokenType)> {
        self.types.iter().enumerate().map(|(id, token_type)| (id as u32, *token_type))
    }

    /// Appends what the token contributes to the output. `at_start` is true before the first token and after
    /// special ones; there, a vocabulary with a space prefix has a space too many.
    pub fn decode(&self, id: u32, with_special: bool, at_start: &mut bool, out: &mut Vec<u8>) {
        let token_type = self.token_type(id);
        let mut piece = self.piece(id);
        if token_type.is_special() {
            *at_start = true;
            if !with_special && token_type != TokenType::UserDefined {
                return;
            }
        } else {
            if *at_start && self.space_prefix {
                piece = piece.strip_prefix(b" ").unwrap_or(piece);
            }
            *at_start = false;
        }
        out.extend_from_slice(piece);
    }
}

/// Appends the bytes that a token's text stands for.
fn spell(text: &str, token_type: TokenType, spelling: Spelling, out: &mut Vec<u8>) {
    let literal = |out: &mut Vec<u8>| out.extend_from_slice(text.as_bytes());
    match (token_type, spelling) {
        (TokenType::Byte, _) => match parse_byte(text) {
            Some(byte) => out.push(byte),
            None => literal(out),
        },
        (token_type, _) if token_type.is_special() => literal(out),
        (_, Spelling::SpaceMark) => out.extend_from_slice(text.replace(SPACE_MARK, " ").as_bytes()),
        (_, Spelling::ByteLevel) => {
            let length = out.len();
            for character in text.chars() {
                match byte_of(character) {
                    Some(byte) => out.push(byte),
                    // A character outside the alphabet: a token added by hand, meant as it is.
                    None => {
                        out.truncate(length);
                        return literal(out);
                    }
                }
            }
        }
    }
}

/// The byte in `<0xXX>`.
fn parse_byte(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The byte-level alphabet of GPT-2: printable Latin-1 stands for itself, the other 68 bytes for U+0100
/// onwards.
pub(crate) const ALPHABET: [char; 256] = {
    let mut alphabet = ['\0'; 256];
    let mut shifted = 0;
    let mut byte = 0;
    while byte < 256 {
        let itself = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if itself { byte as u32 } else { 256 + shifted };
        shifted += !itself as u32;
        alphabet[byte] = char::from_u32(code).expect("below the surrogates");
        byte += 1;
    }
    assert!(shifted == 68);
    alphabet
};

/// The byte that a character of the alphabet stands for.
fn byte_of(character: char) -> Option<u8> {
    const BYTES: [Option<u8>; 256 + 68] = {
        let mut bytes = [None; 256 + 68];
        let mut byte = 0;
        while byte < 256 {
            bytes[ALPHABET[byte] as usize] = Some(byte as u8);
            byte += 1;
        }
        bytes
    };
    BYTES.get(character as usize).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        for byte in 0..=255 {
            assert_eq!(byte_of(ALPHABET[byte as usize]), Some(byte));
        }
        assert_eq!((ALPHABET[b' ' as usize], ALPHABET[b'\n' as usize]), ('Ġ', 'Ċ'));
        assert_eq!(byte_of('日'), None);
    }

    #[test]
    fn texts_become_bytes() {
        use {Spelling::*, TokenType::*};
        let cases: &[(&str, TokenType, Spelling, &[u8])] = &[
            ("Ġthe", Normal, ByteLevel, b" the"),
            ("Ã©", Normal, ByteLevel, "é".as_bytes()),
            ("Ã©", UserDefined, ByteLevel, "Ã©".as_bytes()),
            ("日", Normal, ByteLevel, "日".as_bytes()),
            ("▁the▁", Normal, SpaceMark, b" the "),
            ("▁", Control, SpaceMark, "▁".as_bytes()),
            ("<0xE9>", Byte, SpaceMark, b"\xE9"),
            ("<0xE9>", Normal, SpaceMark, b"<0xE9>"),
            ("<0x>", Byte, SpaceMark, b"<0x>"),
        ];
        for (text, token_type, spelling, expected) in cases {
            let mut out = Vec::new();
            spell(text, *token_type, *spelling, &mut out);
            assert_eq!(out, *expected, "{text} {token_type:?} {spelling:?}");
        }
    }
}
