//! Scripts by the hash of their content, one file each.

use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;

/// The largest script that is taken.
pub const MAX_ARTIFACT_BYTES: u64 = 64 << 20;
/// An artifact without an application is kept so long: its submission may be on the way.
const GRACE: Duration = Duration::from_secs(3600);

/// `DATA_DIR/artifacts`. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Artifacts {
    dir: Arc<PathBuf>,
    uploads: Arc<AtomicU64>,
}

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("the script is larger than {} MiB", MAX_ARTIFACT_BYTES >> 20)]
    TooLarge,
    #[error("the script is empty")]
    Empty,
    #[error("the artifact does not have its hash: {expected} named, {got} received")]
    Hash { expected: String, got: String },
    #[error("the artifact store {}: {source}", dir.display())]
    Io { dir: PathBuf, source: io::Error },
}

impl Artifacts {
    /// Creates the directory (0700) and removes what an interrupted upload left.
    pub async fn open(data_dir: &Path) -> Result<Self, ArtifactError> {
        let dir = data_dir.join("artifacts");
        let store = Self { dir: Arc::new(dir), uploads: Arc::default() };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&*store.dir)
            .await
            .map_err(|e| store.failed(e))?;
        let mut entries = fs::read_dir(&*store.dir).await.map_err(|e| store.failed(e))?;
        while let Some(entry) = entries.next_entry().await.map_err(|e| store.failed(e))? {
            if entry.file_name().as_encoded_bytes().starts_with(b".upload-") {
                fs::remove_file(entry.path()).await.map_err(|e| store.failed(e))?;
            }
        }
        Ok(store)
    }

    fn failed(&self, source: io::Error) -> ArtifactError {
        ArtifactError::Io { dir: self.dir.to_path_buf(), source }
    }

    /// `sha256` must have been checked by `firesteel_proto::convert::sha256`.
    fn path(&self, sha256: &str) -> PathBuf {
        self.dir.join(sha256)
    }

    pub async fn contains(&self, sha256: &str) -> bool {
        fs::metadata(self.path(sha256)).await.is_ok_and(|m| m.is_file())
    }

    /// `None` when there is no such artifact.
    pub async fn read(&self, sha256: &str) -> Result<Option<File>, ArtifactError> {
        match File::open(self.path(sha256)).await {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// Begins an upload; dropping it without [`Upload::finish`] leaves nothing.
    pub async fn upload(&self) -> Result<Upload, ArtifactError> {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!(".upload-{number}"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .await
            .map_err(|e| self.failed(e))?;
        Ok(Upload {
            store: self.clone(),
            file,
            temporary: RemoveOnDrop(Some(path)),
            hash: Sha256::new(),
            bytes: 0,
        })
    }

    /// Removes the artifacts that `keep` does not name, except the newest ones. Returns how many.
    pub async fn sweep(&self, keep: &BTreeSet<String>) -> Result<usize, ArtifactError> {
        let mut removed = 0;
        let mut entries = fs::read_dir(&*self.dir).await.map_err(|e| self.failed(e))?;
        while let Some(entry) = entries.next_entry().await.map_err(|e| self.failed(e))? {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|n| !n.starts_with('.')) else { continue };
            let Ok(modified) = entry.metadata().await.and_then(|m| m.modified()) else { continue };
            let recent = SystemTime::now().duration_since(modified).is_ok_and(|age| age < GRACE);
            if !keep.contains(name) && !recent {
                fs::remove_file(entry.path()).await.map_err(|e| self.failed(e))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// An artifact that is being received.
#[derive(Debug)]
pub struct Upload {
    store: Artifacts,
    file: File,
    temporary: RemoveOnDrop,
    hash: Sha256,
    bytes: u64,
}

#[derive(Debug)]
struct RemoveOnDrop(Option<PathBuf>);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // Nothing more can be done about it here; the next start removes what is left.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Upload {
    pub async fn write(&mut self, data: &[u8]) -> Result<(), ArtifactError> {
        self.bytes = self.bytes.saturating_add(data.len() as u64);
        if self.bytes > MAX_ARTIFACT_BYTES {
            return Err(ArtifactError::TooLarge);
        }
        self.hash.update(data);
        self.file.write_all(data).await.map_err(|e| self.store.failed(e))
    }

    /// As [`Upload::finish`], for one whose hash is known: what has another is thrown away.
    pub async fn finish_as(mut self, expected: &str) -> Result<(), ArtifactError> {
        let got = hex(&std::mem::take(&mut self.hash));
        match got == expected {
            true => self.store_as(got).await,
            false => Err(ArtifactError::Hash { expected: expected.to_owned(), got }),
        }
    }

    /// Makes it durable under its hash; answers the hash (lower-case hex) and the size in bytes.
    pub async fn finish(mut self) -> Result<(String, u64), ArtifactError> {
        if self.bytes == 0 {
            return Err(ArtifactError::Empty);
        }
        let (sha256, bytes) = (hex(&std::mem::take(&mut self.hash)), self.bytes);
        self.store_as(sha256.clone()).await?;
        Ok((sha256, bytes))
    }

    async fn store_as(mut self, sha256: String) -> Result<(), ArtifactError> {
        let failed = |e| self.store.failed(e);
        self.file.flush().await.map_err(failed)?;
        self.file.sync_all().await.map_err(failed)?;
        if let Some(temporary) = &self.temporary.0 {
            // Also over an equal file that is there already: its age starts anew, so that no sweep takes it now.
            fs::rename(temporary, self.store.path(&sha256)).await.map_err(failed)?;
        }
        self.temporary.0 = None;
        File::open(&*self.store.dir).await.map_err(failed)?.sync_all().await.map_err(failed)
    }
}

fn hex(hash: &Sha256) -> String {
    hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::AsyncReadExt;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    async fn store_abc(store: &Artifacts) -> String {
        let mut upload = store.upload().await.unwrap();
        upload.write(b"a").await.unwrap();
        upload.write(b"bc").await.unwrap();
        let (sha256, bytes) = upload.finish().await.unwrap();
        assert_eq!(bytes, 3);
        sha256
    }

    #[tokio::test]
    async fn an_artifact_is_stored_once_under_its_hash_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let store = Artifacts::open(dir.path()).await.unwrap();
        assert!(!store.contains(ABC).await);
        assert!(store.read(ABC).await.unwrap().is_none());
        assert_eq!(store_abc(&store).await, ABC);
        assert_eq!(store_abc(&store).await, ABC, "twice is harmless");
        let mut text = String::new();
        store.read(ABC).await.unwrap().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abc");
        let artifacts = dir.path().join("artifacts");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&artifacts), 0o700);
        assert_eq!(mode(&artifacts.join(ABC)), 0o600);
        assert_eq!(std::fs::read_dir(artifacts).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn too_much_too_little_and_interrupted_uploads_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Artifacts::open(dir.path()).await.unwrap();
        let mut large = store.upload().await.unwrap();
        let chunk = vec![0; 16 << 20];
        for _ in 0..4 {
            large.write(&chunk).await.unwrap();
        }
        assert!(matches!(large.write(b"x").await, Err(ArtifactError::TooLarge)));
        drop(large);
        assert!(matches!(store.upload().await.unwrap().finish().await, Err(ArtifactError::Empty)));
        let mut half = store.upload().await.unwrap();
        half.write(b"half").await.unwrap();
        drop(half);
        assert_eq!(std::fs::read_dir(dir.path().join("artifacts")).unwrap().count(), 0);

        std::fs::write(dir.path().join("artifacts/.upload-9"), "left by a crash").unwrap();
        Artifacts::open(dir.path()).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("artifacts")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_sweep_takes_what_is_old_and_unused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Artifacts::open(dir.path()).await.unwrap();
        store_abc(&store).await;
        let none = BTreeSet::new();
        assert_eq!(store.sweep(&none).await.unwrap(), 0, "its submission may be on the way");
        let old = SystemTime::now() - 2 * GRACE;
        let file = std::fs::File::options().write(true).open(dir.path().join("artifacts").join(ABC)).unwrap();
        file.set_modified(old).unwrap();
        assert_eq!(store.sweep(&BTreeSet::from([ABC.to_owned()])).await.unwrap(), 0, "in use");
        assert_eq!(store.sweep(&none).await.unwrap(), 1);
        assert!(!store.contains(ABC).await);
    }
}
