//! Drivers: who their executors are, how far they have come, how they end.

use super::client::stopping;
use super::{Answers, first_message, gone, stream};
use crate::cluster::{Cluster, authorised, now_ms, rejected};
use crate::status::driver_update;
use firesteel_common::ApplicationId;
use firesteel_master_core::{Command, Rejection};
use firesteel_proto::{convert, v1};
use prost::Message;
use std::time::Instant;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use v1::driver_message::Kind;

/// A larger picture of a job is not kept: a thousand of them would fill the master's memory.
const MAX_PROGRESS_BYTES: usize = 8 << 20;

pub struct DriversService {
    cluster: Cluster,
}

impl DriversService {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }
}

#[tonic::async_trait]
impl v1::drivers_server::Drivers for DriversService {
    type AttachStream = Answers<v1::DriverUpdate>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::DriverMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(Kind::Hello(hello)) = first_message(&mut inbound).await?.kind else {
            return Err(Status::invalid_argument("the first message of a driver must be hello"));
        };
        let id = convert::application_id(&hello.application_id)?;
        self.cluster.read_barrier().await?;
        let published = self.cluster.published().borrow().clone();
        authorised(&published.state, &id, &hello.token)?;
        let cluster = self.cluster.clone();
        Ok(Response::new(stream(&self.cluster, |sender| serve(cluster, id, inbound, sender))))
    }

    async fn finish(
        &self,
        request: Request<v1::FinishRequest>,
    ) -> Result<Response<v1::FinishResponse>, Status> {
        let request = request.into_inner();
        let id = convert::application_id(&request.application_id)?;
        self.cluster.read_barrier().await?;
        authorised(&self.cluster.state(), &id, &request.token)?;
        // Before the end is committed: whoever sees the end sees the last picture, too.
        if let Some(progress) = request.progress {
            keep(&self.cluster, &id, progress);
        }
        let command = Command::FinishApplication {
            application: id.clone(),
            success: request.success,
            message: request.message,
            at_ms: now_ms(),
        };
        match self.cluster.change(command).await? {
            Ok(_) => {
                tracing::info!(application = %id, success = request.success, "finished");
                Ok(Response::new(v1::FinishResponse {}))
            }
            // Said twice, after an answer that was lost on the way. A killed application is not finished, though.
            Err(Rejection::ApplicationEnded { state, .. }) if state == outcome_of(request.success) => {
                Ok(Response::new(v1::FinishResponse {}))
            }
            Err(why) => Err(rejected(&why)),
        }
    }
}

fn outcome_of(success: bool) -> firesteel_common::ApplicationState {
    match success {
        true => firesteel_common::ApplicationState::Finished,
        false => firesteel_common::ApplicationState::Failed,
    }
}

/// While it lives, the driver counts as attached.
struct Attached<'a> {
    cluster: &'a Cluster,
    id: &'a ApplicationId,
}

impl<'a> Attached<'a> {
    fn new(cluster: &'a Cluster, id: &'a ApplicationId) -> Self {
        cluster.soft().attach_driver(id);
        Self { cluster, id }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.cluster.soft().detach_driver(self.id, Instant::now());
    }
}

async fn serve(
    cluster: Cluster,
    id: ApplicationId,
    inbound: Streaming<v1::DriverMessage>,
    sender: mpsc::Sender<Result<v1::DriverUpdate, Status>>,
) -> Result<(), Status> {
    let _attached = Attached::new(&cluster, &id);
    tokio::select! {
        end = hear(&cluster, &id, inbound) => end,
        end = tell(&cluster, &id, sender) => end,
    }
}

fn keep(cluster: &Cluster, id: &ApplicationId, progress: v1::Progress) {
    let bytes = progress.encoded_len();
    if bytes <= MAX_PROGRESS_BYTES {
        cluster.soft().set_progress(id, progress);
    } else {
        tracing::warn!(application = %id, bytes, "a progress report is too large to keep");
    }
}

/// Ends when the driver has closed its side.
async fn hear(
    cluster: &Cluster,
    id: &ApplicationId,
    mut inbound: Streaming<v1::DriverMessage>,
) -> Result<(), Status> {
    while let Some(message) = inbound.message().await? {
        match message.kind {
            Some(Kind::Progress(progress)) => keep(cluster, id, progress),
            Some(Kind::Heartbeat(_)) => {}
            Some(Kind::Hello(_)) => return Err(Status::invalid_argument("hello is said once")),
            None => return Err(Status::invalid_argument("an empty message")),
        }
    }
    Ok(())
}

/// Sends the update at once and whenever it has changed; ends after `stop`.
async fn tell(
    cluster: &Cluster,
    id: &ApplicationId,
    sender: mpsc::Sender<Result<v1::DriverUpdate, Status>>,
) -> Result<(), Status> {
    let mut published = cluster.published();
    let mut last = None;
    loop {
        let now = published.borrow_and_update().clone();
        cluster.leads(&now)?;
        let update = driver_update(cluster, &now.state, id);
        let stop = update.stop;
        if last.as_ref() != Some(&update) {
            last = Some(update.clone());
            sender.send(Ok(update)).await.map_err(gone)?;
        }
        if stop {
            return Ok(());
        }
        published.changed().await.map_err(|_| stopping())?;
    }
}
