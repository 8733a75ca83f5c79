//! Tiles in instructions.
//!
//! Rust's own intrinsics for them are not stable, so these are the instructions themselves. The compiler knows nothing of tile
//! registers, hence no code of its own touches them between one instruction here and the next; nor may a called function rely on
//! them (System V ABI: they belong to the caller). When the system switches threads, it saves them.

use super::{Sums, Tile, Tiles};
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::LazyLock;

/// The registers of this thread, configured as eight whole tiles; released when dropped, so that the system need not
/// save them when threads are switched.
#[derive(Debug)]
pub struct Amx(PhantomData<*const ()>);

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (row_bytes[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};
const _: () = assert!(size_of::<Config>() == 64);

thread_local! {
    /// Whether there is an [`Amx`] of this thread.
    static HELD: Cell<bool> = const { Cell::new(false) };
}

impl Tiles for Amx {
    fn new() -> Option<Amx> {
        available().then(|| {
            assert!(!HELD.replace(true), "this thread holds its tiles already");
            // SAFETY: the processor has tiles, the process may use them, and the configuration is a valid one.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
            Amx(PhantomData)
        })
    }

    #[inline(always)]
    fn zero<const T: u8>(&mut self) {
        const { assert!(T < 8) };
        // SAFETY: `self` is only made by `new`, which configured all registers of this thread.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) };
    }
    #[inline(always)]
    fn load<const T: u8>(&mut self, tile: &Tile) {
        const { assert!(T < 8) };
        // SAFETY: as above; sixteen rows of 64 bytes are a whole `Tile`.
        unsafe { load::<T>((&raw const *tile).cast()) };
    }
    #[inline(always)]
    fn load_sums<const T: u8>(&mut self, sums: &Sums) {
        const { assert!(T < 8) };
        // SAFETY: as above, of `Sums`.
        unsafe { load::<T>((&raw const *sums).cast()) };
    }
    #[inline(always)]
    fn store_sums<const T: u8>(&self, sums: &mut Sums) {
        const { assert!(T < 8) };
        // SAFETY: as above; sixteen rows of 64 bytes are whole `Sums`.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{t}", to = in(reg) &raw mut *sums, stride = in(reg) 64usize, t = const T,
                options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    fn multiply_add<const C: u8, const A: u8, const B: u8>(&mut self) {
        const { assert!(A < 8 && B < 8 && C < 8 && A != B && B != C && C != A) };
        // SAFETY: as above; the registers differ.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }
}

impl Drop for Amx {
    fn drop(&mut self) {
        // SAFETY: the processor has tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        HELD.set(false);
    }
}

/// # Safety
///
/// The registers are configured, and 1024 bytes can be read.
#[inline(always)]
unsafe fn load<const T: u8>(from: *const u8) {
    // SAFETY: the caller's.
    unsafe {
        asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const T, from = in(reg) from, stride = in(reg) 64usize,
            options(nostack, readonly, preserves_flags));
    }
}

/// Whether the processor has the instructions and the system lets this process use the registers; asked once.
pub fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| processor_has_tiles() && system_permits());
    *AVAILABLE
}

/// AMX-TILE and AMX-BF16, and a system that saves their registers.
fn processor_has_tiles() -> bool {
    if !is_x86_feature_detected!("xsave") || __cpuid(0).eax < 7 {
        return false;
    }
    const TILE: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    const STATES: u64 = 1 << 17 | 1 << 18;
    // SAFETY: the system has enabled XSAVE.
    let states = unsafe { _xgetbv(0) };
    __cpuid_count(7, 0).edx & (TILE | BF16) == TILE | BF16 && states & STATES == STATES
}

/// Linux gives the registers to processes that ask for them.
fn system_permits() -> bool {
    const ARCH_PRCTL: isize = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: the call takes two numbers, writes no memory and changes nothing but this permission.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") REQUEST_PERMISSION, in("rsi") XTILEDATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}
