use super::*;
use crate::tests::Random;

/// A factor of these numbers, each exact in bfloat16: `[16, 32]`, a row a row.
fn rows(x: &[[f32; 32]; 16]) -> Tile {
    let mut tile = Tile::ZERO;
    for (to, x) in tile.0.iter_mut().zip(x) {
        for (to, x) in to.as_chunks_mut().0.iter_mut().zip(x) {
            assert_eq!(x.to_bits() & 0xffff, 0, "{x} is no bfloat16 number");
            *to = ((x.to_bits() >> 16) as u16).to_le_bytes();
        }
    }
    tile
}

/// The same as pairs.
fn pairs(x: &[[f32; 32]; 16]) -> Tile {
    let mut tile = Tile::ZERO;
    let rows = rows(x);
    for p in 0..16 {
        for n in 0..16 {
            tile.0[p][4 * n..][..4].copy_from_slice(&rows.0[n][4 * p..][..4]);
        }
    }
    tile
}

/// Sums after `times` products.
fn products<T: Tiles>(a: &Tile, b: &Tile, sums: &Sums, times: usize) -> Sums {
    let mut tiles = T::new().expect("the processor has tiles");
    tiles.load::<7>(a);
    tiles.load::<3>(b);
    tiles.load_sums::<5>(sums);
    (0..times).for_each(|_| tiles.multiply_add::<5, 7, 3>());
    let mut found = Sums([[f32::NAN; 16]; 16]);
    tiles.store_sums::<5>(&mut found);
    tiles.zero::<5>();
    let mut zero = found;
    tiles.store_sums::<5>(&mut zero);
    assert_eq!(zero, Sums::ZERO);
    found
}

#[test]
fn a_product_is_a_product() {
    // Small whole numbers: every sum is exact.
    let a: [[f32; 32]; 16] =
        std::array::from_fn(|m| std::array::from_fn(|k| ((m * 7 + k * 3) % 11) as f32 - 5.0));
    let b: [[f32; 32]; 16] =
        std::array::from_fn(|n| std::array::from_fn(|k| ((n * 5 + k * k) % 13) as f32 - 6.0));
    let start: [[f32; 16]; 16] = std::array::from_fn(|m| std::array::from_fn(|n| (m * 16 + n) as f32));
    let found = products::<Emulated>(&rows(&a), &pairs(&b), &Sums(start), 2);
    for m in 0..16 {
        for n in 0..16 {
            let product: f32 = (0..32).map(|k| a[m][k] * b[n][k]).sum();
            assert_eq!(found.0[m][n], start[m][n] + 2.0 * product, "[{m}, {n}]");
        }
    }
}

/// One product of two numbers, the second of a pair, added to `sum`.
fn one(a: f32, b: f32, sum: f32) -> f32 {
    let (mut x, mut y) = ([[0.0; 32]; 16], [[0.0; 32]; 16]);
    (x[4][9], y[11][9]) = (a, b);
    let mut sums = Sums::ZERO;
    sums.0[4][11] = sum;
    products::<Emulated>(&rows(&x), &pairs(&y), &sums, 1).0[4][11]
}

#[test]
fn subnormal_numbers_are_zero() {
    let (least, below) = (f32::MIN_POSITIVE, f32::from_bits(0x007f_0000));
    assert_eq!(one(least, 1.0, 0.0), least);
    assert_eq!(one(least, 0.5, 0.0), 0.0, "a result");
    assert_eq!(one(below, 2f32.powi(60), 0.0), 0.0, "a factor");
    assert_eq!(one(1.0, 1.0, below), 1.0, "a sum");
    assert_eq!(one(-least, 0.5, least), least, "a product that is added to more");
    assert_eq!(one(f32::INFINITY, 2.0, 1.0), f32::INFINITY);
    assert!(one(f32::INFINITY, 0.0, 1.0).is_nan());
}

/// Whether a result is subnormal is asked after rounding it as if exponents went on.
#[test]
fn what_rounds_to_the_smallest_normal_number_is_normal() {
    let less =
        |eighths: f32| emulated::fma(-eighths / 8.0 * 2f32.powi(-75), 2f32.powi(-75), f32::MIN_POSITIVE);
    assert_eq!(less(4.0), f32::MIN_POSITIVE, "half a unit of the numbers below");
    assert_eq!(less(5.0), 0.0, "more than half of one");
    assert_eq!(less(-5.0), f32::MIN_POSITIVE);
}

/// Where the processor has tiles: numbers of all magnitudes, and special ones.
#[test]
fn instructions_agree_with_the_emulation() {
    if !available() {
        assert!(Amx::new().is_none());
        return println!("this processor has no tiles");
    }
    println!("amx");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..100 {
        // Any bits, then numbers whose sums matter.
        let mut factor = || {
            let mut tile = Tile(std::array::from_fn(|_| random.bytes()));
            for half in tile.0.as_flattened_mut().as_chunks_mut::<2>().0.iter_mut().filter(|_| round > 0) {
                let x = if round % 2 == 0 { random.finite() } else { random.finite() * 1e-19 };
                *half = ((x.to_bits() >> 16) as u16).to_le_bytes();
            }
            tile
        };
        let (a, b) = (factor(), factor());
        let sums = Sums(std::array::from_fn(|_| random.floats()));
        let expected = products::<Emulated>(&a, &b, &sums, 3);
        let found = products::<Amx>(&a, &b, &sums, 3);
        for (e, f) in expected.0.as_flattened().iter().zip(found.0.as_flattened()) {
            assert!(e.to_bits() == f.to_bits() || e.is_nan() && f.is_nan(), "{round}: {f:e} not {e:e}");
        }
    }
}

/// Other threads have tiles of their own.
#[test]
fn threads_do_not_share_tiles() {
    let Some(first) = Amx::new() else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(Amx::new().is_some())).join().unwrap();
    });
    assert!(std::panic::catch_unwind(Amx::new).is_err(), "a thread has them once");
    drop(first);
    assert!(Amx::new().is_some());
}
