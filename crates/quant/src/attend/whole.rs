//! Attention over one page part in whole numbers.
//!
//! A part is unpacked once to bytes, sixteen tokens or channels a vector: [`unpack`], the only step that knows a format. Then
//! any number of queries are multiplied with it, four bytes an instruction.
//!
//! ```text
//! scores      out[i][t] += Σ_d q[i, d]·code[t, d]·scale[t]          lanes are tokens, a lane's four bytes channels
//! accumulate  out[i][d] += Σ_t (w[i, t]·scale[t])·code[t, d]        lanes are channels, a lane's four bytes tokens
//! ```
//!
//! The other factor, q or w·scale, is rounded to a multiple of its largest magnitude / 32385 and split into two
//! bytes, `HIGH · high + low`, so that it errs by at most 2⁻¹⁶ of the largest. For [`Format::COARSE`] formats it is rounded to
//! one byte, 1/254 of the largest. Sums are exact. Codes are those of the format, except that levels of a codebook are
//! rounded to bytes: they err by [`Format::CODE_ERROR`].

use super::Part;
use crate::format::{Blocks, Format, Rotation, offset};
use crate::math::{magnitude, unit};
use crate::{FormatOps, rotate};
use torque_simd::{Isa, LANES};

/// What a high byte counts: low ones are from −127 to 127.
const HIGH: i32 = 255;

/// Values of a block that formats hand out at once.
const RUN: usize = 32;

/// Tokens of the largest part: whole sums of more might not fit 32 bits.
const TOKENS_MAX: usize = 512;

/// A page part of one head, unpacked for [`scores`] or [`accumulate`].
#[derive(Debug, Default)]
pub struct Codes {
    /// Of keys `[tokens / 16][head_dim / 4]`: four channels of sixteen tokens. Of values `[head_dim / 16][tokens / 4]`: four
    /// tokens of sixteen channels.
    words: Vec<[u8; 64]>,
    /// `[tokens / 16][blocks]` of sixteen tokens.
    scales: Vec<[f32; LANES]>,
    /// Likewise; empty without shifts.
    shifts: Vec<[f32; LANES]>,
    tokens: usize,
    head_dim: usize,
    /// Channels that share a scale.
    block: usize,
    /// What codes carry.
    offset: i32,
    /// Whether four channels that follow each other are four apart: [`Format::STRIDED`].
    strided: bool,
    /// [`Format::COARSE`].
    coarse: bool,
}

/// Whether attention in whole numbers takes so many tokens.
fn whole_vectors(tokens: usize) -> bool {
    tokens.is_multiple_of(LANES) && tokens <= TOKENS_MAX
}

/// Whether a part of a format with that rotation lies in tiles: sixteen tokens' blocks of one rotation group, first their sixteen
/// scales (f16), then their first four bytes, their next four and so on. So what is in the lanes of a vector is together in
/// memory. Bit planes of nested formats are left out there, and lie in buffers of their own in the same order. Other parts,
/// those of unusual heads among them, hold a token's blocks one after the other.
pub fn tiled(rotation: Rotation, tokens: usize, head_dim: usize) -> bool {
    rotation == Rotation::Head && matches!(rotate::group(head_dim), 64 | 128) && whole_vectors(tokens)
}

/// Bytes of such a bit plane of a head.
pub fn plane_bytes(tokens: usize, head_dim: usize) -> usize {
    tokens * head_dim / 8
}

/// Bit planes of a part that lie apart from its tiles.
pub fn planes_apart(format: &FormatOps, tokens: usize, head_dim: usize) -> usize {
    if tiled(format.rotation, tokens, head_dim) { format.planes.unwrap_or(0) } else { 0 }
}

/// Copies a part of blocks of `block_bytes`, `blocks` a token, to tiles and planes.
pub fn tile(part: &[u8], block_bytes: usize, blocks: usize, tiles: &mut [u8], planes: &mut [&mut [u8]]) {
    for_tiles(part.len(), block_bytes, blocks, planes.len(), |block, plane, at, bytes| {
        let to = plane.map_or(&mut *tiles, |plane| &mut *planes[plane]);
        to[at..][..bytes].copy_from_slice(&part[block..][..bytes]);
    });
}

/// The inverse of [`tile`].
pub fn untile(tiles: &[u8], planes: &[&[u8]], block_bytes: usize, blocks: usize, part: &mut [u8]) {
    for_tiles(part.len(), block_bytes, blocks, planes.len(), |block, plane, at, bytes| {
        let from = plane.map_or(tiles, |plane| planes[plane]);
        part[block..][..bytes].copy_from_slice(&from[at..][..bytes]);
    });
}

/// Calls `copy` with where a run of bytes is in a part, in which plane if in one, where in its tiles or that plane, and how
/// many they are.
fn for_tiles(
    len: usize,
    block_bytes: usize,
    blocks: usize,
    planes: usize,
    mut copy: impl FnMut(usize, Option<usize>, usize, usize),
) {
    let words = (block_bytes - 2) / 4;
    // Two bits a value, and one for each plane.
    let of_plane = words / (2 + planes);
    let common = words - planes * of_plane;
    for i in 0..len / block_bytes {
        let (token, block, from) = (i / blocks, i % blocks, i * block_bytes);
        let (tile, lane) = (token / LANES * blocks + block, token % LANES);
        let scales = tile * LANES * (2 + 4 * common);
        copy(from, None, scales + 2 * lane, 2);
        for word in 0..common {
            copy(from + 2 + 4 * word, None, scales + 2 * LANES + 4 * (LANES * word + lane), 4);
        }
        for word in 0..planes * of_plane {
            let at = 4 * (LANES * (tile * of_plane + word % of_plane) + lane);
            copy(from + 2 + 4 * (common + word), Some(word / of_plane), at, 4);
        }
    }
}

/// Unpacks a part for [`scores`], or for [`accumulate`] if it holds `VALUES`. Says no, and does nothing, where it
/// cannot or would not pay: floats have no codes; a block may straddle two tokens, or be a rotation group of an
/// unusual size; tokens come in sixteens; and weights times the scales of small blocks of values are too many.
pub fn unpack<F: Format, I: Isa, const VALUES: bool>(
    isa: I,
    Part { bytes: part, planes, tokens, head_dim, next }: Part<'_>,
    out: &mut Codes,
) -> bool {
    const { assert!(!F::SHIFTED || F::ROTATION as u8 != Rotation::Head as u8, "values have no shifts") };
    if const { F::BYTES.is_multiple_of(F::BLOCK) || VALUES && F::ROTATION as u8 != Rotation::Head as u8 } {
        return false;
    }
    let (block, usual) = match F::ROTATION {
        Rotation::Head => (rotate::group(head_dim), tiled(F::ROTATION, tokens, head_dim)),
        _ => (F::BLOCK, head_dim.is_multiple_of(F::BLOCK) && whole_vectors(tokens)),
    };
    if !usual {
        return false;
    }
    let blocks = head_dim / block;
    let token_bytes = part.len() / tokens.max(1);
    let block_bytes = token_bytes / blocks;
    assert_eq!(part.len(), tokens * blocks * block_bytes, "{}: a whole part", F::NAME);
    (out.tokens, out.head_dim, out.block) = (tokens, head_dim, block);
    (out.strided, out.coarse) = (F::STRIDED, F::COARSE);
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
            for (g, part) in part.chunks_exact(LANES * token_bytes).enumerate() {
                for line in g * lines..(g + 1) * lines {
                    isa.prefetch(next, 64 * line);
                }
                for b in 0..blocks {
                    let rows = match F::ROTATION {
                        Rotation::Head => {
                            let plane = plane_bytes(LANES, block);
                            let at = (g * blocks + b) * plane;
                            let mut of_tile = planes;
                            for of_tile in of_tile.iter_mut().filter(|plane| !plane.is_empty()) {
                                *of_tile = &of_tile[at..][..plane];
                            }
                            Blocks::tile(&part[LANES * b * block_bytes..][..LANES * block_bytes], of_tile)
                        }
                        _ => Blocks::new(&part[b * block_bytes..], token_bytes, block_bytes),
                    };
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
                            let first = b * block + run * RUN;
                            if !VALUES {
                                let words = &mut out.words[g * words + first / 4..][..RUN / 4];
                                for j in 0..RUN / 4 {
                                    isa.store_n(codes[j], &mut words[j]);
                                }
                                return;
                            }
                            for half in 0..2 {
                                let mut four = [codes[0]; 4];
                                for j in 0..4 {
                                    four[j] = isa.transpose_bytes(codes[4 * half + j]);
                                }
                                let four = isa.transpose_quarters(four);
                                let words =
                                    &mut out.words[(first / LANES + half) * (tokens / 4) + 4 * g..][..4];
                                for j in 0..4 {
                                    isa.store_n(four[j], &mut words[j]);
                                }
                            }
                        },
                    );
                }
            }
        },
    );
    true
}

/// Numbers rounded, and split into one byte or two.
#[derive(Debug, Default)]
pub struct Split {
    /// `[rows][bytes][width]`: high bytes before low ones.
    bytes: Vec<u8>,
    /// `[rows, width / block]`: sums of the numbers that the bytes stand for, in units.
    totals: Vec<i32>,
    /// `[rows]`: what one unit is.
    units: Vec<f32>,
    layout: Option<Layout>,
}

/// How rows are split.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Layout {
    /// Values of a row.
    width: usize,
    /// Values whose sums are wanted: a multiple of 16.
    block: usize,
    /// Whether sixteen numbers are stored in the order of [`Format::STRIDED`].
    strided: bool,
    /// Whether they are rounded to one byte.
    coarse: bool,
}

impl Split {
    /// Forgets what was split: [`scores`] takes the queries to be the same until then.
    pub fn clear(&mut self) {
        self.layout = None;
    }

    /// Splits what `value` makes of sixteen numbers of x, given the place of the sixteen in their row.
    #[inline(always)]
    fn rows<I: Isa>(
        &mut self,
        isa: I,
        x: &[f32],
        layout: Layout,
        value: impl Fn(&[f32; LANES], usize) -> I::F,
    ) {
        if layout.coarse {
            self.split::<I, 1>(isa, x, layout, value);
        } else {
            self.split::<I, 2>(isa, x, layout, value);
        }
        self.layout = Some(layout);
    }

    #[inline(always)]
    fn split<I: Isa, const BYTES: usize>(
        &mut self,
        isa: I,
        x: &[f32],
        Layout { width, block, strided, .. }: Layout,
        value: impl Fn(&[f32; LANES], usize) -> I::F,
    ) {
        let (rows, blocks, chunks) = (x.len() / width, width / block, block / LANES);
        self.bytes.resize(rows * BYTES * width, 0);
        self.totals.resize(rows * blocks, 0);
        self.units.resize(rows, 0.0);
        let bytes = self.bytes.chunks_exact_mut(BYTES * width);
        let of_rows =
            x.chunks_exact(width).zip(bytes).zip(self.totals.chunks_exact_mut(blocks)).zip(&mut self.units);
        for (((x, bytes), totals), to_unit) in of_rows {
            let x = x.as_chunks().0;
            let mut largest = isa.splat(0.0);
            for (i, x) in x.iter().enumerate() {
                largest = isa.max(largest, magnitude(isa, value(x, i)));
            }
            let top = if BYTES == 1 { 127 } else { 127 * HIGH };
            let (unit, inverse) = unit(isa.max_lane(largest), top as f32);
            *to_unit = unit;
            let (high, low) = bytes.split_at_mut(width);
            let (high, low) = (high.as_chunks_mut().0, low.as_chunks_mut().0);
            for (b, to) in totals.iter_mut().enumerate() {
                let mut total = isa.splat(0.0);
                for i in b * chunks..(b + 1) * chunks {
                    let whole = isa.round(isa.mul(value(&x[i], i), isa.splat(inverse)));
                    let x = isa.to_f32(whole);
                    total = isa.add(total, x);
                    if BYTES == 1 {
                        high[i] = ordered(isa.narrow(whole), strided);
                    } else {
                        let whole = isa.round(isa.mul(x, isa.splat(1.0 / HIGH as f32)));
                        let rest = isa.fma(isa.to_f32(whole), isa.splat(-HIGH as f32), x);
                        high[i] = ordered(isa.narrow(whole), strided);
                        low[i] = ordered(isa.narrow(isa.round(rest)), strided);
                    }
                }
                *to = isa.sum(total) as i32;
            }
        }
    }

    /// Bytes `from .. from + 4 · words` of a row, in fours.
    #[inline(always)]
    fn words<const BYTES: usize>(
        &self,
        row: usize,
        byte: usize,
        width: usize,
        from: usize,
        words: usize,
    ) -> &[[u8; 4]] {
        self.bytes[(row * BYTES + byte) * width + from..][..4 * words].as_chunks().0
    }
}

/// Sixteen numbers, transposed four by four if strided.
#[inline(always)]
fn ordered(x: [u8; 16], strided: bool) -> [u8; 16] {
    let mut out = x;
    if strided {
        for i in 0..16 {
            out[i] = x[i % 4 * 4 + i / 4];
        }
    }
    out
}

/// Calls `tile::<I, BYTES, Q, G>(…, [query, group])` for all queries and groups of sixteen lanes, Q and G at a time: as many
/// sums as registers hold.
macro_rules! tiles {
    ($isa:ident: $I:ident, $coarse:expr, $queries:expr, $groups:expr, $tile:ident($($argument:expr),*)) => {
        match (const { $I::TILE.0 * $I::TILE.1 }, $coarse) {
            (16, true) => tiles!(@ 1, [1, 2, 4], 4, $isa: $I, $queries, $groups, $tile($($argument),*)),
            (16, false) => tiles!(@ 2, [1, 2, 2], 4, $isa: $I, $queries, $groups, $tile($($argument),*)),
            (_, true) => tiles!(@ 1, [1, 2, 4], 1, $isa: $I, $queries, $groups, $tile($($argument),*)),
            (_, false) => tiles!(@ 2, [1, 2, 2], 1, $isa: $I, $queries, $groups, $tile($($argument),*)),
        }
    };
    (@ $bytes:literal, [$one:literal, $two:literal, $most:literal], $wide:literal, $isa:ident: $I:ident, $queries:expr,
        $groups:expr, $tile:ident($($argument:expr),*)) => {
        for i in (0..$queries).step_by($most) {
            let mut g = 0;
            while g < $groups {
                let wide = $groups - g >= $wide;
                match ($queries - i, wide) {
                    ($one, true) => $tile::<$I, $bytes, $one, $wide>($isa, $($argument,)* [i, g]),
                    ($one, false) => $tile::<$I, $bytes, $one, 1>($isa, $($argument,)* [i, g]),
                    ($two, true) => $tile::<$I, $bytes, $two, $wide>($isa, $($argument,)* [i, g]),
                    ($two, false) => $tile::<$I, $bytes, $two, 1>($isa, $($argument,)* [i, g]),
                    (_, true) => $tile::<$I, $bytes, $most, $wide>($isa, $($argument,)* [i, g]),
                    (_, false) => $tile::<$I, $bytes, $most, 1>($isa, $($argument,)* [i, g]),
                }
                g += if wide { $wide } else { 1 };
            }
        }
    };
}

/// Whole sums of G vectors of codes and Q rows of as many words, without what the codes' offset adds.
#[inline(always)]
fn sums<I: Isa, const BYTES: usize, const Q: usize, const G: usize>(
    isa: I,
    codes: [&[[u8; 64]]; G],
    rows: [[&[[u8; 4]]; BYTES]; Q],
    offsets: [i32; Q],
) -> [[I::F; G]; Q] {
    let mut sums = [[[isa.splat_n(0); G]; BYTES]; Q];
    let words = codes[0].len();
    for j in 0..G {
        assert_eq!(codes[j].len(), words);
    }
    for i in 0..Q {
        for byte in 0..BYTES {
            assert_eq!(rows[i][byte].len(), words);
        }
    }
    for w in 0..words {
        for j in 0..G {
            let codes = isa.load_n(&codes[j][w]);
            for i in 0..Q {
                for byte in 0..BYTES {
                    let factor = isa.splat_n(i32::from_le_bytes(rows[i][byte][w]));
                    sums[i][byte][j] = isa.dot4_wide(sums[i][byte][j], codes, factor);
                }
            }
        }
    }
    let mut out = [[isa.splat(0.0); G]; Q];
    for i in 0..Q {
        for j in 0..G {
            // Sums with the offset may wrap, and what they are without it does not.
            let mut whole = sums[i][0][j];
            if BYTES == 2 {
                whole = isa.add_n(isa.sub_n(isa.shl::<8>(whole), whole), sums[i][BYTES - 1][j]);
            }
            out[i][j] = isa.to_f32(isa.sub_n(whole, isa.splat_n(offsets[i])));
        }
    }
    out
}

/// `out[i * tokens + t] = Σ_d q[i * head_dim + d] k[t, d]`, neither scaled nor masked, for keys that are unpacked.
/// `split` is that of these queries, or [clear](Split::clear).
pub fn scores<I: Isa>(isa: I, keys: &Codes, q: &[f32], split: &mut Split, out: &mut [f32]) {
    let (queries, tokens) = (q.len() / keys.head_dim, keys.tokens);
    assert_eq!((q.len(), out.len()), (queries * keys.head_dim, queries * tokens), "shapes of q and out");
    let layout =
        Layout { width: keys.head_dim, block: keys.block, strided: keys.strided, coarse: keys.coarse };
    isa.run(
        #[inline(always)]
        || {
            if split.layout != Some(layout) {
                split.rows(
                    isa,
                    q,
                    layout,
                    #[inline(always)]
                    |x, _| isa.load(x),
                );
            }
            tiles!(isa: I, keys.coarse, queries, tokens / LANES, score_tile(keys, split, out));
        },
    );
}

/// Q queries and G times sixteen tokens, from those on. Missing queries repeat the last one.
#[inline(always)]
fn score_tile<I: Isa, const BYTES: usize, const Q: usize, const G: usize>(
    isa: I,
    keys: &Codes,
    split: &Split,
    out: &mut [f32],
    [first, g]: [usize; 2],
) {
    let (dim, words, blocks) = (keys.head_dim, keys.block / 4, keys.head_dim / keys.block);
    let queries = split.units.len();
    let mut results = [[isa.splat(0.0); G]; Q];
    for b in 0..blocks {
        let mut codes: [&[[u8; 64]]; G] = [&[]; G];
        for j in 0..G {
            codes[j] = &keys.words[(g + j) * (dim / 4) + b * words..][..words];
        }
        let mut rows: [[&[[u8; 4]]; BYTES]; Q] = [[&[]; BYTES]; Q];
        let (mut offsets, mut totals) = ([0; Q], [0; Q]);
        for i in 0..Q {
            let row = (first + i).min(queries - 1);
            for byte in 0..BYTES {
                rows[i][byte] = split.words::<BYTES>(row, byte, dim, b * keys.block, words);
            }
            totals[i] = split.totals[row * blocks + b];
            offsets[i] = keys.offset.wrapping_mul(totals[i]);
        }
        let sums = sums::<I, BYTES, Q, G>(isa, codes, rows, offsets);
        for i in 0..Q {
            let unit = split.units[(first + i).min(queries - 1)];
            for j in 0..G {
                let scale = isa.mul(isa.load(&keys.scales[(g + j) * blocks + b]), isa.splat(unit));
                results[i][j] = isa.fma(sums[i][j], scale, results[i][j]);
                if !keys.shifts.is_empty() {
                    let shift = isa.load(&keys.shifts[(g + j) * blocks + b]);
                    results[i][j] = isa.fma(shift, isa.splat(unit * totals[i] as f32), results[i][j]);
                }
            }
        }
    }
    for i in 0..Q.min(queries - first) {
        for j in 0..G {
            let out = &mut out[(first + i) * keys.tokens + (g + j) * LANES..];
            isa.store(results[i][j], out.first_chunk_mut().expect("sixteen scores"));
        }
    }
}

/// Queries whose weights are split at once, so that they stay in the first-level cache.
const QUERIES: usize = 16;

/// `out[i * head_dim + d] += Σ_t weights[i * tokens + t] v[t, d]`, for values that are unpacked, with room to work in.
pub fn accumulate<I: Isa>(isa: I, values: &Codes, weights: &[f32], room: &mut Split, out: &mut [f32]) {
    let (dim, tokens) = (values.head_dim, values.tokens);
    let queries = out.len() / dim;
    assert_eq!((out.len(), weights.len()), (queries * dim, queries * tokens), "shapes of out and weights");
    let layout = Layout { width: tokens, block: tokens, strided: false, coarse: values.coarse };
    let blocks = dim / values.block;
    let chunks = weights.chunks(QUERIES * tokens).zip(out.chunks_mut(QUERIES * dim));
    isa.run(
        #[inline(always)]
        || {
            for (weights, out) in chunks {
                for b in 0..blocks {
                    room.rows(
                        isa,
                        weights,
                        layout,
                        #[inline(always)]
                        |x, g| isa.mul(isa.load(x), isa.load(&values.scales[g * blocks + b])),
                    );
                    let (room, queries) = (&*room, out.len() / dim);
                    tiles!(isa: I, values.coarse, queries, values.block / LANES, value_tile(values, room, b, out));
                }
            }
        },
    );
}

/// Q queries and G times sixteen channels, from those on. Missing queries repeat the last one.
#[inline(always)]
fn value_tile<I: Isa, const BYTES: usize, const Q: usize, const G: usize>(
    isa: I,
    values: &Codes,
    room: &Split,
    b: usize,
    out: &mut [f32],
    [first, g]: [usize; 2],
) {
    let (dim, tokens, words) = (values.head_dim, values.tokens, values.tokens / 4);
    let queries = room.units.len();
    let g = b * values.block / LANES + g;
    let mut codes: [&[[u8; 64]]; G] = [&[]; G];
    for j in 0..G {
        codes[j] = &values.words[(g + j) * words..][..words];
    }
    let mut rows: [[&[[u8; 4]]; BYTES]; Q] = [[&[]; BYTES]; Q];
    let mut offsets = [0; Q];
    for i in 0..Q {
        let row = (first + i).min(queries - 1);
        for byte in 0..BYTES {
            rows[i][byte] = room.words::<BYTES>(row, byte, tokens, 0, words);
        }
        offsets[i] = values.offset.wrapping_mul(room.totals[row]);
    }
    let sums = sums::<I, BYTES, Q, G>(isa, codes, rows, offsets);
    for i in 0..Q.min(queries - first) {
        let unit = isa.splat(room.units[first + i]);
        for j in 0..G {
            let sum = if values.strided { isa.transpose_lanes(sums[i][j]) } else { sums[i][j] };
            let out = out[(first + i) * dim + (g + j) * LANES..].first_chunk_mut().expect("sixteen channels");
            isa.store(isa.fma(sum, unit, isa.load(out)), out);
        }
    }
}
