//! One job: its stages, tasks and attempts, and what becomes of them.
//!
//! ```text
//! Waiting ──launch──▶ Running ──success──▶ Done ──lost, not needed──▶ Gone
//!    ▲                   │ (gang: Held, until all of it have succeeded)  │
//!    └─failed, lost──────┘                  │                            │
//!    └──────────────────────lost, needed────┴─────needed again───────────┘
//! ```
//!
//! What holds after every event:
//!
//! - A stage is *open* while a task of it is neither `Done` nor `Gone`. A stage is blocked while a stage that it reads over
//!   a materialised edge is open, and then nothing of it is launched.
//! - No task that is not `Done` or `Gone` reads one that is `Gone`. So when a stage is not blocked, all that its tasks read
//!   is there.
//! - A task has at most two live attempts, and two only when one is a speculative copy.

mod accept;
mod distrust;
mod end;
mod fail;
mod gang;
mod launch;
mod loss;
mod place;
mod progress;
mod queue;
mod retries;
mod roll_back;
mod speculate;
mod stage;
mod task;

use crate::context::Context;
use crate::fleet::ExecutorIndex;
use crate::graph::Graph;
use crate::{AttemptId, AttemptState, JobId, JobState, StageId, TaskId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use fail::Reason;
pub(crate) use gang::{Region, RegionState};
pub(crate) use retries::Retries;
pub(crate) use stage::Stage;
pub(crate) use task::{Delivery, Made, Task, TaskState};

#[derive(Debug)]
pub(crate) struct Job {
    pub id: JobId,
    /// Earlier jobs have smaller numbers.
    pub sequence: u64,
    /// As it was asked for.
    pub pool_name: String,
    /// As the pools know it.
    pub pool: Arc<str>,
    pub state: JobState,
    /// Producers before consumers.
    pub stages: Vec<Stage>,
    pub numbers: BTreeMap<StageId, usize>,
    pub regions: Vec<Region>,
    /// Result stages that are open.
    pub results_open: u32,
    pub submitted: Duration,
    pub ended: Option<Duration>,
}

/// A task of a job, by the index of its stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub stage: usize,
    pub task: u32,
}

impl Job {
    pub fn new(cx: &mut Context, id: JobId, sequence: u64, pool_name: String, graph: Graph) -> Self {
        let pool = cx.pools.join(&pool_name, &cx.policy);
        let regions: Vec<Region> = graph.regions.into_iter().map(Region::new).collect();
        let numbers = graph.nodes.iter().enumerate().map(|(n, node)| (node.id, n)).collect();
        let results_open = graph.nodes.iter().filter(|node| node.result).count() as u32;
        let stages = graph.nodes.into_iter().map(Stage::new).collect();
        let (state, submitted) = (JobState::Running, cx.now);
        let mut job = Self {
            id,
            sequence,
            pool_name,
            pool,
            state,
            stages,
            numbers,
            regions,
            results_open,
            submitted,
            ended: None,
        };
        for stage in 0..job.stages.len() {
            if job.stages[stage].blocked_by == 0 {
                job.unblocked(cx, stage);
            }
        }
        job
    }

    pub fn is_running(&self) -> bool {
        self.state == JobState::Running
    }

    pub fn find(&self, task: TaskId) -> Option<At> {
        let stage = *self.numbers.get(&task.stage)?;
        (task.job == self.id && (task.task as usize) < self.stages[stage].tasks.len())
            .then_some(At { stage, task: task.task })
    }

    pub fn task(&self, at: At) -> &Task {
        &self.stages[at.stage].tasks[at.task as usize]
    }

    pub fn task_mut(&mut self, at: At) -> &mut Task {
        &mut self.stages[at.stage].tasks[at.task as usize]
    }

    pub fn task_id(&self, at: At) -> TaskId {
        TaskId { job: self.id, stage: self.stages[at.stage].id, task: at.task }
    }

    pub fn attempt_id(&self, at: At, attempt: u32) -> AttemptId {
        self.task_id(at).attempt(attempt)
    }

    pub fn is_gang(&self, stage: usize) -> bool {
        self.regions[self.stages[stage].region].stages.len() > 1
    }

    /// What is counted against a task: its own account, or that of the gang it is part of.
    pub fn retries_mut(&mut self, at: At) -> &mut Retries {
        let region = self.stages[at.stage].region;
        if self.regions[region].stages.len() > 1 {
            &mut self.regions[region].retries
        } else {
            &mut self.task_mut(at).retries
        }
    }

    /// Where an attempt runs, if it does.
    pub fn runs_on(&self, attempt: AttemptId) -> Option<ExecutorIndex> {
        let at = self.find(attempt.task)?;
        let attempt = self.task(at).attempts.get(attempt.attempt as usize)?;
        (attempt.state == AttemptState::Running).then_some(attempt.executor)
    }

    /// What others may read of a task.
    pub fn visible_output(&self, at: At) -> Option<&Made> {
        let task = self.task(at);
        (task.state == TaskState::Done).then_some(task.output.as_ref()).flatten()
    }
}
