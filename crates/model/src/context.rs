//! A running model: sequences, their KV cache, and the buffers of a forward pass.

use crate::error::Error;
use crate::forward::{self, Activations, LOGIT_ROWS};
use crate::load::Model;
use crate::rope::{Frequencies, RopeConfig};
use std::ops::Range;
use std::sync::Arc;
use torque_backend::{Angles, Backend, Segment};
use torque_kv::{BadSequence, Overflow, Pages, Plan, Policy, Prefixes, SavedSequence, Section, Sequence};

/// How much a [`Context`] holds.
#[derive(Clone, Debug)]
pub struct ContextOptions {
    /// Tokens a sequence may grow to: those it holds at once.
    pub context: usize,
    /// Tokens in a forward pass; longer inputs go in chunks.
    pub batch: usize,
    /// Sequences side by side.
    pub sequences: usize,
    /// What the KV cache is sealed in.
    pub policy: Policy,
    /// What a sequence does that has grown so far.
    pub overflow: Overflow,
    /// Bytes of pages that no sequence holds any more, kept for texts that begin as theirs did.
    pub prefix_bytes: usize,
}

/// A model with the state of its sequences.
pub struct Context<B: Backend> {
    backend: Arc<B>,
    model: Arc<Model<B>>,
    plan: Plan,
    ropes: Vec<Frequencies>,
    store: B::Store,
    pages: Pages,
    sequences: Vec<Sequence>,
    /// The tokens of every sequence.
    texts: Vec<Vec<u32>>,
    /// Sealed pages by their text, if there may be anybody to take them.
    prefixes: Option<Prefixes>,
    activations: Activations<B>,
    options: ContextOptions,
}

impl<B: Backend> Context<B> {
    /// Empty sequences.
    pub fn new(
        backend: Arc<B>,
        model: Arc<Model<B>>,
        mut options: ContextOptions,
    ) -> Result<Context<B>, Error> {
        if let Some(positions) = model.positions.filter(|n| *n < options.context) {
            return Err(Error::Positions { context: options.context, positions });
        }
        let plan = model.config.plan(&options.policy)?;
        if options.overflow != Overflow::Stop {
            if let Some(positions) = model.positions {
                return Err(Error::LearnedPositions { positions });
            }
            let (context, shortest) = (options.context, plan.shortest_forgetful());
            let (page, tail) = (plan.page, plan.tail);
            if context < shortest {
                let sink = plan.sink_pages * page;
                return Err(Error::ShortContext { context, page, sink, tail, shortest });
            }
            options.batch = options.batch.min(plan.most_after_forgetting(context));
        }
        let ropes =
            model.config.ropes.iter().map(|r| r.frequencies(&model.factors, options.context)).collect();
        Ok(Context {
            ropes,
            store: backend.store(&plan, options.sequences, options.batch),
            pages: Pages::default(),
            sequences: (0..options.sequences).map(|slot| Sequence::new(&plan, slot)).collect(),
            texts: vec![Vec::new(); options.sequences],
            prefixes: (options.sequences > 1 || options.prefix_bytes > 0)
                .then(|| Prefixes::new(options.prefix_bytes)),
            activations: Activations::new(&*backend, &model, options.batch),
            plan,
            backend,
            model,
            options,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// The plan of the KV cache.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How much this context holds.
    pub fn options(&self) -> &ContextOptions {
        &self.options
    }

    /// Tokens of a sequence, forgotten ones included.
    pub fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].len()
    }

    /// Whether a sequence has no tokens.
    pub fn is_empty(&self, sequence: usize) -> bool {
        self.sequences[sequence].is_empty()
    }

    /// Tokens of a sequence without those that are forgotten.
    pub fn held_tokens(&self, sequence: usize) -> usize {
        self.sequences[sequence].held_tokens()
    }

    /// The tokens that a sequence has forgotten.
    pub fn forgotten(&self, sequence: usize) -> Range<usize> {
        self.sequences[sequence].forgotten()
    }

    /// Bytes the KV cache holds now: (sealed pages, tails).
    pub fn kv_bytes(&self) -> (usize, usize) {
        self.backend.store_bytes(&self.store)
    }

    /// Bytes of KV that decoding the next token of a sequence reads.
    pub fn kv_read_bytes(&self, sequence: usize) -> usize {
        self.sequences[sequence].read_bytes(&self.plan, &self.pages)
    }

    /// [`Backend::value_parts`].
    pub fn value_parts(&self) -> [u64; 2] {
        self.backend.value_parts()
    }

    /// Runs one pass over a batch: for each part, tokens that follow a sequence's. At most
    /// [`ContextOptions::batch`] tokens; no sequence twice. On an error nothing has changed.
    pub fn forward(&mut self, batch: &[(usize, &[u32])]) -> Result<(), Error> {
        let vocabulary = self.model.config.vocabulary;
        let tokens: Vec<u32> = batch.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        assert!(
            tokens.len() <= self.options.batch,
            "{} tokens in a batch of {}",
            tokens.len(),
            self.options.batch
        );
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= vocabulary) {
            return Err(Error::Token { token, vocabulary });
        }
        if self.options.overflow == Overflow::Stop {
            batch.iter().try_for_each(|(sequence, tokens)| self.fits(*sequence, tokens.len()))?;
        }
        if tokens.is_empty() {
            return Ok(());
        }
        for (sequence, tokens) in batch {
            self.make_room(*sequence, tokens.len());
            self.sequences[*sequence].append(tokens.len());
            self.texts[*sequence].extend_from_slice(tokens);
        }
        let mut end = 0;
        let segments: Vec<Segment> = (batch.iter())
            .map(|(sequence, tokens)| {
                end += tokens.len();
                Segment { rows: end - tokens.len()..end, sequence: &self.sequences[*sequence] }
            })
            .collect();
        let (backend, model, store) = (&*self.backend, &*self.model, &mut self.store);
        forward::forward(backend, model, &self.ropes, store, &mut self.activations, &tokens, &segments);

        if self.plan.guided {
            let masses = self.backend.take_mass(&mut self.store);
            let of_batch: Vec<_> =
                batch.iter().map(|(index, tokens)| (&self.sequences[*index], tokens.len())).collect();
            self.pages.attend(&self.plan, &of_batch, &masses);
        }
        let (mut freed, mut sealed) = (Vec::new(), false);
        for (index, _) in batch {
            let (sequence, mut grown) = (&mut self.sequences[*index], false);
            while let Some(span) = sequence.seal(&self.plan, &mut self.pages) {
                self.backend.seal(&mut self.store, sequence, span);
                grown = true;
            }
            sealed |= grown;
            if let Some(prefixes) = self.prefixes.as_mut().filter(|_| grown) {
                let text = &self.texts[*index];
                for span in prefixes.insert(sequence, text, &self.plan, &mut self.pages) {
                    self.backend.keep_state(&mut self.store, sequence, span);
                }
            }
            sequence.expire(&self.plan, &mut self.pages, &mut freed);
        }
        self.backend.free(&mut self.store, &freed);
        if sealed {
            self.settle();
            for (page, tier) in self.pages.grow_old(&self.plan, &self.sequences) {
                self.backend.reseal(&mut self.store, page, tier);
            }
        }
        Ok(())
    }

    /// Gives up what is kept beyond [`ContextOptions::prefix_bytes`].
    fn settle(&mut self) {
        if let Some(prefixes) = &mut self.prefixes {
            let given_up = prefixes.settle(&self.plan, &mut self.pages);
            self.backend.free(&mut self.store, &given_up.parts);
            self.backend.drop_states(&mut self.store, &given_up.states);
        }
    }

    /// Makes a sequence the longest beginning of a text that it, or any sequence of this context, has computed and that
    /// is there still; a token at least is left. Returns its length. Pages of others are shared, not copied.
    pub fn reuse(&mut self, sequence: usize, text: &[u32]) -> usize {
        let common = self.texts[sequence].iter().zip(text).take_while(|(a, b)| a == b).count();
        let own = common.min(text.len().saturating_sub(1));
        let prefixes = self.prefixes.as_mut();
        let found = prefixes.and_then(|prefixes| prefixes.find(text, &self.plan, &self.pages));
        // Its own tokens are its first choice: of its tail, none need be computed again.
        let found_len = found.as_ref().map_or(0, |prefix| prefix.len);
        if own >= found_len && own > 0 {
            let left = self.cut(sequence, own).unwrap_or(0);
            if left >= found_len && left > 0 {
                self.settle();
                return left;
            }
        }
        // What is found has no owner but the tree, perhaps, so nothing is given up before it is taken.
        let mut freed = Vec::new();
        let it = &mut self.sequences[sequence];
        it.clear(&mut self.pages, &mut freed);
        self.backend.free(&mut self.store, &freed);
        if let Some(prefix) = &found {
            it.adopt(prefix, &self.plan, &mut self.pages);
        }
        match &found {
            Some(prefix) if !self.plan.states.is_empty() => {
                self.backend.take_state(&mut self.store, it, prefix.last());
            }
            _ => self.backend.rewind(&mut self.store, it),
        }
        self.texts[sequence] = text[..found_len].to_vec();
        self.settle();
        found_len
    }

    fn fits(&self, sequence: usize, new: usize) -> Result<(), Error> {
        let (len, context) = (self.held_tokens(sequence), self.options.context);
        if len + new > context { Err(Error::ContextFull { context, len, new }) } else { Ok(()) }
    }

    /// Forgets what a sequence must that shall have `new` more tokens.
    fn make_room(&mut self, sequence: usize, new: usize) {
        let context = self.options.context;
        if self.held_tokens(sequence) + new <= context {
            return;
        }
        let (sequence, mut freed) = (&mut self.sequences[sequence], Vec::new());
        sequence.forget(self.plan.forgets(context), &self.plan, &mut self.pages, &mut freed);
        assert!(sequence.held_tokens() + new <= context, "a batch has room after forgetting once");
        self.backend.free(&mut self.store, &freed);
        if self.options.overflow == Overflow::Shift {
            freed.clear();
            let (distance, moved) = sequence.close_gap(&mut self.pages, &mut freed);
            let turns: Vec<Vec<_>> = self.ropes.iter().map(|rope| rope.turn(distance).collect()).collect();
            let config = &self.model.config;
            let first = config.latent.map_or(0, |latent| latent.rank);
            let angles = config.attention_layers().filter(|layer| !layer.shares).map(|layer| {
                let rope = layer.rope?;
                let RopeConfig { pairs, channels, .. } = self.ropes[rope].config;
                Some(Angles { pairs, first, channels, cos_sin: &turns[rope] })
            });
            self.backend.turn(&mut self.store, &moved, &angles.collect::<Vec<_>>());
            self.backend.free(&mut self.store, &freed);
        }
    }

    /// Runs any number of tokens of one sequence, in chunks. After each chunk calls
    /// `progress(tokens done)`; stops early, with what is done in place, if that is `false`.
    pub fn prefill(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), Error> {
        if self.options.overflow == Overflow::Stop {
            self.fits(sequence, tokens.len())?;
        }
        let mut done = 0;
        for chunk in tokens.chunks(self.options.batch) {
            self.forward(&[(sequence, chunk)])?;
            done += chunk.len();
            if !progress(done) {
                break;
            }
        }
        Ok(())
    }

    /// Logits of some rows of the last pass: `[rows, vocabulary]` into `out`.
    pub fn logits(&mut self, rows: &[usize], out: &mut Vec<f32>) {
        let vocabulary = self.model.config.vocabulary;
        out.resize(rows.len() * vocabulary, 0.0);
        let most = LOGIT_ROWS.min(self.options.batch);
        for (rows, out) in rows.chunks(most).zip(out.chunks_mut(most * vocabulary)) {
            forward::logits(&*self.backend, &self.model, &mut self.activations, rows, out);
        }
    }

    /// Forgets a sequence's tokens from position `to` on; of a model with recurrent layers, from the newest
    /// snapshot at or before it. Returns how many are left.
    pub fn truncate(&mut self, sequence: usize, to: usize) -> Result<usize, Error> {
        let left = self.cut(sequence, to);
        self.settle();
        left
    }

    fn cut(&mut self, sequence: usize, to: usize) -> Result<usize, Error> {
        let (before, mut freed) = (self.len(sequence), Vec::new());
        let result = self.sequences[sequence].truncate(to, &self.plan, &mut self.pages, &mut freed);
        self.backend.free(&mut self.store, &freed);
        let left = result?;
        if left < before {
            self.backend.rewind(&mut self.store, &self.sequences[sequence]);
            self.texts[sequence].truncate(left);
        }
        Ok(left)
    }

    /// Forgets all tokens of a sequence.
    pub fn clear(&mut self, sequence: usize) {
        let mut freed = Vec::new();
        self.sequences[sequence].clear(&mut self.pages, &mut freed);
        self.backend.free(&mut self.store, &freed);
        self.backend.rewind(&mut self.store, &self.sequences[sequence]);
        self.texts[sequence].clear();
        self.settle();
    }

    /// Makes sequence `to` a copy of `from` that shares its sealed pages.
    pub fn fork(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        self.clear(to);
        self.texts[to] = self.texts[from].clone();
        let [from, to] = self.sequences.get_disjoint_mut([from, to]).expect("two sequences of this context");
        to.fork_from(from, &mut self.pages);
        self.backend.copy_tail(&mut self.store, from, to.slot);
    }

    /// What a sequence holds, and its sections with their bytes. [`Context::export`] gives the bytes.
    pub fn saved(&self, sequence: usize) -> (SavedSequence, Vec<(Section, usize)>) {
        let saved = self.sequences[sequence].saved(&self.plan, &self.pages);
        let sections = saved.sections(&self.plan).expect("a sequence of this plan is sound");
        (saved, sections)
    }

    /// The bytes of a section of a sequence.
    pub fn export(&self, sequence: usize, section: Section, out: &mut [u8]) {
        self.backend.export(&self.store, &self.sequences[sequence], section, out);
    }

    /// Makes a sequence what was saved of another one of these tokens; `read` fills in the bytes of each section. On an
    /// error the sequence is empty.
    pub fn restore<E: From<BadSequence>>(
        &mut self,
        sequence: usize,
        saved: &SavedSequence,
        text: &[u32],
        mut read: impl FnMut(Section, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (tokens, context) = (saved.held_tokens(), self.options.context);
        assert!(tokens <= context, "{tokens} tokens in {context}");
        assert_eq!(saved.len, text.len(), "a sequence has its tokens");
        self.clear(sequence);
        let slot = self.sequences[sequence].slot;
        let (restored, sections) = Sequence::restore(&self.plan, slot, saved, &mut self.pages)?;
        self.sequences[sequence] = restored;
        let mut buffer = Vec::new();
        for (section, bytes) in sections {
            buffer.resize(bytes, 0);
            if let Err(error) = read(section, &mut buffer) {
                self.clear(sequence);
                return Err(error);
            }
            self.backend.import(&mut self.store, &self.sequences[sequence], section, &buffer);
        }
        self.texts[sequence] = text.to_vec();
        Ok(())
    }

    /// The angles per position that rotary embeddings turn keys by. Those of some models depend on
    /// [`ContextOptions::context`].
    pub fn rope_frequencies(&self) -> impl Iterator<Item = f32> {
        self.ropes.iter().flat_map(Frequencies::values)
    }
}
