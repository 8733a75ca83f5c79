//! Speed of attention: `cargo run --release -p torque-cpu --example attention [tokens [format …]]`.
//!
//! One layer, one sequence; one new token, then a prompt's 256. GB/s count the bytes of the cache, once,
//! however many query heads read them; GFLOPS the operations of scores and values. Every number is the best
//! of many short runs, so it says what the code can do, not what a busy machine leaves of it.

use std::time::{Duration, Instant};
use torque_backend::suite::{Random, from_host};
use torque_backend::{Attention, Backend, Segment};
use torque_cpu::Cpu;
use torque_kv::{KvLayer, Pages, Plan, Policy, Sequence};

/// Tokens of a prompt that arrive at once.
const CHUNK: usize = 256;
/// Time spent on one number.
const PATIENCE: Duration = Duration::from_millis(500);

/// Name, query heads and layer.
fn shapes() -> Vec<(&'static str, usize, KvLayer)> {
    let latent = KvLayer { heads: 1, head_dim: [576, 512], values_in_keys: true, window: None };
    let grouped = KvLayer { heads: 8, head_dim: [128, 128], values_in_keys: false, window: None };
    let latent = [16, 32, 64, 128].map(|heads| ("latent", heads, latent));
    latent.into_iter().chain([("grouped", 32, grouped)]).collect()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let tokens = arguments.next().map_or(4096, |n| n.parse().expect("a number of tokens"));
    let mut formats: Vec<String> = arguments.collect();
    if formats.is_empty() {
        formats = ["f16", "q8_0", "turbo4", "turbo3", "turbo2"].map(String::from).into();
    }
    let backend = Cpu::new(None, None).expect("no instruction set was asked for");
    println!("{} tokens, {} threads, {}", tokens, backend.threads(), backend.device());
    for (name, heads, layer) in shapes() {
        for format in &formats {
            let plan =
                Plan::new(&Policy::uniform(format, format), &[layer]).expect("every format has the size");
            print!("{name:8} {heads:3} heads {format:7}");
            for rows in [1, CHUNK] {
                let (seconds, bytes) = attention(&backend, &plan, heads, tokens, rows);
                let flops = 2 * rows * (tokens - rows / 2) * heads * layer.head_dim.iter().sum::<usize>();
                print!(
                    " | {rows:3} rows {:8.3} ms {:6.2} GB/s {:6.1} GFLOPS",
                    seconds * 1e3,
                    bytes as f64 / seconds / 1e9,
                    flops as f64 / seconds / 1e9
                );
            }
            println!();
        }
    }
}

/// Seconds of the fastest run, and bytes of the cache that it reads.
fn attention(backend: &Cpu, plan: &Plan, heads: usize, tokens: usize, rows: usize) -> (f64, usize) {
    let layer = plan.layers[0].shape;
    let (mut store, mut pages) = (backend.store(plan, 1, CHUNK), Pages::default());
    let (mut sequence, mut random) = (Sequence::new(plan, 0), Random(1));
    while sequence.len() < tokens {
        let rows = CHUNK.min(tokens - sequence.len());
        let [k, v] =
            layer.head_dim.map(|width| from_host(backend, rows, &random.gausses(rows * layer.heads * width)));
        sequence.append(rows);
        backend.append(&mut store, 0, &Segment { rows: 0..rows, sequence: &sequence }, &k, &v);
        while let Some(span) = sequence.seal(plan, &mut pages) {
            backend.seal(&mut store, &sequence, span);
        }
    }
    let scale = 1.0 / (layer.head_dim[0] as f32).sqrt();
    let attention = Attention { layer: 0, heads, scale, softcap: None, sinks: None };
    let segment = [Segment { rows: 0..rows, sequence: &sequence }];
    let mut q = from_host(backend, rows, &random.gausses(rows * heads * layer.head_dim[0]));
    let mut out = from_host(backend, rows, &vec![0.0; rows * heads * layer.head_dim[1]]);
    let (start, mut best) = (Instant::now(), f64::MAX);
    while start.elapsed() < PATIENCE {
        let run = Instant::now();
        backend.attention(&mut store, &attention, &segment, &mut q, &mut out);
        best = best.min(run.elapsed().as_secs_f64());
    }
    (best, sequence.read_bytes(plan, &pages))
}
