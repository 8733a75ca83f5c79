//! What can be wrong with a GGUF file: every message names the culprit, the number found and what would be right.

use std::path::{Path, PathBuf};

/// Why a GGUF file could not be read or written.
///
/// Messages are complete on their own: no variant hides its cause behind [`std::error::Error::source`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum Error {
    /// The operating system refused; `action` is what was tried.
    #[error("cannot {action} `{}`: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: std::io::Error },
    /// Another error, met in this file.
    #[error("`{}`: {error}", path.display())]
    File { path: PathBuf, error: Box<Error> },

    #[error("not a GGUF file: it starts with \"{found}\", expected \"GGUF\"")]
    Magic { found: String },
    #[error("big-endian GGUF is not supported; convert the file to little-endian")]
    BigEndian,
    #[error("GGUF version {found} is not supported, expected 2 or 3")]
    Version { found: u32 },
    /// Something claims more bytes than the file has after it.
    #[error("{what} needs {needed} bytes, but the file has {left} left: truncated, or the number is wrong")]
    Truncated { what: String, needed: u64, left: u64 },
    #[error("{what} is not valid UTF-8")]
    Utf8 { what: String },
    #[error("{what} has {found} bytes, expected at most {max}")]
    NameLength { what: String, found: u64, max: u64 },

    #[error("metadata key `{key}` appears twice")]
    DuplicateKey { key: String },
    #[error("metadata key `{key}`: value type {found} is unknown, expected 0 to 12")]
    ValueType { key: String, found: u32 },
    #[error("metadata key `{key}`: a bool is stored as {found}, expected 0 or 1")]
    Bool { key: String, found: u8 },
    #[error("metadata key `{key}`: arrays nested more than {max} deep")]
    Nesting { key: String, max: usize },
    #[error("metadata key `general.alignment` is {found}, expected a power of two from 8 to {max}")]
    Alignment { found: u64, max: u64 },
    #[error("metadata key `{key}` is missing")]
    MissingKey { key: String },
    /// The value is of another type, or does not fit the one asked for.
    #[error("metadata key `{key}` is {found}, expected {expected}")]
    KeyType { key: String, expected: &'static str, found: String },

    #[error("tensor `{name}` appears twice")]
    DuplicateTensor { name: String },
    #[error("tensor `{name}` has {found} dimensions, expected at most {max}")]
    Dimensions { name: String, found: u64, max: usize },
    #[error("tensor `{name}`: shape {shape:?} overflows 64 bits")]
    Overflow { name: String, shape: Vec<u64> },
    #[error("tensor `{name}`: row length {row} is not a multiple of {block}, the block of {kind}")]
    RowLength { name: String, row: u64, block: usize, kind: String },
    #[error("tensor `{name}`: offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned { name: String, offset: u64, alignment: u64 },
    #[error(
        "tensor `{name}` ({kind}, shape {shape:?}) needs {length} bytes at offset {offset} of the data, \
         but the file has {data} bytes of data"
    )]
    OutOfFile { name: String, kind: String, shape: Vec<u64>, offset: u64, length: u64, data: u64 },
    #[error("tensor `{second}` starts at offset {offset}, inside tensor `{first}` which ends at {end}")]
    Overlap { first: String, second: String, offset: u64, end: u64 },

    #[error("part {number} of {count} is missing: no file `{}`", path.display())]
    MissingPart { number: u64, count: u64, path: PathBuf },
    #[error("the file says it is part {number} of {count}, so its name must end in `{expected}`")]
    PartName { number: u64, count: u64, expected: String },
    #[error("this is {found}, expected part {number} of {count}")]
    Part { number: u64, count: u64, found: String },
    #[error("`split.no` is {number}, but `split.count` is {count}")]
    PartNumber { number: u64, count: u64 },
    #[error("`split.tensors.count` is {expected}, but the parts have {found} tensors")]
    PartTensors { expected: u64, found: u64 },
    #[error("part {number} of {count} of a split model, expected a whole one; open it from its files")]
    SplitBytes { number: u64, count: u64 },

    #[error("tensor `{name}` has {found} bytes, but {kind} of shape {shape:?} needs {expected}")]
    SourceLength { name: String, kind: String, shape: Vec<u64>, expected: u64, found: u64 },
    #[error("tensor `{name}`: {kind} is unknown, so its data must be given as bytes")]
    SourceKind { name: String, kind: String },
}

impl Error {
    /// The same error, saying in which file.
    pub(crate) fn in_file(self, path: &Path) -> Error {
        Error::File { path: path.into(), error: Box::new(self) }
    }
}
