//! What a number format is, and the list of all of them.

use crate::formats::*;
use crate::kernels::Kernels;
use crate::rotate;
use torque_simd::{Isa, LANES, Level};

/// How a format's decoded values relate to the numbers that were encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Decoded values are the numbers.
    None,
    /// `scale * code + shift` is the 32-point rotation of the numbers ([`rotate::block32_forward`]):
    /// weights. A product with an activation is taken after rotating the activation, block by block.
    Block32,
    /// Decoded values are the rotated head ([`rotate::Head`]): KV cache.
    Head,
}

/// A number format of weights or of the KV cache.
///
/// A row is a sequence of blocks of [`Format::BLOCK`] values in [`Format::BYTES`] bytes. Value i of a
/// block is `scale * code + shift`, the scale and shift shared by [`Format::GROUP`] consecutive values.
/// `encode` and `decode` are the specification, plain and never optimised; `row_affines` and `row_codes`, or `affine`
/// and `codes`, are what kernels read and agree with `decode` to rounding.
///
/// The block of a head-sized format ([`Rotation::Head`]) is one rotation group of a head
/// ([`rotate::group`]), a multiple of 16 values. Its length in bytes tells how many, so such formats
/// are always given exactly one block. Float formats take any number of values as one block.
pub trait Format: Send + Sync + 'static {
    /// Canonical name: lower case, as printed.
    const NAME: &'static str;
    /// Other names accepted on the command line.
    const ALIASES: &'static [&'static str] = &[];
    /// Type id in GGUF files, if files hold this format.
    const GGML_TYPE: Option<u32>;
    /// Values in a block; of a head-sized format, in its 128-wide block.
    const BLOCK: usize;
    /// Bytes of that block.
    const BYTES: usize;
    /// Consecutive values that share a scale and shift: a multiple of 16. A head-sized format has one
    /// scale for the block, whatever its size.
    const GROUP: usize;
    /// Whether any shift differs from zero.
    const SHIFTED: bool = false;
    /// Whether codes are whole numbers from −128 to 127.
    const WHOLE: bool = true;
    /// What [`Format::row_codes`] adds to a code so that none is negative.
    const OFFSET: u8 = 0;
    /// The largest code that it then hands out. The smaller, the more products fit sums of 16 bits.
    const TOP: u8 = 127;
    /// Whether codes are signed bytes, too wide for an offset. They carry [`Isa::BIAS`] instead.
    const WIDE: bool = false;
    /// Values that [`Format::row_codes`] hands out at once: of a head-sized format, the block.
    const PART: usize = 32;
    /// Whether byte b of vector k of [`Format::row_codes`], of four vectors, is value `4 b + k` of sixteen and not
    /// value `4 k + b`.
    const STRIDED: bool = false;
    /// How far codes of [`Format::row_codes`] may be off, relative to the largest: levels rounded to bytes are.
    const CODE_ERROR: f32 = 0.0;
    /// Whether attention rounds what it multiplies codes with, queries and weights, to one byte and not to two. That adds less
    /// than a hundredth to the error of a format of four bits or fewer, if it is rotated: then no channel is much larger than the others.
    const COARSE: bool = false;
    /// How much longer than what was encoded the decoded block of [`Format::encode_rotated`] is, on average: formats whose
    /// scale does more than restore the length. Whoever encodes again what was decoded divides by it.
    const GAIN: f32 = 1.0;
    /// Of nested formats, how many bit planes, the finest last, follow what is common to all of them. A block begins with
    /// the block of the format that has one plane fewer: leaving out the last is all it takes to make one of the other.
    /// Parts in tiles keep planes in buffers of their own.
    const PLANES: Option<usize> = None;
    /// What the decoded values mean.
    const ROTATION: Rotation = Rotation::None;
    /// May hold weights.
    const WEIGHTS: bool = true;
    /// May hold K and V.
    const KV: bool = false;

    /// Encodes one block of numbers.
    fn encode(x: &[f32], block: &mut [u8]);
    /// Encodes one block given in the domain `decode` answers in: a head-sized format takes values that
    /// are rotated already, and a block of any group.
    fn encode_rotated(x: &[f32], block: &mut [u8]) {
        Self::encode(x, block);
    }
    /// [`Format::encode_rotated`] to the bit, on an instruction set.
    #[inline(always)]
    fn encode_on<I: Isa>(isa: I, x: &[f32], block: &mut [u8]) {
        let _ = isa;
        Self::encode_rotated(x, block);
    }
    /// Encodes blocks of `values` values: [`Format::encode_rotated`] of each, to the bit. This is how the cache writes.
    #[inline(always)]
    fn encode_blocks<I: Isa>(isa: I, x: &[f32], values: usize, out: &mut [u8]) {
        let bytes = (out.len() * values).checked_div(x.len()).unwrap_or(1);
        for (x, block) in x.chunks_exact(values).zip(out.chunks_exact_mut(bytes)) {
            Self::encode_on(isa, x, block);
        }
    }
    /// Decodes one block, operation by operation as the format's reference does.
    fn decode(block: &[u8], y: &mut [f32]);
    /// Scale and shift of values `16 i .. 16 i + 16` of the block.
    fn affine<I: Isa>(isa: I, block: &[u8], i: usize) -> (f32, f32);
    /// Codes of values `16 i .. 16 i + 16` of the block.
    /// Formats of weights in whole numbers alone do without.
    #[inline(always)]
    fn codes<I: Isa>(isa: I, block: &[u8], i: usize) -> I::F {
        let _ = (isa, block, i);
        unreachable!("{} is read a row a lane", Self::NAME)
    }
    /// Calls `put(g, scales, shifts)` for every group g of sixteen blocks: [`Format::affine`] to the bit, a row a
    /// lane. For all formats but floats and rotated weights; shifts mean nothing unless [`Format::SHIFTED`].
    #[inline(always)]
    fn row_affines<I: Isa>(isa: I, blocks: Blocks<'_>, put: impl FnMut(usize, I::F, I::F)) {
        let _ = (isa, blocks, put);
        unreachable!("{} is not read a row a lane", Self::NAME)
    }
    /// Calls `put(g, codes)` for every group g, or 32 values of one, of values `part * PART ..` of sixteen blocks,
    /// first to last. Vector j
    /// of the codes has values `4 j .. 4 j + 4` of the group, as bytes, a row a lane, plus [`Format::OFFSET`] or
    /// [`Isa::BIAS`].
    #[inline(always)]
    fn row_codes<I: Isa>(isa: I, blocks: Blocks<'_>, part: usize, put: impl FnMut(usize, &[I::N])) {
        let _ = (isa, blocks, part, put);
        unreachable!("{} is not read a row a lane", Self::NAME)
    }
}

/// What codes of [`Format::row_codes`] carry on an instruction set.
pub(crate) const fn offset<F: Format, I: Isa>() -> i32 {
    if F::WIDE { I::BIAS as i32 } else { F::OFFSET as i32 }
}

/// The most [`Format::PLANES`].
pub const PLANES_MAX: usize = 2;

/// One block of each of sixteen rows: rows of weights, or the [tile](crate::attend::whole::tiled) of a head-sized format.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    bytes: &'a [u8],
    planes: [&'a [u8]; PLANES_MAX],
    row_bytes: usize,
    block_bytes: usize,
}

impl<'a> Blocks<'a> {
    /// The block of `block_bytes` that `bytes` begin with, and those every `row_bytes` behind it.
    pub fn new(bytes: &'a [u8], row_bytes: usize, block_bytes: usize) -> Blocks<'a> {
        Blocks { bytes, planes: [&[]; PLANES_MAX], row_bytes, block_bytes }
    }

    /// Bytes of a block, without planes that lie elsewhere.
    pub fn block_bytes(self) -> usize {
        self.block_bytes
    }

    /// Bytes `offset .. offset + 16` of every block: word j of row r in lane r of vector j.
    #[inline(always)]
    pub fn words<I: Isa>(self, isa: I, offset: usize) -> [I::N; 4] {
        isa.load_rows(self.bytes, self.row_bytes, offset)
    }

    /// The blocks of a tile, and of nested formats their planes.
    pub fn tile(bytes: &'a [u8], planes: [&'a [u8]; PLANES_MAX]) -> Blocks<'a> {
        Blocks { bytes, planes, row_bytes: 0, block_bytes: bytes.len() / LANES }
    }

    /// Of a tile, the scales.
    #[inline(always)]
    pub fn tile_scales<I: Isa>(self, isa: I) -> I::F {
        isa.load_f16(self.bytes.first_chunk().expect("a tile begins with sixteen scales"))
    }

    /// Of a tile, bytes `4 i .. 4 i + 4` after the scale.
    #[inline(always)]
    pub fn tile_word<I: Isa>(self, isa: I, i: usize) -> I::N {
        isa.load_n(self.bytes[2 * LANES + 4 * LANES * i..].first_chunk().expect("a word of the block"))
    }

    /// Of a tile, bytes `4 i .. 4 i + 4` of a plane.
    #[inline(always)]
    pub fn plane_word<I: Isa>(self, isa: I, plane: usize, i: usize) -> I::N {
        isa.load_n(self.planes[plane][4 * LANES * i..].first_chunk().expect("a word of the plane"))
    }
}

/// A [`Format`] as a value.
#[derive(Clone, Copy, Debug)]
pub struct FormatOps {
    /// [`Format::NAME`].
    pub name: &'static str,
    /// [`Format::ALIASES`].
    pub aliases: &'static [&'static str],
    /// [`Format::GGML_TYPE`].
    pub ggml_type: Option<u32>,
    /// [`Format::BLOCK`].
    pub block: usize,
    /// [`Format::BYTES`].
    pub bytes: usize,
    /// [`Format::GROUP`].
    pub group: usize,
    /// [`Format::SHIFTED`].
    pub shifted: bool,
    /// [`Format::WHOLE`].
    pub whole: bool,
    /// [`Format::ROTATION`].
    pub rotation: Rotation,
    /// [`Format::CODE_ERROR`].
    pub code_error: f32,
    /// [`Format::COARSE`].
    pub coarse: bool,
    /// [`Format::GAIN`].
    pub gain: f32,
    /// [`Format::PLANES`].
    pub planes: Option<usize>,
    /// [`Format::WEIGHTS`].
    pub weights: bool,
    /// [`Format::KV`].
    pub kv: bool,
    /// [`Format::encode`].
    pub encode: fn(&[f32], &mut [u8]),
    /// [`Format::encode_rotated`].
    pub encode_rotated: fn(&[f32], &mut [u8]),
    /// [`Format::decode`].
    pub decode: fn(&[u8], &mut [f32]),
    /// [`Kernels::of`].
    pub kernels: fn(Level) -> Kernels,
}

/// Every format.
pub static FORMATS: &[FormatOps] = &[
    FormatOps::of::<F32>(),
    FormatOps::of::<F16>(),
    FormatOps::of::<Bf16>(),
    FormatOps::of::<Q8_0>(),
    FormatOps::of::<Q5_0>(),
    FormatOps::of::<Q5_1>(),
    FormatOps::of::<Q4_0>(),
    FormatOps::of::<Q4_1>(),
    FormatOps::of::<Iq4Nl>(),
    FormatOps::of::<Iq4Xs>(),
    FormatOps::of::<Mxfp4>(),
    FormatOps::of::<Q6K>(),
    FormatOps::of::<Q5K>(),
    FormatOps::of::<Q4K>(),
    FormatOps::of::<Q3K>(),
    FormatOps::of::<Q2K>(),
    FormatOps::of::<Tq4_1s>(),
    FormatOps::of::<Tq3_1s>(),
    FormatOps::of::<Turbo8>(),
    FormatOps::of::<Turbo4>(),
    FormatOps::of::<Turbo4Tcq>(),
    FormatOps::of::<Turbo4Nested>(),
    FormatOps::of::<Turbo3>(),
    FormatOps::of::<Turbo3Tcq>(),
    FormatOps::of::<Turbo3Nested>(),
    FormatOps::of::<Turbo2>(),
    FormatOps::of::<Turbo2Tcq>(),
    FormatOps::of::<Turbo2Nested>(),
];

/// The format of that name or alias, in any case.
pub fn by_name(name: &str) -> Option<&'static FormatOps> {
    let matches = |known: &&str| known.eq_ignore_ascii_case(name);
    FORMATS.iter().find(|f| matches(&f.name) || f.aliases.iter().any(matches))
}

/// The format with that type id in GGUF files.
pub fn by_ggml_type(id: u32) -> Option<&'static FormatOps> {
    FORMATS.iter().find(|f| f.ggml_type == Some(id))
}

impl FormatOps {
    /// The row of a format.
    pub const fn of<F: Format>() -> FormatOps {
        FormatOps {
            name: F::NAME,
            aliases: F::ALIASES,
            ggml_type: F::GGML_TYPE,
            block: F::BLOCK,
            bytes: F::BYTES,
            group: F::GROUP,
            shifted: F::SHIFTED,
            whole: F::WHOLE,
            rotation: F::ROTATION,
            code_error: F::CODE_ERROR,
            coarse: F::COARSE,
            gain: F::GAIN,
            planes: F::PLANES,
            weights: F::WEIGHTS,
            kv: F::KV,
            encode: F::encode,
            encode_rotated: F::encode_rotated,
            decode: F::decode,
            kernels: Kernels::of::<F>,
        }
    }

    /// Bits a value costs.
    pub fn bits(&self) -> f64 {
        8.0 * self.bytes as f64 / self.block as f64
    }

    /// What any format of so many bits errs at least, as a share of the variance of Gaussian numbers: 4 to the power of −bits.
    /// C. Shannon, «Coding theorems for a discrete source with a fidelity criterion», 1959.
    pub fn least_error(&self) -> f32 {
        (-2.0 * self.bits()).exp2() as f32
    }

    /// Whether products with weights of this format are taken in whole numbers, with activations rounded to 8
    /// bits ([`crate::int8`]).
    pub fn rounds_activations(&self) -> bool {
        self.weights && self.whole
    }

    /// Whether products of many tokens with weights of this format may be taken in tiles ([`crate::tiles`]). Floats are
    /// multiplied as floats.
    pub const fn has_tiles(&self) -> bool {
        self.weights && !self.is_float()
    }

    /// Whether a row may have this many values: whole blocks, or anything for floats.
    pub fn fits(&self, values: usize) -> bool {
        self.is_float() || values.is_multiple_of(self.block)
    }

    /// Bytes of a row that [`FormatOps::fits`].
    pub fn row_bytes(&self, values: usize) -> usize {
        values * self.bytes / self.block
    }

    /// Encodes a row of whole blocks, in the numbers' own domain.
    ///
    /// Panics unless the row [`FormatOps::fits`] and `out` is [`FormatOps::row_bytes`] long.
    pub fn encode_row(&self, x: &[f32], out: &mut [u8]) {
        self.check_row(x.len(), out.len());
        for (x, block) in x.chunks(self.block).zip(out.chunks_mut(self.bytes)) {
            (self.encode)(x, block);
        }
    }

    /// Decodes a row of whole blocks; rows of a head-sized format stay rotated.
    ///
    /// Panics unless the row [`FormatOps::fits`] and `row` is [`FormatOps::row_bytes`] long.
    pub fn decode_row(&self, row: &[u8], y: &mut [f32]) {
        self.check_row(y.len(), row.len());
        for (block, y) in row.chunks(self.bytes).zip(y.chunks_mut(self.block)) {
            (self.decode)(block, y);
        }
    }

    /// Values and bytes of the block in which heads of `head_dim` are stored: one rotation group of a
    /// head, or for other formats their ordinary block, which may straddle two heads.
    pub fn head_block(&self, head_dim: usize) -> (usize, usize) {
        if self.rotation != Rotation::Head {
            return (self.block, self.bytes);
        }
        // A half-precision scale, then a fixed number of bits a value.
        let group = rotate::group(head_dim);
        (group, 2 + (self.bytes - 2) * group / self.block)
    }

    /// Whether a block of this format is the beginning of the block of `finer` that holds the same values.
    pub fn begins(&self, finer: &FormatOps) -> bool {
        self.planes.zip(finer.planes).is_some_and(|(own, finer)| own < finer)
    }

    /// Whether it is f32, f16 or bf16: whole bytes for every value, no scales to share.
    pub const fn is_float(&self) -> bool {
        self.bytes.is_multiple_of(self.block)
    }

    /// Encodes rotated blocks of `values` values, one by one: [`Kernels::encode`] makes the same of them.
    pub fn encode_blocks(&self, x: &[f32], values: usize, out: &mut [u8]) {
        let bytes = (out.len() * values).checked_div(x.len()).unwrap_or(1);
        for (x, block) in x.chunks_exact(values).zip(out.chunks_exact_mut(bytes)) {
            (self.encode_rotated)(x, block);
        }
    }

    fn check_row(&self, values: usize, bytes: usize) {
        assert!(self.fits(values), "{}: {values} values are not blocks of {}", self.name, self.block);
        assert_eq!(bytes, self.row_bytes(values), "{}: bytes of a row of {values}", self.name);
    }
}

#[cfg(test)]
mod tests;
