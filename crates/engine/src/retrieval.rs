//! A model written down by hand that retrieves: what `torque eval needle` finds something with, where no trained model is at hand.
//!
//! It is an induction head, in the shape of a llama of two layers without feed-forward. Every token has a random unit code. Heads
//! of the first layer attend to the token one, two and three positions back and copy their codes into slots of the residual stream; the
//! head of the second layer looks for the place whose three tokens before it are the newest three here, and copies what stands
//! there into the last slot, from which the output reads it:
//!
//! ```text
//! residual stream   now | one back | two back | three back | copied | constant | constant of <|assistant|>
//! query, layer 2    now, one back, two back            at the same channels, so a place that
//! key, layer 2      one back, two back, three back     followed the same three tokens scores 3 SHARP
//! ```
//!
//! The chat form needs one trick: `WORD?<|assistant|>` shall go on as `WORD is` does. So `<|assistant|>` has the code of ` is`, and the
//! heads of the first layer look one token further back from it, over the question mark.
//!
//! Three tokens decide, so a number that has one digit four times in a row (one of about 400) is not found in any cache.
//!
//! Keys and values carry much more that nobody asks for, as those of trained models do: a format's error grows with all that is in
//! a vector, so how loud that is (see [`LOUD`]) decides how fine a format retrieval needs. Without it, two bits are enough for
//! everything.
//!
//! Codes are random and attention is sharp by construction. The model shows what a cache does to exact retrieval, and how formats
//! compare; it does not show from which format on a trained model forgets.

use crate::error::Error;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use torque_gguf::{Gguf, Metadata, Tensor, TensorType};
use torque_tokenizer::{Encode, Tokenizer};

/// Channels of a code.
const CODE: usize = 24;
/// Heads of the first layer, one for each token looked back at. The second layer has as many, and uses the first.
const HEADS: usize = 3;
const HEAD_DIM: usize = 128;
/// Width of the residual stream: slots of a code each, as drawn above, and the two constants.
const WIDTH: usize = 128;
const COPIED: usize = HEADS + 1;
const CONSTANT: usize = (COPIED + 1) * CODE;
const ASSISTANT: usize = CONSTANT + 1;
const _: () = assert!(ASSISTANT < WIDTH);
const FEED_FORWARD: usize = 32;
const CONTEXT: usize = 65_536;

/// So large that the slowest pairs hardly turn: those that compare codes lose less than a tenth over the whole context.
const ROPE_BASE: f32 = 1e12;
/// Rotary pairs, the fastest ones, by which the first layer knows distances.
const FAST: usize = 16;
/// Score of each of them at the distance a head looks for. No other distance comes within 12 of their sum.
const PEAK: f64 = 15.0;
/// The first channel that compares codes: the slowest pairs.
const COMPARED: usize = HEAD_DIM - HEADS * CODE;
const _: () = assert!(2 * FAST <= COMPARED);
/// Score of each of three tokens that are the same.
const SHARP: f64 = 30.0;
/// Size of the logits: at so much, what was found is all but certain.
const GAIN: f64 = 8.0;

/// How much longer than a code the part of a key is that no query looks for; that of a value is half as long. At so much, formats of
/// four bits find everything, and formats of two bits do not.
pub const LOUD: f64 = 10.0;
const _: () = assert!(CODE <= COMPARED);

/// Speed of a rotary pair.
fn speed(pair: usize) -> f64 {
    f64::from(ROPE_BASE).powf(-2.0 * pair as f64 / HEAD_DIM as f64)
}

/// What a norm multiplies with where that many parts of length 1 stand in the residual stream.
fn norm(parts: usize) -> f64 {
    (WIDTH as f64 / parts as f64).sqrt()
}

/// A matrix, row by row; rows are outputs.
struct Matrix {
    inputs: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn zeros(inputs: usize, outputs: usize) -> Matrix {
        Matrix { inputs, values: vec![0.0; inputs * outputs] }
    }

    fn set(&mut self, output: usize, input: usize, value: f64) {
        self.values[output * self.inputs + input] = value as f32;
    }

    /// Copies `n` inputs to outputs.
    fn copy(&mut self, output: usize, input: usize, n: usize, factor: f64) {
        (0..n).for_each(|i| self.set(output + i, input + i, factor));
    }

    fn tensor(self, name: impl Into<String>) -> Tensor {
        let outputs = self.values.len() / self.inputs;
        tensor(name, &[self.inputs, outputs], &self.values)
    }
}

fn tensor(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let shape = shape.iter().map(|&n| n as u64).collect();
    Tensor { name: name.into(), shape, kind: TensorType::F32, data: data.into() }
}

/// The model, with the tokenizer and the chat template of another one, whose answers must begin with `<|assistant|>`; and so `loud`
/// ([`LOUD`]).
pub fn build(of: &Gguf, loud: f64) -> Result<Gguf, Error> {
    let tokenizer = Tokenizer::from_metadata(of.metadata())?;
    let mut tensors = ends(&tokenizer)?;
    for (layer, matrices) in [look_back(), induce(loud)].into_iter().enumerate() {
        let names = ["attn_q", "attn_k", "attn_v", "attn_output"].into_iter().zip(matrices);
        let silent = [
            ("ffn_gate", WIDTH, FEED_FORWARD),
            ("ffn_up", WIDTH, FEED_FORWARD),
            ("ffn_down", FEED_FORWARD, WIDTH),
        ]
        .map(|(name, inputs, outputs)| (name, Matrix::zeros(inputs, outputs)));
        let named = |name: &str| format!("blk.{layer}.{name}.weight");
        tensors.extend(names.chain(silent).map(|(name, matrix)| matrix.tensor(named(name))));
        tensors.extend(["attn_norm", "ffn_norm"].map(|name| tensor(named(name), &[WIDTH], &[1.0; WIDTH])));
    }
    Ok(Gguf::from_tensors(metadata(of), tensors)?)
}

fn metadata(of: &Gguf) -> Metadata {
    let mut m = Metadata::default();
    m.insert("general.architecture", "llama");
    m.insert("general.name", "an induction head");
    for (key, value) in [
        ("block_count", 2),
        ("context_length", CONTEXT),
        ("embedding_length", WIDTH),
        ("feed_forward_length", FEED_FORWARD),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", HEADS),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
        ("rope.dimension_count", HEAD_DIM),
    ] {
        m.insert(format!("llama.{key}"), value as u32);
    }
    m.insert("llama.rope.freq_base", ROPE_BASE);
    m.insert("llama.attention.layer_norm_rms_epsilon", 1e-6f32);
    for (key, value) in of.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        m.insert(key, value.clone());
    }
    m
}

/// Embeddings and output.
fn ends(tokenizer: &Tokenizer) -> Result<Vec<Tensor>, Error> {
    let token = |text: &'static str| {
        let tokens = tokenizer.encode(text, Encode { add_special: false, parse_special: true });
        match tokens[..] {
            [token] => Ok(token as usize),
            _ => Err(Error::NotOneToken { text }),
        }
    };
    let (assistant, is) = (token("<|assistant|>")?, token(" is")?);
    let mut rng = StdRng::seed_from_u64(1);
    let mut code = || {
        let code: [f64; CODE] = std::array::from_fn(|_| rng.sample(StandardNormal));
        let length = code.iter().map(|x| x * x).sum::<f64>().sqrt();
        code.map(|x| x / length)
    };
    let mut codes: Vec<[f64; CODE]> = (0..tokenizer.len()).map(|_| code()).collect();
    codes[assistant] = codes[is];
    let mut embedding = Matrix::zeros(WIDTH, codes.len());
    let mut output = Matrix::zeros(WIDTH, codes.len());
    for (token, code) in codes.iter().enumerate() {
        embedding.set(token, if token == assistant { ASSISTANT } else { CONSTANT }, 1.0);
        for (i, &x) in code.iter().enumerate() {
            embedding.set(token, i, x);
            // Control tokens are never said.
            if !tokenizer.is_control(token as u32) {
                output.set(token, COPIED * CODE + i, GAIN * x);
            }
        }
    }
    Ok(vec![
        embedding.tensor("token_embd.weight"),
        output.tensor("output.weight"),
        tensor("output_norm.weight", &[WIDTH], &[1.0; WIDTH]),
    ])
}

/// q, k, v and output of a layer, to be filled.
fn matrices() -> [Matrix; 4] {
    let inner = HEADS * HEAD_DIM;
    [(WIDTH, inner), (WIDTH, inner), (WIDTH, inner), (inner, WIDTH)].map(|(i, o)| Matrix::zeros(i, o))
}

/// What queries are multiplied with, so that a score is their product with the key.
fn unscaled() -> f64 {
    (HEAD_DIM as f64).sqrt()
}

/// The first layer. Keys are the same everywhere, and so are queries but for `<|assistant|>`: what is left is their distance.
fn look_back() -> [Matrix; 4] {
    let [mut q, mut k, mut v, mut output] = matrices();
    let norm = norm(2);
    for head in 0..HEADS {
        let first = head * HEAD_DIM;
        for (constant, distance) in [(CONSTANT, head + 1), (ASSISTANT, head + 2)] {
            for pair in 0..FAST {
                let (sin, cos) = (distance as f64 * speed(pair)).sin_cos();
                let peak = PEAK * unscaled() / norm;
                q.set(first + 2 * pair, constant, peak * cos);
                q.set(first + 2 * pair + 1, constant, -peak * sin);
                k.set(first + 2 * pair, constant, 1.0 / norm);
            }
        }
        v.copy(first, 0, CODE, 1.0);
        output.copy((head + 1) * CODE, first, CODE, 1.0 / norm);
    }
    [q, k, v, output]
}

/// The second layer: one head that compares the newest three tokens with the three before every place.
fn induce(loud: f64) -> [Matrix; 4] {
    let [mut q, mut k, mut v, mut output] = matrices();
    let norm = norm(HEADS + 2);
    q.copy(COMPARED, 0, HEADS * CODE, SHARP * unscaled() / norm);
    k.copy(COMPARED, CODE, HEADS * CODE, 1.0 / norm);
    // What nobody asks for: queries are zero there, and the output does not read it.
    k.copy(0, 0, CODE, loud / norm);
    v.copy(CODE, 0, CODE, loud / 2.0);
    v.copy(0, 0, CODE, 1.0);
    output.copy(COPIED * CODE, 0, CODE, 1.0 / norm);
    [q, k, v, output]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_is_like_no_other() {
        let score = |off: i32| -> f64 { (0..FAST).map(|i| PEAK * (f64::from(off) * speed(i)).cos()).sum() };
        let others = (-(HEADS as i32)..CONTEXT as i32).filter(|off| *off != 0);
        let margin = score(0) - others.map(score).fold(f64::MIN, f64::max);
        assert!(margin > 12.0, "{margin}");
    }

    #[test]
    fn codes_are_the_same_from_afar() {
        let pairs = COMPARED / 2..HEAD_DIM / 2;
        pairs.for_each(|pair| assert!((CONTEXT as f64 * speed(pair)).cos() > 0.9, "{pair}"));
    }
}
