//! NEON, with and without products of bytes: a vector is four registers.
//!
//! The matrix product of I8MM does not fit sixteen rows in the lanes of a vector: a register of it would be eight
//! bytes of two rows.

use crate::Isa;
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// NEON, and SDOT or not.
#[derive(Clone, Copy, Debug)]
pub struct Arm<const SDOT: bool>(());

/// NEON, which every 64-bit Arm processor has.
pub type Neon = Arm<false>;

/// NEON and SDOT: Arm since Cortex-A76 and Neoverse N1, Apple since M1.
pub type Dotprod = Arm<true>;

/// Calls `f` with the instructions enabled. The feature that [`Neon`] looks for is this.
#[target_feature(enable = "neon")]
fn run<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// The same for those of [`Dotprod`].
#[target_feature(enable = "neon,dotprod")]
fn run_dotprod<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// The expression for each of the four registers.
///
/// An array's `map` and `from_fn` will not do: they are compiled without the instruction set, and so are
/// the closures they call.
macro_rules! each {
    ($i:ident => $body:expr) => {
        [
            {
                let $i: usize = 0;
                $body
            },
            {
                let $i: usize = 1;
                $body
            },
            {
                let $i: usize = 2;
                $body
            },
            {
                let $i: usize = 3;
                $body
            },
        ]
    };
}

/// Defines methods of [`Isa`] from intrinsics.
macro_rules! methods {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: `self` is only made by `new`, which found the feature. Loads and stores go
            // through references to arrays, within their width.
            unsafe { $body }
        }
    )*};
}

type F = [float32x4_t; 4];
type N = [uint32x4_t; 4];

impl<const SDOT: bool> Isa for Arm<SDOT> {
    const NAME: &'static str = if SDOT { "dotprod" } else { "neon" };
    const TILE: (usize, usize) = (2, 2);
    type F = F;
    type N = N;

    #[inline(always)]
    fn new() -> Option<Self> {
        (is_aarch64_feature_detected!("neon") && (!SDOT || is_aarch64_feature_detected!("dotprod")))
            .then_some(Arm(()))
    }

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` is only made by `new`, which found the features.
        unsafe { if SDOT { run_dotprod(f) } else { run(f) } }
    }

    methods! {
        splat(x: f32) -> F = [vdupq_n_f32(x); 4];
        load(x: &[f32; 16]) -> F = each!(i => vld1q_f32(x.as_ptr().add(4 * i)));
        store(v: F, out: &mut [f32; 16]) -> () =
            for (i, v) in v.into_iter().enumerate() {
                vst1q_f32(out.as_mut_ptr().add(4 * i), v);
            };
        f16(bits: u16) -> f32 = {
            let single: f32;
            asm!("fcvt {0:s}, {0:h}", inlateout(vreg) f32::from_bits(u32::from(bits)) => single, options(pure, nomem, nostack));
            single
        };
        load_f16(x: &[u8; 32]) -> F = each!(i => widened(vreinterpret_u16_u8(vld1_u8(x.as_ptr().add(8 * i)))));
        store_f16(v: F, out: &mut [u8; 32]) -> () =
            for (i, single) in v.into_iter().enumerate() {
                let half: uint16x4_t;
                asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) half, in(vreg) single, options(pure, nomem, nostack));
                vst1_u8(out.as_mut_ptr().add(8 * i), vreinterpret_u8_u16(half));
            };
        load_bf16(x: &[u8; 32]) -> F = each!(i => {
            let half = vreinterpret_u16_u8(vld1_u8(x.as_ptr().add(8 * i)));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(half))
        });

        add(a: F, b: F) -> F = each!(i => vaddq_f32(a[i], b[i]));
        sub(a: F, b: F) -> F = each!(i => vsubq_f32(a[i], b[i]));
        mul(a: F, b: F) -> F = each!(i => vmulq_f32(a[i], b[i]));
        div(a: F, b: F) -> F = each!(i => vdivq_f32(a[i], b[i]));
        fma(a: F, b: F, c: F) -> F = each!(i => vfmaq_f32(c[i], a[i], b[i]));
        // The instructions FMIN and FMAX would let a NaN win.
        min(a: F, b: F) -> F = each!(i => vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]));
        max(a: F, b: F) -> F = each!(i => vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]));
        sum(v: F) -> f32 = {
            let v = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        };
        reduce16(v: [F; 16]) -> F = each!(q => {
            // Lane l of quarter q is the sum of vector 4 q + l, added in the order of `sum`.
            macro_rules! quarter {
                ($i:expr) => { vaddq_f32(vaddq_f32(v[$i][0], v[$i][2]), vaddq_f32(v[$i][1], v[$i][3])) };
            }
            macro_rules! two {
                ($i:expr) => {{
                    let (a, b) = (vreinterpretq_f64_f32(quarter!($i)), vreinterpretq_f64_f32(quarter!($i + 1)));
                    vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)))
                }};
            }
            vpaddq_f32(two!(4 * q), two!(4 * q + 2))
        });
        max_lane(v: F) -> f32 = vmaxvq_f32(vmaxq_f32(vmaxq_f32(v[0], v[2]), vmaxq_f32(v[1], v[3])));

        load_n(x: &[u8; 64]) -> N = each!(i => vreinterpretq_u32_u8(vld1q_u8(x.as_ptr().add(16 * i))));
        store_n(v: N, out: &mut [u8; 64]) -> () =
            for (i, v) in v.into_iter().enumerate() {
                vst1q_u8(out.as_mut_ptr().add(16 * i), vreinterpretq_u8_u32(v));
            };
        dot2(pairs: N, u: N, s: N) -> N = each!(i =>
            vreinterpretq_u32_s16(vaddq_s16(vreinterpretq_s16_u32(pairs[i]), two_products(u[i], s[i]))));
        mul_pairs(a: N, b: N) -> N = each!(i => {
            let product = vmulq_u16(vreinterpretq_u16_u32(a[i]), vreinterpretq_u16_u32(b[i]));
            vreinterpretq_u32_u16(product)
        });
        dot_pairs(sum: N, a: N, b: N) -> N = each!(i => {
            let (a, b) = (vreinterpretq_s16_u32(a[i]), vreinterpretq_s16_u32(b[i]));
            let (low, high) = (vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
            vaddq_u32(sum[i], vreinterpretq_u32_s32(vpaddq_s32(low, high)))
        });
        dot4_wide(sum: N, w: N, s: N) -> N =
            each!(i => if SDOT { sdot(sum[i], w[i], s[i]) } else { four_products(sum[i], w[i], s[i]) });
        load_rows(x: &[u8], stride: usize, offset: usize) -> [N; 4] = {
            assert!(x.len() >= 15 * stride + offset + 16, "sixteen bytes of sixteen rows");
            let x = x.as_ptr().add(offset);
            let mut out = [[vdupq_n_u32(0); 4]; 4];
            for q in 0..4 {
                macro_rules! row {
                    ($i:literal) => { vreinterpretq_u32_u8(vld1q_u8(x.add((4 * q + $i) * stride))) };
                }
                let v = [row!(0), row!(1), row!(2), row!(3)];
                let (a, b) = (vtrn1q_u32(v[0], v[1]), vtrn2q_u32(v[0], v[1]));
                let (c, d) = (vtrn1q_u32(v[2], v[3]), vtrn2q_u32(v[2], v[3]));
                let (a, b) = (vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b));
                let (c, d) = (vreinterpretq_u64_u32(c), vreinterpretq_u64_u32(d));
                out[0][q] = vreinterpretq_u32_u64(vtrn1q_u64(a, c));
                out[1][q] = vreinterpretq_u32_u64(vtrn1q_u64(b, d));
                out[2][q] = vreinterpretq_u32_u64(vtrn2q_u64(a, c));
                out[3][q] = vreinterpretq_u32_u64(vtrn2q_u64(b, d));
            }
            out
        };
        transpose_bytes(v: N) -> N = {
            let order = vld1q_u8([0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15].as_ptr());
            each!(i => vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(v[i]), order)))
        };
        transpose_quarters(v: [N; 4]) -> [N; 4] = each!(q => [v[0][q], v[1][q], v[2][q], v[3][q]]);
        transpose_lanes(v: F) -> F = {
            let (a, b) = (vtrn1q_f32(v[0], v[1]), vtrn2q_f32(v[0], v[1]));
            let (c, d) = (vtrn1q_f32(v[2], v[3]), vtrn2q_f32(v[2], v[3]));
            let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
            let (c, d) = (vreinterpretq_f64_f32(c), vreinterpretq_f64_f32(d));
            [
                vreinterpretq_f32_f64(vtrn1q_f64(a, c)),
                vreinterpretq_f32_f64(vtrn1q_f64(b, d)),
                vreinterpretq_f32_f64(vtrn2q_f64(a, c)),
                vreinterpretq_f32_f64(vtrn2q_f64(b, d)),
            ]
        };
        low_f16(v: N) -> F = each!(i => widened(vmovn_u32(v[i])));
        lookup_bytes(table: &[u8; 16], index: N) -> N = {
            let table = vld1q_u8(table.as_ptr());
            each!(i => vreinterpretq_u32_u8(vqtbl1q_u8(table, vreinterpretq_u8_u32(index[i]))))
        };
        narrow(v: N) -> [u8; 16] = {
            let mut out = [0; 16];
            let low = vcombine_u16(vmovn_u32(v[0]), vmovn_u32(v[1]));
            let high = vcombine_u16(vmovn_u32(v[2]), vmovn_u32(v[3]));
            vst1q_u8(out.as_mut_ptr(), vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
            out
        };

        widen_u8(x: &[u8; 16]) -> N = {
            let x = vld1q_u8(x.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
            [vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)]
        };
        widen_i8(x: &[u8; 16]) -> N = {
            let x = vld1q_s8(x.as_ptr().cast());
            let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            [
                vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(low))),
                vreinterpretq_u32_s32(vmovl_high_s16(low)),
                vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(high))),
                vreinterpretq_u32_s32(vmovl_high_s16(high)),
            ]
        };
        spread1(x: u16) -> N = each!(i => {
            let i = i as i32;
            let shifts = vld1q_s32([-4 * i, -4 * i - 1, -4 * i - 2, -4 * i - 3].as_ptr());
            vshlq_u32(vdupq_n_u32(u32::from(x)), shifts)
        });
        spread2(x: u32) -> N = each!(i => {
            let i = i as i32;
            let shifts = vld1q_s32([-8 * i, -8 * i - 2, -8 * i - 4, -8 * i - 6].as_ptr());
            vshlq_u32(vdupq_n_u32(x), shifts)
        });
        shr_by(v: N, bits: u32) -> N = each!(i => vshlq_u32(v[i], vdupq_n_s32(-(bits as i32))));
        shr_each(v: N, bits: N) -> N =
            each!(i => vshlq_u32(v[i], vnegq_s32(vreinterpretq_s32_u32(bits[i]))));
        shl_by(v: N, bits: u32) -> N = each!(i => vshlq_u32(v[i], vdupq_n_s32(bits as i32)));
        min_n(a: N, b: N) -> N = each!(i => {
            let (a, b) = (vreinterpretq_s32_u32(a[i]), vreinterpretq_s32_u32(b[i]));
            vreinterpretq_u32_s32(vminq_s32(a, b))
        });
        splat_n(x: i32) -> N = [vdupq_n_u32(x as u32); 4];
        sub_n(a: N, b: N) -> N = each!(i => vsubq_u32(a[i], b[i]));
        add_n(a: N, b: N) -> N = each!(i => vaddq_u32(a[i], b[i]));
        and(a: N, b: N) -> N = each!(i => vandq_u32(a[i], b[i]));
        or(a: N, b: N) -> N = each!(i => vorrq_u32(a[i], b[i]));
        xor(a: N, b: N) -> N = each!(i => veorq_u32(a[i], b[i]));
        to_f32(v: N) -> F = each!(i => vcvtq_f32_s32(vreinterpretq_s32_u32(v[i])));
        round(v: F) -> N = each!(i => vreinterpretq_u32_s32(vcvtnq_s32_f32(v[i])));
        from_bits(v: N) -> F = each!(i => vreinterpretq_f32_u32(v[i]));
        to_bits(v: F) -> N = each!(i => vreinterpretq_u32_f32(v[i]));
        lookup(table: F, index: N) -> F = {
            let table = uint8x16x4_t(
                vreinterpretq_u8_f32(table[0]),
                vreinterpretq_u8_f32(table[1]),
                vreinterpretq_u8_f32(table[2]),
                vreinterpretq_u8_f32(table[3]),
            );
            each!(i => {
                // The index of each of the four bytes of the float: 4 n, 4 n + 1, 4 n + 2, 4 n + 3.
                let n = vandq_u32(index[i], vdupq_n_u32(15));
                let bytes = vmlaq_u32(vdupq_n_u32(0x0302_0100), n, vdupq_n_u32(0x0404_0404));
                vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)))
            })
        };
    }

    #[inline(always)]
    fn dot4(self, sum: N, u: N, s: N) -> N {
        // No byte of u has its sign bit set, so they may be read as signed.
        self.dot4_wide(sum, u, s)
    }
    #[inline(always)]
    fn spread8<const BITS: usize>(self, low: u32, high: u32) -> N {
        const { assert!(BITS <= 4) };
        each!(i => {
            let first = -((i % 2 * 4 * BITS) as i32);
            let b = BITS as i32;
            let shifts = [first, first - b, first - 2 * b, first - 3 * b];
            // SAFETY: `self` is only made by `new`, which found the feature.
            unsafe { vshlq_u32(vdupq_n_u32([low, high][i / 2]), vld1q_s32(shifts.as_ptr())) }
        })
    }
    #[inline(always)]
    fn shr<const K: i32>(self, v: N) -> N {
        // SAFETY: `self` is only made by `new`, which found the feature.
        unsafe { each!(i => vshlq_u32(v[i], vdupq_n_s32(-K))) }
    }
    #[inline(always)]
    fn shl<const K: i32>(self, v: N) -> N {
        // SAFETY: as above.
        unsafe { each!(i => vshlq_u32(v[i], vdupq_n_s32(K))) }
    }
    #[inline(always)]
    fn gather<const L: usize>(self, table: &[f32; L], index: N) -> F {
        const { assert!(L.is_power_of_two()) };
        let mut lanes = [0; 16];
        for (lanes, index) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(index) {
            // SAFETY: as above; the store fills an array of four.
            unsafe { vst1q_u32(lanes.as_mut_ptr(), index) };
        }
        self.load(&lanes.map(|i: u32| table[i as usize & (L - 1)]))
    }
    #[inline(always)]
    fn prefetch(self, bytes: &[u8], offset: usize) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe {
            asm!("prfm pldl1keep, [{0}]", in(reg) bytes.as_ptr().wrapping_add(offset), options(readonly, nostack, preserves_flags));
        }
    }
}

/// `sum[i] + Σ_j w[4i + j]·s[4i + j]` of signed bytes.
#[inline]
#[target_feature(enable = "dotprod")]
fn sdot(mut sum: uint32x4_t, w: uint32x4_t, s: uint32x4_t) -> uint32x4_t {
    // The intrinsic is unstable.
    // SAFETY: the instruction touches only these registers.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {s:v}.16b",
            sum = inout(vreg) sum, w = in(vreg) w, s = in(vreg) s,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// The same without that instruction.
#[inline(always)]
unsafe fn four_products(sum: uint32x4_t, w: uint32x4_t, s: uint32x4_t) -> uint32x4_t {
    // SAFETY: the caller holds an [`Arm`].
    unsafe { vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(sum), two_products(w, s))) }
}

/// `w[2i]·s[2i] + w[2i + 1]·s[2i + 1]` of signed bytes, |s| at most 127: a sum of two products fits 16 bits.
#[inline(always)]
unsafe fn two_products(w: uint32x4_t, s: uint32x4_t) -> int16x8_t {
    // SAFETY: the caller holds an [`Arm`].
    unsafe {
        let (w, s) = (vreinterpretq_s8_u32(w), vreinterpretq_s8_u32(s));
        vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(s)), vmull_high_s8(w, s))
    }
}

/// Half precision to single.
#[inline(always)]
unsafe fn widened(half: uint16x4_t) -> float32x4_t {
    let single: float32x4_t;
    // The intrinsic wants the unstable type `f16`.
    // SAFETY: the caller holds an [`Arm`]; the instruction touches only these registers.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) single, in(vreg) half, options(pure, nomem, nostack));
    }
    single
}
