//! A medium in memory that can crash: what was not synced is lost, as whole batches from the end.

use super::kv_log::{Change, Kv, KvLog};
use super::log_store::StoreError;
use std::collections::BTreeMap;
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
}

/// What stays when the process is gone. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Contents>>);

impl MemoryDisk {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        // Every change below is complete before it can panic, so a poisoned map is still a map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power loss: of the batches that were not synced, only the `kept` oldest reached the disk.
    pub fn crash(&self, kept: usize) {
        let mut contents = self.contents();
        let contents = &mut *contents;
        for batch in contents.unsynced.drain(..).take(kept) {
            apply(&mut contents.durable, batch);
        }
        contents.current = contents.durable.clone();
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
        apply(&mut contents.current, changes.clone());
        contents.unsynced.push(changes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let mut contents = self.disk.contents();
        let contents = &mut *contents;
        for batch in contents.unsynced.drain(..) {
            apply(&mut contents.durable, batch);
        }
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
