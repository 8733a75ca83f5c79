//! Products of many tokens in tiles ([`torque_simd::tiles`]): where a processor multiplies matrices.
//!
//! ```text
//! out[t][n] = Σ_k bf16(x[t, k]) · bf16(w[n, k])        sums in f32
//! ```
//!
//! Activations are rounded to bfloat16 once for all matrices that read them. Weights are decoded to bfloat16, some rows and columns
//! at a time, and used for all tokens. Either rounding is within 2⁻⁸ of a number, so a product is within 2⁻⁷·Σ|w x| and the rounding of
//! its sums. Scales of groups are in the decoded weights: whole-number tiles would have to leave their registers for every group.
//!
//! # Bytes and operations
//!
//! A product of two tiles, 16 × 16 × 32 multiply-adds, takes 16 cycles, and loading a tile of 1 KB 8 from the first-level cache. A
//! square of 2 × 2 products loads four tiles in 64 cycles, half of what the load ports could. Those of 32 tokens and `DEPTH`
//! tiles of columns, 32 KB, stay in the first-level cache; those of 32 rows come from the second-level one at 32 bytes a cycle. Sums
//! of a square, 4 KB, are loaded and stored once in `DEPTH` · 64 cycles.
//!
//! A weight costs tokens/512 cycles of multiplication. Decoding one takes about a third of a cycle by count: sixteen rows lie in the
//! lanes of a vector, where 64 weights take some 45 instructions. With [`TOKENS`] tokens that is 0.6 cycles together. Products in whole
//! numbers take one at least, for they do 128 multiply-adds a cycle at most.
//!
//! Sums go on where the columns before left them, in the same order however rows and columns are cut. So results depend neither
//! on that nor on the other tokens.

use crate::format::{Blocks, Format};
use crate::gemm;
use torque_simd::tiles::{Amx, Sums, Tile, Tiles};
use torque_simd::{Isa, LANES, Level};

/// Tokens of a pass from which weights are multiplied in tiles. Decoding pays only for many; and the tokens of sequences that are
/// decoded together, at most 64, must not meet another rounding than each meets alone.
pub const TOKENS: usize = 128;

/// Columns of a tile.
pub const COLUMNS: usize = 32;

/// Tiles of columns that are decoded at once: whole blocks of every format.
const DEPTH: usize = 16;
const _: () = assert!((DEPTH * COLUMNS).is_multiple_of(256));

/// Weights of a format.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// Encoded rows.
    pub rows: &'a [u8],
    /// Values of a row.
    pub columns: usize,
    /// [`decode`] of the format.
    pub decode: fn(&[u8], usize, usize, &mut [Tile]),
}

/// What [`multiply`] works in.
#[derive(Debug, Default)]
pub struct Room {
    /// Decoded weights: `[rows / 16, DEPTH]`.
    weights: Vec<Tile>,
    /// `[tokens / 32, rows / 32]` squares.
    sums: Vec<[[Sums; 2]; 2]>,
}

/// [`multiply`] with the tiles of some processor.
pub type Multiply = fn(Weights<'_>, &[Tile], usize, &mut Room, &mut [f32]);

/// [`multiply`] of a level, if it has tiles.
pub fn multiply_on(level: Level) -> Option<Multiply> {
    (level == Level::Amx).then_some(multiply::<Amx>)
}

/// Tiles of so many tokens: `[tokens / 16, columns / 32]`, an even number of tokens' tiles. Those of tokens that are missing hold
/// anything; nobody reads what comes of them.
pub fn len(tokens: usize, columns: usize) -> usize {
    tokens.div_ceil(2 * LANES) * 2 * (columns / COLUMNS)
}

/// Rounds `x`, sixteen tokens of so many activations or fewer, to a row of tiles.
pub fn round<I: Isa>(isa: I, x: &[f32], columns: usize, out: &mut [Tile]) {
    assert_eq!((out.len() * COLUMNS, x.len() % columns), (columns, 0), "whole tiles of whole tokens");
    isa.run(
        #[inline(always)]
        || {
            for (t, x) in x.chunks_exact(columns).enumerate() {
                for (tile, x) in out.iter_mut().zip(x.as_chunks().0) {
                    round_row(x, &mut tile.0[t]);
                }
            }
        },
    );
}

/// Token `from` of some becomes token `to` of others.
pub fn copy_token(tiles: &[Tile], from: usize, out: &mut [Tile], to: usize, columns: usize) {
    let of = |t: usize| t / LANES * (columns / COLUMNS)..(t / LANES + 1) * (columns / COLUMNS);
    for (out, tile) in out[of(to)].iter_mut().zip(&tiles[of(from)]) {
        out.0[to % LANES] = tile.0[from % LANES];
    }
}

/// `out[t * n + r]`, for n encoded rows of weights and all tokens.
pub fn multiply<T: Tiles>(w: Weights<'_>, x: &[Tile], tokens: usize, room: &mut Room, out: &mut [f32]) {
    let (rows, across) = (out.len() / tokens, w.columns / COLUMNS);
    let sixteen = w.rows.len() / rows * LANES;
    assert_eq!((x.len(), out.len()), (len(tokens, w.columns), tokens * rows), "shapes of x and out");
    let squares = rows.div_ceil(2 * LANES);
    room.weights.resize(squares * 2 * DEPTH, Tile::ZERO);
    room.sums.resize(tokens.div_ceil(2 * LANES) * squares, [[Sums::ZERO; 2]; 2]);
    let mut tiles = T::new().expect("the level has tiles");
    for k in (0..across).step_by(DEPTH) {
        let depth = DEPTH.min(across - k);
        for (rows, tiles) in w.rows.chunks(sixteen).zip(room.weights.chunks_exact_mut(depth)) {
            if rows.len() == sixteen {
                (w.decode)(rows, w.columns, k * COLUMNS, tiles);
            } else {
                // Fewer than sixteen rows are followed by zeros.
                let rows = [rows, &vec![0; sixteen - rows.len()]].concat();
                (w.decode)(&rows, w.columns, k * COLUMNS, tiles);
            }
        }
        for (m, sums) in room.sums.chunks_exact_mut(squares).enumerate() {
            let x = [2 * m, 2 * m + 1].map(|m| &x[m * across + k..][..depth]);
            for (w, sums) in room.weights.chunks_exact(2 * depth).zip(sums) {
                square(&mut tiles, x, w.split_at(depth).into(), k == 0, sums);
            }
        }
    }
    drop(tiles);
    for (t, out) in out.chunks_exact_mut(rows).enumerate() {
        let squares = &room.sums[t / (2 * LANES) * squares..][..squares];
        for (n, out) in out.chunks_mut(LANES).enumerate() {
            let sums = &squares[n / 2][t / LANES % 2][n % 2].0[t % LANES];
            out.copy_from_slice(&sums[..out.len()]);
        }
    }
}

/// Two by two products of rows of tiles, added to sums or, if they are the first, in their place.
#[inline(always)]
fn square<T: Tiles>(tiles: &mut T, x: [&[Tile]; 2], w: [&[Tile]; 2], first: bool, sums: &mut [[Sums; 2]; 2]) {
    if first {
        tiles.zero::<0>();
        tiles.zero::<1>();
        tiles.zero::<2>();
        tiles.zero::<3>();
    } else {
        tiles.load_sums::<0>(&sums[0][0]);
        tiles.load_sums::<1>(&sums[0][1]);
        tiles.load_sums::<2>(&sums[1][0]);
        tiles.load_sums::<3>(&sums[1][1]);
    }
    for ((x0, x1), (w0, w1)) in x[0].iter().zip(x[1]).zip(w[0].iter().zip(w[1])) {
        tiles.load::<4>(x0);
        tiles.load::<6>(w0);
        tiles.multiply_add::<0, 4, 6>();
        tiles.load::<7>(w1);
        tiles.multiply_add::<1, 4, 7>();
        tiles.load::<5>(x1);
        tiles.multiply_add::<2, 5, 6>();
        tiles.multiply_add::<3, 5, 7>();
    }
    tiles.store_sums::<0>(&mut sums[0][0]);
    tiles.store_sums::<1>(&mut sums[0][1]);
    tiles.store_sums::<2>(&mut sums[1][0]);
    tiles.store_sums::<3>(&mut sums[1][1]);
}

/// Decodes columns `k ..` of sixteen rows to a row of tiles, as pairs: of formats in whole numbers.
pub fn decode<F: Format, I: Isa>(isa: I, rows: &[u8], columns: usize, k: usize, out: &mut [Tile]) {
    for_blocks::<F, I>(
        isa,
        rows,
        columns,
        k,
        out,
        #[inline(always)]
        |blocks, row_bytes, out| {
            decode_lanes::<F, I>(isa, Blocks::new(blocks, row_bytes, F::BYTES), out);
        },
    );
}

/// As [`decode`], of formats that are read row by row.
pub fn decode_rotated<F: Format, I: Isa>(isa: I, rows: &[u8], columns: usize, k: usize, out: &mut [Tile]) {
    for_blocks::<F, I>(
        isa,
        rows,
        columns,
        k,
        out,
        #[inline(always)]
        |blocks, row_bytes, out| decode_rows::<F, I>(isa, blocks, row_bytes, out),
    );
}

/// Calls `decode(blocks, row_bytes, tiles)` for a block of each of sixteen rows, those every `row_bytes` of `blocks`.
#[inline(always)]
fn for_blocks<F: Format, I: Isa>(
    isa: I,
    rows: &[u8],
    columns: usize,
    k: usize,
    out: &mut [Tile],
    decode: impl Fn(&[u8], usize, &mut [Tile]),
) {
    let row_bytes = columns / F::BLOCK * F::BYTES;
    assert_eq!(rows.len(), LANES * row_bytes, "sixteen rows");
    assert!(k.is_multiple_of(F::BLOCK) && (out.len() * COLUMNS).is_multiple_of(F::BLOCK), "whole blocks");
    isa.run(
        #[inline(always)]
        || {
            for (b, out) in out.chunks_exact_mut(const { F::BLOCK / COLUMNS }).enumerate() {
                decode(&rows[(k / F::BLOCK + b) * F::BYTES..], row_bytes, out);
            }
        },
    );
}

/// A block of each of sixteen rows, a row a lane: a vector of pairs is a row of a tile.
#[inline(always)]
fn decode_lanes<F: Format, I: Isa>(isa: I, blocks: Blocks<'_>, out: &mut [Tile]) {
    // Signed bytes carry 128 in any case, so that none is negative.
    let (carried, offset) = match (F::WIDE, I::BIAS) {
        (true, 0) => (0x8080_8080u32 as i32, 128.0),
        (true, bias) => (0, f32::from(bias)),
        (false, _) => (0, f32::from(F::OFFSET)),
    };
    let mut affines = [(isa.splat(0.0), isa.splat(0.0)); 16];
    F::row_affines(
        isa,
        blocks,
        #[inline(always)]
        |g, scales, shifts| {
            let shifts = if F::SHIFTED { shifts } else { isa.splat(0.0) };
            affines[g] = (scales, isa.fma(scales, isa.splat(-offset), shifts));
        },
    );
    for part in 0..F::BLOCK / F::PART {
        F::row_codes(
            isa,
            blocks,
            part,
            #[inline(always)]
            |g, codes| {
                for j in 0..F::GROUP / 4 {
                    let column = g * F::GROUP + 4 * j;
                    let four = if carried == 0 { codes[j] } else { isa.xor(codes[j], isa.splat_n(carried)) };
                    let rows = &mut out[column / COLUMNS].0[column % COLUMNS / 2..][..2];
                    let first = [value(isa, four, affines[g]), value(isa, isa.shr::<8>(four), affines[g])];
                    isa.store_n(pairs(isa, first), &mut rows[0]);
                    let four = isa.shr::<16>(four);
                    let second = [value(isa, four, affines[g]), value(isa, isa.shr::<8>(four), affines[g])];
                    isa.store_n(pairs(isa, second), &mut rows[1]);
                }
            },
        );
    }
}

/// What the low byte of each lane stands for.
#[inline(always)]
fn value<I: Isa>(isa: I, code: I::N, (scales, shifts): (I::F, I::F)) -> I::F {
    isa.fma(isa.to_f32(isa.and(code, isa.splat_n(255))), scales, shifts)
}

/// A block of each of sixteen rows, one after the other; then transposed, pair by pair.
#[inline(always)]
fn decode_rows<F: Format, I: Isa>(isa: I, blocks: &[u8], row_bytes: usize, out: &mut [Tile]) {
    const { assert!(F::BLOCK == COLUMNS) };
    let mut rows = Tile::ZERO;
    for (r, row) in rows.0.iter_mut().enumerate() {
        let mut values = [0.0; COLUMNS];
        gemm::decode::<F, I>(isa, &blocks[r * row_bytes..][..F::BYTES], &mut values);
        round_row(&values, row);
    }
    for (i, out) in out[0].0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let pairs = isa.load_rows(rows.0.as_flattened(), 64, 16 * i);
        for j in 0..4 {
            isa.store_n(pairs[j], &mut out[j]);
        }
    }
}

/// Adding half a unit rounds to the nearest number, of two to the larger one. Infinite numbers stay so, and NaN too.
const HALF: u32 = 0x8000;

#[inline(always)]
fn round_row(x: &[f32; COLUMNS], row: &mut [u8; 64]) {
    for (x, to) in x.iter().zip(row.as_chunks_mut().0) {
        *to = ((x.to_bits().wrapping_add(HALF) >> 16) as u16).to_le_bytes();
    }
}

/// Rounded numbers, one of each in a lane.
#[inline(always)]
fn pairs<I: Isa>(isa: I, [first, second]: [I::F; 2]) -> I::N {
    let half = isa.splat_n(HALF as i32);
    let (first, second) = (isa.add_n(isa.to_bits(first), half), isa.add_n(isa.to_bits(second), half));
    isa.or(isa.shr::<16>(first), isa.and(second, isa.splat_n(0xffff_0000u32 as i32)))
}

#[cfg(test)]
mod tests;
