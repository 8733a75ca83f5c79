use super::*;
use crate::rotate::{GROUP_MAX, Head, Pcg64};
use proptest::prelude::*;
use torque_simd::{Scalar, dispatch};

/// Calls `$check::<F>()` for every format of the list.
macro_rules! for_every_format {
    ($check:ident) => {
        for_every_format!($check: F32 F16 Bf16 Q8_0 Q5_0 Q5_1 Q4_0 Q4_1 Iq4Nl Iq4Xs Mxfp4
            Q6K Q5K Q4K Q3K Q2K Tq4_1s Tq3_1s Turbo8 Turbo4 Turbo4Tcq Turbo4Nested Turbo3 Turbo3Tcq Turbo3Nested
            Turbo2 Turbo2Tcq Turbo2Nested)
    };
    ($check:ident: $($format:ident)*) => {{
        assert_eq!([$($format::NAME),*].as_slice(), FORMATS.iter().map(|f| f.name).collect::<Vec<_>>());
        $($check::<$format>();)*
    }};
}

const HEAD_DIMS: [usize; 9] = [16, 48, 64, 80, 96, 112, 128, 192, 256];

fn random(seed: u32) -> impl FnMut() -> u32 {
    let mut rng = Pcg64::seed(seed);
    move || rng.next_u32()
}

/// Uniform in −1 .. 1.
fn noise(seed: u32, values: usize) -> Vec<f32> {
    let mut random = random(seed);
    (0..values).map(|_| random() as i32 as f32 / 2_147_483_648.0).collect()
}

/// Sizes of block in values and bytes: of all head sizes for head-sized formats.
fn blocks(format: &FormatOps) -> Vec<(usize, usize)> {
    let mut blocks: Vec<_> = HEAD_DIMS.iter().map(|dim| format.head_block(*dim)).collect();
    blocks.dedup();
    blocks
}

#[test]
fn names_and_ids_are_unique() {
    let mut names: Vec<_> = FORMATS.iter().flat_map(|f| f.aliases.iter().chain([&f.name])).collect();
    let mut ids: Vec<_> = FORMATS.iter().filter_map(|f| f.ggml_type).collect();
    let (all_names, all_ids) = (names.len(), ids.len());
    names.sort();
    names.dedup();
    ids.sort();
    ids.dedup();
    assert_eq!((names.len(), ids.len()), (all_names, all_ids));
    for format in FORMATS {
        assert_eq!(by_name(&format.name.to_uppercase()).unwrap().name, format.name);
        assert!(format.aliases.iter().all(|alias| by_name(alias).unwrap().name == format.name));
        assert!(format.ggml_type.is_none_or(|id| by_ggml_type(id).unwrap().name == format.name));
        assert_eq!(format.name, format.name.to_lowercase());
        assert!(format.weights || format.kv);
        assert_eq!(format.ggml_type.is_some(), format.weights, "{}", format.name);
    }
    assert!(by_name("turbo5").is_none() && by_ggml_type(9999).is_none());
}

#[test]
fn heads_are_stored_in_whole_groups() {
    let turbo3 = by_name("turbo3").unwrap();
    assert_eq!(
        [64, 80, 128, 192, 256].map(|d| turbo3.head_block(d)),
        [(64, 26), (80, 32), (128, 50), (192, 74), (128, 50)]
    );
    assert_eq!(by_name("turbo8").unwrap().head_block(96), (96, 98));
    assert_eq!(by_name("q8_0").unwrap().head_block(80), (32, 34));
}

/// Kernels see what `decode` says, for any bytes: `scale · code + shift`, rotated back for tq.
fn check_affine_and_codes<F: Format>() {
    let format = FormatOps::of::<F>();
    if !F::KV && format.rounds_activations() {
        return;
    }
    let mut random = random(3);
    for (values, bytes) in blocks(&format) {
        for round in 0..20 {
            let mut block: Vec<u8> = (0..bytes).map(|_| random() as u8).collect();
            if round < 10 {
                F::encode_rotated(&noise(round, values), &mut block);
            }
            let mut decoded = vec![0.0; values];
            F::decode(&block, &mut decoded);
            if decoded.iter().any(|y| !y.is_finite()) {
                continue;
            }
            let mut seen = Vec::new();
            for i in 0..values / 16 {
                let (scale, shift) = F::affine(Scalar, &block, i);
                assert!(F::SHIFTED || shift == 0.0, "{}", F::NAME);
                let group = F::GROUP.min(values) / 16;
                assert_eq!(
                    (scale, shift),
                    F::affine(Scalar, &block, i / group * group),
                    "{}: GROUP",
                    F::NAME
                );
                seen.extend(F::codes(Scalar, &block, i).map(|code| scale * code + shift));
            }
            if F::ROTATION == Rotation::Block32 {
                rotate::block32_inverse(seen.as_mut_slice().try_into().unwrap());
            }
            let largest = decoded.iter().fold(0.0, |max: f32, y| max.max(y.abs()));
            for (i, (seen, decoded)) in seen.iter().zip(&decoded).enumerate() {
                assert!(
                    (seen - decoded).abs() <= 1e-6 * largest,
                    "{} {values} [{i}]: {seen} {decoded}",
                    F::NAME
                );
            }
        }
    }
}

#[test]
fn affine_and_codes_agree_with_decode() {
    for_every_format!(check_affine_and_codes);
}

/// Sixteen rows' scales are those of each, to the bit; their codes and scales make what decoding makes.
fn check_rows<F: Format>() {
    #[inline(always)]
    fn check<F: Format, I: Isa>(isa: I, bytes: &[u8]) {
        let unload = |v| {
            let mut lanes = [0.0; 16];
            isa.store(v, &mut lanes);
            lanes
        };
        let blocks = Blocks::new(bytes, F::BYTES, F::BYTES);
        let block = |r: usize| &bytes[r * F::BYTES..][..F::BYTES];
        let groups = F::BLOCK / F::GROUP;
        let mut seen = vec![false; 2 * groups];
        let mut affine = vec![[(0.0, 0.0); 16]; groups];
        F::row_affines(isa, blocks, |g, scales, shifts| {
            let (scales, shifts) = (unload(scales), unload(shifts));
            for r in 0..16 {
                let (scale, shift) = F::affine(Scalar, block(r), g * F::GROUP / 16);
                let same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan();
                assert!(same(scales[r], scale), "{} [{g}]: {} {scale}", F::NAME, scales[r]);
                assert!(!F::SHIFTED || same(shifts[r], shift), "{} [{g}]: {} {shift}", F::NAME, shifts[r]);
                affine[g][r] = (scale, shift);
            }
            seen[g] = true;
        });
        let offset = offset::<F, I>();
        for part in 0..F::BLOCK / F::PART {
            F::row_codes(isa, blocks, part, |g, codes| {
                assert_eq!((codes.len(), g * F::GROUP / F::PART), (F::GROUP / 4, part), "{}", F::NAME);
                for (j, codes) in codes.iter().enumerate() {
                    let mut bytes = [0; 64];
                    isa.store_n(*codes, &mut bytes);
                    for (i, byte) in bytes.into_iter().enumerate() {
                        let (r, value) = (i / 4, g * F::GROUP + 4 * j + i % 4);
                        let mut decoded = [0.0; 256];
                        F::decode(block(r), &mut decoded[..F::BLOCK]);
                        let code = if F::WIDE {
                            i32::from(byte.wrapping_sub(I::BIAS) as i8)
                        } else {
                            i32::from(byte) - offset
                        };
                        assert!(F::WIDE || byte <= F::TOP, "{}: {byte}", F::NAME);
                        let (scale, shift) = affine[g][r];
                        let shift = if F::SHIFTED { shift } else { 0.0 };
                        let (seen, scale) = (scale * code as f32 + shift, scale.abs() * 128.0 + shift.abs());
                        let error = (seen - decoded[value]).abs();
                        assert!(error <= 1e-6 * scale || !scale.is_finite(), "{} {value}: {seen}", F::NAME);
                    }
                }
                seen[groups + g] = true;
            });
        }
        assert!(seen.iter().all(|seen| *seen), "{}: every group", F::NAME);
    }
    if !(F::WHOLE && F::WEIGHTS) {
        return;
    }
    let mut random = random(6);
    for _ in 0..10 {
        let bytes: Vec<u8> = (0..16 * F::BYTES).map(|_| random() as u8).collect();
        for level in Level::all_available() {
            dispatch!(level, |isa| isa.run(|| check::<F, _>(isa, &bytes)));
        }
    }
}

#[test]
fn sixteen_rows_are_read_as_each() {
    for_every_format!(check_rows);
}

/// Many blocks at once are what one after the other is, odd ones included, on every instruction set.
#[test]
fn many_blocks_are_encoded_as_each() {
    const ROWS: usize = 37;
    for format in FORMATS {
        for (values, bytes) in blocks(format) {
            let mut x = noise(7, ROWS * values);
            x[0] = 1e3;
            x[values..2 * values].fill(0.0);
            x[2 * values..3 * values].fill(f32::NAN);
            x[3 * values..4 * values].iter_mut().for_each(|x| *x *= 1e30);
            x[4 * values] = f32::NEG_INFINITY;
            let mut expected = vec![0; ROWS * bytes];
            format.encode_blocks(&x, values, &mut expected);
            for level in Level::all_available() {
                let mut found = vec![0xff; ROWS * bytes];
                ((format.kernels)(level).encode)(&x, values, &mut found);
                assert_eq!(found, expected, "{} {values} {level:?}", format.name);
            }
        }
    }
}

/// The error of a format does not depend on the size of the head.
#[test]
fn every_head_size_is_encoded_as_well_as_128() {
    for format in FORMATS.iter().filter(|f| f.rotation == Rotation::Head) {
        let error = |head_dim: usize| {
            let head = Head::new(head_dim).unwrap();
            let (values, bytes) = format.head_block(head_dim);
            let (mut error, mut energy) = (0.0, 0.0);
            for x in noise(1, 200 * values).chunks_mut(values) {
                head.forward(x);
                let (mut block, mut y) = (vec![0; bytes], vec![0.0; values]);
                (format.encode_rotated)(x, &mut block);
                (format.decode)(&block, &mut y);
                error += x.iter().zip(&y).map(|(x, y)| f64::from((x - y) * (x - y))).sum::<f64>();
                energy += x.iter().map(|x| f64::from(x * x)).sum::<f64>();
            }
            error / energy
        };
        let expected = error(128);
        for head_dim in HEAD_DIMS.into_iter().filter(|d| *d >= 48) {
            assert!(error(head_dim) < 1.15 * expected, "{} {head_dim}: {expected}", format.name);
        }
    }
}

/// Decoded blocks are as much longer than what was encoded as the format says.
#[test]
fn gains_are_measured() {
    for format in FORMATS.iter().filter(|f| f.kv) {
        let mut random = random(9);
        let mut gaussian = || (0..12).map(|_| random() as f32 / 4_294_967_296.0).sum::<f32>() - 6.0;
        let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        let mut sum = 0.0;
        for _ in 0..500 {
            let x: Vec<f32> = (0..format.block.max(128)).map(|_| gaussian()).collect();
            let (values, mut y) = (format.block.min(x.len()), vec![0.0; x.len()]);
            for (x, y) in x.chunks(values).zip(y.chunks_mut(values)) {
                let mut block = vec![0; values * format.bytes / format.block];
                (format.encode_rotated)(x, &mut block);
                (format.decode)(&block, y);
            }
            sum += length(&y) / length(&x);
        }
        let (found, bound) = (sum / 500.0, if format.rotation == Rotation::Head { 0.002 } else { 0.01 });
        println!("{}: {found}", format.name);
        assert!((found - format.gain).abs() < bound, "{}: {found}", format.name);
    }
}

/// The cache path and the published path differ only in rounding, and in how long decoded vectors are.
#[test]
fn encoding_a_rotated_head_is_encoding_the_head() {
    for format in FORMATS.iter().filter(|f| f.rotation == Rotation::Head) {
        let x = noise(5, 128);
        let mut rotated = x.clone();
        Head::new(128).unwrap().forward(&mut rotated);
        let decoded = |encode: fn(&[f32], &mut [u8]), x: &[f32]| {
            let (mut block, mut y) = (vec![0; format.bytes], vec![0.0; 128]);
            encode(x, &mut block);
            (format.decode)(&block, &mut y);
            let length = y.iter().map(|y| y * y).sum::<f32>().sqrt();
            y.iter_mut().for_each(|y| *y /= length);
            y
        };
        let (a, b) = (decoded(format.encode, &x), decoded(format.encode_rotated, &rotated));
        let differing = a.iter().zip(&b).filter(|(a, b)| (*a - *b).abs() > 2e-3 * a.abs()).count();
        assert!(differing <= 1, "{}: {differing}", format.name);
    }
}

/// Encoding what was decoded changes little: the second error is no larger than the first.
#[test]
fn encoding_twice_is_stable() {
    for format in FORMATS {
        for scale in [1e-3, 1.0, 1e3] {
            let x: Vec<f32> = noise(2, format.block).iter().map(|x| x * scale).collect();
            let again = |x: &[f32]| {
                let (mut block, mut y) = (vec![0; format.bytes], vec![0.0; format.block]);
                (format.encode_rotated)(x, &mut block);
                (format.decode)(&block, &mut y);
                y
            };
            let distance =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
            let (once, zero) = (again(&x), vec![0.0; x.len()]);
            let (first, second) = (distance(&x, &once), distance(&once, &again(&once)));
            let name = format.name;
            assert!(first < 0.2 * distance(&x, &zero), "{name} {scale}: {first}");
            assert!(second <= first + 1e-6 * distance(&x, &zero), "{name} {scale}: {first} {second}");
        }
    }
}

/// A cache never holds infinities that the input did not have.
#[test]
fn large_heads_stay_finite() {
    for format in FORMATS.iter().filter(|f| f.rotation == Rotation::Head) {
        for head_dim in HEAD_DIMS {
            let (values, bytes) = format.head_block(head_dim);
            let (mut block, mut y) = (vec![0; bytes], vec![0.0; values]);
            for magnitude in [1e5, 1e10, 1e20, f32::MAX] {
                (format.encode_rotated)(&vec![magnitude; values], &mut block);
                (format.decode)(&block, &mut y);
                assert!(y.iter().all(|y| y.is_finite()), "{} {head_dim} {magnitude}", format.name);
            }
        }
    }
}

/// Numbers a model should never produce, among others.
fn any_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -10.0f32..10.0,
        1 => proptest::num::f32::ANY,
        1 => prop::sample::select(vec![0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, 1e-38]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_numbers_are_encoded(x in prop::collection::vec(any_value(), GROUP_MAX)) {
        for format in FORMATS {
            for (values, bytes) in blocks(format) {
                let (mut block, mut y) = (vec![0; bytes], vec![0.0; values]);
                (format.encode_rotated)(&x[..values], &mut block);
                (format.decode)(&block, &mut y);
            }
            let mut block = vec![0; format.bytes];
            (format.encode)(&x[..format.block], &mut block);
        }
        Iq4Nl::encode_searched(&x[..32], &mut [0; 18]);
    }

    #[test]
    fn any_bytes_are_decoded(bytes in prop::collection::vec(any::<u8>(), 4 * GROUP_MAX)) {
        for format in FORMATS {
            for (values, block) in blocks(format) {
                (format.decode)(&bytes[..block], &mut vec![0.0; values]);
            }
        }
    }
}
