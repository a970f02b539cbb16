//! A fresh cluster of the real binaries in a temporary directory, on free ports of the loopback interface.

use crate::procs::{self, wait_for};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Generous: a loaded two-core CI machine starts several clusters at once.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// A binary of this workspace, which `cargo build --release --workspace` has put beside the tests.
pub fn binary(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("own path");
    let mut dir = me.parent().expect("a directory").to_path_buf();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run scripts/test.sh, which builds it first", path.display());
    path
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pub log: PathBuf,
    /// The content of its ready file.
    pub ready: serde_json::Value,
    /// From fork to the ready file.
    pub start_time: Duration,
}

impl Daemon {
    fn start(command: &mut Command, name: &str, dir: &Path) -> Self {
        let ready_file = dir.join(format!("{name}.ready"));
        let _ = std::fs::remove_file(&ready_file);
        let log = dir.join(format!("{name}.log"));
        let log_file = File::options().create(true).append(true).open(&log).expect("log file");
        let begin = Instant::now();
        let mut child = command
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().expect("log file"))
            .stderr(log_file)
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let ready = wait_for(&format!("{name} ready"), START_LIMIT, || {
            if let Some(status) = child.try_wait().expect("wait") {
                panic!("{name} ended with {status}: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            let text = std::fs::read(&ready_file).map_err(|e| e.to_string())?;
            serde_json::from_slice(&text).map_err(|e| e.to_string())
        });
        Self { child, log, ready, start_time: begin.elapsed() }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: Signal) {
        procs::kill(self.pid(), signal);
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("wait")
    }

    /// Kills at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks to end and waits for it.
    pub fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            let _ = self.child.wait();
        }
    }

    pub fn ready_text(&self, key: &str) -> String {
        self.ready[key].as_str().unwrap_or_else(|| panic!("{key} in {}", self.ready)).to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One master and some workers.
pub struct Cluster {
    dir: TempDir,
    pub master: Daemon,
    pub workers: Vec<Daemon>,
    pub url: String,
    worker_cores: u32,
    worker_memory: String,
    started: usize,
}

impl Cluster {
    /// One master and `workers` workers of `cores` cores and 4 GiB each (as told to the scheduler).
    pub fn start(workers: usize, cores: u32) -> Self {
        Self::start_with(workers, cores, "4g")
    }

    pub fn start_with(workers: usize, cores: u32, memory: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("firesteel-test-").tempdir().expect("temporary directory");
        let master = Self::launch_master(dir.path(), 0, 0);
        let url = master.ready_text("master");
        let mut cluster = Self {
            dir,
            master,
            workers: Vec::new(),
            url,
            worker_cores: cores,
            worker_memory: memory.to_owned(),
            started: 0,
        };
        for _ in 0..workers {
            cluster.add_worker();
        }
        cluster
    }

    fn launch_master(dir: &Path, port: u16, ui: u16) -> Daemon {
        let mut command = Command::new(binary("firesteel-master"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--webui-port", &ui.to_string()]);
        command.arg("--data-dir").arg(dir.join("master"));
        Daemon::start(&mut command, "master", dir)
    }

    /// Starts another worker and returns its index.
    pub fn add_worker(&mut self) -> usize {
        let name = format!("worker-{}", self.started);
        self.started += 1;
        let worker = self.launch_worker(&name);
        self.workers.push(worker);
        self.workers.len() - 1
    }

    fn launch_worker(&self, name: &str) -> Daemon {
        let mut command = Command::new(binary("firesteel-worker"));
        command.args(["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]);
        command.args(["--cores", &self.worker_cores.to_string(), "--memory", &self.worker_memory]);
        command.arg("--work-dir").arg(self.dir.path().join(name)).arg(&self.url);
        Daemon::start(&mut command, name, self.dir.path())
    }

    /// Kills the master and starts it again on the same data and ports.
    pub fn restart_master(&mut self) {
        let port = |text: String| text.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
        let (grpc, ui) = (port(self.url.clone()), port(self.ui()));
        self.master.kill();
        self.master = Self::launch_master(self.dir.path(), grpc, ui);
    }

    /// `http://HOST:PORT` of the master's pages.
    pub fn ui(&self) -> String {
        self.master.ready_text("ui").trim_end_matches('/').to_owned()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn worker_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("worker-{index}"))
    }

    /// Writes a script into the cluster's directory.
    pub fn script(&self, name: &str, sql: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, sql).expect("script");
        path
    }

    /// `submit --master URL ARGS…`, not started yet.
    pub fn submit<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(binary("submit"));
        command.arg("--master").arg(&self.url).args(args).stdin(Stdio::null());
        command
    }

    /// Runs `submit` to its end.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        Run::of(self.submit(args).output().expect("submit runs"))
    }

    /// Runs a script that must succeed, and returns its CSV.
    pub fn csv(&self, mode: &str, script: &Path, flags: &[&str]) -> String {
        let mut args: Vec<&OsStr> = ["--deploy-mode", mode, "-o", "csv"].map(OsStr::new).to_vec();
        args.extend(flags.iter().map(OsStr::new));
        args.push(script.as_os_str());
        let run = self.run(args);
        assert_eq!(run.code, 0, "{mode} mode: {}\n{}", run.stderr, self.logs());
        run.stdout
    }

    /// Processes that this cluster's workers run: supervisors, drivers, executors.
    pub fn payloads(&self) -> Vec<procs::Process> {
        let daemons: Vec<i32> = self.workers.iter().map(Daemon::pid).chain([self.master.pid()]).collect();
        procs::under(self.dir.path())
            .into_iter()
            .filter(|p| !daemons.contains(&p.pid) && p.command.contains("firesteel-"))
            .collect()
    }

    /// Executors' or drivers' own processes (`kind` is "executor" or "driver").
    pub fn engines(&self, kind: &str) -> Vec<procs::Process> {
        let needle = format!("firesteel-engine {kind}");
        self.payloads().into_iter().filter(|p| p.command.contains(&needle)).collect()
    }

    /// Waits until nothing that a worker launched is left, neither process nor directory.
    pub fn assert_clean(&self) {
        wait_for("no process and no scratch directory left", Duration::from_secs(20), || {
            let left = self.payloads();
            if !left.is_empty() {
                return Err(format!("{left:?}"));
            }
            let scratch = self.scratch_directories();
            if scratch.is_empty() { Ok(()) } else { Err(format!("{scratch:?}")) }
        });
    }

    /// Directories of launched processes (`work/APP/PROCESS`) that still exist.
    pub fn scratch_directories(&self) -> Vec<PathBuf> {
        let list = |dir: PathBuf| -> Vec<PathBuf> {
            std::fs::read_dir(dir).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default()
        };
        (0..self.started).flat_map(|i| list(self.worker_dir(i).join("work"))).flat_map(list).collect()
    }

    /// The daemons' logs, for a failing test's message.
    pub fn logs(&self) -> String {
        std::iter::once(&self.master)
            .chain(&self.workers)
            .map(|d| {
                let text = std::fs::read_to_string(&d.log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(30).collect();
                format!(
                    "--- {}\n{}\n",
                    d.log.display(),
                    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                )
            })
            .collect()
    }
}

/// A finished command.
#[derive(Debug)]
pub struct Run {
    /// 128 + signal for a command ended by one.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}
