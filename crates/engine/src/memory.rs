//! How much memory is free.

use sysinfo::{MemoryRefreshKind, System};

/// Bytes that can be taken without swapping, control-group limits included; `u64::MAX` where the
/// system does not tell.
pub fn available_memory() -> u64 {
    let Ok(mut system) = System::new() else { return u64::MAX };
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    // Page cache counts as used in a control group, but gives way.
    let limit =
        system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    system.available_memory().min(limit)
}
