//! The generator of the rotation's signs: PCG64 (XSL-RR 128/64) seeded as NumPy's `default_rng` does.
//!
//! O'Neill, «PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random
//! Number Generation», 2014; seeding by `numpy.random.SeedSequence`.

const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

/// A stream of random 32-bit words.
pub struct Pcg64 {
    state: u128,
    increment: u128,
    /// The upper half of the last 64-bit output, handed out by the next call.
    half: Option<u32>,
}

impl Pcg64 {
    /// `numpy.random.default_rng(seed)`.
    pub const fn seed(seed: u32) -> Pcg64 {
        let words = seed_sequence(seed);
        let start = ((words[0] as u128) << 64) | words[1] as u128;
        let stream = ((words[2] as u128) << 64) | words[3] as u128;
        let mut pcg = Pcg64 { state: 0, increment: (stream << 1) | 1, half: None };
        pcg.step();
        pcg.state = pcg.state.wrapping_add(start);
        pcg.step();
        pcg
    }

    const fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    /// The next 32 bits: the lower half of an output, then its upper half.
    pub const fn next_u32(&mut self) -> u32 {
        if let Some(high) = self.half.take() {
            return high;
        }
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        let out = folded.rotate_right((self.state >> 122) as u32);
        self.half = Some((out >> 32) as u32);
        out as u32
    }

    /// One draw of `choice([-1, 1])`: whether it is −1.
    pub const fn next_is_negative(&mut self) -> bool {
        self.next_u32() >> 31 == 0
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
const fn seed_sequence(seed: u32) -> [u64; 4] {
    let mut pool = [seed, 0, 0, 0];
    let mut hash = 0x43B0_D7E5_u32;
    let mut i = 0;
    while i < 4 {
        pool[i] = stir(pool[i], &mut hash, 0x931E_8875);
        i += 1;
    }
    let mut from = 0;
    while from < 4 {
        let mut to = 0;
        while to < 4 {
            if from != to {
                let y = stir(pool[from], &mut hash, 0x931E_8875);
                let mixed = pool[to].wrapping_mul(0xCA01_F9DD).wrapping_sub(y.wrapping_mul(0x4973_F715));
                pool[to] = mixed ^ (mixed >> 16);
            }
            to += 1;
        }
        from += 1;
    }
    let mut hash = 0x8B51_F9DD_u32;
    let mut words = [0; 4];
    let mut i = 0;
    while i < 8 {
        words[i / 2] |= (stir(pool[i % 4], &mut hash, 0x58F3_8DED) as u64) << (32 * (i % 2));
        i += 1;
    }
    words
}

const fn stir(value: u32, hash: &mut u32, multiplier: u32) -> u32 {
    let value = value ^ *hash;
    *hash = hash.wrapping_mul(multiplier);
    let value = value.wrapping_mul(*hash);
    value ^ (value >> 16)
}
