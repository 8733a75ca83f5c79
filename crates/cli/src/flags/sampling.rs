//! How tokens are chosen: llama.cpp's flags, with its defaults.

use crate::text;
use anyhow::Result;
use clap::Args;
use torque_engine::Engine;
use torque_engine::sampler::{self, Sampler, SamplerParams};
use torque_engine::tokenizer::{Encode, Tokenizer};

/// Every sampling parameter.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingFlags {
    /// Seed of the random numbers; -1: a new one each time, which the last line tells
    #[arg(short, long, value_name = "N", default_value = "-1", value_parser = seed, allow_negative_numbers = true)]
    seed: Seed,
    /// Temperature; 0 always takes the most likely token
    #[arg(long, alias = "temperature", value_name = "X", default_value_t = defaults().temperature, allow_negative_numbers = true)]
    temp: f32,
    /// Keep the N most likely tokens; 0: all
    #[arg(long, value_name = "N", default_value_t = defaults().top_k, allow_negative_numbers = true)]
    top_k: i32,
    /// Keep the most likely tokens that together have probability P; 1: all
    #[arg(long, value_name = "P", default_value_t = defaults().top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// Keep tokens at least P times as probable as the most likely one; 0: all
    #[arg(long, value_name = "P", default_value_t = defaults().min_p, allow_negative_numbers = true)]
    min_p: f32,
    /// Keep the most typical tokens that together have probability P; 1: all
    #[arg(long, alias = "typical-p", value_name = "P", default_value_t = defaults().typical_p, allow_negative_numbers = true)]
    typical: f32,
    /// Keep logits within X standard deviations of the largest; -1: all
    #[arg(long, alias = "top-n-sigma", value_name = "X", default_value_t = defaults().top_n_sigma, allow_negative_numbers = true)]
    top_nsigma: f32,
    /// The three penalties below look at the last N tokens; 0: none, -1: all
    #[arg(long, value_name = "N", default_value_t = defaults().repeat_last_n, allow_negative_numbers = true)]
    repeat_last_n: i32,
    /// Divides the logits of tokens seen; 1: off
    #[arg(long, value_name = "X", default_value_t = defaults().repeat_penalty, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Subtracted from the logits of tokens seen
    #[arg(long, value_name = "X", default_value_t = defaults().presence_penalty, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtracted from the logits of tokens for every time they were seen
    #[arg(long, value_name = "X", default_value_t = defaults().frequency_penalty, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// DRY: strength of the penalty on repeating a sequence; 0: off
    #[arg(long, value_name = "X", default_value_t = defaults().dry_multiplier, allow_negative_numbers = true)]
    dry_multiplier: f32,
    /// DRY: growth of the penalty with the length of the repeat
    #[arg(long, value_name = "X", default_value_t = defaults().dry_base, allow_negative_numbers = true)]
    dry_base: f32,
    /// DRY: repeats up to this length cost nothing
    #[arg(long, value_name = "N", default_value_t = defaults().dry_allowed_length)]
    dry_allowed_length: u32,
    /// DRY: look for repeats in the last N tokens; 0: off, -1: all
    #[arg(long, value_name = "N", default_value_t = defaults().dry_penalty_last_n, allow_negative_numbers = true)]
    dry_penalty_last_n: i32,
    /// DRY: repeats do not reach across this text; may be given again, `none` is no text [default: \n : " *]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    dry_sequence_breaker: Vec<String>,
    /// XTC: how often to drop all but the least likely of the likely tokens
    #[arg(long, value_name = "P", default_value_t = defaults().xtc_probability, allow_negative_numbers = true)]
    xtc_probability: f32,
    /// XTC: from which probability on a token is likely; above 0.5: off
    #[arg(long, value_name = "P", default_value_t = defaults().xtc_threshold, allow_negative_numbers = true)]
    xtc_threshold: f32,
    /// Makes a token more or less likely: 15043+1, 15043-0.5, 15043-inf; may be given again
    #[arg(short, long, value_name = "TOKEN(+/-)BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// The stages and their order, with `;` or `,` between
    #[arg(long, value_name = "LIST", default_value_t = defaults().samplers.join(";"))]
    samplers: String,
}

fn defaults() -> SamplerParams {
    SamplerParams::default()
}

/// llama.cpp's sequence breakers.
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

impl SamplingFlags {
    /// The parameters, checked as far as they can be without a model.
    pub fn params(&self) -> Result<SamplerParams, sampler::Error> {
        let names = self.samplers.split([';', ',']).map(str::trim).filter(|name| !name.is_empty());
        let params = SamplerParams {
            seed: self.seed.0,
            samplers: names.map(str::to_string).collect(),
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical,
            top_n_sigma: self.top_nsigma,
            repeat_last_n: self.repeat_last_n,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            dry_multiplier: self.dry_multiplier,
            dry_base: self.dry_base,
            dry_allowed_length: self.dry_allowed_length,
            dry_penalty_last_n: self.dry_penalty_last_n,
            dry_sequence_breakers: Vec::new(),
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            logit_bias: self.logit_bias.clone(),
        };
        params.validate()?;
        Ok(params)
    }

    /// The sampler of a model, for one of several answers: each has random numbers of its own.
    pub fn sampler(&self, engine: &Engine, answer: u64) -> Result<Sampler, sampler::Error> {
        let mut params = self.params()?;
        params.seed = params.seed.map(|seed| seed.wrapping_add(answer));
        if params.dry_multiplier > 0.0 {
            params.dry_sequence_breakers = self.breakers(engine.tokenizer());
        }
        Sampler::new(params, engine.config().vocabulary)
    }

    /// The tokens of every sequence breaker: each one that contains its text, and those it takes several of.
    fn breakers(&self, tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
        let given: Vec<String> = match &self.dry_sequence_breaker[..] {
            [] => BREAKERS.map(str::to_string).to_vec(),
            given => given.iter().filter(|text| *text != "none").map(|text| text::unescape(text)).collect(),
        };
        let mut breakers = Vec::new();
        for text in given.iter().filter(|text| !text.is_empty()) {
            let contains =
                |&id: &u32| tokenizer.token_bytes(id).windows(text.len()).any(|w| w == text.as_bytes());
            breakers.extend((0..tokenizer.len() as u32).filter(contains).map(|id| vec![id]));
            breakers.push(tokenizer.encode(text, Encode::default()));
        }
        breakers.retain(|tokens| !tokens.is_empty());
        breakers
    }
}

/// A seed, or none.
#[derive(Clone, Copy)]
struct Seed(Option<u64>);

/// Reads a seed; -1 is none.
fn seed(text: &str) -> Result<Seed, String> {
    match text.parse() {
        _ if text == "-1" => Ok(Seed(None)),
        Ok(seed) => Ok(Seed(Some(seed))),
        Err(_) => Err("expected a whole number, or -1 for a new one".into()),
    }
}

/// Reads `15043-0.5`.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let parts = text.find(['+', '-']).map(|sign| text.split_at(sign));
    let parsed = parts.and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
    parsed.ok_or_else(|| "expected a token's number, `+` or `-`, and a number".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases() {
        assert_eq!(bias("15043+1"), Ok((15043, 1.0)));
        assert_eq!(bias("7-0.5"), Ok((7, -0.5)));
        assert_eq!(bias("7-inf"), Ok((7, f32::NEG_INFINITY)));
        for wrong in ["", "7", "+1", "x+1", "7+", "7+x"] {
            assert!(bias(wrong).is_err(), "{wrong}");
        }
    }
}
