//! Attention over one page part in whole numbers.
//!
//! A part is unpacked once to bytes, sixteen tokens a vector: [`unpack`], the only step that knows a format. Then any
//! number of queries are multiplied with it, four bytes an instruction.
//!
//! ```text
//! scores      out[i][t] += Σ_d q[i, d]·code[t, d]·scale[t]          lanes are tokens, a lane's four bytes channels
//! accumulate  out[i][d] += Σ_t (w[i, t]·scale[t])·code[t, d]        a lane's four bytes are tokens
//! ```
//!
//! The other factor, q or w·scale, is rounded to a multiple of its largest magnitude / 32385 and split into two
//! bytes, `HIGH · high + low`, so that it errs by at most 2⁻¹⁶ of the largest. Sums are exact. Codes are those of the
//! format, except that levels of a codebook are rounded to bytes: they err by [`Format::CODE_ERROR`].

use super::Part;
use crate::format::{Blocks, Format, Rotation, offset};
use crate::math::{magnitude, unit};
use crate::rotate;
use torque_simd::{Isa, LANES};

/// What a high byte counts: low ones are from −127 to 127.
const HIGH: i32 = 255;
/// The largest magnitude of what is split in two bytes.
const TOP: f32 = (127 * HIGH) as f32;

/// Values of a block that formats hand out at once.
const RUN: usize = 32;

/// Tokens of the largest part: whole sums of more might not fit 32 bits.
const TOKENS_MAX: usize = 512;

/// A page part of one head, unpacked for [`scores`] or [`accumulate`].
#[derive(Debug, Default)]
pub struct Codes {
    /// `[tokens / 16][head_dim / 4]`: four channels of sixteen tokens, or of four times four tokens.
    words: Vec<[u8; 64]>,
    /// `[tokens / 16][blocks]` of sixteen tokens.
    scales: Vec<[f32; LANES]>,
    /// Likewise; empty without shifts.
    shifts: Vec<[f32; LANES]>,
    head_dim: usize,
    /// Channels that share a scale.
    block: usize,
    /// What codes carry.
    offset: i32,
    /// Whether a word's four channels are four apart: [`Format::STRIDED`].
    strided: bool,
}

/// Unpacks a part for [`scores`], or for [`accumulate`] if it holds `VALUES`. Says no, and does nothing, where it
/// cannot or would not pay: floats have no codes; a block may straddle two tokens, or be a rotation group of an
/// unusual size; tokens come in sixteens; and weights times the scales of small blocks of values are too many.
pub fn unpack<F: Format, I: Isa, const VALUES: bool>(
    isa: I,
    Part { bytes: part, tokens, head_dim, next }: Part<'_>,
    out: &mut Codes,
) -> bool {
    const { assert!(!F::SHIFTED || F::ROTATION as u8 != Rotation::Head as u8, "values have no shifts") };
    if const { F::BYTES.is_multiple_of(F::BLOCK) || VALUES && F::ROTATION as u8 != Rotation::Head as u8 } {
        return false;
    }
    let (block, usual) = match F::ROTATION {
        Rotation::Head => (rotate::group(head_dim), matches!(rotate::group(head_dim), 64 | 128)),
        _ => (F::BLOCK, head_dim.is_multiple_of(F::BLOCK)),
    };
    if !usual || !tokens.is_multiple_of(LANES) || tokens > TOKENS_MAX {
        return false;
    }
    let blocks = head_dim / block;
    let token_bytes = part.len() / tokens.max(1);
    let block_bytes = token_bytes / blocks;
    assert_eq!(part.len(), tokens * blocks * block_bytes, "{}: a whole part", F::NAME);
    (out.head_dim, out.block, out.strided) = (head_dim, block, F::STRIDED);
    out.offset = const { offset::<F, I>() };
    let (words, groups) = (head_dim / 4, tokens / LANES);
    // Lines of what is next to ask for with each group.
    let lines = next.len().div_ceil(64 * groups.max(1));
    out.words.resize(groups * words, [0; 64]);
    out.scales.resize(groups * blocks, [0.0; LANES]);
    out.shifts.resize(if F::SHIFTED { groups * blocks } else { 0 }, [0.0; LANES]);
    isa.run(
        #[inline(always)]
        || {
            let of_groups = out.words.chunks_exact_mut(words).zip(part.chunks_exact(LANES * token_bytes));
            for (g, (words, part)) in of_groups.enumerate() {
                for line in g * lines..(g + 1) * lines {
                    isa.prefetch(next, 64 * line);
                }
                for (b, words) in words.chunks_exact_mut(block / 4).enumerate() {
                    let rows = Blocks::new(&part[b * block_bytes..], token_bytes, block_bytes);
                    F::row_affines(
                        isa,
                        rows,
                        #[inline(always)]
                        |_, scales, shifts| {
                            isa.store(scales, &mut out.scales[g * blocks + b]);
                            if F::SHIFTED {
                                isa.store(shifts, &mut out.shifts[g * blocks + b]);
                            }
                        },
                    );
                    F::row_codes(
                        isa,
                        rows,
                        0,
                        #[inline(always)]
                        |run, codes| {
                            for j in 0..RUN / 4 {
                                let codes = if VALUES { isa.transpose_bytes(codes[j]) } else { codes[j] };
                                isa.store_n(codes, &mut words[run * (RUN / 4) + j]);
                            }
                        },
                    );
                }
            }
        },
    );
    true
}

/// Numbers split into two bytes each.
#[derive(Debug, Default)]
pub struct Split {
    /// `[rows, width]`.
    high: Vec<u8>,
    low: Vec<u8>,
    /// `[rows, width / block]`: sums of the numbers that the bytes stand for, in units.
    totals: Vec<i32>,
    /// `[rows]`: what one unit is.
    units: Vec<f32>,
    /// Values of a block and whether their order is that of [`Format::STRIDED`]; none if nothing is split.
    layout: Option<(usize, bool)>,
}

impl Split {
    /// Forgets what was split: [`scores`] takes the queries to be the same until then.
    pub fn clear(&mut self) {
        self.layout = None;
    }

    /// Splits rows of `width` numbers, blocks of a multiple of 16. If `strided`, sixteen numbers are stored in the
    /// order of [`Format::STRIDED`].
    #[inline(always)]
    fn rows<I: Isa>(&mut self, isa: I, x: &[f32], width: usize, block: usize, strided: bool) {
        let (rows, blocks) = (x.len() / width, width / block);
        self.high.resize(rows * width, 0);
        self.low.resize(rows * width, 0);
        self.totals.resize(rows * blocks, 0);
        self.units.resize(rows, 0.0);
        for (r, x) in x.chunks_exact(width).enumerate() {
            let x = x.as_chunks().0;
            let mut largest = isa.splat(0.0);
            for x in x {
                largest = isa.max(largest, magnitude(isa, isa.load(x)));
            }
            let (unit, inverse) = unit(isa.max_lane(largest), TOP);
            self.units[r] = unit;
            let bytes = r * width..(r + 1) * width;
            let high = self.high[bytes.clone()].chunks_exact_mut(block);
            let low = self.low[bytes].chunks_exact_mut(block);
            let of_blocks = x.chunks_exact(block / LANES).zip(high).zip(low);
            for (((x, high), low), to) in of_blocks.zip(&mut self.totals[r * blocks..]) {
                let mut total = isa.splat(0.0);
                for ((x, to_high), to_low) in x.iter().zip(high.as_chunks_mut().0).zip(low.as_chunks_mut().0)
                {
                    let x = isa.to_f32(isa.round(isa.mul(isa.load(x), isa.splat(inverse))));
                    total = isa.add(total, x);
                    let high = isa.to_f32(isa.round(isa.mul(x, isa.splat(1.0 / HIGH as f32))));
                    let low = isa.fma(high, isa.splat(-HIGH as f32), x);
                    (*to_high, *to_low) = (isa.narrow(isa.round(high)), isa.narrow(isa.round(low)));
                    if strided {
                        (*to_high, *to_low) = (transposed(*to_high), transposed(*to_low));
                    }
                }
                *to = isa.sum(total) as i32;
            }
        }
    }
}

/// Four by four.
#[inline(always)]
fn transposed(x: [u8; 16]) -> [u8; 16] {
    let mut out = x;
    for i in 0..16 {
        out[i] = x[i % 4 * 4 + i / 4];
    }
    out
}

/// `255 · high + low` of whole sums.
#[inline(always)]
fn joined<I: Isa>(isa: I, high: I::N, low: I::N) -> I::N {
    isa.add_n(isa.sub_n(isa.shl::<8>(high), high), low)
}

/// `out[i * tokens + t] = Σ_d q[i * head_dim + d] k[t, d]`, neither scaled nor masked, for keys that are unpacked.
/// `split` is that of these queries, or [clear](Split::clear).
pub fn scores<I: Isa>(isa: I, keys: &Codes, q: &[f32], split: &mut Split, out: &mut [f32]) {
    let queries = q.len() / keys.head_dim;
    let tokens = keys.words.len() / (keys.head_dim / 4) * LANES;
    assert_eq!((q.len(), out.len()), (queries * keys.head_dim, queries * tokens), "shapes of q and out");
    isa.run(
        #[inline(always)]
        || {
            let layout = Some((keys.block, keys.strided));
            if split.layout != layout {
                split.rows(isa, q, keys.head_dim, keys.block, keys.strided);
                split.layout = layout;
            }
            let groups = tokens / LANES;
            let blocks = keys.head_dim / keys.block;
            // Sixteen tokens in some vectors and some queries: as many sums as registers hold.
            match const { I::TILE.0 * I::TILE.1 } {
                16 => {
                    for i in (0..queries).step_by(4) {
                        for g in (0..groups).step_by(2) {
                            match (queries - i, groups - g) {
                                (1, 1) => {
                                    score_tile::<I, 1, 1>(isa, keys, split, blocks, [i, g], tokens, out)
                                }
                                (1, _) => {
                                    score_tile::<I, 1, 2>(isa, keys, split, blocks, [i, g], tokens, out)
                                }
                                (2, 1) => {
                                    score_tile::<I, 2, 1>(isa, keys, split, blocks, [i, g], tokens, out)
                                }
                                (2, _) => {
                                    score_tile::<I, 2, 2>(isa, keys, split, blocks, [i, g], tokens, out)
                                }
                                (_, 1) => {
                                    score_tile::<I, 4, 1>(isa, keys, split, blocks, [i, g], tokens, out)
                                }
                                _ => score_tile::<I, 4, 2>(isa, keys, split, blocks, [i, g], tokens, out),
                            }
                        }
                    }
                }
                _ => {
                    for i in (0..queries).step_by(2) {
                        for g in 0..groups {
                            match queries - i {
                                1 => score_tile::<I, 1, 1>(isa, keys, split, blocks, [i, g], tokens, out),
                                _ => score_tile::<I, 2, 1>(isa, keys, split, blocks, [i, g], tokens, out),
                            }
                        }
                    }
                }
            }
        },
    );
}

/// Q queries from the i-th on, and G times sixteen tokens. Missing queries repeat the last one.
#[inline(always)]
fn score_tile<I: Isa, const Q: usize, const G: usize>(
    isa: I,
    keys: &Codes,
    split: &Split,
    blocks: usize,
    [first, g]: [usize; 2],
    tokens: usize,
    out: &mut [f32],
) {
    let (dim, width) = (keys.head_dim, keys.block / 4);
    let queries = split.units.len();
    let mut high: [&[[u8; 4]]; Q] = [&[]; Q];
    let mut low: [&[[u8; 4]]; Q] = [&[]; Q];
    let mut units = [0.0; Q];
    let mut totals: [&[i32]; Q] = [&[]; Q];
    for i in 0..Q {
        let row = (first + i).min(queries - 1);
        high[i] = &split.high[row * dim..][..dim].as_chunks().0[..dim / 4];
        low[i] = &split.low[row * dim..][..dim].as_chunks().0[..dim / 4];
        totals[i] = &split.totals[row * blocks..][..blocks];
        units[i] = split.units[row];
    }
    let mut words: [&[[u8; 64]]; G] = [&[]; G];
    for j in 0..G {
        words[j] = &keys.words[(g + j) * (dim / 4)..][..dim / 4];
    }
    let mut sums = [[isa.splat(0.0); G]; Q];
    for b in 0..blocks {
        let mut highs = [[isa.splat_n(0); G]; Q];
        let mut lows = [[isa.splat_n(0); G]; Q];
        for w in b * width..(b + 1) * width {
            for j in 0..G {
                let codes = isa.load_n(&words[j][w]);
                for i in 0..Q {
                    let (high, low) = (i32::from_le_bytes(high[i][w]), i32::from_le_bytes(low[i][w]));
                    highs[i][j] = isa.dot4_wide(highs[i][j], codes, isa.splat_n(high));
                    lows[i][j] = isa.dot4_wide(lows[i][j], codes, isa.splat_n(low));
                }
            }
        }
        for i in 0..Q {
            let total = totals[i][b];
            for j in 0..G {
                let whole = joined(isa, highs[i][j], lows[i][j]);
                let whole = isa.to_f32(isa.sub_n(whole, isa.splat_n(keys.offset.wrapping_mul(total))));
                let scale = isa.mul(isa.load(&keys.scales[(g + j) * blocks + b]), isa.splat(units[i]));
                sums[i][j] = isa.fma(whole, scale, sums[i][j]);
                if !keys.shifts.is_empty() {
                    let shift = isa.load(&keys.shifts[(g + j) * blocks + b]);
                    sums[i][j] = isa.fma(shift, isa.splat(units[i] * total as f32), sums[i][j]);
                }
            }
        }
    }
    for i in 0..Q.min(queries - first) {
        for j in 0..G {
            let out = &mut out[(first + i) * tokens + (g + j) * LANES..];
            isa.store(sums[i][j], out.first_chunk_mut().expect("sixteen scores"));
        }
    }
}

/// What [`accumulate`] works in.
#[derive(Debug, Default)]
pub struct Weights {
    scaled: Vec<f32>,
    split: Split,
    /// `[queries, tokens / 16]`: high and low bytes of sixteen tokens as the codes meet them.
    spread: Vec<[[u8; 64]; 2]>,
}

/// Queries whose weights are laid out at once, so that they stay in the first-level cache.
const QUERIES: usize = 16;

/// `out[i * head_dim + d] += Σ_t weights[i * tokens + t] v[t, d]`, for values that are unpacked, with room to work in.
pub fn accumulate<I: Isa>(isa: I, values: &Codes, weights: &[f32], room: &mut Weights, out: &mut [f32]) {
    let dim = values.head_dim;
    let (queries, tokens) = (out.len() / dim, values.words.len() / (dim / 4) * LANES);
    assert_eq!((out.len(), weights.len()), (queries * dim, queries * tokens), "shapes of out and weights");
    let blocks = dim / values.block;
    let chunks = weights.chunks(QUERIES * tokens).zip(out.chunks_mut(QUERIES * dim));
    isa.run(
        #[inline(always)]
        || {
            for (weights, out) in chunks {
                for b in 0..blocks {
                    room.scale(isa, values, weights, tokens, b);
                    let queries = out.len() / dim;
                    for d in (b * values.block..(b + 1) * values.block).step_by(LANES) {
                        match const { I::TILE.0 * I::TILE.1 } {
                            16 => {
                                for i in (0..queries).step_by(2) {
                                    match queries - i {
                                        1 => {
                                            value_tile::<I, 1>(isa, values, room, tokens / LANES, [i, d], out)
                                        }
                                        _ => {
                                            value_tile::<I, 2>(isa, values, room, tokens / LANES, [i, d], out)
                                        }
                                    }
                                }
                            }
                            _ => {
                                for i in 0..queries {
                                    value_tile::<I, 1>(isa, values, room, tokens / LANES, [i, d], out);
                                }
                            }
                        }
                    }
                }
            }
        },
    );
}

impl Weights {
    /// Weights times the scales of block b, split and laid out as codes meet them.
    #[inline(always)]
    fn scale<I: Isa>(&mut self, isa: I, values: &Codes, weights: &[f32], tokens: usize, b: usize) {
        let blocks = values.head_dim / values.block;
        self.scaled.resize(weights.len(), 0.0);
        let rows = weights.chunks_exact(tokens).zip(self.scaled.chunks_exact_mut(tokens));
        for (weights, scaled) in rows {
            let vectors = weights.as_chunks().0.iter().zip(scaled.as_chunks_mut().0).enumerate();
            for (g, (weights, scaled)) in vectors {
                isa.store(isa.mul(isa.load(weights), isa.load(&values.scales[g * blocks + b])), scaled);
            }
        }
        self.split.rows(isa, &self.scaled, tokens, tokens, false);
        self.spread.resize(weights.len() / LANES, [[0; 64]; 2]);
        for (g, spread) in self.spread.iter_mut().enumerate() {
            let bytes = [&self.split.high, &self.split.low];
            for (bytes, spread) in bytes.into_iter().zip(spread) {
                let bytes = bytes[g * LANES..].first_chunk().expect("sixteen tokens");
                isa.store_n(isa.spread_words(bytes), spread);
            }
        }
    }
}

/// Q queries from the i-th on, and sixteen channels.
#[inline(always)]
fn value_tile<I: Isa, const Q: usize>(
    isa: I,
    values: &Codes,
    room: &Weights,
    groups: usize,
    [first, d]: [usize; 2],
    out: &mut [f32],
) {
    let words = values.head_dim / 4;
    let mut spread: [&[[[u8; 64]; 2]]; Q] = [&[]; Q];
    for i in 0..Q {
        spread[i] = &room.spread[(first + i) * groups..][..groups];
    }
    let mut highs = [[isa.splat_n(0); 4]; Q];
    let mut lows = [[isa.splat_n(0); 4]; Q];
    let codes = &values.words[d / 4..];
    for g in 0..groups {
        let codes: &[[u8; 64]; 4] = codes[g * words..].first_chunk().expect("sixteen channels");
        for i in 0..Q {
            let (high, low) = (isa.load_n(&spread[i][g][0]), isa.load_n(&spread[i][g][1]));
            for j in 0..4 {
                let codes = isa.load_n(&codes[j]);
                highs[i][j] = isa.dot4_wide(highs[i][j], codes, high);
                lows[i][j] = isa.dot4_wide(lows[i][j], codes, low);
            }
        }
    }
    for i in 0..Q {
        let mut whole = [isa.splat_n(0); 4];
        for j in 0..4 {
            whole[j] = joined(isa, highs[i][j], lows[i][j]);
        }
        // Sums with the codes' offset may wrap, and what they are without it does not.
        let offset = isa.splat_n(values.offset.wrapping_mul(room.split.totals[first + i]));
        let mut sums = isa.to_f32(isa.sub_n(isa.add_quarters(whole), offset));
        if values.strided {
            sums = isa.transpose_lanes(sums);
        }
        let out = out[(first + i) * values.head_dim + d..].first_chunk_mut().expect("sixteen channels");
        isa.store(isa.fma(sums, isa.splat(room.split.units[first + i]), isa.load(out)), out);
    }
}
