//! Ctrl-C as a request to stop, for commands that have something to say at the end.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The exit status of a program that Ctrl-C has ended.
pub const STATUS: u8 = 130;

static WORKING: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// From now on, Ctrl-C asks [`work`] to stop; a second one, or one outside [`work`], ends the program at once.
pub fn catch() {
    // Only fails if called twice; then the handler is there.
    let _ = ctrlc::set_handler(|| {
        if !WORKING.load(Relaxed) || STOP.swap(true, Relaxed) {
            std::process::exit(i32::from(STATUS));
        }
    });
}

/// Runs work that looks at [`stopped`].
pub fn work<T>(work: impl FnOnce() -> T) -> T {
    STOP.store(false, Relaxed);
    WORKING.store(true, Relaxed);
    let result = work();
    WORKING.store(false, Relaxed);
    result
}

/// Whether the work has been asked to stop.
pub fn stopped() -> bool {
    STOP.load(Relaxed)
}
