//! Panels times tokens, in tiles whose sums stay in registers.

use super::{Rounded, WIDTH, add, end, starts};
use torque_simd::{Isa, LANES};

/// Sixteen rows, one a lane, and up to [`WIDTH`] columns of them.
pub struct Panel {
    /// Every four columns of sixteen rows.
    pub codes: [[u8; 64]; WIDTH / 4],
    /// Scales of every group of sixteen rows.
    pub scales: [[f32; LANES]; WIDTH / 16],
    /// Likewise; those of formats without shift mean nothing.
    pub shifts: [[f32; LANES]; WIDTH / 16],
}

impl Panel {
    pub const ZERO: Panel = Panel {
        codes: [[0; 64]; WIDTH / 4],
        scales: [[0.0; LANES]; WIDTH / 16],
        shifts: [[0.0; LANES]; WIDTH / 16],
    };
}

/// Adds the product of columns `k .. k + width` to `out[t * stride + r]`, or writes it if they are the first
/// columns.
/// Nothing here knows a format: `GROUP` and `SHIFTED` are those of [`crate::Format`], `WIDE` says that codes want
/// [`Isa::dot4_wide`], and `offsets` what they carry and, if `CENTERED`, what sums of 16 bits leave out besides.
#[inline(never)]
pub fn tiles<I: Isa, const GROUP: usize, const SHIFTED: bool, const WIDE: bool, const CENTERED: bool>(
    isa: I,
    panels: &[Panel],
    offsets: [i32; 2],
    x: &[Rounded],
    k: usize,
    width: usize,
    out: &mut [f32],
    stride: usize,
) {
    let block = Block { offsets, k, width, stride };
    isa.run(
        #[inline(always)]
        || match const { I::TILE.0 * I::TILE.1 } {
            // As many whole-number and float sums as 32 registers hold, and as sixteen hold.
            16 => match panels.len() {
                2 => tokens::<I, GROUP, SHIFTED, WIDE, CENTERED, 6, 2>(isa, panels, x, block, out),
                _ => tokens::<I, GROUP, SHIFTED, WIDE, CENTERED, 6, 1>(isa, panels, x, block, out),
            },
            _ => tokens::<I, GROUP, SHIFTED, WIDE, CENTERED, 4, 1>(isa, panels, x, block, out),
        },
    );
}

#[derive(Clone, Copy)]
struct Block {
    offsets: [i32; 2],
    k: usize,
    width: usize,
    stride: usize,
}

/// All tokens, M at a time with P panels; the last ones in a smaller tile.
#[inline(always)]
fn tokens<
    I: Isa,
    const GROUP: usize,
    const SHIFTED: bool,
    const WIDE: bool,
    const CENTERED: bool,
    const M: usize,
    const P: usize,
>(
    isa: I,
    panels: &[Panel],
    x: &[Rounded],
    block: Block,
    out: &mut [f32],
) {
    for (x, out) in x.chunks(M).zip(out.chunks_mut(M * block.stride)) {
        match x.len() {
            1 => tile::<I, GROUP, SHIFTED, WIDE, CENTERED, 1, P>(isa, panels, x, block, out),
            2 => tile::<I, GROUP, SHIFTED, WIDE, CENTERED, 2, P>(isa, panels, x, block, out),
            3..=4 => tile::<I, GROUP, SHIFTED, WIDE, CENTERED, 4, P>(isa, panels, x, block, out),
            _ => tile::<I, GROUP, SHIFTED, WIDE, CENTERED, M, P>(isa, panels, x, block, out),
        }
    }
}

/// M tokens; missing ones repeat the last.
#[inline(always)]
fn tile<
    I: Isa,
    const GROUP: usize,
    const SHIFTED: bool,
    const WIDE: bool,
    const CENTERED: bool,
    const M: usize,
    const P: usize,
>(
    isa: I,
    panels: &[Panel],
    x: &[Rounded],
    block: Block,
    out: &mut [f32],
) {
    let Block { offsets: [offset, center], k, width, stride } = block;
    let count = width / GROUP;
    // What goes with the groups lies together, so that one register points to all of it.
    let mut of_groups = [[[[0.0; LANES]; WIDTH / 16 / LANES]; 4]; M];
    let mut codes: [&[[u8; 4]]; M] = [&[]; M];
    for i in 0..M {
        let x = &x[i.min(x.len() - 1)];
        codes[i] = &x.codes.as_chunks().0[k / 4..][..count * GROUP / 4];
        let (scales, x_sums, totals) = x.groups(GROUP).get(k / GROUP, WIDTH / GROUP);
        for v in 0..WIDTH / GROUP / LANES {
            isa.store(isa.load(&scales.as_chunks().0[v]), &mut of_groups[i][0][v]);
            if SHIFTED {
                isa.store(isa.load(&x_sums.as_chunks().0[v]), &mut of_groups[i][1][v]);
            }
            let totals = isa.load_n(&totals.as_flattened().as_chunks().0[v]);
            isa.store(isa.from_bits(starts(isa, totals, offset + center, WIDE)), &mut of_groups[i][2][v]);
            if CENTERED {
                isa.store(isa.from_bits(starts(isa, totals, -center, true)), &mut of_groups[i][3][v]);
            }
        }
    }
    for (panels, first) in panels.as_chunks::<P>().0.iter().zip((0..).step_by(P * LANES)) {
        let mut sums = [[isa.splat(0.0); P]; M];
        if k > 0 {
            for i in 0..x.len() {
                for p in 0..P {
                    sums[i][p] = isa.load(row(&mut out[first..], i, p, stride));
                }
            }
        }
        for g in 0..count.min(WIDTH / GROUP) {
            let (v, lane) = (g / LANES, g % LANES);
            let mut products = [[isa.splat_n(0); P]; M];
            for i in 0..M {
                products[i] = [isa.splat_n(of_groups[i][2][v][lane].to_bits() as i32); P];
            }
            for word in g * (GROUP / 4)..(g + 1) * (GROUP / 4) {
                let mut w = [isa.splat_n(0); P];
                for p in 0..P {
                    w[p] = isa.load_n(&panels[p].codes[word]);
                }
                for i in 0..M {
                    let x = isa.splat_n(i32::from_le_bytes(codes[i][word]));
                    for p in 0..P {
                        products[i][p] = add(isa, products[i][p], w[p], x, WIDE);
                    }
                }
            }
            let mut whole = products;
            for i in 0..M {
                let mut left_out = isa.splat_n(0);
                if CENTERED {
                    left_out = isa.splat_n(of_groups[i][3][v][lane].to_bits() as i32);
                }
                for p in 0..P {
                    whole[i][p] = end(isa, products[i][p], left_out, WIDE);
                }
            }
            for p in 0..P {
                let (scale, shift) = (isa.load(&panels[p].scales[g]), isa.load(&panels[p].shifts[g]));
                for i in 0..M {
                    let scale = isa.mul(scale, isa.splat(of_groups[i][0][v][lane]));
                    sums[i][p] = isa.fma(isa.to_f32(whole[i][p]), scale, sums[i][p]);
                    if SHIFTED {
                        sums[i][p] = isa.fma(shift, isa.splat(of_groups[i][1][v][lane]), sums[i][p]);
                    }
                }
            }
        }
        for i in 0..x.len() {
            for p in 0..P {
                isa.store(sums[i][p], row(&mut out[first..], i, p, stride));
            }
        }
    }
}

/// Panel p's results of token i.
#[inline(always)]
fn row(out: &mut [f32], i: usize, p: usize, stride: usize) -> &mut [f32; LANES] {
    out[i * stride + p * LANES..].first_chunk_mut().expect("whole panels of results")
}
