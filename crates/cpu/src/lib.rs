//! The CPU backend: threads and SIMD.
//!
//! Weights stay in the file's map. Few tokens: every weight is read once, decoded in registers and used
//! for all of them. Many tokens: rows are decoded to a panel that stays in cache. Activations are `f32`, but
//! for products with quantised weights where whole-number products are instructions: these round them to 8
//! bits, and those of many tokens, on processors with tiles, to bfloat16. Work is cut the same way whatever the number of threads: so are results.
#![deny(unsafe_code)]

mod attention;
mod delta_net;
mod elementwise;
mod experts;
mod linear;
#[allow(unsafe_code, reason = "workers take disjoint parts of one array")]
mod pool;

pub use pool::{Pool, SPIN, physical_cores};

use attention::{Partials, Skipped};
use linear::Matrix;
use std::sync::Mutex;
use torque_backend::host::{SealJob, Store, Tensor};
use torque_backend::{
    Activation, Angles, Attention, Backend, DeltaNet, Experts, MatrixData, Routing, Runs, Segment,
};
use torque_kv::{Freed, Moved, PageId, Plan, Section, Sequence, Span};
use torque_quant::FormatOps;
use torque_quant::tiles::{self, Multiply};
use torque_simd::Level;

/// Why the CPU backend cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An instruction set this machine has not, or nobody knows.
    #[error("instruction set `{name}` is not available; this machine has {available}")]
    Isa {
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
}

/// The CPU backend.
pub struct Cpu {
    level: Level,
    /// What multiplies many tokens, if the level has tiles.
    tiles: Option<Multiply>,
    pool: Pool,
    partials: Mutex<Partials>,
    skipped: Skipped,
    experts: Mutex<experts::Buffers>,
}

impl Cpu {
    /// A backend of that many threads (the physical cores if `None`) on an instruction set by name (the
    /// best there is if `None`).
    pub fn new(threads: Option<usize>, isa: Option<&str>) -> Result<Cpu, Error> {
        let level = match isa {
            None => Level::detect(),
            Some(name) => {
                let available = Level::all_available();
                let level = Level::from_name(name).filter(|level| available.contains(level));
                level.ok_or_else(|| {
                    let available = available.iter().map(|level| level.name()).collect::<Vec<_>>().join(" ");
                    Error::Isa { name: name.into(), available }
                })?
            }
        };
        let threads = threads.unwrap_or_else(pool::physical_cores).max(1);
        Ok(Cpu {
            level,
            tiles: tiles::multiply_on(level),
            pool: Pool::new(threads),
            partials: Mutex::default(),
            skipped: Skipped::default(),
            experts: Mutex::default(),
        })
    }
}

impl Backend for Cpu {
    type Tensor = Tensor;
    type Vector = Vec<f32>;
    type Matrix = Matrix;
    type Store = Store;

    fn name(&self) -> &'static str {
        "cpu"
    }
    fn device(&self) -> String {
        self.level.name().into()
    }
    fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn tensor(&self, capacity: usize) -> Tensor {
        Tensor::new(capacity)
    }
    fn reshape(&self, x: &mut Tensor, rows: usize, width: usize) {
        x.reshape(rows, width);
    }
    fn write(&self, values: &[f32], x: &mut Tensor) {
        x.data_mut().copy_from_slice(values);
    }
    fn read(&self, x: &Tensor, out: &mut [f32]) {
        out.copy_from_slice(x.data());
    }
    fn vector(&self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }
    fn matrix(&self, data: MatrixData) -> Matrix {
        Matrix::new(data, self.level, self.tiles)
    }

    fn embed(&self, table: &Matrix, tokens: &[u32], out: &mut Tensor) {
        let width = out.width();
        self.pool.for_chunks(out.data_mut(), width, |i, row| {
            let token = tokens[i] as usize;
            table.data.format.decode_row(table.data.row(token), row);
        });
    }

    fn linear(&self, x: &Tensor, products: &mut [(&Matrix, &mut Tensor)]) {
        linear::products(&self.pool, x, products);
    }

    fn add_bias(&self, bias: &Vec<f32>, x: &mut Tensor) {
        self.rows(x, |level, _, row| elementwise::add(level, bias, row));
    }
    fn add(&self, y: &Tensor, x: &mut Tensor) {
        self.rows(x, |level, i, row| elementwise::add(level, y.row(i), row));
    }
    fn scale(&self, factor: f32, x: &mut Tensor) {
        self.rows(x, |level, _, row| elementwise::scale(level, factor, row));
    }
    fn scale_rows(&self, factors: &[f32], x: &mut Tensor) {
        self.rows(x, |level, i, row| elementwise::scale(level, factors[i], row));
    }
    fn softcap(&self, c: f32, x: &mut Tensor) {
        self.rows(x, |level, _, row| elementwise::softcap(level, c, row));
    }
    fn rms_norm(&self, weight: &Vec<f32>, eps: f32, x: &Tensor, out: &mut Tensor) {
        self.rows(out, |level, i, row| {
            row.copy_from_slice(x.row(i));
            elementwise::rms_norm(level, weight, eps, row);
        });
    }
    fn rms_norm_inplace(&self, weight: &Vec<f32>, eps: f32, x: &mut Tensor) {
        self.rows(x, |level, _, row| elementwise::rms_norm(level, weight, eps, row));
    }
    fn layer_norm_inplace(&self, weight: &Vec<f32>, bias: &Vec<f32>, eps: f32, x: &mut Tensor) {
        self.rows(x, |level, _, row| elementwise::layer_norm(level, weight, bias, eps, row));
    }
    fn activate(&self, activation: Activation, x: &mut Tensor) {
        self.rows(x, |level, _, row| elementwise::activate(level, activation, row));
    }
    fn gate_rows(&self, gate: &Tensor, x: &mut Tensor) {
        let mut factors = gate.data().to_vec();
        elementwise::activate(self.level, Activation::Sigmoid, &mut factors);
        self.scale_rows(&factors, x);
    }
    fn copy_columns(&self, [runs, width]: [usize; 2], x: &Tensor, from: Runs, out: &mut Tensor, to: Runs) {
        self.rows(out, |_, t, row| {
            for g in 0..runs {
                row[to.columns(g, width)].copy_from_slice(&x.row(t)[from.columns(g, width)]);
            }
        });
    }
    fn linear_runs(&self, w: &[Matrix], x: &Tensor, from: Runs, out: &mut Tensor, to: Runs) {
        linear::runs(&self.pool, w, x, from, out, to);
    }
    fn glu(&self, activation: Activation, up: &Tensor, gate: &mut Tensor) {
        self.rows(gate, |level, i, row| elementwise::glu(level, activation, up.row(i), row));
    }
    fn rope(&self, angles: &Angles, head_dim: usize, x: &mut Tensor) {
        let pairs = angles.channels / 2;
        self.rows(x, |level, i, row| {
            let cos_sin = &angles.cos_sin[i * pairs..][..pairs];
            row.chunks_exact_mut(head_dim)
                .for_each(|head| elementwise::rope(level, angles.pairs, cos_sin, &mut head[angles.first..]));
        });
    }
    fn take_rows(&self, x: &Tensor, rows: &[usize], out: &mut Tensor) {
        rows.iter().enumerate().for_each(|(i, &row)| out.row_mut(i).copy_from_slice(x.row(row)));
    }
    fn experts(
        &self,
        experts: &Experts<Matrix, Vec<f32>>,
        routing: &Routing,
        router: &Tensor,
        x: &Tensor,
        out: &mut Tensor,
    ) {
        let mut buffers = self.experts.lock().expect("no op panics while it holds the buffers");
        experts::run(&self.pool, self.level, &mut buffers, experts, routing, router, x, out);
    }

    fn store(&self, plan: &Plan, sequences: usize, batch: usize) -> Store {
        Store::new(plan, sequences, batch)
    }
    fn append(&self, store: &mut Store, layer: usize, segment: &Segment, k: &Tensor, v: &Tensor) {
        attention::append(&self.pool, self.level, store, layer, segment, [k, v]);
    }
    fn attention(
        &self,
        store: &mut Store,
        attention: &Attention<Vec<f32>>,
        segments: &[Segment],
        q: &mut Tensor,
        out: &mut Tensor,
    ) {
        let mut partials = self.partials.lock().expect("no op panics while it holds the buffer");
        let (level, skipped) = (self.level, &self.skipped);
        attention::attention(&self.pool, level, &mut partials, skipped, store, attention, segments, q, out);
    }
    fn take_mass(&self, store: &mut Store) -> Vec<f32> {
        store.take_mass()
    }
    fn value_parts(&self) -> [u64; 2] {
        self.skipped.counts()
    }
    fn delta_net(
        &self,
        store: &mut Store,
        net: &DeltaNet<Vec<f32>>,
        segments: &[Segment],
        qkv: &Tensor,
        alpha: &Tensor,
        beta: &Tensor,
        out: &mut Tensor,
    ) {
        delta_net::run(&self.pool, self.level, store, net, segments, qkv, [alpha, beta], out);
    }
    fn rewind(&self, store: &mut Store, sequence: &Sequence) {
        store.rewind(sequence);
    }
    fn keep_state(&self, store: &mut Store, sequence: &Sequence, span: Span) {
        store.keep_state(sequence, span);
    }
    fn take_state(&self, store: &mut Store, sequence: &Sequence, page: PageId) {
        store.take_state(sequence, page);
    }
    fn drop_states(&self, store: &mut Store, pages: &[PageId]) {
        store.drop_states(pages);
    }
    fn seal(&self, store: &mut Store, sequence: &Sequence, span: Span) {
        store.seal(sequence, span, |jobs| self.encode(jobs));
    }
    fn reseal(&self, store: &mut Store, page: PageId, tier: usize) {
        store.reseal(page, tier, |jobs| self.encode(jobs));
    }
    fn turn(&self, store: &mut Store, moved: &[Moved], angles: &[Option<Angles>]) {
        store.turn(moved, angles, |jobs| self.encode(jobs));
    }
    fn free(&self, store: &mut Store, freed: &[Freed]) {
        store.free(freed);
    }
    fn copy_tail(&self, store: &mut Store, from: &Sequence, to_slot: usize) {
        store.copy_tail(from, to_slot);
    }
    fn export(&self, store: &Store, sequence: &Sequence, section: Section, out: &mut [u8]) {
        store.export(sequence, section, out);
    }
    fn import(&self, store: &mut Store, sequence: &Sequence, section: Section, bytes: &[u8]) {
        store.import(sequence, section, bytes);
    }
    fn store_bytes(&self, store: &Store) -> (usize, usize) {
        store.bytes()
    }
}

/// Values below which a loop is not worth waking other threads for.
const PARALLEL_MIN: usize = 1 << 15;

impl Cpu {
    /// Seals heads, each on any thread.
    fn encode(&self, jobs: &mut [SealJob]) {
        let encode = |format: &FormatOps, x: &[f32], values: usize, out: &mut [u8]| {
            ((format.kernels)(self.level).encode)(x, values, out);
        };
        self.pool.for_chunks(jobs, 1, |_, job| job.iter_mut().for_each(|job| job.run(encode)));
    }

    /// `f(level, i, row i)` on every row.
    fn rows(&self, x: &mut Tensor, f: impl Fn(Level, usize, &mut [f32]) + Sync) {
        let width = x.width();
        for_chunks(&self.pool, x.data().len(), x.data_mut(), width, |i, row| f(self.level, i, row));
    }
}

/// [`Pool::for_chunks`], on one thread if there are few `values` to work on.
fn for_chunks<T: Send>(
    pool: &Pool,
    values: usize,
    out: &mut [T],
    chunk: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if values < PARALLEL_MIN {
        out.chunks_mut(chunk).enumerate().for_each(|(i, part)| f(i, part));
    } else {
        pool.for_chunks(out, chunk, f);
    }
}

#[cfg(test)]
mod tests;
