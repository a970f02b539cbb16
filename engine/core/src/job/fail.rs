//! An attempt has ended without success.

use super::{At, Delivery, Job};
use crate::context::Context;
use crate::{AttemptId, AttemptState, Cause, ExecutorId, JobError, JobErrorKind};

/// What an end without success means.
#[derive(Debug)]
pub(crate) enum Reason {
    Failed { message: String, out_of_memory: bool },
    Fatal(String),
    Interrupted(String),
    InputLost { lost: AttemptId, message: String },
}

impl Job {
    pub fn failed(&mut self, cx: &mut Context, id: AttemptId, reason: Reason) {
        let Some(at) = self.find(id.task) else { return };
        let Some(attempt) = self.task(at).attempts.get(id.attempt as usize) else { return };
        if attempt.state != AttemptState::Running {
            return;
        }
        let executor = attempt.executor;
        if !matches!(reason, Reason::Interrupted(_)) {
            cx.trust(executor);
        }
        let (state, cause) = match reason {
            Reason::Failed { .. } | Reason::Fatal(_) => (AttemptState::Failed, Cause::Failed),
            Reason::Interrupted(_) => (AttemptState::Interrupted, Cause::Interrupted),
            Reason::InputLost { .. } => (AttemptState::InputLost, Cause::InputLost),
        };
        self.end(cx, at, id.attempt, state);
        if !self.is_needed_at_all(at) {
            // Nobody minds.
            return self.give_up(cx, at);
        }
        let retries = self.retries_mut(at);
        match reason {
            Reason::Fatal(message) => self.fail(cx, at, JobErrorKind::Fatal, 1, message),
            Reason::Failed { message, out_of_memory } => {
                retries.failures += 1;
                retries.out_of_memory |= out_of_memory;
                retries.last_error = message;
                if let Some(rules) = cx.policy.exclusion {
                    let worker = cx.fleet.executor(executor).worker;
                    self.stages[at.stage].distrust.note(executor, worker, rules);
                }
                self.run_again(cx, at, cause);
            }
            Reason::Interrupted(message) => {
                retries.interruptions += 1;
                retries.last_error = message;
                self.run_again(cx, at, cause);
            }
            Reason::InputLost { lost, message } => {
                retries.last_error.clone_from(&message);
                let current = self.holds_output(lost);
                if !current {
                    // Made again already, or not made by us: whoever says so again and again must not do it for ever.
                    self.retries_mut(at).interruptions += 1;
                }
                self.run_again(cx, at, cause);
                if current {
                    self.fetch_failed(cx, lost, &message, true);
                }
            }
        }
    }

    /// The task has one live attempt less: lets it run again, unless another attempt is still at it, or it has had enough.
    pub fn run_again(&mut self, cx: &mut Context, at: At, cause: Cause) {
        if self.task(at).live.len() > 0 && !self.is_gang(at.stage) {
            return;
        }
        if self.refuses_to_run_again(cx, at) {
            return;
        }
        let retries = self.retries_mut(at);
        let times = if retries.failed_too_often(&cx.policy) {
            Some((JobErrorKind::FailedTooOften, retries.failures))
        } else if retries.interrupted_too_often(&cx.policy) {
            Some((JobErrorKind::InterruptedTooOften, retries.interruptions))
        } else {
            None
        };
        if let Some((kind, times)) = times {
            let message = std::mem::take(&mut retries.last_error);
            return self.fail(cx, at, kind, times, message);
        }
        if self.is_gang(at.stage) {
            self.restart_region(cx, at, cause);
        } else {
            self.enqueue(cx, at, cause);
        }
    }

    /// Whether a task, or any of the gang it is part of, has still to end well.
    fn is_needed_at_all(&self, at: At) -> bool {
        match self.is_gang(at.stage) {
            true => self.is_region_needed(self.stages[at.stage].region),
            false => self.is_needed(at),
        }
    }

    /// Fails the job if rows of what would have to run again have left the driver, and not all.
    pub fn refuses_to_run_again(&mut self, cx: &mut Context, at: At) -> bool {
        let stages = &self.regions[self.stages[at.stage].region].stages;
        let delivered = if stages.len() > 1 {
            let results = stages.iter().filter(|&&stage| self.stages[stage].result);
            results.flat_map(|&stage| &self.stages[stage].tasks).any(|task| task.delivery > Delivery::Nothing)
        } else {
            match self.task(at).delivery {
                Delivery::Nothing => false,
                Delivery::Some => true,
                // It runs for other readers; the driver has what they get if it is the same.
                Delivery::All => !self.is_repeatable(at.stage),
            }
        };
        if delivered {
            let message = std::mem::take(&mut self.retries_mut(at).last_error);
            self.fail(cx, at, JobErrorKind::Delivered, 1, message);
        }
        delivered
    }

    /// Ends the job because of a task.
    pub fn fail(&mut self, cx: &mut Context, at: At, kind: JobErrorKind, times: u32, message: String) {
        let attempts = self.task(at).attempts.iter();
        let executors: Vec<ExecutorId> =
            attempts.map(|attempt| cx.fleet.executor(attempt.executor).id).collect();
        let (stage, task) = (Some(self.stages[at.stage].id), Some(at.task));
        self.end_with(cx, JobError { job: self.id, kind, stage, task, times, message, executors });
    }
}
