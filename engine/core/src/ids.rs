//! Names of what is scheduled. All but [`WorkerKey`] are small numbers.

use firesteel_common::WorkerId;
use std::fmt;
use std::sync::Arc;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($text, " {}"), self.0)
            }
        }
    };
}

number!(
    /// One run of a query, numbered by the driver.
    JobId,
    "job"
);
number!(
    /// A stage within its job, numbered by whoever planned it.
    StageId,
    "stage"
);
number!(
    /// An executor within its application: the number in `firesteel_common::ExecutorId`.
    ExecutorId,
    "executor"
);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    pub job: JobId,
    pub stage: StageId,
    /// From 0, below the stage's number of tasks.
    pub task: u32,
}

impl TaskId {
    pub fn attempt(self, attempt: u32) -> AttemptId {
        AttemptId { task: self, attempt }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} task {}", self.job, self.stage, self.task)
    }
}

/// One run of a task, and the name of its output. The numbers of a task's attempts count from 0 and never repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    pub task: TaskId,
    pub attempt: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} attempt {}", self.task, self.attempt)
    }
}

/// A worker's id, cheap to copy about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerKey(Arc<str>);

impl WorkerKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for WorkerKey {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<&WorkerId> for WorkerKey {
    fn from(id: &WorkerId) -> Self {
        Self(id.as_str().into())
    }
}

impl fmt::Display for WorkerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
