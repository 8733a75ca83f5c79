//! Matrix products.

use crate::pool::Pool;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use torque_backend::MatrixData;
use torque_quant::int8::{Activations8, Panel8};
use torque_quant::{Kernels, Rotation, rotate};
use torque_simd::Level;

/// A weight matrix and the kernels of its format.
pub struct Matrix {
    /// The rows, in the file's map.
    pub data: MatrixData,
    kernels: Kernels,
}

/// Tokens up to which weights are decoded in registers; above, a panel of rows is decoded for all.
const REGISTER_TOKENS: usize = 8;

/// Weights in a piece of work: enough to make the hand-out of pieces cheap, few enough that the last
/// pieces end together.
const PIECE: usize = 1 << 17;

/// Rows of a panel: `PANEL_ROWS` rows of a K block stay in the second-level cache.
const PANEL_ROWS: usize = 64;

thread_local! {
    /// The caller's rounded activations.
    static ROUNDED: Cell<Activations8> = Cell::default();
    /// A worker's panels of whole numbers and results.
    static PANELS: RefCell<(Vec<Panel8>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    /// A worker's panel and results.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Matrix {
    /// A matrix on an instruction set.
    pub fn new(data: MatrixData, level: Level) -> Matrix {
        Matrix { kernels: (data.format.kernels)(level), data }
    }

    /// `out[t][o] = Σ_i w[o][i]·x[t][i]` for `tokens` rows of x.
    pub fn product(&self, pool: &Pool, x: &[f32], tokens: usize, out: &mut [f32]) {
        let (rows, columns) = (self.data.rows, self.data.columns);
        assert_eq!((x.len(), out.len()), (tokens * columns, tokens * rows), "shapes of x and out");
        let x = self.in_domain(x);
        if self.kernels.prefers_int8 {
            return self.product_int8(pool, &x, out);
        }
        pool.for_columns(out, rows, self.piece(tokens), |first, mut columns_out| {
            let count = columns_out.width();
            let row_bytes = self.data.format.row_bytes(columns);
            let weights = &self.data.bytes[first * row_bytes..][..count * row_bytes];
            if tokens == 1 {
                return (self.kernels.matvec)(weights, columns, &x, 1, columns_out.row(0));
            }
            SCRATCH.with_borrow_mut(|(panel, results)| {
                results.resize(tokens * count, 0.0);
                if tokens <= REGISTER_TOKENS {
                    (self.kernels.matvec)(weights, columns, &x, tokens, results);
                } else {
                    panel.resize(torque_quant::gemm::panel_len(count, columns), 0.0);
                    (self.kernels.matmul)(weights, columns, &x, tokens, panel, results);
                }
                for (t, row) in results.chunks_exact(count).enumerate() {
                    columns_out.row(t).copy_from_slice(row);
                }
            });
        });
    }

    /// The same with activations rounded to 8 bits: within half a unit of each, exact otherwise.
    fn product_int8(&self, pool: &Pool, x: &[f32], out: &mut [f32]) {
        let (rows, columns) = (self.data.rows, self.data.columns);
        let row_bytes = self.data.format.row_bytes(columns);
        let mut rounded = ROUNDED.take();
        (self.kernels.round)(&mut rounded, x, columns);
        let tokens = rounded.tokens();
        pool.for_columns(out, rows, self.piece(tokens), |first, mut columns_out| {
            let count = columns_out.width();
            let weights = &self.data.bytes[first * row_bytes..][..count * row_bytes];
            if tokens == 1 {
                return (self.kernels.matvec8)(weights, columns, &rounded, columns_out.row(0));
            }
            PANELS.with_borrow_mut(|(panels, results)| {
                results.resize(tokens * count, 0.0);
                if tokens <= REGISTER_TOKENS {
                    (self.kernels.matvec8)(weights, columns, &rounded, results);
                } else {
                    (self.kernels.matmul8)(weights, columns, &rounded, panels, results);
                }
                for (t, row) in results.chunks_exact(count).enumerate() {
                    columns_out.row(t).copy_from_slice(row);
                }
            });
        });
        ROUNDED.set(rounded);
    }

    /// Rows in a piece of work.
    fn piece(&self, tokens: usize) -> usize {
        match tokens <= REGISTER_TOKENS {
            true => (PIECE / self.data.columns).clamp(4, 256).next_multiple_of(4),
            false => PANEL_ROWS,
        }
    }

    /// Activations in the domain of the codes: rotated in blocks of 32 for formats that rotate weights.
    fn in_domain<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        if self.data.format.rotation != Rotation::Block32 {
            return x.into();
        }
        let mut x = x.to_vec();
        x.as_chunks_mut::<32>().0.iter_mut().for_each(rotate::block32_forward);
        x.into()
    }
}
