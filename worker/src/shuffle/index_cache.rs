//! Decoded indexes. Each of a stage's consumers asks for its own partition of the same outputs.

use super::output::{Identity, Output, OutputError};
use firesteel_common::ApplicationId;
use firesteel_common::shuffle::{OutputId, OutputIndex};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

/// Names an output on this worker.
pub type Key = Arc<(ApplicationId, OutputId)>;

/// So many indexes are read at a time: what is being decoded is not counted in the cache, and one may be large.
const LANES: usize = 4;

/// The least recently used ones go when the bound is reached.
#[derive(Debug)]
pub struct IndexCache {
    kept: Mutex<Kept>,
    bytes_max: usize,
    /// Who wants an index that somebody is reading waits for that one.
    lanes: [Arc<tokio::sync::Mutex<()>>; LANES],
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<Key, Entry>,
    /// By the time of the last use, which is `clock`.
    order: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    index: Arc<OutputIndex>,
    bytes: usize,
    used: u64,
}

/// An entry's own size beside its index: names, two maps.
const ENTRY_BYTES: usize = 256;

impl IndexCache {
    pub fn new(bytes_max: usize) -> Self {
        Self { kept: Mutex::default(), bytes_max, lanes: Default::default(), hasher: RandomState::new() }
    }

    /// The index of an open output, and the output back.
    pub async fn index(&self, key: &Key, output: Output) -> Result<(Output, Arc<OutputIndex>), OutputError> {
        if let Some(index) = self.get(key, output.identity) {
            return Ok((output, index));
        }
        let lane = self.hasher.hash_one(key) as usize % LANES;
        let alone = self.lanes[lane].clone().lock_owned().await;
        if let Some(index) = self.get(key, output.identity) {
            return Ok((output, index));
        }
        let read = tokio::task::spawn_blocking(move || {
            // The lane is left when the work is done, also if nobody waits for it any more.
            let (index, bytes) = output.read_index()?;
            Ok::<_, OutputError>((output, Arc::new(index), bytes, alone))
        });
        let (output, index, bytes, _alone) =
            read.await.map_err(|error| OutputError::Read(error.into()))??;
        self.put(key, output.identity, &index, bytes);
        Ok((output, index))
    }

    fn get(&self, key: &Key, identity: Identity) -> Option<Arc<OutputIndex>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *kept;
        let entry = kept.entries.get_mut(key).filter(|entry| entry.identity == identity)?;
        kept.clock += 1;
        if let Some(key) = kept.order.remove(&entry.used) {
            kept.order.insert(kept.clock, key);
        }
        entry.used = kept.clock;
        Some(entry.index.clone())
    }

    fn put(&self, key: &Key, identity: Identity, index: &Arc<OutputIndex>, bytes: usize) {
        let bytes = bytes + ENTRY_BYTES;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(key);
        if bytes > self.bytes_max {
            return;
        }
        while kept.bytes + bytes > self.bytes_max
            && let Some((_, oldest)) = kept.order.pop_first()
        {
            kept.remove(&oldest);
        }
        kept.clock += 1;
        let used = kept.clock;
        kept.bytes += bytes;
        kept.order.insert(used, key.clone());
        kept.entries.insert(key.clone(), Entry { identity, index: index.clone(), bytes, used });
    }

    /// Of all that is kept.
    pub fn bytes(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

impl Kept {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}
