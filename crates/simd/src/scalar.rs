//! Plain loops over sixteen lanes: the reference for every other instruction set.

use crate::Isa;
use half::{bf16, f16};
use std::array::from_fn;

/// No SIMD at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

impl Isa for Scalar {
    const NAME: &'static str = "scalar";
    const TILE: (usize, usize) = (1, 1);
    type F = [f32; 16];
    type N = [i32; 16];

    #[inline(always)]
    fn new() -> Option<Self> {
        Some(Scalar)
    }
    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }
    #[inline(always)]
    fn store(self, v: [f32; 16], out: &mut [f32; 16]) {
        *out = v;
    }
    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> [f32; 16] {
        from_fn(|i| f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn store_f16(self, v: [f32; 16], out: &mut [u8; 32]) {
        for (pair, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(v) {
            *pair = f16::from_f32(x).to_le_bytes();
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> [f32; 16] {
        from_fn(|i| bf16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn min(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sum(self, mut v: [f32; 16]) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
    #[inline(always)]
    fn reduce16(self, v: [[f32; 16]; 16]) -> [f32; 16] {
        v.map(|v| self.sum(v))
    }
    #[inline(always)]
    fn max_lane(self, v: [f32; 16]) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn widen_u8(self, x: &[u8; 16]) -> [i32; 16] {
        x.map(i32::from)
    }
    #[inline(always)]
    fn widen_i8(self, x: &[u8; 16]) -> [i32; 16] {
        x.map(|b| i32::from(b as i8))
    }
    #[inline(always)]
    fn spread1(self, x: u16) -> [i32; 16] {
        from_fn(|i| i32::from(x >> i))
    }
    #[inline(always)]
    fn spread2(self, x: u32) -> [i32; 16] {
        from_fn(|i| (x >> (2 * i)) as i32)
    }
    #[inline(always)]
    fn spread8<const BITS: usize>(self, low: u32, high: u32) -> [i32; 16] {
        from_fn(|i| ([low, high][i / 8] >> (BITS * (i % 8))) as i32)
    }
    #[inline(always)]
    fn splat_n(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn add_n(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn sub_n(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn and(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn or(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn xor(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    fn shr<const K: i32>(self, v: [i32; 16]) -> [i32; 16] {
        v.map(|x| (x as u32 >> K) as i32)
    }
    #[inline(always)]
    fn shr_by(self, v: [i32; 16], bits: u32) -> [i32; 16] {
        v.map(|x| (x as u32 >> bits) as i32)
    }
    #[inline(always)]
    fn shl<const K: i32>(self, v: [i32; 16]) -> [i32; 16] {
        v.map(|x| x << K)
    }
    #[inline(always)]
    fn shr_each(self, v: [i32; 16], bits: [i32; 16]) -> [i32; 16] {
        from_fn(|i| (v[i] as u32 >> bits[i]) as i32)
    }
    #[inline(always)]
    fn shl_by(self, v: [i32; 16], bits: u32) -> [i32; 16] {
        v.map(|x| x << bits)
    }
    #[inline(always)]
    fn min_n(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].min(b[i]))
    }
    #[inline(always)]
    fn to_f32(self, v: [i32; 16]) -> [f32; 16] {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    fn round(self, v: [f32; 16]) -> [i32; 16] {
        v.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn from_bits(self, v: [i32; 16]) -> [f32; 16] {
        v.map(|x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn to_bits(self, v: [f32; 16]) -> [i32; 16] {
        v.map(|x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn load_n(self, x: &[u8; 64]) -> [i32; 16] {
        from_fn(|i| i32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]))
    }
    #[inline(always)]
    fn store_n(self, v: [i32; 16], out: &mut [u8; 64]) {
        for (out, x) in out.as_chunks_mut().0.iter_mut().zip(v) {
            *out = x.to_le_bytes();
        }
    }
    #[inline(always)]
    fn dot4(self, sum: [i32; 16], u: [i32; 16], s: [i32; 16]) -> [i32; 16] {
        self.dot4_wide(sum, u, s)
    }
    #[inline(always)]
    fn dot2(self, pairs: [i32; 16], u: [i32; 16], s: [i32; 16]) -> [i32; 16] {
        // The words whose other half is zero give the sums of one half.
        let half = |mask: u32| self.dot4([0; 16], u.map(|u| (u as u32 & mask) as i32), s);
        let (low, high) = (half(0xffff), half(0xffff_0000));
        from_fn(|i| {
            let sum = |shift: u32, x: i32| u32::from(((pairs[i] >> shift) as u16).wrapping_add(x as u16));
            (sum(16, high[i]) << 16 | sum(0, low[i])) as i32
        })
    }
    #[inline(always)]
    fn mul_pairs(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| {
            let product =
                |shift: u32| i32::from(((a[i] >> shift) as u16).wrapping_mul((b[i] >> shift) as u16));
            product(16) << 16 | product(0)
        })
    }
    #[inline(always)]
    fn dot_pairs(self, sum: [i32; 16], a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| {
            let product = |shift: u32| i32::from((a[i] >> shift) as i16) * i32::from((b[i] >> shift) as i16);
            sum[i].wrapping_add(product(0)).wrapping_add(product(16))
        })
    }
    #[inline(always)]
    fn dot4_wide(self, sum: [i32; 16], w: [i32; 16], s: [i32; 16]) -> [i32; 16] {
        from_fn(|i| {
            let pairs = w[i].to_le_bytes().into_iter().zip(s[i].to_le_bytes());
            sum[i].wrapping_add(pairs.map(|(w, s)| i32::from(w as i8) * i32::from(s as i8)).sum::<i32>())
        })
    }
    #[inline(always)]
    fn load_rows(self, x: &[u8], stride: usize, offset: usize) -> [[i32; 16]; 4] {
        from_fn(|j| {
            from_fn(|r| {
                i32::from_le_bytes(*x[r * stride + offset + 4 * j..].first_chunk().expect("sixteen bytes"))
            })
        })
    }
    #[inline(always)]
    fn transpose_bytes(self, v: [i32; 16]) -> [i32; 16] {
        from_fn(|i| i32::from_le_bytes(from_fn(|l| v[i / 4 * 4 + l].to_le_bytes()[i % 4])))
    }
    #[inline(always)]
    fn transpose_quarters(self, v: [[i32; 16]; 4]) -> [[i32; 16]; 4] {
        from_fn(|q| from_fn(|i| v[i / 4][4 * q + i % 4]))
    }
    #[inline(always)]
    fn transpose_lanes(self, v: [f32; 16]) -> [f32; 16] {
        from_fn(|i| v[i % 4 * 4 + i / 4])
    }
    #[inline(always)]
    fn low_f16(self, v: [i32; 16]) -> [f32; 16] {
        v.map(|x| self.f16(x as u16))
    }
    #[inline(always)]
    fn lookup_bytes(self, table: &[u8; 16], index: [i32; 16]) -> [i32; 16] {
        index.map(|four| i32::from_le_bytes(four.to_le_bytes().map(|i| table[usize::from(i)])))
    }
    #[inline(always)]
    fn narrow(self, v: [i32; 16]) -> [u8; 16] {
        v.map(|x| x as u8)
    }
    #[inline(always)]
    fn lookup(self, table: [f32; 16], index: [i32; 16]) -> [f32; 16] {
        index.map(|i| table[(i & 15) as usize])
    }
    #[inline(always)]
    fn gather<const L: usize>(self, table: &[f32; L], index: [i32; 16]) -> [f32; 16] {
        const { assert!(L.is_power_of_two()) };
        index.map(|i| table[i as usize & (L - 1)])
    }
}
