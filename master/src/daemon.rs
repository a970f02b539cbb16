//! Puts the parts together: state, ports, services, and an orderly end.

use crate::artifacts::{ArtifactError, Artifacts};
use crate::cluster::{Cluster, Parts, now_ms};
use crate::config::{Config, DEFAULT_RAFT_PORT};
use crate::consensus::{Bootstrap, Consensus, FatalError, OpenError, Settings, Storage};
use crate::formation::{self, Beginning, FormationError};
use crate::peers::addresses::{AddressBook, AddressFile, Addresses};
use crate::peers::network::Network;
use crate::peers::service::{Presence, Running};
use crate::web::{AllowedHosts, WebContext};
use crate::{leader, membership, peers, services, web};
use firesteel_common::MasterUrl;
use futures::future::BoxFuture;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What is still open after this is cut off.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// A leader that is told to stop hands over first; without a taker for so long, it stops anyway.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(2);

/// Why a master could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("cannot listen on {address} ({what}): {reason}\nhint: {hint}")]
    Bind { what: &'static str, address: String, reason: String, hint: &'static str },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Formation(#[from] FormationError),
    #[error("{} belongs to no cluster yet: there is nothing to recover\nhint: start it without --force-new-cluster", .0.display())]
    NothingToForce(PathBuf),
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
    own: Addresses,
    consensus: Consensus,
    thread: tokio::task::JoinHandle<Result<(), FatalError>>,
    servers: tokio::task::JoinSet<Result<(), DaemonError>>,
    /// Everything that this master does by itself. None ends before it is told to.
    tasks: tokio::task::JoinSet<()>,
    stopping: CancellationToken,
}

impl Daemon {
    /// Binds the ports, opens the data directory, serves. With a new directory and others to found a cluster with, returns
    /// only when they are all there. Boxed, as [`Self::run`] is: who polls them, such as a test, need not compile them again.
    pub fn start(config: &Config) -> BoxFuture<'_, Result<Self, DaemonError>> {
        Box::pin(Self::start_unboxed(config))
    }

    async fn start_unboxed(config: &Config) -> Result<Self, DaemonError> {
        let started_ms = now_ms();
        let grpc = bind(&config.host, config.port, "--port").await?;
        let web_listener = bind(&config.host, config.webui_port, "--webui-port").await?;
        let (grpc_port, web_port) = (local_port(&grpc)?, local_port(&web_listener)?);
        let mut storage = Storage::open(&config.data_dir)?;
        let begun = storage.identity().map_err(OpenError::from)?.is_some();
        let raft = bind_raft(config, begun).await?;
        let host = advertised_host(&config.host);
        let authority = |port| firesteel_proto::channel::authority(&host, port);
        let own = Addresses {
            raft: authority(local_port(&raft)?),
            client: authority(grpc_port),
            ui_url: format!("http://{}", authority(web_port)),
        };
        let ui_url = own.ui_url.clone();
        if config.force_new_cluster {
            if !begun {
                return Err(DaemonError::NothingToForce(config.data_dir.clone()));
            }
            let identity = storage.force_new_cluster()?;
            formation::write_founders(&config.data_dir, &[])?;
            tracing::warn!(cluster = identity.cluster_id, "this master is now the only one of a new cluster");
        }
        let stopping = CancellationToken::new();
        let mut servers = tokio::task::JoinSet::new();
        let identity = storage.identity().map_err(OpenError::from)?;
        let raft_id = match &identity {
            Some(identity) => identity.raft_id,
            None => formation::pending_id(&config.data_dir)?,
        };
        let presence = Presence::new(raft_id, own.clone(), config.plan.expect);
        let peers_router = presence.router();
        let stop = stopping.clone();
        servers.spawn(async move {
            peers_router
                .serve_with_incoming_shutdown(
                    firesteel_proto::channel::incoming(raft),
                    stop.cancelled_owned(),
                )
                .await
                .map_err(|e| DaemonError::Server(e.to_string()))
        });
        let address_file = AddressFile::of(&config.data_dir);
        let beginning = match identity {
            Some(identity) => Beginning {
                // A directory that has begun does not look at it.
                bootstrap: Bootstrap::joining(identity.cluster_id.clone(), raft_id),
                cluster_id: identity.cluster_id,
                addresses: if config.force_new_cluster { Default::default() } else { address_file.read() },
                founders: formation::read_founders(&config.data_dir),
            },
            None => {
                if let Some(path) = config.ready_file.as_deref().filter(|_| !config.plan.join.is_empty()) {
                    // Whoever has started this one may go on to start the others.
                    write_ready_file(path, &ready_document(&own, raft_id, true))?;
                }
                let begun =
                    formation::begin(&config.plan, &presence, |what| tracing::info!("{what}")).await?;
                formation::write_founders(&config.data_dir, &begun.founders)?;
                begun
            }
        };
        let addresses = AddressBook::default();
        addresses.learn(beginning.addresses);
        addresses.learn([(raft_id, own.clone())]);
        address_file.write(&addresses);
        let (cluster_id, book) = (beginning.cluster_id, addresses.clone());
        let (consensus, thread) = Consensus::open_storage(storage, beginning.bootstrap, |inbox| {
            Settings::new(Network::new(cluster_id, raft_id, book, inbox))
        })?;
        formation::forget_pending(&config.data_dir)?;
        let thread = tokio::spawn(thread.ended());
        let artifacts = Artifacts::open(&config.data_dir).await?;
        let master_url = MasterUrl::new(host.clone(), grpc_port);
        let cluster = Cluster::new(Parts {
            consensus: consensus.clone(),
            addresses,
            artifacts,
            timing: config.timing,
            master_url: master_url.clone(),
            ui_url: ui_url.clone(),
            stopping: stopping.clone(),
        });
        cluster.set_recovering(config.force_new_cluster);
        presence.begin(Running {
            cluster: cluster.clone(),
            inbox: consensus.peer_inbox(),
            founders: beginning.founders,
        });
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(follow_addresses(cluster.clone(), address_file));
        tasks.spawn(membership::announce(cluster.clone(), own.clone(), config.plan.clone()));
        tasks.spawn(membership::lead(cluster.clone()));
        tasks.spawn(peers::artifacts::keep_complete(cluster.clone()));
        tasks.spawn(leader::run(cluster.clone()));
        let pages = web::router(WebContext {
            published: cluster.published(),
            members: cluster.members(),
            soft: cluster.soft().clone(),
            master_url,
            ui_url,
            hosts: AllowedHosts::new(&config.host, [host]),
            started_ms,
        });
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
        Ok(Self { cluster, own, consensus, thread, servers, tasks, stopping })
    }

    /// What the services work on.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Serves until `stop` resolves or something fails, then ends in order: streams, servers, state.
    pub fn run(self, stop: BoxFuture<'_, ()>) -> BoxFuture<'_, Result<(), DaemonError>> {
        Box::pin(self.run_unboxed(stop))
    }

    async fn run_unboxed(mut self, stop: BoxFuture<'_, ()>) -> Result<(), DaemonError> {
        let failure = tokio::select! {
            () = stop => Ok(()),
            ended = &mut self.thread => end_of_thread(ended),
            // A master that leads and does not act must make room for one that does.
            Some(ended) = self.tasks.join_next() => match (ended, tokio::time::timeout(STOP_LIMIT, &mut self.thread).await) {
                (Err(error), _) => Err(DaemonError::Server(error.to_string())),
                // They end with the state that they follow: its end has the reason.
                (Ok(()), Ok(ended)) => end_of_thread(ended),
                (Ok(()), Err(_)) => Err(DaemonError::Server("a task of this master ended by itself".to_owned())),
            },
            Some(ended) = self.servers.join_next() => match ended {
                Ok(end) => end,
                Err(error) => Err(DaemonError::Server(error.to_string())),
            },
        };
        if failure.is_ok() {
            self.hand_over().await;
        }
        self.stopping.cancel();
        let orderly = async {
            while self.tasks.join_next().await.is_some() {}
            while self.servers.join_next().await.is_some() {}
        };
        if tokio::time::timeout(STOP_LIMIT, orderly).await.is_err() {
            tracing::warn!("connections are still open after {} s: cut off", STOP_LIMIT.as_secs());
        }
        self.consensus.stop().await;
        failure
    }
}

impl Daemon {
    /// So that the others need not first notice that the leader is gone.
    async fn hand_over(&self) {
        let alone = self.cluster.members().borrow().voters.len() < 2;
        if alone || self.cluster.must_lead().is_err() {
            return;
        }
        match tokio::time::timeout(HAND_OVER_LIMIT, self.cluster.transfer_leadership(None)).await {
            Ok(Ok(())) => tracing::info!("another master leads now"),
            Ok(Err(status)) => tracing::warn!(reason = status.message(), "no other master could take over"),
            Err(_) => tracing::warn!("no other master has taken over in time"),
        }
    }
}

fn end_of_thread(ended: Result<Result<(), FatalError>, tokio::task::JoinError>) -> Result<(), DaemonError> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(DaemonError::Server(error.to_string())),
    }
}

/// Keeps the address book, in memory and on disk, as the replicated state says.
async fn follow_addresses(cluster: Cluster, file: AddressFile) {
    let mut published = cluster.published();
    loop {
        let now = published.borrow_and_update().clone();
        if cluster.addresses().follow(cluster.member_id(), &now) {
            file.write(cluster.addresses());
        }
        tokio::select! {
            () = cluster.stopping().cancelled() => return,
            changed = published.changed() => if changed.is_err() { return },
        }
    }
}

/// The whole life of the process, until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    // A master that waits for others to found a cluster with can be told to stop, too.
    let daemon = tokio::select! {
        daemon = Daemon::start(&config) => daemon?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let (master, ui) = (daemon.cluster.master_url().to_string(), daemon.cluster.ui_url().to_owned());
    if let Some(path) = &config.ready_file {
        write_ready_file(path, &ready_document(&daemon.own, daemon.cluster.member_id(), false))?;
    }
    // Whoever started us may have closed standard output: that is no reason to stop.
    let _ = writeln!(io::stdout(), "master {master} ready, web UI {ui}");
    tracing::info!(master, ui, data_dir = %config.data_dir.display(), "ready");
    daemon
        .run(Box::pin(async {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            }
        }))
        .await
}

async fn bind(host: &str, port: u16, flag: &'static str) -> Result<TcpListener, DaemonError> {
    let what = match flag {
        "--port" => "gRPC",
        "--raft-port" => "other masters",
        _ => "web UI",
    };
    TcpListener::bind((host, port)).await.map_err(|error| {
        let hint = match (error.kind(), flag) {
            (io::ErrorKind::AddrInUse, "--port") => {
                "another program has this port, perhaps another master: give --port another one, or 0 for any"
            }
            (io::ErrorKind::AddrInUse, "--raft-port") => {
                "another program has this port, perhaps another master: give --raft-port another one, or 0 for any"
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

/// The port for other masters. Nobody knows that of a master that is alone, so another program on the default port does not
/// keep it from starting; others learn it from `submit masters`.
async fn bind_raft(config: &Config, begun: bool) -> Result<TcpListener, DaemonError> {
    let bound = bind(&config.host, config.raft_port.unwrap_or(DEFAULT_RAFT_PORT), "--raft-port").await;
    match bound {
        Err(_) if config.raft_port.is_none() && config.plan.join.is_empty() && !begun => {
            let listener = bind(&config.host, 0, "--raft-port").await?;
            let port = local_port(&listener)?;
            tracing::info!(
                port,
                "the port for other masters, {DEFAULT_RAFT_PORT}, is taken: using another one"
            );
            Ok(listener)
        }
        bound => bound,
    }
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

/// `forming`: its ports are taken, but it still waits for other masters.
fn ready_document(own: &Addresses, raft_id: u64, forming: bool) -> String {
    serde_json::json!({
        "master": format!("firesteel://{}", own.client),
        "ui": own.ui_url,
        "raft": own.raft,
        "member": format!("{raft_id:x}"),
        "forming": forming,
        "pid": std::process::id(),
    })
    .to_string()
}

/// Written whole or not at all: a script may be reading it.
fn write_ready_file(path: &Path, text: &str) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::ReadyFile { path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    std::fs::write(&temporary, format!("{text}\n")).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}
