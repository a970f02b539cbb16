//! The whole group, loop and store, over a small state machine.

use super::log_store::{BOOTSTRAP, FORMAT_VERSION};
use super::raft_storage::Failure;
use super::*;
use raft::eraftpb::{ConfState, MessageType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

const DEADLINE: Duration = Duration::from_secs(60);

/// Remembers every command with its index: anything lost, doubled or out of order shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Journal {
    applied: Vec<(u64, String)>,
}

impl StateMachine for Journal {
    type Command = String;
    type Outcome = usize;
    fn apply(&mut self, index: u64, command: String) -> usize {
        self.applied.push((index, command));
        self.applied.len()
    }
}

type Group = Consensus<Journal>;

fn small_snapshots() -> SnapshotPolicy {
    SnapshotPolicy { every_entries: 100, every_bytes: u64::MAX, margin: 10 }
}

async fn open(dir: &Path) -> (Group, ConsensusThread) {
    open_with(dir, Settings::default()).await
}

async fn open_with(dir: &Path, settings: Settings) -> (Group, ConsensusThread) {
    let (group, thread) = Group::open_with(dir, settings).unwrap();
    until(&group, |p| p.leader).await;
    (group, thread)
}

async fn until<S: StateMachine>(
    group: &Consensus<S>,
    condition: impl Fn(&Published<S>) -> bool,
) -> Published<S> {
    let mut state = group.state();
    let found = tokio::time::timeout(DEADLINE, state.wait_for(|p| condition(p))).await.expect("in time");
    found.expect("the loop runs").clone()
}

async fn propose(group: &Group, commands: &[&str]) -> Vec<(u64, usize)> {
    group.propose(commands.iter().map(|c| (*c).to_owned()).collect()).await.unwrap()
}

fn journal(group: &Group) -> Vec<String> {
    group.state().borrow().state.applied.iter().map(|(_, c)| c.clone()).collect()
}

#[tokio::test]
async fn a_new_directory_leads_at_once_and_remembers() {
    let temp = tempfile::tempdir().unwrap();
    let (group, thread) = open(temp.path()).await;
    assert_eq!(propose(&group, &[]).await, []);
    let first = propose(&group, &["a", "b"]).await;
    assert_eq!(first.iter().map(|(_, outcome)| *outcome).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(first[0].0 + 1, first[1].0, "consecutive places in the log");
    let before = group.state().borrow().clone();
    assert_eq!(before.applied, first[1].0, "the published state shows what was answered");
    let identity = group.identity().clone();
    assert!(identity.raft_id != 0 && before.leader_id == Some(identity.raft_id));
    group.stop().await;
    thread.ended().await.unwrap();

    let (group, _thread) = open(temp.path()).await;
    let after = group.state().borrow().clone();
    assert_eq!(after.state, before.state);
    assert!(after.epoch > before.epoch, "every leadership is a new epoch");
    assert_eq!(*group.identity(), identity);
    assert_eq!(propose(&group, &["c"]).await[0].1, 3);
    group.stop().await;
}

#[tokio::test]
async fn a_thousand_concurrent_proposals_are_applied_once_and_in_order() {
    let temp = tempfile::tempdir().unwrap();
    let (group, _thread) = open(temp.path()).await;
    let tasks: Vec<_> = (0..1000)
        .map(|n| {
            let group = group.clone();
            tokio::spawn(async move {
                let answer = group.propose(vec![format!("{n}a"), format!("{n}b")]).await.unwrap();
                // What one caller proposes together stands together.
                assert_eq!(answer[1].0, answer[0].0 + 1);
                (n, answer)
            })
        })
        .collect();
    let mut expected = BTreeMap::new();
    for task in tasks {
        let (n, answer) = task.await.unwrap();
        for ((index, _), suffix) in answer.into_iter().zip(["a", "b"]) {
            assert_eq!(expected.insert(index, format!("{n}{suffix}")), None);
        }
    }
    let expected: Vec<_> = expected.into_iter().collect();
    assert_eq!(group.state().borrow().state.applied, expected);
    assert!(expected.windows(2).all(|w| w[0].0 < w[1].0));
    group.stop().await;
    let (group, _thread) = open(temp.path()).await;
    assert_eq!(group.state().borrow().state.applied, expected);
    group.stop().await;
}

fn snapshot_files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir.join("raft/snapshots")).unwrap().map(|e| e.unwrap().path()).collect()
}

#[tokio::test]
async fn restarting_reads_the_snapshot_and_the_log_behind_it() {
    let temp = tempfile::tempdir().unwrap();
    let settings = || Settings { snapshots: small_snapshots(), ..Settings::default() };
    let mut expected = Vec::new();
    for round in 0..4 {
        let (group, _thread) = open_with(temp.path(), settings()).await;
        assert_eq!(journal(&group), expected, "round {round}");
        for n in 0..150 {
            let command = format!("{round}/{n}");
            propose(&group, &[&command]).await;
            expected.push(command);
        }
        group.stop().await;
        let files = snapshot_files(temp.path());
        assert!(!files.is_empty(), "round {round}");
    }
    // The log itself no longer has the beginning: what came back came from a snapshot.
    let log =
        SledStore::open(SledKv::open(&temp.path().join("raft/log")).unwrap(), Bootstrap::alone).unwrap();
    assert!(log.first_index() > 300, "{}", log.first_index());
    assert!(log.load().snapshot.is_some());
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_with_a_way_out() {
    let temp = tempfile::tempdir().unwrap();
    let (group, _thread) =
        open_with(temp.path(), Settings { snapshots: small_snapshots(), ..Settings::default() }).await;
    for n in 0..250 {
        propose(&group, &[&n.to_string()]).await;
    }
    group.stop().await;
    for file in snapshot_files(temp.path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let error = Group::open_with(temp.path(), Settings::default()).err().unwrap();
    assert!(
        matches!(error, OpenError::State(FatalError::Snapshot(SnapshotError::Corrupt { .. }))),
        "{error}"
    );
    assert!(error.to_string().contains("--data-dir"), "{error}");
}

#[tokio::test]
async fn one_directory_has_one_master() {
    let temp = tempfile::tempdir().unwrap();
    let (group, _thread) = open(temp.path()).await;
    let error = Group::open_with(temp.path(), Settings::default()).err().unwrap();
    let OpenError::DataDir(DataDirError::Locked { pid: Some(pid), .. }) = error else { panic!("{error}") };
    assert_eq!(pid, std::process::id());
    propose(&group, &["still works"]).await;
    group.stop().await;
    let (group, _thread) = open(temp.path()).await;
    assert_eq!(journal(&group), ["still works"]);
    group.stop().await;
}

#[tokio::test]
async fn commands_that_are_too_large_or_too_late_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (group, thread) = open(temp.path()).await;
    let error = group.propose(vec!["x".repeat(MAX_COMMAND_BYTES)]).await.unwrap_err();
    assert!(matches!(error, ProposeError::TooLarge { .. }), "{error}");
    propose(&group, &[&"x".repeat(MAX_COMMAND_BYTES - 100)]).await;
    let late = group.clone();
    group.stop().await;
    thread.ended().await.unwrap();
    assert_eq!(late.propose(vec!["late".into()]).await, Err(ProposeError::Stopped));
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_thread() {
    let temp = tempfile::tempdir().unwrap();
    let (group, thread) = open(temp.path()).await;
    drop(group.clone());
    propose(&group, &["a"]).await;
    drop(group);
    tokio::time::timeout(DEADLINE, thread.ended()).await.unwrap().unwrap();
}

#[tokio::test]
async fn entries_of_another_version_end_the_process_with_a_reason() {
    /// Writes what [`Journal`] cannot read.
    #[derive(Debug, Clone, Default, Serialize, Deserialize)]
    struct Newer;
    impl StateMachine for Newer {
        type Command = BTreeMap<String, u32>;
        type Outcome = ();
        fn apply(&mut self, _: u64, _: Self::Command) {}
    }
    let temp = tempfile::tempdir().unwrap();
    let (group, _thread) = Consensus::<Newer>::open_with(temp.path(), Settings::default()).unwrap();
    group.propose(vec![BTreeMap::new()]).await.unwrap();
    group.stop().await;

    let (_group, thread) = Group::open_with(temp.path(), Settings::default()).unwrap();
    let error = thread.ended().await.unwrap_err();
    assert!(matches!(error, FatalError::Command { .. }), "{error}");
    assert!(error.to_string().contains("another version"), "{error}");
}

/// A log whose writes fail from some point on.
struct Failing<L> {
    inner: L,
    writes_left: u32,
}

impl<L: LogStore> LogStore for Failing<L> {
    fn load(&self) -> Loaded {
        self.inner.load()
    }
    fn first_index(&self) -> u64 {
        self.inner.first_index()
    }
    fn last_index(&self) -> u64 {
        self.inner.last_index()
    }
    fn term(&self, index: u64) -> Result<u64, StoreError> {
        self.inner.term(index)
    }
    fn entries(
        &self,
        low: u64,
        high: u64,
        max: Option<u64>,
    ) -> Result<Vec<raft::eraftpb::Entry>, StoreError> {
        self.inner.entries(low, high, max)
    }
    fn write(&mut self, batch: Batch<'_>, durability: Durability) -> Result<(), StoreError> {
        match self.writes_left.checked_sub(1) {
            Some(left) => self.writes_left = left,
            None => {
                let source = std::io::ErrorKind::StorageFull.into();
                return Err(StoreError::Io { what: "cannot sync", path: "disk".into(), source });
            }
        }
        self.inner.write(batch, durability)
    }
}

#[tokio::test]
async fn a_failed_write_is_the_end_and_nothing_unwritten_is_answered() {
    let temp = tempfile::tempdir().unwrap();
    let snapshots = SnapshotDir::open(temp.path(), "c").unwrap();
    let log = MemoryStore::open(MemoryKv::new(&MemoryDisk::default()), Bootstrap::alone).unwrap();
    let log = Failing { inner: log, writes_left: 2 };
    let (group, thread) = Group::start(log, snapshots, Settings::default(), ()).unwrap();
    until(&group, |p| p.leader).await;
    propose(&group, &["written"]).await;
    assert_eq!(group.propose(vec!["not written".into()]).await, Err(ProposeError::Stopped));
    let error = thread.ended().await.unwrap_err();
    assert!(matches!(error, FatalError::Store(StoreError::Io { .. })), "{error}");
    assert_eq!(journal(&group), ["written"]);
}

#[tokio::test]
async fn a_stored_membership_survives_restart_and_replay() {
    let temp = tempfile::tempdir().unwrap();
    let (group, _thread) = open(temp.path()).await;
    propose(&group, &["a"]).await;
    group.change_membership(vec![MembershipStep::AddLearner(42)]).await.unwrap();
    propose(&group, &["b"]).await;
    group.stop().await;
    for _ in 0..2 {
        let (group, _thread) = open(temp.path()).await;
        assert_eq!(journal(&group), ["a", "b"]);
        group.stop().await;
    }
    let log =
        SledStore::open(SledKv::open(&temp.path().join("raft/log")).unwrap(), Bootstrap::alone).unwrap();
    assert_eq!(log.load().membership.conf_state.learners, [42]);
    assert!(log.load().membership.applied > BOOTSTRAP.index);
}

#[tokio::test]
async fn a_snapshot_can_be_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let (group, _thread) = open(temp.path()).await;
    let last = propose(&group, &["a", "b"]).await[1].0;
    let written = group.snapshot_now().await.unwrap();
    assert!(written.index >= last, "{written:?}");
    assert_eq!(group.snapshot_now().await.unwrap(), written, "nothing new to write");
    assert_eq!(snapshot_files(temp.path()).len(), 1);
    let mut members = group.members();
    let view = members.wait_for(|view| view.snapshot.is_some_and(|(at, _)| at == written));
    let view = tokio::time::timeout(DEADLINE, view).await.unwrap().unwrap().clone();
    let (_, written_ms) = view.snapshot.unwrap();
    let age = std::time::UNIX_EPOCH + Duration::from_millis(written_ms);
    assert!(age.elapsed().unwrap() < DEADLINE);
    group.stop().await;
    let (group, _thread) = open(temp.path()).await;
    assert_eq!(journal(&group), ["a", "b"]);
    assert_eq!(group.members().borrow().snapshot.unwrap().1, written_ms);
    group.stop().await;
}

#[tokio::test]
async fn the_view_shows_a_hash_that_members_can_compare() {
    let temp = tempfile::tempdir().unwrap();
    let (group, _thread) = open(temp.path()).await;
    let mut applied = 0;
    while applied < 2100 {
        applied = group.propose(vec!["x".to_owned(); 100]).await.unwrap()[99].0;
    }
    let mut members = group.members();
    let view = members.wait_for(|view| view.applied == applied);
    let view = tokio::time::timeout(DEADLINE, view).await.unwrap().unwrap().clone();
    let commands: Vec<_> = group.state().borrow().state.applied.clone();
    let then = Journal { applied: commands.into_iter().filter(|(index, _)| *index <= 2048).collect() };
    assert_eq!(view.hash, Some((2048, then.hash())));
    assert!(view.quorum && view.leading && view.peers.is_empty());
    group.stop().await;
    // A start works it out again from the log.
    let (group, _thread) = open(temp.path()).await;
    let mut members = group.members();
    let again = members.wait_for(|again| again.hash.is_some_and(|(index, _)| index == 2048));
    assert_eq!(tokio::time::timeout(DEADLINE, again).await.unwrap().unwrap().hash, view.hash);
    group.stop().await;
}

#[tokio::test]
async fn a_group_cannot_lose_its_last_voter() {
    let temp = tempfile::tempdir().unwrap();
    let (group, _thread) = open(temp.path()).await;
    let own = group.identity().raft_id;
    for steps in [vec![], vec![MembershipStep::Remove(own)], vec![MembershipStep::AddLearner(own)]] {
        let refused = group.change_membership(steps.clone()).await;
        assert!(matches!(refused, Err(ProposeError::InvalidChange(_))), "{steps:?}: {refused:?}");
    }
    propose(&group, &["still works"]).await;
    assert_eq!(group.transfer_leadership(None).await, Err(ProposeError::TransferFailed));
    assert_eq!(group.transfer_leadership(Some(own)).await, Ok(()));
    group.read_barrier().await.unwrap();
    group.stop().await;
}

/// A member of a lost group begins a new one with what it had.
#[tokio::test]
async fn a_new_cluster_can_be_forced() {
    let temp = tempfile::tempdir().unwrap();
    let mut storage = Storage::open(temp.path()).unwrap();
    assert!(storage.identity().unwrap().is_none());
    assert!(matches!(storage.force_new_cluster(), Err(OpenError::NothingToForce { .. })));
    drop(storage);

    let settings = || Settings { snapshots: small_snapshots(), ..Settings::default() };
    let (group, _thread) = open_with(temp.path(), settings()).await;
    for n in 0..150 {
        propose(&group, &[&n.to_string()]).await;
    }
    group.change_membership(vec![MembershipStep::AddLearner(42)]).await.unwrap();
    let lost = vec![MembershipStep::AddVoter(43)];
    group.change_membership(lost).await.unwrap();
    // From here on it is one of two, and the other does not exist: nothing is committed any more.
    let stranded = group.propose(vec!["stranded".to_owned()]).await;
    assert!(matches!(stranded, Err(ProposeError::LeadershipLost)), "{stranded:?}");
    let old = group.identity().clone();
    let before = group.state().borrow().clone();
    group.stop().await;

    let mut storage = Storage::open(temp.path()).unwrap();
    assert_eq!(storage.path(), temp.path());
    assert_eq!(storage.identity().unwrap().as_ref(), Some(&old));
    let first = storage.force_new_cluster().unwrap();
    let new = storage.force_new_cluster().unwrap();
    assert_eq!(storage.identity().unwrap().as_ref(), Some(&new));
    assert!(new.cluster_id != first.cluster_id && first.cluster_id != old.cluster_id);
    assert_eq!(new.raft_id, old.raft_id);
    let (group, _thread) = Group::open_storage(storage, Bootstrap::alone(), |_| settings()).unwrap();
    until(&group, |p| p.leader).await;
    assert_eq!(*group.identity(), new);
    let after = group.state().borrow().clone();
    assert!(after.epoch.0 > before.epoch.0 + 1_000_000, "workers obey the new cluster only");
    let commands = journal(&group);
    assert_eq!(commands[..150], (0..150).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(commands[150..], ["stranded"], "what was in the log is now committed");
    let view = group.members().borrow().clone();
    assert_eq!(
        (view.voters.iter().copied().collect::<Vec<_>>(), view.learners.len()),
        (vec![new.raft_id], 0)
    );
    propose(&group, &["and on"]).await;
    group.stop().await;
}

/// Wherever the power goes while a cluster is forced, the directory belongs to the old cluster or to the new one, whole.
#[tokio::test]
async fn forcing_a_new_cluster_may_be_interrupted() {
    for interrupted_after_the_log in [false, true] {
        let temp = tempfile::tempdir().unwrap();
        let (group, _thread) = open(temp.path()).await;
        propose(&group, &["a"]).await;
        let position = group.snapshot_now().await.unwrap();
        let old = group.identity().clone();
        group.stop().await;
        {
            let snapshots = SnapshotDir::open(&temp.path().join("raft/snapshots"), &old.cluster_id).unwrap();
            let only = ConfState::from((vec![old.raft_id], vec![]));
            snapshots.stage_for("new", position, &only).unwrap();
            if interrupted_after_the_log {
                let kv = SledKv::open(&temp.path().join("raft/log")).unwrap();
                SledStore::open(kv, Bootstrap::alone).unwrap().force_new_cluster("new".to_owned()).unwrap();
            }
        }
        let (group, _thread) = open(temp.path()).await;
        let expected = if interrupted_after_the_log { "new" } else { &old.cluster_id };
        assert_eq!(group.identity().cluster_id, expected);
        assert_eq!(journal(&group), ["a"]);
        group.stop().await;
    }
}

/// Nodes without threads: their ticks are counted, not waited for.
mod without_a_clock {
    use super::super::node::Parts;
    use super::*;
    use raft::eraftpb::MessageType;

    #[derive(Clone, Default)]
    struct Sent(Arc<Mutex<Vec<Message>>>);

    impl Transport for Sent {
        fn send(&mut self, message: Message) -> Result<(), Unreachable> {
            self.0.lock().unwrap().push(message);
            Ok(())
        }
    }

    /// How many ticks a follower of 2 waits before it asks for votes, after what it is told.
    fn patience(told: Vec<Input<Journal>>) -> usize {
        let bootstrap = || Bootstrap::founders("c".to_owned(), 1, vec![1, 2, 3]);
        let sent = Sent::default();
        let now = Instant::now();
        let parts = Parts {
            log: MemoryStore::open(MemoryKv::new(&MemoryDisk::default()), bootstrap).unwrap(),
            snapshots: MemorySnapshots::default(),
            transport: sent.clone(),
            watchdog: Watchdog::none(),
            failure: Failure::default(),
            timing: RaftTiming { election_ticks: 10, ..RaftTiming::default() },
            policy: SnapshotPolicy::default(),
            writer: SnapshotWriter::Inline,
            election_timeout: Some(Box::new(|_| 16)),
        };
        let (mut node, _views) = Node::new(parts, now).unwrap();
        let mut heartbeat = Message { from: 2, to: 1, term: 5, commit: 1, ..Default::default() };
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        node.round(now, [Input::Message(heartbeat)], false).unwrap();
        node.round(now, told, false).unwrap();
        (1..100)
            .find(|_| {
                node.round(now, [], true).unwrap();
                sent.0.lock().unwrap().iter().any(|m| m.get_msg_type() == MessageType::MsgRequestPreVote)
            })
            .unwrap()
    }

    #[test]
    fn a_follower_that_lost_its_leaders_connection_waits_only_the_random_part() {
        assert_eq!(patience(vec![]), 16);
        assert_eq!(patience(vec![Input::ConnectionLost(3)]), 16, "that one does not lead");
        assert_eq!(patience(vec![Input::ConnectionLost(2)]), 6);
        assert_eq!(patience(vec![Input::ConnectionLost(2), Input::ConnectionLost(2)]), 6);
    }
}

/// Several members in one process: the loop must not know that today's group has one.
mod three_members {
    use super::*;

    #[derive(Clone, Default)]
    struct Network(Arc<Mutex<Wires>>);

    #[derive(Default)]
    struct Wires {
        inboxes: BTreeMap<u64, PeerInbox<Journal>>,
        cut: Vec<u64>,
        /// Every third message is lost while set.
        lossy: bool,
        /// It gets no log entries, only heartbeats.
        starved: Option<u64>,
        sent: u64,
    }

    struct Wire {
        network: Network,
        from: u64,
    }

    impl Transport for Wire {
        fn send(&mut self, message: Message) -> Result<(), Unreachable> {
            assert_ne!(message.get_msg_type(), MessageType::MsgPropose, "proposals are never forwarded");
            let mut wires = self.network.0.lock().unwrap();
            wires.sent += 1;
            let lost = wires.lossy && wires.sent.is_multiple_of(3);
            let to = message.to;
            if wires.cut.contains(&to) || wires.cut.contains(&self.from) || lost {
                return Err(Unreachable);
            }
            if wires.starved == Some(to)
                && matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgSnapshot)
            {
                return Err(Unreachable);
            }
            wires.inboxes.get(&to).ok_or(Unreachable)?.deliver(message);
            Ok(())
        }
    }

    struct Member {
        id: u64,
        disk: MemoryDisk,
        snapshots: tempfile::TempDir,
    }

    impl Member {
        fn new(id: u64) -> Self {
            Self { id, disk: MemoryDisk::default(), snapshots: tempfile::tempdir().unwrap() }
        }

        fn start(&self, network: &Network, voters: Vec<u64>) -> (Group, ConsensusThread) {
            let bootstrap = || Bootstrap {
                identity: Identity { format: FORMAT_VERSION, cluster_id: "c".into(), raft_id: self.id },
                voters,
            };
            let log = MemoryStore::open(MemoryKv::new(&self.disk), bootstrap).unwrap();
            let snapshots = SnapshotDir::open(self.snapshots.path(), "c").unwrap();
            let mut settings = Settings::new(Wire { network: network.clone(), from: self.id });
            settings.timing =
                RaftTiming { tick: Duration::from_millis(10), election_ticks: 10, heartbeat_ticks: 2 };
            settings.snapshots = small_snapshots();
            let (group, thread) = Group::start(log, snapshots, settings, ()).unwrap();
            network.0.lock().unwrap().inboxes.insert(self.id, group.peer_inbox());
            (group, thread)
        }
    }

    async fn leader(groups: &[&Group]) -> usize {
        let start = Instant::now();
        loop {
            for (n, group) in groups.iter().enumerate() {
                if group.state().borrow().leader {
                    return n;
                }
            }
            assert!(start.elapsed() < DEADLINE, "no leader");
            let changes = groups.iter().map(|g| {
                let mut state = g.state();
                state.mark_unchanged();
                Box::pin(async move { state.changed().await.is_ok() })
            });
            let _ =
                tokio::time::timeout(Duration::from_millis(50), futures::future::select_all(changes)).await;
        }
    }

    /// Proposes until some leader has applied it. The journal may then hold it more than once, as with any client
    /// that repeats a command whose outcome it does not know.
    async fn insist(groups: &[&Group], command: &str) {
        let start = Instant::now();
        loop {
            let at = leader(groups).await;
            match groups[at].propose(vec![command.to_owned()]).await {
                Ok(_) => return,
                Err(error) => assert!(start.elapsed() < DEADLINE, "{error}"),
            }
        }
    }

    async fn converge(groups: &[&Group], command: &str) -> Journal {
        for group in groups {
            until(group, |p| p.state.applied.iter().any(|(_, c)| c == command)).await;
        }
        let journals: Vec<Journal> = groups.iter().map(|g| (*g.state().borrow().state).clone()).collect();
        for other in &journals[1..] {
            let common = other.applied.len().min(journals[0].applied.len());
            assert_eq!(other.applied[..common], journals[0].applied[..common], "logs match");
        }
        journals[0].clone()
    }

    #[tokio::test]
    async fn elect_replicate_fail_over_and_catch_up() {
        let network = Network::default();
        let members = [1, 2, 3].map(Member::new);
        let started: Vec<_> = members.iter().map(|m| m.start(&network, vec![1, 2, 3])).collect();
        let groups: Vec<&Group> = started.iter().map(|(g, _)| g).collect();

        let first = leader(&groups).await;
        let epoch = groups[first].state().borrow().epoch;
        insist(&groups, "one").await;
        converge(&groups, "one").await;
        let follower = groups[(first + 1) % 3];
        assert!(matches!(
            follower.propose(vec!["elsewhere".into()]).await,
            Err(ProposeError::NotLeader { leader: Some(_), .. } | ProposeError::LeadershipLost)
        ));

        // The leader is cut off: it steps down, others take over, and what it could not commit is never answered.
        network.0.lock().unwrap().cut = vec![members[first].id];
        let stranded = groups[first].propose(vec!["stranded".into()]);
        let others: Vec<&Group> = (0..3).filter(|n| *n != first).map(|n| groups[n]).collect();
        insist(&others, "two").await;
        let lost = tokio::time::timeout(DEADLINE, stranded).await.unwrap().unwrap_err();
        assert!(matches!(lost, ProposeError::LeadershipLost | ProposeError::NotLeader { .. }), "{lost}");
        until(groups[first], |p| !p.leader).await;
        let second = leader(&others).await;
        assert!(others[second].state().borrow().epoch > epoch);
        // Enough to compact the log: the one that comes back can only catch up by a snapshot.
        for n in 0..300 {
            insist(&others, &format!("while away {n}")).await;
        }
        network.0.lock().unwrap().cut.clear();
        insist(&groups, "three").await;
        let journal = converge(&groups, "three").await;
        assert!(!journal.applied.iter().any(|(_, c)| c == "stranded"));

        // A lossy network delays, and changes nothing else.
        network.0.lock().unwrap().lossy = true;
        for n in 0..50 {
            insist(&groups, &format!("lossy {n}")).await;
        }
        network.0.lock().unwrap().lossy = false;
        insist(&groups, "four").await;
        converge(&groups, "four").await;
    }

    #[tokio::test]
    async fn a_learner_that_starts_empty_gets_a_snapshot_and_becomes_a_voter() {
        // Whether or not the first member has a snapshot of its own by then.
        for commands in [3, 150] {
            learn_and_vote(commands).await;
        }
    }

    async fn learn_and_vote(commands: usize) {
        let network = Network::default();
        let (one, two) = (Member::new(1), Member::new(2));
        let (first, _first_thread) = one.start(&network, vec![1]);
        until(&first, |p| p.leader).await;
        for n in 0..commands {
            propose(&first, &[&format!("{n}")]).await;
        }
        let (second, _second_thread) = two.start(&network, vec![]);
        first.change_membership(vec![MembershipStep::AddLearner(2)]).await.unwrap();
        until(&second, |p| p.state.applied.len() == commands).await;
        first.change_membership(vec![MembershipStep::AddVoter(2)]).await.unwrap();
        propose(&first, &["together"]).await;
        converge(&[&first, &second], "together").await;
        // With two voters, one alone commits nothing.
        network.0.lock().unwrap().cut = vec![2];
        let alone = first.propose(vec!["alone".into()]).await;
        assert!(matches!(alone, Err(ProposeError::LeadershipLost)), "{alone:?}");
        let members =
            MemoryStore::open(MemoryKv::new(&two.disk), Bootstrap::alone).unwrap().load().membership;
        assert_eq!(members.conf_state, ConfState::from((vec![1, 2], vec![])));
    }

    #[tokio::test]
    async fn whole_group_restarts_with_all_it_answered() {
        let network = Network::default();
        let members = [1, 2, 3].map(Member::new);
        let mut answered = Vec::new();
        for round in 0..3 {
            let started: Vec<_> = members.iter().map(|m| m.start(&network, vec![1, 2, 3])).collect();
            let groups: Vec<&Group> = started.iter().map(|(g, _)| g).collect();
            for n in 0..80 {
                let command = format!("{round}/{n}");
                insist(&groups, &command).await;
                answered.push(command);
            }
            let journal = converge(&groups, answered.last().unwrap()).await;
            for command in &answered {
                assert!(journal.applied.iter().any(|(_, c)| c == command), "{command} was lost");
            }
            for (group, thread) in started {
                group.stop().await;
                thread.ended().await.unwrap();
            }
            for member in &members {
                member.disk.crash(0);
            }
        }
    }

    async fn view(group: &Group, condition: impl Fn(&MembersView) -> bool) -> Arc<MembersView> {
        let mut members = group.members();
        let found = tokio::time::timeout(DEADLINE, members.wait_for(|view| condition(view))).await;
        found.expect("in time").expect("the loop runs").clone()
    }

    type Started = (Group, ConsensusThread);

    fn start_three(network: &Network) -> ([Member; 3], Vec<Started>) {
        let members = [1, 2, 3].map(Member::new);
        let started = members.iter().map(|m| m.start(network, vec![1, 2, 3])).collect();
        (members, started)
    }

    fn groups(started: &[Started]) -> Vec<&Group> {
        started.iter().map(|(group, _)| group).collect()
    }

    #[tokio::test]
    async fn leadership_is_handed_over_and_refused_where_it_cannot_be() {
        let network = Network::default();
        let (_members, started) = start_three(&network);
        let groups = groups(&started);
        let first = leader(&groups).await;
        insist(&groups, "one").await;
        let first_id = groups[first].identity().raft_id;
        let follower = groups[(first + 1) % 3];
        let target = follower.identity().raft_id;
        assert!(matches!(follower.transfer_leadership(None).await, Err(ProposeError::NotLeader { .. })));
        assert_eq!(groups[first].transfer_leadership(Some(99)).await, Err(ProposeError::TransferFailed));

        groups[first].transfer_leadership(Some(target)).await.unwrap();
        assert!(!groups[first].state().borrow().leader);
        until(follower, |p| p.leader).await;
        assert_eq!(leader(&groups).await, (first + 1) % 3);

        // To nobody in particular: the one that is reachable.
        let gone = groups[(first + 2) % 3].identity().raft_id;
        network.0.lock().unwrap().cut = vec![gone];
        let silent =
            |peer: &PeerView| peer.last_contact.is_none_or(|at| at.elapsed() > Duration::from_millis(100));
        view(follower, |v| v.peers.get(&gone).is_some_and(silent)).await;
        follower.transfer_leadership(None).await.unwrap();
        until(groups[first], |p| p.leader && p.leader_id == Some(first_id)).await;
        // One that cannot be reached does not take over, and the leader goes on.
        let failed =
            tokio::time::timeout(DEADLINE, groups[first].transfer_leadership(Some(gone))).await.unwrap();
        assert_eq!(failed, Err(ProposeError::TransferFailed));
        propose(groups[first], &["two"]).await;
    }

    #[tokio::test]
    async fn a_leader_without_a_majority_answers_no_reads() {
        let network = Network::default();
        let (_members, started) = start_three(&network);
        let groups = groups(&started);
        let first = leader(&groups).await;
        insist(&groups, "one").await;
        groups[first].read_barrier().await.unwrap();
        let follower = groups[(first + 1) % 3];
        assert!(matches!(follower.read_barrier().await, Err(ProposeError::NotLeader { .. })));
        // As a leader it still believes in itself for a while, but must not say so.
        network.0.lock().unwrap().cut = vec![groups[first].identity().raft_id];
        assert!(groups[first].state().borrow().leader);
        let answer = tokio::time::timeout(DEADLINE, groups[first].read_barrier()).await.unwrap();
        assert!(matches!(answer, Err(ProposeError::NotLeader { .. })), "{answer:?}");
        view(groups[first], |v| !v.quorum).await;
        let others: Vec<&Group> = (0..3).filter(|n| *n != first).map(|n| groups[n]).collect();
        insist(&others, "two").await;
        let second = others[leader(&others).await];
        second.read_barrier().await.unwrap();
        assert!(journal(second).contains(&"two".to_owned()));
        view(second, |v| v.quorum && v.leading && v.peers.len() == 2).await;
    }

    #[tokio::test]
    async fn removed_members_end_and_stay_out() {
        let network = Network::default();
        let (members, started) = start_three(&network);
        let groups = groups(&started);
        let first = leader(&groups).await;
        insist(&groups, "one").await;
        let follower = (first + 1) % 3;
        let follower_id = groups[follower].identity().raft_id;
        groups[first].change_membership(vec![MembershipStep::Remove(follower_id)]).await.unwrap();
        let rest = view(groups[first], |v| v.voters.len() == 2).await;
        assert!(!rest.voters.contains(&follower_id) && !rest.peers.contains_key(&follower_id));
        let last = (first + 2) % 3;
        // The leader removes itself: it is told that it is done, then it ends.
        let first_id = groups[first].identity().raft_id;
        view(groups[first], |v| v.peers.values().all(|peer| peer.matched == v.last_index)).await;
        groups[first].change_membership(vec![MembershipStep::Remove(first_id)]).await.unwrap();
        until(groups[last], |p| p.leader).await;
        propose(groups[last], &["two"]).await;

        let mut started = started;
        let (alone, _alone_thread) = started.swap_remove(last);
        for (group, thread) in started {
            let error = tokio::time::timeout(DEADLINE, thread.ended()).await.unwrap().unwrap_err();
            assert!(matches!(error, FatalError::Removed), "{error}");
            assert_eq!(group.propose(vec!["late".to_owned()]).await, Err(ProposeError::Stopped));
        }
        for removed in [first, follower] {
            let member = &members[removed];
            let log = MemoryStore::open(MemoryKv::new(&member.disk), Bootstrap::alone).unwrap();
            let snapshots = SnapshotDir::open(member.snapshots.path(), "c").unwrap();
            let error = Group::start(log, snapshots, Settings::default(), ()).err().unwrap();
            assert!(matches!(error, OpenError::State(FatalError::Removed)), "{error}");
            assert!(error.to_string().contains("--data-dir"), "{error}");
        }
        // One that has not heard of its own removal is told by others.
        alone.peer_inbox().removed();
        let error = _alone_thread.ended().await.unwrap_err();
        assert!(matches!(error, FatalError::Removed), "{error}");
    }

    #[tokio::test]
    async fn several_changes_at_once_leave_no_joint_configuration() {
        let network = Network::default();
        let (_members, started) = start_three(&network);
        let groups = groups(&started);
        let first = leader(&groups).await;
        insist(&groups, "one").await;
        let removed = groups[(first + 1) % 3].identity().raft_id;
        let four = Member::new(4);
        let (new, _thread) = four.start(&network, vec![]);
        let swap = vec![MembershipStep::AddVoter(4), MembershipStep::Remove(removed)];
        groups[first].change_membership(swap).await.unwrap();
        // A joint configuration would still count the one that leaves.
        let settled = view(groups[first], |v| v.voters.contains(&4) && !v.voters.contains(&removed)).await;
        assert_eq!(settled.voters.len(), 3);
        propose(groups[first], &["two"]).await;
        converge(&[groups[first], &new], "two").await;
    }

    #[tokio::test]
    async fn the_log_waits_for_a_slow_follower_within_limits() {
        let network = Network::default();
        let (_members, started) = start_three(&network);
        let groups = groups(&started);
        let first = leader(&groups).await;
        insist(&groups, "one").await;
        converge(&groups, "one").await;
        let slow = groups[(first + 1) % 3].identity().raft_id;
        network.0.lock().unwrap().starved = Some(slow);
        let SnapshotPolicy { margin, .. } = small_snapshots();
        let batch = |n: usize| vec!["x".to_owned(); n];
        groups[first].propose(batch(100)).await.unwrap();
        let at = view(groups[first], |v| v.snapshot.is_some()).await.snapshot.unwrap().0.index;
        let more = groups[first].propose(batch(20)).await.unwrap()[19].0;
        let kept = view(groups[first], |v| v.applied >= more).await;
        let behind = kept.peers[&slow].matched + 1;
        assert!(behind + margin < at, "enough to drop something, if nobody needed it: {kept:?}");
        assert!(kept.first_index <= behind, "{kept:?}");
        // Too far behind: it will need a snapshot.
        for _ in 0..4 {
            groups[first].propose(batch(100)).await.unwrap();
        }
        let dropped = view(groups[first], |v| v.first_index > behind).await;
        let limit = dropped.snapshot.unwrap().0.index - 10 * margin;
        assert!(dropped.first_index <= limit + 1, "{dropped:?}");
        network.0.lock().unwrap().starved = None;
        insist(&groups, "two").await;
        converge(&groups, "two").await;
    }
}
