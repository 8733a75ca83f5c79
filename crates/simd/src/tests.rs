//! Every instruction set against [`Scalar`], operation by operation, to the bit.

use crate::{Isa, Level, Scalar, dispatch};

/// A small generator, so that failures repeat (xorshift, Marsaglia 2003).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// Numbers of many magnitudes and, now and then, a special one.
    pub fn float(&mut self) -> f32 {
        const SPECIAL: [f32; 8] =
            [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, 65520.0, 2.5];
        let bits = self.bits();
        match bits % 16 {
            0 => SPECIAL[(bits >> 8) as usize % SPECIAL.len()],
            _ => ((bits >> 40) as f32 / (1 << 23) as f32 - 1.0) * 10f32.powi((bits >> 32) as i32 % 9 - 4),
        }
    }
    pub fn finite(&mut self) -> f32 {
        let x = self.float();
        if x.is_finite() { x } else { 3.25 }
    }
    pub fn floats(&mut self) -> [f32; 16] {
        std::array::from_fn(|_| self.float())
    }
    pub fn finites(&mut self) -> [f32; 16] {
        std::array::from_fn(|_| self.finite())
    }
    pub fn integers(&mut self) -> [i32; 16] {
        std::array::from_fn(|_| self.bits() as i32)
    }
    pub fn bytes<const L: usize>(&mut self) -> [u8; L] {
        std::array::from_fn(|_| self.bits() as u8)
    }
}

#[track_caller]
fn check(name: &str, actual: [f32; 16], expected: [f32; 16]) {
    for i in 0..16 {
        let (a, e) = (actual[i], expected[i]);
        assert!(a.to_bits() == e.to_bits() || a.is_nan() && e.is_nan(), "{name}, lane {i}: {a:?} not {e:?}");
    }
}

/// The lanes of a vector of integers: they pass through the bits of floats.
fn lanes<I: Isa>(isa: I, v: I::N) -> [f32; 16] {
    let mut out = [0.0; 16];
    isa.store(isa.from_bits(v), &mut out);
    out
}

fn integers<I: Isa>(isa: I, x: [i32; 16]) -> I::N {
    isa.to_bits(isa.load(&x.map(|x| f32::from_bits(x as u32))))
}

#[inline(always)]
fn agrees_with_scalar<I: Isa>(isa: I) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let unload = |v: I::F| {
        let mut out = [0.0; 16];
        isa.store(v, &mut out);
        out
    };
    let bits = |x: [i32; 16]| x.map(|x| f32::from_bits(x as u32));
    for _ in 0..2000 {
        let (a, b, c) = (random.floats(), random.floats(), random.floats());
        let (va, vb, vc) = (isa.load(&a), isa.load(&b), isa.load(&c));
        check("load", unload(va), a);
        check("splat", unload(isa.splat(a[0])), [a[0]; 16]);
        check("add", unload(isa.add(va, vb)), Scalar.add(a, b));
        check("sub", unload(isa.sub(va, vb)), Scalar.sub(a, b));
        check("mul", unload(isa.mul(va, vb)), Scalar.mul(a, b));
        check("div", unload(isa.div(va, vb)), Scalar.div(a, b));
        check("fma", unload(isa.fma(va, vb, vc)), Scalar.fma(a, b, c));
        let mut with_nan = a;
        with_nan[5] = f32::NAN;
        for (a, b) in [(a, b), (with_nan, b), (b, with_nan)] {
            check("min", unload(isa.min(isa.load(&a), isa.load(&b))), Scalar.min(a, b));
            check("max", unload(isa.max(isa.load(&a), isa.load(&b))), Scalar.max(a, b));
        }

        let rows: [[f32; 16]; 16] = std::array::from_fn(|_| random.finites());
        check("sum", [isa.sum(isa.load(&rows[0])); 16], [Scalar.sum(rows[0]); 16]);
        check("reduce16", unload(isa.reduce16(rows.map(|r| isa.load(&r)))), Scalar.reduce16(rows));
        let nonzero = rows[0].map(|x| if x == 0.0 { 1.0 } else { x });
        check("max_lane", [isa.max_lane(isa.load(&nonzero)); 16], [Scalar.max_lane(nonzero); 16]);
        let table = random.floats();
        let (mut encoded, mut expected) = ([0; 32], [0; 32]);
        isa.store_f16(va, &mut encoded);
        Scalar.store_f16(a, &mut expected);
        assert_eq!(encoded, expected, "store_f16 of {a:?}");

        let half: [u8; 32] = random.bytes();
        check("load_f16", unload(isa.load_f16(&half)), Scalar.load_f16(&half));
        check("load_bf16", unload(isa.load_bf16(&half)), Scalar.load_bf16(&half));
        let byte: [u8; 16] = random.bytes();
        check("widen_u8", unload(isa.to_f32(isa.widen_u8(&byte))), Scalar.to_f32(Scalar.widen_u8(&byte)));
        check("widen_i8", unload(isa.to_f32(isa.widen_i8(&byte))), Scalar.to_f32(Scalar.widen_i8(&byte)));
        let x = random.bits() as u32;
        check("spread1", lanes(isa, isa.spread1(x as u16)), bits(Scalar.spread1(x as u16)));
        check("spread2", lanes(isa, isa.spread2(x)), bits(Scalar.spread2(x)));
        let (low, high) = (x, random.bits() as u32);
        check("spread8::<3>", lanes(isa, isa.spread8::<3>(low, high)), bits(Scalar.spread8::<3>(low, high)));
        check("spread8::<4>", lanes(isa, isa.spread8::<4>(low, high)), bits(Scalar.spread8::<4>(low, high)));

        let (m, n) = (random.integers(), random.integers());
        let (vm, vn) = (integers(isa, m), integers(isa, n));
        check("splat_n", lanes(isa, isa.splat_n(m[0])), bits([m[0]; 16]));
        check("add_n", lanes(isa, isa.add_n(vm, vn)), bits(Scalar.add_n(m, n)));
        check("sub_n", lanes(isa, isa.sub_n(vm, vn)), bits(Scalar.sub_n(m, n)));
        check("and", lanes(isa, isa.and(vm, vn)), bits(Scalar.and(m, n)));
        check("or", lanes(isa, isa.or(vm, vn)), bits(Scalar.or(m, n)));
        check("xor", lanes(isa, isa.xor(vm, vn)), bits(Scalar.xor(m, n)));
        check("shr", lanes(isa, isa.shr::<5>(vm)), bits(Scalar.shr::<5>(m)));
        check("shr by 0", lanes(isa, isa.shr::<0>(vm)), bits(m));
        check("shr_by", lanes(isa, isa.shr_by(vm, x % 32)), bits(Scalar.shr_by(m, x % 32)));
        check("shl", lanes(isa, isa.shl::<23>(vm)), bits(Scalar.shl::<23>(m)));
        let counts = n.map(|n| n & 31);
        let shifted = isa.shr_each(vm, integers(isa, counts));
        check("shr_each", lanes(isa, shifted), bits(Scalar.shr_each(m, counts)));
        check("shl_by", lanes(isa, isa.shl_by(vm, x % 32)), bits(Scalar.shl_by(m, x % 32)));
        check("min_n", lanes(isa, isa.min_n(vm, vn)), bits(Scalar.min_n(m, n)));
        check("to_f32", unload(isa.to_f32(vm)), Scalar.to_f32(m));
        let small = rows[1].map(|x| x * 1.5);
        let (bytes_u, bytes_s): ([u8; 64], [u8; 64]) = (random.bytes(), random.bytes());
        check("load_n", lanes(isa, isa.load_n(&bytes_u)), bits(Scalar.load_n(&bytes_u)));
        let mut stored = [0; 64];
        isa.store_n(isa.load_n(&bytes_u), &mut stored);
        assert_eq!(stored, bytes_u, "store_n");
        let small_u = bytes_u.map(|u| u & 127);
        let signed = bytes_s.map(|s| if s == 128 { 0 } else { s });
        for (u, s) in [(small_u, signed), ([127; 64], [129; 64])] {
            let dot = isa.dot4(vm, isa.load_n(&u), isa.load_n(&s));
            let expected = Scalar.dot4(m, Scalar.load_n(&u), Scalar.load_n(&s));
            check("dot4", lanes(isa, dot), bits(expected));
            let pairs = isa.dot2(vn, isa.load_n(&u), isa.load_n(&s));
            let expected = Scalar.dot2(n, Scalar.load_n(&u), Scalar.load_n(&s));
            check("dot2", lanes(isa, pairs), bits(expected));
        }
        check("dot_pairs", lanes(isa, isa.dot_pairs(vm, vn, vm)), bits(Scalar.dot_pairs(m, n, m)));
        check("mul_pairs", lanes(isa, isa.mul_pairs(vm, vn)), bits(Scalar.mul_pairs(m, n)));
        // As many words as 16 bits hold, however large: what `dot4` says, one after the other.
        for top in [1, 3, 7, 15, 24, 31, 63, 127] {
            for s in [127, 129] {
                let (u, s) = (isa.load_n(&[top; 64]), isa.load_n(&[s; 64]));
                let (mut pairs, mut sum) = (isa.splat_n(0), vm);
                for _ in 0..i16::MAX / (2 * 127 * i16::from(top)) {
                    pairs = isa.dot2(pairs, u, s);
                    sum = isa.dot4(sum, u, s);
                }
                check(
                    "pairs",
                    lanes(isa, isa.dot_pairs(vm, pairs, isa.splat_n(0x0001_0001))),
                    lanes(isa, sum),
                );
            }
        }
        for (w, s) in [(bytes_u, signed), ([128; 64], [129; 64]), ([128; 64], [127; 64])] {
            let dot = isa.dot4_wide(vm, isa.load_n(&w.map(|w| w.wrapping_add(I::BIAS))), isa.load_n(&s));
            let bias = Scalar.dot4(m, Scalar.load_n(&[I::BIAS / 2; 64]), Scalar.load_n(&s));
            let bias = Scalar.dot4(bias, Scalar.load_n(&[I::BIAS / 2; 64]), Scalar.load_n(&s));
            let expected = Scalar.dot4_wide(bias, Scalar.load_n(&w), Scalar.load_n(&s));
            check("dot4_wide", lanes(isa, dot), bits(expected));
        }
        let rows: [u8; 15 * 18 + 17] = random.bytes();
        let words = isa.load_rows(&rows, 18, 1);
        for j in 0..4 {
            check("load_rows", lanes(isa, words[j]), bits(Scalar.load_rows(&rows, 18, 1)[j]));
        }
        check("transpose_bytes", lanes(isa, isa.transpose_bytes(vm)), bits(Scalar.transpose_bytes(m)));
        let four: [[i32; 16]; 4] = std::array::from_fn(|_| random.integers());
        let vectors =
            [integers(isa, four[0]), integers(isa, four[1]), integers(isa, four[2]), integers(isa, four[3])];
        let (seen, expected) = (isa.transpose_quarters(vectors), Scalar.transpose_quarters(four));
        for q in 0..4 {
            check("transpose_quarters", lanes(isa, seen[q]), bits(expected[q]));
        }
        check("transpose_lanes", unload(isa.transpose_lanes(va)), Scalar.transpose_lanes(a));
        check("low_f16", unload(isa.low_f16(vm)), Scalar.low_f16(m));
        let index = m.map(|m| m & 0x0f0f_0f0f);
        check("lookup_bytes", lanes(isa, isa.lookup_bytes(&byte, integers(isa, index))), {
            bits(Scalar.lookup_bytes(&byte, index))
        });
        let (long, longer): ([u8; 256], [u8; 512]) = (random.bytes(), random.bytes());
        let index = m.map(|m| m & 0x00ff_00ff);
        check("lookup_halves", lanes(isa, isa.lookup_halves(&long, integers(isa, index))), {
            bits(index.map(|i| i32::from(long[i as usize >> 16]) << 16 | i32::from(long[i as usize & 255])))
        });
        let index = m.map(|m| m & 0x01ff_01ff);
        check("lookup_halves", lanes(isa, isa.lookup_halves(&longer, integers(isa, index))), {
            bits(
                index
                    .map(|i| i32::from(longer[i as usize >> 16]) << 16 | i32::from(longer[i as usize & 511])),
            )
        });
        assert_eq!(isa.narrow(vm), Scalar.narrow(m), "narrow");
        check("round", lanes(isa, isa.round(isa.load(&small))), bits(Scalar.round(small)));
        let ties = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 0.0, -0.0, 7.49, 7.51, 1e6, -1e6, 0.1, -0.1, 4.5];
        check("round ties", lanes(isa, isa.round(isa.load(&ties))), bits(Scalar.round(ties)));
        check("lookup", unload(isa.lookup(isa.load(&table), vm)), Scalar.lookup(table, m));
        check("low_bits", unload(isa.low_bits::<4, -8>(vm)), Scalar.low_bits::<4, -8>(m));
        check("low_bits", unload(isa.low_bits::<4, 0>(vm)), m.map(|m| (m & 15) as f32));
        check("low_bits", unload(isa.low_bits::<3, -4>(vm)), m.map(|m| ((m & 7) - 4) as f32));
        check("low_bits", unload(isa.low_bits::<2, 0>(vm)), m.map(|m| (m & 3) as f32));
        let (base, sixteen) = (isa.load(&nonzero), isa.splat(16.0));
        check("add_where", unload(isa.add_where(x as u16, base, sixteen)), {
            std::array::from_fn(|i| if x >> i & 1 == 1 { nonzero[i] + 16.0 } else { nonzero[i] })
        });
        let eight: [f32; 16] = std::array::from_fn(|i| table[i % 8]);
        check("lookup8", unload(isa.lookup8(isa.load(&eight), vm)), m.map(|m| table[(m & 7) as usize]));
        check("lookup8_split", unload(isa.lookup8_split(isa.load(&eight), vm, x as u16)), {
            std::array::from_fn(|i| eight[(m[i] & 3) as usize + 4 * (x >> i & 1) as usize])
        });
        let long: [f32; 512] = std::array::from_fn(|i| i as f32);
        check("gather", unload(isa.gather(&long, vm)), Scalar.gather(&long, m));
        isa.prefetch(&byte, 1 << 20);
    }
}

#[inline(always)]
fn half_precision_agrees_with_scalar<I: Isa>(isa: I) {
    for x in 0..=u16::MAX {
        check("f16", [isa.f16(x); 16], [Scalar.f16(x); 16]);
    }
}

#[test]
fn every_instruction_set_agrees_with_scalar() {
    for level in Level::all_available() {
        println!("{}", level.name());
        dispatch!(level, |isa| isa.run(|| agrees_with_scalar(isa)));
        dispatch!(level, |isa| isa.run(|| half_precision_agrees_with_scalar(isa)));
    }
}
