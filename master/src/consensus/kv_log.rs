//! The log over an ordered key-value medium: keys, encoding, checksums and bounds, the same for every medium.

use super::log_store::{
    BOOTSTRAP, Batch, Bootstrap, Durability, FORMAT_VERSION, Identity, Loaded, LogStore, Membership,
    Position, StoreError,
};
use super::membership::StoredConfState;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One change of a key; `None` removes it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// An ordered map of byte strings with atomic batches.
pub trait Kv: Send + 'static {
    /// Calls `visit` for `from <= key < to`, ascending, until it says `false`.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError>;
    /// All changes or none, in the order of the calls; no key twice in one call.
    fn apply(&mut self, changes: Vec<Change>) -> Result<(), StoreError>;
    /// Returns when everything applied so far survives a power loss.
    fn sync(&mut self) -> Result<(), StoreError>;
    /// For messages.
    fn path(&self) -> &Path;
}

/// Payload bytes per stored value. Far below the 64 KiB that `raft.md` allows, because sled writes a leaf of up to
/// about 20 values as one record, and a record over 128 KiB goes to a file of its own that it never syncs.
const CHUNK: usize = 4096;
/// CRC-32 of key and rest, then the number of chunks.
const CHUNK_HEADER: usize = 8;
/// Removals per batch while compacting, so that no batch is unbounded.
const COMPACT_STEP: u64 = 1000;

/// More terms than a cluster goes through in years of elections.
const FORCED_TERMS: u64 = 1 << 20;

const ENTRY: u8 = b'e';
const META: u8 = b'm';
const IDENTITY: &[u8] = b"identity";
const HARD_STATE: &[u8] = b"hard-state";
const MEMBERSHIP: &[u8] = b"membership";
const TRUNCATED: &[u8] = b"truncated";
const SNAPSHOT: &[u8] = b"snapshot";

#[derive(Serialize, Deserialize)]
struct StoredMembership {
    applied: u64,
    members: StoredConfState,
}

pub struct KvLog<K> {
    kv: K,
    loaded: Loaded,
    /// (first index of the run, term): terms without reading entries. Begins with the truncated position.
    terms: Vec<(u64, u64)>,
}

impl<K: Kv> KvLog<K> {
    /// Opens the log, checking every record of it; an empty medium is bootstrapped first.
    pub fn open(mut kv: K, fresh: impl FnOnce() -> Bootstrap) -> Result<Self, StoreError> {
        let path = kv.path().to_owned();
        let Some(identity) = read_meta(&kv, IDENTITY)? else {
            must_be_empty(&kv)?;
            let Bootstrap { identity, voters } = fresh();
            let start = if voters.is_empty() { Position { index: 0, term: 0 } } else { BOOTSTRAP };
            let hard_state = HardState { term: start.term, commit: start.index, ..Default::default() };
            let membership =
                Membership { conf_state: ConfState { voters, ..Default::default() }, applied: start.index };
            let mut changes = Vec::new();
            put(&mut changes, &meta_key(IDENTITY), &to_json(&identity)?);
            put(&mut changes, &meta_key(HARD_STATE), &encode_hard_state(&hard_state));
            put(&mut changes, &meta_key(MEMBERSHIP), &encode_membership(&membership)?);
            put(&mut changes, &meta_key(TRUNCATED), &encode_position(start));
            kv.apply(changes)?;
            kv.sync()?;
            let loaded = Loaded {
                identity,
                hard_state,
                membership,
                truncated: start,
                last_index: start.index,
                snapshot: None,
            };
            return Ok(Self { kv, loaded, terms: vec![(start.index, start.term)] });
        };

        let identity = decode_identity(&path, &identity)?;
        // An earlier life may have ended between writing and syncing. What is read now is acted upon and answered for
        // without being written again, so it must be durable first.
        kv.sync()?;
        let need = |name: &'static [u8]| {
            read_meta(&kv, name)?.ok_or_else(|| {
                StoreError::corrupt(&path, format!("no {} record", String::from_utf8_lossy(name)))
            })
        };
        let hard_state = decode_hard_state(&path, &need(HARD_STATE)?)?;
        let membership = decode_membership(&path, &need(MEMBERSHIP)?)?;
        let truncated = decode_position(&path, &need(TRUNCATED)?)?;
        let snapshot = read_meta(&kv, SNAPSHOT)?.map(|bytes| decode_position(&path, &bytes)).transpose()?;

        let mut terms = vec![(truncated.index, truncated.term)];
        let mut last_index = truncated.index;
        read_entries(&kv, 0, u64::MAX, &mut |entry| {
            if entry.index != last_index + 1 {
                let what = format!("entry {} follows entry {last_index}", entry.index);
                return Err(StoreError::corrupt(&path, what));
            }
            last_index = entry.index;
            if terms.last().is_some_and(|(_, term)| *term > entry.term) {
                let what = format!("entry {} has an older term than the one before", entry.index);
                return Err(StoreError::corrupt(&path, what));
            }
            push_term(&mut terms, entry.index, entry.term);
            Ok(true)
        })?;
        let loaded = Loaded { identity, hard_state, membership, truncated, last_index, snapshot };
        check(&path, &loaded)?;
        Ok(Self { kv, loaded, terms })
    }

    /// Makes this member the only voter of a cluster with another id; state and log stay. What changed the membership in
    /// the log is blanked out, or it would bring the old members back.
    pub fn force_new_cluster(&mut self, cluster_id: String) -> Result<Identity, StoreError> {
        let mut next = self.loaded.clone();
        next.identity.cluster_id = cluster_id;
        next.membership.conf_state = ConfState { voters: vec![next.identity.raft_id], ..Default::default() };
        // The old members may have gone on under terms that this one never saw, and workers refuse orders of an older
        // term than the newest they know.
        next.hard_state.term += FORCED_TERMS;
        next.hard_state.vote = 0;
        let mut blank = Vec::new();
        read_entries(&self.kv, 0, u64::MAX, &mut |entry| {
            if entry.get_entry_type() != EntryType::EntryNormal {
                blank.push((entry.index, entry.term));
            }
            Ok(true)
        })?;
        let mut changes = Vec::new();
        let mut buffer = Vec::new();
        for (index, term) in blank {
            self.remove_entries(&mut changes, index, index)?;
            encode_entry(&Entry { index, term, ..Default::default() }, &mut buffer);
            put(&mut changes, &entry_key(index), &buffer);
        }
        put(&mut changes, &meta_key(IDENTITY), &to_json(&next.identity)?);
        put(&mut changes, &meta_key(HARD_STATE), &encode_hard_state(&next.hard_state));
        put(&mut changes, &meta_key(MEMBERSHIP), &encode_membership(&next.membership)?);
        self.kv.apply(last_change_per_key(changes))?;
        self.kv.sync()?;
        self.loaded = next;
        Ok(self.loaded.identity.clone())
    }

    /// Gives the medium back.
    pub fn into_kv(self) -> K {
        self.kv
    }

    fn refuse(&self, what: String) -> Result<(), StoreError> {
        Err(StoreError::Refused(what))
    }

    /// Removes `first..=last` from the medium within `changes`, whatever number of chunks each entry has.
    fn remove_entries(&self, changes: &mut Vec<Change>, first: u64, last: u64) -> Result<(), StoreError> {
        if first <= last {
            self.kv.scan(&entry_key(first), &entry_key(last.saturating_add(1)), &mut |key, _| {
                changes.push((key.to_owned(), None));
                true
            })?;
        }
        Ok(())
    }

    fn truncate_terms(&mut self, from: u64) {
        self.terms.retain(|(start, _)| *start < from);
    }

    fn compact(&mut self, through: u64) -> Result<(), StoreError> {
        if through <= self.loaded.truncated.index {
            return Ok(());
        }
        let covered = self.loaded.snapshot.map_or(0, |s| s.index);
        if through > covered {
            return self.refuse(format!("compacting through {through}, but the snapshot ends at {covered}"));
        }
        let through = through.min(self.loaded.last_index);
        // Each step moves the truncated position with what it removes, so a crash between steps leaves a shorter log.
        while self.loaded.truncated.index < through {
            let first = self.loaded.truncated.index + 1;
            let last = through.min(self.loaded.truncated.index + COMPACT_STEP);
            let truncated = Position { index: last, term: self.term(last)? };
            let mut changes = Vec::new();
            self.remove_entries(&mut changes, first, last)?;
            put(&mut changes, &meta_key(TRUNCATED), &encode_position(truncated));
            self.kv.apply(changes)?;
            self.loaded.truncated = truncated;
        }
        let Position { index, term } = self.loaded.truncated;
        self.terms.retain(|(start, _)| *start > index);
        self.terms.insert(0, (index, term));
        Ok(())
    }
}

/// Whose log the medium holds; `None` when nothing has been written to it.
pub fn stored_identity<K: Kv>(kv: &K) -> Result<Option<Identity>, StoreError> {
    match read_meta(kv, IDENTITY)? {
        Some(bytes) => decode_identity(kv.path(), &bytes).map(Some),
        None => must_be_empty(kv).map(|()| None),
    }
}

fn must_be_empty<K: Kv>(kv: &K) -> Result<(), StoreError> {
    let mut empty = true;
    kv.scan(&[], &[0xff], &mut |_, _| {
        empty = false;
        false
    })?;
    if empty { Ok(()) } else { Err(StoreError::Foreign { path: kv.path().to_owned() }) }
}

fn decode_identity(path: &Path, bytes: &[u8]) -> Result<Identity, StoreError> {
    // The version alone first: another version's identity may have other fields.
    #[derive(Deserialize)]
    struct VersionOnly {
        format: u32,
    }
    let version: VersionOnly = from_json(path, "identity", bytes)?;
    if version.format != FORMAT_VERSION {
        return Err(StoreError::Format {
            path: path.to_owned(),
            found: version.format,
            supported: FORMAT_VERSION,
        });
    }
    from_json(path, "identity", bytes)
}

impl<K: Kv> LogStore for KvLog<K> {
    fn load(&self) -> Loaded {
        self.loaded.clone()
    }

    fn first_index(&self) -> u64 {
        self.loaded.truncated.index + 1
    }

    fn last_index(&self) -> u64 {
        self.loaded.last_index
    }

    fn term(&self, index: u64) -> Result<u64, StoreError> {
        if index < self.loaded.truncated.index {
            return Err(StoreError::Compacted { index, first: self.first_index() });
        }
        if index > self.loaded.last_index {
            return Err(StoreError::Unavailable { index, last: self.loaded.last_index });
        }
        let run = self.terms.partition_point(|(start, _)| *start <= index);
        Ok(self.terms[run.saturating_sub(1)].1)
    }

    fn entries(&self, low: u64, high: u64, max_bytes: Option<u64>) -> Result<Vec<Entry>, StoreError> {
        if low < self.first_index() {
            return Err(StoreError::Compacted { index: low, first: self.first_index() });
        }
        if high > self.last_index() + 1 {
            return Err(StoreError::Unavailable { index: high - 1, last: self.last_index() });
        }
        let mut found = Vec::new();
        let mut bytes = 0u64;
        read_entries(&self.kv, low, high, &mut |entry| {
            bytes += entry_size(&entry);
            if !found.is_empty() && max_bytes.is_some_and(|max| bytes > max) {
                return Ok(false);
            }
            found.push(entry);
            Ok(true)
        })?;
        let expected = low..low + found.len() as u64;
        if !found.iter().map(|e| e.index).eq(expected) || (low < high && found.is_empty()) {
            let what = format!("entries {low} to {} are not all there", high - 1);
            return Err(StoreError::corrupt(self.kv.path(), what));
        }
        Ok(found)
    }

    fn write(&mut self, batch: Batch<'_>, durability: Durability) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        let mut next = self.loaded.clone();
        if let Some(position) = batch.install {
            if position.index <= next.truncated.index {
                return self.refuse(format!(
                    "installing a snapshot at {}, but the log begins at {}",
                    position.index,
                    self.first_index()
                ));
            }
            self.remove_entries(&mut changes, 0, u64::MAX)?;
            put(&mut changes, &meta_key(TRUNCATED), &encode_position(position));
            put(&mut changes, &meta_key(SNAPSHOT), &encode_position(position));
            (next.truncated, next.last_index, next.snapshot) = (position, position.index, Some(position));
        }
        if let Some(first) = batch.entries.first() {
            if first.index <= next.truncated.index || first.index > next.last_index + 1 {
                return self.refuse(format!(
                    "entry {} does not join a log of {} to {}",
                    first.index,
                    next.truncated.index + 1,
                    next.last_index
                ));
            }
            if !batch
                .entries
                .iter()
                .map(|e| e.index)
                .eq(first.index..first.index + batch.entries.len() as u64)
            {
                return self.refuse("the entries are not consecutive".to_owned());
            }
            if batch.install.is_none() {
                self.remove_entries(&mut changes, first.index, next.last_index)?;
            }
            let mut buffer = Vec::new();
            for entry in batch.entries {
                encode_entry(entry, &mut buffer);
                put(&mut changes, &entry_key(entry.index), &buffer);
                next.last_index = entry.index;
            }
        }
        if let Some(hard_state) = batch.hard_state {
            put(&mut changes, &meta_key(HARD_STATE), &encode_hard_state(hard_state));
            next.hard_state = hard_state.clone();
        }
        if let Some(membership) = batch.membership {
            put(&mut changes, &meta_key(MEMBERSHIP), &encode_membership(membership)?);
            next.membership = membership.clone();
        }
        if let Some(position) = batch.snapshot {
            put(&mut changes, &meta_key(SNAPSHOT), &encode_position(position));
            next.snapshot = Some(position);
        }
        if !changes.is_empty() {
            self.kv.apply(last_change_per_key(changes))?;
        }
        self.loaded = next;
        if let Some(position) = batch.install {
            self.terms = vec![(position.index, position.term)];
        }
        if let Some(first) = batch.entries.first() {
            self.truncate_terms(first.index);
            for entry in batch.entries {
                push_term(&mut self.terms, entry.index, entry.term);
            }
        }
        if let Some(through) = batch.compact_through {
            self.compact(through)?;
        }
        match durability {
            Durability::Synced => self.kv.sync(),
            Durability::Buffered => Ok(()),
        }
    }
}

/// Replaced entries are removed and written anew in one batch; the write must win.
fn last_change_per_key(changes: Vec<Change>) -> Vec<Change> {
    let by_key: std::collections::BTreeMap<_, _> = changes.into_iter().collect();
    by_key.into_iter().collect()
}

fn push_term(terms: &mut Vec<(u64, u64)>, index: u64, term: u64) {
    if terms.last().is_none_or(|(_, last)| *last != term) {
        terms.push((index, term));
    }
}

/// What the records say about each other.
fn check(path: &Path, loaded: &Loaded) -> Result<(), StoreError> {
    let Loaded { hard_state, membership, truncated, last_index, snapshot, identity } = loaded;
    let covered = snapshot.map_or(truncated.index.min(BOOTSTRAP.index), |s| s.index);
    let wrong = if identity.raft_id == 0 {
        "the member id is 0".to_owned()
    } else if covered < truncated.index {
        format!("the log begins after {}, but the snapshot ends at {covered}", truncated.index)
    } else if membership.applied < covered {
        format!("the membership is of index {}, the snapshot of {covered}", membership.applied)
    } else if hard_state.commit < membership.applied || hard_state.commit > *last_index {
        format!("the commit index {} is outside of {}..={last_index}", hard_state.commit, membership.applied)
    } else {
        return Ok(());
    };
    Err(StoreError::corrupt(path, wrong))
}

fn meta_key(name: &[u8]) -> Vec<u8> {
    [&[META], name].concat()
}

fn entry_key(index: u64) -> Vec<u8> {
    let mut key = vec![ENTRY];
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// Splits `payload` into chunks `key ++ number`. The checksum covers the key, so that a value in a wrong place shows.
fn put(changes: &mut Vec<Change>, key: &[u8], payload: &[u8]) {
    let count = payload.len().div_ceil(CHUNK).max(1);
    for number in 0..count {
        let body = &payload[number * CHUNK..payload.len().min((number + 1) * CHUNK)];
        let mut full_key = key.to_owned();
        full_key.extend_from_slice(&(number as u32).to_be_bytes());
        let mut value = Vec::with_capacity(CHUNK_HEADER + body.len());
        value.extend_from_slice(&[0; 4]);
        value.extend_from_slice(&(count as u32).to_le_bytes());
        value.extend_from_slice(body);
        let crc = checksum(&full_key, &value[4..]);
        value[..4].copy_from_slice(&crc.to_le_bytes());
        changes.push((full_key, Some(value)));
    }
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize()
}

/// Puts chunks back together; says whether the value is complete.
#[derive(Default)]
struct Assembly {
    payload: Vec<u8>,
    seen: u32,
    count: u32,
}

impl Assembly {
    fn add(&mut self, path: &Path, key: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        let damaged = |what: &str| StoreError::corrupt(path, format!("{what} in {}", describe(key)));
        let (Some((crc, rest)), Some((_, number))) =
            (value.split_first_chunk::<4>(), key.split_last_chunk::<4>())
        else {
            return Err(damaged("short record"));
        };
        if u32::from_le_bytes(*crc) != checksum(key, rest) {
            return Err(damaged("checksum mismatch"));
        }
        let Some((count, body)) = rest.split_first_chunk::<4>() else {
            return Err(damaged("short record"));
        };
        let count = u32::from_le_bytes(*count);
        if u32::from_be_bytes(*number) != self.seen || (self.seen > 0 && count != self.count) || count == 0 {
            return Err(damaged("missing chunk"));
        }
        self.payload.extend_from_slice(body);
        self.seen += 1;
        self.count = count;
        Ok(self.seen == count)
    }
}

/// A key for people: `entry 17, chunk 3` or `hard-state, chunk 0`.
fn describe(key: &[u8]) -> String {
    let (body, chunk) = match key.split_last_chunk::<4>() {
        Some((body, number)) => (body, u32::from_be_bytes(*number)),
        None => (key, 0),
    };
    match (body.first(), body.get(1..).and_then(|rest| rest.try_into().ok())) {
        (Some(&ENTRY), Some(index)) => format!("entry {}, chunk {chunk}", u64::from_be_bytes(index)),
        _ => format!("{}, chunk {chunk}", String::from_utf8_lossy(body.get(1..).unwrap_or_default())),
    }
}

fn read_meta<K: Kv>(kv: &K, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    let from = meta_key(name);
    let to = [&from[..], &[0xff; 5]].concat();
    let mut assembly = Assembly::default();
    let mut result = Ok(false);
    kv.scan(&from, &to, &mut |key, value| {
        result = assembly.add(kv.path(), key, value);
        matches!(result, Ok(false))
    })?;
    let complete = result?;
    match (complete, assembly.seen) {
        (true, _) => Ok(Some(assembly.payload)),
        (false, 0) => Ok(None),
        (false, _) => Err(StoreError::corrupt(
            kv.path(),
            format!("{} lacks its last chunk", String::from_utf8_lossy(name)),
        )),
    }
}

/// Calls `visit` for the entries `low..high` until it says `false`.
fn read_entries<K: Kv>(
    kv: &K,
    low: u64,
    high: u64,
    visit: &mut dyn FnMut(Entry) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let path: PathBuf = kv.path().to_owned();
    let mut assembly = Assembly::default();
    let mut outcome = Ok(true);
    let to = if high == u64::MAX { vec![ENTRY + 1] } else { entry_key(high) };
    kv.scan(&entry_key(low), &to, &mut |key, value| {
        outcome = (|| {
            if !assembly.add(&path, key, value)? {
                return Ok(true);
            }
            let payload = std::mem::take(&mut assembly).payload;
            let index = key
                .get(1..9)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_be_bytes)
                .ok_or_else(|| StoreError::corrupt(&path, "an entry's key is too short"))?;
            visit(decode_entry(&path, index, payload)?)
        })();
        matches!(outcome, Ok(true))
    })?;
    if outcome? && assembly.seen > 0 {
        return Err(StoreError::corrupt(&path, "an entry lacks its last chunk"));
    }
    Ok(())
}

fn entry_size(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + 32) as u64
}

/// term (8) ++ kind (1) ++ context length (4) ++ context ++ data, numbers little-endian.
fn encode_entry(entry: &Entry, buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend_from_slice(&entry.term.to_le_bytes());
    buffer.push(match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    });
    buffer.extend_from_slice(&(entry.context.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&entry.context);
    buffer.extend_from_slice(&entry.data);
}

fn decode_entry(path: &Path, index: u64, payload: Vec<u8>) -> Result<Entry, StoreError> {
    let damaged = || StoreError::corrupt(path, format!("entry {index} cannot be decoded"));
    let (term, rest) = payload.split_first_chunk::<8>().ok_or_else(damaged)?;
    let (kind, rest) = rest.split_first().ok_or_else(damaged)?;
    let (context_len, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (context, data) =
        rest.split_at_checked(u32::from_le_bytes(*context_len) as usize).ok_or_else(damaged)?;
    let mut entry = Entry {
        term: u64::from_le_bytes(*term),
        index,
        context: context.to_owned().into(),
        data: data.to_owned().into(),
        ..Default::default()
    };
    entry.set_entry_type(match kind {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(damaged()),
    });
    Ok(entry)
}

fn encode_hard_state(state: &HardState) -> [u8; 24] {
    let mut bytes = [0; 24];
    for (slot, value) in bytes.chunks_exact_mut(8).zip([state.term, state.vote, state.commit]) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn decode_numbers<const N: usize>(path: &Path, bytes: &[u8], what: &str) -> Result<[u64; N], StoreError> {
    if bytes.len() != N * 8 {
        return Err(StoreError::corrupt(path, format!("the {what} record has {} bytes", bytes.len())));
    }
    let mut numbers = [0; N];
    for (number, slot) in numbers.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *number = u64::from_le_bytes(*slot);
    }
    Ok(numbers)
}

fn decode_hard_state(path: &Path, bytes: &[u8]) -> Result<HardState, StoreError> {
    let [term, vote, commit] = decode_numbers(path, bytes, "hard state")?;
    Ok(HardState { term, vote, commit, ..Default::default() })
}

fn encode_position(position: Position) -> Vec<u8> {
    [position.index.to_le_bytes(), position.term.to_le_bytes()].concat()
}

fn decode_position(path: &Path, bytes: &[u8]) -> Result<Position, StoreError> {
    let [index, term] = decode_numbers(path, bytes, "position")?;
    Ok(Position { index, term })
}

fn encode_membership(membership: &Membership) -> Result<Vec<u8>, StoreError> {
    to_json(&StoredMembership {
        applied: membership.applied,
        members: StoredConfState::from(&membership.conf_state),
    })
}

fn decode_membership(path: &Path, bytes: &[u8]) -> Result<Membership, StoreError> {
    let StoredMembership { applied, members } = from_json(path, "membership", bytes)?;
    Ok(Membership { conf_state: members.into(), applied })
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|e| StoreError::Refused(e.to_string()))
}

fn from_json<T: for<'de> Deserialize<'de>>(path: &Path, what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| StoreError::corrupt(path, format!("the {what} record: {e}")))
}
