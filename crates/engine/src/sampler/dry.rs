//! DRY ("don't repeat yourself"): how long a repeat each token would continue.
//!
//! If the sequence ends in `… x y z` and earlier holds `x y z w`, then `w` would make a repeat longer. The stage
//! lowers the logit of `w` by `multiplier · base^(length − allowed_length)`, where `length` counts the tokens that
//! already agree (3 here). A repeat never reaches back across a sequence breaker. The rule is that of p-e-w's
//! proposal (github.com/oobabooga/text-generation-webui/pull/5677).

use super::tally::Tally;

/// The sequence breakers, and the working memory of the search.
#[derive(Debug, Clone, Default)]
pub(super) struct Dry {
    breakers: Vec<Vec<u32>>, // each reversed; sorted, so that those with the same last token stand together
    agreement: Vec<u32>,     // see `tally_repeats`
}

impl Dry {
    /// `breakers`: token sequences, none of them empty.
    pub(super) fn new(breakers: &[Vec<u32>]) -> Self {
        let mut breakers: Vec<Vec<u32>> =
            breakers.iter().map(|tokens| tokens.iter().rev().copied().collect()).collect();
        breakers.sort_unstable();
        breakers.dedup();
        Self { breakers, agreement: Vec::new() }
    }

    /// Whether the token alone is a sequence breaker.
    pub(super) fn is_breaker(&self, token: u32) -> bool {
        self.breakers.binary_search_by(|breaker| breaker[..].cmp(&[token])).is_ok()
    }

    /// For every token that would continue a repeat of at least `allowed_length` tokens: the length of the longest
    /// such repeat with that token included, so one more than the tokens that already agree.
    pub(super) fn tally_repeats(&mut self, window: &[u32], allowed_length: usize, tally: &mut Tally) {
        let longest = self.tokens_since_breaker(window);
        if longest < allowed_length {
            return;
        }
        // agreement[k]: how many tokens agree when the window, read from its end, is laid over itself shifted by k.
        // The Z-algorithm (Gusfield, "Algorithms on Strings, Trees, and Sequences", §1.3) has all of them in linear
        // time: inside the rightmost match seen, [left, right), the answer is known up to its edge.
        let from_end = |i: usize| window[window.len() - 1 - i];
        self.agreement.clear();
        self.agreement.resize(window.len(), 0);
        let (mut left, mut right) = (0, 0);
        for shift in 1..window.len() {
            let mut agree =
                if shift < right { (self.agreement[shift - left] as usize).min(right - shift) } else { 0 };
            while shift + agree < window.len() && from_end(agree) == from_end(shift + agree) {
                agree += 1;
            }
            if shift + agree > right {
                (left, right) = (shift, shift + agree);
            }
            self.agreement[shift] = agree as u32;
            let agree = agree.min(longest);
            if agree >= allowed_length {
                tally.update(from_end(shift - 1), |length| length.max(agree as u32 + 1));
            }
        }
    }

    /// The tokens after the breaker that ended last; all of them when there is none.
    fn tokens_since_breaker(&self, window: &[u32]) -> usize {
        (0..window.len())
            .find(|&since| {
                let before = &window[..window.len() - since];
                let last = before[before.len() - 1];
                let first = self.breakers.partition_point(|breaker| breaker[0] < last);
                self.breakers[first..].iter().take_while(|breaker| breaker[0] == last).any(|breaker| {
                    breaker.len() <= before.len()
                        && breaker.iter().eq(before.iter().rev().take(breaker.len()))
                })
            })
            .unwrap_or(window.len())
    }
}

/// `multiplier · base^exponent`, finite, by multiplications alone so that it has the same bits everywhere.
pub(super) fn penalty(multiplier: f32, base: f32, mut exponent: u32) -> f32 {
    let (mut power, mut square) = (f64::from(multiplier), f64::from(base));
    while exponent > 0 {
        if exponent & 1 == 1 {
            power *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    power.min(f64::from(f32::MAX)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const VOCAB: usize = 6;

    /// The definition, read literally: cubic in the length of the window.
    fn naive(window: &[u32], breakers: &[Vec<u32>], allowed_length: usize) -> BTreeMap<u32, u32> {
        let mut start = 0; // the first token after the last breaker
        for end in 1..=window.len() {
            if breakers.iter().any(|breaker| window[..end].ends_with(breaker)) {
                start = end;
            }
        }
        let mut repeats = BTreeMap::new();
        for next in 1..window.len() {
            let agree = (0..=next.min(window.len() - start))
                .filter(|&n| window[..next].ends_with(&window[window.len() - n..]))
                .max()
                .expect("no tokens always agree");
            if agree >= allowed_length {
                let length = repeats.entry(window[next]).or_insert(0);
                *length = (*length).max(agree as u32 + 1);
            }
        }
        repeats
    }

    fn fast(window: &[u32], breakers: &[Vec<u32>], allowed_length: usize) -> BTreeMap<u32, u32> {
        let mut tally = Tally::new(VOCAB);
        Dry::new(breakers).tally_repeats(window, allowed_length, &mut tally);
        tally.tokens().iter().map(|&token| (token, tally.get(token))).collect()
    }

    #[test]
    fn worked_examples() {
        let check = |window: &[u32], breakers: &[Vec<u32>], allowed: usize, expected: &[(u32, u32)]| {
            assert_eq!(fast(window, breakers, allowed), expected.iter().copied().collect(), "{window:?}");
        };
        check(&[], &[], 2, &[]);
        check(&[1], &[], 0, &[]);
        check(&[1, 2, 3, 1, 2], &[], 2, &[(3, 3)]);
        check(&[1, 2, 3, 1, 2], &[], 3, &[]);
        check(&[1, 1, 1, 1], &[], 2, &[(1, 4)]);
        // a b c c b c d a b c: c continues "a b c", b continues "c", d continues "b c".
        check(&[1, 2, 3, 3, 2, 3, 4, 1, 2, 3], &[], 1, &[(3, 4), (2, 2), (4, 3)]);
        // The breaker 1 leaves one token, "2", to agree.
        check(&[1, 2, 3, 1, 2], &[vec![1]], 2, &[]);
        check(&[1, 2, 3, 1, 2], &[vec![1]], 1, &[(3, 2)]);
        check(&[5, 1, 2, 3, 5, 1, 2], &[vec![5, 1]], 1, &[(3, 2)]);
        check(&[5, 1, 2, 3, 5, 1, 2], &[vec![4, 1]], 1, &[(3, 4)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_the_definition(
            window in prop::collection::vec(0..VOCAB as u32 / 2, 0..60),
            breakers in prop::collection::vec(prop::collection::vec(0..VOCAB as u32, 1..4), 0..4),
            allowed_length in 0usize..5,
        ) {
            prop_assert_eq!(fast(&window, &breakers, allowed_length), naive(&window, &breakers, allowed_length));
        }
    }

    #[test]
    fn only_a_breaker_of_one_token_is_a_breaker_by_itself() {
        let dry = Dry::new(&[vec![3], vec![1, 2], vec![2, 4]]);
        assert_eq!((0..5).filter(|&token| dry.is_breaker(token)).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn penalties() {
        for (multiplier, base, exponent, expected) in [
            (0.8, 1.75, 0, 0.8),
            (0.5, 2.0, 10, 512.0),
            (1.0, 1.0, u32::MAX, 1.0),
            (1.0, 3.0, 100_000, f32::MAX),
        ] {
            assert_eq!(penalty(multiplier, base, exponent), expected);
        }
    }
}
