//! What the machine allows: reading memory, and multiplying, each in a loop that does nothing else.

use super::fastest;
use serde::Serialize;
use std::hint::black_box;
use std::time::Instant;
use torque_cpu::{Pool, SPIN};
use torque_simd::tiles::{Amx, Tiles};
use torque_simd::{Isa, Level, dispatch};

/// What no kernel can be faster than.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// GB/s that one thread reads from memory.
    pub read: f64,
    /// Threads: the physical cores.
    pub threads: usize,
    /// GB/s that they read together.
    pub read_together: f64,
    /// What one thread multiplies.
    pub multiply: Vec<Multiply>,
}

/// Multiplications of one thread on an instruction set. A multiply-add is two operations.
#[derive(Clone, Debug, Serialize)]
pub struct Multiply {
    /// The instruction set.
    pub isa: &'static str,
    /// Fused multiply-adds of `f32`, GFLOP/s.
    pub float: f64,
    /// Products of bytes that are summed in 32 bits, 10⁹ operations a second.
    pub whole: f64,
    /// Products of tiles of bfloat16, GFLOP/s, if there are tiles.
    pub tiles: Option<f64>,
}

impl Limits {
    /// Measures them.
    pub(super) fn measure(levels: &[Level], threads: usize) -> Limits {
        Limits {
            read: Memory::fastest(1),
            threads,
            read_together: Memory::fastest(threads),
            multiply: levels
                .iter()
                .map(|&level| dispatch!(level, |isa| Multiply::measure(isa, level)))
                .collect(),
        }
    }
}

/// Memory that is much larger than caches, to be read: the machine's own speed, whatever the program's.
pub struct Memory {
    lines: Vec<[u8; 64]>,
    level: Level,
    pool: Pool,
}

impl Memory {
    /// Bytes of it.
    pub const BYTES: usize = 256 << 20;

    /// Takes the memory, and so many threads to read it.
    pub fn new(threads: usize) -> Memory {
        let lines = vec![[1; 64]; Memory::BYTES / 64];
        Memory { lines, level: Level::detect(), pool: Pool::new(threads) }
    }

    /// Reads all of it once; GB/s. Its threads sleep afterwards.
    pub fn read(&self) -> f64 {
        // By the end of the first part, threads of others have gone to sleep and ours have a core each.
        self.read_first(self.lines.len() / 4);
        let start = Instant::now();
        self.read_first(self.lines.len());
        let seconds = start.elapsed().as_secs_f64();
        std::thread::sleep(2 * SPIN);
        Memory::BYTES as f64 / seconds / 1e9
    }

    /// Reads the first lines, in pieces that the threads take as they can.
    fn read_first(&self, lines: usize) {
        const PIECE: usize = (1 << 20) / 64;
        self.pool.for_each(lines.div_ceil(PIECE), |piece| {
            let lines = &self.lines[piece * PIECE..lines.min((piece + 1) * PIECE)];
            dispatch!(self.level, |isa| sum(isa, lines));
        });
    }

    /// The fastest of several reads.
    fn fastest(threads: usize) -> f64 {
        let memory = Memory::new(threads);
        (0..10).map(|_| memory.read()).fold(0.0, f64::max)
    }
}

fn sum<I: Isa>(isa: I, lines: &[[u8; 64]]) {
    isa.run(
        #[inline(always)]
        || {
            let mut sums = [isa.splat_n(0); 8];
            for lines in lines.as_chunks::<8>().0 {
                for (sum, line) in sums.iter_mut().zip(lines) {
                    *sum = isa.add_n(*sum, isa.load_n(line));
                }
            }
            for sum in sums {
                black_box(isa.narrow(sum));
            }
        },
    );
}

/// Rounds of a loop that is timed.
const ROUNDS: usize = 10_000;

impl Multiply {
    fn measure<I: Isa>(isa: I, level: Level) -> Multiply {
        // As many sums as hide the latency of an instruction, and no more than there are registers: what that is,
        // the fastest tells.
        let float = [floats::<I, 4>, floats::<I, 8>, floats::<I, 12>].map(|run| speed(isa, run));
        let whole = [wholes::<I, 4>, wholes::<I, 8>, wholes::<I, 12>];
        Multiply {
            isa: level.name(),
            float: float.into_iter().fold(0.0, f64::max),
            whole: whole.map(|run| speed(isa, run)).into_iter().fold(0.0, f64::max),
            tiles: (level == Level::Amx).then(|| speed((), tiles::<Amx>)),
        }
    }
}

/// 10⁹ operations a second of a function that says how many it does.
fn speed<I: Copy>(isa: I, run: fn(I) -> usize) -> f64 {
    let mut operations = 0;
    let seconds = fastest(|| operations = run(isa));
    operations as f64 / seconds / 1e9
}

fn floats<I: Isa, const N: usize>(isa: I) -> usize {
    isa.run(
        #[inline(always)]
        || {
            let (a, b) = (isa.splat(black_box(0.5)), isa.splat(black_box(0.25)));
            let mut sums: [I::F; N] = [isa.splat(0.0); N];
            // Different ones, or they would be one.
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = isa.splat(black_box(i as f32));
            }
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = isa.fma(a, b, *sum);
                }
            }
            for sum in sums {
                black_box(isa.sum(sum));
            }
        },
    );
    2 * 16 * N * ROUNDS
}

fn wholes<I: Isa, const N: usize>(isa: I) -> usize {
    isa.run(
        #[inline(always)]
        || {
            let mut bytes: [I::N; N] = [isa.splat_n(0); N];
            for (i, bytes) in bytes.iter_mut().enumerate() {
                *bytes = isa.splat_n(black_box(i as i32));
            }
            let mut sums = bytes;
            for _ in 0..ROUNDS {
                // Hidden, or the products would be found once and added ever after.
                let other = isa.splat_n(black_box(0x01020304));
                for i in 0..N {
                    sums[i] = isa.dot4(sums[i], bytes[i], other);
                }
            }
            for sum in sums {
                black_box(isa.narrow(sum));
            }
        },
    );
    2 * 64 * N * ROUNDS
}

/// As many sums as there are registers besides the factors.
fn tiles<T: Tiles>((): ()) -> usize {
    let mut tiles = T::new().expect("the level has tiles");
    tiles.zero::<6>();
    tiles.zero::<7>();
    for _ in 0..ROUNDS / 10 {
        tiles.multiply_add::<0, 6, 7>();
        tiles.multiply_add::<1, 6, 7>();
        tiles.multiply_add::<2, 6, 7>();
        tiles.multiply_add::<3, 6, 7>();
        tiles.multiply_add::<4, 6, 7>();
        tiles.multiply_add::<5, 6, 7>();
    }
    2 * 16 * 16 * 32 * 6 * (ROUNDS / 10)
}
