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
    /// Takes over what an earlier run has left in `root`, which must exist and in which nothing may be running. What was
    /// being written or removed goes. Outputs stay for now if they are `whole`: nobody syncs them, so of those from before a
    /// reboot parts may be missing, and they go, too.
    pub fn open(root: PathBuf, whole: bool) -> io::Result<Self> {
        let remover = Remover::start(root.clone())?;
        let (tenants, stuck) = (watch::Sender::new(None), BTreeSet::new());
        let mut store = Self { root, tenants, present: BTreeSet::new(), stuck, remover, removals: 0 };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&store.root)? {
            names.extend(entry?.file_name().into_string());
        }
        for name in names {
            if name.starts_with(REMOVED_PREFIX) {
                store.remover.remove(store.root.join(name));
            } else if let Ok(id) = name.parse::<ApplicationId>() {
                store.take_over(id, whole)?;
            }
        }
        Ok(store)
    }

    fn take_over(&mut self, id: ApplicationId, whole: bool) -> io::Result<()> {
        if !whole {
            // Better not to start than to serve them.
            self.set_aside(&id)?;
            tracing::info!(application = %id, "removing its map outputs: the machine has been started anew since");
            return Ok(());
        }
        // Before any new executor can write: this knows no executors' numbers.
        if let Err(error) = remove_temporary(&self.root, &id, TEMPORARY_PREFIX) {
            tracing::warn!(application = %id, "cannot remove unfinished map outputs: {error}");
        }
        self.present.insert(id);
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn app(n: u32) -> ApplicationId {
        format!("app-{n}").parse().unwrap()
    }

    fn tenants(numbers: &[u32]) -> BTreeMap<ApplicationId, Secret> {
        numbers.iter().map(|n| (app(*n), Secret::new("t"))).collect()
    }

    fn put(root: &Path, file: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }

    #[track_caller]
    fn eventually(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }

    fn names(root: &Path) -> BTreeSet<String> {
        std::fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn nothing_goes_before_the_first_assignment_and_under_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for n in 1..=3 {
            put(root, &format!("app-{n}/q/1-0-0.shuffle"));
        }
        let mut store = Store::open(root.into(), true).unwrap();
        store.tidy(|_| false);
        assert_eq!(names(root).len(), 3);
        store.assign(tenants(&[1]));
        store.tidy(|id| *id == app(2));
        assert!(!root.join("app-3").exists(), "gone by its name at once");
        eventually("app-3 gone", || names(root) == ["app-1", "app-2"].map(str::to_owned).into());
        store.tidy(|_| false);
        eventually("app-2 gone", || names(root) == ["app-1".to_owned()].into());

        // It comes back, and its directory with it.
        store.assign(tenants(&[1, 2]));
        store.expect(&app(2));
        put(root, "app-2/q/1-0-0.shuffle");
        store.tidy(|_| false);
        assert!(root.join("app-2").exists());
        store.assign(tenants(&[1]));
        // Of one that never got so far there is none.
        store.expect(&app(4));
        store.tidy(|_| false);
        eventually("app-2 gone again", || names(root) == ["app-1".to_owned()].into());
    }

    #[test]
    fn after_a_reboot_nothing_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "app-1/q/1-0-0.shuffle");
        put(dir.path(), "lost+found/x");
        let _store = Store::open(dir.path().into(), false).unwrap();
        assert!(!dir.path().join("app-1").exists(), "before anybody could be served");
        eventually("app-1 gone", || names(dir.path()) == ["lost+found".to_owned()].into());
    }

    #[test]
    fn a_name_that_is_left_from_before_is_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(root, "app-1/q/1-0-0.shuffle");
        let mut store = Store::open(root.into(), true).unwrap();
        // As if its removal had been stuck since the last start.
        put(root, ".removed-app-1-1/x");
        store.assign(tenants(&[]));
        store.tidy(|_| false);
        eventually("app-1 gone", || names(root) == [".removed-app-1-1".to_owned()].into());
        drop(store);
        let _store = Store::open(root.into(), true).unwrap();
        eventually("the leftover gone", || names(root).is_empty());
    }

    #[test]
    fn links_that_were_planted_are_removed_and_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = dir.path();
        put(outside.path(), "q/.tmp-1-0");
        std::os::unix::fs::symlink(outside.path(), root.join("app-1")).unwrap();
        put(root, "app-2/x");
        std::os::unix::fs::symlink(outside.path().join("q"), root.join("app-2/q")).unwrap();
        let mut store = Store::open(root.into(), true).unwrap();
        for application in [app(1), app(2)] {
            store.executor_ended(&ExecutorId { application, number: 1 });
        }
        store.assign(tenants(&[]));
        store.tidy(|_| false);
        eventually("both gone", || names(root).is_empty());
        assert!(outside.path().join("q/.tmp-1-0").exists());
    }
}
