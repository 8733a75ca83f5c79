//! Gated DeltaNet: the recurrent layers of hybrid models (Yang, Kautz & Hatamizadeh, «Gated Delta Networks», 2024).
//!
//! A head remembers a matrix S `[key_dim, value_dim]`. A token with key k, query q, value v, decay α and
//! strength β does
//!
//! ```text
//! S ← α S;   δ = β (v − kᵀ S);   S ← S + k δᵀ;   o = qᵀ S
//! ```
//!
//! [`step`] does that for one token. For many, S stays put over a chunk of C tokens, and its decays and
//! differences become a triangular system. With `D[t, s] = α_{s+1} … α_t` for s ≤ t, and P the products of all
//! α up to t,
//!
//! ```text
//! δ_t + Σ_{s<t} β_t D[t, s] (k_t·k_s) δ_s = β_t (v_t − P_t k_tᵀ S)
//! o_t = P_t q_tᵀ S + Σ_{s≤t} D[t, s] (q_t·k_s) δ_s
//! S ← P_C S + Σ_s D[C, s] k_s δ_sᵀ
//! ```
//!
//! The products are those of [`crate::gemm::product`] and [`crate::attend::accumulate_tile`]; [`decay`] and
//! [`solve`] are what lies between them. D is made of products of α, never of quotients, so nothing overflows.

use crate::dot::vectors;
use crate::math;
use torque_simd::{Isa, LANES, Level, dispatch};

/// The kernels of an instruction set. Shapes are those of the functions named.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::type_complexity)]
pub struct DeltaKernels {
    /// [`convolve`]: `(taps, inputs, first, width, out)`.
    pub convolve: fn(&[f32], &[&[f32]], usize, usize, &mut [f32]),
    /// [`normalise`]: `(scale, eps, width, x)`.
    pub normalise: fn(f32, f32, usize, &mut [f32]),
    /// [`step`]: `(alpha, beta, [k, q, v], s, out)`.
    pub step: fn(f32, f32, [&[f32]; 3], &mut [f32], &mut [f32]),
    /// [`decay`]: `(alpha, beta, products, last)`.
    pub decay: fn(&[f32], &[f32], &mut [f32], &mut [f32]),
    /// [`solve`]: `(a, width, x)`.
    pub solve: fn(&[f32], usize, &mut [f32]),
}

impl DeltaKernels {
    /// The kernels of a level.
    ///
    /// # Panics
    ///
    /// If the processor lacks the level.
    pub fn of(level: Level) -> DeltaKernels {
        dispatch!(level, |isa| DeltaKernels::with(isa))
    }

    fn with<I: Isa>(_: I) -> DeltaKernels {
        fn isa<I: Isa>() -> I {
            I::new().expect("kernels are chosen for a level that the processor has")
        }
        DeltaKernels {
            convolve: |taps, inputs, first, width, out| convolve(isa::<I>(), taps, inputs, first, width, out),
            normalise: |scale, eps, width, x| normalise(isa::<I>(), scale, eps, width, x),
            step: |alpha, beta, kqv, s, out| step(isa::<I>(), alpha, beta, kqv, s, out),
            decay: |alpha, beta, products, last| decay(isa::<I>(), alpha, beta, products, last),
            solve: |a, width, x| solve(isa::<I>(), a, width, x),
        }
    }
}

/// `out[t, c] = silu(Σ_j taps[j, first + c] inputs[t + j][first + c])` for c < `width`: a convolution in time of
/// some channels. There are as many inputs as tokens, and one fewer than taps before them.
pub fn convolve<I: Isa>(
    isa: I,
    taps: &[f32],
    inputs: &[&[f32]],
    first: usize,
    width: usize,
    out: &mut [f32],
) {
    let channels = inputs[0].len();
    let kernel = taps.len() / channels;
    assert!(width.is_multiple_of(LANES) && first + width <= channels, "{width} channels from {first} on");
    assert_eq!(out.len() + (kernel - 1) * width, inputs.len() * width, "shape of out");
    isa.run(
        #[inline(always)]
        || {
            for (t, out) in out.chunks_exact_mut(width).enumerate() {
                for (i, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                    let channel = first + i * LANES;
                    let mut sum = isa.splat(0.0);
                    for j in 0..kernel {
                        sum = isa.fma(
                            at(isa, taps, j * channels + channel),
                            at(isa, inputs[t + j], channel),
                            sum,
                        );
                    }
                    isa.store(math::silu(isa, sum), out);
                }
            }
        },
    );
}

/// Sixteen values from the first one on.
#[inline(always)]
fn at<I: Isa>(isa: I, x: &[f32], first: usize) -> I::F {
    isa.load(x[first..].first_chunk().expect("sixteen values"))
}

/// `x ← scale · x / √(Σ x² + eps)` for rows of `width` values.
pub fn normalise<I: Isa>(isa: I, scale: f32, eps: f32, width: usize, x: &mut [f32]) {
    assert!(width.is_multiple_of(LANES), "rows of {width}");
    isa.run(
        #[inline(always)]
        || {
            for row in x.chunks_exact_mut(width) {
                let factor = isa.splat(scale / (dot(isa, row, row) + eps).sqrt());
                for x in row.as_chunks_mut::<LANES>().0 {
                    isa.store(isa.mul(isa.load(x), factor), x);
                }
            }
        },
    );
}

#[inline(always)]
fn dot<I: Isa>(isa: I, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = isa.splat(0.0);
    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
        sum = isa.fma(isa.load(a), isa.load(b), sum);
    }
    isa.sum(sum)
}

/// One token of one head: s is `[k.len(), v.len()]`.
///
/// S is read once for both kᵀS and qᵀS, and once more, from the cache, for the update: the output follows from
/// what was there before, since `qᵀ(αS + kδᵀ) = α qᵀS + (q·k) δ`.
pub fn step<I: Isa>(isa: I, alpha: f32, beta: f32, [k, q, v]: [&[f32]; 3], s: &mut [f32], out: &mut [f32]) {
    assert!(k.len().is_multiple_of(LANES) && v.len().is_multiple_of(LANES), "[{}, {}]", k.len(), v.len());
    assert_eq!(
        (q.len(), s.len(), out.len()),
        (k.len(), k.len() * v.len(), v.len()),
        "shapes of q, s and out"
    );
    isa.run(
        #[inline(always)]
        || {
            let token = Token { k, q, v, alpha, beta, kq: dot(isa, k, q) };
            let width = v.len() / LANES;
            let mut column = 0;
            match const { vectors::<I>() } {
                8 => step_columns::<I, 8>(isa, token, s, out, &mut column),
                4 => step_columns::<I, 2>(isa, token, s, out, &mut column),
                _ => (),
            }
            step_columns::<I, 1>(isa, token, s, out, &mut column);
            debug_assert_eq!(column, width);
        },
    );
}

#[derive(Clone, Copy)]
struct Token<'a> {
    k: &'a [f32],
    q: &'a [f32],
    v: &'a [f32],
    alpha: f32,
    beta: f32,
    kq: f32,
}

/// [`step`] for as many columns from `column` on as are multiples of N vectors.
#[inline(always)]
fn step_columns<I: Isa, const N: usize>(
    isa: I,
    token: Token<'_>,
    s: &mut [f32],
    out: &mut [f32],
    column: &mut usize,
) {
    let width = token.v.len() / LANES;
    let (s, v, out) = (s.as_chunks_mut::<LANES>().0, token.v.as_chunks().0, out.as_chunks_mut().0);
    let (alpha, beta, kq) = (isa.splat(token.alpha), isa.splat(token.beta), isa.splat(token.kq));
    while *column + N <= width {
        let (mut ks, mut qs) = ([isa.splat(0.0); N], [isa.splat(0.0); N]);
        for (row, (k, q)) in s.chunks_exact(width).zip(token.k.iter().zip(token.q)) {
            let (row, k, q) = (&row[*column..][..N], isa.splat(*k), isa.splat(*q));
            for j in 0..N {
                let s = isa.load(&row[j]);
                ks[j] = isa.fma(s, k, ks[j]);
                qs[j] = isa.fma(s, q, qs[j]);
            }
        }
        let mut delta = [isa.splat(0.0); N];
        for j in 0..N {
            let v = isa.load(&v[*column + j]);
            delta[j] = isa.mul(beta, isa.sub(v, isa.mul(alpha, ks[j])));
            isa.store(isa.fma(kq, delta[j], isa.mul(alpha, qs[j])), &mut out[*column + j]);
        }
        for (row, k) in s.chunks_exact_mut(width).zip(token.k) {
            let (row, k) = (&mut row[*column..][..N], isa.splat(*k));
            for j in 0..N {
                isa.store(isa.fma(k, delta[j], isa.mul(alpha, isa.load(&row[j]))), &mut row[j]);
            }
        }
        *column += N;
    }
}

/// Products below this are taken for nothing. They would leave no trace in a sum of floats, and numbers that are
/// nearly too small for a float are slow.
pub const LEAST: f32 = 1e-30;

/// From `products`, `k_t·k_s` `[C, C]` and then `q_t·k_s` `[C, C]`, the weights of a chunk: `−β_t D[t, s] (k_t·k_s)`,
/// of which [`solve`] reads s < t, and `D[t, s] (q_t·k_s)`, zero for s > t. `last[s]` becomes D[C, s].
pub fn decay<I: Isa>(isa: I, alpha: &[f32], beta: &[f32], products: &mut [f32], last: &mut [f32]) {
    let tokens = alpha.len();
    assert_eq!((beta.len(), last.len()), (tokens, tokens), "tokens of beta and last");
    assert_eq!(products.len(), 2 * tokens * tokens, "shape of products");
    let (kk, qk) = products.split_at_mut(tokens * tokens);
    let rows = kk.chunks_exact_mut(tokens).zip(qk.chunks_exact_mut(tokens));
    last.fill(0.0);
    isa.run(
        #[inline(always)]
        || {
            for (t, (kk, qk)) in rows.enumerate() {
                let (least, alpha) = (isa.splat(LEAST), isa.splat(alpha[t]));
                math::map(
                    isa,
                    last,
                    #[inline(always)]
                    |d| isa.sub(isa.max(isa.mul(d, alpha), least), least),
                );
                last[t] = 1.0;
                let beta = isa.splat(-beta[t]);
                math::zip(
                    isa,
                    kk,
                    last,
                    #[inline(always)]
                    |x, d| isa.mul(isa.mul(x, d), beta),
                );
                math::zip(
                    isa,
                    qk,
                    last,
                    #[inline(always)]
                    |x, d| isa.mul(x, d),
                );
            }
        },
    );
}

/// `x_t ← x_t + Σ_{s<t} a[t, s] x_s`, t after t: forward substitution, x `[C, width]` and a `[C, C]`.
pub fn solve<I: Isa>(isa: I, a: &[f32], width: usize, x: &mut [f32]) {
    let tokens = x.len() / width;
    assert!(width.is_multiple_of(LANES), "rows of {width}");
    assert_eq!((x.len(), a.len()), (tokens * width, tokens * tokens), "shapes of x and a");
    let x = x.as_chunks_mut::<LANES>().0;
    isa.run(
        #[inline(always)]
        || {
            let mut column = 0;
            match const { vectors::<I>() } {
                8 => solve_columns::<I, 8>(isa, a, width / LANES, x, &mut column),
                4 => solve_columns::<I, 4>(isa, a, width / LANES, x, &mut column),
                _ => (),
            }
            solve_columns::<I, 1>(isa, a, width / LANES, x, &mut column);
        },
    );
}

/// [`solve`] for as many columns from `column` on as are multiples of N vectors.
#[inline(always)]
fn solve_columns<I: Isa, const N: usize>(
    isa: I,
    a: &[f32],
    width: usize,
    x: &mut [[f32; LANES]],
    column: &mut usize,
) {
    let tokens = x.len() / width;
    while *column + N <= width {
        for (t, a) in a.chunks_exact(tokens).enumerate() {
            let (former, rest) = x.split_at_mut(t * width);
            let row = &mut rest[*column..][..N];
            let mut sums = [isa.splat(0.0); N];
            for j in 0..N {
                sums[j] = isa.load(&row[j]);
            }
            for (x, a) in former.chunks_exact(width).zip(a) {
                let (x, a) = (&x[*column..][..N], isa.splat(*a));
                for j in 0..N {
                    sums[j] = isa.fma(a, isa.load(&x[j]), sums[j]);
                }
            }
            for j in 0..N {
                isa.store(sums[j], &mut row[j]);
            }
        }
        *column += N;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in −1 … 1 that look random.
    fn numbers(seed: u32, n: usize) -> Vec<f32> {
        let next = |x: &mut u32| {
            *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*x >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        let mut state = seed;
        std::iter::from_fn(|| next(&mut state)).take(n).collect()
    }

    /// Every instruction set gives the same bits, and they are within `bound` of `expected`.
    fn check(what: &str, bound: f64, expected: &[f64], found: impl Fn(DeltaKernels) -> Vec<f32>) {
        let first = found(DeltaKernels::of(Level::Scalar));
        assert_eq!(first.len(), expected.len(), "{what}");
        for (i, (found, expected)) in first.iter().zip(expected).enumerate() {
            assert!(
                (f64::from(*found) - expected).abs() <= bound,
                "{what}, value {i}: {found} not {expected}"
            );
        }
        for level in Level::all_available() {
            assert_eq!(found(DeltaKernels::of(level)), first, "{what} on {level:?}");
        }
    }

    #[test]
    fn a_step_is_the_recurrence() {
        for (key_dim, value_dim) in [(16, 16), (32, 48), (64, 144), (128, 128), (16, 400)] {
            let (k, q, v) = (numbers(1, key_dim), numbers(2, key_dim), numbers(3, value_dim));
            let s = numbers(4, key_dim * value_dim);
            for (alpha, beta) in [(0.9, 0.7), (0.0, 1.0), (1.0, 0.0)] {
                let (a, b) = (f64::from(alpha), f64::from(beta));
                let mut expected: Vec<f64> = s.iter().map(|s| a * f64::from(*s)).collect();
                let mut out = vec![0.0; value_dim];
                for c in 0..value_dim {
                    let column = |s: &[f64], x: &[f32]| -> f64 {
                        (0..key_dim).map(|i| f64::from(x[i]) * s[i * value_dim + c]).sum()
                    };
                    let delta = b * (f64::from(v[c]) - column(&expected, &k));
                    (0..key_dim).for_each(|i| expected[i * value_dim + c] += f64::from(k[i]) * delta);
                    out[c] = column(&expected, &q);
                }
                expected.extend(out);
                check(&format!("[{key_dim}, {value_dim}], α {alpha}"), 3e-4, &expected, |kernels| {
                    let (mut s, mut out) = (s.clone(), vec![f32::NAN; value_dim]);
                    (kernels.step)(alpha, beta, [&k, &q, &v], &mut s, &mut out);
                    [s, out].concat()
                });
            }
        }
    }

    #[test]
    fn convolutions_and_norms_are_their_formulas() {
        let (kernel, channels, first, width, tokens) = (4, 80, 32, 48, 5);
        let taps = numbers(1, kernel * channels);
        let values = numbers(2, (tokens + kernel - 1) * channels);
        let inputs: Vec<&[f32]> = values.chunks_exact(channels).collect();
        let expected = |t: usize, c: usize| {
            let terms = (0..kernel)
                .map(|j| f64::from(taps[j * channels + first + c]) * f64::from(inputs[t + j][first + c]));
            let x: f64 = terms.sum();
            x / (1.0 + (-x).exp())
        };
        let convolved: Vec<f64> = (0..tokens * width).map(|i| expected(i / width, i % width)).collect();
        check("convolution", 1e-6, &convolved, |kernels| {
            let mut out = vec![f32::NAN; tokens * width];
            (kernels.convolve)(&taps, &inputs, first, width, &mut out);
            out
        });
        let x = numbers(3, 2 * 48);
        let norm = |row: &[f32]| (row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() + 0.5).sqrt();
        let rows = x.chunks(48).flat_map(|row| row.iter().map(|x| f64::from(*x) * 0.25 / norm(row)));
        check("norm", 1e-7, &rows.collect::<Vec<_>>(), |kernels| {
            let mut x = x.clone();
            (kernels.normalise)(0.25, 0.5, 48, &mut x);
            x
        });
    }

    #[test]
    fn weights_of_a_chunk_decay() {
        for tokens in [1, 15, 16, 37, 64] {
            let alpha: Vec<f32> = numbers(5, tokens).iter().map(|x| (0.5 + 0.5 * x).powi(3)).collect();
            let beta: Vec<f32> = numbers(6, tokens).iter().map(|x| 0.5 + 0.5 * x).collect();
            let products = numbers(7, 2 * tokens * tokens);
            let between = |t: usize, s: usize| match s.cmp(&t) {
                std::cmp::Ordering::Greater => 0.0,
                _ => alpha[s + 1..=t].iter().map(|a| f64::from(*a)).product::<f64>(),
            };
            let weight = |i: usize| {
                let (side, t, s) = (i / (tokens * tokens), i / tokens % tokens, i % tokens);
                let factor = if side == 0 { -f64::from(beta[t]) } else { 1.0 };
                factor * between(t, s) * f64::from(products[i])
            };
            let weights = (0..products.len()).map(weight);
            let last = (0..tokens).map(|s| between(tokens - 1, s));
            check(&format!("{tokens} tokens"), 1e-6, &weights.chain(last).collect::<Vec<_>>(), |kernels| {
                let (mut products, mut last) = (products.clone(), vec![f32::NAN; tokens]);
                (kernels.decay)(&alpha, &beta, &mut products, &mut last);
                assert!(last.iter().all(|d| *d == 0.0 || d.is_normal()));
                [products, last].concat()
            });
        }
    }

    #[test]
    fn substitution_solves_the_triangle() {
        for (tokens, width) in [(1, 16), (7, 48), (64, 128), (20, 144)] {
            let a: Vec<f32> = numbers(8, tokens * tokens).iter().map(|x| 0.2 * x).collect();
            let x = numbers(9, tokens * width);
            let mut expected: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for t in 0..tokens {
                for s in 0..t {
                    for c in 0..width {
                        expected[t * width + c] += f64::from(a[t * tokens + s]) * expected[s * width + c];
                    }
                }
            }
            check(&format!("{tokens} × {width}"), 1e-4, &expected, |kernels| {
                let mut x = x.clone();
                (kernels.solve)(&a, width, &mut x);
                x
            });
        }
    }
}
