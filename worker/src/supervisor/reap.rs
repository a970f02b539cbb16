//! Waiting for and killing what descends from this process.
//!
//! The supervisor is a subreaper: whatever the payload forks, double-forks or puts into a session of its own becomes a
//! direct child here as soon as its parent is gone. Only direct children are ever signalled: nobody else reaps them, so
//! their process ids cannot have been reused.

use super::spec::End;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use std::io;
use std::time::Duration;

/// Readable when a child has changed state.
pub struct ChildEvents(OwnedFd);

impl ChildEvents {
    /// Blocks SIGCHLD in this (the only) thread and takes it from a descriptor instead.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the set is ours and initialised by sigemptyset; signalfd returns a new descriptor or -1.
        unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes the pending signal, so that the descriptor becomes unreadable until the next one. Call before looking at children.
    pub fn clear(&self) {
        let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.0, &mut buffer).is_ok_and(|n| n > 0) {}
    }

    fn wait(&self, at_most: Duration) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(at_most.subsec_nanos()) };
        let _ = rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout));
        self.clear();
    }
}

/// How `leader` ended, if it has. It stays a zombie, so that its group's id cannot be reused yet.
pub fn has_ended(leader: Pid) -> Option<End> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = rustix::process::waitid(WaitId::Pid(leader), options).ok()??;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(End::ExitCode(code)),
        (None, Some(signal)) => Some(End::Signal(signal)),
        (None, None) => None,
    }
}

/// Reaps orphans that have ended, so that a payload that double-forks a lot does not fill the process table.
/// Returns the leader's end in case it ended just now and was reaped with them.
pub fn reap_orphans(leader: Pid) -> Option<End> {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == leader {
            return end_of(status);
        }
    }
    None
}

fn end_of(status: WaitStatus) -> Option<End> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(End::ExitCode(code)),
        (None, Some(signal)) => Some(End::Signal(signal)),
        (None, None) => None,
    }
}

/// Kills every descendant and returns when none is left, with the leader's end if it was reaped here.
/// `leader` must not have been reaped yet; pass `None` when it has.
pub fn kill_all(leader: Option<Pid>, events: &ChildEvents) -> Option<End> {
    if let Some(leader) = leader {
        let _ = rustix::process::kill_process_group(leader, Signal::KILL);
    }
    let mut end = None;
    let mut pause = Duration::from_millis(1);
    loop {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if Some(pid) == leader {
                        end = end_of(status);
                    }
                }
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(_) => return end,
            }
        }
        for child in children() {
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        // Woken by the next death; the timeout is for a process that is handed to us alive.
        events.wait(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The direct children of this process. Scans /proc: the kernel's own list of children is not compiled in everywhere.
pub fn children() -> Vec<Pid> {
    let me = rustix::process::getpid();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
            (parent_in_stat(&stat)? == me.as_raw_nonzero().get()).then(|| Pid::from_raw(pid))?
        })
        .collect()
}

/// The fourth field. The second is the program's name in parentheses and may hold anything, parentheses and blanks, too.
fn parent_in_stat(stat: &[u8]) -> Option<i32> {
    let after_name = stat.iter().rposition(|b| *b == b')')? + 1;
    let text = std::str::from_utf8(&stat[after_name..]).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_forge_its_parent() {
        assert_eq!(parent_in_stat(b"12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in_stat(b"12 (x) S 1 ) (y) R 8 1"), Some(8));
        assert_eq!(parent_in_stat(b"12 (\xff\xfe) S 9 1"), Some(9));
        assert_eq!(parent_in_stat(b"garbage"), None);
        assert_eq!(parent_in_stat(b""), None);
    }
}
