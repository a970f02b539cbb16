//! A fresh cluster of the real binaries in a temporary directory, on free ports of the loopback interface, or in network
//! namespaces of its own.

use crate::netns::Lab;
use crate::procs::{self, wait_for};
use firesteel_proto::masters::{Leader, Masters};
use firesteel_proto::v1::{self, masters_client::MastersClient};
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
            let ready: serde_json::Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
            // A master that waits for others to found a cluster with has its ports, and no more.
            if ready["forming"] == true { Err("forming".to_owned()) } else { Ok(ready) }
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

/// What a master is started with; 0 is any free port.
#[derive(Debug, Clone, Default)]
struct MasterPorts {
    client: u16,
    ui: u16,
    raft: u16,
}

/// Masters and workers.
pub struct Cluster {
    dir: TempDir,
    pub masters: Vec<Daemon>,
    pub workers: Vec<Daemon>,
    pub url: String,
    worker_cores: u32,
    worker_memory: String,
    /// Further arguments of every worker.
    pub worker_args: Vec<String>,
    /// Further arguments of every master.
    pub master_args: Vec<String>,
    started: usize,
    lab: Option<Lab>,
}

impl Cluster {
    /// One master and `workers` workers of `cores` cores and 4 GiB each (as told to the scheduler).
    pub fn start(workers: usize, cores: u32) -> Self {
        Self::start_with(workers, cores, "4g")
    }

    pub fn start_with(workers: usize, cores: u32, memory: &str) -> Self {
        let mut cluster = Self::empty(cores, memory, None);
        cluster.add_master();
        for _ in 0..workers {
            cluster.add_worker();
        }
        cluster
    }

    /// Several masters, all of them voting, and workers of `cores` cores.
    pub fn start_replicated(masters: usize, workers: usize, cores: u32) -> Self {
        Self::start_replicated_with(masters, workers, cores, &[])
    }

    /// As [`Cluster::start_replicated`], with further arguments for every master.
    pub fn start_replicated_with(masters: usize, workers: usize, cores: u32, args: &[&str]) -> Self {
        let mut cluster = Self::empty(cores, "4g", None);
        cluster.master_args = args.iter().map(|a| (*a).to_owned()).collect();
        cluster.populate(masters, workers);
        cluster
    }

    /// As [`Cluster::start_replicated`], each master in a network namespace of its own; the workers and `submit` in another.
    pub fn start_in_lab(lab: Lab, workers: usize, cores: u32) -> Self {
        let masters = lab.nodes();
        let mut cluster = Self::empty(cores, "4g", Some(lab));
        cluster.populate(masters, workers);
        cluster
    }

    fn empty(cores: u32, memory: &str, lab: Option<Lab>) -> Self {
        let dir = tempfile::Builder::new().prefix("firesteel-test-").tempdir().expect("temporary directory");
        Self {
            dir,
            masters: Vec::new(),
            workers: Vec::new(),
            url: String::new(),
            worker_cores: cores,
            worker_memory: memory.to_owned(),
            worker_args: Vec::new(),
            master_args: Vec::new(),
            started: 0,
            lab,
        }
    }

    fn populate(&mut self, masters: usize, workers: usize) {
        for _ in 0..masters {
            self.add_master();
        }
        self.wait_for_voters(masters);
        for _ in 0..workers {
            self.add_worker();
        }
    }

    /// Starts another master, which joins those that are there, and returns its index.
    pub fn add_master(&mut self) -> usize {
        let index = self.masters.len();
        let join = self.masters.first().map(|first| first.ready_text("raft"));
        let master = self.launch_master(index, &MasterPorts::default(), join.as_deref(), &[]);
        self.masters.push(master);
        let addresses: Vec<String> = self.masters.iter().map(client_address).collect();
        self.url = format!("firesteel://{}", addresses.join(","));
        index
    }

    /// A program that runs where the workers and `submit` run.
    fn command(&self, name: &str) -> Command {
        match &self.lab {
            None => Command::new(binary(name)),
            Some(lab) => lab.command_in_hub(&binary(name)),
        }
    }

    fn launch_master(&self, index: usize, ports: &MasterPorts, join: Option<&str>, more: &[&str]) -> Daemon {
        let program = binary("firesteel-master");
        let mut command = match &self.lab {
            None => {
                let mut command = Command::new(program);
                command.args(["--host", "127.0.0.1"]);
                command
            }
            Some(lab) => {
                let mut command = lab.command(index, &program);
                command.args(["--host", &lab.address(index), "--insecure-bind"]);
                command
            }
        };
        command.args(["--port", &ports.client.to_string(), "--webui-port", &ports.ui.to_string()]);
        command.args(["--raft-port", &ports.raft.to_string()]);
        command.arg("--data-dir").arg(self.master_dir(index));
        if let Some(join) = join {
            command.args(["--join", join]);
        }
        command.args(&self.master_args).args(more);
        Daemon::start(&mut command, &format!("master-{index}"), self.dir.path())
    }

    pub fn master_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("master-{index}"))
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
        let mut command = self.command("firesteel-worker");
        match &self.lab {
            None => command.args(["--host", "127.0.0.1"]),
            Some(lab) => command.args(["--host", &lab.hub_address(), "--insecure-bind"]),
        };
        command.args(["--port", "0", "--webui-port", "0"]);
        command.args(["--cores", &self.worker_cores.to_string(), "--memory", &self.worker_memory]);
        command.args(&self.worker_args);
        command.arg("--work-dir").arg(self.dir.path().join(name)).arg(&self.url);
        Daemon::start(&mut command, name, self.dir.path())
    }

    /// Kills the only master and starts it again on the same data and ports.
    pub fn restart_master(&mut self) {
        self.masters[0].kill();
        self.start_master_again(0, &[]);
    }

    /// Starts a master that has ended on its data and ports.
    pub fn start_master_again(&mut self, index: usize, more: &[&str]) {
        let port = |text: String| text.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
        let old = &self.masters[index];
        let ports = MasterPorts {
            client: port(old.ready_text("master")),
            ui: port(old.ready_text("ui")),
            raft: port(old.ready_text("raft")),
        };
        self.masters[index] = self.launch_master(index, &ports, None, more);
    }

    /// Runs `ask` with a connection to the leader, or says why there is none.
    pub fn with_leader<T: Send, F: Future<Output = Result<T, tonic::Status>>>(
        &self,
        ask: impl FnOnce(Leader) -> F + Send,
    ) -> Result<T, String> {
        let url = self.url.parse().expect("a master URL");
        let work = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let leader = Masters::new(&url).leader().await.map_err(|e| e.to_string())?;
                ask(leader).await.map_err(|e| e.message().to_owned())
            })
        };
        self.within(work)
    }

    /// Runs `work` where this cluster's addresses mean something.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.lab {
            None => work(),
            Some(lab) => lab.inside_hub(work),
        }
    }

    /// The masters as the leader sees them.
    pub fn members(&self) -> Result<v1::ListMembersResponse, String> {
        self.with_leader(|leader| async move {
            let mut client = MastersClient::new(leader.channel);
            client.list_members(v1::ListMembersRequest {}).await.map(tonic::Response::into_inner)
        })
    }

    /// Waits until so many masters vote and all of them have everything.
    pub fn wait_for_voters(&self, voters: usize) {
        wait_for(&format!("{voters} voters"), START_LIMIT, || {
            let members = self.members()?;
            let voting = |m: &&v1::Member| {
                m.alive && m.role() != v1::MemberRole::Learner && m.matched >= members.committed
            };
            match members.members.iter().filter(voting).count() {
                n if n == voters => Ok(()),
                _ => Err(format!("{members:?}\n{}", self.logs())),
            }
        });
    }

    /// The index of the master that leads.
    pub fn leader(&self) -> usize {
        wait_for("a leader", START_LIMIT, || {
            let leader = self.with_leader(|leader| async move { Ok(leader.address) })?;
            let index = self.masters.iter().position(|m| client_address(m) == leader);
            index.ok_or_else(|| format!("{leader} is none of ours"))
        })
    }

    pub fn lab(&self) -> &Lab {
        self.lab.as_ref().expect("a cluster in a lab")
    }

    /// `http://HOST:PORT` of the master's pages.
    pub fn ui(&self) -> String {
        self.masters[0].ready_text("ui").trim_end_matches('/').to_owned()
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
        let mut command = self.command("submit");
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
        let daemons: Vec<i32> = self.workers.iter().chain(&self.masters).map(Daemon::pid).collect();
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
        self.masters
            .iter()
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

fn client_address(master: &Daemon) -> String {
    master.ready_text("master").trim_start_matches("firesteel://").to_owned()
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

/// A started command; killed when dropped, so that a failing test leaves nothing running.
#[derive(Debug)]
pub struct Started(Option<Child>);

impl Started {
    /// Starts it; its output waits in pipes.
    pub fn of(command: &mut Command) -> Self {
        Self::as_it_is(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// Starts it; its output goes where the command says.
    pub fn as_it_is(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(Some(child.unwrap_or_else(|e| panic!("{command:?}: {e}"))))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it has not been finished")
    }

    pub fn pid(&mut self) -> i32 {
        self.child().id() as i32
    }

    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.child().stdout.take().expect("once")
    }

    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child().try_wait().expect("wait")
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Run {
        let child = self.0.take().expect("once");
        Run::of(child.wait_with_output().expect("it ends"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
