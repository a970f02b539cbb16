//! Processes, as /proc shows them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A live process (zombies do not count).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// Arguments, separated by spaces.
    pub command: String,
    pub cwd: PathBuf,
}

/// All processes whose arguments or working directory lie under `dir`.
pub fn under(dir: &Path) -> Vec<Process> {
    let dir_text = dir.display().to_string();
    all().into_iter().filter(|p| p.cwd.starts_with(dir) || p.command.contains(&dir_text)).collect()
}

fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let state = stat.rsplit_once(") ")?.1.chars().next()?;
            if matches!(state, 'Z' | 'X') {
                return None;
            }
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            Some(Process { pid, command, cwd })
        })
        .collect()
}

/// Resident memory in KiB.
pub fn resident_kib(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

pub fn kill(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Waits for a condition; panics with `what` and the last thing seen when it does not come true in time.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(seen) => {
                assert!(Instant::now() < deadline, "{what}: not within {limit:?}; last seen: {seen}")
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
