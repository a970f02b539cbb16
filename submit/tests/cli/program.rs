//! The real `submit` as a child, with a deadline on everything.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

pub const DEADLINE: Duration = Duration::from_secs(30);

/// A directory of the test's own.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("submit-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A stand-in for firesteel-engine: a shell script with the launch descriptor's number in `$FD`.
    pub fn engine(&self, body: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let script = format!("#!/bin/sh\nFD=$3\nDIR='{}'\n{body}\n", self.0.display());
        let path = self.file("engine", script);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Done {
    #[track_caller]
    pub fn assert(&self, code: i32, stderr: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for part in stderr {
            assert!(self.stderr.contains(part), "{part:?} is missing in\n{}", self.stderr);
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

pub struct Program {
    pub child: Child,
    pub stdout: Option<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    /// What has been read of standard error.
    heard: String,
}

pub fn command(args: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_submit"));
    command.args(args.iter().map(|arg| arg.as_ref())).env_remove("FIRESTEEL_MASTER").env_remove("NO_COLOR");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Program {
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stdout, stderr, heard: String::new() }
    }

    /// Reads standard error until a line contains `part`.
    pub async fn hear(&mut self, part: &str) {
        let reading = async {
            while !self.heard.contains(part) {
                let before = self.heard.len();
                self.stderr.read_line(&mut self.heard).await.unwrap();
                assert!(self.heard.len() > before, "{part:?} never came:\n{}", self.heard);
            }
        };
        if tokio::time::timeout(DEADLINE, reading).await.is_err() {
            panic!("{part:?} did not come in time:\n{}", self.heard);
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub async fn done(mut self) -> Done {
        let mut stdout = Vec::new();
        let end = async {
            let reading = async {
                if let Some(mut pipe) = self.stdout.take() {
                    pipe.read_to_end(&mut stdout).await.unwrap();
                }
            };
            let mut rest = String::new();
            let (status, (), read) =
                tokio::join!(self.child.wait(), reading, self.stderr.read_to_string(&mut rest));
            read.unwrap();
            (status.unwrap(), rest)
        };
        let (status, rest) = tokio::time::timeout(DEADLINE, end).await.expect("submit does not end");
        self.heard.push_str(&rest);
        Done { code: status.code(), stdout, stderr: self.heard }
    }
}

/// Runs it to its end.
pub async fn submit(args: &[&dyn AsRef<OsStr>]) -> Done {
    Program::spawn(command(args)).done().await
}
