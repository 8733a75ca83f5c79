//! Every kernel of every format on every instruction set, against scalar decoding and sums in f64.

use super::*;
use crate::attend::Part;
use crate::attend::whole::{Codes, Split, plane_bytes, tile, tiled, untile};
use crate::rotate::{self, Pcg64};
use crate::{FORMATS, FormatOps, Rotation};

/// Uniform in −1 .. 1.
fn noise(seed: u32, values: usize) -> Vec<f32> {
    let mut rng = Pcg64::seed(seed);
    (0..values).map(|_| rng.next_u32() as i32 as f32 / 2_147_483_648.0).collect()
}

/// Sums of products are within this, relative to the product of the lengths of both factors.
const TOLERANCE: f64 = 1e-6;

/// `actual[i * b + j]` = the product of row i of x and row j of w, `columns` wide.
#[track_caller]
fn check_products(what: &str, actual: &[f32], x: &[f32], w: &[f32], columns: usize) {
    let length = |v: &[f32]| v.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    let mut actual = actual.iter();
    for (i, x) in x.chunks(columns).enumerate() {
        for (j, w) in w.chunks(columns).enumerate() {
            let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let error = (f64::from(*actual.next().expect("a product of every pair")) - exact).abs();
            assert!(error <= TOLERANCE * length(x) * length(w), "{what} [{i}, {j}]: {error:e} off {exact}");
        }
    }
    assert!(actual.next().is_none(), "{what}: as many products as pairs");
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The activations that meet weights of a format: rotated if need be.
fn activations(format: &FormatOps, x: &[f32]) -> Vec<f32> {
    let mut x = x.to_vec();
    if format.rotation == Rotation::Block32 {
        x.as_chunks_mut().0.iter_mut().for_each(rotate::block32_forward);
    }
    x
}

/// Encoded noise, and what it decodes to.
fn encoded_rows(format: &FormatOps, seed: u32, rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let row_bytes = format.row_bytes(cols);
    let (mut bytes, mut decoded) = (vec![0; rows * row_bytes], vec![0.0; rows * cols]);
    let noise = noise(seed, rows * cols);
    for (r, bytes) in bytes.chunks_mut(row_bytes).enumerate() {
        format.encode_row(&noise[r * cols..][..cols], bytes);
        format.decode_row(bytes, &mut decoded[r * cols..][..cols]);
    }
    (bytes, decoded)
}

#[test]
fn weights_times_vectors() {
    for format in FORMATS.iter().filter(|f| f.weights && !f.rounds_activations()) {
        let float = format.fits(1);
        let columns: &[usize] = if float { &[1, 15, 16, 100, 1024, 1100, 2048] } else { &[256, 1280, 2304] };
        for &cols in columns {
            let rows = 11;
            let (bytes, decoded) = encoded_rows(format, 1, rows, cols);
            for tokens in [1, 2, 3, 4, 5, 8, 13] {
                let x = noise(2, tokens * cols);
                let rotated = activations(format, &x);
                let mut first = None;
                for level in Level::all_available() {
                    let what = format!("{} {level:?} {rows} × {cols}, {tokens} tokens", format.name);
                    let kernels = (format.kernels)(level);
                    let mut out = vec![f32::NAN; tokens * rows];
                    (kernels.matvec)(&bytes, cols, &rotated, tokens, &mut out);
                    check_products(&what, &out, &x, &decoded, cols);

                    let mut panel = vec![f32::NAN; gemm::panel_len(rows, cols)];
                    let mut product = vec![f32::NAN; tokens * rows];
                    (kernels.matmul)(&bytes, cols, &rotated, tokens, &mut panel, &mut product);
                    assert_eq!(bits(&product), bits(&out), "{what}: matmul is matvec");
                    let first = first.get_or_insert_with(|| out.clone());
                    assert_eq!(bits(first), bits(&out), "{what}: the same on every instruction set");

                    let mut alone = vec![f32::NAN; rows];
                    let last = &rotated[(tokens - 1) * cols..];
                    (kernels.matvec)(&bytes, cols, last, 1, &mut alone);
                    assert_eq!(bits(&alone), bits(&out[(tokens - 1) * rows..]), "{what}: the last alone");
                }
            }
        }
    }
}

/// A page part of noise, and what it decodes to.
fn encoded_part(format: &FormatOps, seed: u32, tokens: usize, head_dim: usize) -> (Vec<u8>, Vec<f32>) {
    let (values, bytes) = format.head_block(head_dim);
    let noise = noise(seed, tokens * head_dim);
    let (mut part, mut decoded) = (Vec::new(), vec![0.0; tokens * head_dim]);
    for (x, y) in noise.chunks(values).zip(decoded.chunks_mut(values)) {
        let mut block = vec![0; bytes];
        (format.encode_rotated)(x, &mut block);
        (format.decode)(&block, y);
        part.extend(block);
    }
    (part, decoded)
}

/// The bytes as a part after which it is read again.
fn part(bytes: &[u8], tokens: usize, head_dim: usize) -> Part<'_> {
    Part { bytes, tokens, head_dim, next: bytes, ..Part::default() }
}

/// Rows become columns.
fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| x.chunks(columns).map(move |row| row[c])).collect()
}

#[test]
fn queries_attend_to_a_part() {
    for format in FORMATS.iter().filter(|f| f.kv) {
        for head_dim in [16, 48, 64, 80, 96, 112, 128, 192, 256] {
            for tokens in [2, 16, 38] {
                let (bytes, decoded) = encoded_part(format, 4, tokens, head_dim);
                for queries in [1, 2, 3, 4, 7, 8, 9, 16] {
                    let (q, weights) = (noise(5, queries * head_dim), noise(6, queries * tokens));
                    let start = noise(7, queries * head_dim);
                    let mut first = None;
                    for level in Level::all_available() {
                        let what =
                            format!("{} {level:?} {tokens} × {head_dim}, {queries} queries", format.name);
                        let (kernels, floats) = ((format.kernels)(level), SharedKernels::of(level));
                        let mut scores = vec![f32::NAN; queries * tokens];
                        (kernels.scores)(part(&bytes, tokens, head_dim), &q, &mut scores);
                        check_products(&what, &scores, &q, &decoded, head_dim);

                        let mut tile = vec![f32::NAN; tokens * head_dim];
                        (kernels.decode_tile)(part(&bytes, tokens, head_dim), &mut tile);
                        let mut tile_scores = vec![f32::NAN; queries * tokens];
                        let q = Matrix { values: &q, stride: head_dim, rows: queries };
                        let k = Matrix { values: &tile, stride: head_dim, rows: tokens };
                        (floats.product)(q, k, head_dim, &mut tile_scores);
                        check_products(&what, &tile_scores, q.values, &decoded, head_dim);

                        let mut out = vec![0.0; queries * head_dim];
                        (kernels.accumulate)(part(&bytes, tokens, head_dim), &weights, &mut out);
                        check_products(&what, &out, &weights, &transposed(&decoded, head_dim), tokens);
                        let mut tile_out = vec![0.0; queries * head_dim];
                        (floats.accumulate_tile)(&tile, tokens, head_dim, &weights, &mut tile_out);
                        assert_eq!(bits(&tile_out), bits(&out), "{what}: tiles give the same output");

                        let mut added = start.clone();
                        (kernels.accumulate)(part(&bytes, tokens, head_dim), &weights, &mut added);
                        let sums: Vec<f32> = start.iter().zip(&out).map(|(start, out)| start + out).collect();
                        assert_eq!(added, sums, "{what}: adds to what is there");

                        let results = [bits(&scores), bits(&tile_scores), bits(&out)];
                        let first = first.get_or_insert_with(|| results.clone());
                        assert_eq!(*first, results, "{what}: the same on every instruction set");
                    }
                }
            }
        }
    }
}

/// As above in whole numbers, where a format, head and number of tokens have them.
#[test]
fn queries_attend_to_a_part_in_whole_numbers() {
    for format in FORMATS.iter().filter(|f| f.kv) {
        let mut unpacked = [false; 2];
        let sizes = [16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 576].map(|head_dim| (head_dim, 16));
        for (head_dim, tokens) in
            sizes.into_iter().chain([(128, 128), (256, 48), (64, 40), (128, 512), (32, 1024)])
        {
            let (mut bytes, decoded) = encoded_part(format, 4, tokens, head_dim);
            let mut planes: Vec<Vec<u8>> = Vec::new();
            if tiled(format.rotation, tokens, head_dim) {
                let (block, block_bytes) = format.head_block(head_dim);
                let (rows, mut back) = (bytes.clone(), vec![0; bytes.len()]);
                planes.resize(format.planes.unwrap_or(0), vec![0; plane_bytes(tokens, head_dim)]);
                bytes.truncate(bytes.len() - planes.concat().len());
                let mut apart: Vec<_> = planes.iter_mut().map(Vec::as_mut_slice).collect();
                tile(&rows, block_bytes, head_dim / block, &mut bytes, &mut apart);
                let apart: Vec<_> = planes.iter().map(Vec::as_slice).collect();
                untile(&bytes, &apart, block_bytes, head_dim / block, &mut back);
                assert!(bytes != rows && back == rows, "{} {head_dim}", format.name);
            }
            let mut part = part(&bytes, tokens, head_dim);
            part.planes.iter_mut().zip(&planes).for_each(|(plane, bytes)| *plane = bytes);
            for queries in if tokens > 100 { vec![1, 2, 40] } else { vec![1, 2, 3, 4, 5, 9] } {
                // One large query and weight among small ones.
                let (mut q, mut weights) = (noise(5, queries * head_dim), noise(6, queries * tokens));
                (q[3], weights[2]) = (30.0, 30.0);
                let mut first = None;
                for level in Level::all_available() {
                    let what = format!("{} {level:?} {tokens} × {head_dim}, {queries} queries", format.name);
                    let (kernels, products) = ((format.kernels)(level), SharedKernels::of(level));
                    let mut codes = Codes::default();
                    let mut results = Vec::new();
                    if (kernels.unpack[0])(part, &mut codes) {
                        let mut scores = vec![f32::NAN; queries * tokens];
                        (products.scores)(&codes, &q, &mut Split::default(), &mut scores);
                        check_within(format, &what, &scores, &q, &decoded, head_dim);
                        results.push(bits(&scores));
                        unpacked[0] = true;
                    }
                    if (kernels.unpack[1])(part, &mut codes) {
                        let mut out = vec![0.0; queries * head_dim];
                        (products.accumulate)(&codes, &weights, &mut Split::default(), &mut out);
                        check_within(format, &what, &out, &weights, &transposed(&decoded, head_dim), tokens);
                        results.push(bits(&out));
                        unpacked[1] = true;
                    }
                    let first = first.get_or_insert_with(|| results.clone());
                    assert_eq!(*first, results, "{what}: the same on every instruction set");
                }
            }
        }
        let head = format.rotation == Rotation::Head;
        assert_eq!(unpacked, [!format.is_float(), head], "{}", format.name);
    }
}

/// [`check_products`] with room for 2⁻¹⁶ of the largest number of x, 1/254 if the format is [`Format::COARSE`], and
/// [`Format::CODE_ERROR`] of the largest of w.
#[track_caller]
fn check_within(format: &FormatOps, what: &str, actual: &[f32], x: &[f32], w: &[f32], columns: usize) {
    let largest = |v: &[f32]| v.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let sum = |v: &[f32]| v.iter().map(|v| f64::from(v.abs())).sum::<f64>();
    // The largest level of a block may be in any of them: that of all is more.
    let off = format.code_error * largest(w) * 2.0;
    let mut actual = actual.iter();
    for x in x.chunks(columns) {
        for w in w.chunks(columns) {
            let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let error = (f64::from(*actual.next().expect("a product of every pair")) - exact).abs();
            let split = sum(w) * f64::from(largest(x)) / if format.coarse { 254.0 } else { 65536.0 };
            let bound = 1.1 * (split + sum(x) * f64::from(off)) + 1e-5;
            assert!(error <= bound, "{what}: {error:e} > {bound:e} off {exact}");
        }
    }
}

#[test]
fn no_tokens_and_no_queries_are_fine() {
    for format in FORMATS.iter().filter(|f| f.kv) {
        for level in Level::all_available() {
            let kernels = (format.kernels)(level);
            let mut out = vec![1.0; 128];
            (kernels.scores)(Part { head_dim: 128, ..Part::default() }, &[0.0; 128], &mut []);
            (kernels.accumulate)(Part { head_dim: 128, ..Part::default() }, &[], &mut out);
            (kernels.decode_tile)(Part { head_dim: 128, ..Part::default() }, &mut []);
            assert_eq!(out, [1.0; 128]);
            let (bytes, _) = encoded_part(format, 8, 2, 128);
            (kernels.scores)(part(&bytes, 2, 128), &[], &mut []);
            (kernels.accumulate)(part(&bytes, 2, 128), &[], &mut []);
        }
    }
}

/// Nanoseconds of the fastest of many runs.
fn fastest(mut run: impl FnMut()) -> f64 {
    let time = |run: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e9
    };
    (0..300).map(|_| time(&mut run)).fold(f64::MAX, f64::min)
}

/// As many multiply-adds as a product of `chunks` chunks has, and nothing else.
fn plain_sum<I: Isa>(isa: I, x: &[[f32; 16]], times: usize) -> f32 {
    isa.run(
        #[inline(always)]
        || {
            let mut sums = [isa.splat(0.0); 4];
            for _ in 0..times {
                for four in x.as_chunks::<4>().0 {
                    for i in 0..4 {
                        let x = isa.load(&four[i]);
                        sums[i] = isa.fma(x, x, sums[i]);
                    }
                }
            }
            isa.sum(isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3])))
        },
    )
}

/// Where a closure or an array function is not inlined, its vectors go through memory and its instructions
/// are calls: forty times slower. A kernel decodes and adds up lanes too, hence the factor.
#[test]
#[cfg_attr(debug_assertions, ignore = "nothing is inlined in a debug build")]
fn kernels_are_inlined() {
    let (rows, cols, tokens) = (32, 1024, 8);
    for level in Level::all_available().into_iter().filter(|level| *level != Level::Scalar) {
        let x = noise(1, tokens * cols);
        let plain = dispatch!(level, |isa| fastest(|| {
            std::hint::black_box(plain_sum(isa, x[..cols].as_chunks().0, rows * tokens));
        }));
        let timed = ["f32", "f16", "q8_0", "q4_0", "turbo3", "turbo4_nested"];
        for format in FORMATS.iter().filter(|f| f.rounds_activations() || timed.contains(&f.name)) {
            let (name, kernels) = (format.name, (format.kernels)(level));
            let mut times = Vec::new();
            if format.rounds_activations() {
                let (bytes, _) = encoded_rows(format, 2, rows, cols);
                let mut rounded = Vec::from_iter((0..tokens).map(|_| Rounded::default()));
                x.chunks_exact(cols).zip(&mut rounded).for_each(|(x, to)| (kernels.round)(to, x));
                let mut out = vec![0.0; tokens * rows];
                times.push(("multiply", fastest(|| (kernels.multiply)(&bytes, cols, &rounded, &mut out))));
                let mut few = || {
                    for (rounded, out) in rounded.chunks_exact(1).zip(out.chunks_exact_mut(rows)) {
                        (kernels.multiply)(&bytes, cols, rounded, out);
                    }
                };
                times.push(("multiply by one", fastest(&mut few)));
                let mut tiles = vec![Tile::ZERO; cols / tiles::COLUMNS];
                let mut decode = || {
                    for rows in bytes.chunks_exact(16 * format.row_bytes(cols)) {
                        (kernels.decode_tiles)(rows, cols, 0, &mut tiles);
                    }
                };
                times.push(("decode_tiles", fastest(&mut decode)));
            } else if format.weights {
                let (bytes, _) = encoded_rows(format, 2, rows, cols);
                let (mut panel, mut out) = (vec![0.0; gemm::panel_len(rows, cols)], vec![0.0; tokens * rows]);
                times.push(("matvec", fastest(|| (kernels.matvec)(&bytes, cols, &x, tokens, &mut out))));
                times.push((
                    "matmul",
                    fastest(|| (kernels.matmul)(&bytes, cols, &x, tokens, &mut panel, &mut out)),
                ));
            }
            if timed.contains(&name) && format.kv {
                // The same number of products: eight queries, 256 tokens of 128 values.
                let (bytes, _) = encoded_part(format, 3, 256, 128);
                let (mut scores, mut out) = (vec![0.0; tokens * 256], vec![0.0; tokens * 128]);
                times.push((
                    "scores",
                    fastest(|| (kernels.scores)(part(&bytes, 256, 128), &x[..tokens * 128], &mut scores)),
                ));
                times.push((
                    "accumulate",
                    fastest(|| (kernels.accumulate)(part(&bytes, 256, 128), &scores, &mut out)),
                ));
                if format.rotation == Rotation::Head {
                    let mut blocks = vec![0; x.len() / 128 * format.bytes];
                    times.push(("encode", fastest(|| (kernels.encode)(&x, 128, &mut blocks))));
                }
            }
            for (kernel, time) in times {
                let factor = time / plain;
                println!("{name} {kernel} {level:?}: {factor:.1}");
                assert!(factor < 8.0, "{name} {kernel} {level:?} takes {factor:.1} times its multiply-adds");
            }
        }
    }
}
