//! What a number format is, and the list of all of them.

use torque_simd::Isa;

/// How a format's decoded values relate to the numbers that were encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Decoded values are the numbers.
    None,
    /// `scale * code + shift` is the 32-point rotation of the numbers (spec §3.2): weights. A product
    /// with an activation is taken after rotating the activation, block by block.
    Block32,
    /// Decoded values are the rotated head (spec §3.1, [`crate::rotate::Head`]): KV cache.
    Head,
}

/// A number format of weights or of the KV cache.
///
/// A row is a sequence of blocks of [`Format::BLOCK`] values in [`Format::BYTES`] bytes. Value i of a
/// block is `scale * code + shift`, the scale and shift shared by [`Format::GROUP`] consecutive values.
/// `encode` and `decode` are the specification, plain and never optimised; `affine` and `codes` are
/// what kernels read and agree with `decode` to rounding.
pub trait Format: Send + Sync + 'static {
    /// Canonical name: lower case, as printed.
    const NAME: &'static str;
    /// Other names accepted on the command line.
    const ALIASES: &'static [&'static str] = &[];
    /// Type id in GGUF files, if files hold this format.
    const GGML_TYPE: Option<u32>;
    /// Values in a block. A head-sized format ([`Rotation::Head`]) states its 128-wide block; its block
    /// is a whole rotation group of the head, whatever the size.
    const BLOCK: usize;
    /// Bytes of that block.
    const BYTES: usize;
    /// Consecutive values that share a scale and shift, a multiple of 16 (or [`Format::BLOCK`] if less).
    const GROUP: usize;
    /// Whether any shift differs from zero.
    const SHIFTED: bool = false;
    /// What the decoded values mean.
    const ROTATION: Rotation = Rotation::None;
    /// May hold weights.
    const WEIGHTS: bool = true;
    /// May hold K and V.
    const KV: bool = false;

    /// Encodes one block. `x.len()` values into `block`.
    fn encode(x: &[f32], block: &mut [u8]);
    /// Decodes one block: the exact inverse order of operations of the reference.
    fn decode(block: &[u8], y: &mut [f32]);
    /// Scale and shift of values `16 i ..16 i + 16` of the block.
    fn affine(block: &[u8], i: usize) -> (f32, f32);
    /// Codes of values `16 i .. 16 i + 16` of the block.
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F;
}
