//! GLM 4: Llama with norms around the sublayers; the rotary part and biases are said by the file.

use super::{Arch, Norms, llama::LLAMA};

pub const GLM4: Arch = Arch { name: "glm4", models: "GLM 4", norms: Norms::Sandwich, ..LLAMA };
