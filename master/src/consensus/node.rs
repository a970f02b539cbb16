//! The group's loop: one thread that owns the Raft state, the log and the state machine.
//!
//! One round: take what has come in, let Raft work it into a `Ready`, write that in one durable batch, apply what is
//! committed, publish, answer. While a batch is being written new proposals gather; together they are the next batch.

use super::log_store::{Batch, Durability, LogStore, Membership, Position, StoreError};
use super::logging;
use super::membership::{MembershipStep, conf_change_of, to_conf_change};
use super::raft_storage::{Failure, RaftStorage};
use super::snapshots::{SnapshotDir, SnapshotError};
use super::state_machine::{CommandError, StateMachine, decode_command};
use super::transport::Transport;
use super::watchdog::Watchdog;
use super::{ProposeError, Published};
use firesteel_common::Epoch;
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType};
use raft::{Config, RawNode, ReadOnlyOption, Ready, SnapshotStatus, StateRole};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

/// Bytes of proposals that go into one `Ready`, and of entries that one round applies.
const GROUP_BYTES: u64 = 4 << 20;
const MAX_UNCOMMITTED_BYTES: u64 = 32 << 20;
const MAX_MESSAGE_BYTES: u64 = 256 << 10;
const MAX_INFLIGHT_MESSAGES: usize = 64;
/// Entries dropped per round while the log is being compacted: proposals must not wait for the whole of it.
const COMPACT_STEP: u64 = 250;
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 2;

/// Why the group's loop ended. The process must end, too: what it would say next may not be true.
#[derive(Debug, thiserror::Error)]
pub enum FatalError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    #[error(
        "log entry {index} cannot be read: {source}. It was written by another version of firesteel-master: start \
         that version, or give --data-dir another directory"
    )]
    Command { index: u64, source: CommandError },
    #[error("the membership change in log entry {index} cannot be read: {source}")]
    Membership { index: u64, source: serde_json::Error },
    #[error(
        "a write to the data directory has not finished for {} s: the disk hangs, and a master without a disk must \
         not lead",
        .0.as_secs()
    )]
    DiskStalled(Duration),
    #[error("the consensus thread stopped by a fault of its own: {0}")]
    Panicked(String),
}

/// When the state machine is written out and the log behind it dropped.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotPolicy {
    pub every_entries: u64,
    pub every_bytes: u64,
    /// Entries kept before the snapshot, for a member that is only a little behind.
    pub margin: u64,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self { every_entries: 10_000, every_bytes: 32 << 20, margin: 1_000 }
    }
}

/// What reaches the loop.
pub enum Input<S: StateMachine> {
    Propose(Proposal<S>),
    ChangeMembership { steps: Vec<MembershipStep>, reply: oneshot::Sender<Result<(), ProposeError>> },
    Message(Message),
    SnapshotWritten { position: Position, membership: Membership, result: Result<(), SnapshotError> },
    Stop,
}

/// Each command's place in the log and what it did.
pub type Outcomes<S> = Vec<(u64, <S as StateMachine>::Outcome)>;

pub struct Proposal<S: StateMachine> {
    /// Encoded commands; each becomes one entry, all of them consecutive.
    pub commands: Vec<Vec<u8>>,
    pub reply: oneshot::Sender<Result<Outcomes<S>, ProposeError>>,
    /// Bounds what is queued; given back with the answer.
    pub permit: OwnedSemaphorePermit,
}

enum Reply<S: StateMachine> {
    Commands {
        outcomes: Outcomes<S>,
        reply: oneshot::Sender<Result<Outcomes<S>, ProposeError>>,
        _permit: OwnedSemaphorePermit,
    },
    Membership(oneshot::Sender<Result<(), ProposeError>>),
}

impl<S: StateMachine> Reply<S> {
    // A caller that has gone away does not need the answer: failing to send is no error.
    fn succeed(self) {
        match self {
            Self::Commands { outcomes, reply, .. } => drop(reply.send(Ok(outcomes))),
            Self::Membership(reply) => drop(reply.send(Ok(()))),
        }
    }
    fn fail(self, error: ProposeError) {
        match self {
            Self::Commands { reply, .. } => drop(reply.send(Err(error))),
            Self::Membership(reply) => drop(reply.send(Err(error))),
        }
    }
}

/// Proposed entries `first..=last` whose proposer waits.
struct Waiter<S: StateMachine> {
    first: u64,
    last: u64,
    term: u64,
    reply: Reply<S>,
}

/// Everything that the loop is built from.
pub struct Parts<S: StateMachine, L, T> {
    pub log: L,
    pub snapshots: SnapshotDir,
    pub transport: T,
    pub watchdog: Watchdog,
    pub failure: Failure,
    pub tick: Duration,
    pub policy: SnapshotPolicy,
    pub inbox: Receiver<Input<S>>,
    /// For the thread that writes snapshots.
    pub to_self: Sender<Input<S>>,
}

pub struct Node<S: StateMachine, L: LogStore, T> {
    raw: RawNode<RaftStorage<L>>,
    state: Arc<S>,
    applied: Position,
    /// Newest known; what is on disk may lag behind in `commit`, which Raft can work out again.
    hard_state: HardState,
    unsaved_commit: bool,
    waiters: VecDeque<Waiter<S>>,
    /// Answers that wait for the state they speak of to be published.
    finished: Vec<Reply<S>>,
    undelivered: Vec<(u64, bool)>,
    snapshot_writer: Option<JoinHandle<()>>,
    snapshot_index: u64,
    bytes_since_snapshot: u64,
    /// Entries up to here are not needed any more.
    compact_through: u64,
    published: watch::Sender<Published<S>>,
    transport: T,
    watchdog: Watchdog,
    tick: Duration,
    policy: SnapshotPolicy,
    inbox: Receiver<Input<S>>,
    to_self: Sender<Input<S>>,
}

impl<S: StateMachine, L: LogStore, T: Transport> Node<S, L, T> {
    /// Brings the state machine up to what is known to be applied: newest snapshot, then the log behind it.
    pub fn new(parts: Parts<S, L, T>) -> Result<(Self, watch::Receiver<Published<S>>), FatalError> {
        let Parts { log, snapshots, transport, watchdog, failure, tick, policy, inbox, to_self } = parts;
        let loaded = log.load();
        let mut state = match loaded.snapshot {
            Some(position) => snapshots.parse(position, &snapshots.read(position)?.state)?,
            None => S::default(),
        };
        let snapshot_index = loaded.snapshot.unwrap_or(loaded.truncated).index;
        // Raft hands out what lies behind the membership's index. What lies before, membership changes among it, has
        // been worked into the stored membership: only the commands are missing, because the state is not on disk.
        let mut bytes_since_snapshot = 0;
        let mut next = snapshot_index + 1;
        while next <= loaded.membership.applied {
            let entries = log.entries(next, loaded.membership.applied + 1, Some(GROUP_BYTES))?;
            for entry in &entries {
                bytes_since_snapshot += entry.data.len() as u64;
                apply_command(&mut state, entry)?;
            }
            next += entries.len() as u64;
        }
        let applied =
            Position { index: loaded.membership.applied, term: log.term(loaded.membership.applied)? };
        snapshots.keep_only(loaded.snapshot.unwrap_or(loaded.truncated));

        let config = Config {
            id: loaded.identity.raft_id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: applied.index,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_MESSAGES,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: GROUP_BYTES,
            ..Config::default()
        };
        let storage = RaftStorage::new(log, snapshots, failure);
        let raw = RawNode::new(&config, storage, &logging::logger())?;
        let state = Arc::new(state);
        let (published, subscriber) = watch::channel(Published {
            state: state.clone(),
            epoch: Epoch(loaded.hard_state.term),
            leader: false,
            applied: applied.index,
            committed: loaded.hard_state.commit,
            leader_id: None,
            member_id: loaded.identity.raft_id,
        });
        let node = Self {
            raw,
            state,
            applied,
            hard_state: loaded.hard_state,
            unsaved_commit: false,
            waiters: VecDeque::new(),
            finished: Vec::new(),
            undelivered: Vec::new(),
            snapshot_writer: None,
            snapshot_index,
            bytes_since_snapshot,
            compact_through: snapshot_index.saturating_sub(policy.margin),
            published,
            transport,
            watchdog,
            tick,
            policy,
            inbox,
            to_self,
        };
        Ok((node, subscriber))
    }

    /// Runs until told to stop or nobody is left to tell.
    pub fn run(mut self) -> Result<(), FatalError> {
        if self.votes_alone() {
            // Nobody else could be leading: waiting for the election timeout would only delay the start.
            self.raw.campaign()?;
        }
        self.work()?;
        let mut next_tick = Instant::now() + self.tick;
        loop {
            let compacting = self.compact_step()?;
            let wait =
                if compacting { Duration::ZERO } else { next_tick.saturating_duration_since(Instant::now()) };
            let mut input = match self.inbox.recv_timeout(wait) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            };
            let mut bytes = 0;
            while let Some(next) = input {
                match next {
                    Input::Stop => return self.finish(),
                    other => bytes += self.take(other)?,
                }
                input = if bytes < GROUP_BYTES { self.inbox.try_recv().ok() } else { None };
            }
            // One tick however long the round took: a stalled thread must not believe that an election is overdue.
            if Instant::now() >= next_tick {
                self.raw.tick();
                next_tick = Instant::now() + self.tick;
            }
            self.work()?;
        }
    }

    fn votes_alone(&self) -> bool {
        let members = self.raw.raft.prs().conf().to_conf_state();
        members.voters == [self.raw.raft.id] && members.voters_outgoing.is_empty()
    }

    /// Takes one input; returns how many bytes it adds to the next batch.
    fn take(&mut self, input: Input<S>) -> Result<u64, FatalError> {
        match input {
            Input::Propose(proposal) => return Ok(self.propose(proposal)),
            Input::ChangeMembership { steps, reply } => self.propose_membership(&steps, reply),
            Input::Message(message) => {
                // A proposal is made where the caller waits; raft 0.7 would take a forwarded one with nobody to answer.
                if message.get_msg_type() != MessageType::MsgPropose
                    && let Err(error) = self.raw.step(message)
                {
                    tracing::debug!(%error, "a message was not taken");
                }
            }
            Input::SnapshotWritten { position, membership, result } => {
                self.snapshot_written(position, membership, result)?;
            }
            Input::Stop => {}
        }
        Ok(0)
    }

    fn not_leader(&self) -> ProposeError {
        let leader = self.raw.raft.leader_id;
        ProposeError::NotLeader { leader: (leader != 0).then_some(leader), term: self.raw.raft.term }
    }

    fn propose(&mut self, proposal: Proposal<S>) -> u64 {
        let Proposal { commands, reply, permit } = proposal;
        let reply = Reply::Commands { outcomes: Vec::with_capacity(commands.len()), reply, _permit: permit };
        let bytes = commands.iter().map(|c| c.len() as u64).sum();
        let entries =
            commands.into_iter().map(|data| Entry { data: data.into(), ..Default::default() }).collect();
        self.propose_entries(entries, reply);
        bytes
    }

    fn propose_membership(
        &mut self,
        steps: &[MembershipStep],
        reply: oneshot::Sender<Result<(), ProposeError>>,
    ) {
        use raft::eraftpb::ConfChangeV2;
        let change: ConfChangeV2 = to_conf_change(steps);
        let context = match serde_json::to_vec(steps) {
            Ok(context) => context,
            Err(_) => return drop(reply.send(Err(ProposeError::Busy))),
        };
        let reply = Reply::Membership(reply);
        if self.raw.raft.state != StateRole::Leader {
            return reply.fail(self.not_leader());
        }
        // Raft turns a change into an empty entry when one is under way; ask first, to be able to say so.
        if self.raw.raft.has_pending_conf() {
            return reply.fail(ProposeError::Busy);
        }
        let first = self.raw.raft.raft_log.last_index() + 1;
        match self.raw.propose_conf_change(context, change) {
            Ok(()) => self.wait_for(first, first, reply),
            Err(_) => reply.fail(ProposeError::Busy),
        }
    }

    fn propose_entries(&mut self, entries: Vec<Entry>, reply: Reply<S>) {
        if self.raw.raft.state != StateRole::Leader {
            return reply.fail(self.not_leader());
        }
        let first = self.raw.raft.raft_log.last_index() + 1;
        let last = first + entries.len() as u64 - 1;
        let mut message = Message { from: self.raw.raft.id, entries: entries.into(), ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        match self.raw.step(message) {
            Ok(()) => self.wait_for(first, last, reply),
            Err(_) => reply.fail(ProposeError::Busy),
        }
    }

    fn wait_for(&mut self, first: u64, last: u64, reply: Reply<S>) {
        self.waiters.push_back(Waiter { first, last, term: self.raw.raft.term, reply });
    }

    /// Works off everything that Raft has ready.
    fn work(&mut self) -> Result<(), FatalError> {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            self.send(ready.take_messages());
            self.persist(&ready)?;
            self.send(ready.take_persisted_messages());
            self.apply(ready.take_committed_entries())?;
            let mut light = self.raw.advance_append(ready);
            if let Some(commit) = light.commit_index() {
                // Not worth a sync of its own: the state machine is rebuilt from the log at every start, and a group
                // works its commit index out again.
                self.hard_state.commit = commit;
                self.unsaved_commit = true;
            }
            self.send(light.take_messages());
            self.apply(light.take_committed_entries())?;
            self.raw.advance_apply();
            // Only now: between `ready` and `advance` nothing may be stepped.
            self.report_undelivered();
            self.fail_lost_waiters();
            self.publish();
        }
        self.publish();
        self.maybe_snapshot();
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let to = message.to;
            let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            if self.transport.send(message).is_err() {
                self.undelivered.push((to, is_snapshot));
            }
        }
    }

    fn report_undelivered(&mut self) {
        for (to, is_snapshot) in std::mem::take(&mut self.undelivered) {
            self.raw.report_unreachable(to);
            if is_snapshot {
                self.raw.report_snapshot(to, SnapshotStatus::Failure);
            }
        }
    }

    /// Snapshot, entries and hard state in one batch.
    fn persist(&mut self, ready: &Ready) -> Result<(), FatalError> {
        let mut install = None;
        let mut membership = None;
        let snapshot = ready.snapshot();
        if !snapshot.is_empty() {
            let metadata = snapshot.get_metadata();
            let position = Position { index: metadata.index, term: metadata.term };
            let snapshots = &self.raw.store().snapshots;
            let state: S = snapshots.parse(position, &snapshot.data)?;
            self.watchdog
                .watch(|| snapshots.write_received(position, metadata.get_conf_state(), &snapshot.data))?;
            self.state = Arc::new(state);
            self.applied = position;
            self.snapshot_index = position.index;
            self.bytes_since_snapshot = 0;
            install = Some(position);
            membership =
                Some(Membership { conf_state: metadata.get_conf_state().clone(), applied: position.index });
        }
        if let Some(hard_state) = ready.hs() {
            self.hard_state = hard_state.clone();
        }
        let durability = if ready.must_sync() { Durability::Synced } else { Durability::Buffered };
        if ready.hs().is_some() || !ready.entries().is_empty() || install.is_some() {
            let batch = Batch {
                install,
                entries: ready.entries(),
                hard_state: Some(&self.hard_state),
                membership: membership.as_ref(),
                ..Batch::default()
            };
            let log = &mut self.raw.mut_store().log;
            self.watchdog.watch(|| log.write(batch, durability))?;
            self.unsaved_commit = false;
        }
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), FatalError> {
        for entry in entries {
            let position = Position { index: entry.index, term: entry.term };
            self.bytes_since_snapshot += entry.data.len() as u64;
            let outcome = match entry.get_entry_type() {
                EntryType::EntryNormal => apply_command(Arc::make_mut(&mut self.state), &entry)?,
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_membership(&entry)?;
                    None
                }
            };
            self.applied = position;
            self.answer(position, outcome);
        }
        Ok(())
    }

    fn apply_membership(&mut self, entry: &Entry) -> Result<(), FatalError> {
        let index = entry.index;
        let change = conf_change_of(entry).map_err(|source| FatalError::Membership { index, source })?;
        let conf_state = self.raw.apply_conf_change(&change)?;
        let membership = Membership { conf_state, applied: index };
        let batch =
            Batch { hard_state: Some(&self.hard_state), membership: Some(&membership), ..Batch::default() };
        let log = &mut self.raw.mut_store().log;
        self.watchdog.watch(|| log.write(batch, Durability::Synced))?;
        self.unsaved_commit = false;
        Ok(())
    }

    /// Hands an outcome to the proposer that waits for this entry, if it is the entry that was proposed.
    fn answer(&mut self, position: Position, outcome: Option<S::Outcome>) {
        let Some(waiter) = self.waiters.front_mut().filter(|w| w.first <= position.index) else {
            return;
        };
        if waiter.term != position.term {
            // Another leader's entry stands where ours was.
            while let Some(lost) = self.waiters.pop_front() {
                lost.reply.fail(ProposeError::LeadershipLost);
            }
            return;
        }
        if let (Reply::Commands { outcomes, .. }, Some(outcome)) = (&mut waiter.reply, outcome) {
            outcomes.push((position.index, outcome));
        }
        if waiter.last == position.index
            && let Some(waiter) = self.waiters.pop_front()
        {
            self.finished.push(waiter.reply);
        }
    }

    fn fail_lost_waiters(&mut self) {
        let (role, term) = (self.raw.raft.state, self.raw.raft.term);
        if self.waiters.front().is_some_and(|w| role != StateRole::Leader || w.term != term) {
            for waiter in self.waiters.drain(..) {
                waiter.reply.fail(ProposeError::LeadershipLost);
            }
        }
    }

    /// Shows the new state, then answers: who has an answer finds its effect in the published state.
    fn publish(&mut self) {
        let raft = &self.raw.raft;
        let new = Published {
            state: self.state.clone(),
            epoch: Epoch(raft.term),
            // A leader may only act on the state once it has applied everything that leaders before it committed,
            // and an applied entry of its own term shows that.
            leader: raft.state == StateRole::Leader && self.applied.term == raft.term,
            applied: self.applied.index,
            committed: raft.raft_log.committed,
            leader_id: (raft.leader_id != 0).then_some(raft.leader_id),
            member_id: raft.id,
        };
        self.published.send_if_modified(|old| {
            let changed = !old.same(&new);
            if changed {
                *old = new;
            }
            changed
        });
        for reply in self.finished.drain(..) {
            reply.succeed();
        }
    }

    /// Starts writing a snapshot, on a thread of its own, when enough has been applied since the last or a member needs one.
    fn maybe_snapshot(&mut self) {
        let wanted = self.raw.store().take_snapshot_wanted();
        let entries = self.applied.index - self.snapshot_index;
        let due =
            entries >= self.policy.every_entries || self.bytes_since_snapshot >= self.policy.every_bytes;
        if entries == 0 || self.snapshot_writer.is_some() || !(due || wanted) {
            return;
        }
        let position = self.applied;
        let conf_state = self.raw.raft.prs().conf().to_conf_state();
        let (state, snapshots, to_self) =
            (self.state.clone(), self.raw.store().snapshots.clone(), self.to_self.clone());
        let writer = thread::Builder::new().name("snapshot".into()).spawn(move || {
            let result = snapshots.write(position, &conf_state, &*state);
            let membership = Membership { conf_state, applied: position.index };
            // The loop may have ended; the file is then found useless and removed at the next start.
            let _ = to_self.send(Input::SnapshotWritten { position, membership, result });
        });
        match writer {
            Ok(writer) => self.snapshot_writer = Some(writer),
            Err(error) => tracing::warn!(%error, "cannot start a thread to write a snapshot"),
        }
        self.bytes_since_snapshot = 0;
    }

    fn snapshot_written(
        &mut self,
        position: Position,
        membership: Membership,
        result: Result<(), SnapshotError>,
    ) -> Result<(), FatalError> {
        self.snapshot_writer = None;
        if let Err(error) = result {
            // The log still has everything. If the disk is full, the log's own next write will be what is fatal.
            tracing::error!(%error, "no snapshot was written; the log stays as long as it is");
            return Ok(());
        }
        if position.index <= self.snapshot_index {
            return Ok(());
        }
        let log = &mut self.raw.mut_store().log;
        // A change applied while the file was being written has stored a newer membership.
        let newer = log.load().membership.applied > position.index;
        let batch = Batch {
            hard_state: Some(&self.hard_state),
            membership: (!newer).then_some(&membership),
            snapshot: Some(position),
            ..Batch::default()
        };
        self.watchdog.watch(|| log.write(batch, Durability::Synced))?;
        self.unsaved_commit = false;
        self.snapshot_index = position.index;
        self.compact_through = position.index.saturating_sub(self.policy.margin);
        self.raw.store().snapshots.keep_only(position);
        tracing::debug!(index = position.index, "snapshot written");
        Ok(())
    }

    /// Drops some of the entries that the snapshot covers; says whether there are more. Not synced: what a crash brings
    /// back is dropped again.
    fn compact_step(&mut self) -> Result<bool, FatalError> {
        let log = &mut self.raw.mut_store().log;
        let first = log.first_index();
        if first > self.compact_through {
            return Ok(false);
        }
        let through = self.compact_through.min(first + COMPACT_STEP);
        log.write(Batch { compact_through: Some(through), ..Batch::default() }, Durability::Buffered)?;
        Ok(through < self.compact_through)
    }

    fn finish(mut self) -> Result<(), FatalError> {
        for waiter in self.waiters.drain(..) {
            waiter.reply.fail(ProposeError::Stopped);
        }
        if self.unsaved_commit {
            let batch = Batch { hard_state: Some(&self.hard_state), ..Batch::default() };
            let log = &mut self.raw.mut_store().log;
            self.watchdog.watch(|| log.write(batch, Durability::Synced))?;
        }
        if let Some(writer) = self.snapshot_writer.take() {
            // A panic there was printed by the thread itself and costs only the snapshot.
            let _ = writer.join();
        }
        Ok(())
    }
}

fn apply_command<S: StateMachine>(state: &mut S, entry: &Entry) -> Result<Option<S::Outcome>, FatalError> {
    // A new leader's first entry is empty; membership changes are not for the state machine.
    if entry.data.is_empty() || entry.get_entry_type() != EntryType::EntryNormal {
        return Ok(None);
    }
    let command =
        decode_command(&entry.data).map_err(|source| FatalError::Command { index: entry.index, source })?;
    Ok(Some(state.apply(entry.index, command)))
}
