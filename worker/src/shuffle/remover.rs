//! Deletes what is not needed any more, on a thread of its own: thousands of files take their time, and neither the worker's
//! loop nor its end shall wait for them. What is left when the daemon ends is removed at the next start.

use super::TEMPORARY_PREFIX;
use super::output::open_application;
use crate::scratch;
use firesteel_common::{ApplicationId, ExecutorId};
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

enum Job {
    Tree(PathBuf),
    Temporary(ExecutorId),
}

/// Takes orders and does them one after another. Ends when it is dropped, after what is under way.
#[derive(Debug)]
pub struct Remover {
    jobs: mpsc::Sender<Job>,
}

impl Remover {
    /// `root`: where the applications' directories are.
    pub fn start(root: PathBuf) -> io::Result<Self> {
        let (jobs, orders) = mpsc::channel();
        std::thread::Builder::new().name("shuffle-removal".into()).spawn(move || {
            for job in orders {
                perform(&root, job);
            }
        })?;
        Ok(Self { jobs })
    }

    /// A directory that nobody knows by this name any more.
    pub fn remove(&self, path: PathBuf) {
        // It listens for as long as `self` lives.
        let _ = self.jobs.send(Job::Tree(path));
    }

    /// What an executor that has ended was writing.
    pub fn remove_temporary(&self, executor: ExecutorId) {
        let _ = self.jobs.send(Job::Temporary(executor));
    }
}

fn perform(root: &Path, job: Job) {
    match job {
        Job::Tree(path) => match scratch::remove_tree(&path) {
            Ok(()) => tracing::debug!(path = %path.display(), "removed"),
            Err(error) => tracing::warn!(path = %path.display(), "cannot remove old map outputs: {error}"),
        },
        Job::Temporary(executor) => {
            let prefix = format!("{TEMPORARY_PREFIX}{}-", executor.number);
            match remove_temporary(root, &executor.application, &prefix) {
                Ok(0) => {}
                Ok(n) => tracing::info!(%executor, "removed {n} unfinished map outputs"),
                Err(error) => tracing::warn!(%executor, "cannot remove unfinished map outputs: {error}"),
            }
        }
    }
}

/// Removes the files of an application whose names begin so; how many there were.
pub fn remove_temporary(root: &Path, application: &ApplicationId, prefix: &str) -> io::Result<usize> {
    let application = match open_application(root, application) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut removed = 0;
    each_query(&application, |query| {
        for entry in Dir::read_from(query.as_fd())? {
            let entry = entry?;
            if entry.file_name().to_bytes().starts_with(prefix.as_bytes()) {
                match rustix::fs::unlinkat(&query, entry.file_name(), AtFlags::empty()) {
                    Ok(()) => removed += 1,
                    Err(Errno::NOENT | Errno::ISDIR) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    })?;
    Ok(removed)
}

/// Opens each directory in an application's own, following no link.
pub fn each_query(
    application: &OwnedFd,
    mut visit: impl FnMut(OwnedFd) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for entry in Dir::read_from(application)? {
        let entry = entry?;
        if entry.file_name().to_bytes().starts_with(b".") {
            continue;
        }
        match rustix::fs::openat(application, entry.file_name(), flags, Mode::empty()) {
            Ok(directory) => visit(directory)?,
            // Gone meanwhile, or no directory at all.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
