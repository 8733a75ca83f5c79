//! Decoded tiles and products of every format, with emulated tiles, and with the processor's where it has them.

use super::*;
use crate::int8::Rounded;
use crate::{FORMATS, FormatOps, Rotation, rotate};
use torque_simd::Scalar;
use torque_simd::tiles::Emulated;

fn formats() -> impl Iterator<Item = &'static FormatOps> {
    FORMATS.iter().filter(|format| format.has_tiles())
}

/// Sums of six uniform numbers: nearly Gaussian.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut seed = seed;
    let mut uniform = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..6).map(|_| uniform()).sum()).collect()
}

/// Numbers in the domain of a format's codes.
fn rotated(format: &FormatOps, x: &[f32]) -> Vec<f32> {
    let mut x = x.to_vec();
    if format.rotation == Rotation::Block32 {
        x.as_chunks_mut().0.iter_mut().for_each(rotate::block32_forward);
    }
    x
}

/// Encoded noise, and what its codes stand for.
fn weights(format: &FormatOps, rows: usize, columns: usize) -> (Vec<u8>, Vec<f32>) {
    let row_bytes = format.row_bytes(columns);
    let (mut bytes, mut decoded) = (vec![0; rows * row_bytes], vec![0.0; rows * columns]);
    format.encode_row(&noise(1, rows * columns), &mut bytes);
    format.decode_row(&bytes, &mut decoded);
    (bytes, rotated(format, &decoded))
}

/// Tiles of tokens; what is there of missing ones must not matter.
fn rounded(x: &[f32], columns: usize) -> Vec<Tile> {
    let tokens = x.len() / columns;
    let mut tiles = vec![Tile([[0xff; 64]; 16]); len(tokens, columns)];
    for (x, tiles) in x.chunks(LANES * columns).zip(tiles.chunks_exact_mut(columns / COLUMNS)) {
        round(Scalar, x, columns, tiles);
    }
    tiles
}

fn number(bits: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bits)) << 16)
}

#[test]
fn numbers_round_to_the_nearest() {
    let row: [f32; COLUMNS] = std::array::from_fn(|i| match i {
        0 => f32::INFINITY,
        1 => f32::NEG_INFINITY,
        2 => f32::NAN,
        3 => 1.0 + 1.0 / 256.0,
        4 => -1.0 - 1.0 / 256.0,
        5 => 1.0 + 0.999 / 256.0,
        6 => 255.5,
        _ => -0.0,
    });
    let mut bytes = [0; 64];
    round_row(&row, &mut bytes);
    let found: Vec<f32> = bytes.as_chunks().0.iter().copied().map(number).collect();
    assert!(found[2].is_nan());
    assert_eq!(found[..2], row[..2]);
    assert_eq!(found[3..8], [1.0 + 1.0 / 128.0, -1.0 - 1.0 / 128.0, 1.0, 256.0, 0.0]);
    let first: [f32; LANES] = *row.first_chunk().unwrap();
    let second: [f32; LANES] = *row.last_chunk().unwrap();
    for (i, pair) in pairs(Scalar, [first, second]).into_iter().enumerate() {
        let of = |i: usize| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
        assert_eq!(pair as u32, u32::from(of(i)) | u32::from(of(LANES + i)) << 16);
    }
}

#[test]
fn tokens_are_rounded_the_same_on_every_instruction_set_and_copied() {
    let columns = 96;
    let x = noise(3, 21 * columns);
    let tiles = rounded(&x, columns);
    assert_eq!(tiles.len(), 2 * 3);
    for (t, x) in x.chunks_exact(columns).enumerate() {
        for (i, x) in x.iter().enumerate() {
            let bytes = tiles[t / 16 * 3 + i / 32].0[t % 16].as_chunks().0[i % 32];
            assert!((number(bytes) - x).abs() <= x.abs() / 256.0);
        }
    }
    for level in Level::all_available() {
        let mut found = vec![Tile::ZERO; 3];
        ((FORMATS[0].kernels)(level).round_tiles)(&x[..16 * columns], columns, &mut found);
        assert_eq!(found, tiles[..3], "{level:?}");
    }
    let mut others = vec![Tile::ZERO; 2 * 3];
    copy_token(&tiles, 18, &mut others, 3, columns);
    for i in 0..3 {
        assert_eq!(others[i].0[3], tiles[3 + i].0[2]);
    }
}

/// A tile holds the pairs of sixteen rows, each within half a unit of what `decode` says.
#[test]
fn weights_are_decoded_the_same_on_every_instruction_set() {
    for format in formats() {
        let columns = 512 + format.block;
        let (bytes, decoded) = weights(format, LANES, columns);
        for (k, count) in [(0, DEPTH), (512, format.block / COLUMNS)] {
            let mut first = None;
            for level in Level::all_available() {
                let mut tiles = vec![Tile([[0xff; 64]; 16]); count];
                ((format.kernels)(level).decode_tiles)(&bytes, columns, k, &mut tiles);
                for (r, w) in decoded.chunks_exact(columns).enumerate() {
                    let largest = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                    for (i, w) in w[k..][..count * COLUMNS].iter().enumerate() {
                        let row = &tiles[i / COLUMNS].0[i % COLUMNS / 2];
                        let found = number(row.as_chunks().0[2 * r + i % 2]);
                        let bound = w.abs() / 256.0 + 1e-6 * largest;
                        assert!(
                            (found - w).abs() <= bound,
                            "{} {level:?} [{r}, {i}]: {found} not {w}",
                            format.name
                        );
                    }
                }
                let first = first.get_or_insert_with(|| tiles.clone());
                assert!(*first == tiles, "{} {level:?}: the same on every instruction set", format.name);
            }
        }
    }
}

/// Every kind of tiles there is.
fn multipliers() -> Vec<(&'static str, Multiply)> {
    let mut all: Vec<(&str, Multiply)> = vec![("emulated", multiply::<Emulated>)];
    if Level::Amx.is_available() {
        all.extend(multiply_on(Level::Amx).map(|multiply| ("amx", multiply)));
    }
    all
}

/// Products are within 2⁻⁷·Σ|w x| of exact ones, and nearer to them than products of activations rounded to 8 bits; rows and tokens
/// have the same alone; and the processor gives what the emulation gives.
#[test]
fn products_are_within_the_rounding_of_both_factors() {
    let mut room = Room::default();
    for (name, multiply) in multipliers() {
        println!("{name}");
        for format in formats() {
            let columns = 512 + format.block;
            let kernels = (format.kernels)(Level::detect());
            let mut errors = [0.0; 3];
            // Whole squares, parts of one, and more than one.
            for (rows, tokens) in [(32, 32), (5, 3), (70, 49)] {
                let (bytes, decoded) = weights(format, rows, columns);
                let x = rotated(format, &noise(2, tokens * columns));
                let mut run = |bytes: &[u8], x: &[f32]| {
                    let tokens = x.len() / columns;
                    let w = Weights { rows: bytes, columns, decode: kernels.decode_tiles };
                    let mut out = vec![f32::NAN; tokens * bytes.len() / format.row_bytes(columns)];
                    multiply(w, &rounded(x, columns), tokens, &mut room, &mut out);
                    out
                };
                let out = run(&bytes, &x);
                let mut eight = vec![f32::NAN; tokens * rows];
                if format.rounds_activations() {
                    let mut rounded = Vec::from_iter((0..tokens).map(|_| Rounded::default()));
                    x.chunks_exact(columns).zip(&mut rounded).for_each(|(x, to)| (kernels.round)(to, x));
                    (kernels.multiply)(&bytes, columns, &rounded, &mut eight);
                }
                for (i, found) in out.iter().enumerate() {
                    let (w, x) = (&decoded[i % rows * columns..], &x[i / rows * columns..]);
                    let products = || w[..columns].iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (exact, size): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
                    let error = f64::from(*found) - exact;
                    assert!(error.abs() <= size / 127.0, "{} {rows}×{tokens} [{i}]: {error}", format.name);
                    let of_eight = f64::from(eight[i]) - exact;
                    errors = [
                        errors[0] + error * error,
                        errors[1] + of_eight * of_eight,
                        errors[2] + exact * exact,
                    ];
                }
                let alone = run(&bytes, &x[(tokens - 1) * columns..]);
                assert_eq!(
                    alone,
                    out[(tokens - 1) * rows..],
                    "{} {rows}×{tokens}: a token alone",
                    format.name
                );
                let last = run(&bytes[(rows - 1) * format.row_bytes(columns)..], &x);
                let of_last: Vec<f32> = out.chunks_exact(rows).map(|out| out[rows - 1]).collect();
                assert_eq!(last, of_last, "{} {rows}×{tokens}: a row alone", format.name);
                let w = Weights { rows: &bytes, columns, decode: kernels.decode_tiles };
                let mut emulated = vec![f32::NAN; out.len()];
                super::multiply::<Emulated>(w, &rounded(&x, columns), tokens, &mut room, &mut emulated);
                assert_eq!(emulated, out, "{} {rows}×{tokens}: {name}", format.name);
            }
            let [ours, eight, size] = errors;
            println!(
                "{:8} {:.6} of a product, {:.6} with 8 bits",
                format.name,
                (ours / size).sqrt(),
                (eight / size).sqrt()
            );
            assert!(eight.is_nan() || ours < eight, "{}: products in whole numbers are nearer", format.name);
        }
    }
}

/// More columns than are decoded at once, in sums that go on.
#[test]
fn sums_do_not_depend_on_how_columns_are_cut() {
    let (rows, tokens, columns) = (16, 2, 32 * 32);
    let format = crate::by_name("q8_0").unwrap();
    let (bytes, _) = weights(format, rows, columns);
    let decode = (format.kernels)(Level::detect()).decode_tiles;
    let x = noise(2, tokens * columns);
    let mut out = vec![f32::NAN; tokens * rows];
    let tiles = rounded(&x, columns);
    multiply::<Emulated>(
        Weights { rows: &bytes, columns, decode },
        &tiles,
        tokens,
        &mut Room::default(),
        &mut out,
    );
    let mut w = vec![Tile::ZERO; 32];
    decode(&bytes, columns, 0, &mut w);
    let (mut whole, mut registers) = (Sums::ZERO, Emulated::new().unwrap());
    registers.zero::<0>();
    for (x, w) in tiles.iter().zip(&w) {
        registers.load::<1>(x);
        registers.load::<2>(w);
        registers.multiply_add::<0, 1, 2>();
    }
    registers.store_sums::<0>(&mut whole);
    assert_eq!(out, whole.0[..tokens].concat());
}
