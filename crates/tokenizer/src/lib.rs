//! Text to tokens and back, and chat templates, from GGUF metadata alone.
//!
//! [`Tokenizer::from_metadata`] reads the `tokenizer.*` keys. Three kinds are known: byte-level BPE (`gpt2`,
//! with the pre-tokenizer that `tokenizer.ggml.pre` names), SentencePiece BPE (`llama`), and Gemma 4's
//! character-level BPE (`gemma4`).
//!
//! The merge loop is our own: general libraries ask for a list of merges, which SentencePiece files do not
//! have, build their own copies of a vocabulary of 150 000 strings, and bring far more than the hundred lines
//! it takes.

#![forbid(unsafe_code)]

mod bpe;
mod characters;
mod chat;
mod detokenizer;
mod error;
mod merge;
mod pre;
mod sentencepiece;
mod special;
mod vocabulary;

use std::sync::Arc;

pub use chat::ChatTemplate;
pub use detokenizer::Detokenizer;
pub use error::Error;

use bpe::{ByteLevel, CharacterLevel};
use pre::PreTokenizer;
use sentencepiece::SentencePiece;
use special::{Fragment, SpecialTokens};
use torque_gguf::Metadata;
use vocabulary::{Spelling, TokenType, Vocabulary};

/// How [`Tokenizer::encode`] treats what is not plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encode {
    /// Adds BOS and EOS where the model's rules ask for them. A text that already begins with BOS gets no
    /// second one.
    pub add_special: bool,
    /// Takes `<|im_start|>` and the like in the text as the tokens they name. For text from a chat template;
    /// never for what a user typed.
    pub parse_special: bool,
}

/// The tokenizer of a model.
pub struct Tokenizer {
    vocabulary: Arc<Vocabulary>,
    model: Model,
    special: SpecialTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// Sorted.
    end_of_generation: Vec<u32>,
    chat_template: Option<ChatTemplate>,
    warnings: Vec<String>,
}

enum Model {
    ByteLevel(ByteLevel),
    CharacterLevel(CharacterLevel),
    SentencePiece(SentencePiece),
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";

impl Tokenizer {
    /// Reads the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// A key that is missing or does not fit the others, and a chat template that cannot be parsed.
    /// Deviations that leave the tokenizer usable become [`warnings`](Tokenizer::warnings).
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer, Error> {
        let mut warnings = Vec::new();
        let kind = metadata.required::<&str>("tokenizer.ggml.model")?;
        let (spelling, sentencepiece) = match kind {
            "gpt2" => (Spelling::ByteLevel, false),
            "gemma4" => (Spelling::SpaceMark, false),
            "llama" => (Spelling::SpaceMark, true),
            _ => return Err(Error::Model { found: kind.into() }),
        };
        let pre = match kind {
            "gpt2" => Some(pre_tokenizer(metadata.string("tokenizer.ggml.pre")?, &mut warnings)),
            _ => None,
        };

        let tokens = metadata.required::<&[String]>(TOKENS)?;
        let types = token_types(metadata, tokens, sentencepiece)?;
        let mut vocabulary = Vocabulary::new(tokens, types, spelling);
        if vocabulary.duplicates > 0 {
            warnings.push(format!(
                "`{TOKENS}` holds {} texts twice; the first of each is used",
                vocabulary.duplicates
            ));
        }

        // SentencePiece files may leave out the ids that the original always has.
        let id = |key: &'static str, default: u32| match metadata.u32(key)? {
            Some(found) if found as usize >= tokens.len() => {
                Err(Error::TokenId { key, found, tokens: tokens.len() })
            }
            Some(found) => Ok(Some(found)),
            None => Ok(Some(default).filter(|&default| sentencepiece && (default as usize) < tokens.len())),
        };
        let bos = id(BOS, 1)?;
        let eos = id(EOS, 2)?;
        vocabulary.unknown = id("tokenizer.ggml.unknown_token_id", 0)?;
        let named = |key, names| Ok(id(key, u32::MAX)?.or_else(|| special::first_named(&vocabulary, names)));
        let eot: Result<_, Error> = named("tokenizer.ggml.eot_token_id", special::END_OF_TURN);
        let eom: Result<_, Error> = named("tokenizer.ggml.eom_token_id", special::END_OF_MESSAGE);
        let (eot, eom) = (eot?, eom?);

        // What ends the generation is not part of the answer, and not for users to type, whatever type it has
        // in the file.
        let by_name = special::end_of_generation(&vocabulary);
        for &id in &by_name {
            vocabulary.set_type(id, TokenType::Control);
        }
        let eot_ends = eot.filter(|&id| special::is_end(&vocabulary, vocabulary.text(id)));
        let mut end_of_generation: Vec<u32> =
            by_name.into_iter().chain(eos).chain(eot_ends).chain(eom).collect();
        end_of_generation.sort_unstable();
        end_of_generation.dedup();

        let add = |key: &'static str, default: bool, id: Option<u32>, id_key: &'static str| match metadata
            .bool(key)?
        {
            Some(true) if id.is_none() => Err(torque_gguf::Error::MissingKey { key: id_key.into() }),
            asked => Ok(asked.unwrap_or(default) && id.is_some()),
        };
        let implied = sentencepiece || pre.is_some_and(|pre| pre.add_bos);
        let add_bos =
            add("tokenizer.ggml.add_bos_token", implied, bos, BOS)? || kind == "gemma4" && bos.is_some();
        let add_eos = add("tokenizer.ggml.add_eos_token", false, eos, EOS)?;

        vocabulary.space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(sentencepiece);
        let model = if sentencepiece {
            const SCORES: &str = "tokenizer.ggml.scores";
            let scores = metadata.required::<std::borrow::Cow<[f32]>>(SCORES)?;
            same_length(SCORES, scores.len(), tokens.len())?;
            let remove = metadata.bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false);
            Model::SentencePiece(SentencePiece::new(scores.iter().copied(), remove, &vocabulary))
        } else {
            const MERGES: &str = "tokenizer.ggml.merges";
            vocabulary.space_prefix = false;
            let merges = metadata.required::<&[String]>(MERGES)?;
            let (model, skipped) = match pre {
                Some(pre) => {
                    let model = ByteLevel::new(pre, merges, &vocabulary);
                    let skipped = model.skipped_merges();
                    (Model::ByteLevel(model), skipped)
                }
                None => {
                    let model = CharacterLevel::new(merges, &vocabulary);
                    let skipped = model.skipped_merges();
                    (Model::CharacterLevel(model), skipped)
                }
            };
            if skipped > 0 {
                warnings.push(format!(
                    "`{MERGES}`: {skipped} of {} name tokens that are not in the vocabulary and are skipped",
                    merges.len()
                ));
            }
            model
        };

        // Phi-3's tokens swallow the white space after them, which no key says. The field goes by the name.
        let name = metadata.string("general.name")?.unwrap_or_default().to_lowercase();
        let phi3 = sentencepiece && (name.contains("phi-3") || name.contains("phi3"));
        let keeps_space: &[&[u8]] = &[b"<unk>", b"<s>", b"<|endoftext|>"];
        let special =
            SpecialTokens::new(&vocabulary, |id| phi3 && !keeps_space.contains(&vocabulary.text(id)));

        let chat_template = ChatTemplate::from_metadata(metadata, &vocabulary, bos, eos, &mut warnings)?;
        let vocabulary = Arc::new(vocabulary);
        Ok(Tokenizer {
            vocabulary,
            model,
            special,
            bos,
            eos,
            eot,
            eom,
            add_bos,
            add_eos,
            end_of_generation,
            chat_template,
            warnings,
        })
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str, options: Encode) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 3 + 2);
        self.special.split(text, options.parse_special, |fragment| match fragment {
            Fragment::Token(id) => tokens.push(id),
            Fragment::Text(text) => match &self.model {
                Model::ByteLevel(model) => model.encode(text, &self.vocabulary, &mut tokens),
                Model::CharacterLevel(model) => model.encode(text, &self.vocabulary, &mut tokens),
                Model::SentencePiece(model) => model.encode(text, &self.vocabulary, &mut tokens),
            },
        });
        if options.add_special {
            if let Some(bos) = self.bos.filter(|bos| self.add_bos && tokens.first() != Some(bos)) {
                tokens.insert(0, bos);
            }
            tokens.extend(self.eos.filter(|_| self.add_eos));
        }
        tokens
    }

    /// The bytes of a text. Control tokens contribute their name if `with_special`, else nothing; ids outside
    /// the vocabulary contribute nothing. A space that encoding put before the first word is taken away
    /// again.
    pub fn decode_bytes(&self, tokens: &[u32], with_special: bool) -> Vec<u8> {
        let mut at_start = true;
        let mut bytes = Vec::with_capacity(tokens.len() * 4);
        for &token in tokens {
            self.vocabulary.decode(token, with_special, &mut at_start, &mut bytes);
        }
        bytes
    }

    /// As [`decode_bytes`](Tokenizer::decode_bytes), with U+FFFD for what is not UTF-8.
    pub fn decode(&self, tokens: &[u32], with_special: bool) -> String {
        String::from_utf8(self.decode_bytes(tokens, with_special))
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// A decoder for a stream of tokens that begins a text.
    pub fn detokenizer(&self, with_special: bool) -> Detokenizer {
        Detokenizer::new(self.vocabulary.clone(), with_special)
    }

    /// A decoder for tokens that continue a text: a space before the first word is kept.
    pub fn continuing_detokenizer(&self, with_special: bool) -> Detokenizer {
        Detokenizer::continuing(self.vocabulary.clone(), with_special)
    }

    /// The token that encoding puts before every text, if it does.
    pub fn added_bos(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The bytes that a token stands for, which may be part of a character; for control tokens their name.
    /// Empty for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.piece(id)
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The token with this text, spelled as in the file: `<|im_end|>`, `Ġthe`.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.vocabulary.id_of(text.as_bytes())
    }

    /// Whether the token is a control token or the unknown token: not part of the text.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.vocabulary.token_type(id), TokenType::Control | TokenType::Unknown)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that ends a turn of a conversation, from the file or by its name.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// The token that ends a message which calls a tool, from the file or by its name.
    pub fn eom(&self) -> Option<u32> {
        self.eom
    }

    /// Whether generation stops at this token: EOS, end of turn or message, and tokens known by name to mean
    /// that.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// All tokens at which generation stops, in ascending order.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// The template that turns messages into a prompt; `None` if the file has none and nothing in the
    /// vocabulary tells which one the model was trained with.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// What in the file is odd, and what is done about it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The pre-tokenizer of this name.
fn pre_tokenizer(name: Option<&str>, warnings: &mut Vec<String>) -> &'static PreTokenizer {
    let fallback = || PreTokenizer::named(pre::DEFAULT).expect("a row of the table");
    let Some(name) = name else {
        warnings
            .push(format!("`tokenizer.ggml.pre` is missing; words are cut by the rule `{}`", pre::DEFAULT));
        return fallback();
    };
    PreTokenizer::named(name).unwrap_or_else(|| {
        warnings.push(format!(
            "`tokenizer.ggml.pre` is `{name}`, which is not known; words are cut by the rule `{}`",
            pre::DEFAULT
        ));
        fallback()
    })
}

/// The types of all tokens. Without the key, SentencePiece's byte tokens are known by their text.
fn token_types(metadata: &Metadata, tokens: &[String], sentencepiece: bool) -> Result<Vec<TokenType>, Error> {
    const TYPES: &str = "tokenizer.ggml.token_type";
    let Some(types) = metadata.i32s(TYPES)? else {
        let is_byte = |text: &String| {
            sentencepiece && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>')
        };
        let guess = |text| if is_byte(text) { TokenType::Byte } else { TokenType::Normal };
        return Ok(tokens.iter().map(guess).collect());
    };
    same_length(TYPES, types.len(), tokens.len())?;
    Ok(types.iter().map(|&number| TokenType::from_number(number)).collect())
}

fn same_length(key: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { key, expected, found }) }
}

/// Tokenizers are shared between the threads that serve requests.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
    shared::<Detokenizer>();
};
