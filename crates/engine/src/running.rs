//! Models of every backend behind one object, so that nothing above is generic.

use crate::saved::Fault;
use std::ops::Range;
use std::sync::Arc;
use torque_backend::Backend;
use torque_kv::{Plan, SavedSequence, Section};
use torque_model::{Config, Context, ContextOptions, Error, Model};

/// A model on some backend.
pub(crate) trait Loaded: Send + Sync {
    fn backend(&self) -> &'static str;
    fn device(&self) -> String;
    fn threads(&self) -> usize;
    fn config(&self) -> &Config;
    fn active_bytes(&self) -> usize;
    fn parameters(&self) -> u64;
    fn unused(&self) -> &[String];
    fn context(&self, options: ContextOptions) -> Result<Box<dyn Running>, Error>;
}

/// Fills in the bytes of a section.
pub(crate) type ReadSection<'a> = dyn FnMut(Section, &mut [u8]) -> Result<(), Fault> + 'a;

/// A model with the state of its sequences. See [`Context`].
pub(crate) trait Running: Send {
    fn plan(&self) -> &Plan;
    fn forward(&mut self, batch: &[(usize, &[u32])]) -> Result<(), Error>;
    fn prefill(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), Error>;
    fn logits(&mut self, rows: &[usize], out: &mut Vec<f32>);
    fn options(&self) -> &ContextOptions;
    fn forgotten(&self, sequence: usize) -> Range<usize>;
    fn reuse(&mut self, sequence: usize, text: &[u32]) -> usize;
    fn truncate(&mut self, sequence: usize, to: usize) -> Result<usize, Error>;
    fn clear(&mut self, sequence: usize);
    fn kv_bytes(&self) -> (usize, usize);
    fn kv_read_bytes(&self, sequence: usize) -> usize;
    fn value_parts(&self) -> [u64; 2];
    fn saved(&self, sequence: usize) -> (SavedSequence, Vec<(Section, usize)>);
    fn export(&self, sequence: usize, section: Section, out: &mut [u8]);
    fn restore(
        &mut self,
        sequence: usize,
        saved: &SavedSequence,
        text: &[u32],
        read: &mut ReadSection,
    ) -> Result<(), Fault>;
    fn rope_frequencies(&self) -> Vec<f32>;
}

/// A backend and a model on it.
pub(crate) struct On<B: Backend> {
    pub backend: Arc<B>,
    pub model: Arc<Model<B>>,
}

impl<B: Backend> Loaded for On<B> {
    fn backend(&self) -> &'static str {
        self.backend.name()
    }
    fn device(&self) -> String {
        self.backend.device()
    }
    fn threads(&self) -> usize {
        self.backend.threads()
    }
    fn config(&self) -> &Config {
        &self.model.config
    }
    fn active_bytes(&self) -> usize {
        self.model.active_bytes
    }
    fn parameters(&self) -> u64 {
        self.model.parameters
    }
    fn unused(&self) -> &[String] {
        &self.model.unused
    }
    fn context(&self, options: ContextOptions) -> Result<Box<dyn Running>, Error> {
        Ok(Box::new(Context::new(self.backend.clone(), self.model.clone(), options)?))
    }
}

impl<B: Backend> Running for Context<B> {
    fn plan(&self) -> &Plan {
        self.plan()
    }
    fn forward(&mut self, batch: &[(usize, &[u32])]) -> Result<(), Error> {
        self.forward(batch)
    }
    fn prefill(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), Error> {
        self.prefill(sequence, tokens, progress)
    }
    fn logits(&mut self, rows: &[usize], out: &mut Vec<f32>) {
        self.logits(rows, out);
    }
    fn options(&self) -> &ContextOptions {
        self.options()
    }
    fn forgotten(&self, sequence: usize) -> Range<usize> {
        self.forgotten(sequence)
    }
    fn reuse(&mut self, sequence: usize, text: &[u32]) -> usize {
        self.reuse(sequence, text)
    }
    fn truncate(&mut self, sequence: usize, to: usize) -> Result<usize, Error> {
        self.truncate(sequence, to)
    }
    fn clear(&mut self, sequence: usize) {
        self.clear(sequence);
    }
    fn kv_bytes(&self) -> (usize, usize) {
        self.kv_bytes()
    }
    fn kv_read_bytes(&self, sequence: usize) -> usize {
        self.kv_read_bytes(sequence)
    }
    fn value_parts(&self) -> [u64; 2] {
        self.value_parts()
    }
    fn saved(&self, sequence: usize) -> (SavedSequence, Vec<(Section, usize)>) {
        self.saved(sequence)
    }
    fn export(&self, sequence: usize, section: Section, out: &mut [u8]) {
        self.export(sequence, section, out);
    }
    fn restore(
        &mut self,
        sequence: usize,
        saved: &SavedSequence,
        text: &[u32],
        read: &mut ReadSection,
    ) -> Result<(), Fault> {
        self.restore(sequence, saved, text, read)
    }
    fn rope_frequencies(&self) -> Vec<f32> {
        self.rope_frequencies().collect()
    }
}
