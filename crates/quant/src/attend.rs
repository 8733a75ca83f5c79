//! Attention over one page part: the tokens of one KV head, encoded in one format.
//!
//! Attention talks to the K side through [`scores`] and to the V side through [`accumulate`], so no kernel
//! knows two formats. Both decode a chunk of sixteen values in registers and use it for all queries that
//! share the head. A prompt has too many queries for that: [`decode_tile`] turns the part into floats once, and
//! [`crate::gemm::product`] and [`accumulate_tile`] multiply those.
//!
//! A part is `tokens * head_dim` values one after the other in ordinary blocks, which may straddle two
//! tokens, or for [`Rotation::Head`] formats in blocks of one rotation group. `head_dim` is a multiple of 16.

pub mod whole;

use crate::dot::{decoded, vectors};
use crate::format::PLANES_MAX;
use crate::gemm::{Matrix, outer_products};
use crate::{Format, Rotation, rotate};
use torque_simd::{Isa, LANES};

/// Keys or values of one KV head, some tokens, as they are stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Part<'a> {
    /// Blocks of `tokens * head_dim` values.
    pub bytes: &'a [u8],
    /// Their bit planes, where those lie apart: a nested format's, in tiles.
    pub planes: [&'a [u8]; PLANES_MAX],
    /// Tokens.
    pub tokens: usize,
    /// Values of a token.
    pub head_dim: usize,
    /// What will be read after it. Kernels that read a part for the first time ask the memory for it meanwhile.
    pub next: &'a [u8],
}

/// A [`Part`] seen as chunks of sixteen values.
#[derive(Clone, Copy)]
struct Chunks<'a> {
    bytes: &'a [u8],
    next: &'a [u8],
    tokens: usize,
    /// Chunks of a token.
    width: usize,
    /// Chunks and bytes of a block.
    block: usize,
    block_bytes: usize,
}

impl<'a> Chunks<'a> {
    #[inline(always)]
    fn new<F: Format>(Part { bytes, planes, tokens, head_dim, next }: Part<'a>) -> Self {
        const { assert!(F::GROUP == F::BLOCK, "a block of a cache has one scale") };
        assert!(planes.iter().all(|plane| plane.is_empty()), "{}: blocks are whole", F::NAME);
        assert!(head_dim.is_multiple_of(LANES), "a head of {head_dim} values");
        let width = head_dim / LANES;
        if F::ROTATION == Rotation::Head {
            let block = rotate::group(head_dim) / LANES;
            let blocks = tokens * width / block;
            assert!(tokens == 0 || bytes.len().is_multiple_of(blocks), "{}: a whole part", F::NAME);
            let block_bytes = bytes.len().checked_div(blocks).unwrap_or(0);
            return Chunks { bytes, next, tokens, width, block, block_bytes };
        }
        let block = F::BLOCK / LANES;
        assert!(
            (tokens * width).is_multiple_of(block),
            "{}: {tokens} tokens of {head_dim} in blocks",
            F::NAME
        );
        assert_eq!(
            bytes.len(),
            tokens * width / block * F::BYTES,
            "{}: {tokens} tokens of {head_dim}",
            F::NAME
        );
        Chunks { bytes, next, tokens, width, block, block_bytes: F::BYTES }
    }

    /// Bytes of a block of B chunks.
    #[inline(always)]
    fn block_bytes<F: Format, const B: usize>(&self) -> usize {
        if const { B * LANES == F::BLOCK } { F::BYTES } else { self.block_bytes }
    }

    /// Asks for sixteen tokens, from the t-th on, or for what is next.
    #[inline(always)]
    fn prefetch(&self, isa: impl Isa, t: usize) {
        let token = self.bytes.len() / self.tokens;
        let (bytes, first) = if t < self.tokens { (self.bytes, t) } else { (self.next, t - self.tokens) };
        for line in 0..(LANES * token).div_ceil(64) {
            isa.prefetch(bytes, first * token + 64 * line);
        }
    }

    /// The block of a chunk, and the place of the chunk in it.
    #[inline(always)]
    fn at(&self, chunk: usize) -> (&'a [u8], usize) {
        (&self.bytes[chunk / self.block * self.block_bytes..][..self.block_bytes], chunk % self.block)
    }
}

/// Calls a function with the number of chunks of a block as its last generic parameter: a constant for the usual
/// formats and heads, 0 for other heads and for blocks that straddle two tokens.
macro_rules! with_block {
    ($part:ident, $function:ident::<$F:ident, $($generic:tt),+>($($argument:expr),*)) => {
        if const { $F::ROTATION as u8 == Rotation::Head as u8 } {
            match $part.block {
                8 => $function::<$F, $($generic),+, 8>($($argument),*),
                4 => $function::<$F, $($generic),+, 4>($($argument),*),
                _ => $function::<$F, $($generic),+, 0>($($argument),*),
            }
        } else if !$part.width.is_multiple_of($part.block) {
            $function::<$F, $($generic),+, 0>($($argument),*)
        } else if const { $F::BLOCK == LANES } {
            $function::<$F, $($generic),+, 1>($($argument),*)
        } else {
            const { assert!($F::BLOCK == LANES || $F::BLOCK == 2 * LANES || $F::ROTATION as u8 == Rotation::Head as u8) };
            $function::<$F, $($generic),+, 2>($($argument),*)
        }
    };
}

/// Scale and shift of a block, in every lane.
#[derive(Clone, Copy)]
struct Affine<V> {
    scale: V,
    shift: V,
}

impl<V: Copy> Affine<V> {
    #[inline(always)]
    fn new<F: Format>(isa: impl Isa<F = V>, block: &[u8]) -> Self {
        let (scale, shift) = F::affine(isa, block, 0);
        Affine { scale: isa.splat(scale), shift: isa.splat(shift) }
    }

    /// Chunk i of the block, decoded.
    #[inline(always)]
    fn values<F: Format>(self, isa: impl Isa<F = V>, block: &[u8], i: usize) -> V {
        decoded::<F, _>(isa, F::codes(isa, block, i), self.scale, self.shift)
    }
}

/// Chunks of a head whose products are summed in lanes before the lanes are added up: all of most heads.
const DEPTH: usize = 16;

/// `out[i * tokens + t] = Σ_d q[i * head_dim + d] k[t, d]`, neither scaled nor masked.
pub fn scores<F: Format, I: Isa>(isa: I, part: Part<'_>, q: &[f32], out: &mut [f32]) {
    let (tokens, head_dim) = (part.tokens, part.head_dim);
    let part = Chunks::new::<F>(part);
    let queries = q.len() / head_dim;
    assert_eq!((q.len(), out.len()), (queries * head_dim, queries * tokens), "shapes of q and out");
    let width = const { vectors::<I>() };
    for i in (0..queries).step_by(width) {
        let (q, out) = (&q[i * head_dim..], &mut out[i * tokens..]);
        let left = queries - i;
        isa.run(
            #[inline(always)]
            || match const { vectors::<I>() } {
                1 => with_block!(part, scores_of::<F, I, 1>(isa, part, q, out)),
                _ if left == 1 => with_block!(part, scores_of::<F, I, 1>(isa, part, q, out)),
                4 => with_block!(part, scores_of::<F, I, 4>(isa, part, q, out)),
                _ if left == 2 => with_block!(part, scores_of::<F, I, 2>(isa, part, q, out)),
                _ if left <= 4 => with_block!(part, scores_of::<F, I, 4>(isa, part, q, out)),
                _ => with_block!(part, scores_of::<F, I, 8>(isa, part, q, out)),
            },
        );
    }
}

/// The first Q queries, or all there are. Lanes are added up for sixteen tokens at a time.
#[inline(always)]
fn scores_of<F: Format, I: Isa, const Q: usize, const B: usize>(
    isa: I,
    part: Chunks<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let head_dim = part.width * LANES;
    let queries = Q.min(q.len() / head_dim);
    let mut packed = [[[0.0; LANES]; Q]; DEPTH];
    let mut sums = [[isa.splat(0.0); LANES]; Q];
    for d in (0..part.width).step_by(DEPTH) {
        let depth = DEPTH.min(part.width - d);
        for (i, packed) in packed[..depth].iter_mut().enumerate() {
            for query in 0..queries {
                packed[query].copy_from_slice(&q[query * head_dim + (d + i) * LANES..][..LANES]);
            }
        }
        for t in (0..part.tokens).step_by(LANES) {
            let count = LANES.min(part.tokens - t);
            if d == 0 {
                part.prefetch(isa, t + LANES);
            }
            for i in 0..count {
                let products = token_products::<F, I, Q, B>(isa, part, t + i, d, &packed[..depth]);
                for query in 0..Q {
                    sums[query][i] = products[query];
                }
            }
            for query in 0..queries {
                let mut scores = [0.0; LANES];
                isa.store(isa.reduce16(sums[query]), &mut scores);
                let out = &mut out[query * part.tokens + t..][..count];
                for (out, score) in out.iter_mut().zip(scores) {
                    *out = if d == 0 { score } else { *out + score };
                }
            }
        }
    }
}

/// Lane sums of the products of chunks `d ..` of one token and Q queries.
#[inline(always)]
fn token_products<F: Format, I: Isa, const Q: usize, const B: usize>(
    isa: I,
    part: Chunks<'_>,
    token: usize,
    d: usize,
    q: &[[[f32; LANES]; Q]],
) -> [I::F; Q] {
    let mut sums = [isa.splat(0.0); Q];
    let first = token * part.width + d;
    if const { B == 0 } {
        for (i, q) in q.iter().enumerate() {
            let (block, place) = part.at(first + i);
            let k = Affine::new::<F>(isa, block).values::<F>(isa, block, place);
            for query in 0..Q {
                sums[query] = isa.fma(k, isa.load(&q[query]), sums[query]);
            }
        }
        return sums;
    }
    let block_bytes = part.block_bytes::<F, B>();
    let blocks = part.bytes[first / B.max(1) * block_bytes..].chunks_exact(block_bytes);
    for (block, q) in blocks.zip(q.as_chunks::<B>().0) {
        let affine = Affine::new::<F>(isa, block);
        for i in 0..B {
            let k = affine.values::<F>(isa, block, i);
            for query in 0..Q {
                sums[query] = isa.fma(k, isa.load(&q[i][query]), sums[query]);
            }
        }
    }
    sums
}

/// `out[i * head_dim + d] += Σ_t weights[i * tokens + t] v[t, d]`.
pub fn accumulate<F: Format, I: Isa>(isa: I, part: Part<'_>, weights: &[f32], out: &mut [f32]) {
    let (tokens, head_dim) = (part.tokens, part.head_dim);
    let part = Chunks::new::<F>(part);
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
                1 => with_block!(part, accumulate_of::<F, I, 1, 1>(isa, part, weights, out)),
                4 if left == 1 => with_block!(part, accumulate_of::<F, I, 4, 1>(isa, part, weights, out)),
                4 => with_block!(part, accumulate_of::<F, I, 1, 4>(isa, part, weights, out)),
                _ if left == 1 => with_block!(part, accumulate_of::<F, I, 4, 1>(isa, part, weights, out)),
                _ if left == 2 => with_block!(part, accumulate_of::<F, I, 8, 2>(isa, part, weights, out)),
                _ if left <= 4 => with_block!(part, accumulate_of::<F, I, 4, 4>(isa, part, weights, out)),
                _ => with_block!(part, accumulate_of::<F, I, 2, 8>(isa, part, weights, out)),
            },
        );
    }
}

/// The first Q queries, or all there are, D chunks of the head at a time.
#[inline(always)]
fn accumulate_of<F: Format, I: Isa, const D: usize, const Q: usize, const B: usize>(
    isa: I,
    part: Chunks<'_>,
    weights: &[f32],
    out: &mut [f32],
) {
    let mut d = 0;
    while d + D <= part.width {
        accumulate_chunks::<F, I, D, Q, B>(isa, part, d, weights, out);
        d += D;
    }
    while d < part.width {
        accumulate_chunks::<F, I, 1, Q, 0>(isa, part, d, weights, out);
        d += 1;
    }
}

/// Chunks `d .. d + D` of the head.
#[inline(always)]
fn accumulate_chunks<F: Format, I: Isa, const D: usize, const Q: usize, const B: usize>(
    isa: I,
    part: Chunks<'_>,
    d: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let head_dim = part.width * LANES;
    let queries = Q.min(out.len() / head_dim);
    let weights = weight_rows::<Q>(weights, queries, part.tokens);
    let mut sums = [[isa.splat(0.0); D]; Q];
    let block_bytes = part.block_bytes::<F, B>();
    for t in 0..part.tokens {
        if d == 0 && t.is_multiple_of(LANES) {
            part.prefetch(isa, t + LANES);
        }
        let first = t * part.width + d;
        let mut values = [isa.splat(0.0); D];
        if const { B == 0 } {
            for i in 0..D {
                let (block, place) = part.at(first + i);
                values[i] = Affine::new::<F>(isa, block).values::<F>(isa, block, place);
            }
        } else {
            // D chunks are part of a block, or whole blocks.
            const { assert!(B == 0 || D.is_multiple_of(B) || B.is_multiple_of(D)) };
            let blocks = const { D.div_ceil(if B == 0 { 1 } else { B }) };
            let run = &part.bytes[first / B.max(1) * block_bytes..][..blocks * block_bytes];
            for b in 0..blocks {
                let block = &run[b * block_bytes..][..block_bytes];
                let affine = Affine::new::<F>(isa, block);
                let place = if const { D < B } { d % B.max(1) } else { 0 };
                for i in 0..D / blocks {
                    values[b * B + i] = affine.values::<F>(isa, block, place + i);
                }
            }
        }
        for query in 0..Q {
            let weight = isa.splat(weights[query][t]);
            for i in 0..D {
                sums[query][i] = isa.fma(values[i], weight, sums[query][i]);
            }
        }
    }
    for query in 0..Q.min(queries) {
        add(isa, &sums[query], &mut out[query * head_dim..][..head_dim], d);
    }
}

/// The weights of Q queries; missing queries repeat the last one.
#[inline(always)]
fn weight_rows<const Q: usize>(weights: &[f32], queries: usize, tokens: usize) -> [&[f32]; Q] {
    let mut rows = [&weights[..0]; Q];
    for i in 0..Q {
        rows[i] = &weights[i.min(queries - 1) * tokens..][..tokens];
    }
    rows
}

/// Adds vectors to chunks `d ..` of a row.
#[inline(always)]
fn add<I: Isa>(isa: I, sums: &[I::F], row: &mut [f32], d: usize) {
    for (sum, out) in sums.iter().zip(&mut row.as_chunks_mut::<16>().0[d..]) {
        isa.store(isa.add(isa.load(out), *sum), out);
    }
}

/// `out[t * head_dim + d]` = the decoded part.
pub fn decode_tile<F: Format, I: Isa>(isa: I, part: Part<'_>, out: &mut [f32]) {
    assert_eq!(out.len(), part.tokens * part.head_dim, "shape of out");
    let part = Chunks::new::<F>(part);
    isa.run(
        #[inline(always)]
        || {
            let out = out.as_chunks_mut::<16>().0.chunks_exact_mut(part.block);
            for (block, out) in part.bytes.chunks_exact(part.block_bytes.max(1)).zip(out) {
                let affine = Affine::new::<F>(isa, block);
                for (i, out) in out.iter_mut().enumerate() {
                    isa.store(affine.values::<F>(isa, block, i), out);
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
        || {
            let width = head_dim / LANES;
            let out = out.as_chunks_mut::<16>().0;
            let weights = Matrix { values: weights, stride: tokens, rows: queries };
            outer_products(
                isa,
                weights,
                tokens,
                v.as_chunks().0,
                width,
                width,
                #[inline(always)]
                |query, first, sums| {
                    let out = &mut out[query * width + first / LANES];
                    isa.store(isa.add(isa.load(out), sums), out);
                },
            );
        },
    );
}
