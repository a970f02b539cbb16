//! The executors and their workers: who has a free slot, who is trusted, who is gone.

use crate::{AttemptId, Exclusion, ExecutorId, Place, WorkerKey};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ExecutorIndex(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerIndex(u32);

/// Sorts executors with free slots: the least loaded first, then by number.
type Load = (usize, ExecutorId, ExecutorIndex);

#[derive(Debug)]
pub(crate) struct Executor {
    pub id: ExecutorId,
    pub worker: WorkerIndex,
    pub up: bool,
    slots: u32,
    /// What runs on it, tasks and parts of gangs.
    running: BTreeSet<AttemptId>,
    /// In stages that finished in spite of them.
    failures: u32,
    excluded: bool,
    suspect_until: Option<Duration>,
    /// How it stands in the sets of those with free slots.
    listed: Option<Load>,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub up: bool,
    /// How often it was lost: what was written in an earlier life is gone.
    pub life: u32,
    free: BTreeSet<Load>,
    executors: BTreeSet<ExecutorIndex>,
    excluded_executors: BTreeSet<ExecutorIndex>,
    excluded: bool,
}

/// Where an output is that an attempt says it has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Inline,
    On(WorkerIndex),
    Gone,
}

#[derive(Debug, Default)]
pub(crate) struct Fleet {
    executors: Vec<Executor>,
    workers: Vec<Worker>,
    by_id: BTreeMap<ExecutorId, ExecutorIndex>,
    by_key: BTreeMap<WorkerKey, WorkerIndex>,
    free: BTreeSet<Load>,
    workers_with_free: BTreeSet<WorkerIndex>,
    /// Up, with slots, not excluded; full or suspect ones too.
    usable: BTreeSet<ExecutorIndex>,
}

impl Fleet {
    pub fn executor(&self, index: ExecutorIndex) -> &Executor {
        &self.executors[index.0 as usize]
    }

    pub fn worker(&self, index: WorkerIndex) -> &Worker {
        &self.workers[index.0 as usize]
    }

    pub fn find(&self, id: ExecutorId) -> Option<ExecutorIndex> {
        self.by_id.get(&id).copied()
    }

    pub fn executors(&self) -> impl Iterator<Item = (ExecutorIndex, &Executor)> {
        (0..).map(ExecutorIndex).zip(&self.executors)
    }

    fn intern(&mut self, key: WorkerKey) -> WorkerIndex {
        let next = WorkerIndex(self.workers.len() as u32);
        let index = *self.by_key.entry(key).or_insert(next);
        if index == next {
            self.workers.push(Worker {
                up: true,
                life: 0,
                free: BTreeSet::new(),
                executors: BTreeSet::new(),
                excluded_executors: BTreeSet::new(),
                excluded: false,
            });
        }
        index
    }

    /// Returns what still ran on it if it is not where it was: then it is another process, and the old one is gone.
    pub fn executor_up(&mut self, id: ExecutorId, worker: WorkerKey, slots: u32) -> Vec<AttemptId> {
        let worker = self.intern(worker);
        self.workers[worker.0 as usize].up = true;
        let next = ExecutorIndex(self.executors.len() as u32);
        let index = *self.by_id.entry(id).or_insert(next);
        let mut lost = Vec::new();
        if index == next {
            self.executors.push(Executor {
                id,
                worker,
                up: true,
                slots,
                running: BTreeSet::new(),
                failures: 0,
                excluded: false,
                suspect_until: None,
                listed: None,
            });
        } else if self.executor(index).worker != worker {
            lost = self.executor_lost(index);
            let old = self.executor(index).worker;
            self.workers[old.0 as usize].executors.remove(&index);
            self.workers[old.0 as usize].excluded_executors.remove(&index);
        }
        self.workers[worker.0 as usize].executors.insert(index);
        let executor = &mut self.executors[index.0 as usize];
        executor.up = true;
        executor.worker = worker;
        executor.slots = slots;
        executor.suspect_until = None;
        self.relist(index);
        self.lift_if_none_is_usable();
        lost
    }

    /// Returns what ran on it.
    pub fn executor_lost(&mut self, index: ExecutorIndex) -> Vec<AttemptId> {
        let executor = &mut self.executors[index.0 as usize];
        executor.up = false;
        executor.suspect_until = None;
        let running = executor.running.iter().copied().collect();
        self.relist(index);
        self.lift_if_none_is_usable();
        running
    }

    /// The worker, and what ran on its executors.
    pub fn worker_lost(&mut self, key: &WorkerKey) -> Option<(WorkerIndex, Vec<AttemptId>)> {
        let index = *self.by_key.get(key)?;
        let worker = &mut self.workers[index.0 as usize];
        worker.up = false;
        worker.life += 1;
        let executors: Vec<ExecutorIndex> = worker.executors.iter().copied().collect();
        Some((index, executors.into_iter().flat_map(|executor| self.executor_lost(executor)).collect()))
    }

    /// Where an output is, written by an attempt that started when its worker had this life.
    pub fn find_output(&self, place: &Place, executor: ExecutorIndex, life: u32) -> Found {
        let Place::Worker(key) = place else { return Found::Inline };
        match self.by_key.get(key) {
            Some(&index) if self.worker(index).up => {
                let old = index == self.executor(executor).worker && life != self.worker(index).life;
                if old { Found::Gone } else { Found::On(index) }
            }
            _ => Found::Gone,
        }
    }

    pub fn life(&self, index: ExecutorIndex) -> u32 {
        self.worker(self.executor(index).worker).life
    }

    pub fn occupy(&mut self, index: ExecutorIndex, attempt: AttemptId) {
        self.executors[index.0 as usize].running.insert(attempt);
        self.relist(index);
    }

    pub fn release(&mut self, index: ExecutorIndex, attempt: AttemptId) {
        self.executors[index.0 as usize].running.remove(&attempt);
        self.relist(index);
    }

    /// It could not be reached.
    pub fn suspect(&mut self, index: ExecutorIndex, until: Duration) {
        self.executors[index.0 as usize].suspect_until = Some(until);
        self.relist(index);
    }

    /// It has been heard of, or the suspicion has lasted long enough.
    pub fn trust(&mut self, index: ExecutorIndex) {
        if self.executors[index.0 as usize].suspect_until.take().is_some() {
            self.relist(index);
        }
    }

    pub fn suspect_until(&self, index: ExecutorIndex) -> Option<Duration> {
        self.executor(index).suspect_until
    }

    pub fn has_free_slot(&self) -> bool {
        !self.free.is_empty()
    }

    pub fn workers_with_free_slots(&self) -> impl Iterator<Item = WorkerIndex> {
        self.workers_with_free.iter().copied()
    }

    /// The least loaded with a free slot among those that suit.
    pub fn least_loaded(&self, suits: impl Fn(ExecutorIndex) -> bool) -> Option<ExecutorIndex> {
        self.free.iter().map(|&(.., index)| index).find(|&index| suits(index))
    }

    /// The same on one worker.
    pub fn least_loaded_on(
        &self,
        worker: WorkerIndex,
        suits: impl Fn(ExecutorIndex) -> bool,
    ) -> Option<ExecutorIndex> {
        self.worker(worker).free.iter().map(|&(.., index)| index).find(|&index| suits(index))
    }

    /// Those that may be given tasks when they have room.
    pub fn usable(&self) -> impl Iterator<Item = ExecutorIndex> {
        self.usable.iter().copied()
    }

    pub fn has_usable_on(&self, worker: WorkerIndex) -> bool {
        self.worker(worker).executors.iter().any(|index| self.usable.contains(index))
    }

    /// Failures in a stage that has finished.
    pub fn note_failures(&mut self, index: ExecutorIndex, failures: u32, rules: Exclusion) {
        let executor = &mut self.executors[index.0 as usize];
        executor.failures += failures;
        if executor.failures < rules.application_failures_max.max(1) || executor.excluded {
            return;
        }
        executor.excluded = true;
        let worker = &mut self.workers[executor.worker.0 as usize];
        worker.excluded_executors.insert(index);
        worker.excluded |= worker.excluded_executors.len() >= rules.executors_per_worker_max.max(1) as usize;
        let all: Vec<ExecutorIndex> = worker.executors.iter().copied().collect();
        all.into_iter().for_each(|index| self.relist(index));
        self.lift_if_none_is_usable();
    }

    /// Better one that has failed than none at all: the one that has failed least.
    fn lift_if_none_is_usable(&mut self) {
        if !self.usable.is_empty() {
            return;
        }
        let up = self.executors().filter(|(_, executor)| executor.up && executor.slots > 0);
        let Some((_, _, index)) = up.map(|(index, executor)| (executor.failures, executor.id, index)).min()
        else {
            return;
        };
        self.executors[index.0 as usize].excluded = false;
        let worker = &mut self.workers[self.executors[index.0 as usize].worker.0 as usize];
        worker.excluded = false;
        worker.excluded_executors.remove(&index);
        let all: Vec<ExecutorIndex> = worker.executors.iter().copied().collect();
        all.into_iter().for_each(|index| self.relist(index));
    }

    /// Brings the sets up to date with what the executor is now.
    fn relist(&mut self, index: ExecutorIndex) {
        let executor = &mut self.executors[index.0 as usize];
        let worker = &mut self.workers[executor.worker.0 as usize];
        let usable = executor.up && executor.slots > 0 && !executor.excluded && !worker.excluded;
        let free =
            usable && executor.suspect_until.is_none() && executor.running.len() < executor.slots as usize;
        let listed = free.then_some((executor.running.len(), executor.id, index));
        if usable {
            self.usable.insert(index);
        } else {
            self.usable.remove(&index);
        }
        if executor.listed == listed {
            return;
        }
        if let Some(load) = executor.listed {
            self.free.remove(&load);
            worker.free.remove(&load);
        }
        if let Some(load) = listed {
            self.free.insert(load);
            worker.free.insert(load);
        }
        executor.listed = listed;
        if worker.free.is_empty() {
            self.workers_with_free.remove(&executor.worker);
        } else {
            self.workers_with_free.insert(executor.worker);
        }
    }
}

impl Executor {
    pub fn running(&self) -> &BTreeSet<AttemptId> {
        &self.running
    }

    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether it may be given a task now.
    pub fn is_free(&self) -> bool {
        self.listed.is_some()
    }

    /// It could not be reached a moment ago.
    pub fn is_suspect(&self) -> bool {
        self.suspect_until.is_some()
    }
}
