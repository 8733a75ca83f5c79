//! turbo4 in the form others published.

use crate::codebook::TURBO4_EQUAL_MASS as LEVELS;
use crate::format::{Format, Rotation};
use crate::formats::{encode_128, read_f16, write_f16};
use torque_simd::Isa;

/// turbo4 as published: 68 bytes with a reserved field, and levels that are the conditional means of
/// sixteen cells of equal mass, where Lloyd's iteration starts. It has twice the error of
/// [`crate::formats::Turbo4`] and exists to be compared with.
pub struct Turbo4Published;

impl Format for Turbo4Published {
    const NAME: &'static str = "turbo4";
    const GGML_TYPE: Option<u32> = None;
    const BLOCK: usize = 128;
    const BYTES: usize = 68;
    const GROUP: usize = 128;
    const ROTATION: Rotation = Rotation::Head;
    const WEIGHTS: bool = false;

    fn encode(x: &[f32], block: &mut [u8]) {
        block.fill(0);
        let scale = encode_128(&LEVELS, x, |i, code| block[4 + i / 2] |= code << (i % 2 * 4));
        write_f16(block, 0, scale);
    }

    fn decode(block: &[u8], y: &mut [f32]) {
        let scale = read_f16(block, 0);
        for (i, y) in y.iter_mut().enumerate() {
            *y = LEVELS.levels[usize::from(block[4 + i / 2] >> (i % 2 * 4) & 15)] * scale;
        }
    }

    fn affine(block: &[u8], _: usize) -> (f32, f32) {
        (read_f16(block, 0), 0.0)
    }

    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        let code = |lane: usize| block[4 + 8 * i + lane / 2] >> (lane % 2 * 4) & 15;
        isa.load(&std::array::from_fn(|lane| LEVELS.levels[usize::from(code(lane))]))
    }
}
