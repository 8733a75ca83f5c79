//! Scalar conversions of half-precision numbers, inline and without a look at the processor's features:
//! kernels read a scale with them between two vector instructions.

/// The value of an IEEE half-precision number.
#[inline(always)]
pub fn f16_to_f32(x: u16) -> f32 {
    // The bits moved up by 13 are the number divided by 2^112, subnormal numbers included.
    let scaled = f32::from_bits((i32::from(x as i16) << 13) as u32 & 0x8fff_e000);
    const UP: f32 = f32::from_bits((127 + 112) << 23);
    const DOWN: f32 = f32::from_bits((127 - 112) << 23);
    // Infinity has become 2^16; another 2^112 make it infinite again.
    scaled * UP * UP * DOWN
}

/// The value of a bfloat16 number.
#[inline(always)]
pub fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_half_precision_number_converts_exactly() {
        for bits in 0..=u16::MAX {
            for (ours, theirs) in [
                (f16_to_f32(bits), f16::from_bits(bits).to_f32()),
                (bf16_to_f32(bits), bf16::from_bits(bits).to_f32()),
            ] {
                assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
            }
        }
    }
}
