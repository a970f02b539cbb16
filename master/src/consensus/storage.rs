//! A master's data directory before the group runs on it.

use super::data_dir::DataDir;
use super::kv_log::stored_identity;
use super::log_store::{Bootstrap, Identity, LogStore, StoreError, random_cluster_id};
use super::sled_store::SledKv;
use super::snapshots::SnapshotDir;
use super::{OpenError, SledStore};
use raft::eraftpb::ConfState;
use std::path::Path;

/// An open data directory and its log database, before it is decided how a new one begins.
pub struct Storage {
    // Dropped before the lock is. Gone after a failed `force_new_cluster`.
    kv: Option<SledKv>,
    dir: DataDir,
}

impl Storage {
    /// Creates the directory if need be and takes its lock.
    pub fn open(data_dir: &Path) -> Result<Self, OpenError> {
        let dir = DataDir::open(data_dir)?;
        let kv = SledKv::open(&dir.log())?;
        Ok(Self { kv: Some(kv), dir })
    }

    fn kv(&self) -> Result<&SledKv, StoreError> {
        self.kv.as_ref().ok_or_else(|| closed(&self.dir))
    }

    /// Whose directory it is; `None` when it is new and nothing has been written.
    pub fn identity(&self) -> Result<Option<Identity>, StoreError> {
        stored_identity(self.kv()?)
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// After a majority has been lost for good: makes this member the only voter of a new cluster with a new id, which
    /// the other members of the old one cannot talk to. State and log stay. A call that a crash interrupted has either
    /// happened or not, and can be repeated.
    pub fn force_new_cluster(&mut self) -> Result<Identity, OpenError> {
        let Some(old) = self.identity()? else {
            return Err(OpenError::NothingToForce { path: self.path().to_owned() });
        };
        // The log must be readable as a whole before anything is decided about it.
        let kv = self.kv.take().ok_or_else(|| closed(&self.dir))?;
        let mut log = SledStore::open(kv, || Bootstrap { identity: old.clone(), voters: Vec::new() })?;
        let snapshots = SnapshotDir::open(&self.dir.snapshots(), &old.cluster_id)?;
        let cluster_id = random_cluster_id();
        if let Some(position) = log.load().snapshot {
            let only_voter = ConfState { voters: vec![old.raft_id], ..Default::default() };
            snapshots.stage_for(&cluster_id, position, &only_voter)?;
        }
        let identity = log.force_new_cluster(cluster_id)?;
        self.kv = Some(log.into_kv());
        SnapshotDir::open(&self.dir.snapshots(), &identity.cluster_id)?;
        Ok(identity)
    }

    /// The parts to run on: log, snapshots, and the lock.
    pub(super) fn start(self, fresh: Bootstrap) -> Result<(SledStore, SnapshotDir, DataDir), OpenError> {
        let kv = self.kv.ok_or_else(|| closed(&self.dir))?;
        let log = SledStore::open(kv, || fresh)?;
        let snapshots = SnapshotDir::open(&self.dir.snapshots(), &log.load().identity.cluster_id)?;
        Ok((log, snapshots, self.dir))
    }
}

fn closed(dir: &DataDir) -> StoreError {
    StoreError::Engine { path: dir.log(), message: "closed after an earlier error".to_owned() }
}
