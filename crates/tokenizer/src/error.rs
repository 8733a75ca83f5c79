//! What can be wrong with a tokenizer or a chat template.

/// An error in the tokenizer part of a GGUF file, or in rendering its chat template.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key is missing or holds another type.
    #[error(transparent)]
    Gguf(#[from] torque_gguf::Error),

    /// `tokenizer.ggml.model` names a kind of tokenizer that is not implemented.
    #[error("`tokenizer.ggml.model` is `{found}`; supported are `gpt2`, `llama` and `gemma4`")]
    Model {
        /// The value in the file.
        found: String,
    },

    /// An array that runs parallel to the tokens has another length.
    #[error("`{key}` has {found} entries, but `tokenizer.ggml.tokens` has {expected}")]
    Length {
        /// The GGUF key of the array.
        key: &'static str,
        /// The number of tokens.
        expected: usize,
        /// The number of entries in the array.
        found: usize,
    },

    /// A special token's id is outside the vocabulary.
    #[error("`{key}` is {found}, but the vocabulary has {tokens} tokens")]
    TokenId {
        /// The GGUF key of the id.
        key: &'static str,
        /// The id in the file.
        found: u32,
        /// The number of tokens.
        tokens: usize,
    },

    /// The chat template cannot be parsed.
    #[error("`{key}`, line {line}: {reason}")]
    TemplateSyntax {
        /// The GGUF key of the template, or the name that the caller gave it.
        key: String,
        /// The line in the template, counted from 1.
        line: usize,
        /// What the parser expected or found.
        reason: String,
    },

    /// The chat template failed on these messages, or refused them with `raise_exception`.
    #[error("`{key}`, line {line}: {reason}")]
    TemplateRender {
        /// The GGUF key of the template, or the name that the caller gave it.
        key: String,
        /// The line in the template, counted from 1.
        line: usize,
        /// What went wrong, or the template's own message.
        reason: String,
    },
}
