//! Matrix products.

use crate::for_chunks;
use crate::pool::{Grid, Pool};
use std::cell::{Cell, RefCell};
use torque_backend::host::Tensor;
use torque_backend::{MatrixData, Runs};
use torque_quant::int8::Rounded;
use torque_quant::tiles::{self, Multiply, Room, Weights};
use torque_quant::{Kernels, Rotation, rotate};
use torque_simd::tiles::Tile;
use torque_simd::{LANES, Level};

/// A weight matrix and the kernels of its format.
pub struct Matrix {
    /// The rows, in the file's map.
    pub data: MatrixData,
    kernels: Kernels,
    /// For few tokens.
    reads: Form,
    /// For many, where there are tiles.
    tiles: Option<Multiply>,
}

/// What kernels of a format read activations as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Floats.
    Plain,
    /// Floats in the domain of the codes, rotated in blocks of 32 as the weights are.
    Rotated,
    /// Rounded to 8 bits: within half a unit of each, products exact otherwise.
    Rounded,
    /// Rounded to bfloat16, in tiles.
    Tiles,
    /// The same of rotated ones.
    RotatedTiles,
}

/// Activations of some tokens in every form that some matrices read.
#[derive(Default)]
pub struct Inputs {
    plain: Vec<f32>,
    rotated: Vec<f32>,
    /// Of as many tokens as there are, and what is left of former ones.
    rounded: Vec<Rounded>,
    tiles: Vec<Tile>,
    rotated_tiles: Vec<Tile>,
    tokens: usize,
}

/// A matrix, and how many tokens it is multiplied with.
pub type Reader<'a> = (&'a Matrix, usize);

/// Activations in the form that a matrix reads.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// Plain or rotated.
    Floats(&'a [f32]),
    /// In whole numbers.
    Rounded(&'a [Rounded]),
    /// In tiles.
    Tiles(&'a [Tile]),
}

/// Tokens up to which weights are multiplied as floats in registers; above, a panel of rows is decoded for all.
const REGISTER_TOKENS: usize = 8;

/// Weights in a piece of work: enough to make the hand-out of pieces cheap, few enough that the last
/// pieces end together.
const PIECE: usize = 1 << 17;

/// Rows of a panel: `PANEL_ROWS` rows of a K block stay in the second-level cache.
const PANEL_ROWS: usize = 64;

thread_local! {
    /// The caller's activations.
    static INPUTS: Cell<Inputs> = Cell::default();
    /// The results of runs of columns.
    static RUNS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// A worker's run, and what a matrix reads of it.
    static RUN: RefCell<(Vec<f32>, Inputs)> = RefCell::default();
    /// A worker's results.
    static RESULTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// A worker's panel of floats.
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// A worker's decoded tiles.
    static TILES: RefCell<Room> = RefCell::default();
}

/// See [`torque_backend::Backend::linear`]. The pieces of all products are one job, and what several matrices read is
/// made once.
pub fn products(pool: &Pool, x: &Tensor, products: &mut [(&Matrix, &mut Tensor)]) {
    let tokens = x.rows();
    let mut inputs = INPUTS.take();
    let matrices: Vec<&Matrix> = products.iter().map(|(w, _)| *w).collect();
    let others = matrices.iter().filter(|w| w.reads != Form::Plain).map(|w| (*w, tokens));
    let others: Vec<Reader> = others.collect();
    inputs.prepare(Some(pool), x.data(), &others);
    let mut out: Vec<_> = products
        .iter_mut()
        .map(|(w, out)| {
            assert_eq!((x.width(), out.width(), out.rows()), (w.data.columns, w.data.rows, tokens), "shapes");
            Grid { width: out.width(), columns: w.piece(tokens), values: out.data_mut() }
        })
        .collect();
    pool.for_columns(&mut out, |m, first, mut columns_out| {
        let w = matrices[m];
        let x = if w.reads == Form::Plain { Input::Floats(x.data()) } else { w.input(&inputs) };
        if tokens == 1 {
            return w.multiply(first, x, 1, columns_out.row(0));
        }
        RESULTS.with_borrow_mut(|results| {
            let count = columns_out.width();
            results.resize(tokens * count, 0.0);
            w.multiply(first, x, tokens, results);
            for (t, row) in results.chunks_exact(count).enumerate() {
                columns_out.row(t).copy_from_slice(row);
            }
        });
    });
    INPUTS.set(inputs);
}

/// See [`torque_backend::Backend::linear_runs`]. A piece of work is a run.
pub fn runs(pool: &Pool, w: &[Matrix], x: &Tensor, from: Runs, out: &mut Tensor, to: Runs) {
    let MatrixData { rows, columns, .. } = w[0].data;
    let tokens = x.rows();
    // `[runs, tokens, rows]`.
    let mut results = RUNS.take();
    results.resize(w.len() * tokens * rows, 0.0);
    pool.for_chunks(&mut results, tokens * rows, |g, results| {
        RUN.with_borrow_mut(|(run, inputs)| {
            run.clear();
            (0..tokens).for_each(|t| run.extend_from_slice(&x.row(t)[from.columns(g, columns)]));
            inputs.prepare(None, run, &[(&w[g], tokens)]);
            w[g].multiply(0, w[g].input(inputs), tokens, results);
        });
    });
    for (g, results) in results.chunks_exact(tokens * rows).enumerate() {
        for (t, y) in results.chunks_exact(rows).enumerate() {
            out.row_mut(t)[to.columns(g, rows)].copy_from_slice(y);
        }
    }
    RUNS.set(results);
}

impl Matrix {
    /// A matrix on an instruction set, and its tiles if it has any.
    pub fn new(data: MatrixData, level: Level, tiles: Option<Multiply>) -> Matrix {
        let kernels = (data.format.kernels)(level);
        let reads = match data.format.rotation {
            Rotation::Block32 => Form::Rotated,
            _ if data.format.rounds_activations() => Form::Rounded,
            _ => Form::Plain,
        };
        Matrix { data, kernels, reads, tiles }
    }

    /// What it reads so many tokens' activations as.
    fn reads(&self, tokens: usize) -> Form {
        let tiles = self.tiles.is_some() && tokens >= tiles::TOKENS;
        match self.reads {
            Form::Rounded if tiles => Form::Tiles,
            Form::Rotated if tiles => Form::RotatedTiles,
            form => form,
        }
    }

    /// Rows `first ..` of the product for all tokens, as many as fit `out`: `[tokens, rows]`.
    pub fn multiply(&self, first: usize, x: Input, tokens: usize, out: &mut [f32]) {
        let (columns, count) = (self.data.columns, out.len() / tokens);
        let row_bytes = self.data.format.row_bytes(columns);
        let weights = &self.data.bytes[first * row_bytes..][..count * row_bytes];
        let Kernels { matvec, matmul, multiply, decode_tiles, .. } = self.kernels;
        match x {
            Input::Floats(x) if tokens <= REGISTER_TOKENS => matvec(weights, columns, x, tokens, out),
            Input::Floats(x) => PANEL.with_borrow_mut(|panel| {
                panel.resize(torque_quant::gemm::panel_len(count, columns), 0.0);
                matmul(weights, columns, x, tokens, panel, out);
            }),
            Input::Rounded(x) => multiply(weights, columns, x, out),
            Input::Tiles(x) => TILES.with_borrow_mut(|room| {
                let multiply = self.tiles.expect("activations are in tiles where there are tiles");
                multiply(Weights { rows: weights, columns, decode: decode_tiles }, x, tokens, room, out);
            }),
        }
    }

    /// The form of them that this matrix reads, which they were prepared in.
    pub fn input<'a>(&self, x: &'a Inputs) -> Input<'a> {
        let tiles = tiles::len(x.tokens, self.data.columns);
        match self.reads(x.tokens) {
            Form::Plain => Input::Floats(&x.plain),
            Form::Rotated => Input::Floats(&x.rotated),
            Form::Rounded => Input::Rounded(&x.rounded[..x.tokens]),
            Form::Tiles => Input::Tiles(&x.tiles[..tiles]),
            Form::RotatedTiles => Input::Tiles(&x.rotated_tiles[..tiles]),
        }
    }

    /// Rows in a piece of work.
    pub fn piece(&self, tokens: usize) -> usize {
        match tokens <= REGISTER_TOKENS {
            true => (PIECE / self.data.columns).clamp(16, 256).next_multiple_of(16),
            false => PANEL_ROWS,
        }
    }
}

impl Inputs {
    /// Makes them `x` in the forms that these matrices, of one width, read; in parallel if there is a pool.
    pub fn prepare(&mut self, pool: Option<&Pool>, x: &[f32], readers: &[Reader]) {
        let Some((Matrix { kernels, data, .. }, _)) = readers.first() else { return };
        let columns = data.columns;
        self.tokens = x.len() / columns;
        let round_tiles = |x: &[f32], out: &mut Vec<Tile>| {
            resize_tiles(out, x.len() / columns, columns);
            in_rows(pool, x.len(), out, columns / tiles::COLUMNS, |i, out| {
                let sixteen = x.chunks(LANES * columns).nth(i).unwrap_or_default();
                (kernels.round_tiles)(sixteen, columns, out);
            });
        };
        for form in forms(readers) {
            match form {
                Form::Plain => x.clone_into(&mut self.plain),
                Form::Rotated => {
                    x.clone_into(&mut self.rotated);
                    in_rows(pool, x.len(), &mut self.rotated, columns, |_, row| {
                        row.as_chunks_mut::<32>().0.iter_mut().for_each(rotate::block32_forward);
                    });
                }
                Form::Rounded => {
                    in_rows(pool, x.len(), self.rows(), 1, |t, to| {
                        (kernels.round)(&mut to[0], &x[t * columns..][..columns]);
                    });
                }
                Form::Tiles => round_tiles(x, &mut self.tiles),
                Form::RotatedTiles => round_tiles(&self.rotated, &mut self.rotated_tiles),
            }
        }
    }

    /// Rounded activations of all tokens, to be written.
    fn rows(&mut self) -> &mut [Rounded] {
        if self.rounded.len() < self.tokens {
            self.rounded.resize_with(self.tokens, Rounded::default);
        }
        &mut self.rounded[..self.tokens]
    }

    /// Makes them some tokens of others, which were prepared for these matrices.
    pub fn take_rows(&mut self, from: &Inputs, tokens: &[usize], readers: &[Reader]) {
        let columns = readers[0].0.data.columns;
        let take = |to: &mut Vec<f32>, from: &[f32]| {
            to.clear();
            tokens.iter().for_each(|t| to.extend_from_slice(&from[t * columns..][..columns]));
        };
        let take_tiles = |to: &mut Vec<Tile>, from: &[Tile]| {
            resize_tiles(to, tokens.len(), columns);
            tokens.iter().enumerate().for_each(|(i, &t)| tiles::copy_token(from, t, to, i, columns));
        };
        self.tokens = tokens.len();
        for form in forms(readers) {
            match form {
                Form::Plain => take(&mut self.plain, &from.plain),
                Form::Rotated => take(&mut self.rotated, &from.rotated),
                Form::Rounded => {
                    let rows = self.rows().iter_mut().zip(tokens);
                    rows.for_each(|(to, &t)| to.copy_from(&from.rounded[t]));
                }
                Form::Tiles => take_tiles(&mut self.tiles, &from.tiles),
                Form::RotatedTiles => take_tiles(&mut self.rotated_tiles, &from.rotated_tiles),
            }
        }
    }
}

/// Makes them as many as so many tokens have. What they hold does not matter.
fn resize_tiles(tiles: &mut Vec<Tile>, tokens: usize, columns: usize) {
    tiles.resize(tiles::len(tokens, columns), Tile::ZERO);
}

/// [`for_chunks`] if there is a pool.
fn in_rows<T: Send>(
    pool: Option<&Pool>,
    values: usize,
    out: &mut [T],
    row: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    match pool {
        Some(pool) => for_chunks(pool, values, out, row, f),
        None => out.chunks_mut(row).enumerate().for_each(|(i, part)| f(i, part)),
    }
}

/// The forms that some matrices read. Tiles of rotated activations are made of rotated ones.
fn forms(readers: &[Reader]) -> impl Iterator<Item = Form> {
    let forms = [Form::Plain, Form::Rotated, Form::Rounded, Form::Tiles, Form::RotatedTiles];
    forms.into_iter().filter(|form| {
        readers.iter().any(|(matrix, tokens)| {
            let reads = matrix.reads(*tokens);
            reads == *form || (reads, *form) == (Form::RotatedTiles, Form::Rotated)
        })
    })
}
