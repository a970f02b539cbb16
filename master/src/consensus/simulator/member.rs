//! A master of the simulated cluster: a real node over a simulated disk.

use super::super::log_store::{Bootstrap, LogStore};
use super::super::memory_store::{MemoryDisk, MemoryKv, MemorySnapshots, MemoryStore};
use super::super::node::{FatalError, Input, Node, Parts, SnapshotWriter, Views};
use super::super::raft_storage::Failure as StorageFailure;
use super::super::transport::{Transport, Unreachable};
use super::super::view::MembersView;
use super::super::watchdog::Watchdog;
use super::super::{OpenError, Position, ProposeError, Published, RaftTiming, SnapshotPolicy};
use super::random::mix;
use super::record::Observed;
use firesteel_common::WorkerId;
use firesteel_master_core::Outcome;
use raft::eraftpb::Message;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The same timeouts as in earnest, in coarser ticks: a simulation pays for each.
pub const TIMING: RaftTiming =
    RaftTiming { tick: Duration::from_millis(100), election_ticks: 10, heartbeat_ticks: 2 };
/// Small, so that slow members need snapshots.
pub const SNAPSHOTS: SnapshotPolicy = SnapshotPolicy { every_entries: 25, every_bytes: u64::MAX, margin: 5 };

pub type SimNode = Node<Observed, MemoryStore, MemorySnapshots, Outbox>;

/// Collects what a node sends within a round.
#[derive(Clone, Default)]
pub struct Outbox(Arc<Mutex<Vec<Message>>>);

impl Outbox {
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Transport for Outbox {
    fn send(&mut self, message: Message) -> Result<(), Unreachable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        Ok(())
    }
}

pub struct Running {
    pub node: SimNode,
    pub views: Views<Observed>,
}

impl Running {
    pub fn published(&self) -> Published<Observed> {
        self.views.published.borrow().clone()
    }

    pub fn members(&self) -> Arc<MembersView> {
        self.views.members.borrow().clone()
    }
}

/// What a leader remembers of its leadership.
#[derive(Default)]
pub struct Lead {
    pub term: u64,
    pub since_ms: u64,
    pub heard_ms: BTreeMap<WorkerId, u64>,
    /// A plan is under way.
    pub planning: bool,
    pub planned_at: u64,
    pub plan_again_ms: u64,
}

pub struct Member {
    pub id: u64,
    pub bootstrap: Bootstrap,
    pub disk: MemoryDisk,
    pub snapshots: MemorySnapshots,
    pub outbox: Outbox,
    pub running: Option<Running>,
    /// Rises with every start and end: what was meant for an earlier life is dropped.
    pub life: u32,
    pub inbox: Vec<Input<Observed>>,
    pub tick_due: bool,
    /// It is writing, or stalled; a round can only begin then.
    pub busy_until_ms: u64,
    pub wake_set: bool,
    /// How far its clock is ahead.
    pub clock_ms: u64,
    /// How long its disk takes.
    pub disk_ms: u64,
    /// For good: it is no member any more.
    pub gone: bool,
    /// Entries up to here have been compared with the record.
    pub compared: u64,
    pub calls: Vec<Call>,
    pub lead: Lead,
}

impl Member {
    pub fn new(bootstrap: Bootstrap) -> Self {
        Self {
            id: bootstrap.identity.raft_id,
            bootstrap,
            disk: MemoryDisk::default(),
            snapshots: MemorySnapshots::default(),
            outbox: Outbox::default(),
            running: None,
            life: 0,
            inbox: Vec::new(),
            tick_due: false,
            busy_until_ms: 0,
            wake_set: false,
            clock_ms: 0,
            disk_ms: 1,
            gone: false,
            compared: 0,
            calls: Vec::new(),
            lead: Lead::default(),
        }
    }

    pub fn start(&mut self, seed: u64, now: Instant) -> Result<(), OpenError> {
        let log = MemoryStore::open(MemoryKv::new(&self.disk), || self.bootstrap.clone())?;
        self.compared = log.first_index() - 1;
        let id = self.id;
        let timeout =
            move |term| TIMING.election_ticks + mix([seed, id, term]) as usize % TIMING.election_ticks;
        let parts = Parts {
            log,
            snapshots: self.snapshots.clone(),
            transport: self.outbox.clone(),
            watchdog: Watchdog::none(),
            failure: StorageFailure::default(),
            timing: TIMING,
            policy: SNAPSHOTS,
            writer: SnapshotWriter::Inline,
            election_timeout: Some(Box::new(timeout)),
        };
        let (node, views) = Node::new(parts, now).map_err(OpenError::State)?;
        self.running = Some(Running { node, views });
        self.life += 1;
        self.lead = Lead::default();
        Ok(())
    }

    /// The process is gone. Whoever waited for it finds out.
    pub fn end(&mut self) -> Vec<Call> {
        self.running = None;
        self.life += 1;
        self.inbox.clear();
        self.tick_due = false;
        self.wake_set = false;
        self.outbox.take();
        std::mem::take(&mut self.calls)
    }

    /// Runs a round with all that has come in.
    pub fn round(&mut self, now: Instant) -> Result<(), FatalError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let tick = std::mem::take(&mut self.tick_due);
        running.node.round(now, self.inbox.drain(..), tick)?;
        running.node.compact_step().map(drop)
    }
}

/// Something asked of a member that has not been answered yet.
pub struct Call {
    pub purpose: Purpose,
    pub answer: Pending,
}

#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    Submit {
        client: usize,
        stamp: u32,
    },
    End {
        client: usize,
        stamp: u32,
    },
    Plan {
        term: u64,
    },
    Register,
    Report {
        worker: usize,
        stamp: u64,
    },
    /// A read, and how many submissions had been acknowledged before it.
    Read {
        acknowledged: usize,
    },
    Change,
    Transfer {
        term: u64,
    },
    Snapshot {
        applied: u64,
    },
}

pub enum Pending {
    Outcomes(oneshot::Receiver<Result<Vec<(u64, Outcome)>, ProposeError>>),
    Done(oneshot::Receiver<Result<(), ProposeError>>),
    Position(oneshot::Receiver<Result<Position, ProposeError>>),
}

pub enum Answered {
    Outcomes(Vec<(u64, Outcome)>),
    Done,
    Position(Position),
}

impl Pending {
    pub fn poll(&mut self) -> Option<Result<Answered, ProposeError>> {
        match self {
            Self::Outcomes(answer) => take(answer).map(|r| r.map(Answered::Outcomes)),
            Self::Done(answer) => take(answer).map(|r| r.map(|()| Answered::Done)),
            Self::Position(answer) => take(answer).map(|r| r.map(Answered::Position)),
        }
    }
}

fn take<A>(answer: &mut oneshot::Receiver<Result<A, ProposeError>>) -> Option<Result<A, ProposeError>> {
    match answer.try_recv() {
        Ok(result) => Some(result),
        Err(oneshot::error::TryRecvError::Empty) => None,
        Err(oneshot::error::TryRecvError::Closed) => Some(Err(ProposeError::Stopped)),
    }
}
