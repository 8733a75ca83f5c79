//! The tokens that may still be drawn, with their logits.

use std::cmp::Ordering;

use super::tally::Tally;

/// A token and its logit as the stages have left it so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

/// The list that the stages of the chain shorten, reorder and change. No logit in it is NaN or +∞; a token that is
/// possible (not −∞) when the chain starts is there and possible after every stage. Its order depends only on what
/// was loaded, so that a seed gives the same draws everywhere.
#[derive(Debug, Clone, Default)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    /// So many leading candidates are known to be the largest, in descending order.
    sorted: usize,
    /// Whether `list[i].id == i`, and all tokens are there.
    complete: bool,
}

impl Candidates {
    /// Starts over with every token of the vocabulary. NaN is read as −∞, and +∞ as the largest number.
    pub(super) fn load(&mut self, logits: &[f32]) {
        self.list.clear();
        self.list.extend(
            logits.iter().enumerate().map(|(id, &logit)| Candidate { id: id as u32, logit: tame(logit) }),
        );
        self.sorted = 0;
        self.complete = true;
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Candidate> + '_ {
        self.list.iter().copied()
    }

    /// The candidate at a place in the list; `sort_prefix` makes that a rank.
    pub(super) fn at(&self, place: usize) -> Candidate {
        self.list[place]
    }

    /// The largest logit; −∞ when no token is possible.
    pub(super) fn max(&self) -> f32 {
        match self.sorted {
            0 => self.list.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit)),
            _ => self.list[0].logit,
        }
    }

    /// Σ `weight` of all candidates: what divides a weight to make it a probability.
    pub(super) fn total_weight(&self, max: f32) -> f64 {
        self.list.iter().map(|c| f64::from(weight(c.logit, max))).sum()
    }

    /// Brings the `count` largest logits to the front, in descending order (equal logits by token).
    ///
    /// One pass collects everything above the smallest of the best seen so far; whenever twice as many as asked
    /// for are collected, the lower half goes back. This costs about one comparison per candidate when `count` is small.
    pub(super) fn sort_prefix(&mut self, count: usize) {
        if count <= self.sorted {
            return;
        }
        self.complete = false;
        let rest = &mut self.list[self.sorted..];
        let wanted = (count - self.sorted).min(rest.len());
        let (mut kept, mut cut) = (0, None);
        for i in 0..rest.len() {
            if cut.is_some_and(|cut| descending(&rest[i], &cut).is_ge()) {
                continue;
            }
            rest.swap(i, kept);
            kept += 1;
            if kept == 2 * wanted {
                cut = Some(*rest[..kept].select_nth_unstable_by(wanted - 1, descending).1);
                kept = wanted;
            }
        }
        if wanted < kept {
            rest[..kept].select_nth_unstable_by(wanted - 1, descending);
        }
        rest[..wanted].sort_unstable_by(descending);
        self.sorted += wanted;
    }

    /// Keeps the first `count` (at least one).
    pub(super) fn truncate(&mut self, count: usize) {
        self.list.truncate(count.max(1));
        self.sorted = self.sorted.min(self.list.len());
        self.complete = false;
    }

    /// Drops the first `count`, which must leave one.
    pub(super) fn drop_first(&mut self, count: usize) {
        self.list.drain(..count);
        self.sorted = self.sorted.saturating_sub(count);
        self.complete = false;
    }

    /// Keeps the logits that are not below `keep`'s bound: `keep` must be monotonic and true for the largest.
    pub(super) fn retain(&mut self, keep: impl Fn(f32) -> bool) {
        let before = self.list.len();
        self.list.retain(|c| keep(c.logit));
        self.sorted = self.sorted.min(self.list.len());
        self.complete &= self.list.len() == before;
    }

    /// Orders all candidates by ascending `key`, equal keys by token.
    pub(super) fn sort_by_key(&mut self, key: impl Fn(f32) -> f64) {
        self.list.sort_unstable_by(|a, b| key(a.logit).total_cmp(&key(b.logit)).then(a.id.cmp(&b.id)));
        self.sorted = 0;
        self.complete = false;
    }

    /// Replaces every logit by `f(logit)`; `f` must not change their order.
    pub(super) fn rescale(&mut self, f: impl Fn(f32) -> f32) {
        self.list.iter_mut().for_each(|c| c.logit = f(c.logit));
    }

    /// Replaces the logits of the tokens in the tally by `f(token, value, logit)`; what is impossible stays so, what is
    /// possible stays possible.
    pub(super) fn adjust(&mut self, tally: &Tally, f: impl Fn(u32, u32, f32) -> f32) {
        let change = |c: &mut Candidate| {
            if c.logit > f32::NEG_INFINITY {
                c.logit = tame(f(c.id, tally.get(c.id), c.logit)).max(f32::MIN);
            }
        };
        if self.complete {
            tally.tokens().iter().for_each(|&token| change(&mut self.list[token as usize]));
        } else {
            self.list.iter_mut().filter(|c| tally.get(c.id) > 0).for_each(change);
        }
        self.sorted = 0;
    }

    /// Adds to the logit of one token. Only before the first stage, while all tokens are there in order.
    pub(super) fn bias(&mut self, token: u32, bias: f32) {
        debug_assert!(self.complete);
        let logit = &mut self.list[token as usize].logit;
        *logit = tame(*logit + bias);
    }
}

/// The softmax weight of a logit: `e^(logit − max)`, in `[0, 1]`, exactly 1 for the largest.
pub(super) fn weight(logit: f32, max: f32) -> f32 {
    if logit >= max { 1.0 } else { exp_negative(logit - max) }
}

fn tame(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// `e^x` for `x ≤ 0`, from additions and multiplications alone: the standard library's may differ in the last bit
/// between platforms, and a draw must not.
///
/// `x = n·ln 2 + r`, `|r| ≤ ln 2 / 2`; `e^r` by its series to `r⁷/7!`, whose remainder is below 2⁻²⁷; relative error
/// below 2⁻²² (tested). Below −87, where the result would be subnormal, it is 0.
fn exp_negative(x: f32) -> f32 {
    // ln 2 in two parts: the first has 9 bits, so that n times it is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    const FACTORIALS: [f32; 6] = [5040.0, 720.0, 120.0, 24.0, 6.0, 2.0];

    if x < -87.0 {
        return 0.0;
    }
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let tail = FACTORIALS.iter().fold(0.0, |sum, factorial| sum * r + 1.0 / factorial);
    let power_of_two = f32::from_bits(((n as i32 + 127) as u32) << 23);
    (tail * r * r + r + 1.0) * power_of_two
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exp_error_bound() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp_negative(x)) - expected).abs() / expected);
        }
        assert!(worst < 2f64.powi(-22), "relative error {worst:e}");
        assert_eq!(exp_negative(0.0), 1.0);
        for x in [-87.1, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exp_negative(x), 0.0, "{x}");
        }
    }

    /// Logits with many ties, and the values that are not numbers.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            8 => (-20i32..20).prop_map(|i| i as f32 / 2.0),
            1 => Just(f32::NAN),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(f32::INFINITY),
        ];
        prop::collection::vec(value, 1..300)
    }

    proptest! {
        /// Whatever was asked for before, the prefix is the prefix of the full sort, and no token is lost.
        #[test]
        fn sort_prefix_is_the_prefix_of_a_sort(logits in logits(), counts in prop::collection::vec(0usize..320, 1..4)) {
            let mut candidates = Candidates::default();
            candidates.load(&logits);
            let mut expected: Vec<_> = candidates.iter().collect();
            expected.sort_by(descending);
            for count in counts {
                candidates.sort_prefix(count);
                let sorted: Vec<_> = candidates.iter().collect();
                let count = count.min(sorted.len());
                prop_assert_eq!(&sorted[..count], &expected[..count]);
                let mut ids: Vec<_> = sorted.iter().map(|c| c.id).collect();
                ids.sort();
                prop_assert!(ids.into_iter().eq(0..logits.len() as u32));
                prop_assert_eq!(candidates.max(), expected[0].logit);
            }
        }
    }
}
