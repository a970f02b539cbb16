//! Where a task runs: near what it reads if that is worth it, else where there is the most room.
//!
//! Problem: tasks of a stage, some of which would rather be on a certain worker, and executors with free slots. A free slot
//! is worth more than a short way: only for [`crate::Policy::locality_wait`] after its inputs came together does a task
//! hold out for a slot near them, by default not at all. But a slot takes the tasks near it first.
//!
//! A task would like to be on the worker that holds the most bytes of what it reads, if that is a substantial part of them.
//! Of a shuffle each consumer is taken to read the same share of every output; then all tasks of the stage want the same.

use super::{At, Job, Task};
use crate::context::Context;
use crate::fleet::{ExecutorIndex, WorkerIndex};
use crate::graph::producers_of;
use crate::{Cause, InputKind};
use std::collections::BTreeMap;

pub(crate) struct Choice {
    pub task: u32,
    pub executor: ExecutorIndex,
    pub speculative: bool,
}

/// Copies that are looked at for one free slot: a copy does not suit only where its task runs already.
const COPIES_TRIED_MAX: usize = 8;

impl Job {
    pub fn choose(&self, cx: &Context, stage: usize) -> Option<Choice> {
        let stage = &self.stages[stage];
        let fleet = &cx.fleet;
        let suits = |executor: ExecutorIndex| !stage.distrust.excludes(executor, fleet);
        let first = |task: u32, executor| Choice { task, executor, speculative: false };

        if let Some(worker) = stage.queue.common
            && let Some(task) = stage.queue.first_near(worker)
            && let Some(executor) = fleet.least_loaded_on(worker, suits)
        {
            return Some(first(task, executor));
        }
        for worker in fleet.workers_with_free_slots().take_while(|_| stage.queue.wished().next().is_some()) {
            if let Some(task) = stage.queue.first_near(worker)
                && let Some(executor) = fleet.least_loaded_on(worker, suits)
            {
                return Some(first(task, executor));
            }
        }
        let executor = fleet.least_loaded(suits)?;
        let over = cx.now >= stage.local_until;
        if let Some(task) = stage.queue.first_anywhere(|worker| over || !fleet.has_usable_on(worker)) {
            let better =
                |executor| suits(executor) && !self.has_gone_wrong_on(cx, stage.task(task), executor);
            return Some(first(task, fleet.least_loaded(better).unwrap_or(executor)));
        }
        stage.copies.iter().take(COPIES_TRIED_MAX).find_map(|&task| {
            let task_now = &stage.tasks[task as usize];
            let original = task_now.attempts.get(task_now.live.only()? as usize)?.executor;
            let worker = fleet.executor(original).worker;
            let elsewhere = |executor| suits(executor) && fleet.executor(executor).worker != worker;
            let another = |executor| suits(executor) && executor != original;
            let executor = fleet.least_loaded(elsewhere).or_else(|| fleet.least_loaded(another))?;
            Some(Choice { task, executor, speculative: true })
        })
    }

    /// Whether the task has better not run here again, if there is a choice: where it failed, or where what it left got lost.
    fn has_gone_wrong_on(&self, cx: &Context, task: &Task, executor: ExecutorIndex) -> bool {
        task.attempts.last().is_some_and(|last| match task.cause {
            Cause::OutputLost => {
                cx.fleet.executor(last.executor).worker == cx.fleet.executor(executor).worker
            }
            Cause::Failed | Cause::Interrupted | Cause::InputLost => last.executor == executor,
            _ => false,
        })
    }

    /// The inputs of the stage have come together: sorts its waiting tasks by where they are.
    pub fn sort_by_place(&mut self, cx: &Context, stage: usize) {
        self.stages[stage].queue.common = self.favourite(cx, stage, None);
        self.stages[stage].local_until = cx.now.saturating_add(cx.policy.locality_wait);
        if self.reads_groups(stage) {
            for task in self.stages[stage].queue.tasks() {
                let near = self.preference(cx, At { stage, task });
                self.stages[stage].queue.push(task, near);
            }
        }
    }

    /// Where this task, unlike the others of its stage, would like to be.
    pub fn preference(&self, cx: &Context, at: At) -> Option<WorkerIndex> {
        self.reads_groups(at.stage).then(|| self.favourite(cx, at.stage, Some(at.task))).flatten()
    }

    /// Whether tasks of the stage read different producers.
    fn reads_groups(&self, stage: usize) -> bool {
        let coalesces = |kind| kind == InputKind::Coalesce;
        self.stages[stage].inputs.iter().any(|edge| !edge.streamed && coalesces(edge.kind))
    }

    /// The worker that has the most bytes of what one task reads, or, without a task, of what all tasks read.
    fn favourite(&self, cx: &Context, stage: usize, task: Option<u32>) -> Option<WorkerIndex> {
        let consumer = &self.stages[stage];
        if task.is_none() && self.reads_groups(stage) {
            return None;
        }
        let mut bytes_on: BTreeMap<WorkerIndex, u64> = BTreeMap::new();
        for edge in consumer.inputs.iter().filter(|edge| !edge.streamed) {
            let producer = &self.stages[edge.stage];
            match (edge.kind, task) {
                (InputKind::Coalesce, Some(task)) => {
                    let group = producers_of(edge.kind, producer.task_count(), consumer.task_count(), task);
                    for made in group.filter_map(|n| producer.tasks[n as usize].output.as_ref()) {
                        if let Some(worker) = made.worker {
                            let bytes = bytes_on.entry(worker).or_default();
                            *bytes = bytes.saturating_add(made.output.bytes);
                        }
                    }
                }
                (kind, _) => {
                    let readers = match kind {
                        InputKind::Shuffle => u64::from(consumer.task_count()),
                        _ => 1,
                    };
                    for (&worker, &all) in &producer.bytes_on {
                        let bytes = bytes_on.entry(worker).or_default();
                        *bytes = bytes.saturating_add(all / readers);
                    }
                }
            }
        }
        let total: u128 = bytes_on.values().map(|&bytes| u128::from(bytes)).sum();
        let (&worker, &most) =
            bytes_on.iter().max_by_key(|&(&worker, &bytes)| (bytes, std::cmp::Reverse(worker)))?;
        let substantial = u128::from(most) * 100 >= total * u128::from(cx.policy.locality_percent_min);
        (most > 0 && substantial).then_some(worker)
    }
}
