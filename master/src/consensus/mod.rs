//! The replicated log: a Raft group over a durable store, and the state machine on top of it.
//!
//! ```text
//! propose ──► event loop ──► node (RawNode + state machine) ──► watch of Published, of MembersView
//!                │ LogStore (sled | memory)   │ Transport (to the other members)
//!                │ SnapshotStore (files)      │ Watchdog (age of the unfinished write)
//! ```
//!
//! The node has no thread and no clock, so that a simulator can drive several of them through years of mishaps.
//!
//! What an answered proposal did is on a majority's disks and in the published state.

mod data_dir;
mod event_loop;
mod kv_log;
mod log_store;
mod logging;
mod membership;
mod memory_store;
mod node;
mod raft_storage;
mod replies;
pub mod simulator;
mod sled_store;
mod snapshots;
mod state_machine;
mod storage;
mod transport;
mod view;
mod watchdog;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

pub use data_dir::DataDirError;
pub use kv_log::{Change, Kv, KvLog};
pub use log_store::{
    Batch, Bootstrap, Durability, Identity, Loaded, LogStore, Membership, Position, StoreError,
    random_cluster_id, random_id,
};
pub use membership::{MembershipStep, is_membership_change};
pub use memory_store::{MemoryDisk, MemoryKv, MemorySnapshots, MemoryStore};
pub use node::{FatalError, RaftTiming, SnapshotPolicy};
pub use sled_store::{SledKv, SledStore};
pub use snapshots::{SnapshotDir, SnapshotError, SnapshotStore};
pub use state_machine::{Fnv1a, StateMachine};
pub use storage::Storage;
pub use transport::{NoPeers, Transport, Unreachable};
pub use view::{LeadProof, MembersView, PeerView};

use firesteel_common::Epoch;
use firesteel_master_core::ClusterState;
use node::{Input, Node, Parts, Proposal, SnapshotWriter, Views};
use raft::eraftpb::Message;
use raft_storage::Failure;
use state_machine::encode_command;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot, watch};
use watchdog::Watchdog;

/// An unfinished write older than this ends the process.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// How long `main` has to end the process by itself after a stalled write was reported.
const EXIT_GRACE: Duration = Duration::from_secs(5);
/// Commands that may be under way at a time; more wait.
const MAX_COMMANDS_UNDER_WAY: usize = 8192;
/// The largest single command, encoded.
pub const MAX_COMMAND_BYTES: usize = 4 << 20;

/// What a member knows, replaced whenever anything of it changes.
#[derive(Debug)]
pub struct Published<S = ClusterState> {
    pub state: Arc<S>,
    /// The Raft term.
    pub epoch: Epoch,
    /// This member leads and has applied everything that earlier leaders committed.
    pub leader: bool,
    /// Log index up to which `state` goes.
    pub applied: u64,
    pub committed: u64,
    /// Raft member id of the leader, if one is known.
    pub leader_id: Option<u64>,
    /// This member's own id.
    pub member_id: u64,
}

impl<S> Published<S> {
    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
            && (self.epoch, self.leader, self.applied, self.committed, self.leader_id)
                == (other.epoch, other.leader, other.applied, other.committed, other.leader_id)
    }
}

// By hand: a derive would ask for `S: Clone`.
impl<S> Clone for Published<S> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), ..*self }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `DataDirError::Locked` when another master uses the directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state could not be rebuilt from snapshot and log.
    #[error(transparent)]
    State(#[from] FatalError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error(
        "{} holds no cluster: give --data-dir the directory of a master that was a member of the lost one",
        path.display()
    )]
    NothingToForce { path: PathBuf },
}

/// Why a proposal has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this master does not lead (term {term}, leader {})", leader.map_or("unknown".into(), |l| format!("{l:x}")))]
    NotLeader { leader: Option<u64>, term: u64 },
    /// It may or may not be applied by the next leader.
    #[error("leadership was lost while the command was under way: its outcome is not known")]
    LeadershipLost,
    #[error("too much is under way: try again")]
    Busy,
    #[error("a command of {bytes} bytes is too large: the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the command cannot be encoded: {0}")]
    NotEncodable(String),
    #[error("the members cannot be changed like this: {0}")]
    InvalidChange(String),
    #[error(
        "no other master took over the leadership: it is not a voter, is not reachable, or lacks too much of the log"
    )]
    TransferFailed,
    #[error("no snapshot was written: {0}")]
    SnapshotFailed(String),
    #[error("this master is stopping")]
    Stopped,
}

/// A member of the group. Cheap to clone.
pub struct Consensus<S: StateMachine = ClusterState> {
    inbox: Arc<Inbox<S>>,
    published: watch::Receiver<Published<S>>,
    members: watch::Receiver<Arc<MembersView>>,
    proof: LeadProof,
    permits: Arc<Semaphore>,
    ended: watch::Receiver<()>,
    identity: Arc<Identity>,
}

impl<S: StateMachine> Clone for Consensus<S> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            published: self.published.clone(),
            members: self.members.clone(),
            proof: self.proof.clone(),
            permits: self.permits.clone(),
            ended: self.ended.clone(),
            identity: self.identity.clone(),
        }
    }
}

/// The loop's queue; the loop ends with the last handle.
struct Inbox<S: StateMachine>(Sender<Input<S>>);

impl<S: StateMachine> Drop for Inbox<S> {
    fn drop(&mut self) {
        // Fails when the loop has ended by itself.
        let _ = self.0.send(Input::Stop);
    }
}

/// The thread behind a [`Consensus`].
#[derive(Debug)]
pub struct ConsensusThread {
    report: oneshot::Receiver<Result<(), FatalError>>,
}

impl ConsensusThread {
    /// Resolves when the thread has ended: `Ok` after [`Consensus::stop`], otherwise why it could not go on. The
    /// process must then end.
    pub async fn ended(self) -> Result<(), FatalError> {
        self.report.await.unwrap_or_else(|_| Err(FatalError::Panicked("it left no report".to_owned())))
    }
}

/// Where a transport delivers what other members send, and says what became of what it was given to send.
#[derive(Clone)]
pub struct PeerInbox<S: StateMachine>(Sender<Input<S>>);

impl<S: StateMachine> PeerInbox<S> {
    pub fn deliver(&self, message: Message) {
        self.put(Input::Message(message));
    }

    /// Something for `id` was lost on the way.
    pub fn unreachable(&self, id: u64) {
        self.put(Input::Unreachable(id));
    }

    /// The end of every snapshot that the transport took: raft sends `id` nothing else until it knows.
    pub fn snapshot_sent(&self, id: u64, ok: bool) {
        self.put(Input::SnapshotSent { to: id, ok });
    }

    /// The connection from member `from` has broken. If it is the leader, an election follows after the random part of the
    /// election timeout instead of the whole.
    pub fn connection_lost(&self, from: u64) {
        self.put(Input::ConnectionLost(from));
    }

    /// A peer said that this member has been removed: ends it with [`FatalError::Removed`].
    pub fn removed(&self) {
        self.put(Input::Removed);
    }

    fn put(&self, input: Input<S>) {
        // A loop that has ended takes nothing, as if the network had lost it.
        let _ = self.0.send(input);
    }
}

/// What distinguishes one start from another; the default is a lone master's.
pub struct Settings<T = NoPeers> {
    pub transport: T,
    pub timing: RaftTiming,
    pub snapshots: SnapshotPolicy,
}

impl<T> Settings<T> {
    /// With everything else as usual.
    pub fn new(transport: T) -> Self {
        Self { transport, timing: RaftTiming::default(), snapshots: SnapshotPolicy::default() }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(NoPeers)
    }
}

impl Consensus<ClusterState> {
    /// Opens or creates the data directory and starts the group's thread. A new directory becomes a cluster of one
    /// master, which leads within milliseconds.
    pub fn open(data_dir: &Path) -> Result<(Self, ConsensusThread), OpenError> {
        Self::open_with(data_dir, Settings::default())
    }
}

impl<S: StateMachine> Consensus<S> {
    /// As [`Consensus::open`], for any state machine and settings.
    pub fn open_with<T: Transport>(
        data_dir: &Path,
        settings: Settings<T>,
    ) -> Result<(Self, ConsensusThread), OpenError> {
        Self::open_storage(Storage::open(data_dir)?, Bootstrap::alone(), |_| settings)
    }

    /// Runs the group on an open data directory; a new one begins as `fresh` says. A transport needs the inbox to deliver
    /// what it receives.
    pub fn open_storage<T: Transport>(
        storage: Storage,
        fresh: Bootstrap,
        settings: impl FnOnce(PeerInbox<S>) -> Settings<T>,
    ) -> Result<(Self, ConsensusThread), OpenError> {
        let (log, snapshots, dir) = storage.start(fresh)?;
        let (inbox, inputs) = mpsc::channel();
        let settings = settings(PeerInbox(inbox.clone()));
        Self::start_on(log, snapshots, settings, dir, inbox, inputs)
    }

    /// Starts the loop over an open store. `keep` (a lock) is dropped when everything else is.
    pub fn start<L: LogStore, P: SnapshotStore, T: Transport>(
        log: L,
        snapshots: P,
        settings: Settings<T>,
        keep: impl Send + 'static,
    ) -> Result<(Self, ConsensusThread), OpenError> {
        let (inbox, inputs) = mpsc::channel();
        Self::start_on(log, snapshots, settings, keep, inbox, inputs)
    }

    /// As [`Consensus::start`] with the loop's queue made before: a transport may need its sending end.
    fn start_on<L: LogStore, P: SnapshotStore, T: Transport>(
        log: L,
        snapshots: P,
        settings: Settings<T>,
        keep: impl Send + 'static,
        inbox: Sender<Input<S>>,
        inputs: mpsc::Receiver<Input<S>>,
    ) -> Result<(Self, ConsensusThread), OpenError> {
        let (report, reported) = oneshot::channel();
        let report = Arc::new(Mutex::new(Some(report)));
        let say = move |end| {
            let report = report.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The first end is the true one, and nobody may be listening.
            report.map(|sender| sender.send(end).is_ok());
        };
        let stalled = say.clone();
        let watchdog = Watchdog::start(WRITE_LIMIT, move |age| {
            let error = FatalError::DiskStalled(age);
            tracing::error!(%error, "stopping");
            stalled(Err(error));
            thread::sleep(EXIT_GRACE);
            std::process::exit(1);
        })
        .map_err(OpenError::Thread)?;

        let failure = Failure::default();
        let identity = Arc::new(log.load().identity);
        let parts = Parts {
            log,
            snapshots,
            transport: settings.transport,
            watchdog,
            failure: failure.clone(),
            timing: settings.timing,
            policy: settings.snapshots,
            writer: SnapshotWriter::Background(inbox.clone()),
            election_timeout: None,
        };
        let (node, Views { published, members }) = Node::new(parts, Instant::now())?;
        let proof = node.proof();
        let tick = settings.timing.tick;
        let (ended_sender, ended) = watch::channel(());
        thread::Builder::new()
            .name("consensus".into())
            .spawn(move || {
                let run = AssertUnwindSafe(move || event_loop::run(node, &inputs, tick));
                let result = catch_unwind(run).unwrap_or_else(|panic| {
                    let said = panic
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                    // The `raft` crate panics when its storage fails: then the storage's error is the reason.
                    Err(FatalError::Panicked(failure.take().or(said).unwrap_or_default()))
                });
                drop(keep);
                say(result);
                drop(ended_sender);
            })
            .map_err(OpenError::Thread)?;
        let permits = Arc::new(Semaphore::new(MAX_COMMANDS_UNDER_WAY));
        let inbox = Arc::new(Inbox(inbox));
        let group = Self { inbox, published, members, proof, permits, ended, identity };
        Ok((group, ConsensusThread { report: reported }))
    }

    /// Who this member is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Proposes commands; each takes the next place in the log, nothing of others between them. Answers with each
    /// command's log index and outcome once all are committed and applied, and the published state shows it.
    ///
    /// Dropping the future does not withdraw the commands.
    pub async fn propose(&self, commands: Vec<S::Command>) -> Result<Vec<(u64, S::Outcome)>, ProposeError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut encoded = Vec::with_capacity(commands.len());
        for command in &commands {
            let bytes = encode_command(command).map_err(|e| ProposeError::NotEncodable(e.to_string()))?;
            if bytes.len() > MAX_COMMAND_BYTES {
                return Err(ProposeError::TooLarge { bytes: bytes.len(), limit: MAX_COMMAND_BYTES });
            }
            encoded.push(bytes);
        }
        let weight = encoded.len().min(MAX_COMMANDS_UNDER_WAY) as u32;
        let permit =
            self.permits.clone().acquire_many_owned(weight).await.map_err(|_| ProposeError::Stopped)?;
        self.ask(|answer| Input::Propose(Proposal { commands: encoded, answer, permit: Some(permit) })).await
    }

    /// Changes who belongs to the group; answers when the change is committed and applied here.
    pub async fn change_membership(&self, steps: Vec<MembershipStep>) -> Result<(), ProposeError> {
        self.ask(|answer| Input::ChangeMembership { steps, answer }).await
    }

    /// Hands the leadership over: to this member, or to the live voter that has the most of the log. `Ok` when this
    /// member no longer leads and knows who does.
    ///
    /// [`ProposeError::NotLeader`] if it did not lead; [`ProposeError::TransferFailed`] when it still leads after at most
    /// two election timeouts. Proposals meanwhile are [`ProposeError::Busy`].
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<(), ProposeError> {
        self.ask(|answer| Input::Transfer { to, answer }).await
    }

    /// Writes a snapshot of at least everything that this member has applied now, wherever the leader is.
    pub async fn snapshot_now(&self) -> Result<Position, ProposeError> {
        self.ask(Input::SnapshotNow).await
    }

    /// After this the published state has everything that was acknowledged, by whatever member, before the call. Only on
    /// the leader, which asks a majority whether it still is: otherwise [`ProposeError::NotLeader`].
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.ask(Input::ReadBarrier).await
    }

    async fn ask<A>(
        &self,
        input: impl FnOnce(oneshot::Sender<Result<A, ProposeError>>) -> Input<S>,
    ) -> Result<A, ProposeError> {
        let (sender, answer) = oneshot::channel();
        self.inbox.0.send(input(sender)).map_err(|_| ProposeError::Stopped)?;
        answer.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// The group as this member sees it. Renewed at most once per tick.
    pub fn members(&self) -> watch::Receiver<Arc<MembersView>> {
        self.members.clone()
    }

    /// When this member was last sure to lead.
    pub fn proof(&self) -> &LeadProof {
        &self.proof
    }

    /// The newest state, and notice of every change.
    pub fn state(&self) -> watch::Receiver<Published<S>> {
        self.published.clone()
    }

    /// Where a transport delivers what other members send.
    pub fn peer_inbox(&self) -> PeerInbox<S> {
        PeerInbox(self.inbox.0.clone())
    }

    /// Stops the thread; returns when the store is closed and the data directory is free.
    pub async fn stop(mut self) {
        let _ = self.inbox.0.send(Input::Stop);
        // Nothing is ever sent: an error says that the thread is gone.
        while self.ended.changed().await.is_ok() {}
    }
}
