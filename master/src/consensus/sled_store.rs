//! The medium on disk: one sled tree, made durable by hand.
//!
//! sled 0.34 on Linux ends `flush()` with `sync_file_range`, which leaves file metadata and the disk's own cache out.
//! So every durable batch is one `apply_batch` on one tree (atomic), one `flush()`, then `fdatasync` on our own
//! descriptor of the database file.

use super::data_dir::{create_private_dir, sync_dir};
use super::kv_log::{Change, Kv, KvLog};
use super::log_store::StoreError;
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

pub type SledStore = KvLog<SledKv>;

/// Entries are read back right after they were written, or once, at start.
const CACHE_BYTES: u64 = 2 << 20;
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

pub struct SledKv {
    /// Always there until dropped.
    db: Option<sled::Db>,
    /// Our own descriptor of sled's one data file, for `fdatasync`.
    file: File,
    path: PathBuf,
}

impl SledKv {
    /// Opens or creates the database in `path`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_private_dir(path).map_err(|e| StoreError::io("cannot create", path, e))?;
        remove_unfinished_snapshots(path)?;
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()
            .map_err(|e| engine_error(path, e))?;
        let file_path = path.join("db");
        let file = File::open(&file_path).map_err(|e| StoreError::io("cannot open", &file_path, e))?;
        let mut kv = Self { db: Some(db), file, path: path.to_owned() };
        // The files' names must be durable before anything in them counts as durable.
        kv.sync()?;
        let settings = path.join("conf");
        File::open(&settings)
            .and_then(|file| file.sync_all())
            .and_then(|()| sync_dir(path))
            .and_then(|()| path.parent().map_or(Ok(()), sync_dir))
            .map_err(|e| StoreError::io("cannot sync", path, e))?;
        Ok(kv)
    }
}

impl SledKv {
    fn db(&self) -> Result<&sled::Db, StoreError> {
        self.db.as_ref().ok_or_else(|| StoreError::Engine {
            path: self.path.clone(),
            message: "used after it was closed".to_owned(),
        })
    }
}

impl Drop for SledKv {
    /// sled's own threads may hold its file, and the lock on it, a little longer than its handle: waits for them, so
    /// that the directory can be opened again at once. Not for ever: what is durable does not depend on it.
    fn drop(&mut self) {
        drop(self.db.take());
        let start = Instant::now();
        while start.elapsed() < CLOSE_LIMIT {
            if rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        tracing::warn!(path = %self.path.display(), "sled has not let go of its file");
    }
}

/// A crash while sled writes a snapshot of its own leaves `snap.*.generating`, which its next open takes for damage.
fn remove_unfinished_snapshots(path: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("cannot clean up", path, e);
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().ends_with(b".generating") {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn engine_error(path: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Corruption { .. } => StoreError::corrupt(path, "sled finds its file corrupt"),
        sled::Error::Io(source) => StoreError::io("cannot use the log store in", path, source),
        other => StoreError::Engine { path: path.to_owned(), message: other.to_string() },
    }
}

impl Kv for SledKv {
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        for item in self.db()?.range(from..to) {
            let (key, value) = item.map_err(|e| engine_error(&self.path, e))?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&mut self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.db()?.apply_batch(batch).map_err(|e| engine_error(&self.path, e))
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.db()?.flush().map_err(|e| engine_error(&self.path, e))?;
        self.file.sync_data().map_err(|e| StoreError::io("cannot sync", &self.path, e))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
