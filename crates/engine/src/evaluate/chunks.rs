//! A text cut into chunks of the context, as llama-perplexity cuts it.

use crate::engine::Engine;
use crate::error::Error;

/// Chunks of a text. Tokens from some position of each on are scored: those of the second half, unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Chunks<'a> {
    text: &'a [u32],
    bos: Option<u32>,
    /// Tokens in a chunk.
    pub context: usize,
    /// Chunks.
    pub count: usize,
    /// The first position that is scored.
    pub from: usize,
}

impl<'a> Chunks<'a> {
    /// Cuts a text, into `count` chunks at most, scored from position `from` on or in their second halves.
    pub fn new(
        engine: &Engine,
        text: &'a [u32],
        context: usize,
        count: Option<usize>,
        from: Option<usize>,
    ) -> Result<Chunks<'a>, Error> {
        let whole = text.len() / context.max(1);
        if context < 2 || whole == 0 {
            return Err(Error::TextTooShort { found: text.len(), needed: context.max(2), context });
        }
        let from = from.unwrap_or(context / 2);
        if from + 2 > context {
            return Err(Error::NothingScored { from, context });
        }
        let count = count.unwrap_or(whole).min(whole);
        Ok(Chunks { text, bos: engine.tokenizer().added_bos(), context, count, from })
    }

    /// The tokens of a chunk. The first is the model's first of a text, where it has one.
    pub fn tokens(&self, index: usize) -> Vec<u32> {
        let mut tokens = self.text[index * self.context..][..self.context].to_vec();
        tokens[0] = self.bos.unwrap_or(tokens[0]);
        tokens
    }

    /// Tokens of a chunk that are scored: those that another one follows.
    pub fn scored(&self) -> usize {
        self.context - 1 - self.from
    }
}
