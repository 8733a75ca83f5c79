//! What can go wrong above the model.

use crate::saved::Fault;
use std::path::PathBuf;

/// Why an engine or session could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Gguf(#[from] torque_gguf::Error),
    #[error(transparent)]
    Model(#[from] torque_model::Error),
    #[error(transparent)]
    Tokenizer(#[from] torque_tokenizer::Error),
    #[error(
        "a context of {context} tokens needs {needed} of KV cache and {available} of memory is free; \
         {fits} tokens fit (`-c {fits}`), or choose smaller formats (`-ctk`, `-ctv`)"
    )]
    Memory { context: usize, needed: String, available: String, fits: usize },
    #[error(transparent)]
    Cpu(#[from] torque_cpu::Error),
    #[error("saved session `{path}`: {fault}")]
    Saved { path: PathBuf, fault: Fault },
    #[error("cannot save the session to `{path}`, where nothing has changed: {source}")]
    Save { path: PathBuf, source: std::io::Error },
    #[error("cannot save the session to `{path}`: something else is there, and stays; name another file")]
    NotReplaced { path: PathBuf },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {what}")]
    Reference { path: PathBuf, what: String },
    #[error("the text has {found} tokens; {needed} are needed for one chunk of {context}")]
    TextTooShort { found: usize, needed: usize, context: usize },
    #[error("from position {from} on, a chunk of {context} tokens has none that another one follows")]
    NothingScored { from: usize, context: usize },
    #[error("the model has no chat template, and can be asked nothing")]
    NoChatTemplate,
    #[error("a fact, its question and an answer need {needed} tokens; {length} leave no room for text")]
    NeedleTooLong { needed: usize, length: usize },
    #[error("`{text}` is not one token of the vocabulary, which a model that retrieves needs")]
    NotOneToken { text: &'static str },
    #[error("the text to hide facts in is empty")]
    EmptyText,
    #[error("no kernel or format is called `{filter}`; there are {known}")]
    NoSuchKernel { filter: String, known: String },
    #[error(
        "no format in `{filters}` has a kernel in `{filters}`; weights have products, K and V the others"
    )]
    NoKernels { filters: String },
}
