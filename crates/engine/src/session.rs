//! One sequence: its tokens, its KV cache and the logits of its last token.

use crate::error::Error;
use crate::model_file::ModelFile;
use crate::running::Running;
use std::ops::Range;
use std::sync::Arc;
use torque_kv::{Overflow, Plan, Policy};

/// How to run a sequence.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Tokens it may grow to; the model's context, or what fits in memory, if `None`.
    pub context: Option<usize>,
    /// Tokens of a prompt processed at once.
    pub batch: usize,
    /// What the KV cache is sealed in.
    pub policy: Policy,
    /// What it does when it has grown so far.
    pub overflow: Overflow,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions { context: None, batch: 512, policy: Policy::default(), overflow: Overflow::Stop }
    }
}

/// One sequence.
pub struct Session {
    pub(crate) running: Box<dyn Running>,
    /// The model's.
    pub(crate) file: Arc<ModelFile>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) vocabulary: usize,
}

impl Session {
    pub(crate) fn new(running: Box<dyn Running>, file: Arc<ModelFile>, vocabulary: usize) -> Session {
        Session { running, file, tokens: Vec::new(), logits: Vec::new(), vocabulary }
    }

    /// The tokens so far, also those that are forgotten.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Logits after the last token: one a vocabulary entry; empty before the first token.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Tokens the sequence may grow to.
    pub fn context(&self) -> usize {
        self.running.context()
    }

    /// The tokens that the sequence has forgotten, because it was full.
    pub fn forgotten(&self) -> Range<usize> {
        self.running.forgotten()
    }

    /// What the sequence does when it is full.
    pub fn overflow(&self) -> Overflow {
        self.running.overflow()
    }

    /// Whether no further token has a place.
    pub fn is_full(&self) -> bool {
        let held = self.tokens.len() - self.forgotten().len();
        self.overflow() == Overflow::Stop && held >= self.context()
    }

    /// The plan of the KV cache.
    pub fn plan(&self) -> &Plan {
        self.running.plan()
    }

    /// Bytes the KV cache holds now: (sealed pages, open tail).
    pub fn kv_bytes(&self) -> (usize, usize) {
        self.running.kv_bytes()
    }

    /// Bytes of KV that decoding the next token reads.
    pub fn kv_read_bytes(&self) -> usize {
        self.running.kv_read_bytes()
    }

    /// Adds tokens and computes the logits after the last one.
    pub fn append(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.append_with(tokens, &mut |_| true).map(drop)
    }

    /// [`Session::append`] that reports the tokens done after each chunk and stops where `progress` says
    /// `false`. Returns the tokens done.
    pub fn append_with(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<usize, Error> {
        let mut last_chunk = 0;
        let (mut done, batch) = (0, self.running.batch());
        let result = self.running.prefill(0, tokens, &mut |n| {
            (last_chunk, done) = (n - done, n);
            progress(n)
        });
        self.tokens.extend(&tokens[..done]);
        debug_assert!(last_chunk <= batch);
        if done > 0 {
            self.running.logits(&[last_chunk - 1], &mut self.logits);
        }
        result?;
        Ok(done)
    }

    /// Adds tokens, and calls `row(i, logits)` with the logits after every token i. Stops where it says
    /// `false`, with the tokens of that batch in place.
    pub fn append_each(
        &mut self,
        tokens: &[u32],
        row: &mut dyn FnMut(usize, &[f32]) -> bool,
    ) -> Result<(), Error> {
        let mut done = 0;
        for chunk in tokens.chunks(self.running.batch()) {
            self.running.forward(&[(0, chunk)])?;
            self.tokens.extend(chunk);
            // A few rows at a time: logits are wide.
            for first in (0..chunk.len()).step_by(16) {
                let rows: Vec<usize> = (first..chunk.len().min(first + 16)).collect();
                self.running.logits(&rows, &mut self.logits);
                for logits in self.logits.chunks_exact(self.vocabulary) {
                    if !row(done, logits) {
                        self.running.logits(&[chunk.len() - 1], &mut self.logits);
                        return Ok(());
                    }
                    done += 1;
                }
            }
            let last = self.logits.len() - self.vocabulary;
            self.logits.drain(..last);
        }
        Ok(())
    }

    /// Goes back to the longest common prefix with `tokens`, less one token so that logits can be
    /// computed anew, or as far as [`Session::rewind`] must; returns the length. A session of just these tokens stays
    /// as it is.
    pub fn rewind_to_prefix_of(&mut self, tokens: &[u32]) -> usize {
        if self.tokens == tokens && !self.logits.is_empty() {
            return tokens.len();
        }
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.rewind(common.min(tokens.len().saturating_sub(1)))
    }

    /// Forgets tokens from position `to` on, or from where the model can go back to: of a recurrent state only
    /// snapshots are left, and where what the rest would see is forgotten or a sliding window has dropped it, nothing is. Returns
    /// the tokens left.
    pub fn rewind(&mut self, to: usize) -> usize {
        if to < self.tokens.len() {
            self.logits.clear();
            let left = if to == 0 { None } else { self.running.truncate(0, to).ok() };
            if left.is_none() {
                self.running.clear(0);
            }
            self.tokens.truncate(left.unwrap_or(0));
        }
        self.tokens.len()
    }

    /// Forgets tokens from position `to` on. Where the model can only go back further, it computes anew what lies
    /// between.
    pub fn truncate(&mut self, to: usize) {
        let to = to.min(self.tokens.len());
        let mut again = self.tokens[..to].to_vec();
        again.drain(..self.rewind(to));
        let result = self.running.prefill(0, &again, &mut |_| true);
        result.expect("tokens that were there before fit and are of the vocabulary");
        self.tokens.extend(again);
    }
}
