//! Ops on single rows, over any instruction set.

use torque_backend::{Activation, RopePairs};
use torque_quant::math;
use torque_simd::{Isa, Level, dispatch};

/// Runs a body compiled for an instruction set. What it calls must be inlined to be compiled so: closures
/// say so, and loops stand where iterator adaptors would be functions of their own.
macro_rules! on {
    ($level:expr, |$isa:ident| $body:expr) => {
        dispatch!($level, |$isa| $isa.run(
            #[inline(always)]
            || $body
        ))
    };
}

/// `x += y`.
pub fn add(level: Level, y: &[f32], x: &mut [f32]) {
    on!(level, |isa| math::zip(
        isa,
        x,
        y,
        #[inline(always)]
        |x, y| isa.add(x, y)
    ));
}

/// `x *= factor`.
pub fn scale(level: Level, factor: f32, x: &mut [f32]) {
    on!(level, |isa| math::map(
        isa,
        x,
        #[inline(always)]
        |x| isa.mul(x, isa.splat(factor))
    ));
}

/// `x += amount`.
pub fn shift(level: Level, amount: f32, x: &mut [f32]) {
    on!(level, |isa| math::map(
        isa,
        x,
        #[inline(always)]
        |x| isa.add(x, isa.splat(amount))
    ));
}

/// `x[i] += factors[i]·y` for every row i of x.
pub fn add_outer(level: Level, factors: &[f32], y: &[f32], x: &mut [f32]) {
    on!(level, |isa| for (factor, x) in factors.iter().zip(x.chunks_exact_mut(y.len())) {
        math::zip(
            isa,
            x,
            y,
            #[inline(always)]
            |x, y| isa.fma(isa.splat(*factor), y, x),
        );
    });
}

/// `x += factor·y`.
pub fn add_scaled(level: Level, factor: f32, y: &[f32], x: &mut [f32]) {
    on!(level, |isa| math::zip(
        isa,
        x,
        y,
        #[inline(always)]
        |x, y| isa.fma(y, isa.splat(factor), x)
    ));
}

/// `x = c·tanh(x/c)`.
pub fn softcap(level: Level, c: f32, x: &mut [f32]) {
    on!(level, |isa| {
        let (c, inverse) = (isa.splat(c), isa.splat(1.0 / c));
        math::map(
            isa,
            x,
            #[inline(always)]
            |x| isa.mul(c, math::tanh(isa, isa.mul(x, inverse))),
        )
    });
}

/// See [`Activation`].
#[inline(always)]
fn activated<I: Isa>(isa: I, activation: Activation, gate: I::F, up: I::F) -> I::F {
    match activation {
        Activation::Sigmoid => isa.mul(math::sigmoid(isa, gate), up),
        Activation::Silu => isa.mul(math::silu(isa, gate), up),
        Activation::Gelu => isa.mul(math::gelu(isa, gate), up),
        Activation::ClampedSwiglu => {
            // In this order a NaN passes through.
            let gate = isa.min(isa.splat(7.0), gate);
            let up = isa.min(isa.splat(7.0), isa.max(isa.splat(-7.0), up));
            let swish = isa.mul(gate, math::sigmoid(isa, isa.mul(isa.splat(1.702), gate)));
            isa.fma(swish, up, swish)
        }
    }
}

/// `x = activation(x, 1)`.
pub fn activate(level: Level, activation: Activation, x: &mut [f32]) {
    on!(level, |isa| math::map(
        isa,
        x,
        #[inline(always)]
        |x| activated(isa, activation, x, isa.splat(1.0))
    ));
}

/// `gate = activation(gate, up)`.
pub fn glu(level: Level, activation: Activation, up: &[f32], gate: &mut [f32]) {
    on!(level, |isa| math::zip(
        isa,
        gate,
        up,
        #[inline(always)]
        |g, u| activated(isa, activation, g, u)
    ));
}

/// Layer norm of one row.
pub fn layer_norm(level: Level, weight: &[f32], bias: &[f32], eps: f32, x: &mut [f32]) {
    on!(level, |isa| {
        let mean = isa.splat(sum(isa, x) / x.len() as f32);
        math::map(
            isa,
            x,
            #[inline(always)]
            |x| isa.sub(x, mean),
        );
        let factor = isa.splat(1.0 / (sum_of_squares(isa, x) / x.len() as f32 + eps).sqrt());
        math::zip(
            isa,
            x,
            weight,
            #[inline(always)]
            |x, w| isa.mul(isa.mul(x, factor), w),
        );
        math::zip(
            isa,
            x,
            bias,
            #[inline(always)]
            |x, b| isa.add(x, b),
        );
    });
}

#[inline(always)]
fn sum<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sum = isa.splat(0.0);
    for x in chunks {
        sum = isa.add(isa.load(x), sum);
    }
    isa.sum(sum) + rest.iter().sum::<f32>()
}

/// Root-mean-square norm of every group as wide as the weight.
pub fn rms_norm(level: Level, weight: &[f32], eps: f32, x: &mut [f32]) {
    on!(level, |isa| for group in x.chunks_exact_mut(weight.len()) {
        let factor = 1.0 / (sum_of_squares(isa, group) / weight.len() as f32 + eps).sqrt();
        math::zip(isa, group, weight, |x, w| isa.mul(isa.mul(x, isa.splat(factor)), w));
    });
}

#[inline(always)]
fn sum_of_squares<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sum = isa.splat(0.0);
    for x in chunks {
        sum = isa.fma(isa.load(x), isa.load(x), sum);
    }
    isa.sum(sum) + rest.iter().map(|x| x * x).sum::<f32>()
}

/// `out[i] = q[i]·m` for every q of `m.len()` values.
pub fn dots(level: Level, q: &[f32], m: &[f32], out: &mut [f32]) {
    on!(level, |isa| for (q, out) in q.chunks_exact(m.len()).zip(out) {
        let mut sum = isa.splat(0.0);
        for (q, m) in q.as_chunks::<16>().0.iter().zip(m.as_chunks::<16>().0) {
            sum = isa.fma(isa.load(q), isa.load(m), sum);
        }
        *out = isa.sum(sum);
    });
}

/// Rotates the pairs of a head.
pub fn rope(level: Level, pairs: RopePairs, cos_sin: &[[f32; 2]], head: &mut [f32]) {
    on!(level, |isa| {
        let _ = isa;
        match pairs {
            RopePairs::Interleaved => {
                for ([a, b], [cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos_sin) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
            RopePairs::Halves => {
                let (low, high) = head[..2 * cos_sin.len()].split_at_mut(cos_sin.len());
                for ((a, b), [cos, sin]) in low.iter_mut().zip(high).zip(cos_sin) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    });
}
