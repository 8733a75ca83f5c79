use std::time::Instant;
use torque_quant::{Format, dot};
use torque_simd::*;

pub struct F32;
impl Format for F32 {
    const NAME: &'static str = "f32"; const GGML_TYPE: Option<u32> = None; const BLOCK: usize = 1; const BYTES: usize = 4; const GROUP: usize = 1;
    fn encode(_: &[f32], _: &mut [u8]) {} fn decode(_: &[u8], _: &mut [f32]) {}
    #[inline(always)] fn affine(_: &[u8], _: usize) -> (f32, f32) { (1.0, 0.0) }
    #[inline(always)] fn codes<I: Isa>(isa: I, b: &[u8], i: usize) -> I::F { let b: &[u8; 64] = b[64*i..][..64].try_into().unwrap(); isa.load(&std::array::from_fn(|j| f32::from_le_bytes([b[4*j], b[4*j+1], b[4*j+2], b[4*j+3]]))) }
}
pub struct F16;
impl Format for F16 {
    const NAME: &'static str = "f16"; const GGML_TYPE: Option<u32> = None; const BLOCK: usize = 1; const BYTES: usize = 2; const GROUP: usize = 1;
    fn encode(_: &[f32], _: &mut [u8]) {} fn decode(_: &[u8], _: &mut [f32]) {}
    #[inline(always)] fn affine(_: &[u8], _: usize) -> (f32, f32) { (1.0, 0.0) }
    #[inline(always)] fn codes<I: Isa>(isa: I, b: &[u8], i: usize) -> I::F { isa.load_f16(b[32*i..][..32].try_into().unwrap()) }
}
pub struct Q8;
impl Format for Q8 {
    const NAME: &'static str = "q8_0"; const GGML_TYPE: Option<u32> = None; const BLOCK: usize = 32; const BYTES: usize = 34; const GROUP: usize = 32;
    fn encode(_: &[f32], _: &mut [u8]) {} fn decode(_: &[u8], _: &mut [f32]) {}
    #[inline(always)] fn affine(b: &[u8], _: usize) -> (f32, f32) { (f16_to_f32(u16::from_le_bytes([b[0], b[1]])), 0.0) }
    #[inline(always)] fn codes<I: Isa>(isa: I, b: &[u8], i: usize) -> I::F { isa.to_f32(isa.widen_i8(b[2+16*i..][..16].try_into().unwrap())) }
}
pub struct Q4;
impl Format for Q4 {
    const NAME: &'static str = "q4_0"; const GGML_TYPE: Option<u32> = None; const BLOCK: usize = 32; const BYTES: usize = 18; const GROUP: usize = 32;
    fn encode(_: &[f32], _: &mut [u8]) {} fn decode(_: &[u8], _: &mut [f32]) {}
    #[inline(always)] fn affine(b: &[u8], _: usize) -> (f32, f32) { (f16_to_f32(u16::from_le_bytes([b[0], b[1]])), 0.0) }
    #[inline(always)] fn codes<I: Isa>(isa: I, b: &[u8], i: usize) -> I::F {
        let n = isa.widen_u8(b[2..18].try_into().unwrap());
        let n = if i == 0 { n } else { isa.shr::<4>(n) };
        isa.sub(isa.to_f32(isa.and(n, isa.splat_n(15))), isa.splat(8.0)) }
}
pub struct Q4L;
impl Format for Q4L {
    const NAME: &'static str = "q4_0 lookup"; const GGML_TYPE: Option<u32> = None; const BLOCK: usize = 32; const BYTES: usize = 18; const GROUP: usize = 32;
    fn encode(_: &[f32], _: &mut [u8]) {} fn decode(_: &[u8], _: &mut [f32]) {}
    #[inline(always)] fn affine(b: &[u8], _: usize) -> (f32, f32) { (f16_to_f32(u16::from_le_bytes([b[0], b[1]])), 0.0) }
    #[inline(always)] fn codes<I: Isa>(isa: I, b: &[u8], i: usize) -> I::F {
        let n = isa.widen_u8(b[2..18].try_into().unwrap());
        let n = if i == 0 { n } else { isa.shr::<4>(n) };
        isa.lookup(isa.load(&std::array::from_fn(|i| i as f32 - 8.0)), n) }
}
pub struct Q4K;
impl Format for Q4K {
    const NAME: &'static str = "q4_k"; const GGML_TYPE: Option<u32> = None; const BLOCK: usize = 256; const BYTES: usize = 144; const GROUP: usize = 32; const SHIFTED: bool = true;
    fn encode(_: &[f32], _: &mut [u8]) {} fn decode(_: &[u8], _: &mut [f32]) {}
    #[inline(always)] fn affine(b: &[u8], i: usize) -> (f32, f32) {
        let d = f16_to_f32(u16::from_le_bytes([b[0], b[1]])); let m = f16_to_f32(u16::from_le_bytes([b[2], b[3]]));
        let j = i / 2; let s = &b[4..16];
        let (sc, mn) = if j < 4 { (s[j] & 63, s[j+4] & 63) } else { (s[j+4] & 15 | (s[j-4] >> 6) << 4, s[j+4] >> 4 | (s[j] >> 6) << 4) };
        (d * sc as f32, -m * mn as f32) }
    #[inline(always)] fn codes<I: Isa>(isa: I, b: &[u8], i: usize) -> I::F {
        let n = isa.widen_u8(b[16 + 32 * (i / 4) + 16 * (i % 2)..][..16].try_into().unwrap());
        let n = if i / 2 % 2 == 0 { n } else { isa.shr::<4>(n) };
        isa.to_f32(isa.and(n, isa.splat_n(15))) }
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
        let mut out = vec![0.0; n*tokens];
        for _ in 0..2000 {
            let t = Instant::now();
            dot::matvec::<F, I>(isa, &w, cols, &x, tokens, &mut out); std::hint::black_box(&out);
            best = best.min(t.elapsed().as_secs_f64());
        }
        print!(" | {tokens}: {:5.1} GB/s {:5.2} Gvec/s", w.len() as f64 / best / 1e9, (n * cols/16) as f64 / best / 1e9);
    }
    println!();
}

fn main() {
    for l in Level::all_available() { if std::env::args().nth(1).is_some_and(|a| a != l.name()) { continue } dispatch!(l, |isa| { bench::<F32, _>(isa); bench::<F16, _>(isa); bench::<Q8, _>(isa); bench::<Q4, _>(isa); bench::<Q4L, _>(isa); bench::<Q4K, _>(isa) }) }
}
