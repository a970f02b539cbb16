//! Media in memory that can crash: what was not synced is lost, as whole batches from the end.

use super::kv_log::{Change, Kv, KvLog};
use super::log_store::{Position, StoreError};
use super::snapshots::{Snapshot, SnapshotError, SnapshotStore};
use raft::eraftpb::ConfState;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub type MemoryStore = KvLog<MemoryKv>;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Default)]
struct Contents {
    durable: Map,
    /// Durable plus everything applied since.
    current: Map,
    /// Applied but not synced, oldest first.
    unsynced: Vec<Vec<Change>>,
    /// So many more writes and syncs succeed.
    fuse: Option<u32>,
    forgets: bool,
}

impl Contents {
    fn burn(&mut self, path: &Path) -> Result<(), StoreError> {
        match &mut self.fuse {
            Some(0) => Err(StoreError::io("cannot write", path, io::Error::other("the disk is gone"))),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// What stays when the process is gone. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Contents>>);

impl MemoryDisk {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        // Every change below is complete before it can panic, so a poisoned map is still a map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power loss: of the batches that were not synced, only the `kept` oldest reached the disk. A batch that was torn is
    /// one that did not: a medium must recognise it, as sled does by checksums.
    pub fn crash(&self, kept: usize) {
        let mut contents = self.contents();
        let contents = &mut *contents;
        contents.fuse = None;
        for batch in contents.unsynced.drain(..).take(kept) {
            apply(&mut contents.durable, batch);
        }
        contents.current = contents.durable.clone();
    }

    /// How many batches a power loss could take.
    pub fn unsynced(&self) -> usize {
        self.contents().unsynced.len()
    }

    /// Every write and sync after the next `writes` fails, until [`MemoryDisk::repair`] or [`MemoryDisk::crash`].
    pub fn fail_after(&self, writes: u32) {
        self.contents().fuse = Some(writes);
    }

    pub fn repair(&self) {
        self.contents().fuse = None;
    }

    /// From now on a sync succeeds and does nothing: a disk that lies, to see whether tests notice.
    pub fn forget_syncs(&self) {
        self.contents().forgets = true;
    }

    /// Overwrites stored values where `change` says so: damage, for tests.
    pub fn damage(&self, mut change: impl FnMut(&[u8], &mut Vec<u8>)) {
        let mut contents = self.contents();
        let contents = &mut *contents;
        for map in [&mut contents.durable, &mut contents.current] {
            for (key, value) in map.iter_mut() {
                change(key, value);
            }
        }
    }
}

fn apply(map: &mut Map, batch: Vec<Change>) {
    for (key, value) in batch {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

#[derive(Debug)]
pub struct MemoryKv {
    disk: MemoryDisk,
    path: PathBuf,
}

impl MemoryKv {
    pub fn new(disk: &MemoryDisk) -> Self {
        Self { disk: disk.clone(), path: PathBuf::from("memory") }
    }
}

impl Kv for MemoryKv {
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let contents = self.disk.contents();
        for (key, value) in contents.current.range(from.to_vec()..to.to_vec()) {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&mut self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut contents = self.disk.contents();
        contents.burn(&self.path)?;
        apply(&mut contents.current, changes.clone());
        contents.unsynced.push(changes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let mut contents = self.disk.contents();
        let contents = &mut *contents;
        contents.burn(&self.path)?;
        if !contents.forgets {
            for batch in contents.unsynced.drain(..) {
                apply(&mut contents.durable, batch);
            }
        }
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Snapshots that outlive the process but not the machine. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct MemorySnapshots(Arc<Mutex<SnapshotFiles>>);

type SnapshotFiles = BTreeMap<Position, (ConfState, Vec<u8>)>;

impl MemorySnapshots {
    fn files(&self) -> MutexGuard<'_, SnapshotFiles> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SnapshotStore for MemorySnapshots {
    fn write<S: Serialize>(
        &self,
        position: Position,
        conf_state: &ConfState,
        state: &S,
    ) -> Result<(), SnapshotError> {
        let state = serde_json::to_vec(state)
            .map_err(|e| SnapshotError::Write { path: self.file(position), source: e.into() })?;
        self.write_received(position, conf_state, &state)
    }

    fn write_received(
        &self,
        position: Position,
        conf_state: &ConfState,
        state: &[u8],
    ) -> Result<(), SnapshotError> {
        self.files().insert(position, (conf_state.clone(), state.to_owned()));
        Ok(())
    }

    fn read(&self, position: Position) -> Result<Snapshot, SnapshotError> {
        let files = self.files();
        let (conf_state, state) = files.get(&position).ok_or_else(|| SnapshotError::Read {
            path: self.file(position),
            source: io::ErrorKind::NotFound.into(),
        })?;
        Ok(Snapshot { position, conf_state: conf_state.clone(), state: state.clone() })
    }

    fn keep_only(&self, position: Position) {
        self.files().retain(|at, _| *at == position);
    }

    fn written_ms(&self, _: Position) -> Option<u64> {
        None
    }

    fn file(&self, position: Position) -> PathBuf {
        PathBuf::from(format!("memory/{}-{}", position.index, position.term))
    }
}
