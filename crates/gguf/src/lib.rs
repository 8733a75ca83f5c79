//! The GGUF file: parse, map, write.
//!
//! A GGUF file is a header, an ordered map of metadata, a table of tensors, and the tensors' bytes:
//!
//! ```text
//! "GGUF"  version u32  tensors u64  keys u64
//! keys    × { key string  type u32  value }
//! tensors × { name string  dimensions u32  shape u64 × dimensions  type u32  offset u64 }
//! padding to `general.alignment` (32 unless the key says otherwise)
//! data: each tensor at its offset from here, a multiple of the alignment
//! ```
//!
//! All numbers are little-endian; a string is a `u64` length and that many bytes. Versions 2 and 3 share this layout.
//! [`Gguf`] reads it, from a memory map or from bytes; [`Writer`] writes version 3.
//!
//! Files come from strangers. Every count, length and offset is checked against what the file can hold before anything
//! is allocated or sliced, and an [`Error`] names what does not fit. What these checks let through is well formed:
//! names are unique, tensors lie inside the file, do not overlap, and have the length their type and shape ask for.

#![deny(unsafe_code)]

mod error;
mod gguf;
mod map;
mod metadata;
mod read;
mod tensor_type;
mod value;
mod write;

pub use error::Error;
pub use gguf::{Gguf, Tensor};
pub use metadata::{FromValue, Metadata};
pub use tensor_type::TensorType;
pub use value::{Array, Value};
pub use write::{Source, Writer, replace_file};
