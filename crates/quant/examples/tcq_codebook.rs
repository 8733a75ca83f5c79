//! Trains the levels of turbo2_tcq, turbo3_tcq and turbo4_tcq and writes them into a folder, in a minute or two:
//!
//! `cargo run --release -p torque-quant --example tcq_codebook -- crates/quant/src/formats`
//!
//! Rotated heads are Gaussian, so groups of Gaussian numbers are all that is needed. Lloyd's iteration, with the trellis
//! as the quantiser: encode many groups, then make every level the mean of the numbers it stands for. It starts from
//! random levels, because the trellis wants levels that differ wherever windows do: started from the levels of
//! spiritbuun's codebook, it ends with 5 to 8 % more error. Of several starts the best is kept.

use std::error::Error;
use std::path::Path;
use torque_quant::formats::Trellis;
use torque_simd::{Isa, Level, dispatch};

const STARTS: u64 = 4;
const ROUNDS: usize = 240;
/// Groups of a round: more in the last third, where levels should stand still.
const GROUPS: [usize; 2] = [4096, 16384];
/// Groups that are never trained on.
const HELD_OUT: usize = 4096;
const VALUES: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("say where to write the levels")?;
    let folder = Path::new(&folder);
    std::fs::write(folder.join("tcq2.i8"), best_levels::<2, 256>())?;
    std::fs::write(folder.join("tcq3.i8"), best_levels::<3, 512>())?;
    std::fs::write(folder.join("tcq4.i8"), best_levels::<4, 256>())?;
    Ok(())
}

fn best_levels<const K: usize, const STATES: usize>() -> [u8; STATES] {
    let held_out = Gaussian(u64::MAX).groups(HELD_OUT);
    let starts = (1..=STARTS).map(|start| {
        let levels = train::<K, STATES>(start);
        let (_, error) = encode::<K, STATES>(&levels, &held_out);
        println!("{K} bits, start {start}: relative squared error {error:.5}");
        (error, levels)
    });
    starts.min_by(|a, b| a.0.total_cmp(&b.0)).expect("some start").1
}

fn train<const K: usize, const STATES: usize>(seed: u64) -> [u8; STATES] {
    let mut random = Gaussian(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut levels: [f64; STATES] = std::array::from_fn(|_| random.next());
    for round in 0..ROUNDS {
        let x = random.groups(GROUPS[usize::from(3 * round >= 2 * ROUNDS)]);
        let (means, _) = encode::<K, STATES>(&bytes::<K, STATES>(&levels), &x);
        for (level, mean) in levels.iter_mut().zip(means) {
            *level = mean.unwrap_or(*level);
        }
    }
    bytes::<K, STATES>(&levels)
}

/// Levels as signed bytes, none of them zero.
fn bytes<const K: usize, const STATES: usize>(levels: &[f64; STATES]) -> [u8; STATES] {
    levels.map(|level| {
        let whole = (level * f64::from(Trellis::<K, STATES>::SIGMA)).round().clamp(-127.0, 127.0) as i8;
        if whole == 0 { 1 } else { whole as u8 }
    })
}

/// The mean of the numbers that each level stands for, if there are any, and the relative squared error with the best
/// scales.
fn encode<const K: usize, const STATES: usize>(
    levels: &[u8; STATES],
    x: &[f32],
) -> ([Option<f64>; STATES], f64) {
    let trellis = Trellis::<K, STATES>::new(levels);
    let bytes = 2 + K * VALUES / 8;
    let mut blocks = vec![0; x.len() / VALUES * bytes];
    dispatch!(Level::detect(), |isa| isa.run(
        #[inline(always)]
        || trellis.encode_blocks(isa, x, VALUES, &mut blocks)
    ));
    let (mut sums, mut counts) = ([0.0; STATES], [0.0; STATES]);
    let (mut errors, mut energy) = (0.0, 0.0);
    for (x, block) in x.chunks_exact(VALUES).zip(blocks.chunks_exact(bytes)) {
        let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
        for (i, x) in x.iter().enumerate() {
            let state = Trellis::<K, STATES>::state(&block[2..], i);
            let (x, y) = (f64::from(*x), f64::from(levels[state] as i8));
            sums[state] += x;
            counts[state] += 1.0;
            (xx, xy, yy) = (xx + x * x, xy + x * y, yy + y * y);
        }
        errors += xx - xy * xy / yy;
        energy += xx;
    }
    (std::array::from_fn(|i| (counts[i] > 0.0).then(|| sums[i] / counts[i])), errors / energy)
}

/// Xorshift (Marsaglia 2003) and the method of Box and Muller.
struct Gaussian(u64);

impl Gaussian {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    fn next(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
    /// Groups whose mean square is 1, as the encoder makes it.
    fn groups(&mut self, groups: usize) -> Vec<f32> {
        let mut x: Vec<f32> = (0..groups * VALUES).map(|_| self.next() as f32).collect();
        for x in x.chunks_exact_mut(VALUES) {
            let length = (x.iter().map(|x| x * x).sum::<f32>() / VALUES as f32).sqrt();
            x.iter_mut().for_each(|x| *x /= length);
        }
        x
    }
}
