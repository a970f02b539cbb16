//! Snapshots of the state machine: one file each, written beside the log, complete or absent.
//!
//! A file is a header line of JSON, the state as JSON, then the CRC-32 of both. It gets its name only after it is on disk.

use super::data_dir::{create_private_dir, sync_dir};
use super::log_store::{FORMAT_VERSION, Position};
use super::membership::StoredConfState;
use raft::eraftpb::ConfState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot write the snapshot {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read the snapshot {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the snapshot {} is damaged: {what}. Restore the data directory from a backup, or move it away and start \
         with an empty --data-dir (what this master alone knew is then lost)",
        path.display()
    )]
    Corrupt { path: PathBuf, what: String },
    #[error(
        "the snapshot {} has format {found}, and this build reads format {supported}: start the firesteel-master \
         that wrote it, or give --data-dir another directory",
        path.display()
    )]
    Format { path: PathBuf, found: u32, supported: u32 },
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    cluster_id: String,
    position: Position,
    members: StoredConfState,
}

/// A snapshot as read from its file.
#[derive(Debug)]
pub struct Snapshot {
    pub position: Position,
    pub conf_state: ConfState,
    /// The state machine as JSON.
    pub state: Vec<u8>,
}

/// Where a member keeps the snapshots of its state machine.
pub trait SnapshotStore: Clone + Send + 'static {
    /// Writes a state as of `position`; durable when it returns.
    fn write<S: Serialize>(
        &self,
        position: Position,
        conf_state: &ConfState,
        state: &S,
    ) -> Result<(), SnapshotError>;
    /// Writes a snapshot that came from another member; durable when it returns.
    fn write_received(
        &self,
        position: Position,
        conf_state: &ConfState,
        state: &[u8],
    ) -> Result<(), SnapshotError>;
    fn read(&self, position: Position) -> Result<Snapshot, SnapshotError>;
    /// Removes every other snapshot.
    fn keep_only(&self, position: Position);
    /// When it was written, in milliseconds since 1970.
    fn written_ms(&self, position: Position) -> Option<u64>;
    /// For messages.
    fn file(&self, position: Position) -> PathBuf;

    fn parse<S: DeserializeOwned>(&self, position: Position, state: &[u8]) -> Result<S, SnapshotError> {
        serde_json::from_slice(state).map_err(|e| SnapshotError::Corrupt {
            path: self.file(position),
            what: format!("its state: {e}"),
        })
    }
}

/// The directory of snapshot files of one member.
#[derive(Debug, Clone)]
pub struct SnapshotDir {
    path: PathBuf,
    cluster_id: String,
}

/// A snapshot that gets its name once the log belongs to the cluster that it names.
const STAGED: &str = "staged";
const PARTIAL: &str = "partial";
const COMPLETE: &str = "snapshot";

impl SnapshotDir {
    /// Creates the directory if need be and removes what an interrupted write left.
    pub fn open(path: &Path, cluster_id: &str) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Write { path: path.to_owned(), source };
        create_private_dir(path).map_err(failed)?;
        let dir = Self { path: path.to_owned(), cluster_id: cluster_id.to_owned() };
        for entry in fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            if has_extension(&file, PARTIAL) {
                fs::remove_file(&file).map_err(failed)?;
            } else if has_extension(&file, STAGED) {
                if header_of(&file).is_some_and(|header| header.cluster_id == cluster_id) {
                    fs::rename(&file, file.with_extension(COMPLETE)).map_err(failed)?;
                } else {
                    fs::remove_file(&file).map_err(failed)?;
                }
            }
        }
        sync_dir(path).and_then(|()| path.parent().map_or(Ok(()), sync_dir)).map_err(failed)?;
        Ok(dir)
    }

    /// Prepares the snapshot at `position` for becoming one of another cluster, of these members. The next
    /// [`SnapshotDir::open`] for that cluster puts it in the old one's place; one for the old cluster removes it.
    pub fn stage_for(
        &self,
        cluster_id: &str,
        position: Position,
        conf_state: &ConfState,
    ) -> Result<(), SnapshotError> {
        let old = self.read(position)?;
        let other = Self { path: self.path.clone(), cluster_id: cluster_id.to_owned() };
        let path = self.file(position).with_extension(STAGED);
        other.write_to(&path, position, conf_state, |out| out.write_all(&old.state))
    }

    fn write_to(
        &self,
        path: &Path,
        position: Position,
        conf_state: &ConfState,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), SnapshotError> {
        let partial = path.with_extension(PARTIAL);
        let write = || {
            let file =
                OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&partial)?;
            let mut out = Checksummed { inner: BufWriter::new(file), hasher: crc32fast::Hasher::new() };
            let header = Header {
                format: FORMAT_VERSION,
                cluster_id: self.cluster_id.clone(),
                position,
                members: conf_state.into(),
            };
            serde_json::to_writer(&mut out, &header)?;
            out.write_all(b"\n")?;
            body(&mut out)?;
            let Checksummed { mut inner, hasher } = out;
            inner.write_all(&hasher.finalize().to_le_bytes())?;
            inner.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&partial, path)?;
            sync_dir(&self.path)
        };
        write().map_err(|source| {
            // A disk that is full must not stay full because of us.
            let _ = fs::remove_file(&partial);
            SnapshotError::Write { path: path.to_owned(), source }
        })
    }
}

impl SnapshotStore for SnapshotDir {
    fn write<S: Serialize>(
        &self,
        position: Position,
        conf_state: &ConfState,
        state: &S,
    ) -> Result<(), SnapshotError> {
        let path = self.file(position);
        self.write_to(&path, position, conf_state, |out| Ok(serde_json::to_writer(out, state)?))
    }

    fn write_received(
        &self,
        position: Position,
        conf_state: &ConfState,
        state: &[u8],
    ) -> Result<(), SnapshotError> {
        self.write_to(&self.file(position), position, conf_state, |out| out.write_all(state))
    }

    fn read(&self, position: Position) -> Result<Snapshot, SnapshotError> {
        let path = self.file(position);
        let mut bytes =
            fs::read(&path).map_err(|source| SnapshotError::Read { path: path.clone(), source })?;
        let corrupt = |what: String| SnapshotError::Corrupt { path: path.clone(), what };
        let Some((content, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(corrupt("it is too short".into()));
        };
        if crc32fast::hash(content) != u32::from_le_bytes(*crc) {
            return Err(corrupt("checksum mismatch".into()));
        }
        let Some(line) = content.iter().position(|b| *b == b'\n') else {
            return Err(corrupt("it has no header".into()));
        };
        let header: Header =
            serde_json::from_slice(&content[..line]).map_err(|e| corrupt(format!("its header: {e}")))?;
        if header.format != FORMAT_VERSION {
            return Err(SnapshotError::Format {
                path: path.clone(),
                found: header.format,
                supported: FORMAT_VERSION,
            });
        }
        if header.cluster_id != self.cluster_id {
            return Err(corrupt(format!("it belongs to cluster {}", header.cluster_id)));
        }
        if header.position != position {
            return Err(corrupt(format!("it is of entry {}", header.position.index)));
        }
        bytes.truncate(bytes.len() - 4);
        bytes.drain(..=line);
        Ok(Snapshot { position, conf_state: header.members.into(), state: bytes })
    }

    /// Removes every other snapshot. A file that cannot be removed now goes with the next call.
    fn keep_only(&self, position: Position) {
        let keep = self.file(position);
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let file = entry.path();
            if has_extension(&file, COMPLETE)
                && file != keep
                && let Err(error) = fs::remove_file(&file)
            {
                tracing::warn!(file = %file.display(), %error, "cannot remove an old snapshot");
            }
        }
    }

    fn written_ms(&self, position: Position) -> Option<u64> {
        let written = fs::metadata(self.file(position)).and_then(|file| file.modified()).ok()?;
        let since = written.duration_since(UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    }

    fn file(&self, position: Position) -> PathBuf {
        self.path.join(format!("{:020}-{}.{COMPLETE}", position.index, position.term))
    }
}

fn has_extension(file: &Path, extension: &str) -> bool {
    file.extension().is_some_and(|e| e == extension)
}

/// The header of a snapshot whose checksum is right.
fn header_of(file: &Path) -> Option<Header> {
    let bytes = fs::read(file).ok()?;
    let (content, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(content) != u32::from_le_bytes(*crc) {
        return None;
    }
    let line = content.split(|b| *b == b'\n').next()?;
    serde_json::from_slice(line).ok()
}

struct Checksummed<W> {
    inner: W,
    hasher: crc32fast::Hasher,
}

impl<W: Write> Write for Checksummed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Position = Position { index: 12, term: 3 };

    fn written(dir: &Path) -> SnapshotDir {
        let snapshots = SnapshotDir::open(dir, "c1").unwrap();
        snapshots.write(AT, &ConfState::from((vec![1], vec![2])), &vec!["a", "b\n"]).unwrap();
        snapshots
    }

    #[test]
    fn snapshots_come_back_and_old_ones_go() {
        let temp = tempfile::tempdir().unwrap();
        let snapshots = written(temp.path());
        let snapshot = snapshots.read(AT).unwrap();
        assert_eq!(snapshot.conf_state, ConfState::from((vec![1], vec![2])));
        assert_eq!(snapshots.parse::<Vec<String>>(AT, &snapshot.state).unwrap(), ["a", "b\n"]);

        let later = Position { index: 20, term: 3 };
        snapshots.write_received(later, &snapshot.conf_state, &snapshot.state).unwrap();
        assert_eq!(snapshots.read(later).unwrap().state, snapshot.state);
        snapshots.keep_only(later);
        assert!(matches!(snapshots.read(AT), Err(SnapshotError::Read { .. })));
        assert!(snapshots.read(later).is_ok());
    }

    #[test]
    fn damage_and_foreign_files_are_found() {
        let temp = tempfile::tempdir().unwrap();
        let snapshots = written(temp.path());
        let path = snapshots.file(AT);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            assert!(matches!(snapshots.read(AT), Err(SnapshotError::Corrupt { .. })), "byte {at}");
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(matches!(snapshots.read(AT), Err(SnapshotError::Corrupt { .. })));
        fs::write(&path, &good).unwrap();
        let other = SnapshotDir::open(temp.path(), "c2").unwrap();
        let error = other.read(AT).unwrap_err();
        assert!(error.to_string().contains("belongs to cluster c1"), "{error}");
    }

    #[test]
    fn another_format_is_refused_with_a_way_out() {
        let temp = tempfile::tempdir().unwrap();
        let snapshots = written(temp.path());
        let path = snapshots.file(AT);
        let good = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&good[..good.len() - 4]).into_owned();
        let other = text.replacen("\"format\":1", "\"format\":2", 1);
        assert_ne!(text, other);
        let crc = crc32fast::hash(other.as_bytes()).to_le_bytes();
        fs::write(&path, [other.as_bytes(), &crc].concat()).unwrap();
        let error = snapshots.read(AT).unwrap_err();
        assert!(matches!(error, SnapshotError::Format { found: 2, supported: 1, .. }), "{error}");
        assert!(error.to_string().contains("--data-dir"), "{error}");
    }

    #[test]
    fn a_staged_snapshot_counts_only_for_its_cluster() {
        let only = ConfState::from((vec![1], vec![]));
        let temp = tempfile::tempdir().unwrap();
        let old = written(temp.path());
        old.stage_for("c2", AT, &only).unwrap();
        assert!(old.read(AT).is_ok(), "the old cluster still has its own");
        // The log did not change hands: the old one stays.
        let old = SnapshotDir::open(temp.path(), "c1").unwrap();
        assert_eq!(old.read(AT).unwrap().conf_state, ConfState::from((vec![1], vec![2])));
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        // It did: the new one takes its place.
        old.stage_for("c2", AT, &only).unwrap();
        let new = SnapshotDir::open(temp.path(), "c2").unwrap();
        assert_eq!(new.read(AT).unwrap().conf_state, only);
        assert_eq!(new.parse::<Vec<String>>(AT, &new.read(AT).unwrap().state).unwrap(), ["a", "b\n"]);
        assert!(old.read(AT).is_err());
    }

    #[test]
    fn an_interrupted_write_is_cleaned_up() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("00012-3.partial"), b"half").unwrap();
        SnapshotDir::open(temp.path(), "c1").unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }
}
