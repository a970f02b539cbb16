//! The private directory of a client-mode driver. Removed at the end; what a killed `submit` left behind is removed by
//! the next one.

use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A directory that exists as long as this value.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Locked while the directory is in use; the lock ends with the process, however that ends.
    _lock: File,
}

impl Scratch {
    /// Creates it under `TMPDIR`, for this user alone.
    pub fn create() -> io::Result<Self> {
        let uid = rustix::process::getuid().as_raw();
        Self::create_in(&std::env::temp_dir().join(format!("firesteel-submit-{uid}")))
    }

    fn create_in(base: &Path) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(base) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_private(base)?,
            Err(error) => return Err(error),
        }
        sweep(base);
        loop {
            let path = base.join(format!("{:016x}", rand::random::<u64>()));
            DirBuilder::new().mode(0o700).create(&path)?;
            let lock = File::open(&path)?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            // Another submit may have swept it away between its creation and its lock.
            if path.exists() {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.path));
    }
}

/// In a shared `/tmp` somebody else may have made a directory of this name, or a link.
fn check_private(base: &Path) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(base)?;
    let own = metadata.is_dir()
        && metadata.uid() == rustix::process::getuid().as_raw()
        && metadata.permissions().mode() & 0o077 == 0;
    if own {
        Ok(())
    } else {
        let text =
            format!("{} is not a private directory of this user; remove it or set TMPDIR", base.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }
}

/// Removes directories whose owner is gone: nobody holds their lock.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        if let Ok(directory) = File::open(entry.path())
            && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("firesteel-scratch-test-{name}-{}", std::process::id()))
    }

    #[test]
    fn directories_live_as_long_as_their_owner() {
        let base = base("owner");
        let first = Scratch::create_in(&base).unwrap();
        std::fs::write(first.path().join("spill"), "x").unwrap();
        let mode = std::fs::metadata(first.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let abandoned = base.join("abandoned");
        std::fs::create_dir(&abandoned).unwrap();
        std::fs::write(abandoned.join("spill"), "x").unwrap();

        let second = Scratch::create_in(&base).unwrap();
        assert!(first.path().join("spill").exists(), "a directory in use stays");
        assert!(!abandoned.exists(), "what a killed submit left is gone");
        let (a, b) = (first.path().to_owned(), second.path().to_owned());
        drop((first, second));
        assert!(!a.exists() && !b.exists());
        std::fs::remove_dir(&base).unwrap();
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let base = base("open");
        std::fs::create_dir(&base).unwrap();
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = Scratch::create_in(&base).unwrap_err();
        assert!(error.to_string().contains("not a private directory"), "{error}");
        std::fs::remove_dir(&base).unwrap();
    }
}
