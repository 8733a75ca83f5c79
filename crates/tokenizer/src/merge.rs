//! The merge loop that byte-pair encoding and SentencePiece share.
//!
//! Text starts as a chain of symbols. The adjacent pair of the best priority, the leftmost of equals, becomes
//! one symbol, until no pair can be joined. A heap of candidate pairs over a linked list makes this O(n log
//! n) for any input, also for a megabyte without a space. A candidate is stale when one of its symbols was
//! joined elsewhere: then its length no longer fits, because boundaries between symbols only ever disappear.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Marks the end of the chain, and a symbol that is no token.
pub(crate) const NONE: u32 = u32::MAX;

/// A run of bytes that is one token, or one character that is no token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    /// Offset of the first byte in the text.
    pub start: usize,
    /// Length in bytes; 0 once the symbol was joined into its left neighbour.
    pub len: usize,
    /// Token id, or `NONE`.
    pub id: u32,
    previous: usize,
    next: usize,
}

/// A pair that may be joined into token `id`. Smaller priorities go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    pub priority: u32,
    pub id: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Candidate {
    join: Join,
    left: usize,
    len: usize,
}

impl Ord for Candidate {
    /// `BinaryHeap` pops the greatest, so the best candidate compares greatest.
    fn cmp(&self, other: &Candidate) -> Ordering {
        (other.join.priority, other.left).cmp(&(self.join.priority, self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The chain of symbols of one word. It is reused from word to word to spare allocations.
#[derive(Default)]
pub(crate) struct Chain {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
}

const END: usize = usize::MAX;

impl Chain {
    /// Forgets the previous word.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.candidates.clear();
    }

    /// Appends a symbol of `len` bytes (at least one) with token `id`, or `NONE`.
    pub fn push(&mut self, len: usize, id: u32) {
        let index = self.symbols.len();
        let (start, previous) = match self.symbols.last_mut() {
            Some(last) => {
                last.next = index;
                (last.start + last.len, index - 1)
            }
            None => (0, END),
        };
        self.symbols.push(Symbol { start, len, id, previous, next: END });
    }

    /// Joins pairs, best first, as long as `join(left, right)` allows any.
    pub fn merge(&mut self, join: impl Fn(&Symbol, &Symbol) -> Option<Join>) {
        for left in 0..self.symbols.len().saturating_sub(1) {
            self.consider(left, &join);
        }
        while let Some(Candidate { join: Join { id, .. }, left, len }) = self.candidates.pop() {
            let right = self.symbols[left].next;
            if right == END
                || self.symbols[left].len == 0
                || self.symbols[left].len + self.symbols[right].len != len
            {
                continue;
            }
            let next = self.symbols[right].next;
            self.symbols[right].len = 0;
            self.symbols[left].len = len;
            self.symbols[left].id = id;
            self.symbols[left].next = next;
            if next != END {
                self.symbols[next].previous = left;
                self.consider(left, &join);
            }
            let previous = self.symbols[left].previous;
            if previous != END {
                self.consider(previous, &join);
            }
        }
    }

    /// The symbols that are left, in order.
    pub fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    /// Puts the pair that starts at symbol `left` on the heap, if it can be joined.
    fn consider(&mut self, left: usize, join: &impl Fn(&Symbol, &Symbol) -> Option<Join>) {
        let (a, b) = (&self.symbols[left], &self.symbols[self.symbols[left].next]);
        if let Some(join) = join(a, b) {
            self.candidates.push(Candidate { join, left, len: a.len + b.len });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: scan for the best pair, leftmost of equals, join it, repeat.
    fn oracle(mut ids: Vec<u32>, join: impl Fn(u32, u32) -> Option<Join>) -> Vec<u32> {
        loop {
            let best =
                (1..ids.len()).filter_map(|i| join(ids[i - 1], ids[i]).map(|j| (j.priority, i, j.id))).min();
            let Some((_, i, id)) = best else { return ids };
            ids[i - 1] = id;
            ids.remove(i);
        }
    }

    /// Ids are the number of base symbols they cover times 4 plus a tag, so that a pair says how it joins.
    fn toy_join(a: u32, b: u32) -> Option<Join> {
        let mix = (a.wrapping_mul(31) ^ b.wrapping_mul(17)) % 7;
        (mix < 5).then_some(Join { priority: mix, id: (a + b) & !3 | (mix & 3) })
    }

    proptest! {
        #[test]
        fn the_heap_agrees_with_the_definition(ids in prop::collection::vec(4u32..8, 0..60)) {
            let mut chain = Chain::default();
            for &id in &ids {
                chain.push(1, id);
            }
            chain.merge(|a, b| toy_join(a.id, b.id));
            let merged: Vec<u32> = chain.symbols().map(|s| s.id).collect();
            prop_assert_eq!(merged, oracle(ids, toy_join));
        }
    }
}
