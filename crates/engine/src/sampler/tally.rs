//! A number per token, for the few tokens that a stage has something to say about.

/// A dense map from token to a positive number, cleared in the time it took to fill it.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    values: Vec<u32>,  // [vocab], 0 = not in the map
    touched: Vec<u32>, // the tokens whose value is not 0
}

impl Tally {
    pub(super) fn new(vocab: usize) -> Self {
        Self { values: vec![0; vocab], touched: Vec::new() }
    }

    /// Replaces the token's value (0 at first) by `update(value)`, which must be positive. A token outside the
    /// vocabulary can never be drawn, so it is left out.
    pub(super) fn update(&mut self, token: u32, update: impl FnOnce(u32) -> u32) {
        let Some(value) = self.values.get_mut(token as usize) else { return };
        if *value == 0 {
            self.touched.push(token);
        }
        *value = update(*value);
        debug_assert!(*value > 0, "0 means absent");
    }

    /// The token's value, 0 when it has none.
    pub(super) fn get(&self, token: u32) -> u32 {
        self.values[token as usize]
    }

    /// The tokens in the map, each once, in the order they were first seen.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.touched
    }

    pub(super) fn clear(&mut self) {
        for token in self.touched.drain(..) {
            self.values[token as usize] = 0;
        }
    }
}
