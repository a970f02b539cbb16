//! What is left when a supervisor dies before its payload (somebody killed it).
//!
//! The payload's leader dies with it by its parent-death signal. What the payload had forked beyond that is handed to
//! this process, the next subreaper up, and is killed here. Every child of this process that is not a supervisor
//! started here is such a left-over.

use rustix::process::{Pid, Signal, WaitOptions};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Knows the supervisors, and so what is not one.
#[derive(Debug, Default)]
pub struct Orphans {
    supervisors: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    /// Process id → the registration it belongs to: an id can be reused between a death and its removal from here.
    pids: BTreeMap<u32, u64>,
}

/// Names one registration.
#[derive(Debug)]
pub struct Registration {
    pid: u32,
    number: u64,
}

impl Orphans {
    /// Makes this process the parent of what its supervisors leave behind. For the whole process: call it in `main`.
    pub fn adopt() -> io::Result<()> {
        Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
    }

    /// Starts a supervisor; none can appear as a child without being registered.
    pub fn spawn(
        &self,
        command: &mut tokio::process::Command,
    ) -> io::Result<(tokio::process::Child, Registration)> {
        let mut registry = self.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        let pid = child.id().unwrap_or_default();
        registry.next += 1;
        let number = registry.next;
        registry.pids.insert(pid, number);
        Ok((child, Registration { pid, number }))
    }

    /// After the supervisor has been waited for.
    pub fn forget(&self, registration: &Registration) {
        let mut registry = self.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
        if registry.pids.get(&registration.pid) == Some(&registration.number) {
            registry.pids.remove(&registration.pid);
        }
    }

    /// Returns when none is left.
    pub async fn kill_all(&self) {
        let mut pause = Duration::from_millis(1);
        while self.kill_once() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn kill_once(&self) -> bool {
        let registry = self.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut any = false;
        for child in crate::supervisor::children() {
            if !registry.pids.contains_key(&pid_number(child)) {
                any = true;
                let _ = rustix::process::kill_process(child, Signal::KILL);
                let _ = rustix::process::waitpid(Some(child), WaitOptions::NOHANG);
            }
        }
        any
    }
}

fn pid_number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}
