//! Choosing the next token: logits → a chain of stages → one draw.
//!
//! The stages, their names, their order and their defaults are those of llama.cpp. Logit biases come first; then
//! every stage of the chain shortens or changes the list of candidates; then one of those left is drawn with the
//! probability that softmax gives it. The same seed, logits and history give the same token on every platform: the
//! random numbers, the exponential and every order are this module's own.
//!
//! ```
//! use torque_engine::sampler::{Sampler, SamplerParams};
//!
//! let params = SamplerParams { temperature: 0.0, ..SamplerParams::default() };
//! let mut sampler = Sampler::new(params, 3)?;
//! let token = sampler.sample(&[0.1, 2.0, -1.0]);
//! sampler.accept(token);
//! assert_eq!(token, 1);
//! # Ok::<(), torque_engine::sampler::Error>(())
//! ```

mod candidates;
mod dry;
mod params;
mod rng;
mod stages;
mod tally;

use candidates::{Candidates, weight};
use dry::Dry;
pub use params::{Error, SamplerParams};
use rng::{Rng, random_seed};
pub use stages::{STAGES, Stage};
use tally::Tally;

/// Chooses the tokens of one sequence. Its working memory is allocated with the first token.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplerParams,
    chain: Vec<fn(&mut Sampler)>,
    vocab: usize,
    seed: u64,
    rng: Rng,
    history: Vec<u32>, // every token accepted, the prompt's too
    candidates: Candidates,
    tally: Tally,
    dry: Dry,
}

impl Sampler {
    /// A sampler for rows of `vocab` logits.
    ///
    /// # Errors
    /// As [`SamplerParams::validate`], and for tokens that are not in the vocabulary.
    pub fn new(params: SamplerParams, vocab: usize) -> Result<Self, Error> {
        params.validate()?;
        params.validate_tokens(vocab)?;
        let seed = params.seed.unwrap_or_else(random_seed);
        Ok(Self {
            chain: params.samplers.iter().filter_map(|name| stages::find(name)).map(|s| s.apply).collect(),
            vocab,
            seed,
            rng: Rng::new(seed),
            history: Vec::new(),
            candidates: Candidates::default(),
            tally: Tally::new(vocab),
            dry: Dry::new(&params.dry_sequence_breakers),
            params,
        })
    }

    /// Draws a token. It does not enter the history: `accept` it, or another in its place.
    ///
    /// NaN is read as −∞, "impossible"; if every token is impossible, the answer is token 0.
    ///
    /// # Panics
    /// If `logits` is not one row of the vocabulary.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        assert_eq!(logits.len(), self.vocab, "one logit per token of the vocabulary");
        self.load(logits);
        if self.candidates.max() == f32::NEG_INFINITY {
            return 0;
        }
        self.run_chain();
        self.draw()
    }

    /// Adds a token to the history that penalties and DRY look at. The tokens of the prompt count too.
    pub fn accept(&mut self, token: u32) {
        self.history.push(token);
    }

    /// Forgets the history and starts the random numbers over, from the same seed.
    pub fn reset(&mut self) {
        self.history.clear();
        self.rng = Rng::new(self.seed);
    }

    /// The seed in use, also when it was chosen at random.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    fn load(&mut self, logits: &[f32]) {
        self.candidates.load(logits);
        for &(token, bias) in &self.params.logit_bias {
            self.candidates.bias(token, bias);
        }
    }

    /// Leaves in `candidates` the tokens that may be drawn.
    fn run_chain(&mut self) {
        for stage in 0..self.chain.len() {
            self.chain[stage](self);
        }
    }

    fn draw(&mut self) -> u32 {
        let max = self.candidates.max();
        let target = self.rng.uniform() * self.candidates.total_weight(max);
        let mut cumulative = 0.0;
        let drawn = self.candidates.iter().find(|c| {
            cumulative += f64::from(weight(c.logit, max));
            cumulative > target
        });
        drawn.expect("the same sum in the same order ends above a smaller number").id
    }
}

#[cfg(test)]
mod tests;
