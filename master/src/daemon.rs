//! Puts the parts together: state, ports, services, and an orderly end.

use crate::artifacts::{ArtifactError, Artifacts};
use crate::cluster::{Cluster, now_ms};
use crate::config::Config;
use crate::consensus::{Consensus, FatalError, OpenError};
use crate::web::{AllowedHosts, WebContext};
use crate::{leader, services, web};
use firesteel_common::MasterUrl;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What is still open after this is cut off.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Why a master could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("cannot listen on {address} ({what}): {reason}\nhint: {hint}")]
    Bind { what: &'static str, address: String, reason: String, hint: &'static str },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    #[error("cannot write the ready file {}: {source}", path.display())]
    ReadyFile { path: PathBuf, source: io::Error },
    #[error("cannot catch signals: {0}")]
    Signals(io::Error),
    #[error("the state can no longer be kept: {0}")]
    Consensus(#[from] FatalError),
    #[error("a server stopped: {0}")]
    Server(String),
}

/// A master whose ports answer.
pub struct Daemon {
    cluster: Cluster,
    consensus: Consensus,
    thread: tokio::task::JoinHandle<Result<(), FatalError>>,
    servers: tokio::task::JoinSet<Result<(), DaemonError>>,
    leader: tokio::task::JoinHandle<()>,
    stopping: CancellationToken,
}

impl Daemon {
    /// Binds the ports, opens the data directory, serves.
    pub async fn start(config: &Config) -> Result<Self, DaemonError> {
        let started_ms = now_ms();
        let grpc = bind(&config.host, config.port, "--port").await?;
        let web_listener = bind(&config.host, config.webui_port, "--webui-port").await?;
        let (grpc_port, web_port) = (local_port(&grpc)?, local_port(&web_listener)?);
        let (consensus, thread) = Consensus::open(&config.data_dir)?;
        let thread = tokio::spawn(thread.ended());
        let artifacts = Artifacts::open(&config.data_dir).await?;
        let host = advertised_host(&config.host);
        let master_url = MasterUrl::new(host.clone(), grpc_port);
        let ui_url = format!("http://{}", firesteel_proto::channel::authority(&host, web_port));
        let stopping = CancellationToken::new();
        let cluster = Cluster::new(
            consensus.clone(),
            artifacts,
            config.timing,
            master_url.clone(),
            ui_url.clone(),
            stopping.clone(),
        );
        let pages = web::router(WebContext {
            published: cluster.published(),
            soft: cluster.soft().clone(),
            master_url,
            ui_url,
            hosts: AllowedHosts::new(&config.host, [host]),
            started_ms,
        });
        let mut servers = tokio::task::JoinSet::new();
        let router = services::router(cluster.clone());
        let stop = stopping.clone();
        servers.spawn(async move {
            router
                .serve_with_incoming_shutdown(
                    firesteel_proto::channel::incoming(grpc),
                    stop.cancelled_owned(),
                )
                .await
                .map_err(|e| DaemonError::Server(e.to_string()))
        });
        let stop = stopping.clone();
        servers.spawn(async move {
            axum::serve(web_listener, pages)
                .with_graceful_shutdown(stop.cancelled_owned())
                .await
                .map_err(|e| DaemonError::Server(e.to_string()))
        });
        let leader = tokio::spawn(leader::run(cluster.clone()));
        Ok(Self { cluster, consensus, thread, servers, leader, stopping })
    }

    /// What the services work on.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Serves until `stop` resolves or something fails, then ends in order: streams, servers, state.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), DaemonError> {
        let failure = tokio::select! {
            () = stop => Ok(()),
            ended = &mut self.thread => match ended {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.into()),
                Err(error) => Err(DaemonError::Server(error.to_string())),
            },
            Some(ended) = self.servers.join_next() => match ended {
                Ok(end) => end,
                Err(error) => Err(DaemonError::Server(error.to_string())),
            },
        };
        self.stopping.cancel();
        let orderly = async {
            let _ = self.leader.await;
            while self.servers.join_next().await.is_some() {}
        };
        if tokio::time::timeout(STOP_LIMIT, orderly).await.is_err() {
            tracing::warn!("connections are still open after {} s: cut off", STOP_LIMIT.as_secs());
        }
        self.consensus.stop().await;
        failure
    }
}

/// The whole life of the process, until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    let daemon = Daemon::start(&config).await?;
    let (master, ui) = (daemon.cluster.master_url().to_string(), daemon.cluster.ui_url().to_owned());
    if let Some(path) = &config.ready_file {
        write_ready_file(path, &master, &ui)?;
    }
    // Whoever started us may have closed standard output: that is no reason to stop.
    let _ = writeln!(io::stdout(), "master {master} ready, web UI {ui}");
    tracing::info!(master, ui, data_dir = %config.data_dir.display(), "ready");
    daemon
        .run(async {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            }
        })
        .await
}

async fn bind(host: &str, port: u16, flag: &'static str) -> Result<TcpListener, DaemonError> {
    let what = if flag == "--port" { "gRPC" } else { "web UI" };
    TcpListener::bind((host, port)).await.map_err(|error| {
        let hint = match (error.kind(), flag) {
            (io::ErrorKind::AddrInUse, "--port") => {
                "another program has this port, perhaps another master: give --port another one, or 0 for any"
            }
            (io::ErrorKind::AddrInUse, _) => {
                "another program has this port: give --webui-port another one, or 0 for any"
            }
            (io::ErrorKind::PermissionDenied, _) => "ports below 1024 are for the superuser: use another one",
            _ => "--host must be an address or a name of this machine",
        };
        DaemonError::Bind {
            what,
            address: firesteel_proto::channel::authority(host, port),
            reason: match error.kind() {
                io::ErrorKind::AddrInUse => "the port is in use".to_owned(),
                _ => error.to_string(),
            },
            hint,
        }
    })
}

fn local_port(listener: &TcpListener) -> Result<u16, DaemonError> {
    listener.local_addr().map(|a| a.port()).map_err(|e| DaemonError::Server(e.to_string()))
}

/// What others dial: this machine's name when the master listens on all addresses.
fn advertised_host(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        _ => host.to_owned(),
    }
}

/// Written whole or not at all: a script may be reading it.
fn write_ready_file(path: &Path, master: &str, ui: &str) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::ReadyFile { path: path.to_owned(), source };
    let text = serde_json::json!({ "master": master, "ui": ui, "pid": std::process::id() }).to_string();
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    std::fs::write(&temporary, text + "\n").map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}
