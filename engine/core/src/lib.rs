//! Which task of which query runs where, and what happens when one fails or something is lost.
//!
//! No tokio, no clock, no randomness, no I/O: [`Scheduler::handle`] takes an [`Event`] and the time and returns
//! [`Action`]s. The driver carries them out and reports what came of them, as events.
//!
//! # Vocabulary
//!
//! - A *job* is one run of a query: a graph of *stages*, each of so many *tasks*. An *attempt* is one run of a task.
//! - An edge between stages is *materialised* (the output of each producer task is a file that the producer's worker
//!   serves, or bytes inside the status) or *streamed* (both ends run at once).
//! - A *region* is a maximal set of stages joined by streamed edges. One of a single stage runs task by task; one of
//!   several is a *gang*: launched, restarted and finished as a whole.
//! - An executor is a process that runs attempts; the *worker* is its machine, which serves its files and outlives it.
//!
//! # What the driver promises
//!
//! - `now` never goes back (if it does, the scheduler's time stands still).
//! - Numbers of jobs are not used twice. Numbers of executors may be: an executor that was lost may come up again.
//! - Every job that was submitted ends in [`Action::JobFinished`] or [`Action::JobFailed`], and is kept, for pages and
//!   because results may still get lost, until the driver sends [`Event::Release`].
//! - [`Scheduler::handle`] is called with [`Event::Tick`] not much later than [`Scheduler::next_wakeup`].
//!
//! ```
//! use firesteel_engine_core::*;
//! use std::time::Duration;
//!
//! let mut scheduler = Scheduler::new(Policy::default());
//! let now = Duration::ZERO;
//! let up = Event::ExecutorUp { executor: ExecutorId(0), worker: "worker-a".into(), slots: 2 };
//! assert_eq!(scheduler.handle(now, up), []);
//!
//! let scan = StageSpec { id: StageId(0), tasks: 1, inputs: vec![], repeatable: true };
//! let job = JobSpec { id: JobId(1), pool: "default".into(), stages: vec![scan], results: vec![StageId(0)] };
//! let attempt = TaskId { job: JobId(1), stage: StageId(0), task: 0 }.attempt(0);
//! let launch = Action::Launch { attempt, executor: ExecutorId(0), hints: Hints::default() };
//! assert_eq!(scheduler.handle(now, Event::Submit(job)), [launch]);
//!
//! let output = Output { place: Place::Worker("worker-a".into()), bytes: 1 << 20, rows: 1000 };
//! let actions = scheduler.handle(now, Event::Succeeded { attempt, output });
//! assert_eq!(actions, [
//!     Action::ResultReady { attempt },
//!     Action::StageFinished { job: JobId(1), stage: StageId(0) },
//!     Action::JobFinished { job: JobId(1) },
//! ]);
//! // The driver reads the result, and lets go of the job.
//! scheduler.handle(now, Event::Delivered { task: attempt.task, all: true });
//! assert_eq!(scheduler.handle(now, Event::Release { job: JobId(1) }), [Action::DiscardJob { job: JobId(1) }]);
//! ```
//!
//! Reports may be late, repeated, out of order or about nothing that exists: they change nothing then, but an output
//! that nobody will read is answered with [`Action::Discard`].

mod action;
mod context;
mod error;
mod event;
mod fleet;
mod graph;
mod ids;
pub mod invariants;
mod job;
mod median;
mod policy;
mod pools;
mod progress;
mod scheduler;
mod spec;

pub use action::{Action, CancelReason, Hints};
pub use error::{JobError, JobErrorKind};
pub use event::{Event, Failure, Output, Place};
pub use ids::{AttemptId, ExecutorId, JobId, StageId, TaskId, WorkerKey};
pub use policy::{Exclusion, JobOrder, Policy, Pool, Speculation};
pub use progress::{
    AttemptProgress, AttemptState, Cause, Counters, JobProgress, JobState, StageProgress, StageState,
    TaskProgress,
};
pub use scheduler::Scheduler;
pub use spec::{Input, InputKind, JobSpec, MAX_TASKS, StageSpec};
