//! The real `firesteel-worker` with a shell script for an engine.

use super::eventually;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

/// Says who it is and what it was told, then does what the setting `mode` says. `MARKS` is the directory for its marks.
const ENGINE: &str = r#"#!/bin/sh
document=$(cat <&3)
kind=$1
echo "$@"
[ "$kind" = driver ] && cat script && echo
printf '%s\n' "$document" >MARKS/document-$kind
case "$document" in *'"mode":"exit4"'*) echo failing >&2; exit 4 ;; esac
case "$document" in *'"mode":"runaway"'*)
    setsid sh -c 'echo $$ >>MARKS/pids; trap "" TERM; sleep 1000; sleep 1000' &
    while [ ! -s MARKS/pids ]; do :; done ;;
esac
case "$document" in *'"mode":"stubborn"'*) trap '' TERM ;; esac
case "$document" in *'"mode":"silent"'*) ;;
*'"mode":"nonsense"'*) echo '<script>' >&4 ;; *)
    if [ "$kind" = executor ]; then echo 127.0.0.1:4242 >&4; exec 4>&-; fi ;;
esac
case "$document" in *'"mode":"talk"'*)
    echo one; while [ ! -e MARKS/go ]; do :; done; echo two; exit 0 ;;
esac
case "$document" in *'"mode":"stubborn"'*)
    while :; do sleep 1000; done ;;
esac
exec sleep 1000
"#;

pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        let engine = bench.path("engine");
        std::fs::write(&engine, ENGINE.replace("MARKS", bench.dir.path().to_str().unwrap())).unwrap();
        std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).unwrap();
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn scratch(&self) -> PathBuf {
        self.path("w/work")
    }

    pub fn shuffle(&self, name: &str) -> PathBuf {
        self.path("w/shuffle").join(name)
    }

    pub fn command(&self, url: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firesteel-worker"));
        command
            .args([url, "--cores", "4", "--memory", "4g", "--webui-port", "0", "--work-dir"])
            .arg(self.path("w"))
            .arg("--engine")
            .arg(self.path("engine"))
            .arg("--ready-file")
            .arg(self.path("ready"))
            .env("AWS_SECRET_ACCESS_KEY", "leaked");
        command
    }

    pub fn start(&self, url: &str) -> Worker {
        Worker::start(self.command(url), self.path("ready"))
    }

    #[track_caller]
    pub fn assert_no_scratch(&self) {
        let left: Vec<_> = std::fs::read_dir(self.scratch()).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

pub struct Worker {
    pub child: Child,
    ready: PathBuf,
    log: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Worker {
    pub fn start(mut command: Command, ready: PathBuf) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, into) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = into.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, ready, log, reader: Some(reader) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The ready file, once it is there.
    #[track_caller]
    pub fn ready(&self) -> serde_json::Value {
        eventually("the ready file", || serde_json::from_slice(&std::fs::read(&self.ready).ok()?).ok())
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    #[track_caller]
    pub fn logs(&self, text: &str) {
        eventually(&format!("{text:?} in the log:\n{}", self.log()), || {
            self.log().contains(text).then_some(())
        });
    }

    #[track_caller]
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let status = eventually("the end of the worker", || self.child.try_wait().unwrap());
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        (status, self.log())
    }

    pub fn stdout_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the worker\n{}", self.log());
        }
    }
}

/// Status line and headers, and the body, of a GET.
pub fn get(ui: &str, path: &str, host: Option<&str>) -> (String, String) {
    let authority = ui.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(authority).unwrap();
    let host = host.unwrap_or(authority);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
