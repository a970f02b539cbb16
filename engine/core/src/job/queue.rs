//! The tasks of a stage that wait for a slot, by where their inputs are.

use crate::fleet::WorkerIndex;
use std::collections::{BTreeMap, BTreeSet};

/// Tasks leave it in the order of their numbers, except that a worker's slot takes those near it first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Where all tasks of `anywhere` would like to be: they all read the same.
    pub common: Option<WorkerIndex>,
    anywhere: BTreeSet<u32>,
    near: BTreeMap<WorkerIndex, BTreeSet<u32>>,
    near_what: BTreeMap<u32, WorkerIndex>,
}

impl Queue {
    pub fn all(tasks: u32) -> Self {
        Self { anywhere: (0..tasks).collect(), ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.anywhere.is_empty() && self.near_what.is_empty()
    }

    pub fn len(&self) -> usize {
        self.anywhere.len() + self.near_what.len()
    }

    pub fn contains(&self, task: u32) -> bool {
        self.anywhere.contains(&task) || self.near_what.contains_key(&task)
    }

    pub fn push(&mut self, task: u32, near: Option<WorkerIndex>) {
        self.remove(task);
        match near {
            Some(worker) => {
                self.near.entry(worker).or_default().insert(task);
                self.near_what.insert(task, worker);
            }
            None => {
                self.anywhere.insert(task);
            }
        }
    }

    pub fn remove(&mut self, task: u32) {
        self.anywhere.remove(&task);
        let Some(worker) = self.near_what.remove(&task) else { return };
        if let Some(tasks) = self.near.get_mut(&worker) {
            tasks.remove(&task);
            if tasks.is_empty() {
                self.near.remove(&worker);
            }
        }
    }

    pub fn clear(&mut self) {
        *self = Self { common: self.common, ..Self::default() };
    }

    pub fn tasks(&self) -> Vec<u32> {
        self.anywhere.iter().chain(self.near_what.keys()).copied().collect()
    }

    pub fn first_near(&self, worker: WorkerIndex) -> Option<u32> {
        if self.common == Some(worker) && !self.anywhere.is_empty() {
            return self.anywhere.first().copied();
        }
        self.near.get(&worker)?.first().copied()
    }

    /// One that would not rather be elsewhere, else, of those that would, one for which `give_up` holds.
    pub fn first_anywhere(&self, give_up: impl Fn(WorkerIndex) -> bool) -> Option<u32> {
        let free = match self.common {
            Some(worker) if !give_up(worker) => None,
            _ => self.anywhere.first().copied(),
        };
        free.or_else(|| {
            let mut near = self.near.iter();
            near.find(|(worker, _)| give_up(**worker)).and_then(|(_, tasks)| tasks.first().copied())
        })
    }

    /// Whether any task would like to be on some worker.
    pub fn has_wishes(&self) -> bool {
        !self.near_what.is_empty() || (self.common.is_some() && !self.anywhere.is_empty())
    }

    /// The workers that some, but not all, tasks would like to be on.
    pub fn wished(&self) -> impl Iterator<Item = WorkerIndex> {
        self.near.keys().copied()
    }
}
