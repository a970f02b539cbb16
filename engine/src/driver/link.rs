//! The driver's line to the master: says hello, carries progress up and the list of executors down, and comes back
//! after every break. A running query does not notice a master that restarts, or another one that takes over.

use crate::driver::fleet::Executor;
use crate::driver::progress::ProgressBoard;
use firesteel_common::{ApplicationId, MasterUrl, Secret};
use firesteel_proto::masters::{FindLeaderError, Leader, Masters};
use firesteel_proto::v1;
use firesteel_proto::v1::drivers_client::DriversClient;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// Progress travels at most this often; the last picture always does.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// What the master told last.
#[derive(Debug, Clone, Default)]
pub struct MasterView {
    /// `None` until the first update.
    pub executors: Option<Vec<Executor>>,
    /// Where each worker serves map outputs.
    pub hosts: BTreeMap<String, String>,
    pub target: u32,
    pub waiting_reason: String,
    /// The application has ended in the master's eyes: why.
    pub stop: Option<String>,
}

/// Why the line cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("{0}\nhint: {hint}", hint = .0.hint())]
    NoLeader(#[from] FindLeaderError),
    /// The master went away, or does not lead any more: another attempt may find the one that does.
    #[error("{0}")]
    Lost(String),
    #[error("the master does not accept this driver: {0}")]
    Refused(String),
}

#[derive(Clone)]
pub struct Link {
    masters: Masters,
    application: ApplicationId,
    token: Secret,
    progress: ProgressBoard,
}

impl Link {
    pub fn new(url: MasterUrl, application: ApplicationId, token: Secret, progress: ProgressBoard) -> Self {
        Self { masters: Masters::new(&url), application, token, progress }
    }

    /// Keeps the line up in the background, to whichever master leads.
    /// The view ends (its sender is dropped) only when the master refuses this driver.
    pub fn start(self) -> watch::Receiver<MasterView> {
        let (views, view) = watch::channel(MasterView::default());
        tokio::spawn(async move {
            let mut pause = RECONNECT_MIN;
            loop {
                match self.attach(&views).await {
                    Ok(()) => pause = RECONNECT_MIN,
                    Err(LinkError::Refused(reason)) => {
                        views.send_modify(|v| v.stop = Some(reason));
                        return;
                    }
                    Err(error) => tracing::warn!("lost the master, trying again: {error}"),
                }
                if views.borrow().stop.is_some() || views.is_closed() {
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RECONNECT_MAX);
            }
        });
        view
    }

    /// One connection, from hello to its break. `Ok` when it worked for a while.
    async fn attach(&self, views: &watch::Sender<MasterView>) -> Result<(), LinkError> {
        let leader = self.masters.leader().await?;
        let mut client = DriversClient::new(leader.channel.clone());
        let (to_master, messages) = mpsc::channel(4);
        let hello = v1::driver_message::Kind::Hello(v1::DriverHello {
            application_id: self.application.to_string(),
            token: self.token.expose().to_owned(),
        });
        let _ = to_master.send(v1::DriverMessage { kind: Some(hello) }).await;
        let attached = client.attach(ReceiverStream::new(messages)).await;
        let mut updates = attached.map_err(|status| self.failed(&leader, &status))?.into_inner();
        let report = tokio::spawn(report_progress(self.progress.clone(), to_master));
        let outcome = loop {
            match updates.message().await {
                Ok(Some(update)) => {
                    let view = read_update(update);
                    let stop = view.stop.is_some();
                    views.send_replace(view);
                    if stop {
                        break Ok(());
                    }
                }
                Ok(None) => {
                    self.masters.failed(&leader, None);
                    break Ok(());
                }
                Err(status) => match self.failed(&leader, &status) {
                    refused @ LinkError::Refused(_) => break Err(refused),
                    lost => {
                        tracing::warn!("lost the master: {lost}");
                        break Ok(());
                    }
                },
            }
        };
        report.abort();
        outcome
    }

    /// What an answer of the master means. Unless it refuses this driver, the leader is looked for again.
    fn failed(&self, leader: &Leader, status: &Status) -> LinkError {
        if is_refusal(status.code()) {
            return LinkError::Refused(status.message().to_owned());
        }
        self.masters.failed(leader, Some(status));
        LinkError::Lost(status.message().to_owned())
    }

    /// Tells the master how the application ended; answered once that is committed. Tries until `patience` is over.
    pub async fn finish(&self, success: bool, message: &str, patience: Duration) -> Result<(), LinkError> {
        let attempts = async {
            let mut pause = RECONNECT_MIN;
            loop {
                let outcome = async {
                    let leader = self.masters.leader().await?;
                    let mut client = DriversClient::new(leader.channel.clone());
                    let request = v1::FinishRequest {
                        application_id: self.application.to_string(),
                        token: self.token.expose().to_owned(),
                        success,
                        message: message.to_owned(),
                        progress: Some(self.progress.picture()),
                    };
                    client.finish(request).await.map(|_| ()).map_err(|status| self.failed(&leader, &status))
                }
                .await;
                match outcome {
                    Ok(()) => return Ok(()),
                    Err(LinkError::Refused(reason)) => return Err(LinkError::Refused(reason)),
                    Err(error) => tracing::warn!("cannot tell the master yet: {error}"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RECONNECT_MAX);
            }
        };
        match tokio::time::timeout(patience, attempts).await {
            Ok(outcome) => outcome,
            Err(_) => Err(LinkError::Refused(format!("no answer within {} s", patience.as_secs()))),
        }
    }
}

/// Errors that no repetition will cure.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::NotFound
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

async fn report_progress(board: ProgressBoard, to_master: mpsc::Sender<v1::DriverMessage>) {
    use v1::driver_message::Kind;
    let mut changes = board.changes();
    // A new leader knows nothing of what an earlier one was told.
    changes.mark_changed();
    loop {
        let kind = match tokio::time::timeout(HEARTBEAT_INTERVAL, changes.changed()).await {
            Ok(Ok(())) => Kind::Progress(board.picture()),
            Ok(Err(_)) => return,
            Err(_) => Kind::Heartbeat(v1::DriverHeartbeat {}),
        };
        if to_master.send(v1::DriverMessage { kind: Some(kind) }).await.is_err() {
            return;
        }
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

fn read_update(update: v1::DriverUpdate) -> MasterView {
    let executors = update
        .executors
        .into_iter()
        .filter_map(|info| {
            let state = firesteel_proto::convert::executor_state(info.state).ok()?;
            Some(Executor {
                number: info.number,
                state,
                address: info.address,
                worker: info.worker_id,
                host: info.host,
                resources: info.resources.map(Into::into).unwrap_or_default(),
                message: info.message,
            })
        })
        .collect();
    let hosts = update.shuffle_hosts.into_iter().map(|host| (host.worker_id, host.address)).collect();
    MasterView {
        executors: Some(executors),
        hosts,
        target: update.executor_target,
        waiting_reason: update.waiting_reason,
        stop: update.stop.then_some(update.stop_reason),
    }
}
