//! How good the numbers are: against a reference's logits, and as perplexity of a text.

use crate::engine::Engine;
use crate::error::Error;
use crate::measure::{Divergence, DivergenceReport, Perplexity, negative_log_likelihood};
use crate::session::SessionOptions;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;
use torque_kv::Policy;

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

/// Perplexity of `tokens` in chunks of the context, as llama-perplexity measures it: the second half of
/// every chunk is scored. After each chunk `progress(chunks done, chunks, so far)`.
pub fn perplexity(
    engine: &Engine,
    tokens: &[u32],
    context: usize,
    chunks: Option<usize>,
    options: &SessionOptions,
    progress: &mut dyn FnMut(usize, usize, &Perplexity),
) -> Result<Perplexity, Error> {
    let whole = tokens.len() / context.max(1);
    if context < 2 || whole == 0 {
        return Err(Error::TextTooShort { found: tokens.len(), needed: context.max(2), context });
    }
    let count = chunks.unwrap_or(whole).min(whole);
    let mut session = engine.session(&SessionOptions { context: Some(context), ..options.clone() })?;
    let mut perplexity = Perplexity::default();
    for (done, chunk) in tokens.chunks_exact(context).take(count).enumerate() {
        let mut chunk = chunk.to_vec();
        if let Some(bos) = engine.tokenizer().added_bos() {
            chunk[0] = bos;
        }
        session.truncate(0);
        let first = context / 2;
        // Rows before the scored half need no logits.
        session.append(&chunk[..first])?;
        session.append_each(&chunk[first..], &mut |i, logits| {
            if let Some(&next) = chunk.get(first + i + 1) {
                perplexity.add(negative_log_likelihood(logits, next));
            }
            true
        })?;
        progress(done + 1, count, &perplexity);
    }
    Ok(perplexity)
}

/// What a cache in some formats changes: how far the logits of `tokens` are from those with a cache in f16, and their
/// perplexity. Runs `batch` tokens at a time, which see one another exactly, and calls `progress(tokens done)` after each
/// batch; `None` once that says `false`.
pub fn cache(
    engine: &Engine,
    tokens: &[u32],
    batch: usize,
    policy: &Policy,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<(DivergenceReport, Perplexity)>, Error> {
    let session = |policy: &Policy| {
        engine.session(&SessionOptions { context: Some(tokens.len()), batch, policy: policy.clone() })
    };
    let (mut exact, mut ours) = (session(&Policy::uniform("f16", "f16"))?, session(policy)?);
    let vocabulary = engine.config().vocabulary;
    let (mut divergence, mut perplexity) = (Divergence::default(), Perplexity::default());
    let mut reference = Vec::new();
    for (i, chunk) in tokens.chunks(batch).enumerate() {
        reference.clear();
        exact.append_each(chunk, &mut |_, logits| {
            reference.extend_from_slice(logits);
            true
        })?;
        ours.append_each(chunk, &mut |row, logits| {
            divergence.add(&reference[row * vocabulary..][..vocabulary], logits);
            if let Some(&next) = tokens.get(i * batch + row + 1) {
                perplexity.add(negative_log_likelihood(logits, next));
            }
            true
        })?;
        if !progress(i * batch + chunk.len()) {
            return Ok(None);
        }
    }
    Ok(Some((divergence.report(), perplexity)))
}
