//! Snapshots of the state machine: one file each, written beside the log, complete or absent.
//!
//! A file is a header line of JSON, the state as JSON, then the CRC-32 of both. It gets its name only after it is on disk.

use super::data_dir::{create_private_dir, sync_dir};
use super::log_store::{FORMAT_VERSION, Position};
use super::membership::StoredConfState;
use raft::eraftpb::ConfState;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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

/// The directory of snapshot files of one member.
#[derive(Debug, Clone)]
pub struct SnapshotDir {
    path: PathBuf,
    cluster_id: String,
}

impl SnapshotDir {
    /// Creates the directory if need be and removes what an interrupted write left.
    pub fn open(path: &Path, cluster_id: &str) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Write { path: path.to_owned(), source };
        create_private_dir(path).map_err(failed)?;
        for entry in fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            if file.extension().is_some_and(|e| e == "partial") {
                fs::remove_file(&file).map_err(failed)?;
            }
        }
        path.parent().map_or(Ok(()), sync_dir).map_err(failed)?;
        Ok(Self { path: path.to_owned(), cluster_id: cluster_id.to_owned() })
    }

    /// Writes a state as of `position`; durable when it returns.
    pub fn write<S: Serialize>(
        &self,
        position: Position,
        conf_state: &ConfState,
        state: &S,
    ) -> Result<(), SnapshotError> {
        self.write_with(position, conf_state, |out| Ok(serde_json::to_writer(out, state)?))
    }

    /// Writes a snapshot that came from another member.
    pub fn write_received(
        &self,
        position: Position,
        conf_state: &ConfState,
        state: &[u8],
    ) -> Result<(), SnapshotError> {
        self.write_with(position, conf_state, |out| out.write_all(state))
    }

    fn write_with(
        &self,
        position: Position,
        conf_state: &ConfState,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), SnapshotError> {
        let path = self.file(position);
        let partial = path.with_extension("partial");
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
            fs::rename(&partial, &path)?;
            sync_dir(&self.path)
        };
        write().map_err(|source| {
            // A disk that is full must not stay full because of us.
            let _ = fs::remove_file(&partial);
            SnapshotError::Write { path, source }
        })
    }

    pub fn read(&self, position: Position) -> Result<Snapshot, SnapshotError> {
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
            return Err(corrupt(format!(
                "it has format {}, this build reads {FORMAT_VERSION}",
                header.format
            )));
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

    pub fn parse<S: for<'de> Deserialize<'de>>(
        &self,
        position: Position,
        state: &[u8],
    ) -> Result<S, SnapshotError> {
        serde_json::from_slice(state).map_err(|e| SnapshotError::Corrupt {
            path: self.file(position),
            what: format!("its state: {e}"),
        })
    }

    /// Removes every other snapshot. A file that cannot be removed now goes with the next call.
    pub fn keep_only(&self, position: Position) {
        let keep = self.file(position);
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let file = entry.path();
            if file.extension().is_some_and(|e| e == "snapshot")
                && file != keep
                && let Err(error) = fs::remove_file(&file)
            {
                tracing::warn!(file = %file.display(), %error, "cannot remove an old snapshot");
            }
        }
    }

    fn file(&self, position: Position) -> PathBuf {
        self.path.join(format!("{:020}-{}.snapshot", position.index, position.term))
    }
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
    fn an_interrupted_write_is_cleaned_up() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("00012-3.partial"), b"half").unwrap();
        SnapshotDir::open(temp.path(), "c1").unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }
}
