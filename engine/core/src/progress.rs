//! What pages and tests want to know.

use crate::{AttemptId, ExecutorId, JobError, JobId, Output, StageId};
use std::time::Duration;

/// A job now. Times are those that came with the events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobProgress {
    pub job: JobId,
    pub pool: String,
    pub state: JobState,
    pub submitted: Duration,
    pub ended: Option<Duration>,
    /// Producers before consumers.
    pub stages: Vec<StageProgress>,
    pub counters: Counters,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    Running,
    Finished,
    Failed(JobError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageProgress {
    pub stage: StageId,
    pub state: StageState,
    /// Stages with the same number are one region.
    pub region: u32,
    pub tasks: u32,
    /// Tasks whose output is there, or was and is not needed any more.
    pub done: u32,
    /// Tasks with an attempt that runs.
    pub running: u32,
    /// Of the outputs that are there.
    pub output_bytes: u64,
    pub output_rows: u64,
    /// The first launch.
    pub started: Option<Duration>,
    /// When its last task was done.
    pub ended: Option<Duration>,
    /// Executors that get no more of its tasks.
    pub excluded: Vec<ExecutorId>,
    pub counters: Counters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageState {
    /// For its inputs.
    Waiting,
    /// Tasks run or wait for slots.
    Running,
    Finished,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskProgress {
    pub task: u32,
    /// Whose output counts.
    pub output: Option<(AttemptId, Output)>,
    pub attempts: Vec<AttemptProgress>,
    /// Why it, or the gang it is part of, had to run again the last time; empty if it had not.
    pub last_error: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptProgress {
    pub executor: ExecutorId,
    pub cause: Cause,
    pub state: AttemptState,
    pub started: Duration,
    pub ended: Option<Duration>,
}

/// Why an attempt was launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The first of its task.
    First,
    /// The one before failed by its own doing.
    Failed,
    /// The one before was interrupted: its executor died, or it was cancelled from outside.
    Interrupted,
    /// The one before could not read an input.
    InputLost,
    /// The output of the one before got lost.
    OutputLost,
    /// The one before is slow.
    Speculation,
    /// Another task of its region has to run again.
    RegionRestarted,
    /// A stage that it reads is not repeatable and ran again.
    InputsReplaced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttemptState {
    Running,
    /// Its output counts, or did until it got lost or was replaced.
    Succeeded,
    /// By its own doing.
    Failed,
    /// It could not read an input.
    InputLost,
    /// The scheduler has cancelled it.
    Cancelled,
    /// It was interrupted. A success that it reports later may still count.
    Interrupted,
}

/// How many attempts there were, and why: `launched` is the sum of `first` and all `again_…` and `speculative`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub launched: u64,
    pub first: u64,
    pub again_failed: u64,
    pub again_interrupted: u64,
    pub again_input_lost: u64,
    pub again_output_lost: u64,
    pub again_region_restarted: u64,
    pub again_inputs_replaced: u64,
    pub speculative: u64,
    /// `launched` is the sum of these and of the attempts that run.
    pub succeeded: u64,
    pub failed: u64,
    pub input_lost: u64,
    pub cancelled: u64,
    pub interrupted: u64,
}

impl Counters {
    pub(crate) fn count_launch(&mut self, cause: Cause) {
        self.launched += 1;
        *match cause {
            Cause::First => &mut self.first,
            Cause::Failed => &mut self.again_failed,
            Cause::Interrupted => &mut self.again_interrupted,
            Cause::InputLost => &mut self.again_input_lost,
            Cause::OutputLost => &mut self.again_output_lost,
            Cause::Speculation => &mut self.speculative,
            Cause::RegionRestarted => &mut self.again_region_restarted,
            Cause::InputsReplaced => &mut self.again_inputs_replaced,
        } += 1;
    }

    pub(crate) fn count_end(&mut self, state: AttemptState) {
        match state {
            AttemptState::Running => {}
            AttemptState::Succeeded => self.succeeded += 1,
            AttemptState::Failed => self.failed += 1,
            AttemptState::InputLost => self.input_lost += 1,
            AttemptState::Cancelled => self.cancelled += 1,
            AttemptState::Interrupted => self.interrupted += 1,
        }
    }

    /// Attempts that have not ended.
    pub fn running(&self) -> u64 {
        self.launched - self.succeeded - self.failed - self.input_lost - self.cancelled - self.interrupted
    }
}

impl std::ops::Add for Counters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            launched: self.launched + other.launched,
            first: self.first + other.first,
            again_failed: self.again_failed + other.again_failed,
            again_interrupted: self.again_interrupted + other.again_interrupted,
            again_input_lost: self.again_input_lost + other.again_input_lost,
            again_output_lost: self.again_output_lost + other.again_output_lost,
            again_region_restarted: self.again_region_restarted + other.again_region_restarted,
            again_inputs_replaced: self.again_inputs_replaced + other.again_inputs_replaced,
            speculative: self.speculative + other.speculative,
            succeeded: self.succeeded + other.succeeded,
            failed: self.failed + other.failed,
            input_lost: self.input_lost + other.input_lost,
            cancelled: self.cancelled + other.cancelled,
            interrupted: self.interrupted + other.interrupted,
        }
    }
}
