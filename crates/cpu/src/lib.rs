//! The CPU backend: threads and SIMD.

/// Why the CPU backend cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An instruction set this machine has not, or nobody knows.
    #[error("instruction set `{name}` is not available; this machine has {available}")]
    Isa {
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
}

/// The CPU backend.
pub struct Cpu;

impl Cpu {
    /// Placeholder until the kernels land.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(_threads: Option<usize>, _isa: Option<&str>) -> Result<torque_backend::Scalar, Error> {
        Ok(torque_backend::Scalar)
    }
}
