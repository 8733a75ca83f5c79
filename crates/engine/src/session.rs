//! One sequence: its tokens, its KV cache and the logits of its last token; and what several of them share.

use crate::error::Error;
use crate::model_file::ModelFile;
use crate::running::Running;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use torque_kv::{Overflow, Plan, Policy};
use torque_model::ContextOptions;

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
    /// Bytes of pages that no session holds any more, kept for texts that begin as theirs did.
    pub prefix_bytes: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            context: None,
            batch: 512,
            policy: Policy::default(),
            overflow: Overflow::Stop,
            prefix_bytes: 0,
        }
    }
}

/// A cache and the sequences in it, which sessions have one each of. They take turns: a pass of one waits for those of
/// others.
pub(crate) struct Cache {
    running: Mutex<Box<dyn Running>>,
    plan: Plan,
    options: ContextOptions,
}

impl Cache {
    fn running(&self) -> MutexGuard<'_, Box<dyn Running>> {
        self.running.lock().expect("no pass panics")
    }
}

/// One sequence.
pub struct Session {
    pub(crate) cache: Arc<Cache>,
    /// Which of the cache it is.
    pub(crate) sequence: usize,
    /// The model's.
    pub(crate) file: Arc<ModelFile>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) vocabulary: usize,
}

impl Drop for Session {
    fn drop(&mut self) {
        // After a panic in another session's pass the cache is of no use to anybody.
        if let Ok(mut running) = self.cache.running.lock() {
            running.clear(self.sequence);
        }
    }
}

impl Session {
    /// The sessions of a cache, one for each of its sequences.
    pub(crate) fn of(running: Box<dyn Running>, file: &Arc<ModelFile>, vocabulary: usize) -> Vec<Session> {
        let (plan, options) = (running.plan().clone(), running.options().clone());
        let cache = Arc::new(Cache { plan, options, running: Mutex::new(running) });
        let session = |sequence| Session {
            cache: cache.clone(),
            sequence,
            file: file.clone(),
            tokens: Vec::new(),
            logits: Vec::new(),
            vocabulary,
        };
        (0..cache.options.sequences).map(session).collect()
    }

    pub(crate) fn running(&self) -> MutexGuard<'_, Box<dyn Running>> {
        self.cache.running()
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
        self.cache.options.context
    }

    /// The tokens that the sequence has forgotten, because it was full.
    pub fn forgotten(&self) -> Range<usize> {
        self.running().forgotten(self.sequence)
    }

    /// What the sequence does when it is full.
    pub fn overflow(&self) -> Overflow {
        self.cache.options.overflow
    }

    /// Whether no further token has a place.
    pub fn is_full(&self) -> bool {
        let held = self.tokens.len() - self.forgotten().len();
        self.overflow() == Overflow::Stop && held >= self.context()
    }

    /// The plan of the KV cache.
    pub fn plan(&self) -> &Plan {
        &self.cache.plan
    }

    /// What the KV cache is sealed in.
    pub fn policy(&self) -> &Policy {
        &self.cache.options.policy
    }

    /// Bytes the KV cache holds now: (sealed pages, open tails), of all its sessions.
    pub fn kv_bytes(&self) -> (usize, usize) {
        self.running().kv_bytes()
    }

    /// Bytes of KV that decoding the next token reads.
    pub fn kv_read_bytes(&self) -> usize {
        self.running().kv_read_bytes(self.sequence)
    }

    /// Heads of pages of values that attention met since the backend started, where it may leave some out
    /// ([`Policy::sparse_v`]), and those that it left out.
    pub fn value_parts(&self) -> [u64; 2] {
        self.running().value_parts()
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
        let (mut done, batch) = (0, self.cache.options.batch);
        // Logits are those of the last pass, so no other may come between.
        let mut running = self.cache.running();
        let result = running.prefill(self.sequence, tokens, &mut |n| {
            (last_chunk, done) = (n - done, n);
            progress(n)
        });
        self.tokens.extend(&tokens[..done]);
        debug_assert!(last_chunk <= batch);
        if done > 0 {
            running.logits(&[last_chunk - 1], &mut self.logits);
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
        for chunk in tokens.chunks(self.cache.options.batch) {
            let mut running = self.cache.running();
            running.forward(&[(self.sequence, chunk)])?;
            self.tokens.extend(chunk);
            // A few rows at a time: logits are wide.
            for first in (0..chunk.len()).step_by(16) {
                let rows: Vec<usize> = (first..chunk.len().min(first + 16)).collect();
                running.logits(&rows, &mut self.logits);
                for logits in self.logits.chunks_exact(self.vocabulary) {
                    if !row(done, logits) {
                        running.logits(&[chunk.len() - 1], &mut self.logits);
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

    /// Makes this a session of the longest beginning of a text that is computed, and returns its length: what the session
    /// has of it, or what its cache has of other sessions, and of former ones within [`SessionOptions::prefix_bytes`].
    /// A token at least is left, so that logits can be computed. A session of just these tokens stays as it is.
    pub fn reuse(&mut self, tokens: &[u32]) -> usize {
        if self.tokens == tokens && !self.logits.is_empty() {
            return tokens.len();
        }
        let kept = self.running().reuse(self.sequence, tokens);
        if kept != self.tokens.len() || !tokens.starts_with(&self.tokens) {
            self.logits.clear();
            self.tokens.clear();
            self.tokens.extend_from_slice(&tokens[..kept]);
        }
        kept
    }

    /// Makes this a session of just these tokens, and returns how many of them need not be computed
    /// ([`Session::reuse`]).
    pub fn feed(&mut self, tokens: &[u32]) -> Result<usize, Error> {
        let reused = self.reuse(tokens);
        self.append(&tokens[reused..])?;
        Ok(reused)
    }

    /// Forgets tokens from position `to` on, or from where the model can go back to: of a recurrent state only
    /// snapshots are left, and where what the rest would see is forgotten or a sliding window has dropped it, nothing is. Returns
    /// the tokens left.
    pub fn rewind(&mut self, to: usize) -> usize {
        if to < self.tokens.len() {
            self.logits.clear();
            let left = if to == 0 { None } else { self.running().truncate(self.sequence, to).ok() };
            if left.is_none() {
                self.running().clear(self.sequence);
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
        let result = self.running().prefill(self.sequence, &again, &mut |_| true);
        result.expect("tokens that were there before fit and are of the vocabulary");
        self.tokens.extend(again);
    }
}
