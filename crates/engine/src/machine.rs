//! The machine: what its processor is called, how much memory is free, and how much this process has taken.

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, System};

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

/// The most memory this process has held since it started, mapped files included, where the system tells (Linux).
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(kibibytes.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// The processor's name, as the system has it; `unknown` where it has none.
pub fn cpu_name() -> String {
    let system = System::new().map(|mut system| {
        system.refresh_cpu_list(CpuRefreshKind::nothing());
        system.cpus().first().map(|cpu| cpu.brand().trim().to_string())
    });
    system.ok().flatten().filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn peak_memory_is_what_was_touched() {
        let before = peak_memory().unwrap();
        let taken = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_memory().unwrap() >= taken.len() as u64);
        drop(taken);
        assert!(peak_memory().unwrap() >= before);
    }

    #[test]
    fn the_processor_has_a_name() {
        assert!(!cpu_name().is_empty());
    }
}
