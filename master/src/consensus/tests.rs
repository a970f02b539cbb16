//! The whole group, loop and store, over a small state machine.

use super::log_store::{BOOTSTRAP, FORMAT_VERSION};
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
}
