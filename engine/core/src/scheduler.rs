//! The scheduler from outside.

use crate::{
    Action, AttemptId, Counters, Event, JobId, JobProgress, Output, Policy, StageId, TaskId, TaskProgress,
};
use std::time::Duration;

/// All jobs and executors of one application.
#[derive(Debug)]
pub struct Scheduler {
    #[expect(dead_code, reason = "the skeleton")]
    policy: Policy,
}

impl Scheduler {
    pub fn new(policy: Policy) -> Self {
        Self { policy }
    }

    /// Takes in what happened at `now` (since any epoch, always the same) and says what to do about it, in order.
    pub fn handle(&mut self, _now: Duration, _event: Event) -> Vec<Action> {
        Vec::new()
    }

    /// When to send [`Event::Tick`] although nothing happens. `None`: nothing depends on time.
    pub fn next_wakeup(&self) -> Option<Duration> {
        None
    }

    /// Where the output of a task is, if it is there.
    pub fn output(&self, _task: TaskId) -> Option<(AttemptId, &Output)> {
        None
    }

    /// A job's progress, until it is released. Costs as much as the job has stages.
    pub fn progress(&self, _job: JobId) -> Option<JobProgress> {
        None
    }

    /// The tasks of a stage with their attempts, from `first` on, at most `limit`.
    pub fn tasks(&self, _job: JobId, _stage: StageId, _first: u32, _limit: usize) -> Vec<TaskProgress> {
        Vec::new()
    }

    /// Of all jobs, released ones too.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
}
