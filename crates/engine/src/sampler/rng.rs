//! The sampler's random numbers: SplitMix64, the same sequence for a seed on every platform.
//!
//! Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014. It passes
//! BigCrush, mixes adjacent seeds well, and one token costs one or two numbers.

use std::hash::{BuildHasher, RandomState};

/// A generator whose whole state is one counter.
#[derive(Debug, Clone)]
pub(super) struct Rng {
    state: u64,
}

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A multiple of 2⁻⁵³, uniform in `[0, 1)`.
    pub(super) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A seed from the randomness the operating system gives to hash maps.
pub(super) fn random_seed() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outputs for seed 1234567, as published with several implementations of SplitMix64.
    #[test]
    fn known_sequence() {
        let mut rng = Rng::new(1_234_567);
        for expected in [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423] {
            assert_eq!(rng.next(), expected);
        }
    }

    #[test]
    fn uniform_has_the_moments_of_a_uniform() {
        let mut rng = Rng::new(7);
        let (mut sum, mut squares, draws) = (0.0, 0.0, 100_000);
        for _ in 0..draws {
            let u = rng.uniform();
            assert!((0.0..1.0).contains(&u));
            sum += u;
            squares += u * u;
        }
        assert!((sum / draws as f64 - 0.5).abs() < 0.005);
        assert!((squares / draws as f64 - 1.0 / 3.0).abs() < 0.005);
    }

    #[test]
    fn random_seeds_differ() {
        assert_ne!(random_seed(), random_seed());
    }
}
