//! The log as the `raft` crate reads it. Writing goes around it, straight to the [`LogStore`].

use super::log_store::{LogStore, StoreError};
use super::membership::contains;
use super::snapshots::SnapshotStore;
use raft::eraftpb::{Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::Cell;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

/// The `raft` crate panics on a storage error; the reason waits here for whoever catches the panic.
#[derive(Debug, Clone, Default)]
pub struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    fn note(&self, error: &impl Display) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.to_string());
    }
    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pub struct RaftStorage<L, P> {
    pub log: L,
    pub snapshots: P,
    failure: Failure,
    /// A member needs a snapshot that does not exist yet.
    snapshot_wanted: Cell<bool>,
}

impl<L: LogStore, P: SnapshotStore> RaftStorage<L, P> {
    pub fn new(log: L, snapshots: P, failure: Failure) -> Self {
        Self { log, snapshots, failure, snapshot_wanted: Cell::new(false) }
    }

    pub fn take_snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.take()
    }

    fn raft_error(&self, error: StoreError) -> raft::Error {
        match error {
            StoreError::Compacted { .. } => StorageError::Compacted.into(),
            StoreError::Unavailable { .. } => StorageError::Unavailable.into(),
            other => {
                self.failure.note(&other);
                StorageError::Other(Box::new(other)).into()
            }
        }
    }
}

impl<L: LogStore, P: SnapshotStore> Storage for RaftStorage<L, P> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let loaded = self.log.load();
        Ok(RaftState::new(loaded.hard_state, loaded.membership.conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        self.log.entries(low, high, max_size.into()).map_err(|e| self.raft_error(e))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.log.term(index).map_err(|e| self.raft_error(e))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let too_old = || {
            self.snapshot_wanted.set(true);
            Err(StorageError::SnapshotTemporarilyUnavailable.into())
        };
        let Some(position) = self.log.load().snapshot.filter(|s| s.index >= request_index) else {
            return too_old();
        };
        let file = self.snapshots.read(position).map_err(|e| {
            self.failure.note(&e);
            StorageError::Other(Box::new(e))
        })?;
        // Raft refuses to restore a snapshot of a group that it does not belong to.
        if !contains(&file.conf_state, to) {
            return too_old();
        }
        let mut snapshot = Snapshot { data: file.state.into(), ..Default::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = position.index;
        metadata.term = position.term;
        metadata.set_conf_state(file.conf_state);
        Ok(snapshot)
    }
}
