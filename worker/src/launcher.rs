//! From a launch to a supervised process, and from its supervisor's reports to events.
//!
//! One task per process. It ends with exactly one [`Event::Ended`], and by then nothing of the process is left: no
//! process, no scratch directory.

use crate::artifact;
use crate::orphans::Orphans;
use crate::processes::{Event, Launch};
use crate::shuffle::Limits;
use crate::shuffle::usage::disk;
use crate::supervisor::in_words;
use crate::supervisor::spec::{End, LAUNCH_FD, READY_FD, Report, Spec, command};
use crate::workdir::WorkDir;
use firesteel_common::{
    DriverLaunch, ExecutorLaunch, MasterUrl, MemorySize, ProcessEnd, ProcessId, Secret, ShuffleLaunch,
    WorkerId,
};
use firesteel_proto::masters::Masters;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::mpsc;

/// Less than this on the disk, and nothing is launched: the process could not even log why it fails.
const FREE_BYTES_MIN: u64 = 16 << 20;
const OPEN_FILES_MAX: u64 = 65_536;
const EXECUTOR_GRACE: Duration = Duration::from_secs(10);
const DRIVER_GRACE: Duration = Duration::from_secs(30);
/// Handed on from the worker's own environment; everything else stays behind.
const PASSED_ON: [&str; 5] = ["PATH", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR"];
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What all launches share.
#[derive(Debug)]
pub struct Context {
    pub worker: WorkerId,
    pub workdir: Arc<WorkDir>,
    pub supervisor: PathBuf,
    pub engine: PathBuf,
    /// What executors bind and announce.
    pub host: String,
    /// What drivers report to.
    pub master_url: MasterUrl,
    /// Where scripts are.
    pub masters: Masters,
    /// See [`inherited_environment`].
    pub environment: BTreeMap<String, String>,
    /// An executor that does not listen by then is killed.
    pub ready_timeout: Duration,
    pub orphans: Orphans,
    pub shuffle: Limits,
}

/// The part of the worker's environment that payloads may see. Never credentials: those come with the application.
pub fn inherited_environment(vars: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let mut kept: BTreeMap<_, _> = vars.filter(|(name, _)| PASSED_ON.contains(&name.as_str())).collect();
    kept.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    kept
}

/// How to end a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM, and SIGKILL after the grace period.
    Gracefully,
    Now,
}

/// Starts and stops processes; tells about them on a channel.
#[derive(Debug)]
pub struct Launcher {
    context: Arc<Context>,
    events: mpsc::Sender<(ProcessId, Event)>,
    running: HashMap<ProcessId, mpsc::UnboundedSender<Stop>>,
}

impl Launcher {
    pub fn new(context: Arc<Context>, events: mpsc::Sender<(ProcessId, Event)>) -> Self {
        Self { context, events, running: HashMap::new() }
    }

    pub fn launch(&mut self, launch: Launch) {
        let (stop, stops) = mpsc::unbounded_channel();
        self.running.insert(launch.id.clone(), stop);
        let task =
            Task { context: self.context.clone(), id: launch.id.clone(), events: self.events.clone(), stops };
        tokio::spawn(task.run(launch));
    }

    /// Without effect on a process that has ended.
    pub fn stop(&mut self, id: &ProcessId, how: Stop) {
        if let Some(task) = self.running.get(id) {
            let _ = task.send(how);
        }
    }

    pub fn stop_all(&mut self, how: Stop) {
        for task in self.running.values() {
            let _ = task.send(how);
        }
    }

    /// After [`Event::Ended`].
    pub fn ended(&mut self, id: &ProcessId) {
        self.running.remove(id);
    }
}

struct Task {
    context: Arc<Context>,
    id: ProcessId,
    events: mpsc::Sender<(ProcessId, Event)>,
    stops: mpsc::UnboundedReceiver<Stop>,
}

impl Task {
    async fn run(mut self, launch: Launch) {
        let outcome = tokio::select! {
            biased;
            Some(_) = self.stops.recv() => Err("it was stopped before it started".to_owned()),
            prepared = prepare(&self.context, launch) => prepared,
        };
        let end = match outcome {
            Ok(spec) => self.supervise(spec).await,
            Err(reason) => ProcessEnd::LaunchFailed { reason },
        };
        // The supervisor has done so, unless it never started or died.
        let scratch = self.context.workdir.scratch(&self.id);
        let removed = tokio::task::spawn_blocking(move || {
            crate::scratch::ScratchDir::pin(&scratch).map_or(Ok(()), |dir| dir.remove())
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(process = %self.id, "cannot remove its scratch directory: {error}");
        }
        self.tell(Event::Ended { end }).await;
    }

    async fn tell(&self, event: Event) {
        // Nobody listens only when the daemon is ending.
        let _ = self.events.send((self.id.clone(), event)).await;
    }

    async fn supervise(&mut self, spec: Spec) -> ProcessEnd {
        let failed = |reason: String| ProcessEnd::LaunchFailed { reason };
        let mut orders = match serde_json::to_vec(&spec) {
            Ok(orders) => orders,
            Err(error) => return failed(format!("its orders cannot be written: {error}")),
        };
        orders.push(b'\n');
        let mut command = tokio::process::Command::new(&self.context.supervisor);
        // Its own environment is as clean as its payload's, which could read it in /proc.
        command
            .env_clear()
            .envs(&self.context.environment)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let (mut child, registration) = match self.context.orphans.spawn(&mut command) {
            Ok(spawned) => spawned,
            Err(error) => {
                let program = self.context.supervisor.display();
                return failed(format!("cannot execute {program}: {}", in_words(&error)));
            }
        };
        let end = self.attend(&mut child, &orders, spec.ready).await;
        // Closing its standard input ends a supervisor that is still there.
        drop(child.stdin.take());
        let _ = child.wait().await;
        self.context.orphans.forget(&registration);
        match end {
            Some(end) => end,
            None => {
                self.context.orphans.kill_all().await;
                failed("its supervisor died".into())
            }
        }
    }

    /// Until the supervisor has nothing more to say. `None` when it ended without saying how the process ended.
    async fn attend(&mut self, child: &mut Child, orders: &[u8], needs_ready: bool) -> Option<ProcessEnd> {
        let mut control = child.stdin.take()?;
        let mut reports = BufReader::new(child.stdout.take()?).lines();
        // A supervisor that cannot read its orders tells why, or dies: both are seen below.
        let _ = control.write_all(orders).await;
        let mut killed_for: Option<String> = None;
        let mut waiting = needs_ready;
        let timeout = tokio::time::sleep(self.context.ready_timeout);
        tokio::pin!(timeout);
        loop {
            tokio::select! {
                report = next_report(&mut reports) => match report? {
                    Report::Started { pid } => self.tell(Event::Started { pid }).await,
                    Report::Ready { address } if is_address(&address) => {
                        waiting = false;
                        self.tell(Event::Ready { address }).await;
                    }
                    Report::Ready { address } => {
                        waiting = false;
                        killed_for = Some(format!("it announced {address:?}, which is not HOST:PORT"));
                        send(&mut control, command::KILL).await;
                    }
                    Report::LaunchFailed { reason } => return Some(ProcessEnd::LaunchFailed { reason }),
                    Report::Ended(end) => return Some(match (killed_for, end) {
                        (Some(reason), _) => ProcessEnd::LaunchFailed { reason },
                        (None, End::ExitCode(code)) => ProcessEnd::Exited { code },
                        (None, End::Signal(signal)) => ProcessEnd::Signaled { signal },
                    }),
                },
                Some(stop) = self.stops.recv() => {
                    waiting = false;
                    let byte = match stop {
                        Stop::Gracefully => command::TERMINATE,
                        Stop::Now => command::KILL,
                    };
                    send(&mut control, byte).await;
                }
                () = &mut timeout, if waiting => {
                    waiting = false;
                    let seconds = self.context.ready_timeout.as_secs_f32();
                    killed_for = Some(format!("it was not ready within {seconds} s"));
                    send(&mut control, command::KILL).await;
                }
            }
        }
    }
}

/// An error means that the supervisor is gone, which its reports will show.
async fn send(control: &mut ChildStdin, byte: u8) {
    let _ = control.write_all(&[byte]).await;
}

/// `None` at the end, and for what no supervisor says.
async fn next_report(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<Report> {
    let line = lines.next_line().await.ok()??;
    serde_json::from_str(&line).ok()
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]%".contains(&b))
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Directories, script and orders. The error is in words for the user.
async fn prepare(context: &Context, launch: Launch) -> Result<Spec, String> {
    let free = disk(context.workdir.root()).map_or(u64::MAX, |disk| disk.free_bytes);
    if free < FREE_BYTES_MIN {
        return Err(format!(
            "the worker's disk is full: {} left at {}, {} needed",
            MemorySize::from_mib(free >> 20),
            context.workdir.root().display(),
            MemorySize::from_mib(FREE_BYTES_MIN >> 20),
        ));
    }
    context.workdir.prepare(&launch.id).map_err(|error| error.to_string())?;
    let scratch = context.workdir.scratch(&launch.id);
    let script = scratch.join("script");
    if let Some(spec) = &launch.spec {
        artifact::fetch(&context.masters, &spec.artifact, &script)
            .await
            .map_err(|error| error.to_string())?;
    }
    let document = launch_document(context, &launch, &scratch, &script)
        .map_err(|error| format!("its launch document cannot be written: {error}"))?;
    Ok(orders(context, &launch.id, scratch, document))
}

fn launch_document(
    context: &Context,
    launch: &Launch,
    scratch: &Path,
    script: &Path,
) -> serde_json::Result<String> {
    match (&launch.id, &launch.spec) {
        (ProcessId::Executor(executor), _) => serde_json::to_string(&ExecutorLaunch {
            executor: executor.clone(),
            token: launch.token.clone(),
            host: context.host.clone(),
            cores: launch.resources.cores,
            memory_mib: launch.resources.memory_mib,
            conf: launch.conf.clone(),
            scratch_dir: scratch.to_path_buf(),
            shuffle: ShuffleLaunch {
                worker: context.worker.clone(),
                dir: context.workdir.shuffle(&executor.application),
                quota_bytes: context.shuffle.quota_bytes,
                free_floor_bytes: context.shuffle.free_floor_bytes,
            },
        }),
        (ProcessId::Driver { application, .. }, spec) => serde_json::to_string(&DriverLaunch {
            application: application.clone(),
            master: context.master_url.to_string(),
            token: launch.token.clone(),
            script: script.to_path_buf(),
            resource: spec.as_ref().map(|s| s.resource.clone()).unwrap_or_default(),
            output: spec.as_ref().map(|s| s.output).unwrap_or_default(),
            conf: launch.conf.clone(),
            memory_mib: launch.resources.memory_mib,
            scratch_dir: scratch.to_path_buf(),
        }),
    }
}

fn orders(context: &Context, id: &ProcessId, scratch: PathBuf, document: String) -> Spec {
    let is_executor = matches!(id, ProcessId::Executor(_));
    let mut argv = vec![
        context.engine.display().to_string(),
        if is_executor { "executor" } else { "driver" }.to_owned(),
        "--launch-fd".to_owned(),
        LAUNCH_FD.to_string(),
    ];
    if is_executor {
        argv.extend(["--ready-fd".to_owned(), READY_FD.to_string()]);
    }
    argv.push(id.to_string());
    let mut env = context.environment.clone();
    for name in ["HOME", "TMPDIR"] {
        env.insert(name.to_owned(), scratch.display().to_string());
    }
    let logs = context.workdir.logs(id);
    let grace = if is_executor { EXECUTOR_GRACE } else { DRIVER_GRACE };
    Spec {
        argv,
        env,
        scratch_dir: scratch,
        stdout: logs.join("stdout"),
        stderr: logs.join("stderr"),
        launch: Secret::new(document),
        ready: is_executor,
        open_files_max: OPEN_FILES_MAX,
        grace_ms: grace.as_millis() as u64,
        lock: context.workdir.supervisors_lock(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_the_environment_stay_behind() {
        let vars = [
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("FIRESTEEL_MASTER", "x"),
            ("LD_PRELOAD", "x"),
            ("LANG", "C.UTF-8"),
            ("SSL_CERT_FILE", "/c.pem"),
        ];
        let kept = inherited_environment(vars.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())));
        let names: Vec<_> = kept.keys().map(String::as_str).collect();
        assert_eq!(names, ["LANG", "PATH", "SSL_CERT_FILE"]);
        assert_eq!(kept["PATH"], DEFAULT_PATH);
    }

    #[test]
    fn only_addresses_are_announced_to_the_master() {
        for good in ["127.0.0.1:1", "[::1]:65535", "host-1.example:7"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", ":1", "h", "h:", "h:0", "h:65536", "h:1 ", "<b>:1", "h\n:1"] {
            assert!(!is_address(bad), "{bad:?}");
        }
    }
}
