//! Whose directories are there and which have to go. Owned by the worker's loop.
//!
//! Level-triggered: after every change the loop calls [`Store::tidy`], which removes the directory of every application that
//! the last assignment does not name, once no executor of it is left that could write there. Before the first assignment
//! nothing is removed; one from a leader that has been replaced never comes this far, because the loop refuses it whole.

use super::remover::{Remover, remove_temporary};
use super::{REMOVED_PREFIX, TEMPORARY_PREFIX, Tenants};
use firesteel_common::{ApplicationId, ExecutorId, Secret};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    tenants: watch::Sender<Tenants>,
    /// Whose directories are there, or may be.
    present: BTreeSet<ApplicationId>,
    /// Those of which it has been said that they cannot be removed.
    stuck: BTreeSet<ApplicationId>,
    remover: Remover,
    removals: u64,
}

impl Store {
    /// Takes over what an earlier run has left in `root`, which must exist and in which nothing may be running: outputs
    /// stay for now, what was being written or removed goes.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        let remover = Remover::start(root.clone())?;
        let mut present = BTreeSet::new();
        for entry in std::fs::read_dir(&root)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(REMOVED_PREFIX) {
                remover.remove(entry.path());
            } else if let Ok(id) = name.parse::<ApplicationId>() {
                // Before any new executor can write: this knows no executors' numbers.
                if let Err(error) = remove_temporary(&root, &id, TEMPORARY_PREFIX) {
                    tracing::warn!(application = %id, "cannot remove unfinished map outputs: {error}");
                }
                present.insert(id);
            }
        }
        let tenants = watch::Sender::new(None);
        Ok(Self { root, tenants, present, stuck: BTreeSet::new(), remover, removals: 0 })
    }

    pub fn tenants(&self) -> watch::Receiver<Tenants> {
        self.tenants.subscribe()
    }

    /// What the last assignment says. Others are refused from now on, whether their directories are gone already or not.
    pub fn assign(&mut self, tenants: BTreeMap<ApplicationId, Secret>) {
        self.tenants.send_if_modified(|old| {
            let changed = old.as_deref() != Some(&tenants);
            if changed {
                *old = Some(Arc::new(tenants));
            }
            changed
        });
    }

    /// An executor of this application is about to be launched, and its directory to be made.
    pub fn expect(&mut self, application: &ApplicationId) {
        self.present.insert(application.clone());
    }

    /// Nothing of this executor runs any more.
    pub fn executor_ended(&self, executor: &ExecutorId) {
        self.remover.remove_temporary(executor.clone());
    }

    /// `writes`: whether an executor of an application lives here.
    pub fn tidy(&mut self, writes: impl Fn(&ApplicationId) -> bool) {
        let tenants = self.tenants.borrow().clone();
        let Some(tenants) = tenants else { return };
        let over: Vec<_> =
            self.present.iter().filter(|id| !tenants.contains_key(*id) && !writes(id)).cloned().collect();
        for id in over {
            match self.set_aside(&id) {
                Ok(true) => tracing::info!(application = %id, "removing its map outputs"),
                // None of its executors came so far that its directory was made.
                Ok(false) => {}
                Err(error) => {
                    if self.stuck.insert(id.clone()) {
                        tracing::warn!(application = %id, "cannot remove its map outputs: {error}");
                    }
                    continue;
                }
            }
            self.stuck.remove(&id);
            self.present.remove(&id);
        }
    }

    /// Renames the directory, so that it is gone at once and whole; deleting takes its time. `false` when there is none.
    fn set_aside(&mut self, id: &ApplicationId) -> io::Result<bool> {
        let from = self.root.join(id.as_str());
        loop {
            self.removals += 1;
            let to = self.root.join(format!("{REMOVED_PREFIX}{id}-{}", self.removals));
            match rustix::fs::rename(&from, &to) {
                Ok(()) => {
                    self.remover.remove(to);
                    return Ok(true);
                }
                Err(Errno::NOENT) => return Ok(false),
                // Left by an earlier run and not removed yet: take the next name.
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
}
