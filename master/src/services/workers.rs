//! Workers: what they run goes up, what they shall run goes down, each in full.

use super::client::{artifact_status, stopping};
use super::{Answers, first_message, gone, send_file, stream};
use crate::cluster::{Cluster, now_ms, rejected, status};
use crate::peers::artifacts::obtain;
use crate::reports::reconcile;
use crate::soft::{Usage, WorkerSession};
use firesteel_common::{
    ApplicationId, ApplicationSpec, ProcessId, Resources, Secret, WorkerId, WorkerStatus,
};
use firesteel_master_core::{ClusterState, Command, Launch, desired};
use firesteel_proto::{convert, v1};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::{Code, Request, Response, Status, Streaming};
use v1::worker_message::Kind;

const MAX_TEXT_BYTES: usize = 512;

pub struct WorkersService {
    cluster: Cluster,
}

impl WorkersService {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }
}

#[tonic::async_trait]
impl v1::workers_server::Workers for WorkersService {
    type AttachStream = Answers<v1::Assignment>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(Kind::Register(register)) = first_message(&mut inbound).await?.kind else {
            return Err(Status::invalid_argument("the first message of a worker must be register"));
        };
        let worker = Registration::check(register)?;
        self.cluster.must_lead()?;
        no_rival(&self.cluster, &worker).await?;
        let (id, incarnation) = (worker.id.clone(), worker.incarnation);
        // Before the registration is committed: the leader must not call it dead in between.
        let session = Attached::new(&self.cluster, &id, incarnation);
        self.cluster.change(worker.command()).await?.map_err(|why| rejected(&why))?;
        tracing::info!(worker = %id, incarnation, "registered");
        let cluster = self.cluster.clone();
        Ok(Response::new(stream(&self.cluster, |sender| serve(cluster, session, inbound, sender))))
    }

    type GetArtifactStream = Answers<v1::ArtifactChunk>;

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let request = request.into_inner();
        let sha256 = convert::sha256(&request.sha256)?;
        // This master may have become the leader without ever having seen the upload.
        obtain(&self.cluster, sha256).await?;
        let file = self.cluster.artifacts().read(sha256).await.map_err(artifact_status)?;
        let file =
            file.ok_or_else(|| Status::not_found(format!("there is no artifact {sha256} on the masters")))?;
        Ok(Response::new(send_file(&self.cluster, file)))
    }
}

/// A registration that is fit to enter the log.
struct Registration {
    id: WorkerId,
    incarnation: u64,
    host: String,
    port: u16,
    capacity: Resources,
    version: String,
    ui_url: String,
}

impl Registration {
    fn check(wire: v1::RegisterWorker) -> Result<Self, Status> {
        let id = convert::worker_id(&wire.worker_id)?;
        let port = u16::try_from(wire.port).ok().filter(|&p| p != 0);
        let port = port.ok_or(convert::InvalidMessage::Port(wire.port))?;
        let capacity = convert::resources(wire.capacity, "capacity")?;
        if capacity.cores == 0 || capacity.memory_mib < ApplicationSpec::MIN_EXECUTOR_MEMORY_MIB {
            return Err(status(
                Code::InvalidArgument,
                format!("a worker with {capacity} can run no executor"),
                "give it at least 1 core (--cores) and 256 MiB (--memory)",
            ));
        }
        for (what, text) in [("host", &wire.host), ("version", &wire.version), ("UI address", &wire.ui_url)] {
            if text.len() > MAX_TEXT_BYTES || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return Err(Status::invalid_argument(format!("the worker's {what} is not acceptable")));
            }
        }
        if wire.host.is_empty() || wire.host.contains(['/', '@', '?', '#']) {
            return Err(convert::InvalidMessage::Address(wire.host).into());
        }
        // It becomes a link on the master's page.
        if !(wire.ui_url.is_empty()
            || wire.ui_url.starts_with("http://")
            || wire.ui_url.starts_with("https://"))
        {
            return Err(Status::invalid_argument("the worker's UI address is not an http URL"));
        }
        Ok(Self {
            id,
            incarnation: wire.incarnation,
            host: wire.host,
            port,
            capacity,
            version: wire.version,
            ui_url: wire.ui_url,
        })
    }

    fn command(self) -> Command {
        Command::RegisterWorker {
            id: self.id,
            incarnation: self.incarnation,
            host: self.host,
            port: self.port,
            capacity: self.capacity,
            version: self.version,
            ui_url: self.ui_url,
            at_ms: now_ms(),
        }
    }
}

/// Refuses a second worker with the id of one that lives. One that was killed a moment ago may still look connected:
/// its next sign of life, or its silence, decides.
async fn no_rival(cluster: &Cluster, worker: &Registration) -> Result<(), Status> {
    while let Some(mut signs) = cluster.soft().rival(&worker.id, worker.incarnation) {
        match timeout(cluster.timing().worker_timeout, signs.changed()).await {
            Err(_) => return Ok(()),
            // Its place has been taken by a third: look again.
            Ok(Err(_)) => {}
            Ok(Ok(())) if cluster.soft().rival(&worker.id, worker.incarnation).is_some() => {
                return Err(status(
                    Code::AlreadyExists,
                    format!("duplicate worker: another process is connected as {}", worker.id),
                    "each worker needs a work directory of its own (--work-dir)",
                ));
            }
            Ok(Ok(())) => {}
        }
    }
    Ok(())
}

/// While it lives, the worker counts as attached.
struct Attached {
    cluster: Cluster,
    id: WorkerId,
    incarnation: u64,
    session: WorkerSession,
    /// The number of the newest report taken.
    heard: watch::Sender<u64>,
}

impl Attached {
    fn new(cluster: &Cluster, id: &WorkerId, incarnation: u64) -> Self {
        let session = cluster.soft().attach_worker(id, incarnation, Instant::now());
        Self { cluster: cluster.clone(), id: id.clone(), incarnation, session, heard: watch::Sender::new(0) }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.cluster.soft().detach_worker(&self.session);
    }
}

async fn serve(
    cluster: Cluster,
    worker: Attached,
    inbound: Streaming<v1::WorkerMessage>,
    sender: mpsc::Sender<Result<v1::Assignment, Status>>,
) -> Result<(), Status> {
    let end = tokio::select! {
        () = worker.session.replaced.cancelled() => Err(Status::aborted("the worker has attached anew")),
        end = hear(&cluster, &worker, inbound) => end,
        end = tell(&cluster, &worker.id, worker.heard.subscribe(), sender) => end,
    };
    match &end {
        Ok(()) => tracing::info!(worker = %worker.id, "left"),
        Err(error) => tracing::info!(worker = %worker.id, reason = error.message(), "detached"),
    }
    end
}

/// Ends with `Ok` after a goodbye.
async fn hear(
    cluster: &Cluster,
    worker: &Attached,
    mut inbound: Streaming<v1::WorkerMessage>,
) -> Result<(), Status> {
    while let Some(message) = inbound.message().await? {
        match message.kind {
            Some(Kind::Report(report)) => {
                let usage = Usage {
                    cpu_percent: if report.cpu_percent.is_finite() {
                        report.cpu_percent.clamp(0.0, 100.0)
                    } else {
                        0.0
                    },
                    memory_used_mib: report.memory_used_mib,
                };
                cluster.soft().heartbeat(&worker.session, usage, Instant::now());
                if cluster.surely_leads() {
                    worker.heard.send_replace(report.sequence);
                }
                let state = cluster.state();
                let commands = reconcile(&state, &worker.id, worker.incarnation, report.processes, now_ms())?;
                let outcomes = cluster.propose(commands).await.map_err(|e| cluster.propose_status(e))?;
                for (index, outcome) in outcomes {
                    tracing::debug!(worker = %worker.id, index, ?outcome, "a report");
                }
            }
            Some(Kind::Leave(_)) => {
                let command = Command::SetWorkerStatus {
                    id: worker.id.clone(),
                    incarnation: worker.incarnation,
                    status: WorkerStatus::Left,
                    at_ms: now_ms(),
                };
                if let Err(why) = cluster.change(command).await? {
                    tracing::debug!(worker = %worker.id, %why, "a goodbye");
                }
                return Ok(());
            }
            Some(Kind::Register(_)) => return Err(Status::invalid_argument("register is said once")),
            None => return Err(Status::invalid_argument("an empty message")),
        }
    }
    Err(Status::cancelled("the worker closed the stream"))
}

/// Sends the desired set at once, whenever it has changed, and with every beat.
async fn tell(
    cluster: &Cluster,
    id: &WorkerId,
    mut heard: watch::Receiver<u64>,
    sender: mpsc::Sender<Result<v1::Assignment, Status>>,
) -> Result<(), Status> {
    let mut published = cluster.published();
    let heartbeat = cluster.timing().heartbeat;
    let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    let mut told_heard = 0;
    let mut beat = interval(heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        let now = published.borrow_and_update().clone();
        cluster.leads(&now)?;
        if cluster.members().borrow().voters.len() > 1 && !cluster.surely_leads() {
            // Cut off or held up: the worker shall look for the leader elsewhere while its lease lasts.
            return Err(cluster.not_leader());
        }
        let wanted = (now.epoch, desired(&now.state, id), tenants(cluster, &now.state, id));
        let changed = last.as_ref() != Some(&wanted);
        if changed {
            told_heard = *heard.borrow_and_update();
            let assignment = v1::Assignment {
                epoch: now.epoch.0,
                processes: wanted.1.iter().map(launch).collect(),
                heartbeat_ms: millis(heartbeat),
                heard: told_heard,
                lease_ms: millis(cluster.timing().lease()),
                shuffle_tenants: wanted.2.iter().map(tenant).collect(),
            };
            last = Some(wanted);
            sender.send(Ok(assignment)).await.map_err(gone)?;
            beat.reset();
        }
        tokio::select! {
            changed = published.changed() => changed.map_err(|_| stopping())?,
            _ = beat.tick() => last = None,
            // The first report gives the lease without which some processes do not start; later ones can wait for the beat.
            changed = heard.changed(), if told_heard == 0 => {
                changed.map_err(|_| stopping())?;
                last = None;
            }
        }
    }
}

/// Whose map outputs the worker shall keep.
fn tenants(cluster: &Cluster, state: &Arc<ClusterState>, id: &WorkerId) -> BTreeMap<ApplicationId, Secret> {
    cluster.shuffle_tenants(state).get(id).cloned().unwrap_or_default()
}

fn tenant((id, token): (&ApplicationId, &Secret)) -> v1::ShuffleTenant {
    v1::ShuffleTenant { application_id: id.to_string(), token: token.expose().to_owned() }
}

fn launch(launch: &Launch) -> v1::Launch {
    v1::Launch {
        process: Some(v1::ProcessId::from(&launch.process)),
        resources: Some(launch.resources.into()),
        token: launch.token.expose().to_owned(),
        spec: matches!(launch.process, ProcessId::Driver { .. })
            .then(|| v1::ApplicationSpec::from(&*launch.spec)),
        conf: launch.spec.conf.clone(),
        grant_index: launch.grant_index,
        incarnation: launch.incarnation,
        ends_with_lease: launch.ends_with_lease,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::RegisterWorker {
        v1::RegisterWorker {
            worker_id: "worker-1".into(),
            incarnation: 1,
            host: "127.0.0.1".into(),
            port: 7079,
            capacity: Some(v1::Resources { cores: 2, memory_mib: 2048 }),
            version: "0.1.0".into(),
            ui_url: "http://127.0.0.1:8081".into(),
        }
    }

    #[test]
    fn registrations_are_checked_before_they_enter_the_log() {
        assert!(Registration::check(wire()).is_ok());
        let check = |change: fn(&mut v1::RegisterWorker)| {
            let mut w = wire();
            change(&mut w);
            match Registration::check(w) {
                Ok(_) => panic!("accepted"),
                Err(error) => (error.code(), error.message().to_owned()),
            }
        };
        let (code, message) = check(|w| w.capacity = Some(v1::Resources { cores: 0, memory_mib: 2048 }));
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.contains("\nhint: ") && message.contains("--cores"), "{message}");
        assert!(check(|w| w.worker_id = "../x".into()).1.contains("not a worker id"));
        assert!(check(|w| w.port = 70_000).1.contains("not a port"));
        assert!(check(|w| w.port = 0).1.contains("not a port"));
        assert!(check(|w| w.host = "h/x".into()).1.contains("HOST:PORT"));
        assert!(check(|w| w.host = "a\nb".into()).1.contains("host"));
        assert!(check(|w| w.ui_url = "javascript:alert(1)".into()).1.contains("not an http URL"));
        assert!(check(|w| w.version = "x".repeat(600)).1.contains("version"));
        assert!(check(|w| w.capacity = None).1.contains("lacks capacity"));
    }
}
