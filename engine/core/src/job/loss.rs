//! Outputs get lost: what is needed is made again, and nothing else.
//!
//! An output is needed while a task that reads it is open, or the driver has not had it. Making an output again may need
//! lost inputs again, and so on down to the leaves. Outputs that nobody needs are only noted as gone; they are made again
//! if a task that reads them has to run again later.

use super::task::Attempt;
use super::{At, Delivery, Job, TaskState};
use crate::context::Context;
use crate::fleet::WorkerIndex;
use crate::graph::{consumers_of, producers_of};
use crate::{AttemptId, AttemptState, Cause, JobErrorKind};

impl Job {
    /// Whether the output that counts for its task is this attempt's.
    pub fn holds_output(&self, id: AttemptId) -> bool {
        let Some(at) = self.find(id.task) else { return false };
        let task = self.task(at);
        let this = task.output.as_ref().is_some_and(|made| made.attempt == id.attempt);
        this && task.state == TaskState::Done
    }

    /// Somebody could not read this output. If it still counts, it does no longer, and is made again if it is needed; that a
    /// task could not read it is proof that it is.
    pub fn fetch_failed(&mut self, cx: &mut Context, id: AttemptId, message: &str, by_task: bool) {
        let Some(at) = self.find(id.task) else { return };
        if !self.is_alive() || !self.holds_output(id) {
            return;
        }
        self.lose(at);
        if by_task || self.is_needed(at) {
            self.make_again(cx, at, message);
        }
    }

    /// A worker's files are gone. Its executors' attempts have been dealt with.
    pub fn worker_lost(&mut self, cx: &mut Context, worker: WorkerIndex, reason: &str) {
        let mut lost = Vec::new();
        // Consumers first: what they need again is known before their producers are looked at.
        for stage in (0..self.stages.len()).rev() {
            for task in 0..self.stages[stage].task_count() {
                let at = At { stage, task };
                if !self.is_alive() {
                    return;
                }
                if self.task(at).output.as_ref().is_none_or(|made| made.worker != Some(worker)) {
                    continue;
                }
                match self.task(at).state {
                    TaskState::Held => {
                        reason.clone_into(&mut self.retries_mut(at).last_error);
                        self.retries_mut(at).interruptions += 1;
                        self.run_again(cx, at, Cause::OutputLost);
                    }
                    TaskState::Done => {
                        self.lose(at);
                        lost.push(at);
                    }
                    TaskState::Waiting | TaskState::Running | TaskState::Gone => {}
                }
            }
        }
        for at in lost {
            // It may have been opened with another.
            if self.is_alive() && self.task(at).state == TaskState::Gone && self.is_needed(at) {
                self.make_again(cx, at, reason);
            }
        }
    }

    /// The output of a task that is done is not there any more.
    pub fn lose(&mut self, at: At) {
        let stage = &mut self.stages[at.stage];
        let task = &mut stage.tasks[at.task as usize];
        if let Some(made) = task.output.take() {
            stage.output_bytes = stage.output_bytes.saturating_sub(made.output.bytes);
            stage.output_rows = stage.output_rows.saturating_sub(made.output.rows);
            if let Some(worker) = made.worker
                && let Some(bytes) = stage.bytes_on.get_mut(&worker)
            {
                *bytes = bytes.saturating_sub(made.output.bytes);
                if *bytes == 0 {
                    stage.bytes_on.remove(&worker);
                }
            }
        }
        task.state = TaskState::Gone;
        stage.gone.insert(at.task);
    }

    /// Whether an open task reads this output, or the driver has yet to.
    pub fn is_needed(&self, at: At) -> bool {
        let stage = &self.stages[at.stage];
        if stage.result && self.task(at).delivery < Delivery::All {
            return true;
        }
        stage.consumers.iter().any(|edge| {
            let consumer = &self.stages[edge.stage];
            let readers = consumers_of(edge.kind, stage.task_count(), consumer.task_count(), at.task);
            let all = readers.len() == consumer.tasks.len();
            if all {
                consumer.open > 0
            } else {
                readers.clone().any(|n| consumer.tasks[n as usize].is_open())
            }
        })
    }

    /// Opens a task that is gone because its output is needed, or fails the job if that has happened too often.
    pub fn make_again(&mut self, cx: &mut Context, at: At, why: &str) {
        let made = |attempt: &Attempt| attempt.state == AttemptState::Succeeded;
        let made_before = self.task(at).attempts.iter().any(made);
        if made_before {
            let stage = &self.stages[at.stage];
            let (consumed, repeatable) = (stage.consumed, self.is_repeatable(at.stage));
            let retries = self.retries_mut(at);
            why.clone_into(&mut retries.last_error);
            if retries.lost_too_often(&cx.policy, consumed, repeatable) {
                let times = retries.losses;
                return self.fail(cx, at, JobErrorKind::LostTooOften, times, why.to_owned());
            }
        }
        if self.refuses_to_run_again(cx, at) {
            return;
        }
        if self.is_gang(at.stage) {
            self.reopen_region(cx, at, Cause::OutputLost, why);
        } else {
            self.reopen(cx, at, Cause::OutputLost, why);
        }
        if made_before && !self.is_repeatable(at.stage) {
            self.roll_back_readers(cx, self.stages[at.stage].region, why);
        }
    }

    /// Lets a task that is gone, and is no part of a gang, wait again, and with it what it reads.
    pub fn reopen(&mut self, cx: &mut Context, at: At, cause: Cause, why: &str) {
        self.count_open(cx, at);
        self.enqueue(cx, at, cause);
        self.make_inputs_again(cx, at, why);
    }

    /// Counts a task that is gone as open.
    pub fn count_open(&mut self, cx: &mut Context, at: At) {
        let stage = &mut self.stages[at.stage];
        stage.gone.remove(&at.task);
        stage.tasks[at.task as usize].state = TaskState::Waiting;
        stage.open += 1;
        if stage.open == 1 {
            self.opened(cx, at.stage);
        }
    }

    /// Opens what an open task reads and what is gone.
    pub fn make_inputs_again(&mut self, cx: &mut Context, at: At, why: &str) {
        for edge in self.stages[at.stage].inputs.clone().into_iter().filter(|edge| !edge.streamed) {
            let producer = &self.stages[edge.stage];
            let read =
                producers_of(edge.kind, producer.task_count(), self.stages[at.stage].task_count(), at.task);
            let gone: Vec<u32> = producer.gone.range(read).copied().collect();
            for task in gone {
                let input = At { stage: edge.stage, task };
                if self.is_alive() && self.task(input).state == TaskState::Gone {
                    self.make_again(cx, input, why);
                }
            }
        }
    }
}
