//! Plain floating point: f32, f16, bf16. Blocks are sixteen values for the kernels' sake; `encode` and
//! `decode` take any number.

use super::read_f16;
use crate::format::Format;
use half::{bf16, f16};
use torque_simd::Isa;

/// IEEE single precision.
pub struct F32;

/// IEEE half precision.
pub struct F16;

/// bfloat16.
pub struct Bf16;

impl Format for F32 {
    const NAME: &'static str = "f32";
    const ALIASES: &'static [&'static str] = &["fp32", "float32"];
    const GGML_TYPE: Option<u32> = Some(0);
    const BLOCK: usize = 16;
    const BYTES: usize = 64;
    const GROUP: usize = 16;
    const STEP: f32 = 0.0;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        for (x, out) in x.iter().zip(block.as_chunks_mut().0) {
            *out = x.to_le_bytes();
        }
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        for (y, bytes) in y.iter_mut().zip(block.as_chunks().0) {
            *y = f32::from_le_bytes(*bytes);
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(_: I, _: &[u8], _: usize) -> (f32, f32) {
        (1.0, 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        let bytes: &[u8; 64] = block[64 * i..].first_chunk().expect("sixteen values");
        let (words, _) = bytes.as_chunks();
        isa.load(&std::array::from_fn(|lane| f32::from_le_bytes(words[lane])))
    }
}

impl Format for F16 {
    const NAME: &'static str = "f16";
    const ALIASES: &'static [&'static str] = &["fp16", "float16", "half"];
    const GGML_TYPE: Option<u32> = Some(1);
    const BLOCK: usize = 16;
    const BYTES: usize = 32;
    const GROUP: usize = 16;
    const STEP: f32 = 0.0;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        for (x, out) in x.iter().zip(block.as_chunks_mut().0) {
            *out = f16::from_f32(*x).to_le_bytes();
        }
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = read_f16(block, 2 * i);
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(_: I, _: &[u8], _: usize) -> (f32, f32) {
        (1.0, 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        isa.load_f16(block[32 * i..].first_chunk().expect("sixteen values"))
    }
}

impl Format for Bf16 {
    const NAME: &'static str = "bf16";
    const ALIASES: &'static [&'static str] = &["bfloat16"];
    const GGML_TYPE: Option<u32> = Some(30);
    const BLOCK: usize = 16;
    const BYTES: usize = 32;
    const GROUP: usize = 16;
    const STEP: f32 = 0.0;
    const KV: bool = true;

    fn encode(x: &[f32], block: &mut [u8]) {
        for (x, out) in x.iter().zip(block.as_chunks_mut().0) {
            *out = bf16::from_f32(*x).to_le_bytes();
        }
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        for (y, bytes) in y.iter_mut().zip(block.as_chunks().0) {
            *y = bf16::from_le_bytes(*bytes).to_f32();
        }
    }

    #[inline(always)]
    fn affine<I: Isa>(_: I, _: &[u8], _: usize) -> (f32, f32) {
        (1.0, 0.0)
    }

    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        isa.load_bf16(block[32 * i..].first_chunk().expect("sixteen values"))
    }
}
