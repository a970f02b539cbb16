//! Wiring: from a configuration to a running worker, and in order down again.

use crate::agent::{Agent, AgentError, Link};
use crate::boottime::{self, Alarm};
use crate::config::{Config, DEFAULT_WEBUI_PORT, WebuiPort};
use crate::launcher::{Context, Launcher, inherited_environment};
use crate::logs::LogService;
use crate::node::{Handle, Node};
use crate::orphans::Orphans;
use crate::processes::Processes;
use crate::retention;
use crate::shuffle::Limits;
use crate::shuffle::service::{Bounds, STREAMS_PER_CONNECTION_MAX, ShuffleService};
use crate::shuffle::store::Store;
use crate::shuffle::usage::{disk, watch as watch_usage};
use crate::usage::Usage;
use crate::web::{self, Page};
use crate::workdir::{WorkDir, WorkDirError, write_atomically};
use firesteel_common::WorkerId;
use firesteel_proto::channel::{self, authority};
use firesteel_proto::masters::Masters;
use firesteel_proto::v1;
use firesteel_proto::v1::shuffle_server::ShuffleServer;
use firesteel_proto::v1::worker_logs_server::WorkerLogsServer;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Supervisors of a worker that was killed end within milliseconds, unless the kernel cannot end their payload.
const OLD_SUPERVISORS_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the daemon did not start or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    WorkDir(#[from] WorkDirError),
    #[error("processes of an earlier run in {0} do not end")]
    OldSupervisors(String),
    #[error("cannot listen on {address}: {source}")]
    Bind { address: String, source: io::Error },
    #[error("cannot write {path}: {source}")]
    ReadyFile { path: String, source: io::Error },
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
    #[error("the worker's service has ended: {0}")]
    Service(String),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl DaemonError {
    /// A way out; empty when there is none to name.
    pub fn hint(&self) -> String {
        match self {
            Self::WorkDir(error) => error.hint().to_owned(),
            Self::OldSupervisors(_) => "look for firesteel-supervisor processes with ps".to_owned(),
            Self::Bind { .. } => "choose another port; 0 takes any free one".to_owned(),
            Self::Agent(error) => error.hint().to_owned(),
            Self::ReadyFile { .. } | Self::System { .. } | Self::Service(_) => String::new(),
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Agent(AgentError::Unreachable { .. }) => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Runs the worker until a signal ends it.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let mut signals = Signals::new()?;
    Orphans::adopt().map_err(|source| DaemonError::System { what: "become a subreaper", source })?;
    let workdir = Arc::new(open_workdir(&config).await?);
    let id = workdir.worker_id(|| new_worker_id(&config.host))?;
    let epoch = workdir.epoch()?;
    if let Some(path) = &config.ready_file {
        // From an earlier run: whoever waits for it must wait for this one.
        let _ = std::fs::remove_file(path);
    }
    let service = bind(&config.host, config.port).await?;
    let page = bind_webui(&config).await?;
    let bound = Bound {
        port: local_port(&service)?,
        ui: format!("http://{}", authority(&config.host, local_port(&page)?)),
    };
    if !config.engine.is_file() {
        tracing::warn!("there is no engine at {}: nothing can be launched", config.engine.display());
    }

    let shuffle_root = workdir.shuffle_root();
    let disk_bytes = disk(&shuffle_root).map_or(u64::MAX, |disk| disk.total_bytes);
    let shuffle_limits = Limits::new(config.shuffle_quota, config.shuffle_free_floor, disk_bytes);
    let boot_id = boottime::boot_id();
    let store = Store::open(shuffle_root.clone(), workdir.is_same_boot(boot_id.as_deref()))
        .map_err(|source| DaemonError::System { what: "look through the map outputs", source })?;
    if let Some(boot_id) = boot_id {
        // Only now that what is from before has gone.
        let stored = workdir.store_boot_id(&boot_id);
        stored.map_err(|source| DaemonError::System { what: "keep the boot id", source })?;
    }
    let shuffle = ShuffleService::new(shuffle_root.clone(), store.tenants(), Bounds::default());

    let masters = Masters::new(&config.masters);
    let context = Arc::new(Context {
        worker: id.clone(),
        workdir: workdir.clone(),
        supervisor: config.supervisor.clone(),
        engine: config.engine.clone(),
        host: config.host.clone(),
        master_url: config.masters.clone(),
        masters: masters.clone(),
        environment: inherited_environment(std::env::vars_os().filter_map(|(name, value)| {
            // What is not UTF-8 is none of the few that are handed on.
            Some((name.into_string().ok()?, value.into_string().ok()?))
        })),
        ready_timeout: READY_TIMEOUT,
        orphans: Orphans::default(),
        shuffle: shuffle_limits,
    });
    let logs_root = workdir.logs_root();
    let incarnation = rand::random_range(1..=u64::MAX);
    let processes = Processes::new(epoch, incarnation, config.on_lease_end);
    let alarm = Alarm::new().map_err(|source| DaemonError::System { what: "make a timer", source })?;
    let limits = retention::Limits::default();
    let (node, handle) =
        Node::new(workdir, processes, alarm, limits, store, |events| Launcher::new(context, events));
    tokio::spawn(node.run());
    let usage = Arc::new(Usage::default());
    let (link_in, link) = watch::channel(Link::Down { reason: None });
    let logs = LogService { root: logs_root, snapshots: handle.snapshots() };
    let mut service = tokio::spawn(
        channel::server()
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .add_service(WorkerLogsServer::new(logs))
            .add_service(ShuffleServer::new(shuffle.clone()))
            .serve_with_incoming(channel::incoming(service)),
    );
    let (measured, shuffle_usage) = watch::channel(Arc::default());
    tokio::spawn(watch_usage(shuffle_root, measured));
    let router = web::router(Arc::new(Page {
        id: id.clone(),
        masters: config.masters.to_string(),
        host: config.host.clone(),
        port: bound.port,
        capacity: config.capacity,
        node: handle.clone(),
        link: link.clone(),
        usage: usage.clone(),
        shuffle,
        shuffle_limits,
        shuffle_usage,
    }));
    tokio::spawn(async move { axum::serve(page, router).await });

    let leave = CancellationToken::new();
    let agent = Agent {
        url: config.masters.clone(),
        masters,
        registration: registration(&config, &id, &bound, incarnation),
        node: handle.clone(),
        usage,
        link: link_in,
        leave: leave.clone(),
    };
    let mut agent = tokio::spawn(agent.run());
    let mut announced = tokio::spawn(announce(config.clone(), id, bound, link));

    let mut waiting = true;
    let outcome = loop {
        tokio::select! {
            name = signals.next() => {
                tracing::info!("{name}: stopping");
                break Ok(());
            }
            ended = &mut agent => break match ended {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.into()),
                Err(error) => Err(DaemonError::Service(error.to_string())),
            },
            ended = &mut service => break Err(DaemonError::Service(match ended {
                Ok(Ok(())) => "no reason given".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            })),
            result = &mut announced, if waiting => {
                waiting = false;
                if let Ok(Err(error)) = result {
                    break Err(error);
                }
            }
        }
    };
    drain(&handle, &mut signals).await;
    leave.cancel();
    if !agent.is_finished() {
        let _ = agent.await;
    }
    if let Some(path) = &config.ready_file {
        let _ = std::fs::remove_file(path);
    }
    outcome
}

/// Stops every process; a second signal ends their grace.
async fn drain(node: &Handle, signals: &mut Signals) {
    let drained = node.drain();
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => return,
            name = signals.next() => {
                tracing::info!("{name} again: killing what still runs");
                node.kill_all().await;
            }
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        let listen =
            |kind| signal(kind).map_err(|source| DaemonError::System { what: "wait for signals", source });
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

struct Bound {
    port: u16,
    ui: String,
}

/// Locks the directory, waits until nothing of an earlier run lives, and clears what it left.
async fn open_workdir(config: &Config) -> Result<WorkDir, DaemonError> {
    let workdir = WorkDir::open(&config.work_dir)?;
    let deadline = tokio::time::Instant::now() + OLD_SUPERVISORS_TIMEOUT;
    while workdir.supervisors_live()? {
        if tokio::time::Instant::now() > deadline {
            return Err(DaemonError::OldSupervisors(workdir.root().display().to_string()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    match workdir.sweep()? {
        0 => {}
        n => tracing::info!("removed the scratch directories of {n} applications of an earlier run"),
    }
    Ok(workdir)
}

async fn bind(host: &str, port: u16) -> Result<TcpListener, DaemonError> {
    TcpListener::bind((host, port))
        .await
        .map_err(|source| DaemonError::Bind { address: authority(host, port), source })
}

async fn bind_webui(config: &Config) -> Result<TcpListener, DaemonError> {
    match config.webui_port {
        WebuiPort::Given(port) => bind(&config.host, port).await,
        WebuiPort::Default => match bind(&config.host, DEFAULT_WEBUI_PORT).await {
            Err(DaemonError::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
                bind(&config.host, 0).await
            }
            result => result,
        },
    }
}

fn local_port(listener: &TcpListener) -> Result<u16, DaemonError> {
    let address = listener.local_addr();
    address.map(|a| a.port()).map_err(|source| DaemonError::System { what: "read the own port", source })
}

/// Random, not host and port: ports change with every start, and a machine may run several workers.
fn new_worker_id(host: &str) -> WorkerId {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    WorkerId::new(now, &format!("{host}-{:06x}", rand::random_range(0..0x100_0000)))
}

fn registration(config: &Config, id: &WorkerId, bound: &Bound, incarnation: u64) -> v1::RegisterWorker {
    v1::RegisterWorker {
        worker_id: id.to_string(),
        incarnation,
        host: config.host.clone(),
        port: bound.port.into(),
        capacity: Some(config.capacity.into()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ui_url: bound.ui.clone(),
    }
}

/// Says once, after the first registration, that the worker is there.
async fn announce(
    config: Config,
    id: WorkerId,
    bound: Bound,
    mut link: watch::Receiver<Link>,
) -> Result<(), DaemonError> {
    if link.wait_for(|link| matches!(link, Link::Registered { .. })).await.is_err() {
        return Ok(());
    }
    if let Some(path) = &config.ready_file {
        let content = serde_json::json!({
            "worker_id": id.as_str(),
            "host": config.host,
            "port": bound.port,
            "ui": bound.ui,
            "pid": std::process::id(),
        });
        write_atomically(path, content.to_string().as_bytes())
            .map_err(|source| DaemonError::ReadyFile { path: path.display().to_string(), source })?;
    }
    // A closed standard output is no reason to end.
    let _ = writeln!(
        io::stdout(),
        "worker {id} registered with {} ({}), web page {}",
        config.masters,
        config.capacity,
        bound.ui
    );
    Ok(())
}
