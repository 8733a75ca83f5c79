//! What every backend must pass: each op against [`Scalar`], over the lists of formats and shapes.
//!
//! A backend's tests call these functions; a new format or op is tested before anyone remembers to.

use crate::*;
use torque_kv::{KvLayer, Pages, Policy};
use torque_quant::{FORMATS, FormatOps};

/// Pseudo-random numbers that are the same everywhere (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A sum of uniform numbers: nearly Gaussian, standard deviation 1.
    pub fn gauss(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| (self.bits() >> 40) as f32 / (1 << 24) as f32).sum();
        sum - 6.0
    }

    /// That many of them.
    pub fn gausses(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.gauss()).collect()
    }
}

/// One attention layer fed with the same tokens on any backend.
#[derive(Clone, Debug)]
pub struct AttentionCase {
    /// What pages are sealed in; short pages, so that few tokens seal.
    pub policy: Policy,
    /// K and V head size.
    pub head_dim: [usize; 2],
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of a KV head.
    pub group: usize,
    /// Sliding window.
    pub window: Option<usize>,
    /// Soft cap of scores.
    pub softcap: Option<f32>,
    /// A learned sink logit for each head.
    pub sinks: bool,
    /// Tokens arriving at once, in turn.
    pub chunks: Vec<usize>,
}

impl AttentionCase {
    /// Heads of one size, pages of 16 tokens, no tail.
    pub fn new(k: &str, v: &str, head_dim: usize) -> AttentionCase {
        AttentionCase {
            policy: Policy { page: 16, ..Policy::uniform(k, v).bare() },
            head_dim: [head_dim; 2],
            kv_heads: 2,
            group: 2,
            window: None,
            softcap: None,
            sinks: false,
            // Prefill, a single token, a chunk that straddles pages, then decode.
            chunks: [40, 1, 47].into_iter().chain([1; 8]).collect(),
        }
    }

    /// The outputs of every token, `[tokens, heads·head_dim]`. Keys carry a large constant, as those of
    /// models with biases do.
    pub fn run<B: Backend>(&self, backend: &B) -> Vec<f32> {
        let layer = KvLayer { heads: self.kv_heads, head_dim: self.head_dim, window: self.window };
        let plan = Plan::new(&self.policy, &[layer]).expect("a valid case");
        let batch = self.chunks.iter().copied().max().unwrap_or(1);
        let (mut store, mut pages) = (backend.store(&plan, 1, batch), Pages::default());
        let mut sequence = Sequence::new(&plan, 0);
        let mut random = Random(7);
        let heads = self.kv_heads * self.group;
        let [k_dim, v_dim] = self.head_dim;
        let bias: Vec<f32> = random.gausses(self.kv_heads * k_dim).iter().map(|b| 3.0 * b).collect();
        let sinks = backend.vector(&random.gausses(heads));
        let attention = Attention {
            layer: 0,
            heads,
            scale: 1.0 / (k_dim as f32).sqrt(),
            softcap: self.softcap,
            sinks: self.sinks.then_some(&sinks),
        };
        let mut outputs = Vec::new();
        for &tokens in &self.chunks {
            let mut k = random.gausses(tokens * self.kv_heads * k_dim);
            k.chunks_exact_mut(bias.len())
                .for_each(|row| row.iter_mut().zip(&bias).for_each(|(k, b)| *k += b));
            let k = from_host(backend, tokens, &k);
            let v = from_host(backend, tokens, &random.gausses(tokens * self.kv_heads * v_dim));
            let mut q = from_host(backend, tokens, &random.gausses(tokens * heads * k_dim));
            let mut out = from_host(backend, tokens, &vec![f32::NAN; tokens * heads * v_dim]);
            sequence.append(tokens);
            let segment = Segment { rows: 0..tokens, sequence: &sequence };
            backend.append(&mut store, 0, &segment, &k, &v);
            backend.attention(&store, &attention, &[segment], &mut q, &mut out);
            outputs.extend(to_host(backend, &out, tokens * heads * v_dim));
            while let Some(span) = sequence.seal(&plan, &mut pages) {
                backend.seal(&mut store, &sequence, span);
            }
            let mut freed = Vec::new();
            sequence.expire(&plan, &mut pages, &mut freed);
            backend.free(&mut store, &freed);
        }
        outputs
    }
}

/// A tensor of these rows.
pub fn from_host<B: Backend>(backend: &B, rows: usize, values: &[f32]) -> B::Tensor {
    let mut x = backend.tensor(values.len());
    backend.reshape(&mut x, rows, values.len() / rows);
    backend.write(values, &mut x);
    x
}

/// A tensor's values.
pub fn to_host<B: Backend>(backend: &B, x: &B::Tensor, values: usize) -> Vec<f32> {
    let mut out = vec![0.0; values];
    backend.read(x, &mut out);
    out
}

/// Head sizes every backend must have.
pub const HEAD_SIZES: [usize; 8] = [48, 64, 80, 96, 112, 128, 192, 256];

/// One cell of the matrix of K format, V format and head size.
pub struct Cell {
    /// K format.
    pub k: &'static str,
    /// V format.
    pub v: &'static str,
    /// Head size.
    pub head_dim: usize,
    /// Error of the attention output against exact arithmetic on unquantised K and V: root mean square,
    /// relative to the output's.
    pub error: f64,
}

/// Every pair of KV formats, head size by head size, causal and windowed, with and without soft cap and
/// learned sinks, prefill and decode: `backend` against the scalar backend within `tolerance` of the
/// largest output, and the causal case against unquantised K and V within what the two formats may
/// cost.
pub fn check_every_pair<B: Backend>(backend: &B, head_dims: &[usize], tolerance: f32) -> Vec<Cell> {
    let formats: Vec<&FormatOps> = FORMATS.iter().filter(|f| f.kv).collect();
    let mut cells = Vec::new();
    for &head_dim in head_dims {
        let exact = AttentionCase::new("f32", "f32", head_dim).run(&Scalar);
        for k in &formats {
            for v in &formats {
                let base = AttentionCase::new(k.name, v.name, head_dim);
                let found = base.run(backend);
                check_close(&format!("{base:?}"), &base.run(&Scalar), &found, tolerance);
                for (window, softcap, sinks) in
                    [(Some(20), None, true), (None, Some(20.0), true), (Some(33), Some(5.0), false)]
                {
                    check_case(backend, &AttentionCase { window, softcap, sinks, ..base.clone() }, tolerance);
                }
                let (error, bound) = (relative_error(&exact, &found), error_bound(k) + error_bound(v));
                assert!(
                    error <= bound,
                    "{} / {} at head size {head_dim}: error {error} > {bound}",
                    k.name,
                    v.name
                );
                cells.push(Cell { k: k.name, v: v.name, head_dim, error });
            }
        }
    }
    cells
}

/// Root-mean-square difference, relative to the expected values' root-mean-square.
pub fn relative_error(expected: &[f32], found: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = expected.iter().zip(found).map(|(e, f)| square(e - f)).sum();
    (error / expected.iter().map(|e| square(*e)).sum::<f64>()).sqrt()
}

/// What a format may cost an attention output, as K or as V: a few times the codec's own relative error,
/// which is about 2^-bits.
fn error_bound(format: &FormatOps) -> f64 {
    if format.name == "f32" { 2e-6 } else { 2.5 * 2f64.powf(-format.bits().min(10.0).floor()) }
}

/// One case on `backend` against the scalar backend.
pub fn check_case<B: Backend>(backend: &B, case: &AttentionCase, tolerance: f32) {
    let (expected, found) = (case.run(&Scalar), case.run(backend));
    check_close(&format!("{case:?}"), &expected, &found, tolerance);
}

/// Panics unless every difference is within `tolerance` of the largest expected value.
pub fn check_close(what: &str, expected: &[f32], found: &[f32], tolerance: f32) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        let difference = (e - f).abs();
        assert!(
            difference <= tolerance * largest,
            "{what}: value {i} of {} is {f}, expected {e}",
            expected.len()
        );
    }
}
