//! Engine and Session: the wall between inference and its users.

pub mod measure;
pub mod sampler;
