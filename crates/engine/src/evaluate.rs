//! How good the numbers are: against a reference's logits, as perplexity of a text, and what a KV cache changes of both.
//!
//! What takes long is made of cells (a policy on a chunk of a text, an answer), which are values: a caller that keeps those that
//! [`Step::Finished`] brings, and gives them again, resumes where it stopped.

mod cache;
mod chunks;
mod layers;
mod needle;
mod tune;

pub use cache::{CacheCell, CacheReport, PositionReport, cache};
pub use chunks::Chunks;
pub use layers::{LayerReport, LayerSide, layer_sides};
pub use needle::{Answer, Needle, Retrieval, needle};
pub use tune::{Choice, PROBE, Tuner};

use crate::engine::Engine;
use crate::error::Error;
use crate::measure::{Divergence, DivergenceReport, Perplexity, negative_log_likelihood};
use crate::session::SessionOptions;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// How far an evaluation is.
pub enum Step<'a, Cell> {
    /// So many tokens have been read, of so many.
    Tokens {
        /// Tokens read.
        done: usize,
        /// All there are to read.
        of: usize,
    },
    /// A part is done.
    Finished(&'a Cell),
}

/// A number that tells byte strings apart: XXH3, the same in every version and on every machine.
pub fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = Xxh3::new();
    parts.into_iter().for_each(|part| hash.update(part));
    hash.digest()
}

/// Runs a reference's `tokens` (i32) and compares every row of logits with its tensor `target` (f32 or
/// f16, `[tokens, vocabulary]`), layout of `../shared/zoo/README.md`. `step` tokens go in at a time.
/// Rows `keep` rejects are left out.
pub fn reference(
    engine: &Engine,
    path: &Path,
    target: &str,
    options: &SessionOptions,
    keep: &dyn Fn(usize) -> bool,
) -> Result<DivergenceReport, Error> {
    let file = Reference::read(path)?;
    let (tokens, rows) = (file.tokens()?, file.floats(target)?);
    let vocabulary = engine.config().vocabulary;
    if rows.len() != tokens.len() * vocabulary {
        return Err(file.error(format!(
            "`{target}` holds {} values; {} tokens × a vocabulary of {vocabulary} are expected: is it another model's?",
            rows.len(),
            tokens.len()
        )));
    }
    let mut session = engine.session(options)?;
    let mut divergence = Divergence::default();
    session.append_each(&tokens, &mut |i, logits| {
        if keep(i) {
            divergence.add(&rows[i * vocabulary..][..vocabulary], logits);
        }
        true
    })?;
    Ok(divergence.report())
}

/// A file of reference tokens and logits.
pub struct Reference<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
}

impl<'a> Reference<'a> {
    /// Reads a file.
    pub fn read(path: &'a Path) -> Result<Reference<'a>, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
        let reference = Reference { path, bytes };
        reference.tensors()?;
        Ok(reference)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, Error> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| self.error(format!("not a safetensors file: {e}")))
    }

    fn error(&self, what: String) -> Error {
        Error::Reference { path: self.path.into(), what }
    }

    /// The names of its tensors.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        Ok(self.tensors()?.names().into_iter().map(str::to_string).collect())
    }

    /// The input tokens.
    pub fn tokens(&self) -> Result<Vec<u32>, Error> {
        let tensors = self.tensors()?;
        let view = tensors.tensor("tokens").map_err(|_| self.error("no tensor `tokens`".into()))?;
        if view.dtype() != Dtype::I32 {
            return Err(self.error(format!("`tokens` is {:?}; expected I32", view.dtype())));
        }
        let tokens = view.data().as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b));
        tokens.map(|t| u32::try_from(t).map_err(|_| self.error(format!("token {t} is negative")))).collect()
    }

    /// A tensor of floats.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>, Error> {
        let tensors = self.tensors()?;
        let view = tensors.tensor(name).map_err(|_| self.error(format!("no tensor `{name}`")))?;
        let format = match view.dtype() {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            other => return Err(self.error(format!("`{name}` is {other:?}; expected F32 or F16"))),
        };
        let mut values = vec![0.0; view.shape().iter().product()];
        torque_quant::by_name(format).expect("listed").decode_row(view.data(), &mut values);
        Ok(values)
    }
}

/// Perplexity of a text. After each chunk `progress(chunks done, chunks, so far)`.
pub fn perplexity(
    engine: &Engine,
    chunks: &Chunks,
    options: &SessionOptions,
    progress: &mut dyn FnMut(usize, usize, &Perplexity),
) -> Result<Perplexity, Error> {
    let mut session = engine.session(&SessionOptions { context: Some(chunks.context), ..options.clone() })?;
    let mut perplexity = Perplexity::default();
    for index in 0..chunks.count {
        let chunk = chunks.tokens(index);
        session.truncate(0);
        // Rows before the scored ones need no logits.
        session.append(&chunk[..chunks.from])?;
        session.append_each(&chunk[chunks.from..], &mut |i, logits| {
            if let Some(&next) = chunk.get(chunks.from + i + 1) {
                perplexity.add(negative_log_likelihood(logits, next));
            }
            true
        })?;
        progress(index + 1, chunks.count, &perplexity);
    }
    Ok(perplexity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_of_all_bytes() {
        assert_eq!(digest([]), 0x2d06_8005_38d3_94c2);
        assert_eq!(digest([&b"foo"[..], b"bar"]), digest([&b"foobar"[..]]));
        assert_ne!(digest([&b"foo"[..]]), digest([&b"bar"[..]]));
    }
}
