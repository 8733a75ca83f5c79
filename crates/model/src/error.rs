//! What can be wrong with a model file or a request to run it.

use crate::arch::ARCHS;

/// Why a model cannot be loaded or run. Every message names the key, tensor or number that is wrong.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Gguf(#[from] torque_gguf::Error),
    #[error(transparent)]
    Policy(#[from] torque_kv::PolicyError),
    #[error("the file has no `general.architecture`: it is not a language model")]
    NoArchitecture,
    #[error("architecture `{0}` is not known; known are {known}", known = known_architectures())]
    UnknownArchitecture(String),
    #[error("metadata key `{key}` is missing")]
    MissingKey { key: String },
    #[error("metadata key `{key}` is {found}; expected {expected}")]
    BadKey { key: String, found: String, expected: String },
    #[error("tensor `{0}` is missing")]
    MissingTensor(String),
    #[error("tensor `{tensor}` has shape {found:?}; expected {expected:?}")]
    Shape { tensor: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("tensor `{tensor}` has type {kind}, which Torque cannot compute with; usable are {known}")]
    Type { tensor: String, kind: String, known: String },
    #[error("tensor `{tensor}`: rows of {columns} values are not whole blocks of {kind} ({block})")]
    Block { tensor: String, kind: String, columns: usize, block: usize },
    #[error("tensor `{tensor}` would change the result, but `{arch}` models are not known to have it")]
    Unused { tensor: String, arch: &'static str },
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token { token: u32, vocabulary: usize },
    #[error("the context of {context} tokens is full: {len} are there and {new} more were given")]
    ContextFull { context: usize, len: usize, new: usize },
    #[error("a context of {context} tokens is more than the {positions} positions the model has learned")]
    Positions { context: usize, positions: usize },
    #[error(
        "a full context of this model cannot forget: its {positions} positions are learned, and part of what is kept; \
         use `--context-overflow stop`"
    )]
    LearnedPositions { positions: usize },
    #[error(
        "a context of {context} tokens is too short to forget pages of {page}: with {sink} tokens that stay and {tail} exact \
         ones it takes {shortest} (`-c {shortest}`), or smaller `--kv-page`, `--keep` and `--kv-tail`"
    )]
    ShortContext { context: usize, page: usize, sink: usize, tail: usize, shortest: usize },
    #[error(transparent)]
    Truncate(#[from] torque_kv::TruncateError),
}

fn known_architectures() -> String {
    ARCHS.iter().map(|arch| arch.name).collect::<Vec<_>>().join(" ")
}
