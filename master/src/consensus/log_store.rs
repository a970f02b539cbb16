//! What the Raft group asks of a disk: a log with a few records beside it, changed by atomic batches.

use raft::eraftpb::{ConfState, Entry, HardState};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// The version of everything below a data directory. A build reads exactly the version it writes.
pub const FORMAT_VERSION: u32 = 1;

/// The log of a group's founders pretends that everything up to here was truncated. A later member starts at nothing;
/// so it needs a snapshot, and with it learns who the founders are, which no entry of the log tells.
pub const BOOTSTRAP: Position = Position { index: 1, term: 1 };

/// Who this store belongs to; written once, with the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// [`FORMAT_VERSION`] of the build that created the store.
    pub format: u32,
    /// Random, the same on every master of a cluster.
    pub cluster_id: String,
    /// Random, never 0; a master whose directory was wiped gets a new one.
    pub raft_id: u64,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

/// Who votes, and up to which index that has been worked out. Both change together, or a replayed
/// configuration change would be applied to a membership that already has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Membership {
    pub conf_state: ConfState,
    pub applied: u64,
}

/// How a new store begins.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    pub identity: Identity,
    /// The founders of the group; empty for a member that is going to be added to one.
    pub voters: Vec<u64>,
}

impl Bootstrap {
    /// A new cluster of this one master.
    pub fn alone() -> Self {
        let raft_id = random_id();
        Self::founders(random_cluster_id(), raft_id, vec![raft_id])
    }

    /// A new cluster of several: every one of them is given the same cluster id and voters, and its own `raft_id`.
    pub fn founders(cluster_id: String, raft_id: u64, voters: Vec<u64>) -> Self {
        Self { identity: Identity { format: FORMAT_VERSION, cluster_id, raft_id }, voters }
    }

    /// A member that a running cluster is going to add.
    pub fn joining(cluster_id: String, raft_id: u64) -> Self {
        Self::founders(cluster_id, raft_id, Vec::new())
    }
}

/// For a new member: never 0.
pub fn random_id() -> u64 {
    rand::random_range(1..=u64::MAX)
}

/// For a new cluster.
pub fn random_cluster_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The records beside the log, as found when the store was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub identity: Identity,
    pub hard_state: HardState,
    pub membership: Membership,
    /// The last entry that is gone from the log; its term is still known.
    pub truncated: Position,
    pub last_index: u64,
    /// Where the newest complete snapshot file stands; none before the first.
    pub snapshot: Option<Position>,
}

/// Changes that become durable together or not at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch<'a> {
    /// A snapshot from the leader replaces the whole log; comes before `entries`.
    pub install: Option<Position>,
    /// Consecutive. The first may lie inside the log: it and everything behind it is then replaced.
    pub entries: &'a [Entry],
    pub hard_state: Option<&'a HardState>,
    pub membership: Option<&'a Membership>,
    pub snapshot: Option<Position>,
    /// Forgets every entry up to and including this index, which must be covered by the snapshot.
    pub compact_through: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On disk when `write` returns, with everything written before.
    Synced,
    /// Atomic and in order, but a crash may lose it: for what Raft can work out again.
    Buffered,
}

/// A log on some medium. All errors but [`StoreError::Compacted`] and [`StoreError::Unavailable`] are final:
/// what is on disk is not known any more, and the process must end.
pub trait LogStore: Send + 'static {
    fn load(&self) -> Loaded;
    fn first_index(&self) -> u64;
    /// `first_index - 1` when the log is empty.
    fn last_index(&self) -> u64;
    /// For `first_index - 1 ..= last_index`.
    fn term(&self, index: u64) -> Result<u64, StoreError>;
    /// Entries `low..high`, as many as fit in `max_bytes` but at least one.
    fn entries(&self, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, StoreError>;
    fn write(&mut self, batch: Batch<'_>, durability: Durability) -> Result<(), StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("log entry {index} has been compacted: the log begins at {first}")]
    Compacted { index: u64, first: u64 },
    #[error("log entry {index} does not exist: the log ends at {last}")]
    Unavailable { index: u64, last: u64 },
    #[error("refused to write to the log: {0}")]
    Refused(String),
    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the log store in {}: {message}", path.display())]
    Engine { path: PathBuf, message: String },
    #[error(
        "the log store in {} is damaged: {what}. Restore the directory from a backup, or move it away and \
         start with an empty --data-dir (what this master alone knew is then lost)",
        path.display()
    )]
    Corrupt { path: PathBuf, what: String },
    #[error(
        "{} has format {found}, and this build reads format {supported}: start the firesteel-master that wrote \
         it, or give --data-dir another directory",
        path.display()
    )]
    Format { path: PathBuf, found: u32, supported: u32 },
    #[error(
        "{} holds a database that is not a Firesteel log: give --data-dir an empty or new directory",
        path.display()
    )]
    Foreign { path: PathBuf },
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), what: what.into() }
    }
}
