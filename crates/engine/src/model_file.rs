//! The file a model is from, and what tells it from others.

use std::sync::OnceLock;
use torque_gguf::Gguf;
use xxhash_rust::xxh3::Xxh3;

/// An open file.
pub(crate) struct ModelFile {
    pub gguf: Gguf,
    fingerprint: OnceLock<String>,
}

/// Bytes that are looked at, at the beginning, in the middle and at the end of a tensor.
const SAMPLE: usize = 1024;

impl ModelFile {
    pub fn new(gguf: Gguf) -> ModelFile {
        ModelFile { gguf, fingerprint: OnceLock::new() }
    }

    /// `general.name`, or the architecture's.
    pub fn name(&self) -> String {
        let named = |key| self.gguf.metadata().string(key).ok().flatten();
        named("general.name").or(named("general.architecture")).unwrap_or_default().to_string()
    }

    /// A hash of what decides the meaning of a KV cache: architecture and its numbers, and of every tensor the name, shape,
    /// type and samples of its bytes. Computed when it is first asked for: it reads a little of every tensor.
    pub fn fingerprint(&self) -> String {
        let compute = || {
            let mut hash = Xxh3::new();
            let metadata = self.gguf.metadata();
            let architecture = metadata.string("general.architecture").ok().flatten().unwrap_or_default();
            for (key, value) in metadata.iter() {
                let number = key.strip_prefix(architecture).is_some_and(|rest| rest.starts_with('.'));
                if number || key == "general.architecture" {
                    hash.update(format!("{key} = {value:?}\n").as_bytes());
                }
            }
            for tensor in self.gguf.tensors() {
                hash.update(format!("{} {:?} {}\n", tensor.name, tensor.shape, tensor.kind).as_bytes());
                let (data, last) = (&tensor.data, tensor.data.len().saturating_sub(SAMPLE));
                for start in [0, last / 2, last] {
                    hash.update(&data[start..data.len().min(start + SAMPLE)]);
                }
            }
            format!("{:032x}", hash.digest128())
        };
        self.fingerprint.get_or_init(compute).clone()
    }
}
