//! Why a job failed.

use crate::{ExecutorId, JobId, StageId};
use std::fmt;

/// What failed, where, how often, and the last error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct JobError {
    pub job: JobId,
    pub kind: JobErrorKind,
    /// The stage, if one is to blame.
    pub stage: Option<StageId>,
    /// The task within the stage, if one is to blame.
    pub task: Option<u32>,
    /// How often it happened.
    pub times: u32,
    /// The error of the last time.
    pub message: String,
    /// Where the task's attempts ran, in that order.
    pub executors: Vec<ExecutorId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobErrorKind {
    /// The specification makes no sense.
    Invalid,
    /// [`crate::Event::CancelJob`].
    Cancelled,
    /// The query itself is at fault.
    Fatal,
    /// [`crate::Policy::task_attempts_max`].
    FailedTooOften,
    /// [`crate::Policy::interruptions_max`].
    InterruptedTooOften,
    /// [`crate::Policy::stage_attempts_max`].
    LostTooOften,
    /// It would have to run again, but rows that depend on it have left the driver.
    Delivered,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.stage, self.task) {
            (Some(stage), Some(task)) => write!(f, "{stage} task {task} ")?,
            (Some(stage), None) => write!(f, "{stage} ")?,
            _ => write!(f, "{} ", self.job)?,
        }
        let times = self.times;
        match self.kind {
            JobErrorKind::Invalid => write!(f, "cannot be scheduled")?,
            JobErrorKind::Cancelled => write!(f, "was cancelled")?,
            JobErrorKind::Fatal => write!(f, "failed, and would fail everywhere")?,
            JobErrorKind::FailedTooOften => write!(f, "failed {times} times")?,
            JobErrorKind::InterruptedTooOften => write!(f, "was interrupted {times} times")?,
            JobErrorKind::LostTooOften => write!(f, "lost its output {times} times")?,
            JobErrorKind::Delivered => {
                write!(f, "would have to run again, but rows that depend on it have left the driver")?;
            }
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        for (n, executor) in self.executors.iter().enumerate() {
            write!(f, "{}{}", if n == 0 { " (ran on executors " } else { ", " }, executor.0)?;
        }
        if !self.executors.is_empty() {
            write!(f, ")")?;
        }
        Ok(())
    }
}
