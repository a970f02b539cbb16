//! How busy the machine is.

use firesteel_common::Resources;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use sysinfo::System;

/// What the operating system and its daemons keep when the capacity is not given.
const RESERVED_MIB: u64 = 1024;
const MEMORY_MIB_MIN: u64 = 512;

/// One look at the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// Percent of the whole machine, 0 to 100.
    pub cpu_percent: f32,
    pub memory_used_mib: u64,
}

/// Samples on demand, at most as often as the kernel's counters give a meaningful difference.
pub struct Usage {
    state: Mutex<State>,
}

struct State {
    /// `None` on a system that tells nothing.
    system: Option<System>,
    at: Instant,
    last: Sample,
}

impl Default for Usage {
    fn default() -> Self {
        let mut system = System::new().ok();
        let mut last = Sample::default();
        if let Some(system) = &mut system {
            // The first CPU reading is only the base of the next.
            system.refresh_cpu_usage();
            system.refresh_memory();
            last.memory_used_mib = system.used_memory() >> 20;
        }
        Self { state: Mutex::new(State { system, at: Instant::now(), last }) }
    }
}

impl Usage {
    pub fn sample(&self) -> Sample {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        if let Some(system) = &mut state.system
            && state.at.elapsed() >= sysinfo::MINIMUM_CPU_UPDATE_INTERVAL
        {
            system.refresh_cpu_usage();
            system.refresh_memory();
            let cpu = system.global_cpu_usage();
            state.last = Sample {
                cpu_percent: if cpu.is_finite() { cpu.clamp(0.0, 100.0) } else { 0.0 },
                memory_used_mib: system.used_memory() >> 20,
            };
            state.at = Instant::now();
        }
        state.last
    }
}

/// What this machine (or this container) can give when nobody says otherwise: all cores, memory less 1 GiB.
pub fn default_capacity() -> Resources {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let total = System::new().map_or(0, |mut system| {
        system.refresh_memory();
        let limit = system.cgroup_limits().map(|l| l.total_memory).filter(|l| *l > 0).unwrap_or(u64::MAX);
        system.total_memory().min(limit)
    });
    Resources::new(cores, (total >> 20).saturating_sub(RESERVED_MIB).max(MEMORY_MIB_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_something_to_give() {
        let capacity = default_capacity();
        assert!(capacity.cores >= 1 && capacity.memory_mib >= MEMORY_MIB_MIN, "{capacity}");
        let sample = Usage::default().sample();
        assert!((0.0..=100.0).contains(&sample.cpu_percent) && sample.memory_used_mib > 0, "{sample:?}");
    }
}
