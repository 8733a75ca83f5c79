//! Rotations: orthogonal, fast, and the same for every token, so products survive them.
//!
//! A rotation spreads every channel over all coordinates. What a format then sees is nearly Gaussian,
//! whatever the model, and a fixed codebook is nearly optimal.
//!
//! - [`Head`]: a head of the KV cache, `diag(S2) · H/√n · diag(S1)`, H a Hadamard matrix of order n and
//!   S1, S2 random signs.
//! - [`block32_forward`]: 32 weights, `H/√32 · diag(T)`.

mod pcg64;

pub(crate) use pcg64::Pcg64;

/// The largest rotated group.
pub const GROUP_MAX: usize = 1024;

/// S1 and S2. NumPy's `default_rng(42)` draws the first 128 of S1, then of S2; longer groups go on with
/// the next 128 of each.
static SIGNS: [[f32; GROUP_MAX]; 2] = draw_signs();

const fn draw_signs() -> [[f32; GROUP_MAX]; 2] {
    let mut rng = Pcg64::seed(42);
    let mut signs = [[1.0; GROUP_MAX]; 2];
    let mut drawn = 0;
    while drawn < 2 * GROUP_MAX {
        if rng.next_is_negative() {
            signs[(drawn / 128) % 2][drawn / 256 * 128 + drawn % 128] = -1.0;
        }
        drawn += 1;
    }
    signs
}

/// T: the 32-point signs, −1 where the fractional part of i / golden ratio is at least one half.
static BLOCK32_SIGNS: [f32; 32] = {
    let mut signs = [1.0; 32];
    let mut i = 0;
    while i < 32 {
        if (i as u32).wrapping_mul(0x9E37_79B9) >> 31 == 1 {
            signs[i] = -1.0;
        }
        i += 1;
    }
    signs
};

/// 1 / √n, correctly rounded.
fn norm(n: usize) -> f32 {
    (1.0 / (n as f64).sqrt()) as f32
}

/// Values of a head of `head_dim` that are rotated, and encoded, together.
pub const fn group(head_dim: usize) -> usize {
    if head_dim.is_multiple_of(128) { 128 } else { head_dim }
}

/// Signs S1, Walsh–Hadamard butterflies, signs S2, on a group whose length is a power of two.
#[inline]
pub fn wht_forward(x: &mut [f32]) {
    wht(x, &SIGNS[0], &SIGNS[1]);
}

/// The inverse of [`wht_forward`].
#[inline]
pub fn wht_inverse(x: &mut [f32]) {
    wht(x, &SIGNS[1], &SIGNS[0]);
}

#[inline]
fn wht(x: &mut [f32], before: &[f32], after: &[f32]) {
    assert!(x.len().is_power_of_two() && x.len() <= GROUP_MAX, "a power of two up to {GROUP_MAX}");
    let norm = norm(x.len());
    x.iter_mut().zip(before).for_each(|(x, s)| *x *= s);
    butterflies(x, 1);
    x.iter_mut().zip(after).for_each(|(x, s)| *x *= norm * s);
}

/// Rotates 32 weights, or the activations they meet.
#[inline]
pub fn block32_forward(x: &mut [f32; 32]) {
    x.iter_mut().zip(&BLOCK32_SIGNS).for_each(|(x, s)| *x *= s);
    butterflies(x, 1);
    let norm = norm(32);
    x.iter_mut().for_each(|x| *x *= norm);
}

/// The inverse of [`block32_forward`].
#[inline]
pub fn block32_inverse(x: &mut [f32; 32]) {
    butterflies(x, 1);
    let norm = norm(32);
    x.iter_mut().zip(&BLOCK32_SIGNS).for_each(|(x, s)| *x *= norm * s);
}

/// The stages h = `step`, 2 `step`, … of the unnormalised transform in natural order:
/// `(x[j], x[j+h]) = (x[j] + x[j+h], x[j] − x[j+h])`.
#[inline]
fn butterflies(x: &mut [f32], step: usize) {
    let mut h = step;
    if step == 1 && x.len() >= 16 {
        // The first four stages stay inside runs of sixteen: shuffles instead of memory.
        for run in x.as_chunks_mut::<16>().0 {
            *run = stage::<8>(stage::<4>(stage::<2>(stage::<1>(*run))));
        }
        h = 16;
    }
    while h < x.len() {
        for pair in x.chunks_exact_mut(2 * h) {
            let (low, high) = pair.split_at_mut(h);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        h *= 2;
    }
}

/// The stage h = H of sixteen values, in a form that compiles to shuffles, additions and subtractions.
#[inline(always)]
fn stage<const H: usize>(v: [f32; 16]) -> [f32; 16] {
    std::array::from_fn(|i| v[i ^ H] + if i & H == 0 { 1.0 } else { -1.0 } * v[i])
}

/// The rotation of a head of the KV cache, of any size for which a Hadamard matrix comes easily.
///
/// Its matrix is `H(2^k) ⊗ H(m)`: m is 1 for powers of two, and otherwise the smallest order Paley's
/// constructions give: 12 for 48, 96 and 192, 20 for 80, 28 for 112. Heads of 256, 384, … are groups of 128.
#[derive(Clone, Debug)]
pub struct Head {
    group: usize,
    /// Order of the dense factor.
    order: usize,
    /// The dense factor, column by column: `[order, order]`.
    columns: Vec<f32>,
    /// The same, row by row.
    rows: Vec<f32>,
}

impl Head {
    /// The rotation of heads of `head_dim`, or `None` if no matrix of that order is known here.
    pub fn new(head_dim: usize) -> Option<Head> {
        let group = group(head_dim);
        if head_dim == 0 || group > GROUP_MAX {
            return None;
        }
        if group.is_power_of_two() {
            return Some(Head { group, order: 1, columns: Vec::new(), rows: Vec::new() });
        }
        let odd = group >> group.trailing_zeros();
        let orders = std::iter::successors(Some(4 * odd), |order| Some(2 * order));
        let (order, rows) = orders
            .take_while(|order| group.is_multiple_of(*order))
            .find_map(|order| paley(order).map(|rows| (order, rows)))?;
        let columns = (0..order * order).map(|i| rows[i % order * order + i / order]).collect();
        Some(Head { group, order, columns, rows })
    }

    /// Values rotated together: the head, or 128 of it.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Rotates heads in place; `x` holds any number of groups.
    #[inline]
    pub fn forward(&self, x: &mut [f32]) {
        self.rotate(x, &SIGNS[0], &self.columns, &SIGNS[1]);
    }

    /// The inverse of [`Head::forward`].
    #[inline]
    pub fn inverse(&self, x: &mut [f32]) {
        self.rotate(x, &SIGNS[1], &self.rows, &SIGNS[0]);
    }

    #[inline]
    fn rotate(&self, x: &mut [f32], before: &[f32], columns: &[f32], after: &[f32]) {
        assert!(x.len().is_multiple_of(self.group), "{} values are not groups of {}", x.len(), self.group);
        let norm = norm(self.group);
        for x in x.chunks_exact_mut(self.group) {
            x.iter_mut().zip(before).for_each(|(x, s)| *x *= s);
            if self.order > 1 {
                dense(columns, self.order, x);
            }
            butterflies(x, self.order);
            x.iter_mut().zip(after).for_each(|(x, s)| *x *= norm * s);
        }
    }
}

/// `x = M x` for each of the vectors in `x`, M `[order, order]` given by its columns.
#[inline]
fn dense(columns: &[f32], order: usize, x: &mut [f32]) {
    // The orders of the usual heads stay in registers.
    match order {
        12 => dense_of::<12>(columns, x),
        20 => dense_of::<20>(columns, x),
        28 => dense_of::<28>(columns, x),
        36 => dense_of::<36>(columns, x),
        _ => {
            for x in x.chunks_exact_mut(order) {
                let mut sums = vec![0.0; order];
                for (column, x) in columns.chunks_exact(order).zip(&*x) {
                    sums.iter_mut().zip(column).for_each(|(sum, h)| *sum += h * x);
                }
                x.copy_from_slice(&sums);
            }
        }
    }
}

#[inline]
fn dense_of<const N: usize>(columns: &[f32], x: &mut [f32]) {
    for x in x.as_chunks_mut::<N>().0 {
        let mut sums = [0.0; N];
        for (column, x) in columns.as_chunks::<N>().0.iter().zip(&*x) {
            sums.iter_mut().zip(column).for_each(|(sum, h)| *sum += h * x);
        }
        *x = sums;
    }
}

/// A Hadamard matrix by one of Paley's constructions, row by row: order q + 1 for a prime q ≡ 3 mod 4, or
/// order 2 (q + 1) for a prime q ≡ 1 mod 4.
///
/// R. Paley, «On orthogonal matrices», Journal of Mathematics and Physics 12, 1933.
fn paley(order: usize) -> Option<Vec<f32>> {
    if is_prime(order - 1) && order.is_multiple_of(4) {
        // H = I + C, C skew.
        let conference = conference(order - 1);
        Some((0..order * order).map(|i| if i / order == i % order { 1.0 } else { conference[i] }).collect())
    } else if order.is_multiple_of(4) && is_prime(order / 2 - 1) && (order / 2 - 1) % 4 == 1 {
        // H = C ⊗ [+ +; + −] + I ⊗ [+ −; − −], C symmetric.
        let half = order / 2;
        let conference = conference(half - 1);
        let entry = |i: usize, j: usize| match (i / 2 == j / 2, i % 2 + j % 2) {
            (true, 0) => 1.0,
            (true, _) => -1.0,
            (false, 2) => -conference[i / 2 * half + j / 2],
            (false, _) => conference[i / 2 * half + j / 2],
        };
        Some((0..order * order).map(|i| entry(i / order, i % order)).collect())
    } else {
        None
    }
}

/// The conference matrix of order q + 1: zero diagonal, a border of ones, and inside whether i − j is a
/// square modulo q. It is skew for q ≡ 3 mod 4 and symmetric for q ≡ 1 mod 4.
fn conference(q: usize) -> Vec<f32> {
    let order = q + 1;
    let border = if q % 4 == 3 { -1.0 } else { 1.0 };
    let mut residue = vec![-1.0; q];
    (1..q).for_each(|i| residue[i * i % q] = 1.0);
    residue[0] = 0.0;
    let entry = |i: usize, j: usize| match (i, j) {
        (0, 0) => 0.0,
        (0, _) => 1.0,
        (_, 0) => border,
        _ => residue[(q + i - j) % q],
    };
    (0..order * order).map(|i| entry(i / order, i % order)).collect()
}

fn is_prime(n: usize) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The printed masks of the first 128 signs, bit set = −1.
    #[test]
    fn signs_are_the_published_ones() {
        let masks = |signs: &[f32]| -> Vec<u32> {
            let mask = |run: &[f32]| run.iter().rev().fold(0, |mask, s| mask << 1 | u32::from(*s < 0.0));
            signs.chunks(32).map(mask).collect()
        };
        assert_eq!(masks(&SIGNS[0][..128]), [0xE46A_0359, 0x42F8_5949, 0xA4C6_3BBB, 0x49F2_50A9]);
        assert_eq!(masks(&SIGNS[1][..128]), [0x16AC_EE90, 0x3F62_8FDC, 0xB7A5_357A, 0xBEA5_6562]);
        let t = "+-+-++-+--+-++-+--+-+--+-++-+--+";
        assert_eq!(t, BLOCK32_SIGNS.iter().map(|s| if *s < 0.0 { '-' } else { '+' }).collect::<String>());
    }

    /// Every column of the rotation has length 1 and is orthogonal to every other.
    #[test]
    fn every_head_size_is_rotated_whole() {
        for head_dim in [16, 20, 32, 40, 48, 64, 72, 80, 96, 112, 120, 128, 160, 192, 224, 256, 320, 576] {
            let head = Head::new(head_dim).unwrap_or_else(|| panic!("{head_dim}"));
            let n = head.group();
            let images: Vec<Vec<f32>> = (0..n)
                .map(|i| {
                    let mut x = vec![0.0; n];
                    x[i] = 1.0;
                    head.forward(&mut x);
                    assert!(x.iter().all(|y| (y.abs() - norm(n)).abs() < 1e-6), "{head_dim}: flat");
                    x
                })
                .collect();
            for (i, a) in images.iter().enumerate() {
                for (j, b) in images.iter().enumerate() {
                    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-6, "{head_dim}: {i} {j} {dot}");
                }
                let mut back = a.clone();
                head.inverse(&mut back);
                let one = |k: usize| if i == k { 1.0 } else { 0.0 };
                assert!(back.iter().enumerate().all(|(k, x)| (x - one(k)).abs() < 1e-6), "{head_dim}");
            }
        }
        assert!(Head::new(0).is_none() && Head::new(6).is_none() && Head::new(52).is_none());
    }

    #[test]
    fn a_head_of_128_is_the_published_rotation() {
        let mut x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut y = x.clone();
        Head::new(256).unwrap().forward(&mut x);
        y.chunks_mut(128).for_each(wht_forward);
        assert_eq!(x, y);
    }

    #[test]
    fn block32_comes_back() {
        let x: [f32; 32] = std::array::from_fn(|i| (i as f32).cos());
        let mut y = x;
        block32_forward(&mut y);
        block32_inverse(&mut y);
        assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-6));
    }
}
