//! Gated DeltaNet: one job a value head, which takes the tokens of a segment in turn.
//!
//! A head's state S is `d × d` floats (64 KiB for d = 128), and its key head is convolved and normalised again by
//! every value head that shares it, which is cheaper than to wait for one another.
//!
//! Decode reads and writes S once: 8 d² bytes a head and token, and 3 d² multiplications, so memory sets the pace.
//! A chunk of C tokens needs, for each token, 3 d² multiplications with S, which now stays in the second-level
//! cache, and about 3½ C d for what passes between its tokens; S is read and written once a chunk.

use crate::elementwise;
use crate::pool::{Grid, Pool};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Mutex;
use torque_backend::host::{State, Store, Tensor};
use torque_backend::{DeltaNet, Segment};
use torque_quant::SharedKernels;
use torque_quant::delta::{DeltaKernels, LEAST};
use torque_quant::gemm::Matrix;
use torque_simd::Level;

/// Tokens of a chunk.
const CHUNK: usize = 64;
/// Tokens up to which it is faster to take them one by one.
const STEPS: usize = 3;

#[derive(Default)]
struct Scratch {
    /// Keys, then queries: `[2·tokens, key_dim]`.
    kq: Vec<f32>,
    /// Values, then their differences from what S knows: `[tokens, value_dim]`.
    v: Vec<f32>,
    /// What S says of keys, then of queries, which become the output: `[2·tokens, value_dim]`.
    known: Vec<f32>,
    /// Products of keys with keys, then of queries with keys: `[2·tokens, tokens]`.
    products: Vec<f32>,
    /// Keys as the last token sees them: `[key_dim, tokens]`.
    keys: Vec<f32>,
    alpha: Vec<f32>,
    beta: Vec<f32>,
    /// `[tokens]`.
    last: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// See [`torque_backend::Backend::delta_net`].
pub fn run(
    pool: &Pool,
    level: Level,
    store: &mut Store,
    net: &DeltaNet<Vec<f32>>,
    segments: &[Segment],
    qkv: &Tensor,
    alpha_beta: [&Tensor; 2],
    out: &mut Tensor,
) {
    let (kernels, float) = (DeltaKernels::of(level), SharedKernels::of(level));
    let op = Op { level, kernels, float, net, alpha_beta };
    let width = net.value_heads * net.value_dim;
    for segment in segments {
        store.recur(net.layer, segment, qkv, |state, rows| {
            let inputs = State::inputs(&state.conv, qkv, &rows);
            let heads = state.matrix.chunks_exact_mut(net.key_dim * net.value_dim);
            // Never contended: every job has a head of its own.
            let heads: Vec<_> = heads.map(Mutex::new).collect();
            let values = &mut out.data_mut()[rows.start * width..rows.end * width];
            let out = &mut [Grid { values, width, columns: net.value_dim }];
            pool.for_columns(out, |_, first, mut columns| {
                let head = first / net.value_dim;
                let mut s = heads[head].lock().expect("no other job has this head");
                SCRATCH.with_borrow_mut(|scratch| {
                    for start in (0..rows.len()).step_by(CHUNK) {
                        let tokens = CHUNK.min(rows.len() - start);
                        let inputs = &inputs[start..start + tokens + inputs.len() - rows.len()];
                        let chunk = rows.start + start..rows.start + start + tokens;
                        op.chunk(head, inputs, chunk, &mut s, scratch);
                        let known = &scratch.known[tokens * net.value_dim..];
                        for (i, o) in known.chunks_exact(net.value_dim).enumerate() {
                            columns.row(start + i).copy_from_slice(o);
                        }
                    }
                });
            });
        });
    }
}

struct Op<'a> {
    level: Level,
    kernels: DeltaKernels,
    float: SharedKernels,
    net: &'a DeltaNet<'a, Vec<f32>>,
    alpha_beta: [&'a Tensor; 2],
}

impl Op<'_> {
    /// One chunk of one value head. Its outputs are the second half of `scratch.known`.
    fn chunk(
        &self,
        head: usize,
        inputs: &[&[f32]],
        rows: Range<usize>,
        s: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (key_dim, value_dim) = (self.net.key_dim, self.net.value_dim);
        let tokens = rows.len();
        scratch.kq.resize(2 * tokens * key_dim, 0.0);
        scratch.v.resize(tokens * value_dim, 0.0);
        scratch.known.resize(2 * tokens * value_dim, 0.0);
        self.inputs(head, inputs, scratch);
        self.gates(head, rows, scratch);
        if tokens > STEPS {
            return self.together(s, scratch);
        }
        let Scratch { kq, v, known, alpha, beta, .. } = scratch;
        let (k, q) = kq.split_at(tokens * key_dim);
        for t in 0..tokens {
            let [k, q] = [k, q].map(|x| &x[t * key_dim..][..key_dim]);
            let v = &v[t * value_dim..][..value_dim];
            let out = &mut known[(tokens + t) * value_dim..][..value_dim];
            (self.kernels.step)(alpha[t], beta[t], [k, q, v], s, out);
        }
    }

    /// Keys, queries and values of a head: convolved, and the former two normalised.
    fn inputs(&self, head: usize, inputs: &[&[f32]], scratch: &mut Scratch) {
        let DeltaNet { key_heads, key_dim, value_dim, conv, eps, .. } = *self.net;
        let key_head = self.net.key_head(head);
        let half = scratch.kq.len() / 2;
        let (k, q) = scratch.kq.split_at_mut(half);
        let first = [key_heads + key_head, key_head].map(|head| head * key_dim);
        (self.kernels.convolve)(conv, inputs, first[0], key_dim, k);
        (self.kernels.convolve)(conv, inputs, first[1], key_dim, q);
        let first = 2 * key_heads * key_dim + head * value_dim;
        (self.kernels.convolve)(conv, inputs, first, value_dim, &mut scratch.v);
        (self.kernels.normalise)(1.0, eps, key_dim, k);
        (self.kernels.normalise)(1.0 / (key_dim as f32).sqrt(), eps, key_dim, q);
    }

    /// Decay and strength of every token. Few, and decays are multiplied many times: in double precision.
    fn gates(&self, head: usize, rows: Range<usize>, scratch: &mut Scratch) {
        let [alpha, beta] = self.alpha_beta;
        let (decay, bias) = (f64::from(self.net.decay[head]), f64::from(self.net.dt_bias[head]));
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        scratch.alpha.clear();
        scratch.beta.clear();
        for row in rows {
            let step = softplus(f64::from(alpha.row(row)[head]) + bias);
            scratch.alpha.push((decay * step).exp() as f32);
            scratch.beta.push((1.0 / (1.0 + (-f64::from(beta.row(row)[head])).exp())) as f32);
        }
    }

    /// Many tokens at once: see [`torque_quant::delta`].
    fn together(&self, s: &mut [f32], scratch: &mut Scratch) {
        let (level, key_dim, value_dim) = (self.level, self.net.key_dim, self.net.value_dim);
        let Scratch { kq, v, known, products, keys, alpha, beta, last } = scratch;
        let tokens = alpha.len();
        products.resize(2 * tokens * tokens, 0.0);
        last.resize(tokens, 0.0);
        let matrix = |rows: usize| Matrix { values: &kq[..rows * key_dim], stride: key_dim, rows };
        (self.float.product)(matrix(2 * tokens), matrix(tokens), key_dim, products);
        (self.kernels.decay)(alpha, beta, products, last);
        let (among_keys, to_queries) = products.split_at(tokens * tokens);

        known.fill(0.0);
        (self.float.accumulate_tile)(s, key_dim, value_dim, kq, known);
        let (of_keys, out) = known.split_at_mut(tokens * value_dim);
        let mut total = 1.0;
        for t in 0..tokens {
            let row = t * value_dim..(t + 1) * value_dim;
            total = if total * alpha[t] < LEAST { 0.0 } else { total * alpha[t] };
            elementwise::add_scaled(level, -total, &of_keys[row.clone()], &mut v[row.clone()]);
            elementwise::scale(level, beta[t], &mut v[row.clone()]);
            elementwise::scale(level, total, &mut out[row]);
        }
        (self.kernels.solve)(among_keys, value_dim, v);
        (self.float.accumulate_tile)(v, tokens, value_dim, to_queries, out);

        keys.resize(key_dim * tokens, 0.0);
        for (t, k) in kq[..tokens * key_dim].chunks_exact(key_dim).enumerate() {
            k.iter().enumerate().for_each(|(i, k)| keys[i * tokens + t] = last[t] * k);
        }
        elementwise::scale(level, total, s);
        (self.float.accumulate_tile)(v, tokens, value_dim, keys, s);
    }
}
