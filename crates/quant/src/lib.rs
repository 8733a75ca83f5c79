//! Number formats of weights and KV cache.
//!
//! [`mod@format`] says what a format is and lists them all, [`formats`] holds one family a file,
//! [`rotate`] the rotations some of them work behind, [`codebook`] the levels they round to,
//! [`conformance`] the check against recorded vectors, and [`table`] what each costs in error.
//!
//! No I/O, no threads, no devices.
#![forbid(unsafe_code)]

pub mod attend;
pub mod codebook;
pub mod conformance;
pub mod delta;
pub mod dot;
pub mod format;
pub mod formats;
pub mod gemm;
pub mod int8;
pub mod kernels;
pub mod math;
pub mod rotate;
pub mod table;
pub mod tiles;

pub use format::{FORMATS, Format, FormatOps, Rotation, by_ggml_type, by_name};
pub use kernels::{Kernels, SharedKernels};
