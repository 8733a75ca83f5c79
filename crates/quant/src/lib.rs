//! Number formats of weights and KV cache.
//!
//! No I/O, no threads, no devices.
#![forbid(unsafe_code)]

pub mod dot;
pub mod format;

pub use format::{Format, Rotation};
