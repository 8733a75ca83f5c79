//! [`Engine`] and [`Session`]: the wall between inference and its users. The command line and the
//! server know this crate only; they never see a tensor.
#![forbid(unsafe_code)]

mod engine;
mod error;
pub mod evaluate;
mod generate;
pub mod kernel_speed;
mod machine;
pub mod measure;
mod model_file;
pub mod retrieval;
mod running;
pub mod sampler;
mod saved;
mod session;
pub mod synthetic;

pub use engine::{BackendKind, Engine, EngineOptions, LayerKv, human_bytes};
pub use error::Error;
pub use generate::{Finish, Generation, Request, generate};
pub use machine::{available_memory, cpu_name, peak_memory};
pub use saved::{Fault, check_target};
pub use session::{Session, SessionOptions};
pub use torque_cpu::physical_cores;
pub use torque_kv::{KvLayer, LayerRule, Overflow, PRESETS, Plan, Policy, PolicyError, Side};
pub use torque_model::{ARCHS, Config};
pub use {torque_gguf as gguf, torque_quant as quant, torque_tokenizer as tokenizer};
