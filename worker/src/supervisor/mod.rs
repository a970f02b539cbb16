//! `firesteel-supervisor`: one small single-threaded process per driver or executor.
//!
//! It starts the payload with its isolation, outlives it, and leaves nothing of it behind: no process, however it was
//! forked, and no scratch directory. It reports to its worker on standard output and takes commands on standard input;
//! when that pipe closes the worker is gone, and so is the payload.

mod child;
mod reap;
pub mod spec;

pub use child::in_words;
pub use reap::children;

use crate::scratch::ScratchDir;
use child::{Inherited, Slots};
use reap::ChildEvents;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use spec::{End, LAUNCH_FD, READY_FD, Report, Spec, command};
use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A bound against a broken worker; settings may take up to 1 MiB.
const SPEC_BYTES_MAX: usize = 16 << 20;
/// `HOST:PORT\n` fits; anything longer is not an address.
const READY_BYTES_MAX: usize = 512;

/// The whole life of the supervisor. Must run in a process that has one thread.
pub fn run() -> ExitCode {
    match supervise() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            report(&Report::LaunchFailed { reason });
            ExitCode::FAILURE
        }
    }
}

fn supervise() -> Result<(), String> {
    let slots = take_over_descriptors()?;
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("cannot become a subreaper: {error}"))?;
    let mut control = Control::default();
    let Some(spec) = control.read_spec()? else { return Ok(()) };
    let scratch = ScratchDir::pin(&spec.scratch_dir)
        .map_err(|error| format!("cannot open {}: {}", spec.scratch_dir.display(), in_words(&error)))?;
    let outcome = launch(&spec, slots, &control).map(|payload| payload.map(|p| p.attend(&mut control)));
    if let Err(error) = scratch.remove() {
        eprintln!("firesteel-supervisor: cannot remove {}: {error}", spec.scratch_dir.display());
    }
    if let Some(end) = outcome? {
        report(&Report::Ended(end));
    }
    Ok(())
}

/// The worker may be gone; then there is nobody to tell.
fn report(report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
    }
}

/// Closes what the worker's own starter may have leaked to it, and reserves the payload's two descriptor numbers.
fn take_over_descriptors() -> Result<Slots, String> {
    let words = |error: io::Error| format!("cannot list open descriptors: {}", in_words(&error));
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .map_err(words)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // SAFETY: this runs first in a single-threaded process, so no value of ours owns any of them
        // (the directory's own is closed already: an error without effect).
        unsafe { libc::close(fd) };
    }
    let reserve = |number: i32| match File::open("/dev/null") {
        Ok(file) if file.as_raw_fd() == number => Ok(OwnedFd::from(file)),
        Ok(file) => Err(format!("descriptor {number} is not free ({} is next)", file.as_raw_fd())),
        Err(error) => Err(format!("cannot open /dev/null: {}", in_words(&error))),
    };
    Ok(Slots { launch: reserve(LAUNCH_FD)?, ready: reserve(READY_FD)? })
}

/// `None` when the worker went away before the payload was started.
fn launch(spec: &Spec, slots: Slots, control: &Control) -> Result<Option<Payload>, String> {
    hold_lock(&spec.lock)?;
    let stdout = open_log(&spec.stdout)?;
    let stderr = open_log(&spec.stderr)?;
    let launch = memory_file(spec.launch.expose().as_bytes())
        .map_err(|error| format!("cannot hold the launch document: {}", in_words(&error)))?;
    let (ready_read, ready_write) = if spec.ready {
        let (read, write) =
            io::pipe().map_err(|error| format!("cannot make a pipe: {}", in_words(&error)))?;
        (Some(read), Some(OwnedFd::from(write)))
    } else {
        (None, None)
    };
    let events =
        ChildEvents::new().map_err(|error| format!("cannot watch children: {}", in_words(&error)))?;
    // The order matters: who holds the lock and still has a worker can be seen by the next worker; nobody else starts anything.
    if control.worker_is_gone() {
        return Ok(None);
    }
    let child = child::spawn(spec, slots, Inherited { launch, ready: ready_write, stdout, stderr })?;
    report(&Report::Started { pid: child.id() });
    Ok(Some(Payload {
        leader: Pid::from_child(&child),
        ready: ready_read,
        ready_text: Vec::new(),
        events,
        grace: Duration::from_millis(spec.grace_ms),
        kill_at: None,
    }))
}

/// Kept open, and thereby locked, until this process ends.
fn hold_lock(path: &Path) -> Result<(), String> {
    let words = |error: io::Error| format!("cannot lock {}: {}", path.display(), in_words(&error));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(words)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).map_err(|error| words(error.into()))?;
    std::mem::forget(file);
    Ok(())
}

fn open_log(path: &Path) -> Result<File, String> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(|error| format!("cannot open the log file {}: {}", path.display(), in_words(&error)))
}

/// Unlike a pipe it takes a document of any size without a reader, and unlike a file it leaves nothing on disk.
fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("launch", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Standard input: the spec, then commands.
#[derive(Default)]
struct Control {
    buffer: Vec<u8>,
}

impl Control {
    /// `None` when the pipe ends before the spec does: the worker died while it wrote.
    fn read_spec(&mut self) -> Result<Option<Spec>, String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| format!("the supervisor's orders are not valid: {error}"));
            }
            if self.buffer.len() > SPEC_BYTES_MAX {
                return Err(format!("the supervisor's orders are longer than {SPEC_BYTES_MAX} bytes"));
            }
            if self.fill() == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads what there is; 0 is the end, and an error is as good as one.
    fn fill(&mut self) -> usize {
        let mut chunk = [0u8; 16 << 10];
        loop {
            // Past std's buffer, which poll could not see.
            match rustix::io::read(io::stdin(), &mut chunk) {
                Ok(n) => {
                    self.buffer.extend_from_slice(&chunk[..n]);
                    return n;
                }
                Err(Errno::INTR) => {}
                Err(_) => return 0,
            }
        }
    }

    fn worker_is_gone(&self) -> bool {
        let stdin = io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
        rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

/// A payload that has been started.
struct Payload {
    leader: Pid,
    ready: Option<PipeReader>,
    ready_text: Vec<u8>,
    events: ChildEvents,
    grace: Duration,
    kill_at: Option<Instant>,
}

impl Payload {
    /// Returns when nothing of the payload is left.
    fn attend(mut self, control: &mut Control) -> End {
        let killed = End::Signal(libc::SIGKILL);
        loop {
            self.events.clear();
            if let Some(end) = reap::has_ended(self.leader) {
                reap::kill_all(Some(self.leader), &self.events);
                return end;
            }
            if let Some(end) = reap::reap_orphans(self.leader) {
                reap::kill_all(None, &self.events);
                return end;
            }
            let wanted_dead = self.obey(&std::mem::take(&mut control.buffer))
                || self.kill_at.is_some_and(|at| at <= Instant::now());
            if wanted_dead || (self.wait() && control.fill() == 0) {
                return reap::kill_all(Some(self.leader), &self.events).unwrap_or(killed);
            }
        }
    }

    /// Whether everything has to be killed now.
    fn obey(&mut self, commands: &[u8]) -> bool {
        for byte in commands {
            match *byte {
                command::KILL => return true,
                command::TERMINATE if self.kill_at.is_none() => {
                    let _ = rustix::process::kill_process(self.leader, Signal::TERM);
                    self.kill_at = Some(Instant::now() + self.grace);
                }
                _ => {}
            }
        }
        false
    }

    /// Sleeps until something happens; `true` when the control pipe has something to say.
    fn wait(&mut self) -> bool {
        let timeout = self.kill_at.map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.events.as_fd(), PollFlags::IN),
            PollFd::new(&stdin, PollFlags::IN),
        ];
        if let Some(ready) = &self.ready {
            fds.push(PollFd::from_borrowed_fd(ready.as_fd(), PollFlags::IN));
        }
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            return false;
        }
        let commanded = !fds[1].revents().is_empty();
        if fds.get(2).is_some_and(|fd| !fd.revents().is_empty()) {
            self.read_ready();
        }
        commanded
    }

    /// The pipe is closed after the first line: nothing more is expected on it.
    fn read_ready(&mut self) {
        let Some(pipe) = &mut self.ready else { return };
        let mut chunk = [0u8; READY_BYTES_MAX];
        match pipe.read(&mut chunk) {
            Ok(n) if n > 0 => self.ready_text.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            _ => self.ready = None,
        }
        if let Some(end) = self.ready_text.iter().position(|b| *b == b'\n') {
            let address = String::from_utf8_lossy(&self.ready_text[..end]).trim().to_owned();
            report(&Report::Ready { address });
            self.ready = None;
        } else if self.ready_text.len() > READY_BYTES_MAX {
            self.ready = None;
        }
    }
}
