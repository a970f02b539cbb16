//! Who has failed in a stage, and gets no more of it.

use crate::Exclusion;
use crate::fleet::{ExecutorIndex, Fleet, WorkerIndex};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(crate) struct Distrust {
    failures: BTreeMap<ExecutorIndex, u32>,
    executors: BTreeSet<ExecutorIndex>,
    by_worker: BTreeMap<WorkerIndex, BTreeSet<ExecutorIndex>>,
    workers: BTreeSet<WorkerIndex>,
}

impl Distrust {
    pub fn note(&mut self, executor: ExecutorIndex, worker: WorkerIndex, rules: Exclusion) {
        let failures = self.failures.entry(executor).or_default();
        *failures += 1;
        if *failures >= rules.stage_failures_max.max(1) {
            self.executors.insert(executor);
            let here = self.by_worker.entry(worker).or_default();
            here.insert(executor);
            if here.len() >= rules.executors_per_worker_max.max(1) as usize {
                self.workers.insert(worker);
            }
        }
    }

    pub fn excludes(&self, executor: ExecutorIndex, fleet: &Fleet) -> bool {
        // Almost always both are empty.
        (!self.executors.is_empty() && self.executors.contains(&executor))
            || (!self.workers.is_empty() && self.workers.contains(&fleet.executor(executor).worker))
    }

    /// Rather than that nobody is left: takes the one back that has failed least. Says whether it did anything.
    pub fn lift_if_none_is_left(&mut self, fleet: &Fleet) -> bool {
        if self.executors.is_empty() && self.workers.is_empty()
            || fleet.usable().any(|executor| !self.excludes(executor, fleet))
        {
            return false;
        }
        let failures = |executor: &ExecutorIndex| {
            (self.failures.get(executor).copied().unwrap_or_default(), fleet.executor(*executor).id)
        };
        let Some(best) = fleet.usable().min_by_key(failures) else { return false };
        let worker = fleet.executor(best).worker;
        self.executors.remove(&best);
        self.workers.remove(&worker);
        if let Some(here) = self.by_worker.get_mut(&worker) {
            here.remove(&best);
        }
        true
    }

    /// Of a stage that has finished: what is to be held against the executors from now on.
    pub fn take_failures(&mut self) -> BTreeMap<ExecutorIndex, u32> {
        std::mem::take(&mut self.failures)
    }

    pub fn excluded(&self, fleet: &Fleet) -> Vec<ExecutorIndex> {
        let all = fleet.executors().filter(|(index, executor)| executor.up && self.excludes(*index, fleet));
        all.map(|(index, _)| index).collect()
    }
}
