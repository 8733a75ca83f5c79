//! Instruction sets behind one trait.
//!
//! A kernel is written once, over sixteen-lane vectors and a value `isa: impl Isa`; holding that
//! value proves that the processor has the instructions. The vectors are sixteen lanes wide on
//! every instruction set (one register with AVX-512, two with AVX2, four with NEON), and
//! multiply-add is always fused, so every instruction set gives the same bits.
//!
//! ```
//! use torque_simd::{Isa, Level, dispatch};
//!
//! #[inline(always)]
//! fn dot<I: Isa>(isa: I, a: &[[f32; 16]], b: &[[f32; 16]]) -> f32 {
//!     let products = a.iter().zip(b).fold(isa.splat(0.0), |sum, (a, b)| isa.fma(isa.load(a), isa.load(b), sum));
//!     isa.sum(products)
//! }
//!
//! let (a, b) = (vec![[1.0; 16]; 3], vec![[2.0; 16]; 3]);
//! let dot = dispatch!(Level::detect(), |isa| isa.run(#[inline(always)] || dot(isa, &a, &b)));
//! assert_eq!(dot, 96.0);
//! ```
//!
//! [`tiles`] are for products of many tokens, on processors that multiply matrices.
//!
//! This crate is the only one that names an intrinsic.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod level;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;
pub mod tiles;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use level::Level;
#[cfg(target_arch = "aarch64")]
pub use neon::{Dotprod, Neon};
pub use scalar::Scalar;

/// Lanes of a vector, on every instruction set.
pub const LANES: usize = 16;

/// The lanes of [`Isa::low_bits`], as a table.
#[cfg(target_arch = "x86_64")]
const fn low_bits_table(bits: u32, offset: i32) -> [f32; 16] {
    let mut table = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = ((i as i32 & ((1 << bits) - 1)) + offset) as f32;
        i += 1;
    }
    table
}

/// An instruction set, held as a value.
pub trait Isa: Copy + Send + Sync + 'static {
    /// The name used by the command line and in benchmark records.
    const NAME: &'static str;
    /// Rows × columns of the register tile a matrix product may hold in [`Isa::F`] accumulators.
    const TILE: (usize, usize);
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen 32-bit integers.
    type N: Copy;

    /// The value, if this processor has the instructions.
    fn new() -> Option<Self>;

    /// Calls `f` in a function compiled for this instruction set. Everything inlined into `f`
    /// uses its instructions, so kernels are `#[inline(always)]` and entered through this.
    fn run<R>(self, f: impl FnOnce() -> R) -> R;

    /// Every lane `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Lane i is `x[i]`.
    fn load(self, x: &[f32; 16]) -> Self::F;
    /// `out[i]` is lane i.
    fn store(self, v: Self::F, out: &mut [f32; 16]);
    /// The value of an IEEE half-precision number.
    fn f16(self, bits: u16) -> f32;
    /// Sixteen little-endian IEEE half-precision numbers.
    fn load_f16(self, x: &[u8; 32]) -> Self::F;
    /// The inverse of [`Isa::load_f16`], rounding to nearest even.
    fn store_f16(self, v: Self::F, out: &mut [u8; 32]);
    /// Sixteen little-endian bfloat16 numbers.
    fn load_bf16(self, x: &[u8; 32]) -> Self::F;

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The smaller of two numbers, lane by lane; the second where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger of two numbers, lane by lane; the second where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The sum of the lanes, as a balanced tree: lane i + lane i+8, then +4, +2, +1.
    fn sum(self, v: Self::F) -> f32;
    /// Lane i is the [`Isa::sum`] of `v[i]`, to the bit; much faster than sixteen sums.
    fn reduce16(self, v: [Self::F; 16]) -> Self::F;
    /// The largest lane. No lane may be NaN.
    fn max_lane(self, v: Self::F) -> f32;

    /// Sixteen bytes, zero-extended.
    fn widen_u8(self, x: &[u8; 16]) -> Self::N;
    /// Sixteen signed bytes, sign-extended.
    fn widen_i8(self, x: &[u8; 16]) -> Self::N;
    /// Lane i is `x >> i`: one bit a lane (the higher bits are left in place).
    fn spread1(self, x: u16) -> Self::N;
    /// Lane i is `x >> 2i`: two bits a lane (the higher bits are left in place).
    fn spread2(self, x: u32) -> Self::N;
    /// Lane i is `low >> BITS * i`, and lane 8 + i is `high >> BITS * i`: up to four bits a lane (the higher
    /// bits are left in place).
    fn spread8<const BITS: usize>(self, low: u32, high: u32) -> Self::N;
    /// Every lane `x`.
    fn splat_n(self, x: i32) -> Self::N;
    /// `a + b`, wrapping.
    fn add_n(self, a: Self::N, b: Self::N) -> Self::N;
    /// `a - b`, wrapping.
    fn sub_n(self, a: Self::N, b: Self::N) -> Self::N;
    /// Bitwise and.
    fn and(self, a: Self::N, b: Self::N) -> Self::N;
    /// Bitwise or.
    fn or(self, a: Self::N, b: Self::N) -> Self::N;
    /// Bitwise exclusive or.
    fn xor(self, a: Self::N, b: Self::N) -> Self::N;
    /// Logical shift right by `K` bits.
    fn shr<const K: i32>(self, v: Self::N) -> Self::N;
    /// Logical shift right by `bits` bits, fewer than 32.
    fn shr_by(self, v: Self::N, bits: u32) -> Self::N;
    /// Logical shift right of lane i by `bits[i]` bits, fewer than 32.
    fn shr_each(self, v: Self::N, bits: Self::N) -> Self::N;
    /// Shift left by `K` bits.
    fn shl<const K: i32>(self, v: Self::N) -> Self::N;
    /// Shift left by `bits` bits, fewer than 32.
    fn shl_by(self, v: Self::N, bits: u32) -> Self::N;
    /// The smaller of two signed integers.
    fn min_n(self, a: Self::N, b: Self::N) -> Self::N;
    /// Signed integers to the nearest floats.
    fn to_f32(self, v: Self::N) -> Self::F;
    /// Floats to integers, rounding to nearest even. Every |lane| must be below 2^31.
    fn round(self, v: Self::F) -> Self::N;
    /// The same bits read as floats.
    #[allow(clippy::wrong_self_convention)]
    fn from_bits(self, v: Self::N) -> Self::F;
    /// The same bits read as integers.
    fn to_bits(self, v: Self::F) -> Self::N;
    /// What [`Isa::dot4_wide`] wants added to the signed bytes of its second argument.
    const BIAS: u8 = 0;
    /// Lane i is the four bytes `x[4 i ..]`, little-endian.
    fn load_n(self, x: &[u8; 64]) -> Self::N;
    /// The inverse of [`Isa::load_n`].
    fn store_n(self, v: Self::N, out: &mut [u8; 64]);
    /// `sum[i] + Σ_j u[4i + j]·s[4i + j]` over the four bytes of each lane. Bytes of u are from 0 to 127, those of
    /// s from −127 to 127.
    fn dot4(self, sum: Self::N, u: Self::N, s: Self::N) -> Self::N;
    /// Whether [`Isa::dot2`] and, once for several of them, [`Isa::dot_pairs`] are faster than as many
    /// [`Isa::dot4`].
    const PAIRS: bool = false;
    /// `pairs[i] + u[2i]·s[2i] + u[2i + 1]·s[2i + 1]` for the 32 sums of 16 bits that lie in the lanes, and wrap.
    /// Bytes are those of `dot4`.
    fn dot2(self, pairs: Self::N, u: Self::N, s: Self::N) -> Self::N;
    /// `a[i]·b[i]` for 32 numbers of 16 bits, wrapping.
    fn mul_pairs(self, a: Self::N, b: Self::N) -> Self::N;
    /// `sum[i] + a[2i]·b[2i] + a[2i + 1]·b[2i + 1]` for 32 signed numbers of 16 bits.
    fn dot_pairs(self, sum: Self::N, a: Self::N, b: Self::N) -> Self::N;
    /// The same as `dot4` for any signed bytes w, given with [`Isa::BIAS`] added, which counts: with a bias the bytes are
    /// read as unsigned.
    fn dot4_wide(self, sum: Self::N, w: Self::N, s: Self::N) -> Self::N;
    /// Lane r of vector j is the little-endian word at `x[r * stride + offset + 4 j]`: sixteen bytes of sixteen
    /// rows, transposed.
    ///
    /// # Panics
    ///
    /// If the last row ends before that.
    fn load_rows(self, x: &[u8], stride: usize, offset: usize) -> [Self::N; 4];
    /// Four by four bytes of each quarter (four lanes) transposed: byte b of lane l becomes byte l of lane b.
    fn transpose_bytes(self, v: Self::N) -> Self::N;
    /// Four by four quarters transposed: quarter q of vector v becomes quarter v of vector q.
    fn transpose_quarters(self, v: [Self::N; 4]) -> [Self::N; 4];
    /// Four by four lanes transposed: lane `4 j + k` becomes lane `4 k + j`.
    fn transpose_lanes(self, v: Self::F) -> Self::F;
    /// The low sixteen bits of each lane as IEEE half-precision numbers.
    fn low_f16(self, v: Self::N) -> Self::F;
    /// Byte i is `table[index[i]]`. Every byte of the index is below sixteen.
    fn lookup_bytes(self, table: &[u8; 16], index: Self::N) -> Self::N;
    /// `table[i]` for the 32 indices of 16 bits that lie in the lanes, each below `L`, a power of two from 128 to 512.
    #[inline(always)]
    fn lookup_halves<const L: usize>(self, table: &[u8; L], index: Self::N) -> Self::N {
        const { assert!(L.is_power_of_two()) };
        let mut bytes = [0; 64];
        self.store_n(index, &mut bytes);
        for half in bytes.as_chunks_mut().0 {
            *half = u16::from(table[usize::from(u16::from_le_bytes(*half)) & (L - 1)]).to_le_bytes();
        }
        self.load_n(&bytes)
    }
    /// The low byte of each lane.
    fn narrow(self, v: Self::N) -> [u8; 16];
    /// The low `BITS` bits of each lane, at most four, plus `OFFSET`, as floats.
    #[inline(always)]
    fn low_bits<const BITS: u32, const OFFSET: i32>(self, v: Self::N) -> Self::F {
        let code = self.and(v, self.splat_n((1 << BITS) - 1));
        self.to_f32(if OFFSET == 0 { code } else { self.add_n(code, self.splat_n(OFFSET)) })
    }
    /// `v + x` in the lanes i whose bit i is set, v in the others, where −0 may become 0.
    #[inline(always)]
    fn add_where(self, bits: u16, v: Self::F, x: Self::F) -> Self::F {
        let ones = self.and(self.spread1(bits), self.splat_n(1));
        self.fma(self.to_f32(ones), x, v)
    }
    /// Lane i is `table[index[i] & 15]`.
    fn lookup(self, table: Self::F, index: Self::N) -> Self::F;
    /// Lane i is `table[index[i] & 7]`; the table repeats after eight lanes.
    #[inline(always)]
    fn lookup8(self, table: Self::F, index: Self::N) -> Self::F {
        self.lookup(table, index)
    }
    /// The same for an index in two parts: the low two bits of `low[i]`, and bit i of `high`.
    #[inline(always)]
    fn lookup8_split(self, table: Self::F, low: Self::N, high: u16) -> Self::F {
        let low = self.and(low, self.splat_n(3));
        self.lookup8(table, self.or(low, self.shl::<2>(self.spread1(high))))
    }
    /// Lane i is `table[index[i] % L]`, `L` a power of two.
    fn gather<const L: usize>(self, table: &[f32; L], index: Self::N) -> Self::F;

    /// Asks for the cache line at `bytes[offset]`, which need not exist. A hint without effect on results.
    #[inline(always)]
    fn prefetch(self, bytes: &[u8], offset: usize) {
        let _ = (bytes, offset);
    }
}
