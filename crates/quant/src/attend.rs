//! Attention over one page part: the tokens of one KV head, encoded in one format.
//!
//! Attention talks to the K side through [`scores`] and to the V side through [`accumulate`], so no kernel
//! knows two formats. Both decode a chunk of sixteen values in registers and use it for all queries that
//! share the head. A prompt has too many queries for that: [`decode_tile`] turns the part into floats once, and
//! [`crate::gemm::product`] and [`accumulate_tile`] multiply those.
//!
//! A part is `tokens * head_dim` values one after the other in ordinary blocks, which may straddle two
//! tokens, or for [`Rotation::Head`] formats in blocks of one rotation group. `head_dim` is a multiple of 16.

use crate::dot::{Affine, sum_all, vectors};
use crate::{Format, Rotation, rotate};
use torque_simd::{Isa, LANES};

/// Encoded tokens of one KV head, seen as chunks of sixteen values.
#[derive(Clone, Copy)]
struct Part<'a> {
    bytes: &'a [u8],
    tokens: usize,
    /// Chunks of a token.
    width: usize,
    /// Chunks and bytes of a block.
    block: usize,
    block_bytes: usize,
    /// How many chunks share a scale, counted from the start of a token.
    group: usize,
}

impl<'a> Part<'a> {
    #[inline(always)]
    fn new<F: Format>(bytes: &'a [u8], tokens: usize, head_dim: usize) -> Self {
        assert!(head_dim.is_multiple_of(LANES), "a head of {head_dim} values");
        let width = head_dim / LANES;
        if F::ROTATION == Rotation::Head {
            let block = rotate::group(head_dim) / LANES;
            let blocks = tokens * width / block;
            assert!(tokens == 0 || bytes.len().is_multiple_of(blocks), "{}: a whole part", F::NAME);
            let block_bytes = bytes.len().checked_div(blocks).unwrap_or(0);
            return Part { bytes, tokens, width, block, block_bytes, group: block };
        }
        let (block, group) = (F::BLOCK / LANES, F::GROUP / LANES);
        assert_eq!(
            bytes.len(),
            tokens * width / block * F::BYTES,
            "{}: {tokens} tokens of {head_dim}",
            F::NAME
        );
        assert!(
            (tokens * width).is_multiple_of(block),
            "{}: {tokens} tokens of {head_dim} in blocks",
            F::NAME
        );
        let group = if width.is_multiple_of(group) { group } else { 1 };
        Part { bytes, tokens, width, block, block_bytes: F::BYTES, group }
    }

    /// The block of a chunk, and the place of the chunk in it.
    #[inline(always)]
    fn at(&self, chunk: usize) -> (&'a [u8], usize) {
        (&self.bytes[chunk / self.block * self.block_bytes..][..self.block_bytes], chunk % self.block)
    }
}

/// `out[i * tokens + t] = Σ_d q[i * head_dim + d] k[t, d]`, neither scaled nor masked.
pub fn scores<F: Format, I: Isa>(
    isa: I,
    part: &[u8],
    tokens: usize,
    head_dim: usize,
    q: &[f32],
    out: &mut [f32],
) {
    let part = Part::new::<F>(part, tokens, head_dim);
    let queries = q.len() / head_dim;
    assert_eq!((q.len(), out.len()), (queries * head_dim, queries * tokens), "shapes of q and out");
    let width = const { vectors::<I>() };
    for i in (0..queries).step_by(width) {
        let (q, out) = (&q[i * head_dim..], &mut out[i * tokens..]);
        let left = queries - i;
        isa.run(
            #[inline(always)]
            || match const { vectors::<I>() } {
                1 => scores_of::<F, I, 16, 1>(isa, part, q, out),
                _ if left == 1 => scores_of::<F, I, 16, 1>(isa, part, q, out),
                4 => scores_of::<F, I, 4, 4>(isa, part, q, out),
                _ if left <= 4 => scores_of::<F, I, 4, 4>(isa, part, q, out),
                _ => scores_of::<F, I, 2, 8>(isa, part, q, out),
            },
        );
    }
}

/// The first Q queries, or all there are, T tokens at a time.
#[inline(always)]
fn scores_of<F: Format, I: Isa, const T: usize, const Q: usize>(
    isa: I,
    part: Part<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let head_dim = part.width * LANES;
    let queries = Q.min(q.len() / head_dim);
    // Missing queries and tokens repeat the last one.
    let q: [&[[f32; 16]]; Q] =
        std::array::from_fn(|i| q[i.min(queries - 1) * head_dim..][..head_dim].as_chunks().0);
    for t in (0..part.tokens).step_by(T) {
        let sums = std::array::from_fn(
            #[inline(always)]
            |i| token_products::<F, I, Q>(isa, part, (t + i).min(part.tokens - 1), q),
        );
        let sums: [[f32; Q]; T] = sum_all(isa, sums);
        for (i, sums) in sums.into_iter().enumerate().take(part.tokens - t) {
            for (query, sum) in sums.into_iter().enumerate().take(queries) {
                out[query * part.tokens + t + i] = sum;
            }
        }
    }
}

/// Lane sums of the products of one token and Q queries.
#[inline(always)]
fn token_products<F: Format, I: Isa, const Q: usize>(
    isa: I,
    part: Part<'_>,
    token: usize,
    q: [&[[f32; 16]]; Q],
) -> [I::F; Q] {
    let mut sums = [isa.splat(0.0); Q];
    let mut d = 0;
    while d < part.width {
        let (block, first) = part.at(token * part.width + d);
        let affine = Affine::new::<F>(isa, block, first);
        for i in 0..part.group {
            let k = affine.values::<F>(isa, block, first + i);
            for query in 0..Q {
                sums[query] = isa.fma(k, isa.load(&q[query][d + i]), sums[query]);
            }
        }
        d += part.group;
    }
    sums
}

/// `out[i * head_dim + d] += Σ_t weights[i * tokens + t] v[t, d]`.
pub fn accumulate<F: Format, I: Isa>(
    isa: I,
    part: &[u8],
    tokens: usize,
    head_dim: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let part = Part::new::<F>(part, tokens, head_dim);
    let queries = out.len() / head_dim;
    assert_eq!(
        (out.len(), weights.len()),
        (queries * head_dim, queries * tokens),
        "shapes of out and weights"
    );
    let width = const { vectors::<I>() };
    for i in (0..queries).step_by(width) {
        let (weights, out) = (&weights[i * tokens..], &mut out[i * head_dim..]);
        let left = queries - i;
        isa.run(
            #[inline(always)]
            || match const { vectors::<I>() } {
                1 => accumulate_in::<F, I, 1, 1>(isa, part, weights, out),
                4 if left == 1 => accumulate_in::<F, I, 4, 1>(isa, part, weights, out),
                4 => accumulate_in::<F, I, 1, 4>(isa, part, weights, out),
                _ if left == 1 => accumulate_in::<F, I, 8, 1>(isa, part, weights, out),
                _ if left <= 4 => accumulate_in::<F, I, 4, 4>(isa, part, weights, out),
                _ => accumulate_in::<F, I, 2, 8>(isa, part, weights, out),
            },
        );
    }
}

/// The first Q queries, or all there are, D chunks of the head at a time.
#[inline(always)]
fn accumulate_in<F: Format, I: Isa, const D: usize, const Q: usize>(
    isa: I,
    part: Part<'_>,
    weights: &[f32],
    out: &mut [f32],
) {
    let mut d = 0;
    while d + D <= part.width {
        accumulate_chunks::<F, I, D, Q>(isa, part, d, weights, out);
        d += D;
    }
    while d < part.width {
        accumulate_chunks::<F, I, 1, Q>(isa, part, d, weights, out);
        d += 1;
    }
}

/// Chunks `d .. d + D` of the head.
#[inline(always)]
fn accumulate_chunks<F: Format, I: Isa, const D: usize, const Q: usize>(
    isa: I,
    part: Part<'_>,
    d: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let head_dim = part.width * LANES;
    let queries = Q.min(out.len() / head_dim);
    // Missing queries repeat the last one.
    let weights: [&[f32]; Q] =
        std::array::from_fn(|i| &weights[i.min(queries - 1) * part.tokens..][..part.tokens]);
    let mut sums = [[isa.splat(0.0); D]; Q];
    // Whether the D chunks lie in one group.
    let together = part.group.is_multiple_of(D) && d.is_multiple_of(D);
    for t in 0..part.tokens {
        let (block, first) = part.at(t * part.width + d);
        let mut values = [isa.splat(0.0); D];
        if together {
            let affine = Affine::new::<F>(isa, block, first);
            for i in 0..D {
                values[i] = affine.values::<F>(isa, block, first + i);
            }
        } else {
            for i in 0..D {
                let (block, place) = part.at(t * part.width + d + i);
                values[i] = Affine::new::<F>(isa, block, place).values::<F>(isa, block, place);
            }
        }
        for query in 0..Q {
            let weight = isa.splat(weights[query][t]);
            for i in 0..D {
                sums[query][i] = isa.fma(values[i], weight, sums[query][i]);
            }
        }
    }
    for query in 0..queries {
        add(isa, &sums[query], &mut out[query * head_dim..][..head_dim], d);
    }
}

/// Adds vectors to chunks `d ..` of a row.
#[inline(always)]
fn add<I: Isa>(isa: I, sums: &[I::F], row: &mut [f32], d: usize) {
    for (sum, out) in sums.iter().zip(&mut row.as_chunks_mut::<16>().0[d..]) {
        isa.store(isa.add(isa.load(out), *sum), out);
    }
}

/// `out[t * head_dim + d]` = the decoded part.
pub fn decode_tile<F: Format, I: Isa>(isa: I, part: &[u8], tokens: usize, head_dim: usize, out: &mut [f32]) {
    let part = Part::new::<F>(part, tokens, head_dim);
    assert_eq!(out.len(), tokens * head_dim, "shape of out");
    isa.run(
        #[inline(always)]
        || {
            for (first, out) in out.as_chunks_mut::<16>().0.chunks_mut(part.group).enumerate() {
                let (block, first) = part.at(first * part.group);
                let affine = Affine::new::<F>(isa, block, first);
                for (i, out) in out.iter_mut().enumerate() {
                    isa.store(affine.values::<F>(isa, block, first + i), out);
                }
            }
        },
    );
}

/// `out[i * head_dim + d] += Σ_t weights[i * tokens + t] v[t * head_dim + d]` for a decoded part.
pub fn accumulate_tile<I: Isa>(
    isa: I,
    v: &[f32],
    tokens: usize,
    head_dim: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let queries = out.len() / head_dim;
    assert!(head_dim.is_multiple_of(LANES), "a head of {head_dim} values");
    assert_eq!(v.len(), tokens * head_dim, "shape of v");
    assert_eq!(
        (out.len(), weights.len()),
        (queries * head_dim, queries * tokens),
        "shapes of out and weights"
    );
    isa.run(
        #[inline(always)]
        || match const { vectors::<I>() } {
            8 => tiles::<I, 6, 4>(isa, v, tokens, head_dim, weights, out),
            4 => tiles::<I, 2, 2>(isa, v, tokens, head_dim, weights, out),
            _ => tiles::<I, 1, 1>(isa, v, tokens, head_dim, weights, out),
        },
    );
}

/// Q queries and D chunks of the head at a time.
#[inline(always)]
fn tiles<I: Isa, const Q: usize, const D: usize>(
    isa: I,
    v: &[f32],
    tokens: usize,
    head_dim: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let width = head_dim / LANES;
    let v: &[[f32; 16]] = v.as_chunks().0;
    for (weights, out) in weights.chunks(Q * tokens).zip(out.chunks_mut(Q * head_dim)) {
        let queries = out.len() / head_dim;
        let weights: [&[f32]; Q] = std::array::from_fn(|i| &weights[i.min(queries - 1) * tokens..][..tokens]);
        let mut d = 0;
        while d + D <= width {
            let sums = tile::<I, Q, D>(isa, v, width, d, weights);
            for (sums, out) in sums.iter().zip(out.chunks_exact_mut(head_dim)) {
                add(isa, sums, out, d);
            }
            d += D;
        }
        while d < width {
            let sums = tile::<I, Q, 1>(isa, v, width, d, weights);
            for (sums, out) in sums.iter().zip(out.chunks_exact_mut(head_dim)) {
                add(isa, sums, out, d);
            }
            d += 1;
        }
    }
}

#[inline(always)]
fn tile<I: Isa, const Q: usize, const D: usize>(
    isa: I,
    v: &[[f32; 16]],
    width: usize,
    d: usize,
    weights: [&[f32]; Q],
) -> [[I::F; D]; Q] {
    let mut sums = [[isa.splat(0.0); D]; Q];
    for (t, v) in v.chunks_exact(width).enumerate() {
        let v: &[[f32; 16]; D] = v[d..].first_chunk().expect("D chunks are left");
        let v = v.each_ref().map(|v| isa.load(v));
        for query in 0..Q {
            let weight = isa.splat(weights[query][t]);
            for i in 0..D {
                sums[query][i] = isa.fma(v[i], weight, sums[query][i]);
            }
        }
    }
    sums
}
