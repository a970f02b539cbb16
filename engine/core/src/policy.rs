//! How patient, how careful, how fair. Limits that nothing loops past.

use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// How often a task (or a region of several stages) may run and fail by its own doing before its job fails.
    pub task_attempts_max: u32,
    /// How often an output may have to be made because it gets lost, without that a consumer finishes in between.
    pub stage_attempts_max: u32,
    /// How often a task may be interrupted by no fault of its own: executors that die, cancellations from outside, and
    /// inputs that it could not read although they had been replaced already.
    pub interruptions_max: u32,
    /// How long an executor that could not be reached gets nothing, unless it is heard of before.
    pub suspicion: Duration,
    /// How long a free slot may wait for a task whose inputs are on its machine instead of taking any.
    pub locality_wait: Duration,
    /// A task prefers a worker that holds at least this part of the bytes it reads. Below that, spreading out is worth more.
    pub locality_percent_min: u32,
    pub exclusion: Option<Exclusion>,
    pub speculation: Option<Speculation>,
    pub order: JobOrder,
    pub pools: BTreeMap<String, Pool>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            task_attempts_max: 4,
            stage_attempts_max: 4,
            interruptions_max: 8,
            suspicion: Duration::from_secs(5),
            locality_wait: Duration::ZERO,
            locality_percent_min: 60,
            exclusion: Some(Exclusion::default()),
            speculation: Some(Speculation::default()),
            order: JobOrder::Fifo,
            pools: BTreeMap::new(),
        }
    }
}

/// When an executor gets no more tasks. Only failures that count against a task count here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exclusion {
    /// Failures in a stage after which it gets none of that stage.
    pub stage_failures_max: u32,
    /// Failures in stages that finished in spite of them after which it gets nothing. (Failures of a stage that never
    /// finishes are the stage's, not the executor's.)
    pub application_failures_max: u32,
    /// Excluded executors after which their worker is excluded with all of its executors.
    pub executors_per_worker_max: u32,
}

impl Default for Exclusion {
    fn default() -> Self {
        Self { stage_failures_max: 2, application_failures_max: 4, executors_per_worker_max: 2 }
    }
}

/// When a second copy of a slow task is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    /// So many of the stage's tasks must have finished.
    pub finished_percent_min: u32,
    /// It must have run so many times longer than the median of those.
    pub median_percent: u32,
    /// And for at least this long.
    pub running_min: Duration,
}

impl Default for Speculation {
    fn default() -> Self {
        Self { finished_percent_min: 75, median_percent: 150, running_min: Duration::from_secs(5) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobOrder {
    /// Slots go to the job that was submitted first.
    Fifo,
    /// Slots go to the pool that has the fewest running attempts for its weight; within a pool to the first job.
    Fair,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// A pool of weight 2 gets twice the slots of one of weight 1. At least 1.
    pub weight: u32,
}
