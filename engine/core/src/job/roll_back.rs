//! What has read an output that will not be the same again runs again.
//!
//! Problem: a task that is not repeatable (its rows depend on the order of arrival, on chance) has to run again. A consumer
//! that has read the old output and one that reads the new one would together miss rows or see them twice (SPARK-23207).
//! So all tasks that may have read the old one run again, and because their outputs may differ then, so does what has read
//! those, down to the results. If rows of a result have left the driver by then, the job fails: it cannot be right any more.

use super::{At, Job, RegionState, TaskState};
use crate::context::Context;
use crate::{CancelReason, Cause};
use std::collections::BTreeSet;

impl Job {
    /// Whether running it, or the gang it is part of, again leaves the same rows.
    pub fn is_repeatable(&self, stage: usize) -> bool {
        self.regions[self.stages[stage].region].stages.iter().all(|&stage| self.stages[stage].repeatable)
    }

    /// Rolls back whatever has read outputs of this region.
    pub fn roll_back_readers(&mut self, cx: &mut Context, region: usize, why: &str) {
        let consumers = self.regions[region].stages.iter().flat_map(|&stage| &self.stages[stage].consumers);
        let materialised = consumers.filter(|edge| !edge.streamed);
        let readers: BTreeSet<usize> = materialised.map(|edge| self.stages[edge.stage].region).collect();
        for reader in readers {
            if !self.is_alive() {
                return;
            }
            let stage = self.regions[reader].stages[0];
            let published = match self.is_gang(stage) {
                true => self.roll_back_gang(cx, reader, why),
                false => self.roll_back_stage(cx, stage, why),
            };
            if published && self.is_alive() {
                self.roll_back_readers(cx, reader, why);
            }
        }
    }

    /// `true` if others may have read what it left.
    fn roll_back_stage(&mut self, cx: &mut Context, stage: usize, why: &str) -> bool {
        let mut reopened = Vec::new();
        let tasks: Vec<At> = (0..self.stages[stage].task_count()).map(|task| At { stage, task }).collect();
        if tasks.iter().any(|&at| self.refuses_to_differ(cx, at)) {
            return false;
        }
        let published = self.raise_barrier(&tasks);
        for at in tasks {
            match self.task(at).state {
                TaskState::Waiting => {}
                TaskState::Running | TaskState::Held => {
                    self.cancel(cx, at, CancelReason::InputsReplaced);
                    self.enqueue(cx, at, Cause::InputsReplaced);
                }
                TaskState::Done | TaskState::Gone => {
                    self.discard_and_lose(cx, at);
                    self.count_open(cx, at);
                    self.enqueue(cx, at, Cause::InputsReplaced);
                    reopened.push(at);
                }
            }
        }
        for at in reopened {
            self.make_inputs_again(cx, at, why);
        }
        published
    }

    fn roll_back_gang(&mut self, cx: &mut Context, region: usize, why: &str) -> bool {
        let tasks = self.tasks_of(region);
        if tasks.iter().any(|&at| self.refuses_to_differ(cx, at)) {
            return false;
        }
        let published = self.raise_barrier(&tasks);
        match self.regions[region].state {
            RegionState::Waiting => {}
            RegionState::Running => {
                self.stop_region(cx, region, CancelReason::InputsReplaced, Cause::InputsReplaced);
            }
            RegionState::Done => {
                tasks.iter().for_each(|&at| self.discard_and_lose(cx, at));
                self.reopen_region(cx, tasks[0], Cause::InputsReplaced, why);
                tasks.iter().for_each(|&at| self.task_mut(at).cause = Cause::InputsReplaced);
            }
        }
        published
    }

    /// No attempt so far counts for these tasks. Says whether others may have read any.
    fn raise_barrier(&mut self, tasks: &[At]) -> bool {
        let mut published = false;
        for &at in tasks {
            let task = self.task_mut(at);
            task.barrier = task.attempts.len() as u32;
            published |= std::mem::take(&mut task.published);
        }
        published
    }

    fn discard_and_lose(&mut self, cx: &mut Context, at: At) {
        if self.task(at).state == TaskState::Done {
            let output = self.task(at).output.as_ref().map(|made| (made.attempt, made.output.clone()));
            self.lose(at);
            if let Some((attempt, output)) = output {
                super::accept::discard(cx, self.attempt_id(at, attempt), output);
            }
        }
    }

    /// Fails the job if the driver has passed on rows of a result that would now be others.
    fn refuses_to_differ(&mut self, cx: &mut Context, at: At) -> bool {
        let delivered = self.task(at).delivery > super::Delivery::Nothing;
        if delivered {
            let message =
                "it read an output that was lost and is not the same when it is made again".to_owned();
            self.fail(cx, at, crate::JobErrorKind::Delivered, 1, message);
        }
        delivered
    }
}
