//! Searches for the scale of a sub-block, for formats whose scales are quantised themselves.
//!
//! Sums run left to right without fused multiply-add and in this order of operations: the bytes must
//! equal those of other encoders of the same formats.

/// Below this magnitude a sub-block counts as zero.
pub(super) const EPSILON: f32 = 1e-15;

/// The nearest integer, halves to even.
pub(super) fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// A sub-block as `scale · code − min`, min ≥ 0.
pub(super) struct Affine<const N: usize> {
    pub scale: f32,
    pub min: f32,
    pub codes: [u8; N],
}

/// What [`fit_affine`] minimises and where it looks.
pub(super) struct AffineSearch {
    /// Largest code.
    pub top: i32,
    /// The first trial stretches the range to `top + from` codes; each further one to 0.1 more.
    pub from: f32,
    /// Trials after the first.
    pub trials: usize,
    /// Weighted absolute error instead of squared error.
    pub absolute: bool,
}

/// The best scale and minimum among several stretches of the range, each refined by weighted least squares.
pub(super) fn fit_affine<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    search: &AffineSearch,
) -> Affine<N> {
    let (low, max) = super::span(x);
    let mut min = low.min(0.0);
    if max == min {
        return Affine { scale: 0.0, min: -min, codes: [0; N] };
    }
    let top = search.top as f32;
    let encode = |inverse: f32, min: f32| x.map(|x| nearest(inverse * (x - min)).clamp(0, search.top) as u8);
    let error = |scale: f32, min: f32, codes: &[u8; N]| {
        let mut sum = 0.0;
        for i in 0..N {
            let difference = scale * f32::from(codes[i]) + min - x[i];
            sum += weights[i] * if search.absolute { difference.abs() } else { difference * difference };
        }
        sum
    };

    let (mut sum_w, mut sum_x) = (0.0, 0.0);
    for i in 0..N {
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    let inverse = top / (max - min);
    let mut scale = 1.0 / inverse;
    let mut codes = encode(inverse, min);
    let mut best = error(scale, min, &codes);
    for trial in 0..=search.trials {
        let inverse = (search.from + 0.1 * trial as f32 + top) / (max - min);
        let tried = encode(inverse, min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for i in 0..N {
            let (w, l) = (weights[i], f32::from(tried[i]));
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x[i];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        // Not `<=`, which would let NaN pass.
        if determinant > 0.0 {
            let mut new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut new_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if new_min > 0.0 {
                new_min = 0.0;
                new_scale = sum_xl / sum_l2;
            }
            let new_error = error(new_scale, new_min, &tried);
            if new_error < best {
                (best, scale, min, codes) = (new_error, new_scale, new_min, tried);
            }
        }
    }
    Affine { scale, min: -min, codes }
}

/// A sub-block as `scale · code`, code in `−limit .. limit`.
pub(super) struct Symmetric<const N: usize> {
    pub scale: f32,
    /// Offset by the limit, so that they are not negative; zero, too, where the sub-block is zero.
    pub codes: [u8; N],
}

/// `Σ x³ l` and `Σ x² l²`: least squares with weights x².
fn squares<const N: usize>(x: &[f32; N], codes: &[i32; N]) -> (f32, f32) {
    let (mut sum_xl, mut sum_l2) = (0.0, 0.0);
    for i in 0..N {
        let (w, l) = (x[i] * x[i], codes[i] as f32);
        sum_xl += w * x[i] * l;
        sum_l2 += w * l * l;
    }
    (sum_xl, sum_l2)
}

fn encode_symmetric<const N: usize>(x: &[f32; N], limit: i32, inverse: f32) -> [i32; N] {
    x.map(|x| nearest(inverse * x).clamp(-limit, limit - 1))
}

/// The best scale among nineteen stretches of the range.
pub(super) fn fit_symmetric<const N: usize>(x: &[f32; N], limit: i32) -> Symmetric<N> {
    let max = super::extreme(x);
    if max.abs() < EPSILON {
        return Symmetric { scale: 0.0, codes: [0; N] };
    }
    let mut codes = encode_symmetric(x, limit, -limit as f32 / max);
    let (sum_xl, sum_l2) = squares(x, &codes);
    let mut scale = if sum_l2 != 0.0 { sum_xl / sum_l2 } else { 0.0 };
    let mut best = scale * sum_xl;
    for stretch in (-9..=9).filter(|stretch| *stretch != 0) {
        let tried = encode_symmetric(x, limit, -(limit as f32 + 0.1 * stretch as f32) / max);
        let (sum_xl, sum_l2) = squares(x, &tried);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            codes = tried;
            scale = sum_xl / sum_l2;
            best = scale * sum_xl;
        }
    }
    Symmetric { scale, codes: codes.map(|l| (l + limit) as u8) }
}

/// Starts from the plain codes and moves one code at a time while that lowers the error, five rounds at most.
pub(super) fn fit_symmetric_by_descent<const N: usize>(x: &[f32; N], limit: i32) -> Symmetric<N> {
    let max = super::extreme(x);
    if max.abs() < EPSILON {
        return Symmetric { scale: 0.0, codes: [0; N] };
    }
    let mut codes = encode_symmetric(x, limit, -limit as f32 / max);
    let (mut sum_xl, mut sum_l2) = squares(x, &codes);
    for _ in 0..5 {
        let mut moved = false;
        for i in 0..N {
            let (w, l) = (x[i] * x[i], codes[i] as f32);
            let without_xl = sum_xl - w * x[i] * l;
            if without_xl > 0.0 {
                let without_l2 = sum_l2 - w * l * l;
                let code = nearest(x[i] * without_l2 / without_xl).clamp(-limit, limit - 1);
                let l = code as f32;
                let (new_xl, new_l2) = (without_xl + w * x[i] * l, without_l2 + w * l * l);
                let better = new_l2 > 0.0 && new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2;
                if code != codes[i] && better {
                    (codes[i], sum_xl, sum_l2, moved) = (code, new_xl, new_l2, true);
                }
            }
        }
        if !moved {
            break;
        }
    }
    let scale = if sum_l2 > 0.0 { sum_xl / sum_l2 } else { 0.0 };
    Symmetric { scale, codes: codes.map(|l| (l + limit) as u8) }
}
