//! What the scheduler is told.

use crate::{AttemptId, ExecutorId, JobId, JobSpec, TaskId, WorkerKey};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A specification that makes no sense is answered with [`crate::Action::JobFailed`]; a job whose number is taken is
    /// ignored.
    Submit(JobSpec),
    /// Somebody does not want it any more: ends in [`crate::Action::JobFailed`] unless it has ended.
    CancelJob {
        job: JobId,
        reason: String,
    },
    /// The driver has the results and needs nothing of the job any more: it is forgotten. Cancels it if it runs.
    Release {
        job: JobId,
    },
    /// Rows of this task of a result stage have left the driver: `all` of them, and its output is needed no longer, or
    /// some. Either way the task must not run again: if it would have to, the job fails.
    Delivered {
        task: TaskId,
        all: bool,
    },
    /// An executor takes tasks. Said again of one that is up, it changes its slots and ends any suspicion; one without slots
    /// gets nothing new.
    ExecutorUp {
        executor: ExecutorId,
        worker: WorkerKey,
        slots: u32,
    },
    /// Its running attempts are lost; what it has finished stays, because its worker serves it.
    ExecutorLost {
        executor: ExecutorId,
        reason: String,
    },
    /// Its files are gone, and its executors are as good as lost until they are said to be up again. What it wrote before
    /// stays gone, even if it comes back with it.
    WorkerLost {
        worker: WorkerKey,
        reason: String,
    },
    Succeeded {
        attempt: AttemptId,
        output: Output,
    },
    Failed {
        attempt: AttemptId,
        failure: Failure,
    },
    /// The driver itself could not read a result.
    FetchFailed {
        lost: AttemptId,
        message: String,
    },
    /// Time has passed.
    Tick,
}

/// What an attempt has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub place: Place,
    pub bytes: u64,
    pub rows: u64,
}

/// Who has an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The shuffle service of this worker.
    Worker(WorkerKey),
    /// The driver: it came with the status, or was streamed and is nowhere any more. Cannot get lost.
    Inline,
}

/// Why an attempt has ended without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// May succeed elsewhere or later.
    Retryable(String),
    /// Fails everywhere: a bad cast, a division by zero. Ends the job at once.
    Fatal(String),
    /// An input could not be read.
    FetchFailed { lost: AttemptId, message: String },
    /// As retryable; the next attempt is told.
    OutOfMemory(String),
    /// It was stopped, by whomever. Of an attempt that the scheduler has cancelled it is the expected end.
    Cancelled,
    /// Nothing is known of the attempt: it could not be sent, or the connection broke. Whether the executor is lost is
    /// another event; until it has been heard of it gets nothing for [`crate::Policy::suspicion`].
    ExecutorGone(String),
}
