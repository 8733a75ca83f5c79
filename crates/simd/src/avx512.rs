//! AVX-512: a vector is one register.

use crate::avx2::byte_transposition;
use crate::{Isa, low_bits_table};
use std::arch::asm;
use std::arch::x86_64::*;

/// AVX-512 with the F, BW, DQ, VL and VNNI extensions: Intel since Cascade Lake, AMD since Zen 4.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

/// Calls `f` with the instructions enabled. The features that [`Avx512::new`] looks for are these.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn run<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Defines methods of [`Isa`] from intrinsics.
macro_rules! methods {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: `self` is only made by `new`, which found every feature. Loads and stores go
            // through references to arrays of their full width.
            unsafe { $body }
        }
    )*};
}

impl Isa for Avx512 {
    const NAME: &'static str = "avx512";
    const BIAS: u8 = 128;
    const TILE: (usize, usize) = (4, 4);
    type F = __m512;
    type N = __m512i;

    #[inline(always)]
    fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Avx512(()))
    }

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` is only made by `new`, which found every feature.
        unsafe { run(f) }
    }

    methods! {
        load_n(x: &[u8; 64]) -> __m512i = _mm512_loadu_si512(x.as_ptr().cast());
        store_n(v: __m512i, out: &mut [u8; 64]) -> () = _mm512_storeu_si512(out.as_mut_ptr().cast(), v);
        dot4(sum: __m512i, u: __m512i, s: __m512i) -> __m512i = _mm512_dpbusd_epi32(sum, u, s);
        dot2(pairs: __m512i, u: __m512i, s: __m512i) -> __m512i =
            _mm512_add_epi16(pairs, _mm512_maddubs_epi16(u, s));
        mul_pairs(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi16(a, b);
        dot_pairs(sum: __m512i, a: __m512i, b: __m512i) -> __m512i = _mm512_dpwssd_epi32(sum, a, b);
        dot4_wide(sum: __m512i, w: __m512i, s: __m512i) -> __m512i = _mm512_dpbusd_epi32(sum, w, s);
        load_rows(x: &[u8], stride: usize, offset: usize) -> [__m512i; 4] = {
            assert!(x.len() >= 15 * stride + offset + 16, "sixteen bytes of sixteen rows");
            let x = x.as_ptr().add(offset);
            // Rows i, 4 + i, 8 + i and 12 + i in the quarters of vector i; then four by four in every quarter.
            macro_rules! quarters {
                ($i:literal) => {{
                    let row = |r: usize| _mm_loadu_si128(x.add(r * stride).cast());
                    let v = _mm512_castsi128_si512(row($i));
                    let v = _mm512_inserti32x4::<1>(v, row(4 + $i));
                    let v = _mm512_inserti32x4::<2>(v, row(8 + $i));
                    _mm512_inserti32x4::<3>(v, row(12 + $i))
                }};
            }
            let v = [quarters!(0), quarters!(1), quarters!(2), quarters!(3)];
            let (a, b) = (_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
            let (c, d) = (_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
            [
                _mm512_unpacklo_epi64(a, c),
                _mm512_unpackhi_epi64(a, c),
                _mm512_unpacklo_epi64(b, d),
                _mm512_unpackhi_epi64(b, d),
            ]
        };
        transpose_bytes(v: __m512i) -> __m512i = _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(byte_transposition()));
        transpose_quarters(v: [__m512i; 4]) -> [__m512i; 4] = {
            // Quarters 0 and 1, and 2 and 3, of two vectors each; then every other one.
            macro_rules! pick {
                ($order:literal, $a:expr, $b:expr) => {
                    _mm512_shuffle_i32x4::<$order>($a, $b)
                };
            }
            let (a, b) = (pick!(0b01_00_01_00, v[0], v[1]), pick!(0b01_00_01_00, v[2], v[3]));
            let (c, d) = (pick!(0b11_10_11_10, v[0], v[1]), pick!(0b11_10_11_10, v[2], v[3]));
            [
                pick!(0b10_00_10_00, a, b),
                pick!(0b11_01_11_01, a, b),
                pick!(0b10_00_10_00, c, d),
                pick!(0b11_01_11_01, c, d),
            ]
        };
        transpose_lanes(v: __m512) -> __m512 = _mm512_permutexvar_ps(
            _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
            v,
        );
        low_f16(v: __m512i) -> __m512 = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
        lookup_bytes(table: &[u8; 16], index: __m512i) -> __m512i =
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), index);
        narrow(v: __m512i) -> [u8; 16] = {
            let mut out = [0; 16];
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v));
            out
        };
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        load(x: &[f32; 16]) -> __m512 = _mm512_loadu_ps(x.as_ptr());
        store(v: __m512, out: &mut [f32; 16]) -> () = _mm512_storeu_ps(out.as_mut_ptr(), v);
        f16(bits: u16) -> f32 = {
            // The compiler would insert the number into a register that holds something else, and every
            // scale would wait for it.
            let half: __m128i;
            asm!("vmovd {}, {:e}", lateout(xmm_reg) half, in(reg) u32::from(bits), options(pure, nomem, nostack));
            _mm_cvtss_f32(_mm_cvtph_ps(half))
        };
        load_f16(x: &[u8; 32]) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast()));
        store_f16(v: __m512, out: &mut [u8; 32]) -> () = _mm256_storeu_si256(
            out.as_mut_ptr().cast(),
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v),
        );
        load_bf16(x: &[u8; 32]) -> __m512 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())),
        ));

        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        sum(v: __m512) -> f32 = {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        };
        // Each step folds two vectors into one, so that lanes add up in the order of `sum`.
        reduce16(v: [__m512; 16]) -> __m512 = {
            macro_rules! fold {
                ($shuffle:ident, $low:literal, $high:literal: $($a:ident $b:ident => $to:ident),*) => {
                    $(let $to = _mm512_add_ps($shuffle::<$low>($a, $b), $shuffle::<$high>($a, $b));)*
                };
            }
            let [v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15] = v;
            // Lane i with i + 8.
            fold!(_mm512_shuffle_f32x4, 0b01_00_01_00, 0b11_10_11_10: v0 v1 => a0, v2 v3 => a1, v4 v5 => a2,
                v6 v7 => a3, v8 v9 => a4, v10 v11 => a5, v12 v13 => a6, v14 v15 => a7);
            // With i + 4.
            fold!(_mm512_shuffle_f32x4, 0b10_00_10_00, 0b11_01_11_01: a0 a1 => b0, a2 a3 => b1, a4 a5 => b2,
                a6 a7 => b3);
            // With i + 2.
            fold!(_mm512_shuffle_ps, 0b01_00_01_00, 0b11_10_11_10: b0 b1 => c0, b2 b3 => c1);
            // With i + 1. Lane l of 128-bit quarter q is now the sum of vector 4 l + q.
            fold!(_mm512_shuffle_ps, 0b10_00_10_00, 0b11_01_11_01: c0 c1 => sums);
            _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sums)
        };
        max_lane(v: __m512) -> f32 = {
            let v = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        };

        widen_u8(x: &[u8; 16]) -> __m512i = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()));
        widen_i8(x: &[u8; 16]) -> __m512i = _mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()));
        spread1(x: u16) -> __m512i = _mm512_srlv_epi32(
            _mm512_set1_epi32(i32::from(x)),
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        );
        spread2(x: u32) -> __m512i = _mm512_srlv_epi32(
            _mm512_set1_epi32(x as i32),
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
        );
        shr_by(v: __m512i, bits: u32) -> __m512i = _mm512_srl_epi32(v, _mm_cvtsi32_si128(bits as i32));
        shr_each(v: __m512i, bits: __m512i) -> __m512i = _mm512_srlv_epi32(v, bits);
        shl_by(v: __m512i, bits: u32) -> __m512i = _mm512_sll_epi32(v, _mm_cvtsi32_si128(bits as i32));
        min_n(a: __m512i, b: __m512i) -> __m512i = _mm512_min_epi32(a, b);
        splat_n(x: i32) -> __m512i = _mm512_set1_epi32(x);
        sub_n(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        add_n(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        xor(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
        to_f32(v: __m512i) -> __m512 = _mm512_cvtepi32_ps(v);
        round(v: __m512) -> __m512i = _mm512_cvtps_epi32(v);
        from_bits(v: __m512i) -> __m512 = _mm512_castsi512_ps(v);
        to_bits(v: __m512) -> __m512i = _mm512_castps_si512(v);
        lookup(table: __m512, index: __m512i) -> __m512 = _mm512_permutexvar_ps(index, table);
    }

    #[inline(always)]
    fn spread8<const BITS: usize>(self, low: u32, high: u32) -> __m512i {
        const { assert!(BITS <= 4) };
        let b = BITS as i32;
        // SAFETY: `self` is only made by `new`, which found every feature.
        unsafe {
            let words = _mm512_mask_set1_epi32(_mm512_set1_epi32(low as i32), 0xff00, high as i32);
            let shifts = _mm256_setr_epi32(0, b, 2 * b, 3 * b, 4 * b, 5 * b, 6 * b, 7 * b);
            _mm512_srlv_epi32(words, _mm512_broadcast_i32x8(shifts))
        }
    }
    #[inline(always)]
    fn shr<const K: i32>(self, v: __m512i) -> __m512i {
        // SAFETY: `self` is only made by `new`, which found every feature.
        unsafe { _mm512_srl_epi32(v, _mm_cvtsi32_si128(K)) }
    }
    #[inline(always)]
    fn shl<const K: i32>(self, v: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(K)) }
    }
    #[inline(always)]
    fn low_bits<const BITS: u32, const OFFSET: i32>(self, v: __m512i) -> __m512 {
        // One instruction instead of three: the lookup looks at four bits, and the table repeats.
        self.lookup(self.load(&const { low_bits_table(BITS, OFFSET) }), v)
    }
    #[inline(always)]
    fn add_where(self, bits: u16, v: __m512, x: __m512) -> __m512 {
        // SAFETY: `self` is only made by `new`, which found every feature.
        unsafe { _mm512_mask_add_ps(v, bits, v, x) }
    }
    #[inline(always)]
    fn lookup8_split(self, table: __m512, low: __m512i, high: u16) -> __m512 {
        // SAFETY: as above.
        unsafe {
            // Tables that repeat after four lanes, so that `low` may have more than two bits.
            let fours = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
            let first = _mm512_permutexvar_ps(fours, table);
            let second = _mm512_permutexvar_ps(_mm512_or_si512(fours, _mm512_set1_epi32(4)), table);
            let v = _mm512_permutexvar_ps(low, first);
            _mm512_mask_permutexvar_ps(v, high, low, second)
        }
    }
    #[inline(always)]
    fn lookup_halves<const L: usize>(self, table: &[u8; L], index: __m512i) -> __m512i {
        const { assert!(matches!(L, 128 | 256 | 512)) };
        // SAFETY: as above; loads stay inside the table.
        unsafe {
            // Pairs of entries are words of 16 bits, and two registers hold 64 of them.
            let pair = _mm512_srli_epi16::<1>(index);
            let words = |i: usize| {
                let i = i % (L / 128);
                let half = |j: usize| _mm512_loadu_si512(table.as_ptr().add(128 * i + 64 * j).cast());
                _mm512_permutex2var_epi16(half(0), pair, half(1))
            };
            let bit = |bit: i16| _mm512_test_epi16_mask(index, _mm512_set1_epi16(bit));
            let found = match L {
                128 => words(0),
                256 => _mm512_mask_blend_epi16(bit(128), words(0), words(1)),
                _ => {
                    let low = _mm512_mask_blend_epi16(bit(128), words(0), words(1));
                    let high = _mm512_mask_blend_epi16(bit(128), words(2), words(3));
                    _mm512_mask_blend_epi16(bit(256), low, high)
                }
            };
            let byte = _mm512_mask_srli_epi16::<8>(found, bit(1), found);
            _mm512_and_si512(byte, _mm512_set1_epi16(255))
        }
    }
    #[inline(always)]
    fn gather<const L: usize>(self, table: &[f32; L], index: __m512i) -> __m512 {
        const { assert!(L.is_power_of_two()) };
        // SAFETY: as above; the mask keeps every index inside the table.
        unsafe {
            let index = _mm512_and_si512(index, _mm512_set1_epi32((L - 1) as i32));
            _mm512_i32gather_ps::<4>(index, table.as_ptr())
        }
    }
    #[inline(always)]
    fn prefetch(self, bytes: &[u8], offset: usize) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(offset).cast()) }
    }
}
