//! Rotary embeddings: frequencies of a model and context, and angles of positions
//! (`../shared/spec/architectures.md` §3.1).

use torque_backend::RopePairs;

/// A rotary embedding as the metadata says it.
#[derive(Clone, Copy, Debug)]
pub struct RopeConfig {
    /// Which channels form a pair.
    pub pairs: RopePairs,
    /// Rotated channels of a head.
    pub channels: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// How frequencies are stretched.
    pub scaling: Scaling,
    /// `rope.scaling.attn_factor`: multiplies cosines and sines.
    pub attention_factor: f32,
    /// Trained length before scaling; 0 if unknown.
    pub original_context: usize,
    /// Whether the file's frequency factors apply.
    pub uses_factors: bool,
}

/// How frequencies are stretched for longer contexts.
#[derive(Clone, Copy, Debug)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All by the same factor.
    Linear {
        /// Stretch.
        factor: f32,
    },
    /// YaRN (Peng et al. 2023): slow channels stretched, fast ones not.
    Yarn {
        /// Stretch.
        factor: f32,
        /// Trained length.
        original: usize,
        /// Rotations in the trained length above which a channel is not stretched.
        beta_fast: f32,
        /// Rotations below which it is stretched in full.
        beta_slow: f32,
        /// If zero, cosines and sines grow by `1 + 0.1·ln factor`.
        log_multiplier: f32,
        /// Whether the bounds between stretched and other pairs are whole.
        rounds: bool,
    },
}

/// Frequency factors from the file: each divides a pair's frequency.
#[derive(Clone, Debug, Default)]
pub struct Factors {
    /// `rope_freqs`: always.
    pub always: Option<Vec<f32>>,
    /// `rope_factors_short`: in contexts up to the original length.
    pub short: Option<Vec<f32>>,
    /// `rope_factors_long`: in longer contexts.
    pub long: Option<Vec<f32>>,
}

/// Angle per position of every pair, and what multiplies cosines and sines.
#[derive(Clone, Debug)]
pub struct Frequencies {
    /// The embedding.
    pub config: RopeConfig,
    per_pair: Vec<f32>,
    multiplier: f32,
}

impl RopeConfig {
    /// Frequencies for a context of `context` tokens. Long factors are chosen once per context, not by
    /// position: the only rule that keeps cached keys consistent.
    pub fn frequencies(&self, factors: &Factors, context: usize) -> Frequencies {
        let pairs = self.channels / 2;
        let mut per_pair: Vec<f64> =
            (0..pairs).map(|i| f64::from(self.base).powf(-2.0 * i as f64 / self.channels as f64)).collect();
        let by_length = if context > self.original_context { &factors.long } else { &factors.short };
        if self.uses_factors {
            for factors in [&factors.always, by_length].into_iter().flatten() {
                per_pair.iter_mut().zip(factors).for_each(|(f, factor)| *f /= f64::from(*factor));
            }
        }
        let mut multiplier = self.attention_factor;
        match self.scaling {
            Scaling::None => {}
            Scaling::Linear { factor } => per_pair.iter_mut().for_each(|f| *f /= f64::from(factor)),
            Scaling::Yarn { factor, original, beta_fast, beta_slow, log_multiplier, rounds } => {
                // The pair that turns `rotations` times in the trained length.
                let pair = |rotations: f32| {
                    let length = original as f64 / (2.0 * std::f64::consts::PI * f64::from(rotations));
                    self.channels as f64 * length.ln() / (2.0 * f64::from(self.base).ln())
                };
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if rounds {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min(self.channels as f64 - 1.0));
                for (i, f) in per_pair.iter_mut().enumerate() {
                    let keep = 1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    *f = *f / f64::from(factor) * (1.0 - keep) + *f * keep;
                }
                if log_multiplier == 0.0 {
                    multiplier *= 1.0 + 0.1 * factor.ln();
                }
            }
        }
        Frequencies { config: *self, per_pair: per_pair.into_iter().map(|f| f as f32).collect(), multiplier }
    }
}

impl Frequencies {
    /// All that angles depend on.
    pub fn values(&self) -> impl Iterator<Item = f32> {
        self.per_pair.iter().copied().chain([self.multiplier])
    }

    /// Appends (cos, sin) of every pair at `position`.
    pub fn angles(&self, position: usize, out: &mut Vec<[f32; 2]>) {
        let turn = self.turn(position);
        out.extend(turn.map(|[cos, sin]| [self.multiplier * cos, self.multiplier * sin]));
    }

    /// (cos, sin) of every pair for what has its embedding already and moves up by `distance` positions.
    pub fn turn(&self, distance: usize) -> impl Iterator<Item = [f32; 2]> {
        self.per_pair.iter().map(move |f| {
            let (sin, cos) = (distance as f64 * f64::from(*f)).sin_cos();
            [cos as f32, sin as f32]
        })
    }
}
