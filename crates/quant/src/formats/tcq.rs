//! turbo2_tcq, turbo3_tcq, turbo4_tcq: a rotated head and one scale, in a trellis code (KV cache).
//!
//! As with turbo, the group is divided by its length and rotated, and its coordinates are then nearly Gaussian. A value
//! still stores K bits, but its level is looked up with a window of L bits that begins with its own: the bits of a value
//! also choose the levels of those before it. Of all streams the encoder takes the one whose levels err least, which
//! Viterbi's algorithm finds: it is as if the codebook had 2^L levels, and not 2^K.
//!
//! ```text
//! all         0..2    scale f16
//!             K g/8   a stream of K bits a value, least significant first
//!                     value i = scale · level[bits K i .. K i + L]; bits beyond the end are zero
//!
//!             K   L   levels
//! turbo2_tcq  2   8      256
//! turbo3_tcq  3   9      512
//! turbo4_tcq  4   8      256
//! ```
//!
//! Levels are signed bytes, so that kernels of whole numbers need not round them. `examples/tcq_codebook.rs` trains them on
//! Gaussian numbers and writes the files.
//!
//! M. Marcellin, T. Fischer, «Trellis coded quantization of memoryless and Gauss–Markov sources», IEEE Transactions on
//! Communications 38, 1990; windows of one stream as states, and so decoding in any order, are QTIP's (A. Tseng et al.,
//! «QTIP: Quantization with Trellises and Incoherence Processing», 2024). The formats are those of spiritbuun's
//! buun-llama-cpp, which stores the L − K bits beyond the end and has other levels.

use super::turbo::{bounded, inverse_length, length, values};
use super::{f16_at, read_f16, write_f16};
use crate::format::{Blocks, Format, Rotation};
use crate::rotate;
use std::hint::black_box;
use torque_simd::{Isa, LANES};

/// 2.125 bits for groups of 128.
pub struct Turbo2Tcq;

/// 3.125 bits for groups of 128.
pub struct Turbo3Tcq;

/// 4.125 bits for groups of 128. Windows of 9 bits would err 6 % less and take twice as long to find.
pub struct Turbo4Tcq;

static TCQ2: Trellis<2, 256> = Trellis::new(include_bytes!("tcq2.i8"));
static TCQ3: Trellis<3, 512> = Trellis::new(include_bytes!("tcq3.i8"));
static TCQ4: Trellis<4, 256> = Trellis::new(include_bytes!("tcq4.i8"));

/// What the L − K bits beyond a value's own may be, at most. States that share those bits lead to the same states.
const GROUPS_MAX: usize = 64;

/// Coordinates are rounded to an eighth of the unit of levels,
const FINE: i32 = 8;

/// The levels of a trellis of K bits a value. A state is a window of L bits, the value's own symbol of K bits lowest; the
/// other bits are its group.
pub struct Trellis<const K: usize, const STATES: usize> {
    levels: [i8; STATES],
    floats: [f32; STATES],
    magnitudes: [u8; STATES],
    /// What a state costs, as two numbers of sixteen bits to be multiplied with a coordinate and a constant: −2 level and
    /// level². State `(high << (L - 2 K) | low) << K | symbol` is at `[low][high][symbol]`.
    pairs: [i32; STATES],
}

impl<const K: usize, const STATES: usize> Trellis<K, STATES> {
    /// The standard deviation of the coordinates that levels are made for: 3.5 of them fit a byte.
    pub const SIGMA: f32 = 36.0;
    /// What the bits beyond a value's own may be.
    const GROUPS: usize = STATES >> K;
    /// Costs leave as many bits for a symbol.
    const BELOW: u32 = if K == 4 { 4 } else { 3 };
    /// A symbol below a cost.
    const SYMBOL: i32 = (1 << Self::BELOW) - 1;
    /// The largest coordinate is such that, moved by those bits, it fits sixteen bits.
    const COORDINATE_MAX: f32 = ((1 << (15 - Self::BELOW)) - 1) as f32;

    /// A trellis of levels, signed bytes.
    pub const fn new(levels: &[u8; STATES]) -> Trellis<K, STATES> {
        assert!(STATES == Self::GROUPS << K && Self::GROUPS <= GROUPS_MAX && 2 <= K && K <= 4);
        let mut trellis = Trellis {
            levels: [0; STATES],
            floats: [0.0; STATES],
            magnitudes: [0; STATES],
            pairs: [0; STATES],
        };
        let mut state = 0;
        while state < STATES {
            let level = levels[state] as i8;
            assert!(level != 0 && level != -128, "a decoded vector has a length");
            trellis.levels[state] = level;
            trellis.floats[state] = level as f32;
            trellis.magnitudes[state] = level.unsigned_abs();
            let (group, symbol) = (state >> K, state % (1 << K));
            let (high, low) = (group / (Self::GROUPS >> K), group % (Self::GROUPS >> K));
            let level = level as i32;
            trellis.pairs[(low << K | high) << K | symbol] = (level * level) << 16 | (-2 * level) & 0xffff;
            state += 1;
        }
        trellis
    }

    /// The levels as bytes, plus a bias.
    const fn bytes(&self, bias: u8) -> [u8; STATES] {
        let mut bytes = [0; STATES];
        let mut i = 0;
        while i < STATES {
            bytes[i] = (self.levels[i] as u8).wrapping_add(bias);
            i += 1;
        }
        bytes
    }

    /// What the coordinates of a unit vector of so many values are multiplied by.
    fn widen(values: usize) -> f32 {
        ((values as f64).sqrt() * f64::from(Self::SIGMA * FINE as f32)) as f32
    }

    /// The state of value i.
    pub fn state(stream: &[u8], i: usize) -> usize {
        let byte = |i: usize| usize::from(*stream.get(i).unwrap_or(&0));
        let two = byte(K * i / 8) | byte(K * i / 8 + 1) << 8;
        two >> (K * i % 8) & (STATES - 1)
    }

    fn decode(&self, block: &[u8], y: &mut [f32]) {
        let scale = read_f16(block, 0);
        for (i, y) in y.iter_mut().enumerate() {
            *y = f32::from(self.levels[Self::state(&block[2..], i)]) * scale;
        }
    }

    fn encode(&self, x: &[f32], block: &mut [u8]) {
        let (norm, inverse) = length(x);
        let factor = inverse * Self::widen(x.len());
        // The least cost of a stream up to here, by the bits that follow.
        let mut best = [0i32; GROUPS_MAX];
        let mut costs = [0; STATES];
        let mut symbols = vec![[0; GROUPS_MAX]; x.len()];
        for (x, symbols) in x.iter().zip(&mut symbols) {
            let x = Self::coordinate(x * factor);
            for (state, (cost, level)) in costs.iter_mut().zip(&self.levels).enumerate() {
                let level = i32::from(*level);
                // (level − x)² without x², eight times, and moved by some bits. Only with NaN are there more than fit. The
                // symbol lies below: of equals, the first is the least.
                let more = ((FINE * level - 2 * x) * level) << Self::BELOW;
                *cost = best[state % Self::GROUPS].wrapping_add(more) | (state % (1 << K)) as i32;
            }
            let least = costs.chunks_exact(1 << K).map(|costs| costs.iter().fold(i32::MAX, |a, b| a.min(*b)));
            for ((best, symbol), least) in best.iter_mut().zip(symbols).zip(least) {
                (*best, *symbol) = (least & !Self::SYMBOL, (least & Self::SYMBOL) as usize);
            }
        }
        block.fill(0);
        // Zeros follow the last value.
        let (mut group, mut squares, cost) = (0, 0, best[0]);
        for (i, symbols) in symbols.iter().enumerate().rev() {
            let state = group << K | symbols[group];
            for bit in 0..K {
                let at = K * i + bit;
                block[2 + at / 8] |= ((state >> bit & 1) as u8) << (at % 8);
            }
            squares += i32::from(self.levels[state]).pow(2);
            group = state % Self::GROUPS;
        }
        write_f16(block, 0, Self::scale(norm, x.len(), squares, cost));
    }

    /// A coordinate, rounded. NaN is large.
    fn coordinate(x: f32) -> i32 {
        let x = if x < Self::COORDINATE_MAX { x } else { Self::COORDINATE_MAX };
        x.max(-Self::COORDINATE_MAX).round_ties_even() as i32
    }

    /// The scale, given the sum of the squares of the levels and the cost of the stream. One scale restores the vector's
    /// length, a slightly larger one its product with itself; the mean of both does least harm to a model: with turbo2_tcq
    /// KL divergence is 12 % and 6 % below that of either, and half that of the scale of least squares.
    fn scale(norm: f32, values: usize, squares: i32, cost: i32) -> f32 {
        // Of the coordinates and the levels; it is zero only for a vector that is.
        let product = (squares * (FINE / 2)).wrapping_sub(cost >> (Self::BELOW + 1)).max(1);
        let (of_length, of_product) = (1.0 / (squares as f32).sqrt(), Self::widen(values) / product as f32);
        bounded(norm * ((of_length + of_product) / 2.0))
    }

    /// Blocks of `values` values: what [`Format::encode_rotated`] makes of each, to the bit.
    #[inline(always)]
    pub fn encode_blocks<I: Isa>(&self, isa: I, x: &[f32], values: usize, out: &mut [u8]) {
        let bytes = 2 + K * values / 8;
        let (mut lanes, mut symbols) = (vec![[0.0; LANES]; values], vec![[[0; 64]; GROUPS_MAX / 8]; values]);
        let mut sixteen = x.chunks_exact(LANES * values).zip(out.chunks_exact_mut(LANES * bytes));
        for (x, out) in &mut sixteen {
            for (row, x) in x.chunks_exact(values).enumerate() {
                for (lanes, x) in lanes.iter_mut().zip(x) {
                    lanes[row] = *x;
                }
            }
            self.encode_sixteen(isa, &lanes, &mut symbols, out);
        }
        let done = x.len() / values / LANES * LANES;
        let rest = x[done * values..].chunks_exact(values).zip(out[done * bytes..].chunks_exact_mut(bytes));
        rest.for_each(|(x, block)| self.encode(x, block));
    }

    /// Sixteen blocks, one a lane. `symbols` is room for the symbols of all groups, four bits each: group
    /// `8 i + word` of a value has nibble i of a word, from the highest down with K = 3, and likewise in twos with K = 2. With
    /// K = 4 it is group `8 word + i`.
    #[inline(always)]
    fn encode_sixteen<I: Isa>(
        &self,
        isa: I,
        x: &[[f32; LANES]],
        symbols: &mut [[[u8; 64]; GROUPS_MAX / 8]],
        out: &mut [u8],
    ) {
        let mut norms = isa.splat(0.0);
        for x in x {
            let x = isa.load(x);
            norms = isa.add(norms, isa.mul(x, x));
        }
        let norms = lanes(isa, norms).map(f32::sqrt);
        let widen = Self::widen(x.len());
        let factors = isa.load(&norms.map(|norm| inverse_length(norm) * widen));
        // Below a group's cost lies the symbol of the states that come from it.
        let mut costs = [[isa.splat_n(0); GROUPS_MAX]; 2];
        let [mut best, mut next] = costs.each_mut();
        for group in 0..Self::GROUPS {
            best[group] = isa.splat_n((group % (1 << K)) as i32);
        }
        for (x, symbols) in x.iter().zip(&mut *symbols) {
            let x = isa.min(isa.mul(isa.load(x), factors), isa.splat(Self::COORDINATE_MAX));
            let x = isa.round(isa.max(x, isa.splat(-Self::COORDINATE_MAX)));
            let x = isa.and(isa.shl_by(x, Self::BELOW), isa.splat_n(0xffff));
            let x = isa.or(x, isa.splat_n(FINE << (16 + Self::BELOW)));
            let mut words = [isa.splat_n(0); GROUPS_MAX / 8];
            // A word takes eight symbols, or four with K = 2.
            let (lows, highs) = (Self::GROUPS >> K, usize::min(8, 1 << K));
            for (run, pairs) in self.pairs.chunks_exact(highs << K).enumerate() {
                // States of the groups `high << (L - 2 K) | low` come from the same groups.
                let (low, high) = (run % lows, run / lows * highs);
                let mut from = [best[0]; 16];
                from[..1 << K].copy_from_slice(&best[low << K..(low + 1) << K]);
                let mut packed = isa.splat_n(0);
                let to = next.iter_mut().enumerate().skip(high * lows + low).step_by(lows);
                // The compiler would unroll a loop whose length it knows, and run out of registers.
                for (pairs, (group, to)) in pairs.chunks_exact(1 << K).zip(to).take(black_box(highs)) {
                    let cost = |symbol: usize| isa.dot_pairs(from[symbol], x, isa.splat_n(pairs[symbol]));
                    let mut least = isa.min_n(isa.min_n(cost(0), cost(1)), isa.min_n(cost(2), cost(3)));
                    for i in 1..1 << (K - 2) {
                        let i = 4 * i;
                        let [a, b] = [isa.min_n(cost(i), cost(i + 1)), isa.min_n(cost(i + 2), cost(i + 3))];
                        least = isa.min_n(least, isa.min_n(a, b));
                    }
                    let symbol = isa.and(least, isa.splat_n(Self::SYMBOL));
                    packed = isa.or(isa.shl_by(packed, if K == 2 { 8 } else { 4 }), symbol);
                    let below = isa.splat_n((group % (1 << K)) as i32);
                    *to = isa.or(isa.and(least, isa.splat_n(!Self::SYMBOL)), below);
                }
                words[run % 8] = isa.or(words[run % 8], isa.shl_by(packed, 4 * (run / 8) as u32));
            }
            for (word, symbols) in words.into_iter().zip(symbols) {
                isa.store_n(word, symbols);
            }
            std::mem::swap(&mut best, &mut next);
        }
        // Zeros follow the last value.
        let costs = integers(isa, best[0]);
        let bytes = 2 + K * x.len() / 8;
        let (mut group, mut bits, mut squares) = (isa.splat_n(0), isa.splat_n(0), isa.splat_n(0));
        for (i, symbols) in symbols.iter().enumerate().rev() {
            let symbol = symbol_of::<I, K>(isa, symbols, group);
            let state = isa.or(isa.shl_by(group, K as u32), symbol);
            let level = isa.and(isa.lookup_halves(&self.magnitudes, state), isa.splat_n(0xff));
            squares = isa.dot_pairs(squares, level, level);
            bits = isa.or(isa.shl_by(bits, K as u32), symbol);
            group = isa.and(state, isa.splat_n(Self::GROUPS as i32 - 1));
            if i.is_multiple_of(8) {
                let mut words = [0; 64];
                isa.store_n(bits, &mut words);
                bits = isa.splat_n(0);
                for (word, block) in words.as_chunks::<4>().0.iter().zip(out.chunks_exact_mut(bytes)) {
                    block[2 + K * i / 8..][..K].copy_from_slice(&word[..K]);
                }
            }
        }
        let squares = integers(isa, squares);
        for (row, block) in out.chunks_exact_mut(bytes).enumerate() {
            write_f16(block, 0, Self::scale(norms[row], x.len(), squares[row], costs[row]));
        }
    }

    /// Levels of values `16 i .. 16 i + 16`.
    #[inline(always)]
    fn codes<I: Isa>(&self, isa: I, block: &[u8], i: usize) -> I::F {
        if K == 4 {
            let index = std::array::from_fn(|j| Self::state(&block[2..], 16 * i + j) as u8);
            return isa.gather(&self.floats, isa.widen_u8(&index));
        }
        let stream = &block[2 + 2 * K * i..];
        let mut bytes = [0; 8];
        let there = stream.len().min(8);
        bytes[..there].copy_from_slice(&stream[..there]);
        let bits = u64::from_le_bytes(bytes);
        isa.gather(&self.floats, isa.spread8::<K>(bits as u32, (bits >> (8 * K)) as u32))
    }

    /// [`Format::row_codes`] of groups of at least 64.
    #[inline(always)]
    fn row_codes<I: Isa>(
        isa: I,
        levels: &[u8; STATES],
        blocks: Blocks<'_>,
        mut put: impl FnMut(usize, &[I::N]),
    ) {
        let runs = values(blocks.block_bytes(), K) / 32;
        for run in 0..runs {
            // K words hold 32 values, whose last states end in the next word.
            let zero = isa.splat_n(0);
            let mut words = [zero; 5];
            for (i, word) in words.iter_mut().enumerate().take(K + usize::from(run + 1 < runs)) {
                *word = blocks.tile_word(isa, K * run + i);
            }
            let mut codes = [zero; 8];
            for j in 0..8 {
                // The states of four values, 3 K + L bits: at most 4 K + 6.
                let (word, bit) = (4 * K * j / 32, 4 * K * j % 32);
                let mut states = isa.shr_by(words[word], bit as u32);
                if bit + 4 * K + 6 > 32 {
                    states = isa.or(states, isa.shl_by(words[word + 1], 32 - bit as u32));
                }
                let every_other = |states: I::N| {
                    let second = isa.shl_by(states, 16 - 2 * K as u32);
                    let first = isa.and(states, isa.splat_n(STATES as i32 - 1));
                    isa.or(first, isa.and(second, isa.splat_n((STATES as i32 - 1) << 16)))
                };
                let even = isa.lookup_halves(levels, every_other(states));
                let odd = isa.lookup_halves(levels, every_other(isa.shr_by(states, K as u32)));
                codes[j] = isa.or(even, isa.shl::<8>(odd));
            }
            put(run, &codes);
        }
    }
}

#[inline(always)]
fn lanes<I: Isa>(isa: I, v: I::F) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    isa.store(v, &mut lanes);
    lanes
}

#[inline(always)]
fn integers<I: Isa>(isa: I, v: I::N) -> [i32; LANES] {
    let mut bytes = [0; 64];
    isa.store_n(v, &mut bytes);
    std::array::from_fn(|i| i32::from_le_bytes(bytes.as_chunks().0[i]))
}

/// Of the symbols that [`Trellis::encode_sixteen`] packed, those of a group a lane.
#[inline(always)]
fn symbol_of<I: Isa, const K: usize>(isa: I, symbols: &[[u8; 64]; GROUPS_MAX / 8], group: I::N) -> I::N {
    // The word of a group and its nibble, from the highest down.
    let (word, nibble) = (isa.and(group, isa.splat_n(7)), isa.shr::<3>(group));
    let (word, nibble, bits) = if K == 4 { (nibble, word, 1) } else { (word, nibble, 3) };
    let mut words = [group; GROUPS_MAX / 8];
    for (word, symbols) in words.iter_mut().zip(symbols).take(1 << bits) {
        *word = isa.load_n(symbols);
    }
    // Halve them by each bit of the word's number.
    for bit in (0..bits).rev() {
        let upper = isa.sub_n(isa.splat_n(0), isa.and(isa.shr_by(word, bit), isa.splat_n(1)));
        for i in 0..1 << bit {
            let differing = isa.and(isa.xor(words[i], words[i + (1 << bit)]), upper);
            words[i] = isa.xor(words[i], differing);
        }
    }
    let from_top = isa.xor(nibble, isa.splat_n(if K == 2 { 6 } else { 7 }));
    isa.and(isa.shr_each(words[0], isa.shl::<2>(from_top)), isa.splat_n((1 << K) - 1))
}

/// A format of so many bits a value, by its trellis.
macro_rules! trellis_format {
    ($format:ident, $name:literal, $aliases:expr, $trellis:ident: $bits:literal bits, $states:literal states, gain $gain:literal) => {
        impl Format for $format {
            const NAME: &'static str = $name;
            const ALIASES: &'static [&'static str] = &$aliases;
            const GGML_TYPE: Option<u32> = None;
            const BLOCK: usize = 128;
            const BYTES: usize = 2 + 128 * $bits / 8;
            const GROUP: usize = 128;
            const ROTATION: Rotation = Rotation::Head;
            const WEIGHTS: bool = false;
            const WIDE: bool = true;
            const PART: usize = 128;
            const COARSE: bool = true;
            const GAIN: f32 = $gain;
            const KV: bool = true;

            fn encode(x: &[f32], block: &mut [u8]) {
                let mut rotated: [f32; 128] = x.try_into().expect("`encode` takes groups of 128");
                rotate::wht_forward(&mut rotated);
                $trellis.encode(&rotated, block);
            }

            fn encode_rotated(x: &[f32], block: &mut [u8]) {
                $trellis.encode(x, block);
            }

            #[inline(always)]
            fn encode_blocks<I: Isa>(isa: I, x: &[f32], values: usize, out: &mut [u8]) {
                $trellis.encode_blocks(isa, x, values, out);
            }

            fn decode(block: &[u8], y: &mut [f32]) {
                $trellis.decode(block, y);
            }

            #[inline(always)]
            fn affine<I: Isa>(isa: I, block: &[u8], _: usize) -> (f32, f32) {
                (f16_at(isa, block, 0), 0.0)
            }

            #[inline(always)]
            fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
                $trellis.codes(isa, block, i)
            }

            #[inline(always)]
            fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, mut put: impl FnMut(usize, I::F, I::F)) {
                put(0, blocks.tile_scales(isa), isa.splat(0.0));
            }

            #[inline(always)]
            fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, _: usize, put: impl FnMut(usize, &[I::N])) {
                Trellis::<$bits, $states>::row_codes(isa, &const { $trellis.bytes(I::BIAS) }, blocks, put);
            }
        }
    };
}

trellis_format!(Turbo2Tcq, "turbo2_tcq", ["tbq2_tcq", "tcq2"], TCQ2: 2 bits, 256 states, gain 1.0200);
trellis_format!(Turbo3Tcq, "turbo3_tcq", ["tbq3_tcq", "tcq3"], TCQ3: 3 bits, 512 states, gain 1.0052);
trellis_format!(Turbo4Tcq, "turbo4_tcq", ["tbq4_tcq", "tcq4"], TCQ4: 4 bits, 256 states, gain 1.0014);
