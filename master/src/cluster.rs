//! What every service of this master works on.

use crate::artifacts::Artifacts;
use crate::consensus::{Consensus, MembersView, MembershipStep, ProposeError, Published};
use crate::peers::addresses::AddressBook;
use crate::soft::Soft;
use crate::web::application_path;
use crate::worker_channels::WorkerChannels;
use firesteel_common::{ApplicationId, MasterUrl};
use firesteel_master_core::{
    Application, ClusterState, Command, Explanation, FindError, Outcome, Rejection, ShuffleTenants,
    shuffle_tenants, waiting,
};
use firesteel_proto::{masters::not_leader_status, v1};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
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

impl Timing {
    /// What a worker may take for granted after a report that the leader has heard. Shorter than the time after which the
    /// leader gives the worker up, by more than two leaders can overlap.
    pub fn lease(&self) -> Duration {
        self.worker_timeout * 2 / 3
    }
}

/// Why applications wait, by application.
pub type Explanations = BTreeMap<ApplicationId, Explanation>;

/// A handle to the replicated state, the soft state and the artifact store. Cloning shares it.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

/// How old the proof of leadership behind a lease may be: an election timeout. The proof itself may rest on answers that are
/// another election timeout old; the time that a leader waits before it gives a worker up is longer than lease and both.
const PROOF_AGE: Duration = Duration::from_secs(1);

/// What a [`Cluster`] is made from.
pub struct Parts {
    pub consensus: Consensus,
    pub addresses: AddressBook,
    pub artifacts: Artifacts,
    pub timing: Timing,
    pub master_url: MasterUrl,
    /// The web page's base without a slash at its end: `http://HOST:PORT`.
    pub ui_url: String,
    /// When it is cancelled, every stream ends.
    pub stopping: CancellationToken,
}

struct Inner {
    parts: Parts,
    soft: Soft,
    membership: tokio::sync::Mutex<()>,
    recovering: AtomicBool,
    worker_channels: WorkerChannels,
    /// The explanations of one state: many watchers ask for the same.
    explained: Mutex<Option<(Arc<ClusterState>, Arc<Explanations>)>>,
    /// The tenants of one state: every worker's stream asks for them after every change.
    tenants: Mutex<Option<(Arc<ClusterState>, Arc<ShuffleTenants>)>>,
}

impl Cluster {
    pub fn new(parts: Parts) -> Self {
        let inner = Inner {
            parts,
            soft: Soft::new(),
            membership: tokio::sync::Mutex::new(()),
            recovering: AtomicBool::new(false),
            worker_channels: WorkerChannels::default(),
            explained: Mutex::new(None),
            tenants: Mutex::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The newest state, and notice of every change.
    pub fn published(&self) -> watch::Receiver<Published> {
        self.inner.parts.consensus.state()
    }

    pub fn state(&self) -> Arc<ClusterState> {
        self.published().borrow().state.clone()
    }

    pub fn soft(&self) -> &Soft {
        &self.inner.soft
    }

    pub fn artifacts(&self) -> &Artifacts {
        &self.inner.parts.artifacts
    }

    pub fn worker_channels(&self) -> &WorkerChannels {
        &self.inner.worker_channels
    }

    pub fn timing(&self) -> Timing {
        self.inner.parts.timing
    }

    pub fn master_url(&self) -> &MasterUrl {
        &self.inner.parts.master_url
    }

    pub fn ui_url(&self) -> &str {
        &self.inner.parts.ui_url
    }

    /// The application's page.
    pub fn application_url(&self, id: &ApplicationId) -> String {
        format!("{}{}", self.inner.parts.ui_url, application_path(id))
    }

    pub fn stopping(&self) -> &CancellationToken {
        &self.inner.parts.stopping
    }

    pub fn cluster_id(&self) -> &str {
        &self.inner.parts.consensus.identity().cluster_id
    }

    /// This master's own Raft id.
    pub fn member_id(&self) -> u64 {
        self.inner.parts.consensus.identity().raft_id
    }

    /// Where the masters are.
    pub fn addresses(&self) -> &AddressBook {
        &self.inner.parts.addresses
    }

    /// How the members stand, as this one sees it.
    pub fn members(&self) -> watch::Receiver<Arc<MembersView>> {
        self.inner.parts.consensus.members()
    }

    /// Whether this master leads; only then do its answers about soft state and its orders mean anything.
    pub fn must_lead(&self) -> Result<(), Status> {
        self.leads(&self.published().borrow())
    }

    /// As [`Cluster::must_lead`], for a state at hand.
    pub fn leads(&self, published: &Published) -> Result<(), Status> {
        if published.leader { Ok(()) } else { Err(self.not_leader_in(published)) }
    }

    /// Waits until the published state has everything that was acknowledged to anybody before.
    ///
    /// # Errors
    /// This master does not lead, or cannot make sure that it still does.
    pub async fn read_barrier(&self) -> Result<(), Status> {
        self.inner.parts.consensus.read_barrier().await.map_err(|e| self.propose_status(e))
    }

    /// Whether this master leads for sure, and not only since its last look: another cannot have been elected and have given
    /// workers up meanwhile. For promises that need no commit, such as leases.
    pub fn surely_leads(&self) -> bool {
        self.published().borrow().leader && self.inner.parts.consensus.proof().within(PROOF_AGE)
    }

    /// Held over the check and the act of a change of members.
    pub fn membership_lock(&self) -> &tokio::sync::Mutex<()> {
        &self.inner.membership
    }

    /// Whether a cluster that was made anew by force still has the records of its lost members: nobody can join before they
    /// are gone.
    pub fn is_recovering(&self) -> bool {
        self.inner.recovering.load(Ordering::Relaxed)
    }

    pub fn set_recovering(&self, recovering: bool) {
        self.inner.recovering.store(recovering, Ordering::Relaxed);
    }

    /// Told by another master that this one has been removed.
    pub fn removed(&self) {
        self.inner.parts.consensus.peer_inbox().removed();
    }

    pub async fn change_membership(&self, steps: Vec<MembershipStep>) -> Result<(), ProposeError> {
        self.inner.parts.consensus.change_membership(steps).await
    }

    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<(), Status> {
        self.inner.parts.consensus.transfer_leadership(to).await.map_err(|e| self.propose_status(e))
    }

    /// Writes a snapshot; the log index up to which it goes.
    pub async fn snapshot_now(&self) -> Result<u64, Status> {
        let position = self.inner.parts.consensus.snapshot_now().await.map_err(|e| self.propose_status(e))?;
        Ok(position.index)
    }

    /// Who leads, for callers that came to the wrong master.
    pub fn hint(&self, published: &Published) -> v1::NotLeader {
        let book = self.addresses().all();
        let client = |id: &u64| book.get(id).map(|a| a.client.clone()).unwrap_or_default();
        v1::NotLeader {
            leader: published.leader_id.as_ref().map(client).unwrap_or_default(),
            term: published.epoch.0,
            masters: book.keys().map(client).filter(|address| !address.is_empty()).collect(),
        }
    }

    pub fn not_leader(&self) -> Status {
        self.not_leader_in(&self.published().borrow())
    }

    fn not_leader_in(&self, published: &Published) -> Status {
        let hint = self.hint(published);
        let (message, way_out) = match hint.leader.as_str() {
            "" => (
                "the cluster has no leader now".to_owned(),
                "try again: an election takes seconds, if more than half of the masters are up",
            ),
            leader => (
                format!("this master does not lead the cluster, {leader} does"),
                "try again, or another master",
            ),
        };
        not_leader_status(&format!("{message}\nhint: {way_out}"), &hint)
    }

    /// As [`propose_status`], with a hint to the leader where another master leads.
    pub fn propose_status(&self, error: ProposeError) -> Status {
        match error {
            ProposeError::NotLeader { .. } => self.not_leader(),
            other => propose_status(&other),
        }
    }

    /// Proposes commands and waits until they are applied here; see [`Consensus::propose`].
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<(u64, Outcome)>, ProposeError> {
        self.inner.parts.consensus.propose(commands).await
    }

    /// Proposes one command for a caller who wants to know what became of it.
    pub async fn change(&self, command: Command) -> Result<Result<Outcome, Rejection>, Status> {
        let outcomes = self.propose(vec![command]).await.map_err(|e| self.propose_status(e))?;
        match outcomes.into_iter().next() {
            Some((_, Outcome::Rejected(why))) => Ok(Err(why)),
            Some((_, outcome)) => Ok(Ok(outcome)),
            None => Err(Status::internal("the proposal has no outcome")),
        }
    }

    /// Why applications wait in the given state.
    pub fn explanations(&self, state: &Arc<ClusterState>) -> Arc<Explanations> {
        of_state(&self.inner.explained, state, waiting)
    }

    /// Whose map outputs each worker shall keep in the given state.
    pub fn shuffle_tenants(&self, state: &Arc<ClusterState>) -> Arc<ShuffleTenants> {
        of_state(&self.inner.tenants, state, shuffle_tenants)
    }
}

/// What `work_out` says of `state`, worked out once for all who ask about the same state.
fn of_state<T>(
    kept: &Mutex<Option<(Arc<ClusterState>, Arc<T>)>>,
    state: &Arc<ClusterState>,
    work_out: impl FnOnce(&ClusterState) -> T,
) -> Arc<T> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    match &*kept {
        Some((of, result)) if Arc::ptr_eq(of, state) => result.clone(),
        _ => {
            let result = Arc::new(work_out(state));
            *kept = Some((state.clone(), result.clone()));
            result
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

pub fn propose_status(error: &ProposeError) -> Status {
    match error {
        ProposeError::TooLarge { .. } => Status::invalid_argument(error.to_string()),
        ProposeError::NotEncodable(_) => Status::internal(error.to_string()),
        ProposeError::TransferFailed | ProposeError::SnapshotFailed(_) | ProposeError::InvalidChange(_) => {
            Status::failed_precondition(error.to_string())
        }
        // Also when too much is under way: whoever waits a little gets through.
        _ => Status::unavailable(error.to_string()),
    }
}

pub fn rejected(why: &Rejection) -> Status {
    match why {
        Rejection::InvalidSpec(_) => Status::invalid_argument(why.to_string()),
        Rejection::KeyReused { .. } => {
            status(Code::AlreadyExists, why, "give another submission another --idempotency-key")
        }
        Rejection::SubmissionTooOld => status(Code::OutOfRange, why, "submit list shows what has run"),
        Rejection::QueueFull(_) => {
            status(Code::ResourceExhausted, why, "wait until some have ended, or kill some")
        }
        Rejection::NoSuchApplication(_)
        | Rejection::NoSuchProcess(_)
        | Rejection::NoSuchWorker(_)
        | Rejection::NoSuchMember(_) => Status::not_found(why.to_string()),
        _ => Status::failed_precondition(why.to_string()),
    }
}
