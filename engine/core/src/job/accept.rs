//! An attempt has succeeded.

use super::task::Made;
use super::{At, Delivery, Job, Reason, TaskState};
use crate::context::Context;
use crate::fleet::{Found, WorkerIndex};
use crate::{Action, AttemptId, AttemptState, CancelReason, JobState, Output, Place};

impl Job {
    pub fn succeeded(&mut self, cx: &mut Context, id: AttemptId, output: Output) {
        let Some(at) = self.find(id.task) else { return discard(cx, id, output) };
        let Some(attempt) = self.task(at).attempts.get(id.attempt as usize) else {
            return discard(cx, id, output);
        };
        let (state, executor) = (attempt.state, attempt.executor);
        let found = cx.fleet.find_output(&output.place, executor, attempt.life);
        match (state, found) {
            // Said twice.
            (AttemptState::Succeeded, _) => {}
            (AttemptState::Running, Found::Gone) => {
                let message = "its output is on a worker that is lost".to_owned();
                self.failed(cx, id, Reason::Interrupted(message));
            }
            (AttemptState::Running, found) => {
                cx.trust(executor);
                let made = Made { attempt: id.attempt, output, worker: found.worker() };
                if self.is_gang(at.stage) {
                    self.hold(cx, at, made);
                } else {
                    self.accept(cx, at, made);
                }
            }
            // It was thought lost, and was not: rather this output than another attempt.
            (AttemptState::Interrupted, Found::Inline | Found::On(_)) if self.may_revive(at, id.attempt) => {
                self.revive(cx, at, id.attempt);
                self.accept(cx, at, Made { attempt: id.attempt, output, worker: found.worker() });
            }
            _ => discard(cx, id, output),
        }
    }

    fn may_revive(&self, at: At, number: u32) -> bool {
        let task = self.task(at);
        let open = matches!(task.state, TaskState::Waiting | TaskState::Running);
        // Rows of another attempt may be on their way already.
        let untouched = task.delivery == Delivery::Nothing;
        open && untouched && self.is_running() && number >= task.barrier && !self.is_gang(at.stage)
    }

    /// Its end has been booked as an interruption.
    fn revive(&mut self, cx: &mut Context, at: At, number: u32) {
        let stage = &mut self.stages[at.stage];
        let attempt = &mut stage.tasks[at.task as usize].attempts[number as usize];
        attempt.state = AttemptState::Succeeded;
        attempt.ended = Some(cx.now);
        for counters in [&mut stage.counters, &mut cx.totals] {
            counters.interrupted -= 1;
            counters.succeeded += 1;
        }
    }

    /// This output counts, and no other attempt at its task.
    fn accept(&mut self, cx: &mut Context, at: At, made: Made) {
        let number = made.attempt;
        if self.task(at).attempts[number as usize].state == AttemptState::Running {
            let started = self.task(at).attempts[number as usize].started;
            self.stages[at.stage].durations.add(cx.now.saturating_sub(started));
            self.end(cx, at, number, AttemptState::Succeeded);
        }
        self.cancel(cx, at, CancelReason::LostRace);
        self.stages[at.stage].queue.remove(at.task);
        self.done(cx, at, made);
        if self.stages[at.stage].open == 0 {
            self.closed(cx, at.stage, true);
        }
        self.refresh(cx, at.stage);
    }

    /// The output is there for all to read. The caller looks whether this was the last of the stage.
    pub fn done(&mut self, cx: &mut Context, at: At, made: Made) {
        let attempt = self.attempt_id(at, made.attempt);
        let stage = &mut self.stages[at.stage];
        stage.open -= 1;
        // Numbers from outside: whatever they are, they are no reason to stop.
        stage.output_bytes = stage.output_bytes.saturating_add(made.output.bytes);
        stage.output_rows = stage.output_rows.saturating_add(made.output.rows);
        if let Some(worker) = made.worker {
            let bytes = stage.bytes_on.entry(worker).or_default();
            *bytes = bytes.saturating_add(made.output.bytes);
        }
        let task = &mut stage.tasks[at.task as usize];
        task.state = TaskState::Done;
        task.published = true;
        task.output = Some(made);
        if stage.result {
            cx.actions.push(Action::ResultReady { attempt });
        }
        for n in 0..self.stages[at.stage].inputs.len() {
            let producer = self.stages[at.stage].inputs[n].stage;
            self.stages[producer].consumed += 1;
        }
    }

    /// The last task of the stage is done or given up.
    pub fn closed(&mut self, cx: &mut Context, stage: usize, finished: bool) {
        self.stages[stage].ended = Some(cx.now);
        let failures = self.stages[stage].distrust.take_failures();
        if finished {
            if let Some(rules) = cx.policy.exclusion {
                failures.into_iter().for_each(|(executor, n)| cx.fleet.note_failures(executor, n, rules));
            }
            cx.actions.push(Action::StageFinished { job: self.id, stage: self.stages[stage].id });
        }
        for edge in self.stages[stage].consumers.clone().into_iter().filter(|edge| !edge.streamed) {
            self.stages[edge.stage].blocked_by -= 1;
            if self.stages[edge.stage].blocked_by == 0 {
                self.unblocked(cx, edge.stage);
            }
        }
        for edge in self.stages[stage].inputs.clone() {
            let region = self.stages[edge.stage].region;
            if self.stages[edge.stage].open > 0 && !self.is_region_needed(region) {
                self.abandon(cx, region);
            }
        }
        if self.stages[stage].result {
            self.results_open -= 1;
            if self.results_open == 0 && self.is_running() {
                self.state = JobState::Finished;
                self.ended = Some(cx.now);
                cx.actions.push(Action::JobFinished { job: self.id });
            }
        }
    }

    /// All that the stage reads is there.
    pub fn unblocked(&mut self, cx: &mut Context, stage: usize) {
        if self.is_gang(stage) {
            self.refresh_region(cx, self.stages[stage].region);
        } else {
            self.sort_by_place(cx, stage);
            self.refresh(cx, stage);
        }
    }

    /// The stage was done with, and is not any more.
    pub fn opened(&mut self, cx: &mut Context, stage: usize) {
        self.stages[stage].ended = None;
        for edge in self.stages[stage].consumers.clone().into_iter().filter(|edge| !edge.streamed) {
            self.stages[edge.stage].blocked_by += 1;
            if self.is_gang(edge.stage) {
                self.refresh_region(cx, self.stages[edge.stage].region);
            } else {
                self.refresh(cx, edge.stage);
            }
        }
        if self.stages[stage].result {
            self.results_open += 1;
            if self.state == JobState::Finished {
                self.state = JobState::Running;
                self.ended = None;
            }
        }
    }
}

impl Found {
    fn worker(self) -> Option<WorkerIndex> {
        match self {
            Found::On(worker) => Some(worker),
            Found::Inline | Found::Gone => None,
        }
    }
}

/// An output that came too late. One that is inline is nowhere.
pub(crate) fn discard(cx: &mut Context, attempt: AttemptId, output: Output) {
    if let Place::Worker(_) = output.place {
        cx.actions.push(Action::Discard { attempt, place: output.place });
    }
}
