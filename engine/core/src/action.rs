//! What the scheduler wants done.

use crate::{AttemptId, ExecutorId, JobError, JobId, Place, StageId};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run this. All outputs that it reads are there when `handle` returns ([`crate::Scheduler::output`]).
    Launch {
        attempt: AttemptId,
        executor: ExecutorId,
        hints: Hints,
    },
    /// Run all of these at once: every task of every stage of a region of several. Attempts of one launch read each
    /// other's streams, never those of another launch.
    LaunchRegion {
        job: JobId,
        attempts: Vec<(AttemptId, ExecutorId)>,
        hints: Hints,
    },
    /// Stop it; whatever it reports is ignored. Not said of what runs on an executor that is lost.
    Cancel {
        attempt: AttemptId,
        executor: ExecutorId,
        why: CancelReason,
    },
    /// Nobody will read this output: it lost a race, or came too late. One that was lost for some reader and made again
    /// is not discarded before the job is, because others may be reading it.
    Discard {
        attempt: AttemptId,
        place: Place,
    },
    /// This output of a result stage may be read.
    ResultReady {
        attempt: AttemptId,
    },
    /// All outputs of the stage are there. Said again when some had to be made again.
    StageFinished {
        job: JobId,
        stage: StageId,
    },
    /// All results are there. Said again when one got lost, before it was delivered, and was made again.
    JobFinished {
        job: JobId,
    },
    JobFailed {
        error: JobError,
    },
    /// Nobody will read any output of this job: remove all of its files wherever they are. (An attempt that reports a
    /// success after this is answered with `Discard`.)
    DiscardJob {
        job: JobId,
    },
}

/// What an attempt should know of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hints {
    /// An attempt at the same task (or region) needed more memory than there was: use operators that spill.
    pub out_of_memory_before: bool,
    /// Another attempt at the same task is still running.
    pub speculative: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// Another attempt was first.
    LostRace,
    /// Its region starts again.
    RegionRestarts,
    /// It reads outputs of a stage that is not repeatable and runs again.
    InputsReplaced,
    /// Nobody needs its output any more.
    NotNeeded,
    JobEnded,
}
