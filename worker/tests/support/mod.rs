//! What the tests of the real binaries share.
#![allow(dead_code, reason = "each test crate uses its own part")]

pub mod master;
pub mod worker;

use std::path::Path;
use std::time::{Duration, Instant};

/// Far more than anything here takes, also on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Looks until `condition` gives something; fails the test after [`LIMIT`].
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the process exists and is not merely waiting to be reaped.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let after_name = stat.rfind(')').map_or("", |at| &stat[at + 1..]);
    !matches!(after_name.split_ascii_whitespace().next(), Some("Z" | "X") | None)
}

/// The content of a file that another process writes, once it ends with a line feed.
#[track_caller]
pub fn written(path: &Path) -> String {
    eventually(&format!("a line in {}", path.display()), || {
        std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))
    })
}

/// The process ids, one per line, in a file that is complete with `count` of them.
#[track_caller]
pub fn pids(path: &Path, count: usize) -> Vec<u32> {
    eventually(&format!("{count} process ids in {}", path.display()), || {
        let text = std::fs::read_to_string(path).ok()?;
        let pids: Vec<u32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
        (text.ends_with('\n') && pids.len() == count).then_some(pids)
    })
}

pub fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process id");
    rustix::process::kill_process(pid, signal).expect("the process to be there");
}
