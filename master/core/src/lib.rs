//! The replicated state of a cluster and every decision about it.
//!
//! No tokio, no clock, no randomness, no I/O: times, ids and random values come in with the commands, so that every
//! master computes the same state from the same log.
//!
//! [`apply`] is the only way to change a [`ClusterState`]; [`schedule`] looks at one and says which commands the leader
//! shall propose; [`desired`] says what a worker shall run; [`waiting`] says why an application waits.
//!
//! `apply` returns no effects: whoever acts on the state (the workers' and drivers' streams) compares the whole state
//! before and after, which also heals what a lost effect would have broken.

mod apply;
mod command;
mod desired;
pub mod invariants;
mod placement;
mod schedule;
mod state;
mod waiting;

pub use apply::{
    MAX_ACTIVE_APPLICATIONS, MAX_ENDED_EXECUTORS, MAX_EXECUTOR_FAILURES, MAX_FINISHED_APPLICATIONS,
    MAX_GONE_WORKERS, apply,
};
pub use command::{Command, Outcome, Rejection};
pub use desired::{Launch, desired};
pub use schedule::{MAX_GRANTS_PER_PLAN, schedule, wake_at_ms};
pub use state::{Application, ClusterState, FindError, Process, Worker};
pub use waiting::{Explanation, Obstacle, waiting};
