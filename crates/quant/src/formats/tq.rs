//! tq3_1s and tq4_1s: 32 rotated weights, a codebook for N(0, 1), one scale for each half.
//!
//! ```text
//! both    0..2 scale of values 0–15 f16 · 2..4 scale of values 16–31 f16
//! tq3_1s  4..16 qs   for every eight values three bytes, value e at bits 3e of the 24-bit number
//! tq4_1s  4..20 qs   value 2j in the low nibble of byte j, value 2j + 1 in the high one
//! ```
//!
//! `scale · level` is the rotated weight ([`crate::rotate::block32_forward`]). `decode` rotates back;
//! kernels rotate the activations instead.

use super::{f16_at, read_f16, word, write_f16};
use crate::codebook::{Codebook, TQ3, TQ4};
use crate::format::{Format, Rotation};
use crate::rotate;
use torque_simd::Isa;

/// 4 bits.
pub struct Tq3_1s;

/// 5 bits.
pub struct Tq4_1s;

/// Multiples of the root mean square at which the search for the scales begins.
const STARTS: [f32; 9] = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5];

/// Rounds `b` to levels with one scale a half. Calls `visit(i, b, level, code)` for every value.
fn cells<const N: usize>(
    book: &Codebook<N>,
    b: &[f32; 32],
    scales: [f32; 2],
    mut visit: impl FnMut(usize, f32, f32, u8),
) {
    let inverse = scales.map(|d| if d > 1e-10 { 1.0 / d } else { 0.0 });
    for (i, b) in b.iter().enumerate() {
        let code = book.code(b * inverse[i / 16]);
        visit(i, *b, book.levels[usize::from(code)], code);
    }
}

/// Rotates, finds both scales, writes them, and hands over the codes.
fn encode<const N: usize>(book: &Codebook<N>, x: &[f32], block: &mut [u8], put: fn(&mut [u8], usize, u8)) {
    let mut b: [f32; 32] = x.try_into().expect("blocks of 32");
    rotate::block32_forward(&mut b);

    // The best common start for both halves.
    let (halves, _) = b.as_chunks::<16>();
    let rms = [0, 1].map(|half: usize| (halves[half].iter().fold(0.0, |sum, b| sum + b * b) / 16.0).sqrt());
    let (mut scales, mut least) = (rms, 1e30);
    for start in STARTS {
        let tried = rms.map(|rms| rms * start);
        let mut error = 0.0;
        cells(book, &b, tried, |i, b, level, _| {
            let difference = b - level * tried[i / 16];
            error += difference * difference;
        });
        if error < least {
            (least, scales) = (error, tried);
        }
    }

    // Least squares on the cells, six times.
    for _ in 0..6 {
        let (mut products, mut squares) = ([0.0; 2], [0.0; 2]);
        cells(book, &b, scales, |i, b, level, _| {
            products[i / 16] += b * level;
            squares[i / 16] += level * level;
        });
        for half in 0..2 {
            if squares[half] > 1e-10 {
                scales[half] = products[half] / squares[half];
            }
        }
    }

    block.fill(0);
    write_f16(block, 0, scales[0]);
    write_f16(block, 2, scales[1]);
    cells(book, &b, scales, |i, _, _, code| put(&mut block[4..], i, code));
}

fn decode<const N: usize>(book: &Codebook<N>, block: &[u8], y: &mut [f32], get: fn(&[u8], usize) -> u8) {
    let scales = [read_f16(block, 0), read_f16(block, 2)];
    let mut b: [f32; 32] =
        std::array::from_fn(|i| book.levels[usize::from(get(&block[4..], i))] * scales[i / 16]);
    rotate::block32_inverse(&mut b);
    y.copy_from_slice(&b);
}

impl Format for Tq3_1s {
    const NAME: &'static str = "tq3_1s";
    const ALIASES: &'static [&'static str] = &["tq3"];
    const GGML_TYPE: Option<u32> = Some(45);
    const WHOLE: bool = false;
    const BLOCK: usize = 32;
    const BYTES: usize = 16;
    const GROUP: usize = 16;
    const ROTATION: Rotation = Rotation::Block32;

    fn encode(x: &[f32], block: &mut [u8]) {
        encode(&TQ3, x, block, |qs, i, code| {
            let bits = u16::from(code) << (3 * i % 8);
            qs[3 * i / 8] |= bits as u8;
            if bits > 255 {
                qs[3 * i / 8 + 1] |= (bits >> 8) as u8;
            }
        });
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        decode(&TQ3, block, y, |qs, i| {
            let next = qs.get(3 * i / 8 + 1).copied().unwrap_or(0);
            (u16::from_le_bytes([qs[3 * i / 8], next]) >> (3 * i % 8)) as u8 & 7
        });
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], i: usize) -> (f32, f32) {
        (f16_at(isa, block, 2 * i), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        const LEVELS: [f32; 16] = TQ3.lanes();
        // Six bytes are read as part of eight that lie in the block.
        let eight =
            u64::from_le_bytes(*block[4 + 4 * i..].first_chunk().expect("sixteen values")) >> (16 * i);
        isa.lookup8(isa.load(&LEVELS), isa.spread8::<3>(eight as u32, (eight >> 24) as u32))
    }
}

impl Format for Tq4_1s {
    const NAME: &'static str = "tq4_1s";
    const ALIASES: &'static [&'static str] = &["tq4"];
    const GGML_TYPE: Option<u32> = Some(46);
    const WHOLE: bool = false;
    const BLOCK: usize = 32;
    const BYTES: usize = 20;
    const GROUP: usize = 16;
    const ROTATION: Rotation = Rotation::Block32;

    fn encode(x: &[f32], block: &mut [u8]) {
        encode(&TQ4, x, block, |qs, i, code| qs[i / 2] |= code << (i % 2 * 4));
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        decode(&TQ4, block, y, |qs, i| qs[i / 2] >> (i % 2 * 4) & 15);
    }

    #[inline(always)]
    fn affine<I: Isa>(isa: I, block: &[u8], i: usize) -> (f32, f32) {
        (f16_at(isa, block, 2 * i), 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        const LEVELS: [f32; 16] = TQ4.lanes();
        isa.lookup(isa.load(&LEVELS), isa.spread8::<4>(word(block, 4 + 8 * i), word(block, 8 + 8 * i)))
    }
}
