//! Tasks and jobs that need not run on.

use super::{At, Delivery, Job, RegionState, TaskState};
use crate::context::Context;
use crate::{Action, CancelReason, JobError, JobErrorKind, JobState, TaskId};

impl Job {
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, JobState::Failed(_))
    }

    /// Whether anybody outside of the region still needs anything of it.
    pub fn is_region_needed(&self, region: usize) -> bool {
        self.regions[region].stages.iter().any(|&stage| {
            let stage = &self.stages[stage];
            let read =
                |consumer: usize| self.stages[consumer].region != region && self.stages[consumer].open > 0;
            (stage.result && stage.undelivered > 0) || stage.consumers.iter().any(|edge| read(edge.stage))
        })
    }

    /// All that read this region have what they need: what is open of it need not run.
    pub fn abandon(&mut self, cx: &mut Context, region: usize) {
        let stages = self.regions[region].stages.clone();
        let open: Vec<usize> = stages.into_iter().filter(|&stage| self.stages[stage].open > 0).collect();
        for at in self.tasks_of(region) {
            if self.task(at).is_open() {
                self.cancel(cx, at, CancelReason::NotNeeded);
                self.set_gone(cx, at);
            }
        }
        self.regions[region].state = RegionState::Done;
        self.refresh_region(cx, region);
        for stage in open {
            self.closed(cx, stage, false);
            self.refresh(cx, stage);
        }
    }

    /// An open task that nobody needs, with the gang it may be part of.
    pub fn give_up(&mut self, cx: &mut Context, at: At) {
        if self.is_gang(at.stage) {
            return self.abandon(cx, self.stages[at.stage].region);
        }
        if self.task(at).live.len() > 0 {
            return;
        }
        self.set_gone(cx, at);
        if self.stages[at.stage].open == 0 {
            self.closed(cx, at.stage, false);
        }
        self.refresh(cx, at.stage);
    }

    fn set_gone(&mut self, cx: &mut Context, at: At) {
        self.discard_output(cx, at);
        let stage = &mut self.stages[at.stage];
        stage.tasks[at.task as usize].state = TaskState::Gone;
        stage.gone.insert(at.task);
        stage.queue.remove(at.task);
        stage.copies.remove(&at.task);
        stage.open -= 1;
    }

    pub fn delivered(&mut self, cx: &mut Context, id: TaskId, all: bool) {
        let Some(at) = self.find(id) else { return };
        if !self.stages[at.stage].result || !self.is_alive() {
            return;
        }
        let delivery = if all { Delivery::All } else { Delivery::Some };
        let task = self.task_mut(at);
        if task.delivery >= delivery {
            return;
        }
        task.delivery = delivery;
        self.stages[at.stage].copies.remove(&at.task);
        if all {
            self.stages[at.stage].undelivered -= 1;
            self.stages[at.stage].consumed += 1;
            // One that runs may as well end, its status has numbers for the pages.
            if self.task(at).state == TaskState::Waiting && !self.is_gang(at.stage) && !self.is_needed(at) {
                self.give_up(cx, at);
            }
        }
        self.refresh(cx, at.stage);
    }

    /// The job has failed.
    pub fn end_with(&mut self, cx: &mut Context, error: JobError) {
        if !self.is_alive() {
            return;
        }
        self.stop(cx, JobState::Failed(error.clone()));
        cx.actions.push(Action::JobFailed { error });
    }

    pub fn cancelled(&mut self, cx: &mut Context, reason: String) {
        if self.is_running() {
            self.end_with(
                cx,
                JobError {
                    job: self.id,
                    kind: JobErrorKind::Cancelled,
                    stage: None,
                    task: None,
                    times: 1,
                    message: reason,
                    executors: Vec::new(),
                },
            );
        }
    }

    /// Nobody wants to hear of the job any more.
    pub fn release(mut self, cx: &mut Context) {
        if self.is_alive() {
            self.stop(cx, JobState::Finished);
        }
        cx.pools.leave(&self.pool);
    }

    /// Takes all of it off the executors, the queues and the clock.
    fn stop(&mut self, cx: &mut Context, state: JobState) {
        self.state = state;
        self.ended = self.ended.or(Some(cx.now));
        for stage in 0..self.stages.len() {
            if self.stages[stage].running > 0 {
                for task in 0..self.stages[stage].task_count() {
                    self.cancel(cx, At { stage, task }, CancelReason::JobEnded);
                }
            }
            self.stages[stage].queue.clear();
            self.stages[stage].copies.clear();
            self.refresh(cx, stage);
        }
        for region in 0..self.regions.len() {
            self.refresh_region(cx, region);
        }
        cx.actions.push(Action::DiscardJob { job: self.id });
    }
}
