//! Threads that wait for work by spinning, and sleep when there is none for a while.
//!
//! An operation of a small model takes microseconds; waking a sleeping thread takes longer. Workers
//! therefore spin between the operations of a token, and park when nothing came for [`SPIN`].
//! Work is handed out in chunks: each worker begins with its own run of them, one after the other in memory,
//! and then helps the others with theirs, so that the slowest core does not set the pace. Nobody waits for a
//! worker that has not begun: one whose core another process has taken is missed by nobody.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a worker without work spins before it sleeps.
pub const SPIN: Duration = Duration::from_millis(1);

/// How long it keeps its core for itself meanwhile.
const PATIENCE: Duration = Duration::from_micros(50);

/// A fixed number of workers. The thread that calls is worker 0.
pub struct Pool {
    shared: Arc<Shared>,
    others: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

/// What the workers see.
struct Shared {
    /// The number of the job in the high half; whether workers may still enter it; how many are inside, the caller
    /// aside.
    gate: OnItsOwnLine<AtomicU64>,
    /// The job. Written only while the gate is shut and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    /// Of every worker's chunks, those taken.
    taken: Vec<OnItsOwnLine<AtomicUsize>>,
    /// Which of the other workers sleep, or are about to.
    asleep: Vec<OnItsOwnLine<AtomicBool>>,
    /// Whether the pool is being dropped.
    ended: AtomicBool,
    /// Held while a job is running.
    busy: Mutex<()>,
    /// What the first worker that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Of [`Shared::gate`]: workers may enter.
const OPEN: u64 = 1 << 31;
/// Of [`Shared::gate`]: the number of workers inside.
const INSIDE: u64 = OPEN - 1;

// SAFETY: `job` is written while the gate is shut and nobody is inside. It is read by a worker that has entered, with
// acquire ordering, the gate that was opened after the write, with release ordering; and the gate is not opened
// again before that worker has left. Everything else synchronises itself.
unsafe impl Sync for Shared {}
// SAFETY: as above; the job points to a `Sync` closure that outlives the gate's being open, see `Pool::for_each`.
unsafe impl Send for Shared {}

/// A closure called with the number of the worker, its lifetime erased.
type Job = *const (dyn Fn(usize) + Sync);

/// Keeps a counter that one thread writes out of the cache lines that others read.
#[repr(align(128))]
struct OnItsOwnLine<T>(T);

thread_local! {
    /// Whether this thread is in a job.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// A pool of `threads` workers, the caller included; at least one.
    ///
    /// # Panics
    ///
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> Pool {
        let others = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            gate: OnItsOwnLine(AtomicU64::new(0)),
            job: UnsafeCell::new(None),
            taken: (0..=others).map(|_| OnItsOwnLine(AtomicUsize::new(0))).collect(),
            asleep: (0..others).map(|_| OnItsOwnLine(AtomicBool::new(false))).collect(),
            ended: AtomicBool::new(false),
            busy: Mutex::new(()),
            panic: Mutex::new(None),
        });
        let start = |i: usize| {
            let (name, shared) = (format!("torque-{}", i + 1), shared.clone());
            thread::Builder::new().name(name).spawn(move || shared.work(i)).expect("a thread can be started")
        };
        Pool { others: (0..others).map(start).collect(), shared }
    }

    /// How many workers there are.
    pub fn threads(&self) -> usize {
        self.others.len() + 1
    }

    /// Calls `f(i)` for every i below `n`. Waits while another thread uses the pool.
    ///
    /// # Panics
    ///
    /// If `f` panics, after all have finished; and if this is called from inside a job, which would wait for
    /// itself.
    pub fn for_each(&self, n: usize, f: impl Fn(usize) + Sync) {
        if n <= 1 || self.threads() == 1 {
            return (0..n).for_each(f);
        }
        assert!(!WORKING.get(), "a job of a pool starts another one");
        let (shared, threads) = (&*self.shared, self.threads());
        let busy = shared.busy.lock().unwrap_or_else(PoisonError::into_inner);
        shared.taken.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
        let work = |worker: usize| {
            for owner in (worker..threads).chain(0..worker) {
                let (first, end) = (owner * n / threads, (owner + 1) * n / threads);
                loop {
                    let i = first + shared.taken[owner].0.fetch_add(1, Ordering::Relaxed);
                    if i >= end {
                        break;
                    }
                    f(i);
                }
            }
        };
        let job: *const (dyn Fn(usize) + Sync + '_) = &work;
        // SAFETY: only the lifetime changes. Workers call the closure between entering and leaving, and this
        // function neither returns nor unwinds before it has shut the gate and all have left.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job) };
        shared.open(job, &self.others);
        WORKING.set(true);
        let mut result = catch_unwind(AssertUnwindSafe(|| work(0)));
        WORKING.set(false);
        shared.shut();
        if let Some(panic) = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            result = Err(panic);
        }
        drop(busy);
        result.unwrap_or_else(|panic| resume_unwind(panic));
    }

    /// Calls `f(i, part)` for the parts of `out`: part i begins at `i * chunk` and is `chunk` long, the last
    /// one perhaps shorter.
    pub fn for_chunks<T: Send>(&self, out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        assert!(chunk > 0, "chunks hold something");
        let (base, len) = (Base(out.as_mut_ptr()), out.len());
        self.for_each(len.div_ceil(chunk), |i| {
            let first = i * chunk;
            // SAFETY: `out` is borrowed mutably until all are done, every i is handed out once, and the
            // parts of different i are disjoint and inside it.
            let part = unsafe { std::slice::from_raw_parts_mut(base.at(first), chunk.min(len - first)) };
            f(i, part);
        });
    }

    /// Calls `f(m, first, columns)` for the columns `first ..` of grid m, in all pieces of all grids.
    ///
    /// # Panics
    ///
    /// If a grid is not whole rows.
    pub fn for_columns(&self, grids: &mut [Grid<'_>], f: impl Fn(usize, usize, Columns<'_>) + Sync) {
        let shared = |grid: &mut Grid| {
            let Grid { values, width, columns } = grid;
            assert!(*width > 0 && *columns > 0, "rows and pieces hold something");
            assert!(values.len().is_multiple_of(*width), "{} values are no rows of {width}", values.len());
            (Base(values.as_mut_ptr()), values.len() / *width, *width, *columns)
        };
        let grids: Vec<_> = grids.iter_mut().map(shared).collect();
        let pieces = grids.iter().map(|(.., width, columns)| width.div_ceil(*columns)).sum();
        self.for_each(pieces, |mut i| {
            for (m, (base, rows, stride, columns)) in grids.iter().enumerate() {
                let (rows, stride, first) = (*rows, *stride, i * columns);
                if first < stride {
                    let width = (*columns).min(stride - first);
                    let base = base.at(0);
                    return f(m, first, Columns { base, stride, rows, first, width, borrow: PhantomData });
                }
                i -= stride.div_ceil(*columns);
            }
        });
    }
}

/// A matrix that is filled some columns at a time.
pub struct Grid<'a> {
    /// `[rows, width]`.
    pub values: &'a mut [f32],
    /// Columns of it.
    pub width: usize,
    /// Columns of a piece; the last may have fewer.
    pub columns: usize,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for worker in self.others.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its jobs.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Lets the workers into a job.
    fn open(&self, job: Job, workers: &[JoinHandle<()>]) {
        // SAFETY: the gate is shut and nobody is inside; workers look at the job after they have entered.
        unsafe { *self.job.get() = Some(job) };
        let number = (self.gate.0.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        // Sequentially consistent, as is what a worker does before it sleeps: either the worker sees the
        // new number, or this thread sees that it is asleep.
        self.gate.0.store(number << 32 | OPEN, Ordering::SeqCst);
        for (worker, asleep) in workers.iter().zip(&self.asleep) {
            if asleep.0.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    /// Lets nobody else in, and waits until all have left.
    fn shut(&self) {
        let mut inside = self.gate.0.fetch_and(!OPEN, Ordering::AcqRel) & INSIDE;
        let mut waits = 0;
        while inside > 0 {
            // The others have as much left to do as a chunk is. If that takes long, they lack a core, and
            // this one may be it.
            waits += 1;
            if waits < 2000 {
                std::hint::spin_loop()
            } else {
                thread::yield_now()
            }
            inside = self.gate.0.load(Ordering::Acquire) & INSIDE;
        }
    }

    /// The life of worker i + 1.
    fn work(&self, i: usize) {
        WORKING.set(true);
        let mut seen = 0;
        while self.wait(i, seen) {
            let mut gate = self.gate.0.load(Ordering::Relaxed);
            while gate & OPEN != 0 {
                let entered =
                    self.gate.0.compare_exchange_weak(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed);
                match entered {
                    Ok(_) => break,
                    Err(other) => gate = other,
                }
            }
            seen = gate >> 32;
            if gate & OPEN == 0 {
                // The job is over: the others have done it.
                continue;
            }
            // SAFETY: this worker is inside, see `Sync`; and `Pool::for_each` keeps the closure alive until it is
            // not.
            let job = unsafe { &*(*self.job.get()).expect("an open gate has a job behind it") };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(i + 1))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            self.gate.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Returns when there is another job than the one seen, or false when there will be none.
    fn wait(&self, i: usize, seen: u64) -> bool {
        let ready = |order| self.gate.0.load(order) >> 32 != seen || self.ended.load(order);
        let mut began = None;
        loop {
            for _ in 0..64 {
                if ready(Ordering::Acquire) {
                    return !self.ended.load(Ordering::Acquire);
                }
                std::hint::spin_loop();
            }
            let waited = began.get_or_insert_with(Instant::now).elapsed();
            if waited > SPIN {
                break;
            }
            if waited > PATIENCE {
                // Whoever else wants this core may have it.
                thread::yield_now();
            }
        }
        self.asleep[i].0.store(true, Ordering::SeqCst);
        while !ready(Ordering::SeqCst) {
            thread::park();
        }
        self.asleep[i].0.store(false, Ordering::Relaxed);
        !self.ended.load(Ordering::Acquire)
    }
}

/// The start of an array of which every worker takes its own part.
struct Base<T>(*mut T);

// SAFETY: workers make disjoint references of it, and values of T may move between threads.
unsafe impl<T: Send> Sync for Base<T> {}

impl<T> Base<T> {
    /// The address of item i. (A method, so that closures capture the whole and not the pointer in it.)
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

/// Some columns of a matrix, for one worker alone.
#[derive(Debug)]
pub struct Columns<'a> {
    base: *mut f32,
    stride: usize,
    rows: usize,
    first: usize,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

impl Columns<'_> {
    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns there are.
    pub fn width(&self) -> usize {
        self.width
    }

    /// These columns of row t.
    pub fn row(&mut self, t: usize) -> &mut [f32] {
        assert!(t < self.rows, "row {t} of {}", self.rows);
        // SAFETY: the row is inside the matrix, which is borrowed mutably while this value exists; no other
        // value has these columns, and `self` is borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(t * self.stride + self.first), self.width) }
    }
}

/// The physical cores this process may use: how many threads to start unless told otherwise.
///
/// Two threads of one core share its arithmetic and its cache, and more of them only wait for memory.
pub fn physical_cores() -> usize {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    // Linux names the siblings of every CPU; those that name the same ones are one core.
    let mut siblings = Vec::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten() {
        siblings.extend(std::fs::read_to_string(entry.path().join("topology/thread_siblings_list")).ok());
    }
    siblings.sort();
    siblings.dedup();
    if siblings.is_empty() { allowed } else { siblings.len().min(allowed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[track_caller]
    fn message_of(f: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("a panic");
        panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or(panic.downcast_ref().cloned())
            .unwrap_or_default()
    }

    #[test]
    fn work_is_handed_out_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for n in [0, 1, 2, 7, 100] {
                let calls: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(n, |i| {
                    calls[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1), "{threads} {n}");
                for chunk in [1, 3, 7, 1000] {
                    let mut out = vec![0; n];
                    pool.for_chunks(&mut out, chunk, |i, part| {
                        let first = i * chunk;
                        assert!(part.len() == chunk.min(n - first));
                        part.iter_mut().enumerate().for_each(|(i, x)| *x += 1 + first + i);
                    });
                    assert_eq!(out, (1..=n).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn columns_cover_the_matrix() {
        let pool = Pool::new(3);
        for (rows, width, columns) in [(1, 1, 1), (4, 10, 3), (3, 64, 16), (0, 5, 2), (2, 7, 100)] {
            let mut out = vec![0.0; rows * width];
            let mut other = vec![0.0; 21];
            let grids = &mut [
                Grid { values: &mut other, width: 7, columns: 2 },
                Grid { values: &mut out, width, columns },
            ];
            pool.for_columns(grids, |m, first, mut part| {
                let width = [7, width][m];
                assert_eq!(part.rows(), [3, rows][m]);
                for t in 0..part.rows() {
                    let row = part.row(t);
                    row.iter_mut().enumerate().for_each(|(i, x)| *x += (1 + t * width + first + i) as f32);
                }
            });
            for out in [out, other] {
                let all = out.iter().enumerate().all(|(i, x)| *x == (i + 1) as f32);
                assert!(all, "{rows} × {width} by {columns}");
            }
        }
        let message = |width| {
            let grid = Grid { values: &mut [0.0; 6], width, columns: 1 };
            message_of(|| pool.for_columns(&mut [grid], |_, _, mut part| part.row(2)[0] = 1.0))
        };
        assert_eq!(message(3), "row 2 of 2");
        assert!(message(4).contains("no rows of 4"));
    }

    #[test]
    fn panics_reach_the_caller_and_the_pool_goes_on() {
        for threads in [1, 4] {
            let pool = Pool::new(threads);
            for culprit in 0..8 {
                let message = message_of(|| {
                    pool.for_each(8, |i| {
                        if i == culprit {
                            panic!("piece {i} fails")
                        }
                    });
                });
                assert_eq!(message, format!("piece {culprit} fails"));
                let total = AtomicUsize::new(0);
                pool.for_each(10, |i| _ = total.fetch_add(i, Ordering::Relaxed));
                assert_eq!(total.into_inner(), 45);
            }
        }
    }

    #[test]
    fn nested_use_is_refused() {
        let pool = Pool::new(2);
        let message = message_of(|| pool.for_each(4, |_| pool.for_each(4, |_| ())));
        assert!(message.contains("starts another"), "{message}");
        pool.for_each(4, |_| ());
    }

    #[test]
    fn threads_take_turns() {
        let (pool, total) = (Pool::new(2), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..500).for_each(|_| pool.for_each(2, |_| _ = total.fetch_add(1, Ordering::Relaxed)))
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 500 * 2);
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(3);
        for _ in 0..3 {
            thread::sleep(4 * SPIN);
            // Sooner or later all three take part, if the system lets them.
            let (seen, start) = (Mutex::new(HashSet::new()), Instant::now());
            while seen.lock().unwrap().len() < 3 && start.elapsed() < Duration::from_secs(20) {
                pool.for_each(30, |_| {
                    seen.lock().unwrap().insert(thread::current().id());
                    thread::sleep(Duration::from_micros(100));
                });
            }
            assert_eq!(seen.into_inner().unwrap().len(), 3);
        }
        // All asleep when dropped.
        thread::sleep(4 * SPIN);
    }

    #[test]
    fn many_small_jobs() {
        let pool = Pool::new(2);
        let calls = AtomicUsize::new(0);
        let mut best = Duration::MAX;
        for _ in 0..10_000 {
            let start = Instant::now();
            pool.for_each(2, |_| _ = calls.fetch_add(1, Ordering::Relaxed));
            best = best.min(start.elapsed());
        }
        assert_eq!(calls.into_inner(), 20_000);
        println!("an empty job takes {best:?}");
    }

    #[test]
    fn cores_are_allowed_to_this_process() {
        let threads = physical_cores();
        assert!(threads >= 1 && threads <= thread::available_parallelism().map_or(1, usize::from));
    }
}
