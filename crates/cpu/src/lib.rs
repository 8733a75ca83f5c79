//! The CPU backend: threads and SIMD.

pub mod pool;

pub use pool::Pool;
