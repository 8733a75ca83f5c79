//! Stand-in: one thread.

/// Threads.
pub struct Pool(usize);

pub fn physical_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Exclusive columns.
pub struct Columns<'a> {
    rows: Vec<&'a mut [f32]>,
}

impl Columns<'_> {
    pub fn width(&self) -> usize {
        self.rows[0].len()
    }
    pub fn row(&mut self, t: usize) -> &mut [f32] {
        self.rows[t]
    }
}

impl Pool {
    pub fn new(threads: usize) -> Pool {
        Pool(threads)
    }
    pub fn threads(&self) -> usize {
        self.0
    }
    pub fn for_chunks<T: Send>(&self, out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        out.chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
    }
    pub fn for_columns(&self, out: &mut [f32], width: usize, chunk: usize, f: impl Fn(usize, Columns) + Sync) {
        for first in (0..width).step_by(chunk) {
            let end = width.min(first + chunk);
            f(first, Columns { rows: out.chunks_exact_mut(width).map(|row| &mut row[first..end]).collect() });
        }
    }
}
