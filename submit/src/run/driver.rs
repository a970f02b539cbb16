//! The driver of a client-mode application: a child process that cannot outlive us.

use super::local;
use super::scratch::Scratch;
use crate::exit::{Exit, Failure};
use crate::run::Run;
use firesteel_common::{ApplicationId, DriverLaunch, ProcessEnd, Secret};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

/// How long an ended or interrupted driver may take to leave by itself.
const PATIENCE: Duration = Duration::from_secs(5);
const STDERR_LINES: usize = 20;

#[derive(Debug)]
pub struct Driver {
    child: Child,
    /// Where the launch document goes; the driver waits for it.
    launch: Option<OwnedFd>,
    /// The driver's last lines on standard error, once that is closed.
    stderr: Option<JoinHandle<VecDeque<String>>>,
    scratch: Scratch,
}

impl Driver {
    /// Starts the process, before the master has been asked: it loads while the submission is under way, and then reads
    /// what to do from its descriptor. Must be called on the main thread, as the death signal follows the thread.
    pub fn spawn(run: &Run, capture_stdout: bool) -> Result<Self, Failure> {
        let engine = engine()?;
        let scratch =
            Scratch::create().map_err(|error| local("cannot create a directory for the driver", &error))?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| local("cannot create a pipe for the driver", &error.into()))?;
        let mut command = Command::new(&engine);
        command
            .args(["driver", "--launch-fd", &read.as_raw_fd().to_string()])
            // For people who run `ps`.
            .arg(crate::display::one_line(run.script.file_name()))
            .stdin(Stdio::null())
            .stdout(if capture_stdout { Stdio::piped() } else { Stdio::inherit() })
            .stderr(if run.verbose { Stdio::inherit() } else { Stdio::piped() })
            .kill_on_drop(true);
        let parent = rustix::process::getpid();
        let inherited = read.as_raw_fd();
        // SAFETY: between fork and exec only async-signal-safe system calls are made, nothing is allocated, and
        // `inherited` stays open in the parent until after the spawn.
        unsafe {
            command.pre_exec(move || {
                // Its own session: Ctrl-C reaches submit alone, which then ends the driver in order.
                rustix::process::setsid()?;
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // submit may have died before the line above took effect.
                if rustix::process::getppid() != Some(parent) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                let fd = rustix::fd::BorrowedFd::borrow_raw(inherited);
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
                Ok(())
            });
        }
        let mut child = command
            .spawn()
            .map_err(|error| local(&format!("cannot start the driver {}", engine.display()), &error))?;
        let stderr = child.stderr.take().map(|stderr| tokio::spawn(last_lines(stderr)));
        Ok(Self { child, launch: Some(write), stderr, scratch })
    }

    /// Tells the waiting process what to run.
    pub async fn launch(&mut self, run: &Run, id: &str, token: String) -> Result<(), Failure> {
        let spec = &run.settings.spec;
        let application: ApplicationId = id
            .parse()
            .map_err(|error| Failure::new(Exit::Unreachable, format!("the master's answer: {error}")))?;
        let document = DriverLaunch {
            application,
            master: run.settings.master.to_string(),
            token: Secret::new(token),
            script: std::path::absolute(&run.script.path)
                .map_err(|error| local("cannot find the script", &error))?,
            resource: run.script.resource.clone(),
            output: spec.output,
            conf: spec.conf.clone(),
            memory_mib: spec.driver.memory_mib,
            scratch_dir: self.scratch.path().to_owned(),
        };
        let document = serde_json::to_vec(&document).map_err(|error| {
            Failure::new(Exit::ApplicationFailed, format!("cannot describe the launch: {error}"))
        })?;
        if let Some(pipe) = self.launch.take() {
            let send = async {
                rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
                let mut pipe = tokio::net::unix::pipe::Sender::from_owned_fd_unchecked(pipe)?;
                pipe.write_all(&document).await
            };
            match send.await {
                // A driver that has died already is reported with how it ended.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                result => result.map_err(|error| local("cannot tell the driver what to run", &error))?,
            }
        }
        Ok(())
    }

    /// Its standard output, when it was captured; once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub async fn wait(&mut self) -> Result<ProcessEnd, Failure> {
        self.child.wait().await.map(process_end).map_err(|error| local("cannot wait for the driver", &error))
    }

    /// Ends the process: politely first, then by force.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(PATIENCE, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    /// Gives a driver whose application has ended the time to leave.
    pub async fn leave(&mut self) -> Option<ProcessEnd> {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => status.ok().map(process_end),
            Err(_) => {
                self.stop().await;
                None
            }
        }
    }

    /// Ends the process at once.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        drop(self.child.kill().await);
    }

    /// To the driver and what it may have started: it leads a process group of its own.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)) {
            // An error says that it has ended by itself.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// What an ended driver wrote last to its standard error.
    pub async fn last_words(&mut self) -> VecDeque<String> {
        match self.stderr.take() {
            // Bounded: a process of the driver's own may still hold the pipe.
            Some(reading) => tokio::time::timeout(Duration::from_secs(1), reading)
                .await
                .map_or_else(|_| VecDeque::new(), Result::unwrap_or_default),
            None => VecDeque::new(),
        }
    }
}

/// Reads to the end, so that the driver never blocks on a full pipe, and keeps the last lines.
async fn last_lines(stderr: tokio::process::ChildStderr) -> VecDeque<String> {
    let mut kept = VecDeque::new();
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line).await, Ok(n) if n > 0) {
        if kept.len() == STDERR_LINES {
            kept.pop_front();
        }
        kept.push_back(crate::display::one_line(&String::from_utf8_lossy(&line)));
        line.clear();
    }
    kept
}

fn process_end(status: ExitStatus) -> ProcessEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => ProcessEnd::Exited { code },
        (None, signal) => ProcessEnd::Signaled { signal: signal.unwrap_or_default() },
    }
}

/// The driver's program: `FIRESTEEL_ENGINE`, or the one installed beside `submit`.
fn engine() -> Result<PathBuf, Failure> {
    let path = match std::env::var_os("FIRESTEEL_ENGINE") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()
            .map(|submit| submit.with_file_name("firesteel-engine"))
            .map_err(|error| local("cannot tell where submit is installed", &error))?,
    };
    if path.is_file() {
        Ok(path)
    } else {
        Err(Failure::usage(format!("the driver's program is not there: {}", path.display())).hint(
            "install firesteel-engine beside submit, set FIRESTEEL_ENGINE, or use --deploy-mode cluster",
        ))
    }
}
