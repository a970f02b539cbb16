//! What every log store must do, run on each of them.

use super::kv_log::{Kv, KvLog};
use super::log_store::{
    BOOTSTRAP, Batch, Bootstrap, Durability, FORMAT_VERSION, Identity, LogStore, Membership, Position,
    StoreError,
};
use super::memory_store::{MemoryDisk, MemoryKv};
use super::sled_store::SledKv;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};

/// A place where stores can be opened again and again.
trait Bed {
    type Kv: Kv;
    fn kv(&self) -> Self::Kv;
}

struct Memory(MemoryDisk);

impl Bed for Memory {
    type Kv = MemoryKv;
    fn kv(&self) -> MemoryKv {
        MemoryKv::new(&self.0)
    }
}

/// Loses power before every opening: what was not synced is gone.
struct Crashing(MemoryDisk);

impl Bed for Crashing {
    type Kv = MemoryKv;
    fn kv(&self) -> MemoryKv {
        self.0.crash(0);
        MemoryKv::new(&self.0)
    }
}

struct Sled(tempfile::TempDir);

impl Bed for Sled {
    type Kv = SledKv;
    fn kv(&self) -> SledKv {
        SledKv::open(&self.0.path().join("log")).unwrap()
    }
}

fn bootstrap() -> Bootstrap {
    Bootstrap {
        identity: Identity { format: FORMAT_VERSION, cluster_id: "c".into(), raft_id: 7 },
        voters: vec![7, 8, 9],
    }
}

fn open<B: Bed>(bed: &B) -> KvLog<B::Kv> {
    KvLog::open(bed.kv(), bootstrap).unwrap()
}

fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
    Entry { index, term, data: data.to_vec().into(), ..Default::default() }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range.map(|i| entry(i, term, format!("{i}@{term}").as_bytes())).collect()
}

fn hard(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..Default::default() }
}

fn append<K: Kv>(log: &mut KvLog<K>, entries: &[Entry]) {
    log.write(Batch { entries, ..Default::default() }, Durability::Synced).unwrap();
}

fn all<K: Kv>(log: &KvLog<K>) -> Vec<Entry> {
    log.entries(log.first_index(), log.last_index() + 1, None).unwrap()
}

fn a_new_store_begins_at_the_bootstrap_position(bed: &impl Bed) {
    let log = open(bed);
    let loaded = log.load();
    assert_eq!(loaded.identity, bootstrap().identity);
    assert_eq!(loaded.hard_state, hard(1, 0, 1));
    assert_eq!(loaded.membership.conf_state.voters, [7, 8, 9]);
    assert_eq!((loaded.membership.applied, loaded.truncated, loaded.last_index), (1, BOOTSTRAP, 1));
    assert_eq!(loaded.snapshot, None);
    assert_eq!((log.first_index(), log.last_index()), (2, 1));
    assert_eq!(log.term(1).unwrap(), 1);
    assert!(matches!(log.term(0), Err(StoreError::Compacted { index: 0, first: 2 })));
    assert!(matches!(log.term(2), Err(StoreError::Unavailable { index: 2, last: 1 })));
    assert_eq!(log.entries(2, 2, None).unwrap(), []);
}

fn everything_is_there_after_reopening(bed: &impl Bed) {
    let mut log = open(bed);
    let mut written = entries(2..=4, 2);
    written[1].set_entry_type(EntryType::EntryConfChangeV2);
    written[1].context = b"context".to_vec().into();
    written[2].data = Default::default();
    let membership = Membership {
        conf_state: ConfState {
            voters: vec![1, 2],
            learners: vec![3],
            voters_outgoing: vec![4],
            learners_next: vec![5],
            auto_leave: true,
            ..Default::default()
        },
        applied: 3,
    };
    let hard_state = hard(3, 8, 4);
    log.write(
        Batch {
            entries: &written,
            hard_state: Some(&hard_state),
            membership: Some(&membership),
            ..Default::default()
        },
        Durability::Synced,
    )
    .unwrap();
    let before = log.load();
    drop(log);

    let log = KvLog::open(bed.kv(), || panic!("bootstrapped twice")).unwrap();
    assert_eq!(log.load(), before);
    assert_eq!(log.load().hard_state, hard_state);
    assert_eq!(log.load().membership, membership);
    assert_eq!(all(&log), written);
    assert_eq!([1, 2, 3, 4].map(|i| log.term(i).unwrap()), [1, 2, 2, 2]);
}

fn a_conflicting_tail_is_replaced(bed: &impl Bed) {
    let mut log = open(bed);
    let large = vec![b'x'; 50_000];
    append(&mut log, &[entry(2, 2, b"a"), entry(3, 2, &large), entry(4, 2, &large), entry(5, 3, b"d")]);
    let replacement = [entry(3, 4, b"new"), entry(4, 5, b"newer")];
    append(&mut log, &replacement);
    for reopened in [false, true] {
        if reopened {
            drop(log);
            log = open(bed);
        }
        assert_eq!(log.last_index(), 4);
        assert_eq!(all(&log), [entry(2, 2, b"a"), entry(3, 4, b"new"), entry(4, 5, b"newer")]);
        assert_eq!([2, 3, 4].map(|i| log.term(i).unwrap()), [2, 4, 5]);
        assert!(matches!(log.term(5), Err(StoreError::Unavailable { .. })));
    }
}

fn batches_that_do_not_join_the_log_are_refused(bed: &impl Bed) {
    let mut log = open(bed);
    append(&mut log, &entries(2..=3, 2));
    let hard_state = hard(9, 9, 2);
    for wrong in [entries(5..=6, 2), entries(1..=2, 2), vec![entry(4, 2, b""), entry(6, 2, b"")]] {
        let batch = Batch { entries: &wrong, hard_state: Some(&hard_state), ..Default::default() };
        assert!(matches!(log.write(batch, Durability::Synced), Err(StoreError::Refused(_))));
    }
    assert_eq!(all(&log), entries(2..=3, 2));
    assert_eq!(log.load().hard_state, hard(1, 0, 1), "a refused batch changes nothing");
}

fn large_entries_come_back_whole(bed: &impl Bed) {
    let sizes = [0, 1, 4095, 4096, 4097, 65_536, 65_537, 1 << 20, (1 << 20) + 1];
    let written: Vec<Entry> = (2..)
        .zip(sizes)
        .map(|(index, size)| {
            let data: Vec<u8> = (0..size).map(|i: usize| (i * 31 + i / 251) as u8).collect();
            entry(index, 2, &data)
        })
        .collect();
    let mut log = open(bed);
    append(&mut log, &written);
    assert!(all(&log) == written);
    drop(log);
    assert!(all(&open(bed)) == written);
}

fn reading_is_bounded_but_never_empty(bed: &impl Bed) {
    let mut log = open(bed);
    let written: Vec<Entry> = (2..=6).map(|i| entry(i, 2, &[b'z'; 1000])).collect();
    append(&mut log, &written);
    assert_eq!(log.entries(2, 7, Some(0)).unwrap().len(), 1);
    assert_eq!(log.entries(2, 7, Some(2500)).unwrap(), written[..2]);
    assert_eq!(log.entries(3, 5, None).unwrap(), written[1..3]);
    assert!(matches!(log.entries(1, 3, None), Err(StoreError::Compacted { .. })));
    assert!(matches!(log.entries(2, 8, None), Err(StoreError::Unavailable { .. })));
}

fn compaction_keeps_to_its_bounds(bed: &impl Bed) {
    let mut log = open(bed);
    append(&mut log, &entries(2..=1500, 2));
    append(&mut log, &entries(1501..=3000, 3));
    let compact = |log: &mut KvLog<_>, snapshot: Option<Position>, through| {
        let hard_state = hard(3, 0, 2500);
        let membership =
            snapshot.map(|s| Membership { conf_state: ConfState::from((vec![7], vec![])), applied: s.index });
        log.write(
            Batch {
                hard_state: Some(&hard_state),
                membership: membership.as_ref(),
                snapshot,
                compact_through: Some(through),
                ..Default::default()
            },
            Durability::Synced,
        )
    };
    let refused = compact(&mut log, None, 10).unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused}");
    let snapshot = Position { index: 2400, term: 3 };
    assert!(compact(&mut log, Some(snapshot), 2401).is_err());
    compact(&mut log, Some(snapshot), 2300).unwrap();
    compact(&mut log, None, 100).unwrap();
    drop(log);

    let log = open(bed);
    assert_eq!((log.first_index(), log.last_index()), (2301, 3000));
    assert_eq!((log.term(2300).unwrap(), log.term(2301).unwrap()), (3, 3));
    assert!(matches!(log.term(2299), Err(StoreError::Compacted { index: 2299, first: 2301 })));
    assert!(matches!(log.entries(2300, 2302, None), Err(StoreError::Compacted { .. })));
    assert_eq!(all(&log), entries(2301..=3000, 3));
    assert_eq!(log.load().snapshot, Some(snapshot));
    assert_eq!(log.load().truncated, Position { index: 2300, term: 3 });
}

fn an_installed_snapshot_replaces_the_log(bed: &impl Bed) {
    let mut log = open(bed);
    append(&mut log, &entries(2..=20, 2));
    let install = |position: Position| {
        let membership =
            Membership { conf_state: ConfState::from((vec![1, 2, 3], vec![])), applied: position.index };
        (Some(position), hard(position.term, 0, position.index), membership)
    };
    let (position, hard_state, membership) = install(Position { index: 100, term: 5 });
    let after = entries(101..=102, 5);
    log.write(
        Batch {
            install: position,
            entries: &after,
            hard_state: Some(&hard_state),
            membership: Some(&membership),
            ..Default::default()
        },
        Durability::Synced,
    )
    .unwrap();
    let loaded = log.load();
    drop(log);
    let mut log = open(bed);
    assert_eq!(log.load(), loaded);
    assert_eq!((log.first_index(), log.last_index(), log.load().snapshot), (101, 102, position));
    assert_eq!(log.term(100).unwrap(), 5);
    assert_eq!(all(&log), after);
    let (position, ..) = install(Position { index: 99, term: 5 });
    assert!(log.write(Batch { install: position, ..Default::default() }, Durability::Synced).is_err());
}

fn records_that_contradict_each_other_are_found(bed: &impl Bed) {
    let mut log = open(bed);
    let hard_state = hard(1, 0, 50);
    log.write(Batch { hard_state: Some(&hard_state), ..Default::default() }, Durability::Synced).unwrap();
    drop(log);
    let error = KvLog::open(bed.kv(), bootstrap).err().unwrap();
    assert!(
        matches!(&error, StoreError::Corrupt { what, .. } if what.contains("commit index 50")),
        "{error}"
    );
}

fn terms_that_go_back_are_found(bed: &impl Bed) {
    let mut log = open(bed);
    append(&mut log, &entries(2..=3, 5));
    append(&mut log, &entries(4..=4, 4));
    drop(log);
    let error = KvLog::open(bed.kv(), bootstrap).err().unwrap();
    assert!(
        matches!(&error, StoreError::Corrupt { what, .. } if what.contains("entry 4 has an older term")),
        "{error}"
    );
}

fn a_new_cluster_can_be_forced_of_one_member(bed: &impl Bed) {
    let mut log = open(bed);
    let mut written = entries(2..=6, 2);
    for at in [1, 4] {
        written[at].set_entry_type(EntryType::EntryConfChangeV2);
        written[at].context = vec![b'c'; 10_000].into();
    }
    let hard_state = hard(3, 8, 4);
    let batch = Batch { entries: &written, hard_state: Some(&hard_state), ..Default::default() };
    log.write(batch, Durability::Synced).unwrap();
    // Once more than needed: as after a crash that hid whether it had happened.
    log.force_new_cluster("d".to_owned()).unwrap();
    drop(log);
    let mut log = KvLog::open(bed.kv(), || panic!("bootstrapped twice")).unwrap();
    let identity = log.force_new_cluster("e".to_owned()).unwrap();
    drop(log);

    let log = KvLog::open(bed.kv(), || panic!("bootstrapped twice")).unwrap();
    let loaded = log.load();
    assert_eq!(loaded.identity, identity);
    assert_eq!((loaded.identity.cluster_id.as_str(), loaded.identity.raft_id), ("e", 7));
    assert_eq!(loaded.membership.conf_state, ConfState::from((vec![7], vec![])));
    assert_eq!((loaded.hard_state.vote, loaded.hard_state.commit), (0, 4));
    assert!(loaded.hard_state.term > 1_000_000, "{}", loaded.hard_state.term);
    for at in [1, 4] {
        written[at] = entry(written[at].index, 2, b"");
    }
    assert_eq!(all(&log), written, "commands stay, changes of members do not");
}

fn another_format_is_refused(bed: &impl Bed) {
    let mut other = bootstrap();
    other.identity.format = FORMAT_VERSION + 1;
    drop(KvLog::open(bed.kv(), || other).unwrap());
    let error = KvLog::open(bed.kv(), bootstrap).err().unwrap();
    assert!(matches!(error, StoreError::Format { found: 2, supported: 1, .. }), "{error}");
    assert!(error.to_string().contains("--data-dir"), "{error}");
}

fn a_foreign_database_is_refused(bed: &impl Bed) {
    let mut kv = bed.kv();
    kv.apply(vec![(b"somebody's".to_vec(), Some(b"data".to_vec()))]).unwrap();
    kv.sync().unwrap();
    drop(kv);
    let error = KvLog::open(bed.kv(), bootstrap).err().unwrap();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
}

/// Every stored value in turn gets one bit flipped, or is lost: opening must notice each.
fn damage_anywhere_is_found(bed: &impl Bed) {
    let mut log = open(bed);
    append(&mut log, &[entry(2, 2, b"small"), entry(3, 2, &[b'y'; 10_000]), entry(4, 2, b"last")]);
    drop(log);
    let mut kv = bed.kv();
    let mut records = Vec::new();
    kv.scan(&[], &[0xff], &mut |key, value| {
        records.push((key.to_vec(), value.to_vec()));
        true
    })
    .unwrap();
    assert!(records.len() >= 9, "{}", records.len());
    for (key, value) in records {
        for at in [0, 5, value.len() - 1] {
            let mut damaged = value.clone();
            damaged[at] ^= 0x10;
            kv.apply(vec![(key.clone(), Some(damaged))]).unwrap();
            kv.sync().unwrap();
            drop(kv);
            let error = KvLog::open(bed.kv(), bootstrap).err().unwrap();
            assert!(matches!(&error, StoreError::Corrupt { .. }), "byte {at} of {key:?}: {error}");
            kv = bed.kv();
        }
        // The last entry alone may be missing without a trace; the one before may not.
        if key.starts_with(b"e") && key[8] != 4 {
            kv.apply(vec![(key.clone(), None)]).unwrap();
            kv.sync().unwrap();
            drop(kv);
            let error = KvLog::open(bed.kv(), bootstrap).err().unwrap();
            assert!(matches!(&error, StoreError::Corrupt { .. }), "{key:?} removed: {error}");
            kv = bed.kv();
        }
        kv.apply(vec![(key, Some(value))]).unwrap();
        kv.sync().unwrap();
    }
    drop(kv);
    assert_eq!(open(bed).last_index(), 4, "repaired, it opens again");
}

macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        mod memory {
            $(#[test] fn $name() { super::$name(&super::Memory(Default::default())) })+
        }
        mod crashing {
            $(#[test] fn $name() { super::$name(&super::Crashing(Default::default())) })+
        }
        mod sled {
            $(#[test] fn $name() { super::$name(&super::Sled(tempfile::tempdir().unwrap())) })+
        }
    };
}

conformance!(
    a_new_store_begins_at_the_bootstrap_position,
    everything_is_there_after_reopening,
    a_conflicting_tail_is_replaced,
    batches_that_do_not_join_the_log_are_refused,
    large_entries_come_back_whole,
    reading_is_bounded_but_never_empty,
    compaction_keeps_to_its_bounds,
    an_installed_snapshot_replaces_the_log,
    records_that_contradict_each_other_are_found,
    terms_that_go_back_are_found,
    a_new_cluster_can_be_forced_of_one_member,
    another_format_is_refused,
    a_foreign_database_is_refused,
    damage_anywhere_is_found,
);

/// What only the simulated disk can show: a crash keeps what was synced and some prefix of the rest, batch by batch.
#[test]
fn a_crash_keeps_what_was_synced_and_no_half_batch() {
    for kept in 0..=3 {
        let bed = Memory(Default::default());
        let mut log = open(&bed);
        append(&mut log, &entries(2..=5, 2));
        for (index, term) in [(6, 2), (4, 3), (5, 3)] {
            let tail = [entry(index, term, b"unsynced")];
            let hard_state = hard(term, 0, 2);
            let batch = Batch { entries: &tail, hard_state: Some(&hard_state), ..Default::default() };
            log.write(batch, Durability::Buffered).unwrap();
        }
        drop(log);
        bed.0.crash(kept);
        let log = open(&bed);
        let expected = [
            (5, vec![2, 2, 2, 2], 1),
            (6, vec![2, 2, 2, 2, 2], 2),
            (4, vec![2, 2, 3], 3),
            (5, vec![2, 2, 3, 3], 3),
        ];
        let (last, terms, hard_term) = &expected[kept];
        assert_eq!(log.last_index(), *last, "{kept} batches kept");
        assert_eq!(&all(&log).iter().map(|e| e.term).collect::<Vec<_>>(), terms);
        assert_eq!(log.load().hard_state.term, *hard_term, "the hard state goes with its entries");
    }
}

/// A compaction is several batches; a crash between them leaves a log that opens.
#[test]
fn a_crash_inside_a_compaction_leaves_a_shorter_log() {
    for kept in 0..=4 {
        let bed = Memory(Default::default());
        let mut log = open(&bed);
        append(&mut log, &entries(2..=3500, 2));
        let hard_state = hard(2, 0, 3400);
        let membership = Membership { conf_state: ConfState::from((vec![7], vec![])), applied: 3400 };
        log.write(
            Batch {
                hard_state: Some(&hard_state),
                membership: Some(&membership),
                snapshot: Some(Position { index: 3400, term: 2 }),
                compact_through: Some(3001),
                ..Default::default()
            },
            Durability::Buffered,
        )
        .unwrap();
        drop(log);
        bed.0.crash(kept);
        let log = open(&bed);
        assert_eq!(log.first_index(), [2, 2, 1002, 2002, 3002][kept]);
        assert_eq!(all(&log), entries(log.first_index()..=3500, 2));
    }
}

/// Records over 128 KiB would leave sled's data file for files that nothing syncs.
#[test]
fn sled_never_writes_outside_of_the_file_that_is_synced() {
    let bed = Sled(tempfile::tempdir().unwrap());
    let mut log = open(&bed);
    for round in 0..20 {
        let first = 2 + round * 4;
        let batch: Vec<Entry> = (first..first + 4).map(|i| entry(i, 2, &vec![i as u8; 100_000])).collect();
        append(&mut log, &batch);
    }
    let blobs = std::fs::read_dir(bed.0.path().join("log/blobs")).unwrap().count();
    assert_eq!(blobs, 0);
}

#[test]
fn an_unfinished_snapshot_of_sled_itself_does_no_harm() {
    let bed = Sled(tempfile::tempdir().unwrap());
    let mut log = open(&bed);
    append(&mut log, &entries(2..=4, 2));
    drop(log);
    std::fs::write(bed.0.path().join("log/snap.0000000000000FFF.generating"), b"half").unwrap();
    assert_eq!(all(&open(&bed)), entries(2..=4, 2));
}
