//! Speed of the kernels of every format: `cargo run --release --example kernels [filter …]`.
//!
//! Filters are parts of a format's or an instruction set's name. Columns of GB/s count encoded bytes;
//! compare them with the read bandwidth printed first. Every number is the best of many short runs, so
//! it says what the code can do, not what a busy machine leaves of it.

use std::hint::black_box;
use std::time::{Duration, Instant};
use torque_quant::gemm::{self, Matrix};
use torque_quant::int8::Rounded;
use torque_quant::{FORMATS, FloatKernels, FormatOps};
use torque_simd::Level;

/// Time spent on one number.
const PATIENCE: Duration = Duration::from_millis(60);

/// Seconds of the fastest run.
fn best(mut run: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::MAX);
    while start.elapsed() < PATIENCE {
        let run_start = Instant::now();
        run();
        best = best.min(run_start.elapsed().as_secs_f64());
    }
    best
}

/// Values that decode to nothing special, in any format.
fn encoded(format: &FormatOps, values: usize, head_dim: Option<usize>) -> Vec<u8> {
    let (block, bytes) = head_dim.map_or((format.block, format.bytes), |dim| format.head_block(dim));
    let x: Vec<f32> = (0..block).map(|i| ((i * 37 + 11) % 64) as f32 / 32.0 - 1.0).collect();
    let mut one = vec![0; bytes];
    (format.encode_rotated)(&x, &mut one);
    one.repeat(values / block)
}

/// Reads memory of 512 MB, on one thread and on two: what decoding is measured against.
fn read_bandwidth() {
    let memory = vec![1u64; 64 << 20];
    for threads in [1, 2] {
        let part = memory.len() / threads;
        let seconds = (0..5)
            .map(|_| {
                let start = Instant::now();
                std::thread::scope(|scope| {
                    for part in memory.chunks(part) {
                        scope.spawn(move || black_box(part.iter().fold(0u64, |sum, x| sum.wrapping_add(*x))));
                    }
                });
                start.elapsed().as_secs_f64()
            })
            .fold(f64::MAX, f64::min);
        println!("read, {threads} thread(s): {:.1} GB/s", memory.len() as f64 * 8.0 / seconds / 1e9);
    }
}

/// Multiply-adds of one core, by a product of matrices that fit its first-level cache.
fn weights(format: &FormatOps, level: Level) {
    let kernels = (format.kernels)(level);
    print!("{:8} {:7}", format.name, level.name());
    let (cols, rows) = (2048, 256);
    let bytes = encoded(format, rows * cols, None);
    let mut panel = vec![0.0; gemm::panel_len(rows, cols)];
    let many = bytes.repeat((256 << 20) / bytes.len());
    for (tokens, rows) in [(1, &bytes), (1, &many), (4, &bytes), (4, &many), (512, &bytes)] {
        let x: Vec<f32> = (0..cols * tokens).map(|i| (i % 61) as f32 - 30.0).collect();
        let mut rounded = Vec::from_iter((0..tokens).map(|_| Rounded::default()));
        x.chunks(cols).zip(&mut rounded).for_each(|(x, rounded)| (kernels.round)(rounded, x));
        let mut out = vec![0.0; rows.len() / format.row_bytes(cols) * tokens];
        let seconds = best(|| match (format.rounds_activations(), tokens) {
            (true, _) => (kernels.multiply)(black_box(rows), cols, &rounded, black_box(&mut out)),
            (_, 1..=8) => (kernels.matvec)(black_box(rows), cols, &x, tokens, black_box(&mut out)),
            _ => (kernels.matmul)(black_box(rows), cols, &x, tokens, &mut panel, black_box(&mut out)),
        });
        print!(" | {tokens}: {:5.1} GB/s", rows.len() as f64 / seconds / 1e9);
        if tokens > 4 {
            print!(", {:5.1} GFLOP/s", 2.0 * (cols * out.len()) as f64 / seconds / 1e9);
        }
    }
    println!();
}

fn cache(format: &FormatOps, level: Level) {
    let (kernels, floats) = ((format.kernels)(level), FloatKernels::of(level));
    for head_dim in [128, 64] {
        print!("{:8} {:7} {head_dim:3}", format.name, level.name());
        let tokens = 128;
        let part = encoded(format, tokens * head_dim, Some(head_dim));
        for queries in [1, 4, 8] {
            let (q, mut scores) = (vec![1.0; queries * head_dim], vec![0.0; queries * tokens]);
            let k = best(|| (kernels.scores)(black_box(&part), tokens, head_dim, &q, black_box(&mut scores)));
            let mut out = vec![0.0; queries * head_dim];
            let v = best(|| {
                (kernels.accumulate)(black_box(&part), tokens, head_dim, &scores, black_box(&mut out))
            });
            let speed = |seconds: f64| part.len() as f64 / seconds / 1e9;
            print!(" | {queries}: K {:5.1} V {:5.1} GB/s", speed(k), speed(v));
        }
        let queries = 256;
        let mut tile = vec![0.0; tokens * head_dim];
        let decode = best(|| (kernels.decode_tile)(black_box(&part), tokens, head_dim, black_box(&mut tile)));
        let (q, mut scores) = (vec![1.0; queries * head_dim], vec![0.0; queries * tokens]);
        let k = best(|| {
            let q = Matrix { values: &q, stride: head_dim, rows: queries };
            let k = Matrix { values: &tile, stride: head_dim, rows: tokens };
            (floats.product)(q, k, head_dim, black_box(&mut scores));
        });
        let mut out = vec![0.0; queries * head_dim];
        let v = best(|| (floats.accumulate_tile)(&tile, tokens, head_dim, &scores, black_box(&mut out)));
        let speed = |seconds: f64| 2.0 * (queries * tokens * head_dim) as f64 / seconds / 1e9;
        println!(
            " | decode {:4.1} µs, {queries}: K {:5.1} V {:5.1} GFLOP/s",
            decode * 1e6,
            speed(k),
            speed(v)
        );
    }
}

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).collect();
    let wanted =
        |names: [&str; 2]| filters.iter().all(|f| names.iter().any(|name| name.contains(f.as_str())));
    read_bandwidth();
    for level in Level::all_available() {
        let formats: Vec<_> = FORMATS.iter().filter(|f| wanted([f.name, level.name()])).collect();
        formats.iter().filter(|f| f.weights).for_each(|f| weights(f, level));
        formats.iter().filter(|f| f.kv).for_each(|f| cache(f, level));
    }
}
