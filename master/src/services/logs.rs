//! A process's log, passed on from the worker that has it.

use super::client::stopping;
use super::gone;
use crate::cluster::{Cluster, find, status};
use firesteel_common::{ApplicationId, ExecutorState, ProcessId};
use firesteel_master_core::{ClusterState, Process};
use firesteel_proto::{channel, convert, v1};
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::{Code, Status};
use v1::worker_logs_client::WorkerLogsClient;

/// A checked request.
pub struct Wanted {
    process: ProcessId,
    request: v1::ReadLogRequest,
}

impl Wanted {
    /// The application may be named by a prefix or suffix of its id.
    pub fn resolve(cluster: &Cluster, mut request: v1::ReadLogRequest) -> Result<Self, Status> {
        let named = request.process.take().ok_or(convert::InvalidMessage::Missing("process"))?;
        let state = cluster.state();
        let app = find(&state, &named.application_id)?;
        let process = ProcessId::from_name(app.id.clone(), &named.name)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        if matches!(process, ProcessId::Driver { .. }) && !app.is_cluster_mode() {
            return Err(status(
                Code::FailedPrecondition,
                format!("the driver of {} runs with its submit, not under a worker", app.id),
                "its output is where submit was started; executors have logs here: --executor N",
            ));
        }
        request.process = Some(v1::ProcessId::from(&process));
        Ok(Self { process, request })
    }
}

/// Waits for the process to be placed if the reader wants to follow, then passes its worker's answers on.
pub async fn relay(
    cluster: Cluster,
    wanted: Wanted,
    sender: mpsc::Sender<Result<v1::LogChunk, Status>>,
) -> Result<(), Status> {
    let mut published = cluster.published();
    loop {
        let now = published.borrow_and_update().clone();
        cluster.leads(&now)?;
        let state = now.state;
        if let Some(process) = state.process(&wanted.process) {
            match read(&cluster, &state, process, &wanted, &sender).await {
                // Granted, but its worker has not begun with it.
                Err(error)
                    if error.code() == Code::NotFound
                        && wanted.request.follow
                        && process.state == ExecutorState::Launching => {}
                end => return end,
            }
        } else {
            may_come(&state, &wanted)?;
        }
        let seen = state.process(&wanted.process).cloned();
        let news = |p: &crate::consensus::Published| {
            !p.leader
                || p.state.process(&wanted.process) != seen.as_ref()
                || (seen.is_none() && ended(&p.state, wanted.process.application()))
        };
        published.wait_for(news).await.map_err(|_| stopping())?;
    }
}

fn ended(state: &ClusterState, id: &ApplicationId) -> bool {
    state.application(id).is_none_or(|app| app.state.is_final())
}

fn unknown(process: &ProcessId) -> Status {
    status(
        Code::NotFound,
        format!("{} has no process {}", process.application(), process.name()),
        "submit status shows its processes",
    )
}

/// Whether a process that is not there can still be granted, and the reader is willing to wait for it.
fn may_come(state: &ClusterState, wanted: &Wanted) -> Result<(), Status> {
    if wanted.request.follow && !ended(state, wanted.process.application()) {
        return Ok(());
    }
    let waits = state.application(wanted.process.application()).is_some_and(|app| !app.state.is_final());
    match (&wanted.process, waits) {
        (ProcessId::Driver { attempt: 0, .. }, true) => Err(status(
            Code::NotFound,
            format!("the driver of {} has not been placed yet", wanted.process.application()),
            "with -f the log is shown as soon as it starts",
        )),
        _ => Err(unknown(&wanted.process)),
    }
}

async fn read(
    cluster: &Cluster,
    state: &Arc<ClusterState>,
    process: &Process,
    wanted: &Wanted,
    sender: &mpsc::Sender<Result<v1::LogChunk, Status>>,
) -> Result<(), Status> {
    let Some(worker) = state.worker(&process.worker) else {
        return Err(Status::not_found(format!("the worker {}, which has this log, is gone", process.worker)));
    };
    let address = channel::authority(&worker.host, worker.port);
    let unreachable = |why: String| {
        status(
            Code::Unavailable,
            format!("the log is on worker {} ({}, {address}): {why}", worker.id, worker.status),
            "is the worker running, and can the master reach it?",
        )
    };
    let connection = cluster.worker_channels().get(&address).await.map_err(|e| unreachable(e.to_string()))?;
    let mut client = WorkerLogsClient::new(connection);
    let mut chunks = match client.read_log(wanted.request.clone()).await {
        Ok(response) => response.into_inner(),
        Err(error) if error.code() == Code::NotFound => return Err(error),
        Err(error) => {
            cluster.worker_channels().forget(&address);
            return Err(worker_error(error, unreachable));
        }
    };
    loop {
        match chunks.message().await {
            Ok(Some(chunk)) => sender.send(Ok(chunk)).await.map_err(gone)?,
            Ok(None) => return Ok(()),
            Err(error) => {
                cluster.worker_channels().forget(&address);
                return Err(worker_error(error, unreachable));
            }
        }
    }
}

/// A transport failure becomes one that says where; what the worker itself said passes as it is.
fn worker_error(error: Status, unreachable: impl Fn(String) -> Status) -> Status {
    match error.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => {
            unreachable(error.message().to_owned())
        }
        _ => error,
    }
}
