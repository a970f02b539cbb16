//! What every service of this master works on.

use crate::artifacts::Artifacts;
use crate::consensus::{Consensus, ProposeError, Published};
use crate::soft::Soft;
use crate::web::application_path;
use crate::worker_channels::WorkerChannels;
use firesteel_common::{ApplicationId, MasterUrl};
use firesteel_master_core::{
    Application, ClusterState, Command, Explanation, FindError, Outcome, Rejection, waiting,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Time limits that operators may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often workers report when nothing changes.
    pub heartbeat: Duration,
    /// A worker that is silent for so long is dead.
    pub worker_timeout: Duration,
    /// A client-mode driver whose stream has been gone for so long is dead.
    pub driver_timeout: Duration,
    /// A client-mode driver must have attached within this time after the submission.
    pub first_attach_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            worker_timeout: Duration::from_secs(15),
            driver_timeout: Duration::from_secs(30),
            first_attach_timeout: Duration::from_secs(60),
        }
    }
}

/// Why applications wait, by application.
pub type Explanations = BTreeMap<ApplicationId, Explanation>;

/// A handle to the replicated state, the soft state and the artifact store. Cloning shares it.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    consensus: Consensus,
    soft: Soft,
    artifacts: Artifacts,
    worker_channels: WorkerChannels,
    timing: Timing,
    master_url: MasterUrl,
    ui_url: String,
    stopping: CancellationToken,
    /// The explanations of one state: many watchers ask for the same.
    explained: Mutex<Option<(Arc<ClusterState>, Arc<Explanations>)>>,
}

impl Cluster {
    /// `ui_url` is the web page's base without a slash at its end: `http://HOST:PORT`. When `stopping` is cancelled,
    /// every stream ends.
    pub fn new(
        consensus: Consensus,
        artifacts: Artifacts,
        timing: Timing,
        master_url: MasterUrl,
        ui_url: String,
        stopping: CancellationToken,
    ) -> Self {
        let inner = Inner {
            consensus,
            soft: Soft::new(),
            artifacts,
            worker_channels: WorkerChannels::default(),
            timing,
            master_url,
            ui_url,
            stopping,
            explained: Mutex::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The newest state, and notice of every change.
    pub fn published(&self) -> watch::Receiver<Published> {
        self.inner.consensus.state()
    }

    pub fn state(&self) -> Arc<ClusterState> {
        self.published().borrow().state.clone()
    }

    pub fn soft(&self) -> &Soft {
        &self.inner.soft
    }

    pub fn artifacts(&self) -> &Artifacts {
        &self.inner.artifacts
    }

    pub fn worker_channels(&self) -> &WorkerChannels {
        &self.inner.worker_channels
    }

    pub fn timing(&self) -> Timing {
        self.inner.timing
    }

    pub fn master_url(&self) -> &MasterUrl {
        &self.inner.master_url
    }

    pub fn ui_url(&self) -> &str {
        &self.inner.ui_url
    }

    /// The application's page.
    pub fn application_url(&self, id: &ApplicationId) -> String {
        format!("{}{}", self.inner.ui_url, application_path(id))
    }

    pub fn stopping(&self) -> &CancellationToken {
        &self.inner.stopping
    }

    /// Proposes commands and waits until they are applied here; see [`Consensus::propose`].
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<(u64, Outcome)>, ProposeError> {
        self.inner.consensus.propose(commands).await
    }

    /// Proposes one command for a caller who wants to know what became of it.
    pub async fn change(&self, command: Command) -> Result<Result<Outcome, Rejection>, Status> {
        let outcomes = self.propose(vec![command]).await.map_err(propose_status)?;
        match outcomes.into_iter().next() {
            Some((_, Outcome::Rejected(why))) => Ok(Err(why)),
            Some((_, outcome)) => Ok(Ok(outcome)),
            None => Err(Status::internal("the proposal has no outcome")),
        }
    }

    /// Why applications wait in the given state.
    pub fn explanations(&self, state: &Arc<ClusterState>) -> Arc<Explanations> {
        let mut explained = self.inner.explained.lock().unwrap_or_else(PoisonError::into_inner);
        match &*explained {
            Some((of, explanations)) if Arc::ptr_eq(of, state) => explanations.clone(),
            _ => {
                let explanations = Arc::new(waiting(state));
                *explained = Some((state.clone(), explanations.clone()));
                explanations
            }
        }
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An error with a way out, in the form that `submit` takes apart.
pub fn status(code: Code, message: impl std::fmt::Display, hint: &str) -> Status {
    Status::new(code, format!("{message}\nhint: {hint}"))
}

/// Finds by id, prefix or suffix.
pub fn find<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Arc<Application>, Status> {
    state.find_application(text).map_err(|error| match &error {
        FindError::Unknown { .. } => status(
            Code::NotFound,
            &error,
            "submit list shows the applications; the cluster remembers the last 1000 that ended",
        ),
        FindError::Ambiguous { .. } => status(Code::InvalidArgument, &error, "give more of the id"),
    })
}

/// The application with exactly this id, if `token` is its own. One answer for both faults: it tells a stranger nothing.
pub fn authorised<'a>(
    state: &'a ClusterState,
    id: &ApplicationId,
    token: &str,
) -> Result<&'a Arc<Application>, Status> {
    state.application(id).filter(|app| app.token.matches(token)).ok_or_else(|| {
        Status::permission_denied(format!("no application {id} is known here with that token"))
    })
}

pub fn propose_status(error: ProposeError) -> Status {
    match &error {
        ProposeError::TooLarge { .. } => Status::invalid_argument(error.to_string()),
        ProposeError::NotEncodable(_) => Status::internal(error.to_string()),
        ProposeError::Busy => Status::resource_exhausted(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

pub fn rejected(why: &Rejection) -> Status {
    match why {
        Rejection::InvalidSpec(_) => Status::invalid_argument(why.to_string()),
        Rejection::QueueFull(_) => {
            status(Code::ResourceExhausted, why, "wait until some have ended, or kill some")
        }
        Rejection::KeyReused { .. } => {
            status(Code::AlreadyExists, why, "take another --idempotency-key for another application")
        }
        Rejection::SubmissionTooOld => {
            status(Code::OutOfRange, why, "if it is not there, submit it anew, with a new key")
        }
        Rejection::NoSuchApplication(_) | Rejection::NoSuchProcess(_) | Rejection::NoSuchWorker(_) => {
            Status::not_found(why.to_string())
        }
        _ => Status::failed_precondition(why.to_string()),
    }
}

/// Whether this master leads; only then do its answers about soft state and its orders mean anything.
pub fn must_lead(published: &Published) -> Result<(), Status> {
    if published.leader {
        return Ok(());
    }
    Err(status(
        Code::Unavailable,
        "this master does not lead the cluster (now)",
        "try again, or another master",
    ))
}
