//! The work directory. One worker at a time.
//!
//! ```text
//! lock              flock of the worker that uses it, holding its process id
//! supervisors.lock  flock (shared) of every supervisor: free when nothing of an earlier run lives any more
//! worker-id         kept over restarts
//! epoch             the highest epoch seen
//! boot-id           of the machine, when a worker last ran here
//! work/APP/PROCESS/ scratch; removed when the process ends
//! logs/APP/PROCESS/{stdout,stderr}
//! shuffle/APP/      map outputs, see [`crate::shuffle`]; kept over restarts, removed after the application has ended
//! ```

use firesteel_common::{ApplicationId, Epoch, ProcessId, WorkerId};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const PRIVATE_DIR: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;

/// Why a work directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkDirError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the work directory {} is in use by another worker{}", path.display(), pid_text(*.pid))]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error("{} holds no valid worker id: {reason}", path.display())]
    Identity { path: PathBuf, reason: String },
    #[error("the path {} is not UTF-8", path.display())]
    NotUtf8 { path: PathBuf },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

impl WorkDirError {
    /// A way out; empty when the message says it all.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "give each worker a directory of its own: --work-dir DIR",
            Self::Identity { .. } => "remove that file to let the worker choose a new id",
            Self::Io { .. } | Self::NotUtf8 { .. } => "choose another directory: --work-dir DIR",
        }
    }
}

/// An open and locked work directory. Unlocked when dropped, or when the process ends however it ends.
#[derive(Debug)]
pub struct WorkDir {
    root: PathBuf,
    _lock: File,
}

impl WorkDir {
    pub fn open(path: &Path) -> Result<Self, WorkDirError> {
        make_private_dir(path).map_err(|source| WorkDirError::Io {
            action: "create",
            path: path.into(),
            source,
        })?;
        let root = path.canonicalize().map_err(|source| WorkDirError::Io {
            action: "resolve",
            path: path.into(),
            source,
        })?;
        if root.to_str().is_none() {
            return Err(WorkDirError::NotUtf8 { path: root });
        }
        let lock = lock(&root)?;
        let dir = Self { root, _lock: lock };
        for sub in [dir.scratch_root(), dir.logs_root(), dir.shuffle_root()] {
            make_private_dir(&sub).map_err(|source| WorkDirError::Io {
                action: "create",
                path: sub,
                source,
            })?;
        }
        Ok(dir)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn scratch_root(&self) -> PathBuf {
        self.root.join("work")
    }

    pub fn logs_root(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn shuffle_root(&self) -> PathBuf {
        self.root.join("shuffle")
    }

    /// Where an application's map outputs are.
    pub fn shuffle(&self, id: &ApplicationId) -> PathBuf {
        self.shuffle_root().join(id.as_str())
    }

    pub fn scratch(&self, id: &ProcessId) -> PathBuf {
        self.scratch_root().join(id.application().as_str()).join(id.name())
    }

    pub fn application_logs(&self, id: &ApplicationId) -> PathBuf {
        self.logs_root().join(id.as_str())
    }

    pub fn logs(&self, id: &ProcessId) -> PathBuf {
        self.application_logs(id.application()).join(id.name())
    }

    pub fn supervisors_lock(&self) -> PathBuf {
        self.root.join("supervisors.lock")
    }

    /// Whether supervisors of an earlier run still live. They end by themselves as soon as their worker is gone.
    pub fn supervisors_live(&self) -> Result<bool, WorkDirError> {
        let path = self.supervisors_lock();
        let error = |source| WorkDirError::Io { action: "lock", path: path.clone(), source };
        let file = open_private(&path).map_err(error)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(error(e.into())),
        }
    }

    /// Removes what an earlier run left. Call when no supervisor lives.
    pub fn sweep(&self) -> Result<usize, WorkDirError> {
        let root = self.scratch_root();
        let error = |path: &Path, source| WorkDirError::Io { action: "clean up", path: path.into(), source };
        let mut removed = 0;
        for entry in std::fs::read_dir(&root).map_err(|e| error(&root, e))? {
            let path = entry.map_err(|e| error(&root, e))?.path();
            crate::scratch::remove_tree(&path).map_err(|e| error(&path, e))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// The id in the directory, or a new one that `make` chooses.
    pub fn worker_id(&self, make: impl FnOnce() -> WorkerId) -> Result<WorkerId, WorkDirError> {
        let path = self.root.join("worker-id");
        match std::fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map_err(|error| WorkDirError::Identity { path, reason: format!("{error}") }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = make();
                write_atomically(&path, id.as_str().as_bytes()).map_err(|source| WorkDirError::Io {
                    action: "write",
                    path,
                    source,
                })?;
                Ok(id)
            }
            Err(source) => Err(WorkDirError::Io { action: "read", path, source }),
        }
    }

    /// The highest epoch that was stored; 0 when there is none.
    pub fn epoch(&self) -> Result<Epoch, WorkDirError> {
        let path = self.root.join("epoch");
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "it holds no number");
        match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Epoch).map_err(|_| WorkDirError::Io {
                action: "read",
                path,
                source: invalid(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Epoch(0)),
            Err(source) => Err(WorkDirError::Io { action: "read", path, source }),
        }
    }

    pub fn store_epoch(&self, epoch: Epoch) -> io::Result<()> {
        write_atomically(&self.root.join("epoch"), epoch.to_string().as_bytes())
    }

    /// Whether the machine has been up ever since a worker last ran here. What was not synced to the disk is whole only then.
    /// `boot_id`: the machine's own.
    pub fn is_same_boot(&self, boot_id: Option<&str>) -> bool {
        // What cannot be read is not known to be the same.
        let kept = std::fs::read_to_string(self.root.join("boot-id")).ok();
        boot_id.is_some() && kept.as_deref().map(str::trim) == boot_id
    }

    pub fn store_boot_id(&self, boot_id: &str) -> io::Result<()> {
        write_atomically(&self.root.join("boot-id"), boot_id.as_bytes())
    }

    /// Makes the scratch and log directories of a process, and its application's for map outputs if it is an executor. (It
    /// never makes that one itself: nobody could tell when it is gone for good.)
    pub fn prepare(&self, id: &ProcessId) -> Result<(), WorkDirError> {
        let error = |path, source| WorkDirError::Io { action: "create the directory", path, source };
        for path in [self.scratch(id), self.logs(id)] {
            make_process_dir(&path).map_err(|source| error(path, source))?;
        }
        if let ProcessId::Executor(executor) = id {
            let path = self.shuffle(&executor.application);
            make_dir(&path).map_err(|source| error(path, source))?;
        }
        Ok(())
    }
}

fn lock(root: &Path) -> Result<File, WorkDirError> {
    let path = root.join("lock");
    let error = |source| WorkDirError::Io { action: "lock", path: path.clone(), source };
    let mut file = open_private(&path).map_err(error)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(WorkDirError::InUse { path: root.into(), pid });
        }
        Err(e) => return Err(error(e.into())),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(std::process::id().to_string().as_bytes())
    };
    write(&mut file).map_err(error)?;
    Ok(file)
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE_FILE)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(path)?;
    // It may have existed with wider rights.
    std::fs::set_permissions(path, Permissions::from_mode(PRIVATE_DIR))
}

/// One that is there already is as good, unless it is none.
fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(PRIVATE_DIR).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            if std::fs::symlink_metadata(path)?.is_dir() {
                Ok(())
            } else {
                Err(e)
            }
        }
        result => result,
    }
}

/// The application's directory may vanish in between, with the last of its other processes.
fn make_process_dir(path: &Path) -> io::Result<()> {
    for _ in 0..16 {
        if let Some(parent) = path.parent() {
            match DirBuilder::new().mode(PRIVATE_DIR).create(parent) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        match make_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "its parent keeps vanishing"))
}

/// Readers see the old content or the new, also after a power failure.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(PRIVATE_FILE)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    let result = write();
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_per_directory_and_the_second_learns_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let first = WorkDir::open(&path).unwrap();
        let error = WorkDir::open(&path).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert!(error.hint().contains("--work-dir"));
        drop(first);
        WorkDir::open(&path).unwrap();
    }

    #[test]
    fn directories_are_private_also_when_they_existed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let work = WorkDir::open(&path).unwrap();
        let id: ProcessId = ProcessId::from_name("app-1".parse().unwrap(), "executor-1").unwrap();
        work.prepare(&id).unwrap();
        for path in [work.root().to_path_buf(), work.scratch_root(), work.scratch(&id), work.logs(&id)] {
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o700, "{}", path.display());
        }
    }

    #[test]
    fn map_outputs_stay_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let id = ProcessId::from_name("app-1".parse().unwrap(), "executor-1").unwrap();
        let driver = ProcessId::from_name("app-2".parse().unwrap(), "driver-0").unwrap();
        work.prepare(&driver).unwrap();
        assert!(!work.shuffle(driver.application()).exists(), "a driver leaves none");
        let path = work.shuffle(id.application());
        for _ in 0..2 {
            work.prepare(&id).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
            std::fs::create_dir_all(path.join("query")).unwrap();
        }
        work.sweep().unwrap();
        assert!(path.join("query").exists());
        // Not into what somebody has put in its place.
        std::fs::remove_dir_all(&path).unwrap();
        std::os::unix::fs::symlink("/", &path).unwrap();
        assert!(work.prepare(&id).unwrap_err().to_string().contains("shuffle/app-1"));
    }

    #[test]
    fn identity_and_epoch_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let id = work.worker_id(|| WorkerId::new(0, "a")).unwrap();
        assert_eq!(work.worker_id(|| WorkerId::new(0, "b")).unwrap(), id);
        assert_eq!(work.epoch().unwrap(), Epoch(0));
        work.store_epoch(Epoch(7)).unwrap();
        assert_eq!(work.epoch().unwrap(), Epoch(7));
        std::fs::write(dir.path().join("worker-id"), "../../x").unwrap();
        assert!(matches!(work.worker_id(|| WorkerId::new(0, "a")), Err(WorkDirError::Identity { .. })));
        std::fs::write(dir.path().join("epoch"), "many").unwrap();
        assert!(work.epoch().is_err());
    }

    #[test]
    fn another_boot_is_noticed_and_so_is_one_of_which_nothing_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        assert!(!work.is_same_boot(Some("a")) && !work.is_same_boot(None));
        work.store_boot_id("a").unwrap();
        assert!(work.is_same_boot(Some("a")));
        assert!(!work.is_same_boot(Some("b")) && !work.is_same_boot(None));
    }

    #[test]
    fn a_sweep_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("x")).unwrap();
        let work = WorkDir::open(&dir.path().join("w")).unwrap();
        std::fs::create_dir_all(work.scratch_root().join("app-1/executor-1")).unwrap();
        std::os::unix::fs::symlink(&outside, work.scratch_root().join("app-2")).unwrap();
        assert_eq!(work.sweep().unwrap(), 2);
        assert!(outside.join("x").exists());
        assert_eq!(std::fs::read_dir(work.scratch_root()).unwrap().count(), 0);
    }

    #[test]
    fn a_living_supervisor_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        assert!(!work.supervisors_live().unwrap());
        let held = open_private(&work.supervisors_lock()).unwrap();
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockShared).unwrap();
        assert!(work.supervisors_live().unwrap());
        drop(held);
        assert!(!work.supervisors_live().unwrap());
    }
}
