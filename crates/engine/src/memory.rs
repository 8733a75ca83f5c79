//! How much memory is free.

use sysinfo::{MemoryRefreshKind, System};

/// Bytes that can be taken without swapping, control-group limits included.
pub fn available_memory() -> u64 {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    system.available_memory().min(limit)
}
