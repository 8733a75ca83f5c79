//! Elementary functions over vectors and slices, with error bounds that tests check.

use torque_simd::{Isa, LANES};

/// e^x to 2 ulp, and zero for x < −87, where results are nearly subnormal. NaN only for NaN.
#[inline(always)]
pub fn exp<I: Isa>(isa: I, x: I::F) -> I::F {
    // In this order a NaN passes through.
    let x = isa.min(isa.splat(89.0), isa.max(isa.splat(-87.5), x));
    let (n, m) = reduced(isa, x);
    // 2^n (1 + m) as 2^(n−1) (2 + 2 m), since 2^128 is no number. For n = −126 the power is zero.
    let power = isa.from_bits(isa.shl::<23>(isa.add_n(n, isa.splat_n(126))));
    let e = isa.add(m, isa.splat(1.0));
    isa.mul(isa.add(e, e), power)
}

/// tanh x to 4 ulp.
#[inline(always)]
pub fn tanh<I: Isa>(isa: I, x: I::F) -> I::F {
    let sign = isa.and(isa.to_bits(x), isa.splat_n(i32::MIN));
    let magnitude = isa.from_bits(isa.xor(isa.to_bits(x), sign));
    // With e = e^(−2|x|) − 1: tanh |x| = −e / (2 + e). Beyond 10 the result is 1.
    let y = isa.mul(isa.splat(-2.0), isa.min(isa.splat(10.0), magnitude));
    let (n, m) = reduced(isa, y);
    let power = isa.from_bits(isa.shl::<23>(isa.add_n(n, isa.splat_n(127))));
    let e = isa.fma(power, m, isa.sub(power, isa.splat(1.0)));
    let tanh = isa.div(e, isa.sub(isa.splat(-2.0), e));
    isa.from_bits(isa.xor(isa.to_bits(tanh), sign))
}

/// n and m with e^x = 2^n (1 + m) and |m| < 0.42.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2, ln 2 in two parts so that r is exact to rounding (Cody & Waite,
/// 1980); m = e^r − 1 by its Taylor series to r^7, whose remainder is below 6e-9.
#[inline(always)]
fn reduced<I: Isa>(isa: I, x: I::F) -> (I::N, I::F) {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    let n = isa.round(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)));
    let whole = isa.to_f32(n);
    let r = isa.fma(whole, isa.splat(-LN2_HIGH), x);
    let r = isa.fma(whole, isa.splat(-LN2_LOW), r);
    let mut series = isa.splat(1.0 / 5040.0);
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        series = isa.fma(series, r, isa.splat(term));
    }
    // r + r² · series loses less than r · (1 + r · series).
    (n, isa.fma(isa.mul(r, r), series, r))
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub fn sigmoid<I: Isa>(isa: I, x: I::F) -> I::F {
    let one = isa.splat(1.0);
    isa.div(one, isa.add(one, exp(isa, isa.sub(isa.splat(0.0), x))))
}

/// x · sigmoid(x).
#[inline(always)]
pub fn silu<I: Isa>(isa: I, x: I::F) -> I::F {
    isa.mul(x, sigmoid(isa, x))
}

/// The Gaussian error linear unit by its usual approximation, x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
#[inline(always)]
pub fn gelu<I: Isa>(isa: I, x: I::F) -> I::F {
    let cube = isa.mul(isa.mul(x, x), x);
    let inner = isa.mul(isa.splat(0.797_884_6), isa.fma(cube, isa.splat(0.044715), x));
    let half = isa.mul(isa.splat(0.5), x);
    isa.fma(half, tanh(isa, inner), half)
}

/// `x[i] = f(x[i])`. Enter through [`Isa::run`].
#[inline(always)]
pub fn map<I: Isa>(isa: I, x: &mut [f32], f: impl Fn(I::F) -> I::F) {
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        isa.store(f(isa.load(chunk)), chunk);
    }
    if !tail.is_empty() {
        let mut last = pad(tail);
        isa.store(f(isa.load(&last)), &mut last);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

/// `x[i] = f(x[i], y[i])`. Enter through [`Isa::run`].
#[inline(always)]
pub fn zip<I: Isa>(isa: I, x: &mut [f32], y: &[f32], f: impl Fn(I::F, I::F) -> I::F) {
    assert_eq!(x.len(), y.len());
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    let (others, other_tail) = y.as_chunks::<LANES>();
    for (chunk, other) in chunks.iter_mut().zip(others) {
        isa.store(f(isa.load(chunk), isa.load(other)), chunk);
    }
    if !tail.is_empty() {
        let mut last = pad(tail);
        isa.store(f(isa.load(&last), isa.load(&pad(other_tail))), &mut last);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

/// The values, then zeros.
#[inline(always)]
pub(crate) fn pad<T: Copy + Default, const N: usize>(x: &[T]) -> [T; N] {
    let mut padded = [T::default(); N];
    padded[..x.len()].copy_from_slice(x);
    padded
}

/// |v|.
#[inline(always)]
pub(crate) fn magnitude<I: Isa>(isa: I, v: I::F) -> I::F {
    isa.max(v, isa.sub(isa.splat(0.0), v))
}

/// The unit of which `largest` is `top`, and what to multiply by to count in it. A unit that is subnormal, or of
/// an infinite number, has no inverse worth having: then zero.
#[inline(always)]
pub(crate) fn unit(largest: f32, top: f32) -> (f32, f32) {
    let unit = largest / top;
    (unit, if unit > f32::MIN_POSITIVE && unit.is_finite() { 1.0 / unit } else { 0.0 })
}

/// One step of a softmax taken piece by piece (Milakov & Gimelshein, «Online normalizer calculation for
/// softmax», 2018).
///
/// Turns scores, of which `shift` is missing, into weights `e^(score + shift − max)`, max being the largest so far. The running
/// state is max, the sum of all weights and that of their squares; start with −∞, 0 and 0. Returns the sum of these weights
/// and that of their squares, and the factor by which weights of former pieces, and what was accumulated with them, must be
/// multiplied. A score of −∞ has weight zero, also when no other has been seen.
pub fn softmax_step<I: Isa>(isa: I, scores: &mut [f32], shift: f32, state: &mut [f32; 3]) -> [f32; 3] {
    isa.run(
        #[inline(always)]
        || {
            let (chunks, tail) = scores.as_chunks_mut::<LANES>();
            let mut last = [f32::NEG_INFINITY; LANES];
            last[..tail.len()].copy_from_slice(tail);
            let mut largest = isa.load(&last);
            for chunk in chunks.iter() {
                largest = isa.max(largest, isa.load(chunk));
            }
            let [max, sum, sum_of_squares] = state;
            let former = *max;
            *max = former.max(isa.max_lane(largest) + shift);
            if *max == f32::NEG_INFINITY {
                scores.fill(0.0);
                return [0.0, 0.0, 1.0];
            }
            let offset = isa.splat(shift - *max);
            let (mut total, mut squares) = (isa.splat(0.0), isa.splat(0.0));
            for chunk in chunks {
                let weight = exp(isa, isa.add(isa.load(chunk), offset));
                isa.store(weight, chunk);
                total = isa.add(total, weight);
                squares = isa.fma(weight, weight, squares);
            }
            if !tail.is_empty() {
                let weight = exp(isa, isa.add(isa.load(&last), offset));
                isa.store(weight, &mut last);
                tail.copy_from_slice(&last[..tail.len()]);
                total = isa.add(total, weight);
                squares = isa.fma(weight, weight, squares);
            }
            let factor = isa.max_lane(exp(isa, isa.splat(former - *max)));
            let (total, squares) = (isa.sum(total), isa.sum(squares));
            *sum = *sum * factor + total;
            *sum_of_squares = *sum_of_squares * factor * factor + squares;
            [total, squares, factor]
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use torque_simd::{Level, Scalar, dispatch};

    /// Largest error of `ours` over `inputs`, in units of the last place of the exact result.
    fn worst_ulp(
        ours: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
        inputs: impl Iterator<Item = f32>,
    ) -> f64 {
        let error = |x: f32| {
            let exact = exact(f64::from(x));
            let ulp = f64::from(f32::EPSILON) * 2f64.powf(exact.abs().log2().floor()).max(1e-38);
            (f64::from(ours(x)) - exact).abs() / ulp
        };
        inputs.map(error).fold(0.0, f64::max)
    }

    fn range(low: f32, high: f32) -> impl Iterator<Item = f32> {
        (0..=200_000).map(move |i| low + (high - low) * (i as f32 / 200_000.0))
    }

    #[test]
    fn functions_keep_their_bounds() {
        let first = |f: fn(Scalar, [f32; 16]) -> [f32; 16]| move |x: f32| f(Scalar, [x; 16])[0];
        let gelu_of = |x: f64| {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        };
        assert!(worst_ulp(first(exp), f64::exp, range(-86.9, 88.7)) < 2.0);
        assert!(worst_ulp(first(exp), f64::exp, range(-1.0, 1.0)) < 2.0);
        assert!(worst_ulp(first(tanh), f64::tanh, range(-12.0, 12.0)) < 4.0);
        assert!(worst_ulp(first(tanh), f64::tanh, range(-0.01, 0.01)) < 4.0);
        assert!(worst_ulp(first(silu), |x| x / (1.0 + (-x).exp()), range(-80.0, 80.0)) < 6.0);
        assert!(worst_ulp(first(gelu), gelu_of, range(-1.0, 40.0)) < 6.0);
        for x in range(-40.0, -1.0) {
            assert!((f64::from(gelu(Scalar, [x; 16])[0]) - gelu_of(f64::from(x))).abs() < 4e-7, "gelu({x})");
        }
    }

    #[test]
    fn special_values() {
        for (x, expected) in [
            (0.0, 1.0),
            (-0.0, 1.0),
            (f32::NEG_INFINITY, 0.0),
            (-1e30, 0.0),
            (-87.4, 0.0),
            (f32::INFINITY, f32::INFINITY),
            (88.8, f32::INFINITY),
        ] {
            assert_eq!(exp(Scalar, [x; 16])[0], expected, "exp({x})");
        }
        assert!(exp(Scalar, [f32::NAN; 16])[0].is_nan());
        for (x, expected) in [(0.0, 0.0), (f32::INFINITY, 1.0), (f32::NEG_INFINITY, -1.0), (1e-30, 1e-30)] {
            assert_eq!(tanh(Scalar, [x; 16])[0], expected, "tanh({x})");
        }
        assert_eq!(silu(Scalar, [-1e3; 16])[0], 0.0);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        #[allow(clippy::type_complexity)]
        fn all<I: Isa>(isa: I) -> Vec<Vec<u32>> {
            let x: Vec<f32> = range(-30.0, 30.0).step_by(97).collect();
            type Function<I> = fn(I, <I as Isa>::F) -> <I as Isa>::F;
            let functions: [Function<I>; 5] = [exp, tanh, sigmoid, silu, gelu];
            let apply = |f: fn(I, I::F) -> I::F| {
                let mut y = x.clone();
                map(isa, &mut y, |x| f(isa, x));
                y.into_iter().map(f32::to_bits).collect()
            };
            functions.map(apply).to_vec()
        }
        for level in Level::all_available() {
            assert_eq!(dispatch!(level, |isa| all(isa)), all(Scalar), "{level:?}");
        }
    }

    #[test]
    fn maps_reach_every_value() {
        for n in [0, 1, 15, 16, 17, 40] {
            let mut x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let y = x.clone();
            map(Scalar, &mut x, |x| Scalar.add(x, [1.0; 16]));
            zip(Scalar, &mut x, &y, |x, y| Scalar.mul(x, y));
            assert!(x.iter().enumerate().all(|(i, x)| *x == (i * (i + 1)) as f32));
        }
    }

    #[test]
    fn softmax_in_pieces_is_softmax() {
        let scores: Vec<f32> = (0..77)
            .map(|i| if i % 7 == 3 { f32::NEG_INFINITY } else { (i * 37 % 23) as f32 - 9.0 })
            .collect();
        let largest = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let exact: Vec<f64> = scores.iter().map(|s| (f64::from(*s) - largest).exp()).collect();
        let total: f64 = exact.iter().sum();
        for level in Level::all_available() {
            for piece in [1, 5, 16, 33, 77] {
                let mut state = [f32::NEG_INFINITY, 0.0, 0.0];
                let mut weights: Vec<f32> = Vec::new();
                for piece in scores.chunks(piece) {
                    let mut piece = piece.to_vec();
                    let shift = piece[0].max(-3.0);
                    piece.iter_mut().for_each(|score| *score -= shift);
                    let [own, squares, factor] =
                        dispatch!(level, |isa| softmax_step(isa, &mut piece, shift, &mut state));
                    assert!((own - piece.iter().sum::<f32>()).abs() < 1e-5, "{own}");
                    assert!((squares - piece.iter().map(|w| w * w).sum::<f32>()).abs() < 1e-5, "{squares}");
                    weights.iter_mut().for_each(|w| *w *= factor);
                    weights.extend(piece);
                }
                let [_, sum, squares] = state;
                assert!((squares - weights.iter().map(|w| w * w).sum::<f32>()).abs() < 1e-5, "{squares}");
                for (weight, exact) in weights.iter().zip(&exact) {
                    let (ours, exact) = (f64::from(weight / sum), exact / total);
                    assert!((ours - exact).abs() < 1e-6, "{level:?}, pieces of {piece}: {ours} not {exact}");
                }
            }
        }
        let mut state = [f32::NEG_INFINITY, 0.0, 0.0];
        let mut masked = [f32::NEG_INFINITY; 20];
        assert_eq!(softmax_step(Scalar, &mut masked, 1.0, &mut state), [0.0, 0.0, 1.0]);
        assert_eq!((masked, state), ([0.0; 20], [f32::NEG_INFINITY, 0.0, 0.0]));
        let mut one = [3.0];
        softmax_step(Scalar, &mut one, 0.0, &mut state);
        assert_eq!((one, state), ([1.0], [3.0, 1.0, 1.0]));
    }
}
