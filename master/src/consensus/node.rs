//! The group's state and its rounds, without a thread or a clock: whoever drives it says what has come in and what time it is.
//!
//! One round: take what has come in, let Raft work it into a `Ready`, write that in one durable batch, apply what is
//! committed, publish, answer.

use super::log_store::{Batch, Durability, LogStore, Membership, Position, StoreError};
use super::logging;
use super::membership::{MembershipStep, conf_change_of, contains, refusal, to_conf_change};
use super::raft_storage::{Failure, RaftStorage};
use super::replies::{Answer, Outcomes, Reads, Reply, SnapshotWaiters, Waiter};
use super::snapshots::{SnapshotError, SnapshotStore};
use super::state_machine::{CommandError, StateMachine, decode_command};
use super::transport::Transport;
use super::view::{LeadProof, MembersView, PeerView};
use super::watchdog::Watchdog;
use super::{ProposeError, Published};
use firesteel_common::Epoch;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, HardState, Message, MessageType};
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, Ready, SnapshotStatus, StateRole};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// Bytes of proposals that go into one `Ready`, and of entries that one round applies.
pub const GROUP_BYTES: u64 = 4 << 20;
const MAX_UNCOMMITTED_BYTES: u64 = 32 << 20;
const MAX_MESSAGE_BYTES: u64 = 256 << 10;
const MAX_INFLIGHT_MESSAGES: usize = 64;
/// Entries dropped per round while the log is being compacted: proposals must not wait for the whole of it.
const COMPACT_STEP: u64 = 250;
/// A live follower that is slow may hold up the truncation of the log to so many margins behind the snapshot.
const MAX_MARGINS: u64 = 10;
/// The state is hashed at the indexes that this divides.
const HASH_EVERY: u64 = 1024;
/// A view in which only times of contact differ is published this often.
const CONTACTS_EVERY: Duration = Duration::from_secs(1);

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
        "this master was removed from the cluster: to add it again, start it with --join and an empty --data-dir \
         (as a new member)"
    )]
    Removed,
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

/// Raft's clock.
#[derive(Debug, Clone, Copy)]
pub struct RaftTiming {
    pub tick: Duration,
    /// An election after one to two times so many.
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self { tick: Duration::from_millis(50), election_ticks: 20, heartbeat_ticks: 4 }
    }
}

impl RaftTiming {
    pub fn election_timeout(&self) -> Duration {
        self.tick * u32::try_from(self.election_ticks).unwrap_or(u32::MAX)
    }
}

/// What reaches the group.
pub enum Input<S: StateMachine> {
    Propose(Proposal<S>),
    ChangeMembership {
        steps: Vec<MembershipStep>,
        answer: Answer<()>,
    },
    Transfer {
        to: Option<u64>,
        answer: Answer<()>,
    },
    SnapshotNow(Answer<Position>),
    ReadBarrier(Answer<()>),
    Message(Message),
    Unreachable(u64),
    SnapshotSent {
        to: u64,
        ok: bool,
    },
    ConnectionLost(u64),
    /// A peer says that this member has been removed.
    Removed,
    SnapshotWritten {
        position: Position,
        membership: Membership,
        result: Result<(), SnapshotError>,
    },
    Stop,
}

impl<S: StateMachine> Input<S> {
    /// What it adds to the next batch.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Propose(proposal) => proposal.commands.iter().map(|c| c.len() as u64).sum(),
            _ => 0,
        }
    }
}

pub struct Proposal<S: StateMachine> {
    /// Encoded commands; each becomes one entry, all of them consecutive.
    pub commands: Vec<Vec<u8>>,
    pub answer: Answer<Outcomes<S>>,
    /// Bounds what is queued; given back with the answer.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Where snapshots are written.
pub enum SnapshotWriter<S: StateMachine> {
    /// On a thread of their own, which reports to the group's queue.
    Background(Sender<Input<S>>),
    /// Within the round.
    Inline,
}

/// The election timeout in a term, in ticks, instead of a random one.
pub type ElectionTimeout = Box<dyn Fn(u64) -> usize + Send>;

/// Everything that a node is built from.
pub struct Parts<S: StateMachine, L, P, T> {
    pub log: L,
    pub snapshots: P,
    pub transport: T,
    pub watchdog: Watchdog,
    pub failure: Failure,
    pub timing: RaftTiming,
    pub policy: SnapshotPolicy,
    pub writer: SnapshotWriter<S>,
    pub election_timeout: Option<ElectionTimeout>,
}

/// A planned change of leaders that somebody waits for.
struct Transfer {
    term: u64,
    deadline: Instant,
    answer: Answer<()>,
}

pub struct Node<S: StateMachine, L: LogStore, P: SnapshotStore, T> {
    raw: RawNode<RaftStorage<L, P>>,
    state: Arc<S>,
    applied: Position,
    /// Newest known; what is on disk may lag behind in `commit`, which Raft can work out again.
    hard_state: HardState,
    unsaved_commit: bool,
    /// This member has applied its own removal.
    removed: bool,
    waiters: VecDeque<Waiter<S>>,
    /// Answers that wait for the state they speak of to be published.
    finished: Vec<Reply<S>>,
    /// Of the term in which they came.
    reads: Reads,
    reads_term: u64,
    transfer: Option<Transfer>,
    undelivered: Vec<(u64, bool)>,
    /// When each member was last heard of, in the newest term it could know.
    contacts: BTreeMap<u64, Instant>,
    writer: SnapshotWriter<S>,
    being_written: Option<JoinHandle<()>>,
    snapshot: Option<(Position, u64)>,
    snapshot_index: u64,
    snapshot_waiters: SnapshotWaiters,
    bytes_since_snapshot: u64,
    /// Entries up to here are not needed any more.
    compact_through: u64,
    hash: Option<(u64, u64)>,
    published: watch::Sender<Published<S>>,
    members: watch::Sender<Arc<MembersView>>,
    contacts_published: Instant,
    /// When this member last led with a majority that it had heard of.
    proof: LeadProof,
    transport: T,
    watchdog: Watchdog,
    timing: RaftTiming,
    policy: SnapshotPolicy,
    election_timeout: Option<ElectionTimeout>,
    now: Instant,
}

/// What a node shows of itself.
pub struct Views<S> {
    pub published: watch::Receiver<Published<S>>,
    pub members: watch::Receiver<Arc<MembersView>>,
}

impl<S: StateMachine, L: LogStore, P: SnapshotStore, T: Transport> Node<S, L, P, T> {
    /// Brings the state machine up to what is known to be applied: newest snapshot, then the log behind it. A member that
    /// votes alone leads after its first round.
    pub fn new(parts: Parts<S, L, P, T>, now: Instant) -> Result<(Self, Views<S>), FatalError> {
        let Parts { log, snapshots, transport, watchdog, failure, timing, policy, writer, election_timeout } =
            parts;
        let loaded = log.load();
        let conf_state = &loaded.membership.conf_state;
        if !conf_state.voters.is_empty() && !contains(conf_state, loaded.identity.raft_id) {
            return Err(FatalError::Removed);
        }
        let mut state = match loaded.snapshot {
            Some(position) => snapshots.parse(position, &snapshots.read(position)?.state)?,
            None => S::default(),
        };
        let snapshot_index = loaded.snapshot.unwrap_or(loaded.truncated).index;
        // Raft hands out what lies behind the membership's index. What lies before, membership changes among it, has
        // been worked into the stored membership: only the commands are missing, because the state is not on disk.
        let mut bytes_since_snapshot = 0;
        let mut hash = None;
        let mut next = snapshot_index + 1;
        while next <= loaded.membership.applied {
            let entries = log.entries(next, loaded.membership.applied + 1, Some(GROUP_BYTES))?;
            for entry in &entries {
                bytes_since_snapshot += entry.data.len() as u64;
                apply_command(&mut state, entry)?;
                hash = hash_at(entry.index, &state).or(hash);
            }
            next += entries.len() as u64;
        }
        let applied =
            Position { index: loaded.membership.applied, term: log.term(loaded.membership.applied)? };
        snapshots.keep_only(loaded.snapshot.unwrap_or(loaded.truncated));
        let snapshot =
            loaded.snapshot.map(|position| (position, snapshots.written_ms(position).unwrap_or_default()));

        let config = Config {
            id: loaded.identity.raft_id,
            election_tick: timing.election_ticks,
            heartbeat_tick: timing.heartbeat_ticks,
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
        let (published, published_view) = watch::channel(Published {
            state: state.clone(),
            epoch: Epoch(loaded.hard_state.term),
            leader: false,
            applied: applied.index,
            committed: loaded.hard_state.commit,
            leader_id: None,
            member_id: loaded.identity.raft_id,
        });
        let (members, members_view) = watch::channel(Arc::default());
        let mut node = Self {
            raw,
            state,
            applied,
            hard_state: loaded.hard_state,
            unsaved_commit: false,
            removed: false,
            waiters: VecDeque::new(),
            finished: Vec::new(),
            reads: Reads::default(),
            reads_term: 0,
            transfer: None,
            undelivered: Vec::new(),
            contacts: BTreeMap::new(),
            writer,
            being_written: None,
            snapshot,
            snapshot_index,
            snapshot_waiters: SnapshotWaiters::default(),
            bytes_since_snapshot,
            compact_through: snapshot_index.saturating_sub(policy.margin),
            hash,
            published,
            members,
            contacts_published: now,
            proof: LeadProof::default(),
            transport,
            watchdog,
            timing,
            policy,
            election_timeout,
            now,
        };
        node.fix_election_timeout();
        if node.votes_alone() {
            // Nobody else could be leading: waiting for the election timeout would only delay the start.
            node.raw.campaign()?;
        }
        node.renew_view();
        Ok((node, Views { published: published_view, members: members_view }))
    }

    pub fn log(&self) -> &L {
        &self.raw.store().log
    }

    fn votes_alone(&self) -> bool {
        let members = self.raw.raft.prs().conf().to_conf_state();
        members.voters == [self.raw.raft.id] && members.voters_outgoing.is_empty()
    }

    /// Takes what has come in, and a tick of the clock if it is time for one, and does all that follows from it.
    pub fn round(
        &mut self,
        now: Instant,
        inputs: impl IntoIterator<Item = Input<S>>,
        tick: bool,
    ) -> Result<(), FatalError> {
        self.now = now;
        for input in inputs {
            self.take(input)?;
            self.fix_election_timeout();
        }
        if tick {
            self.raw.tick();
            self.fix_election_timeout();
        }
        self.work()?;
        if tick {
            self.renew_compaction();
            self.renew_view();
        }
        Ok(())
    }

    /// Raft chooses anew whenever it resets its timer.
    fn fix_election_timeout(&mut self) {
        if let Some(choose) = &self.election_timeout {
            let ticks = choose(self.raw.raft.term);
            self.raw.raft.set_randomized_election_timeout(ticks);
        }
    }

    fn take(&mut self, input: Input<S>) -> Result<(), FatalError> {
        match input {
            Input::Propose(proposal) => self.propose(proposal),
            Input::ChangeMembership { steps, answer } => self.propose_membership(&steps, answer),
            Input::Transfer { to, answer } => self.start_transfer(to, answer),
            Input::SnapshotNow(answer) => {
                self.snapshot_waiters.add(self.applied.index, answer);
            }
            Input::ReadBarrier(answer) => {
                if self.raw.raft.state == StateRole::Leader {
                    self.reads_term = self.raw.raft.term;
                    self.reads.add(answer);
                } else {
                    // The caller may have gone away.
                    let _ = answer.send(Err(self.not_leader()));
                }
            }
            Input::Message(message) => self.step(message),
            Input::Unreachable(id) => self.raw.report_unreachable(id),
            Input::SnapshotSent { to, ok } => {
                let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.raw.report_snapshot(to, status);
            }
            Input::ConnectionLost(from) => {
                let raft = &mut self.raw.raft;
                if raft.state == StateRole::Follower && raft.leader_id == from {
                    // What remains is the random part, which keeps followers from standing at the same time.
                    raft.election_elapsed = raft.election_elapsed.max(raft.election_timeout());
                }
            }
            Input::Removed => return Err(FatalError::Removed),
            Input::SnapshotWritten { position, membership, result } => {
                self.being_written = None;
                self.snapshot_written(position, membership, result)?;
            }
            Input::Stop => {}
        }
        Ok(())
    }

    fn step(&mut self, message: Message) {
        // A proposal is made where the caller waits; raft 0.7 would take a forwarded one with nobody to answer.
        if message.get_msg_type() == MessageType::MsgPropose {
            return;
        }
        // Raft would end the process over a commit index that it cannot have been told of by an honest leader.
        if message.get_msg_type() == MessageType::MsgHeartbeat
            && message.commit > self.raw.raft.raft_log.last_index()
        {
            tracing::warn!(
                from = message.from,
                "a heartbeat speaks of entries that were never sent: ignored"
            );
            return;
        }
        // What an old term sends may have been under way for long; strangers are not remembered.
        let known =
            self.raw.raft.prs().get(message.from).is_some() || message.from == self.raw.raft.leader_id;
        if message.term >= self.raw.raft.term && known {
            self.contacts.insert(message.from, self.now);
        }
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(%error, "a message was not taken");
        }
    }

    fn not_leader(&self) -> ProposeError {
        let leader = self.raw.raft.leader_id;
        ProposeError::NotLeader { leader: (leader != 0).then_some(leader), term: self.raw.raft.term }
    }

    /// Leads, and has applied everything that leaders before it committed, which an applied entry of its own term shows.
    fn leads(&self) -> bool {
        let raft = &self.raw.raft;
        raft.state == StateRole::Leader && self.applied.term == raft.term && !self.removed
    }

    fn propose(&mut self, proposal: Proposal<S>) {
        let Proposal { commands, answer, permit } = proposal;
        let reply = Reply::Commands { outcomes: Vec::with_capacity(commands.len()), answer, _permit: permit };
        if self.raw.raft.state != StateRole::Leader {
            return reply.fail(self.not_leader());
        }
        let entries: Vec<Entry> =
            commands.into_iter().map(|data| Entry { data: data.into(), ..Default::default() }).collect();
        let first = self.raw.raft.raft_log.last_index() + 1;
        let last = first + entries.len() as u64 - 1;
        let mut message = Message { from: self.raw.raft.id, entries: entries.into(), ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        match self.raw.step(message) {
            Ok(()) => self.wait_for(first, last, reply),
            Err(_) => reply.fail(ProposeError::Busy),
        }
    }

    fn propose_membership(&mut self, steps: &[MembershipStep], answer: Answer<()>) {
        let reply = Reply::Membership(answer);
        if self.raw.raft.state != StateRole::Leader {
            return reply.fail(self.not_leader());
        }
        // Raft turns a change into an empty entry when one is under way; ask first, to be able to say so.
        if self.raw.raft.has_pending_conf() || !self.leads() {
            return reply.fail(ProposeError::Busy);
        }
        let change = to_conf_change(steps);
        let own = self.raw.raft.id;
        // Raft would go on leading without a vote.
        let demoted = steps.contains(&MembershipStep::AddLearner(own));
        let wrong = if steps.is_empty() {
            Some("it is empty".to_owned())
        } else if demoted {
            Some("the leader must hand over before it can give up its vote".to_owned())
        } else {
            refusal(self.raw.raft.prs(), &change)
        };
        if let Some(wrong) = wrong {
            return reply.fail(ProposeError::InvalidChange(wrong));
        }
        let context = match serde_json::to_vec(steps) {
            Ok(context) => context,
            Err(error) => return reply.fail(ProposeError::NotEncodable(error.to_string())),
        };
        let first = self.raw.raft.raft_log.last_index() + 1;
        match self.raw.propose_conf_change(context, change) {
            Ok(()) => self.wait_for(first, first, reply),
            Err(_) => reply.fail(ProposeError::Busy),
        }
    }

    fn wait_for(&mut self, first: u64, last: u64, reply: Reply<S>) {
        self.waiters.push_back(Waiter { first, last, term: self.raw.raft.term, reply });
    }

    fn start_transfer(&mut self, to: Option<u64>, answer: Answer<()>) {
        let raft = &self.raw.raft;
        let result = if raft.state != StateRole::Leader {
            Err(self.not_leader())
        } else if to == Some(raft.id) {
            Ok(None)
        } else if self.transfer.is_some() {
            Err(ProposeError::Busy)
        } else {
            let target = to.or_else(|| self.furthest_voter());
            match target.filter(|id| raft.prs().conf().voters().contains(*id)) {
                Some(target) => Ok(Some(target)),
                None => Err(ProposeError::TransferFailed),
            }
        };
        match result {
            Ok(Some(target)) => {
                let deadline = self.now + self.timing.election_timeout() * 2;
                self.transfer = Some(Transfer { term: raft.term, deadline, answer });
                self.raw.transfer_leader(target);
            }
            // Nobody may be listening any more.
            Ok(None) => drop(answer.send(Ok(()))),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// Of the other voters that live, the one that has the most of the log.
    fn furthest_voter(&self) -> Option<u64> {
        let raft = &self.raw.raft;
        raft.prs()
            .iter()
            .filter(|(id, _)| {
                **id != raft.id && raft.prs().conf().voters().contains(**id) && self.lives(**id)
            })
            .max_by_key(|(id, progress)| (progress.matched, **id))
            .map(|(id, _)| *id)
    }

    /// Heard of within the election timeout.
    fn lives(&self, id: u64) -> bool {
        let limit = self.timing.election_timeout();
        id == self.raw.raft.id
            || self.contacts.get(&id).is_some_and(|at| self.now.saturating_duration_since(*at) < limit)
    }

    fn watch_transfer(&mut self) {
        let Some(transfer) = &self.transfer else { return };
        let raft = &self.raw.raft;
        let leader_known = raft.leader_id != 0 && raft.leader_id != raft.id;
        // Raft gives up by itself after one election timeout.
        let given_up =
            raft.state == StateRole::Leader && (raft.lead_transferee.is_none() || raft.term != transfer.term);
        let result = if raft.state != StateRole::Leader && leader_known && raft.term > transfer.term {
            Ok(())
        } else if given_up || self.now >= transfer.deadline {
            Err(ProposeError::TransferFailed)
        } else {
            return;
        };
        if let Some(Transfer { answer, .. }) = self.transfer.take() {
            let _ = answer.send(result);
        }
    }

    /// Works off everything that Raft has ready.
    fn work(&mut self) -> Result<(), FatalError> {
        loop {
            self.ask_for_reads();
            self.leave_joint();
            if !self.raw.has_ready() {
                break;
            }
            let mut ready = self.raw.ready();
            self.send(ready.take_messages());
            self.persist(&ready)?;
            self.send(ready.take_persisted_messages());
            for read in ready.take_read_states() {
                self.reads.confirm(&read.request_ctx, read.index);
            }
            self.apply(ready.take_committed_entries())?;
            self.stop_if_removed()?;
            let mut light = self.raw.advance_append(ready);
            if let Some(commit) = light.commit_index() {
                // Not worth a sync of its own: the state machine is rebuilt from the log at every start, and a group
                // works its commit index out again.
                self.hard_state.commit = commit;
                self.unsaved_commit = true;
            }
            self.send(light.take_messages());
            self.apply(light.take_committed_entries())?;
            self.stop_if_removed()?;
            self.raw.advance_apply();
            self.fix_election_timeout();
            // Only now: between `ready` and `advance` nothing may be stepped.
            self.report_undelivered();
            self.fail_lost_waiters();
            self.publish();
        }
        self.fail_lost_waiters();
        self.publish();
        self.watch_transfer();
        self.maybe_snapshot()
    }

    /// Raft must not be touched any more once this member has no place in it. The commit that removed it has been sent.
    fn stop_if_removed(&mut self) -> Result<(), FatalError> {
        if self.removed {
            self.publish();
            self.renew_view();
            return Err(FatalError::Removed);
        }
        Ok(())
    }

    fn ask_for_reads(&mut self) {
        // Before the first commit of its term a leader does not know yet what is committed, and Raft would drop this.
        if !self.reads.is_queued() || !self.leads() {
            return;
        }
        let known = |raft: &raft::Raft<_>| raft.pending_read_count() + raft.ready_read_count();
        let before = known(&self.raw.raft);
        let context = self.reads.ask();
        self.raw.read_index(context);
        if known(&self.raw.raft) == before {
            self.reads.dropped();
        }
    }

    /// A joint configuration that an earlier leader left over.
    fn leave_joint(&mut self) {
        let raft = &self.raw.raft;
        let joint = || !raft.prs().conf().to_conf_state().voters_outgoing.is_empty();
        if self.leads() && !raft.has_pending_conf() && joint() {
            let left = self.raw.propose_conf_change(Vec::new(), ConfChangeV2::default());
            if let Err(error) = left {
                // A transfer is under way, or too much else; the next round tries again.
                tracing::debug!(%error, "a joint configuration cannot be left in this round; the next one tries again");
            }
        }
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
            self.hash = hash_at(position.index, &*self.state).or(self.hash);
            self.applied = position;
            self.note_snapshot(position);
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

    fn note_snapshot(&mut self, position: Position) {
        let written_ms = self.raw.store().snapshots.written_ms(position).unwrap_or_default();
        self.snapshot = Some((position, written_ms));
        self.snapshot_index = position.index;
        self.snapshot_waiters.written(position);
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), FatalError> {
        for entry in entries {
            let position = Position { index: entry.index, term: entry.term };
            self.bytes_since_snapshot += entry.data.len() as u64;
            let mut refused = None;
            let outcome = match entry.get_entry_type() {
                EntryType::EntryNormal => apply_command(Arc::make_mut(&mut self.state), &entry)?,
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    refused = self.apply_membership(&entry)?;
                    None
                }
            };
            self.applied = position;
            self.hash = hash_at(position.index, &*self.state).or(self.hash);
            self.answer(position, outcome, refused);
        }
        Ok(())
    }

    /// Returns why the change was refused, which every member does alike.
    fn apply_membership(&mut self, entry: &Entry) -> Result<Option<String>, FatalError> {
        let index = entry.index;
        let change = conf_change_of(entry).map_err(|source| FatalError::Membership { index, source })?;
        if let Some(refused) = refusal(self.raw.raft.prs(), &change) {
            tracing::warn!(index, refused, "a membership change had no effect");
            return Ok(Some(refused));
        }
        let conf_state = self.raw.apply_conf_change(&change)?;
        self.removed = !contains(&conf_state, self.raw.raft.id);
        let membership = Membership { conf_state, applied: index };
        let batch =
            Batch { hard_state: Some(&self.hard_state), membership: Some(&membership), ..Batch::default() };
        let log = &mut self.raw.mut_store().log;
        self.watchdog.watch(|| log.write(batch, Durability::Synced))?;
        self.unsaved_commit = false;
        Ok(None)
    }

    /// Hands an outcome to the proposer that waits for this entry, if it is the entry that was proposed.
    fn answer(&mut self, position: Position, outcome: Option<S::Outcome>, refused: Option<String>) {
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
            match refused {
                Some(why) => waiter.reply.fail(ProposeError::InvalidChange(why)),
                None => self.finished.push(waiter.reply),
            }
        }
    }

    fn fail_lost_waiters(&mut self) {
        let (role, term) = (self.raw.raft.state, self.raw.raft.term);
        if self.waiters.front().is_some_and(|w| role != StateRole::Leader || w.term != term) {
            for waiter in self.waiters.drain(..) {
                waiter.reply.fail(ProposeError::LeadershipLost);
            }
        }
        if !self.reads.is_empty() && (role != StateRole::Leader || self.reads_term != term) {
            let error = self.not_leader();
            self.reads.fail(&error);
        }
    }

    /// Shows the new state, then answers: who has an answer finds its effect in the published state.
    fn publish(&mut self) {
        let raft = &self.raw.raft;
        let new = Published {
            state: self.state.clone(),
            epoch: Epoch(raft.term),
            leader: self.leads(),
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
        self.reads.answer(self.applied.index);
    }

    pub fn proof(&self) -> LeadProof {
        self.proof.clone()
    }

    fn renew_view(&mut self) {
        let raft = &self.raw.raft;
        let group = raft.prs();
        let leads = raft.state == StateRole::Leader;
        let mut peers = BTreeMap::new();
        if leads {
            for (id, progress) in group.iter().filter(|(id, _)| **id != raft.id) {
                let peer = PeerView {
                    matched: progress.matched,
                    last_contact: self.contacts.get(id).copied(),
                    snapshotting: progress.state == ProgressState::Snapshot,
                };
                peers.insert(*id, peer);
            }
        }
        let quorum = match raft.leader_id {
            _ if self.removed => false,
            0 => false,
            _ if leads => {
                group.has_quorum(&group.iter().map(|(id, _)| *id).filter(|id| self.lives(*id)).collect())
            }
            leader => self.lives(leader),
        };
        if leads && quorum {
            self.proof.renew(self.now);
        }
        let log = &self.raw.store().log;
        let view = MembersView {
            term: raft.term,
            leader_id: (raft.leader_id != 0).then_some(raft.leader_id),
            member_id: raft.id,
            leading: self.leads(),
            voters: group.conf().voters().ids().iter().collect(),
            learners: group.conf().learners().iter().chain(group.conf().learners_next()).copied().collect(),
            first_index: log.first_index(),
            last_index: log.last_index(),
            committed: raft.raft_log.committed,
            applied: self.applied.index,
            snapshot: self.snapshot,
            peers,
            quorum,
            hash: self.hash,
        };
        let rest_is_due = self.now.saturating_duration_since(self.contacts_published) >= CONTACTS_EVERY;
        let changed = self.members.send_if_modified(|old| {
            let changed = if rest_is_due { **old != view } else { !old.same_but_contacts(&view) };
            if changed {
                *old = Arc::new(view);
            }
            changed
        });
        if changed {
            self.contacts_published = self.now;
        }
    }

    /// Writes a snapshot when enough has been applied since the last, or a member or an operator needs one.
    fn maybe_snapshot(&mut self) -> Result<(), FatalError> {
        let wanted = self.raw.store().take_snapshot_wanted() || !self.snapshot_waiters.is_empty();
        let entries = self.applied.index - self.snapshot_index;
        if entries == 0 {
            // The newest snapshot is as new as one could be.
            self.snapshot_waiters.written(self.applied);
            return Ok(());
        }
        let due =
            entries >= self.policy.every_entries || self.bytes_since_snapshot >= self.policy.every_bytes;
        if self.being_written.is_some() || !(due || wanted) {
            return Ok(());
        }
        self.bytes_since_snapshot = 0;
        let position = self.applied;
        let conf_state = self.raw.raft.prs().conf().to_conf_state();
        let membership = Membership { conf_state: conf_state.clone(), applied: position.index };
        let snapshots = self.raw.store().snapshots.clone();
        let to_self = match &self.writer {
            SnapshotWriter::Inline => {
                let result = snapshots.write(position, &conf_state, &*self.state);
                return self.snapshot_written(position, membership, result);
            }
            SnapshotWriter::Background(to_self) => to_self.clone(),
        };
        let state = self.state.clone();
        let writer = thread::Builder::new().name("snapshot".into()).spawn(move || {
            let result = snapshots.write(position, &conf_state, &*state);
            // The loop may have ended; the file is then found useless and removed at the next start.
            let _ = to_self.send(Input::SnapshotWritten { position, membership, result });
        });
        match writer {
            Ok(writer) => self.being_written = Some(writer),
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread to write a snapshot");
                self.snapshot_waiters.fail(&ProposeError::SnapshotFailed(error.to_string()));
            }
        }
        Ok(())
    }

    fn snapshot_written(
        &mut self,
        position: Position,
        membership: Membership,
        result: Result<(), SnapshotError>,
    ) -> Result<(), FatalError> {
        if let Err(error) = result {
            // The log still has everything. If the disk is full, the log's own next write will be what is fatal.
            tracing::error!(%error, "no snapshot was written; the log stays as long as it is");
            self.snapshot_waiters.fail(&ProposeError::SnapshotFailed(error.to_string()));
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
        self.note_snapshot(position);
        self.renew_compaction();
        self.raw.store().snapshots.keep_only(position);
        tracing::debug!(index = position.index, "snapshot written");
        Ok(())
    }

    /// How much of the log nobody needs: a leader keeps what live followers lack, within limits, because sending entries
    /// is cheaper than sending the whole state.
    fn renew_compaction(&mut self) {
        let behind =
            |margins: u64| self.snapshot_index.saturating_sub(self.policy.margin.saturating_mul(margins));
        let mut through = behind(1);
        let raft = &self.raw.raft;
        if raft.state == StateRole::Leader {
            let slowest = raft
                .prs()
                .iter()
                .filter(|(id, _)| **id != raft.id && self.lives(**id))
                .map(|(_, progress)| progress.matched.max(progress.pending_snapshot))
                .min();
            if let Some(slowest) = slowest {
                through = through.min(slowest.max(behind(MAX_MARGINS)));
            }
        }
        self.compact_through = through;
    }

    /// Drops some of the entries that the snapshot covers; says whether there are more. Not synced: what a crash brings
    /// back is dropped again.
    pub fn compact_step(&mut self) -> Result<bool, FatalError> {
        let log = &mut self.raw.mut_store().log;
        let first = log.first_index();
        if first > self.compact_through {
            return Ok(false);
        }
        let through = self.compact_through.min(first + COMPACT_STEP);
        log.write(Batch { compact_through: Some(through), ..Batch::default() }, Durability::Buffered)?;
        Ok(through < self.compact_through)
    }

    pub fn finish(mut self) -> Result<(), FatalError> {
        for waiter in self.waiters.drain(..) {
            waiter.reply.fail(ProposeError::Stopped);
        }
        if self.unsaved_commit {
            let batch = Batch { hard_state: Some(&self.hard_state), ..Batch::default() };
            let log = &mut self.raw.mut_store().log;
            self.watchdog.watch(|| log.write(batch, Durability::Synced))?;
        }
        if let Some(writer) = self.being_written.take() {
            // A panic there was printed by the thread itself and costs only the snapshot.
            let _ = writer.join();
        }
        Ok(())
    }
}

fn hash_at<S: StateMachine>(index: u64, state: &S) -> Option<(u64, u64)> {
    index.is_multiple_of(HASH_EVERY).then(|| (index, state.hash()))
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
