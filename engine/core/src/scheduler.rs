//! The scheduler from outside, and how it goes through an event: take it in, look at the clock, fill the free slots.

use crate::context::{Alarm, Context};
use crate::graph::Graph;
use crate::job::{Job, Reason};
use crate::{
    Action, AttemptId, Counters, Event, Failure, JobError, JobErrorKind, JobId, JobProgress, JobSpec, Output,
    Place, Policy, StageId, TaskId, TaskProgress,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// All jobs and executors of one application.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) cx: Context,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    submitted: u64,
}

impl Scheduler {
    pub fn new(policy: Policy) -> Self {
        Self { cx: Context::new(policy), jobs: BTreeMap::new(), submitted: 0 }
    }

    /// Takes in what happened at `now` (since any epoch, always the same) and says what to do about it, in order.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        self.cx.now = self.cx.now.max(now);
        self.take_in(event);
        self.look_at_the_clock();
        self.dispatch();
        std::mem::take(&mut self.cx.actions)
    }

    /// When to send [`Event::Tick`] although nothing happens. `None`: nothing depends on time.
    pub fn next_wakeup(&self) -> Option<Duration> {
        self.cx.alarms.first().map(|&(at, _)| at)
    }

    /// Where the output of a task is, if it is there.
    pub fn output(&self, task: TaskId) -> Option<(AttemptId, &Output)> {
        let job = self.jobs.get(&task.job)?;
        let at = job.find(task)?;
        job.visible_output(at).map(|made| (task.attempt(made.attempt), &made.output))
    }

    /// A job's progress, until it is released. Costs as much as the job has stages.
    pub fn progress(&self, job: JobId) -> Option<JobProgress> {
        self.jobs.get(&job).map(|job| job.progress(&self.cx))
    }

    /// The tasks of a stage with their attempts, from `first` on, at most `limit`.
    pub fn tasks(&self, job: JobId, stage: StageId, first: u32, limit: usize) -> Vec<TaskProgress> {
        self.jobs.get(&job).map(|job| job.tasks_progress(&self.cx, stage, first, limit)).unwrap_or_default()
    }

    /// Of all jobs, released ones too.
    pub fn counters(&self) -> Counters {
        self.cx.totals
    }

    fn take_in(&mut self, event: Event) {
        let cx = &mut self.cx;
        match event {
            Event::Submit(spec) => self.submit(spec),
            Event::CancelJob { job, reason } => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.cancelled(cx, reason);
                }
            }
            Event::Release { job } => {
                if let Some(job) = self.jobs.remove(&job) {
                    job.release(cx);
                }
            }
            Event::Delivered { task, all } => {
                if let Some(job) = self.jobs.get_mut(&task.job) {
                    job.delivered(cx, task, all);
                }
            }
            Event::ExecutorUp { executor, worker, slots } => {
                let lost = cx.fleet.executor_up(executor, worker, slots);
                self.interrupt(lost, "its executor is another now");
            }
            Event::ExecutorLost { executor, reason } => {
                if let Some(index) = cx.fleet.find(executor) {
                    let lost = cx.fleet.executor_lost(index);
                    self.interrupt(lost, &format!("{executor} is lost: {reason}"));
                }
            }
            Event::WorkerLost { worker, reason } => {
                if let Some((index, lost)) = cx.fleet.worker_lost(&worker) {
                    let reason = format!("{worker} is lost: {reason}");
                    self.interrupt(lost, &reason);
                    for job in self.jobs.values_mut() {
                        job.worker_lost(&mut self.cx, index, &reason);
                    }
                }
            }
            Event::Succeeded { attempt, output } => match self.jobs.get_mut(&attempt.task.job) {
                Some(job) => job.succeeded(cx, attempt, output),
                None => {
                    if let Place::Worker(_) = output.place {
                        cx.actions.push(Action::Discard { attempt, place: output.place });
                    }
                }
            },
            Event::Failed { attempt, failure } => self.failed(attempt, failure),
            Event::FetchFailed { lost, message } => {
                if let Some(job) = self.jobs.get_mut(&lost.task.job) {
                    job.fetch_failed(cx, lost, &message, false);
                }
            }
            Event::Tick => {}
        }
    }

    fn submit(&mut self, spec: JobSpec) {
        if self.jobs.contains_key(&spec.id) {
            return;
        }
        let id = spec.id;
        let (graph, error) = match Graph::of(&spec) {
            Ok(graph) => (graph, None),
            Err(message) => (Graph::default(), Some(message)),
        };
        self.submitted += 1;
        let mut job = Job::new(&mut self.cx, id, self.submitted, spec.pool, graph);
        if let Some(message) = error {
            let (kind, executors) = (JobErrorKind::Invalid, Vec::new());
            job.end_with(
                &mut self.cx,
                JobError { job: id, kind, stage: None, task: None, times: 1, message, executors },
            );
        }
        self.jobs.insert(id, job);
    }

    fn failed(&mut self, attempt: AttemptId, failure: Failure) {
        let Some(job) = self.jobs.get_mut(&attempt.task.job) else { return };
        let reason = match failure {
            Failure::Retryable(message) => Reason::Failed { message, out_of_memory: false },
            Failure::OutOfMemory(message) => Reason::Failed { message, out_of_memory: true },
            Failure::Fatal(message) => Reason::Fatal(message),
            Failure::FetchFailed { lost, message } => Reason::InputLost { lost, message },
            Failure::Cancelled => Reason::Interrupted("it was cancelled".to_owned()),
            Failure::ExecutorGone(message) => {
                if let Some(executor) = job.runs_on(attempt) {
                    self.cx.suspect(executor);
                }
                Reason::Interrupted(message)
            }
        };
        job.failed(&mut self.cx, attempt, reason);
    }

    /// Attempts that ended with what they ran on.
    fn interrupt(&mut self, attempts: Vec<AttemptId>, reason: &str) {
        for attempt in attempts {
            if let Some(job) = self.jobs.get_mut(&attempt.task.job) {
                job.failed(&mut self.cx, attempt, Reason::Interrupted(reason.to_owned()));
            }
        }
    }

    fn look_at_the_clock(&mut self) {
        while let Some(&(at, alarm)) = self.cx.alarms.first() {
            if at > self.cx.now {
                return;
            }
            self.cx.alarms.pop_first();
            match alarm {
                Alarm::Stage { job, stage } => {
                    if let Some(job) = self.jobs.get_mut(&job) {
                        job.stages[stage].alarm = None;
                        job.find_stragglers(&mut self.cx, stage);
                    }
                }
                Alarm::Suspicion(executor) => {
                    if self.cx.fleet.suspect_until(executor) == Some(at) {
                        self.cx.fleet.trust(executor);
                    }
                }
            }
        }
    }

    /// Launches what can be launched.
    fn dispatch(&mut self) {
        for turn in self.cx.gangs.iter().copied().collect::<Vec<_>>() {
            if let Some(job) = self.jobs.get_mut(&turn.job) {
                job.launch_region(&mut self.cx, turn.stage);
            }
        }
        if !self.cx.fleet.has_free_slot() {
            return;
        }
        self.cx.pools.begin();
        while self.cx.fleet.has_free_slot() {
            let Some((pool, turn)) = self.cx.pools.next() else { return };
            let pool = pool.clone();
            let launched = match self.jobs.get_mut(&turn.job) {
                Some(job) => job.launch_one(&mut self.cx, turn.stage),
                None => false,
            };
            if !launched {
                self.cx.pools.pass(&pool, turn);
            }
        }
    }
}
