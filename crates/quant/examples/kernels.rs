use std::time::Instant;
use torque_quant::{Format, dot};
use torque_simd::*;

use torque_quant::formats::*;
pub struct Q4K;
impl Format for Q4K {
    const NAME: &'static str = "q4_k";
    const GGML_TYPE: Option<u32> = None;
    const BLOCK: usize = 256;
    const BYTES: usize = 144;
    const GROUP: usize = 32;
    const SHIFTED: bool = true;
    fn encode(_: &[f32], _: &mut [u8]) {}
    fn decode(_: &[u8], _: &mut [f32]) {}
    #[inline(always)]
    fn affine(b: &[u8], i: usize) -> (f32, f32) {
        let d = f16_to_f32(u16::from_le_bytes([b[0], b[1]]));
        let m = f16_to_f32(u16::from_le_bytes([b[2], b[3]]));
        let j = i / 2;
        let s = &b[4..16];
        let (sc, mn) = if j < 4 {
            (s[j] & 63, s[j + 4] & 63)
        } else {
            (s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4)
        };
        (d * sc as f32, -m * mn as f32)
    }
    #[inline(always)]
    fn codes<I: Isa>(isa: I, b: &[u8], i: usize) -> I::F {
        let n = isa.widen_u8(b[16 + 32 * (i / 4) + 16 * (i % 2)..][..16].try_into().unwrap());
        let n = if i / 2 % 2 == 0 { n } else { isa.shr::<4>(n) };
        isa.to_f32(isa.and(n, isa.splat_n(15)))
    }
}

fn bench<F: Format, I: Isa>(isa: I) {
    let cols = 4096;
    let row = cols / F::BLOCK * F::BYTES;
    let n = 32;
    let w = vec![0x11u8; n * row];
    print!("{:12} {:8}", F::NAME, I::NAME);
    for tokens in [1, 2, 4, 8] {
        let x = vec![1.0f32; cols * tokens];
        let mut best = f64::MAX;
        let mut out = vec![0.0; n * tokens];
        for _ in 0..2000 {
            let t = Instant::now();
            dot::matvec::<F, I>(isa, &w, cols, &x, tokens, &mut out);
            std::hint::black_box(&out);
            best = best.min(t.elapsed().as_secs_f64());
        }
        print!(
            " | {tokens}: {:5.1} GB/s {:5.2} Gvec/s",
            w.len() as f64 / best / 1e9,
            (n * cols / 16) as f64 / best / 1e9
        );
    }
    println!();
}

fn main() {
    for l in Level::all_available() {
        if std::env::args().nth(1).is_some_and(|a| a != l.name()) {
            continue;
        }
        dispatch!(l, |isa| {
            bench::<F32, _>(isa);
            bench::<F16, _>(isa);
            bench::<Q8_0, _>(isa);
            bench::<Q4_0, _>(isa);
            bench::<Q4_1, _>(isa);
            bench::<Turbo2, _>(isa);
            bench::<Turbo3, _>(isa);
            bench::<Turbo4, _>(isa);
            bench::<Q4K, _>(isa)
        })
    }
}
