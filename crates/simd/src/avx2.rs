//! AVX2: a vector is two registers.

use crate::{Isa, low_bits_table};
use std::arch::asm;
use std::arch::x86_64::*;

/// AVX2 with FMA and F16C: Intel since Haswell, AMD since Zen.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// Calls `f` with the instructions enabled. The features that [`Avx2::new`] looks for are these.
#[target_feature(enable = "avx2,fma,f16c")]
fn run<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Defines methods of [`Isa`] from intrinsics.
macro_rules! methods {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: `self` is only made by `new`, which found every feature. Loads and stores go
            // through references to arrays, within their width.
            unsafe { $body }
        }
    )*};
}

type F = [__m256; 2];
type N = [__m256i; 2];

impl Isa for Avx2 {
    const NAME: &'static str = "avx2";
    const TILE: (usize, usize) = (2, 3);
    const PAIRS: bool = true;
    type F = F;
    type N = N;

    #[inline(always)]
    fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Avx2(()))
    }

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` is only made by `new`, which found every feature.
        unsafe { run(f) }
    }

    methods! {
        load_n(x: &[u8; 64]) -> N = [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(32).cast())];
        store_n(v: N, out: &mut [u8; 64]) -> () = {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), v[1]);
        };
        dot4(sum: N, u: N, s: N) -> N = [
            four_products(sum[0], u[0], s[0]),
            four_products(sum[1], u[1], s[1]),
        ];
        dot2(pairs: N, u: N, s: N) -> N = [two_products(pairs[0], u[0], s[0]), two_products(pairs[1], u[1], s[1])];
        mul_pairs(a: N, b: N) -> N = [_mm256_mullo_epi16(a[0], b[0]), _mm256_mullo_epi16(a[1], b[1])];
        dot_pairs(sum: N, a: N, b: N) -> N = [
            _mm256_add_epi32(sum[0], _mm256_madd_epi16(a[0], b[0])),
            _mm256_add_epi32(sum[1], _mm256_madd_epi16(a[1], b[1])),
        ];
        // The sign of w goes to s, and what is left of w is at most 128.
        dot4_wide(sum: N, w: N, s: N) -> N = [
            four_products(sum[0], _mm256_abs_epi8(w[0]), _mm256_sign_epi8(s[0], w[0])),
            four_products(sum[1], _mm256_abs_epi8(w[1]), _mm256_sign_epi8(s[1], w[1])),
        ];
        load_rows(x: &[u8], stride: usize, offset: usize) -> [N; 4] = {
            assert!(x.len() >= 15 * stride + offset + 16, "sixteen bytes of sixteen rows");
            let x = x.as_ptr().add(offset);
            let mut out = [[_mm256_setzero_si256(); 2]; 4];
            for half in 0..2 {
                // Rows i and 4 + i in the halves of register i; then four by four in each.
                macro_rules! halves {
                    ($i:literal) => {{
                        let row = |r: usize| _mm_loadu_si128(x.add((8 * half + r) * stride).cast());
                        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row($i)), row(4 + $i))
                    }};
                }
                let v = [halves!(0), halves!(1), halves!(2), halves!(3)];
                let (a, b) = (_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
                let (c, d) = (_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
                out[0][half] = _mm256_unpacklo_epi64(a, c);
                out[1][half] = _mm256_unpackhi_epi64(a, c);
                out[2][half] = _mm256_unpacklo_epi64(b, d);
                out[3][half] = _mm256_unpackhi_epi64(b, d);
            }
            out
        };
        transpose_bytes(v: N) -> N = {
            let order = _mm256_broadcastsi128_si256(byte_transposition());
            [_mm256_shuffle_epi8(v[0], order), _mm256_shuffle_epi8(v[1], order)]
        };
        transpose_quarters(v: [N; 4]) -> [N; 4] = {
            // Quarters 0 and 1 are in the first register of a vector, 2 and 3 in the second.
            let two = |r: usize, a: usize, b: usize| [
                _mm256_permute2x128_si256::<0x20>(v[a][r], v[b][r]),
                _mm256_permute2x128_si256::<0x31>(v[a][r], v[b][r]),
            ];
            let (a, b, c, d) = (two(0, 0, 1), two(0, 2, 3), two(1, 0, 1), two(1, 2, 3));
            [[a[0], b[0]], [a[1], b[1]], [c[0], d[0]], [c[1], d[1]]]
        };
        transpose_lanes(v: F) -> F = {
            // Rows 0 and 1 in one register, 2 and 3 in the other: columns 0 and 2, and 1 and 3.
            let (a, b) = (_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            [_mm256_permutevar8x32_ps(a, order), _mm256_permutevar8x32_ps(b, order)]
        };
        low_f16(v: N) -> F = {
            let low = |v| _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low(v[0]), low(v[1])));
            [_mm256_cvtph_ps(_mm256_castsi256_si128(words)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(words))]
        };
        lookup_bytes(table: &[u8; 16], index: N) -> N = {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, index[0]), _mm256_shuffle_epi8(table, index[1])]
        };
        narrow(v: N) -> [u8; 16] = {
            let mut lanes = [0i32; 16];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(lanes.as_mut_ptr().add(8).cast(), v[1]);
            lanes.map(|x| x as u8)
        };
        splat(x: f32) -> F = [_mm256_set1_ps(x); 2];
        load(x: &[f32; 16]) -> F = [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))];
        store(v: F, out: &mut [f32; 16]) -> () = {
            _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), v[1]);
        };
        f16(bits: u16) -> f32 = {
            // The compiler would insert the number into a register that holds something else, and every
            // scale would wait for it.
            let half: __m128i;
            asm!("vmovd {}, {:e}", lateout(xmm_reg) half, in(reg) u32::from(bits), options(pure, nomem, nostack));
            _mm_cvtss_f32(_mm_cvtph_ps(half))
        };
        load_f16(x: &[u8; 32]) -> F = [
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(16).cast())),
        ];
        store_f16(v: F, out: &mut [u8; 32]) -> () = {
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(out.as_mut_ptr().add(16).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        };
        load_bf16(x: &[u8; 32]) -> F = [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast())))),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(
                x.as_ptr().add(16).cast(),
            )))),
        ];

        add(a: F, b: F) -> F = [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])];
        sub(a: F, b: F) -> F = [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])];
        mul(a: F, b: F) -> F = [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
        div(a: F, b: F) -> F = [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])];
        fma(a: F, b: F, c: F) -> F =
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];
        min(a: F, b: F) -> F = [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])];
        max(a: F, b: F) -> F = [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])];
        sum(v: F) -> f32 = {
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        };
        // Each step folds two registers into one, so that lanes add up in the order of `sum`.
        reduce16(v: [F; 16]) -> F = {
            macro_rules! fold {
                ($shuffle:ident, $low:literal, $high:literal, $a:expr, $b:expr) => {{
                    let (a, b) = ($a, $b);
                    _mm256_add_ps($shuffle::<$low>(a, b), $shuffle::<$high>(a, b))
                }};
            }
            macro_rules! two {
                ($i:expr) => {
                    // Lane i with i + 8, then with i + 4.
                    fold!(
                        _mm256_permute2f128_ps, 0x20, 0x31,
                        _mm256_add_ps(v[$i][0], v[$i][1]), _mm256_add_ps(v[$i + 1][0], v[$i + 1][1])
                    )
                };
            }
            macro_rules! four {
                // With i + 2.
                ($i:expr) => { fold!(_mm256_shuffle_ps, 0b01_00_01_00, 0b11_10_11_10, two!($i), two!($i + 2)) };
            }
            macro_rules! eight {
                // With i + 1. Lane l of 128-bit half h is now the sum of vector 2 l + h.
                ($i:expr) => {
                    _mm256_permutevar8x32_ps(
                        fold!(_mm256_shuffle_ps, 0b10_00_10_00, 0b11_01_11_01, four!($i), four!($i + 4)),
                        _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7),
                    )
                };
            }
            [eight!(0), eight!(8)]
        };
        max_lane(v: F) -> f32 = {
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        };

        widen_u8(x: &[u8; 16]) -> N = [
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast())),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().add(8).cast())),
        ];
        widen_i8(x: &[u8; 16]) -> N = [
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast())),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().add(8).cast())),
        ];
        spread1(x: u16) -> N = {
            let x = _mm256_set1_epi32(i32::from(x));
            [
                _mm256_srlv_epi32(x, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
                _mm256_srlv_epi32(x, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)),
            ]
        };
        spread2(x: u32) -> N = {
            let x = _mm256_set1_epi32(x as i32);
            [
                _mm256_srlv_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14)),
                _mm256_srlv_epi32(x, _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30)),
            ]
        };
        shr_by(v: N, bits: u32) -> N = [
            _mm256_srl_epi32(v[0], _mm_cvtsi32_si128(bits as i32)),
            _mm256_srl_epi32(v[1], _mm_cvtsi32_si128(bits as i32)),
        ];
        shr_each(v: N, bits: N) -> N =
            [_mm256_srlv_epi32(v[0], bits[0]), _mm256_srlv_epi32(v[1], bits[1])];
        shl_by(v: N, bits: u32) -> N = [
            _mm256_sll_epi32(v[0], _mm_cvtsi32_si128(bits as i32)),
            _mm256_sll_epi32(v[1], _mm_cvtsi32_si128(bits as i32)),
        ];
        min_n(a: N, b: N) -> N = [_mm256_min_epi32(a[0], b[0]), _mm256_min_epi32(a[1], b[1])];
        splat_n(x: i32) -> N = [_mm256_set1_epi32(x); 2];
        sub_n(a: N, b: N) -> N = [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])];
        add_n(a: N, b: N) -> N = [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])];
        and(a: N, b: N) -> N = [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])];
        or(a: N, b: N) -> N = [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])];
        xor(a: N, b: N) -> N = [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])];
        to_f32(v: N) -> F = [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])];
        round(v: F) -> N = [_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1])];
        from_bits(v: N) -> F = [_mm256_castsi256_ps(v[0]), _mm256_castsi256_ps(v[1])];
        to_bits(v: F) -> N = [_mm256_castps_si256(v[0]), _mm256_castps_si256(v[1])];
        lookup(table: F, index: N) -> F = {
            macro_rules! half {
                // Bit 3 of the index, moved to the sign, chooses.
                ($i:expr) => {
                    _mm256_blendv_ps(
                        _mm256_permutevar8x32_ps(table[0], $i),
                        _mm256_permutevar8x32_ps(table[1], $i),
                        _mm256_castsi256_ps(_mm256_slli_epi32::<28>($i)),
                    )
                };
            }
            [half!(index[0]), half!(index[1])]
        };
    }

    #[inline(always)]
    fn spread8<const BITS: usize>(self, low: u32, high: u32) -> N {
        const { assert!(BITS <= 4) };
        let b = BITS as i32;
        // SAFETY: `self` is only made by `new`, which found every feature.
        unsafe {
            let shifts = _mm256_setr_epi32(0, b, 2 * b, 3 * b, 4 * b, 5 * b, 6 * b, 7 * b);
            [
                _mm256_srlv_epi32(_mm256_set1_epi32(low as i32), shifts),
                _mm256_srlv_epi32(_mm256_set1_epi32(high as i32), shifts),
            ]
        }
    }
    #[inline(always)]
    fn shr<const K: i32>(self, v: N) -> N {
        // SAFETY: `self` is only made by `new`, which found every feature.
        unsafe { [_mm256_srli_epi32::<K>(v[0]), _mm256_srli_epi32::<K>(v[1])] }
    }
    #[inline(always)]
    fn shl<const K: i32>(self, v: N) -> N {
        // SAFETY: as above.
        unsafe { [_mm256_slli_epi32::<K>(v[0]), _mm256_slli_epi32::<K>(v[1])] }
    }
    #[inline(always)]
    fn low_bits<const BITS: u32, const OFFSET: i32>(self, v: N) -> F {
        if BITS <= 3 {
            // One instruction instead of three: the lookup looks at three bits, and the table repeats.
            return self.lookup8(self.load(&const { low_bits_table(BITS, OFFSET) }), v);
        }
        let code = self.and(v, self.splat_n((1 << BITS) - 1));
        self.to_f32(if OFFSET == 0 { code } else { self.add_n(code, self.splat_n(OFFSET)) })
    }
    #[inline(always)]
    fn lookup8(self, table: F, index: N) -> F {
        // SAFETY: `self` is only made by `new`, which found every feature.
        unsafe {
            [_mm256_permutevar8x32_ps(table[0], index[0]), _mm256_permutevar8x32_ps(table[0], index[1])]
        }
    }
    #[inline(always)]
    fn gather<const L: usize>(self, table: &[f32; L], index: N) -> F {
        const { assert!(L.is_power_of_two()) };
        // SAFETY: as above; the mask keeps every index inside the table.
        unsafe {
            let mask = _mm256_set1_epi32((L - 1) as i32);
            [
                _mm256_i32gather_ps::<4>(table.as_ptr(), _mm256_and_si256(index[0], mask)),
                _mm256_i32gather_ps::<4>(table.as_ptr(), _mm256_and_si256(index[1], mask)),
            ]
        }
    }
    #[inline(always)]
    fn prefetch(self, bytes: &[u8], offset: usize) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(offset).cast()) }
    }
}

/// Byte `4 i + j` comes from byte `4 j + i`.
#[inline(always)]
pub(crate) unsafe fn byte_transposition() -> __m128i {
    // SAFETY: the caller holds the value of an instruction set that has AVX.
    unsafe { _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15) }
}

/// `sum[i] + Σ_j u[4i + j]·s[4i + j]`, u at most 128 and |s| at most 127: a sum of two products fits 16 bits.
#[inline(always)]
unsafe fn four_products(sum: __m256i, u: __m256i, s: __m256i) -> __m256i {
    // SAFETY: the caller holds an [`Avx2`].
    unsafe {
        let pairs = _mm256_maddubs_epi16(u, s);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// `pairs[i] + u[2i]·s[2i] + u[2i + 1]·s[2i + 1]`.
#[inline]
#[target_feature(enable = "avx2")]
fn two_products(mut pairs: __m256i, u: __m256i, s: __m256i) -> __m256i {
    // From intrinsics the compiler makes sums in another order, which wants more registers than there are: slower by
    // a third.
    // SAFETY: the instructions touch only these registers.
    unsafe {
        asm!(
            "vpmaddubsw {t}, {u}, {s}",
            "vpaddw {pairs}, {pairs}, {t}",
            t = out(ymm_reg) _, u = in(ymm_reg) u, s = in(ymm_reg) s, pairs = inout(ymm_reg) pairs,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    pairs
}
