//! What `submit` asks for.

use super::{Answers, gone, logs, stream};
use crate::artifacts::ArtifactError;
use crate::cluster::{Cluster, authorised, find, now_ms, rejected, status};
use crate::peers::artifacts::{obtain, replicate};
use crate::status::application_status;
use firesteel_common::{ApplicationId, DeployMode, Secret};
use firesteel_master_core::{Command, Outcome, Rejection};
use firesteel_proto::{convert, v1};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::fmt::Write;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status, Streaming};

/// An upload that makes no progress for so long is given up.
const UPLOAD_IDLE: Duration = Duration::from_secs(30);
const MAX_USER_BYTES: usize = 256;

pub struct ClientService {
    cluster: Cluster,
}

impl ClientService {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }
}

#[tonic::async_trait]
impl v1::client_server::Client for ClientService {
    async fn upload_artifact(
        &self,
        request: Request<Streaming<v1::ArtifactChunk>>,
    ) -> Result<Response<v1::UploadArtifactResponse>, Status> {
        self.cluster.must_lead()?;
        let mut chunks = request.into_inner();
        let mut upload = self.cluster.artifacts().upload().await.map_err(artifact_status)?;
        loop {
            let chunk = tokio::time::timeout(UPLOAD_IDLE, chunks.message())
                .await
                .map_err(|_| Status::deadline_exceeded("the upload made no progress for 30 s"))??;
            let Some(chunk) = chunk else { break };
            upload.write(&chunk.data).await.map_err(artifact_status)?;
        }
        let (sha256, bytes) = upload.finish().await.map_err(artifact_status)?;
        replicate(&self.cluster, &sha256).await?;
        Ok(Response::new(v1::UploadArtifactResponse { sha256, bytes }))
    }

    async fn submit_application(
        &self,
        request: Request<v1::SubmitApplicationRequest>,
    ) -> Result<Response<v1::SubmitApplicationResponse>, Status> {
        self.cluster.must_lead()?;
        let v1::SubmitApplicationRequest { spec, key, ticket } = request.into_inner();
        let spec = convert::application_spec(spec)?;
        if spec.deploy_mode == DeployMode::Cluster
            && !obtain(&self.cluster, &spec.artifact).await.unwrap_or(false)
        {
            return Err(status(
                Code::FailedPrecondition,
                format!("the script {} has not been uploaded to this master", spec.artifact),
                "upload it first; unused scripts are kept for an hour",
            ));
        }
        let token = new_token()?;
        tracing::debug!(name = spec.name, user = spec.user, "submission");
        let command = Command::SubmitApplication { spec, token: token.clone(), key, ticket, at_ms: now_ms() };
        match self.cluster.change(command).await? {
            Ok(Outcome::Submitted { id }) => {
                tracing::info!(application = %id, "submitted");
                // A repeated submission has the token of the first.
                let state = self.cluster.state();
                let first = state.application(&id).map(|app| app.token.expose().to_owned());
                let first = first.ok_or_else(|| Status::internal("the submission is not in the state"))?;
                let existed = first != token.expose();
                Ok(Response::new(v1::SubmitApplicationResponse {
                    ui_url: self.cluster.application_url(&id),
                    application_id: id.to_string(),
                    token: first,
                    existed,
                }))
            }
            Ok(_) => Err(Status::internal("the submission has no id")),
            Err(why) => Err(rejected(&why)),
        }
    }

    type WatchApplicationStream = Answers<v1::ApplicationStatus>;

    async fn watch_application(
        &self,
        request: Request<v1::WatchApplicationRequest>,
    ) -> Result<Response<Self::WatchApplicationStream>, Status> {
        self.cluster.read_barrier().await?;
        let published = self.cluster.published().borrow().clone();
        let id = find(&published.state, &request.into_inner().application_id)?.id.clone();
        let cluster = self.cluster.clone();
        Ok(Response::new(stream(&self.cluster, |sender| watch(cluster, id, sender))))
    }

    async fn list_applications(
        &self,
        _: Request<v1::ListApplicationsRequest>,
    ) -> Result<Response<v1::ListApplicationsResponse>, Status> {
        self.cluster.read_barrier().await?;
        let state = self.cluster.state();
        let mut newest_first: Vec<_> = state.applications().collect();
        newest_first.sort_by_key(|app| std::cmp::Reverse(app.sequence));
        let applications = newest_first
            .into_iter()
            .map(|app| application_status(&self.cluster, &state, app, None))
            .collect();
        Ok(Response::new(v1::ListApplicationsResponse { applications }))
    }

    async fn kill_application(
        &self,
        request: Request<v1::KillApplicationRequest>,
    ) -> Result<Response<v1::KillApplicationResponse>, Status> {
        let request = request.into_inner();
        if request.user.len() > MAX_USER_BYTES {
            return Err(Status::invalid_argument("the user's name is longer than 256 bytes"));
        }
        self.cluster.read_barrier().await?;
        let id = find(&self.cluster.state(), &request.application_id)?.id.clone();
        let command =
            Command::KillApplication { application: id.clone(), by: request.user.clone(), at_ms: now_ms() };
        match self.cluster.change(command).await? {
            Ok(_) => {
                tracing::info!(application = %id, user = request.user, "killed");
                Ok(Response::new(v1::KillApplicationResponse { application_id: id.to_string() }))
            }
            Err(why) => Err(rejected(&why)),
        }
    }

    async fn report_driver_end(
        &self,
        request: Request<v1::ReportDriverEndRequest>,
    ) -> Result<Response<v1::ReportDriverEndResponse>, Status> {
        let request = request.into_inner();
        let id = convert::application_id(&request.application_id)?;
        let end = convert::process_end(request.end.ok_or(convert::InvalidMessage::Missing("end"))?)?;
        self.cluster.read_barrier().await?;
        let mode = authorised(&self.cluster.state(), &id, &request.token)?.spec.deploy_mode;
        if mode == DeployMode::Cluster {
            return Err(Status::failed_precondition(
                "the driver of a cluster-mode application is its worker's to report",
            ));
        }
        let before = if end.is_success() { " before it reported a result" } else { "" };
        let message = format!("the driver {end}{before}");
        let command =
            Command::FinishApplication { application: id, success: false, message, at_ms: now_ms() };
        match self.cluster.change(command).await? {
            // It had reported its result, and then it ended: nothing is lost.
            Ok(_) | Err(Rejection::ApplicationEnded { .. }) => {
                Ok(Response::new(v1::ReportDriverEndResponse {}))
            }
            Err(why) => Err(rejected(&why)),
        }
    }

    type ReadLogStream = Answers<v1::LogChunk>;

    async fn read_log(
        &self,
        request: Request<v1::ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        self.cluster.read_barrier().await?;
        let wanted = logs::Wanted::resolve(&self.cluster, request.into_inner())?;
        let cluster = self.cluster.clone();
        Ok(Response::new(stream(&self.cluster, |sender| logs::relay(cluster, wanted, sender))))
    }
}

/// Sends the status at once and whenever it has changed; ends after a final state.
async fn watch(
    cluster: Cluster,
    id: ApplicationId,
    sender: mpsc::Sender<Result<v1::ApplicationStatus, Status>>,
) -> Result<(), Status> {
    let mut published = cluster.published();
    let mut progress = cluster.soft().progress(&id);
    let mut last = None;
    loop {
        let now = published.borrow_and_update().clone();
        cluster.leads(&now)?;
        let app = now
            .state
            .application(&id)
            .ok_or_else(|| Status::not_found(format!("application {id} is not remembered any more")))?;
        let newest_progress = progress.borrow_and_update().clone();
        let status = application_status(&cluster, &now.state, app, newest_progress);
        let ended = app.state.is_final();
        if last.as_ref() != Some(&status) {
            last = Some(status.clone());
            sender.send(Ok(status)).await.map_err(gone)?;
        }
        if ended {
            return Ok(());
        }
        tokio::select! {
            changed = published.changed() => changed.map_err(|_| stopping())?,
            changed = progress.changed() => if changed.is_err() {
                progress = cluster.soft().progress(&id);
            },
        }
    }
}

pub(super) fn stopping() -> Status {
    Status::unavailable("this master is stopping")
}

/// 32 random bytes from the operating system, in hex.
fn new_token() -> Result<Secret, Status> {
    let mut bytes = [0; 32];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|e| Status::internal(format!("the operating system gives no random bytes: {e}")))?;
    let mut hex = String::with_capacity(64);
    for byte in bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(Secret::new(hex))
}

pub fn artifact_status(error: ArtifactError) -> Status {
    match error {
        ArtifactError::TooLarge => status(
            Code::InvalidArgument,
            error,
            "put data into files that the script names, not into the script",
        ),
        ArtifactError::Hash { .. } => Status::data_loss(error.to_string()),
        ArtifactError::Empty => Status::invalid_argument(error.to_string()),
        ArtifactError::Io { .. } => status(
            Code::Internal,
            error,
            "look at the free space and the permissions of the master's data directory",
        ),
    }
}
