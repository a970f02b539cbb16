//! Regions of several stages: launched, restarted and finished as a whole.
//!
//! Their tasks exchange rows while they run, so all of them run at once, whether there are slots or not, and what one
//! attempt at the region has begun no other can continue. Outputs are seen from outside only when all of it has succeeded.

use super::task::Made;
use super::{At, Job, Retries, TaskState};
use crate::context::Context;
use crate::{Action, AttemptState, CancelReason, Cause, Hints};

#[derive(Debug)]
pub(crate) struct Region {
    /// Indices of its stages.
    pub stages: Vec<usize>,
    pub state: RegionState,
    /// Tasks that have not succeeded in this attempt.
    pub missing: u32,
    /// Of a gang; tasks of other regions have their own.
    pub retries: Retries,
    /// Whether it is in [`Context::gangs`].
    pub listed: bool,
}

/// Of a gang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RegionState {
    Waiting,
    Running,
    /// Finished or given up.
    Done,
}

impl Region {
    pub fn new(stages: Vec<usize>) -> Self {
        Self { stages, state: RegionState::Waiting, missing: 0, retries: Retries::default(), listed: false }
    }
}

impl Job {
    pub fn tasks_of(&self, region: usize) -> Vec<At> {
        let stages = self.regions[region].stages.iter();
        stages
            .flat_map(|&stage| (0..self.stages[stage].task_count()).map(move |task| At { stage, task }))
            .collect()
    }

    /// Tells the context whether this gang can be launched.
    pub fn refresh_region(&mut self, cx: &mut Context, region: usize) {
        let gang = &self.regions[region];
        let listed = gang.stages.len() > 1
            && gang.state == RegionState::Waiting
            && self.is_running()
            && gang.stages.iter().all(|&stage| self.stages[stage].blocked_by == 0);
        if listed != gang.listed {
            self.regions[region].listed = listed;
            let turn = self.turn(region);
            if listed {
                cx.gangs.insert(turn);
            } else {
                cx.gangs.remove(&turn);
            }
        }
    }

    /// Launches a gang on all executors that it may use: task `i` of each stage on the `i`-th of them, and round again.
    pub fn launch_region(&mut self, cx: &mut Context, region: usize) {
        let stages = self.regions[region].stages.clone();
        for &stage in &stages {
            self.stages[stage].distrust.lift_if_none_is_left(&cx.fleet);
        }
        let mut executors: Vec<_> =
            cx.fleet.usable().filter(|&executor| !cx.fleet.executor(executor).is_suspect()).collect();
        executors.sort_by_key(|&executor| cx.fleet.executor(executor).id);
        let mut trusted = executors.clone();
        trusted.retain(|&executor| {
            stages.iter().all(|&stage| !self.stages[stage].distrust.excludes(executor, &cx.fleet))
        });
        if !trusted.is_empty() {
            executors = trusted;
        }
        if executors.is_empty() {
            return;
        }
        let tasks = self.tasks_of(region);
        self.regions[region].state = RegionState::Running;
        self.regions[region].missing = tasks.len() as u32;
        let mut attempts = Vec::with_capacity(tasks.len());
        for at in tasks {
            let executor = executors[at.task as usize % executors.len()];
            let cause = self.task(at).cause;
            attempts.push((self.start(cx, at, executor, cause), cx.fleet.executor(executor).id));
        }
        let out_of_memory_before = self.regions[region].retries.out_of_memory;
        let hints = Hints { out_of_memory_before, speculative: false };
        cx.actions.push(Action::LaunchRegion { job: self.id, attempts, hints });
        self.refresh_region(cx, region);
    }

    /// A task of a gang has succeeded.
    pub fn hold(&mut self, cx: &mut Context, at: At, made: Made) {
        self.end(cx, at, made.attempt, AttemptState::Succeeded);
        let task = self.task_mut(at);
        task.state = TaskState::Held;
        task.output = Some(made);
        let region = self.stages[at.stage].region;
        self.regions[region].missing -= 1;
        if self.regions[region].missing > 0 {
            return;
        }
        self.regions[region].state = RegionState::Done;
        for at in self.tasks_of(region) {
            if let Some(made) = self.task_mut(at).output.take() {
                self.done(cx, at, made);
            }
        }
        for stage in self.regions[region].stages.clone() {
            self.closed(cx, stage, true);
        }
    }

    /// Stops what runs of a gang and lets it wait for another attempt. `at` is to blame, for `cause`.
    pub fn restart_region(&mut self, cx: &mut Context, at: At, cause: Cause) {
        self.stop_region(
            cx,
            self.stages[at.stage].region,
            CancelReason::RegionRestarts,
            Cause::RegionRestarted,
        );
        self.task_mut(at).cause = cause;
    }

    /// Stops what runs of a gang; its tasks wait.
    pub fn stop_region(&mut self, cx: &mut Context, region: usize, why: CancelReason, cause: Cause) {
        for at in self.tasks_of(region) {
            self.cancel(cx, at, why);
            self.discard_output(cx, at);
            let task = self.task_mut(at);
            task.state = TaskState::Waiting;
            task.cause = cause;
        }
        self.regions[region].state = RegionState::Waiting;
        self.refresh_region(cx, region);
    }

    /// An output of a finished gang is gone and needed: all of it has to run again. Its other outputs stay until the job
    /// ends for those who read them now; others read the new ones.
    pub fn reopen_region(&mut self, cx: &mut Context, at: At, cause: Cause, why: &str) {
        let region = self.stages[at.stage].region;
        let tasks = self.tasks_of(region);
        self.regions[region].state = RegionState::Waiting;
        for &at in &tasks {
            if self.task(at).state == TaskState::Done {
                self.lose(at);
            }
            self.count_open(cx, at);
            self.task_mut(at).cause = Cause::RegionRestarted;
        }
        self.task_mut(at).cause = cause;
        for at in tasks {
            self.make_inputs_again(cx, at, why);
        }
        self.refresh_region(cx, region);
    }

    /// Nobody will read what this task has left, if it has left anything.
    pub fn discard_output(&mut self, cx: &mut Context, at: At) {
        if let Some(made) = self.task_mut(at).output.take() {
            let attempt = self.attempt_id(at, made.attempt);
            super::accept::discard(cx, attempt, made.output);
        }
    }
}
