//! Mistral 3: Llama with YaRN and a query temperature, both said by the metadata.

use super::{Arch, llama::LLAMA};

pub const MISTRAL3: Arch = Arch { name: "mistral3", models: "Ministral 3, Mistral 3", ..LLAMA };
