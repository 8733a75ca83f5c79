//! What the user may set: the flags of llama.cpp, with its defaults and its ways to switch a stage off.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::stages::{self, STAGES};

/// How to choose the next token. The default is llama.cpp's; with `temperature` 0 decoding is greedy.
///
/// A field left out when deserialising has its default value; an unknown field is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerParams {
    /// Seed of the random numbers; `None` takes one at random, which [`Sampler::seed`](super::Sampler::seed) tells.
    pub seed: Option<u64>,
    /// The chain: names of [`STAGES`] in the order they run. A stage that is not named does not run, whatever its
    /// parameters say: without `temperature` in the list, temperature 0 is not greedy.
    pub samplers: Vec<String>,
    /// `--temp`: logits are divided by it; 0 keeps only the most likely token.
    pub temperature: f32,
    /// `--top-k`: keep so many of the most likely tokens; 0 or less keeps all.
    pub top_k: i32,
    /// `--top-p`: keep the most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// `--min-p`: keep tokens at least this probable relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// `--typical`: keep the tokens whose surprise is nearest the expected one, up to this probability; 1 keeps all.
    pub typical_p: f32,
    /// `--top-nsigma`: keep logits within so many standard deviations of the largest; 0 or less keeps all.
    pub top_n_sigma: f32,
    /// `--repeat-last-n`: the three penalties below look at so many last tokens; 0 is none, −1 is all of them.
    pub repeat_last_n: i32,
    /// `--repeat-penalty`: a token seen has a positive logit divided, a negative one multiplied by it; 1 is off.
    pub repeat_penalty: f32,
    /// `--presence-penalty`: subtracted once from the logit of a token seen; 0 is off.
    pub presence_penalty: f32,
    /// `--frequency-penalty`: subtracted from the logit of a token for every time it was seen; 0 is off.
    pub frequency_penalty: f32,
    /// `--dry-multiplier`: scale of the DRY penalty, `multiplier · base^(length − allowed_length)`; 0 is off.
    pub dry_multiplier: f32,
    /// `--dry-base`: growth of the DRY penalty with the length of the repeat; below 1 is off.
    pub dry_base: f32,
    /// `--dry-allowed-length`: repeats shorter than this cost nothing.
    pub dry_allowed_length: u32,
    /// `--dry-penalty-last-n`: repeats are sought in so many last tokens; 0 is off, −1 is all of them. llama.cpp's
    /// default was −1 until August 2026 and has been 64 since its samplers start before the context length is known;
    /// this limit does not exist here, and 64 tokens hide most of the repeats that DRY is for.
    pub dry_penalty_last_n: i32,
    /// `--dry-sequence-breaker`: repeats do not reach back across these token sequences. llama.cpp's default texts
    /// are `"\n"`, `":"`, `"\""` and `"*"`. Only the caller has a tokenizer, so it gives tokens, and for each text
    /// it should give both every single token whose text contains it and, if it takes several tokens, its tokenisation.
    pub dry_sequence_breakers: Vec<Vec<u32>>,
    /// `--xtc-probability`: how often XTC removes all but the least likely of the tokens above its threshold.
    pub xtc_probability: f32,
    /// `--xtc-threshold`: the probability from which XTC considers a token; above 0.5 is off.
    pub xtc_threshold: f32,
    /// `--logit-bias`: token and what is added to its logit before the chain; −∞ forbids the token.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            seed: None,
            samplers: STAGES.iter().map(|stage| stage.name.to_owned()).collect(),
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            repeat_last_n: 64,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: -1,
            dry_sequence_breakers: Vec::new(),
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            logit_bias: Vec::new(),
        }
    }
}

/// A sampling parameter that is out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{flag}: expected {expected}, found {found}")]
pub struct Error {
    /// The command line's name of the parameter.
    pub flag: &'static str,
    /// What it should have been.
    pub expected: String,
    /// What it was.
    pub found: String,
}

const ANY: RangeInclusive<f32> = f32::MIN..=f32::MAX;
const NOT_NEGATIVE: RangeInclusive<f32> = 0.0..=f32::MAX;
const FRACTION: RangeInclusive<f32> = 0.0..=1.0;

/// A number's flag, the number, and the values it may have, as a range and in words.
type Bound = (&'static str, fn(&SamplerParams) -> f32, RangeInclusive<f32>, &'static str);

const BOUNDS: &[Bound] = &[
    ("--temp", |p| p.temperature, NOT_NEGATIVE, "a number from 0 (greedy) up"),
    ("--top-p", |p| p.top_p, FRACTION, "a number from 0 to 1"),
    ("--min-p", |p| p.min_p, FRACTION, "a number from 0 to 1"),
    ("--typical", |p| p.typical_p, FRACTION, "a number from 0 to 1"),
    ("--top-nsigma", |p| p.top_n_sigma, ANY, "a number"),
    ("--repeat-penalty", |p| p.repeat_penalty, f32::MIN_POSITIVE..=f32::MAX, "a number above 0"),
    ("--presence-penalty", |p| p.presence_penalty, ANY, "a number"),
    ("--frequency-penalty", |p| p.frequency_penalty, ANY, "a number"),
    ("--dry-multiplier", |p| p.dry_multiplier, NOT_NEGATIVE, "a number from 0 (off) up"),
    ("--dry-base", |p| p.dry_base, NOT_NEGATIVE, "a number from 0 up"),
    ("--xtc-probability", |p| p.xtc_probability, FRACTION, "a number from 0 to 1"),
    ("--xtc-threshold", |p| p.xtc_threshold, FRACTION, "a number from 0 to 1"),
];

impl SamplerParams {
    /// Checks every parameter that can be checked without a vocabulary.
    ///
    /// # Errors
    /// Names the flag of the first parameter that is out of range, what was expected, and what was found.
    pub fn validate(&self) -> Result<(), Error> {
        for (flag, value, range, expected) in BOUNDS {
            let value = value(self);
            check(range.contains(&value), flag, *expected, value)?;
        }
        for (flag, last_n) in
            [("--repeat-last-n", self.repeat_last_n), ("--dry-penalty-last-n", self.dry_penalty_last_n)]
        {
            check(last_n >= -1, flag, "a count of tokens, or -1 for all of them", last_n)?;
        }
        for breaker in &self.dry_sequence_breakers {
            check(!breaker.is_empty(), "--dry-sequence-breaker", "at least one token", "none")?;
        }
        for (token, bias) in &self.logit_bias {
            let found = format!("{bias} for token {token}");
            check(*bias < f32::INFINITY, "--logit-bias", "a number or -inf", found)?;
        }
        for name in &self.samplers {
            let names: Vec<_> = STAGES.iter().map(|stage| stage.name).collect();
            let known = stages::find(name).is_some();
            check(known, "--samplers", format!("names out of {}", names.join(", ")), format!("`{name}`"))?;
        }
        Ok(())
    }

    /// Checks that the tokens named are tokens of the vocabulary.
    pub(super) fn validate_tokens(&self, vocab: usize) -> Result<(), Error> {
        let biased = self.logit_bias.iter().map(|(token, _)| ("--logit-bias", token));
        let breaking =
            self.dry_sequence_breakers.iter().flatten().map(|token| ("--dry-sequence-breaker", token));
        for (flag, &token) in biased.chain(breaking) {
            check((token as usize) < vocab, flag, format!("a token below {vocab}"), token)?;
        }
        Ok(())
    }
}

fn check(
    holds: bool,
    flag: &'static str,
    expected: impl Into<String>,
    found: impl ToString,
) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error { flag, expected: expected.into(), found: found.to_string() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change to the defaults, and the message it earns (empty: it is valid).
    fn check(change: impl FnOnce(&mut SamplerParams), message: &str) {
        let mut params = SamplerParams::default();
        change(&mut params);
        let found = params.validate().map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(found, message);
    }

    #[test]
    fn messages_name_the_flag() {
        check(|_| (), "");
        check(|p| p.top_p = 1.5, "--top-p: expected a number from 0 to 1, found 1.5");
        check(|p| p.min_p = -0.1, "--min-p: expected a number from 0 to 1, found -0.1");
        check(|p| p.typical_p = f32::NAN, "--typical: expected a number from 0 to 1, found NaN");
        check(|p| p.temperature = -1.0, "--temp: expected a number from 0 (greedy) up, found -1");
        check(|p| p.temperature = f32::INFINITY, "--temp: expected a number from 0 (greedy) up, found inf");
        check(|p| p.repeat_penalty = 0.0, "--repeat-penalty: expected a number above 0, found 0");
        check(|p| p.presence_penalty = f32::NAN, "--presence-penalty: expected a number, found NaN");
        check(|p| p.xtc_probability = 2.0, "--xtc-probability: expected a number from 0 to 1, found 2");
        check(
            |p| p.repeat_last_n = -2,
            "--repeat-last-n: expected a count of tokens, or -1 for all of them, found -2",
        );
        check(
            |p| p.dry_sequence_breakers.push(vec![]),
            "--dry-sequence-breaker: expected at least one token, found none",
        );
        check(
            |p| p.logit_bias.push((7, f32::NAN)),
            "--logit-bias: expected a number or -inf, found NaN for token 7",
        );
        check(|p| p.logit_bias.push((7, f32::NEG_INFINITY)), "");
        check(|p| p.top_k = -1, "");
        check(|p| p.samplers.clear(), "");
        check(
            |p| p.samplers.push("tfs".into()),
            "--samplers: expected names out of penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature, found `tfs`",
        );
    }

    #[test]
    fn serde_fills_in_defaults_and_refuses_typos() {
        let params = SamplerParams { temperature: 0.5, seed: Some(3), ..SamplerParams::default() };
        let json = serde_json::to_string(&params).unwrap();
        assert_eq!(serde_json::from_str::<SamplerParams>(&json).unwrap(), params);
        let short = serde_json::from_str::<SamplerParams>(r#"{"temperature": 0.5, "seed": 3}"#).unwrap();
        assert_eq!(short, params);
        let error = serde_json::from_str::<SamplerParams>(r#"{"temprature": 0.5}"#).unwrap_err();
        assert!(error.to_string().contains("temprature"), "{error}");
    }
}
