//! The replicated state of a cluster and every decision about it.
//!
//! No tokio, no clock, no randomness, no I/O: times, ids and random values come in with the commands, so that every
//! master computes the same state from the same log.
//!
//! [`apply`] is the only way to change a [`ClusterState`]; [`schedule`] looks at one and says which commands the leader
//! shall propose; [`desired`] says what a worker shall run, [`shuffle_tenants`] whose map outputs it shall keep; [`waiting`]
//! says why an application waits.
//!
//! `apply` returns no effects: whoever acts on the state (the workers' and drivers' streams) compares the whole state
//! before and after, which also heals what a lost effect would have broken.
//!
//! # Several masters
//!
//! - Members: the state holds the masters' names and addresses ([`Member`]). Who votes is Raft's own configuration.
//! - Rolling upgrades: masters of two builds must compute the same from the same log, so a command of a newer
//!   [`FEATURE_LEVEL`] may only be proposed once the state is on that level, and [`feature_level_to_set`] says when.
//!   How a known command works is not changed without a new level either.
//! - [`ClusterState::hash`] compares masters: at the same log index they must have the same.
//! - Exactly once: a submission carries a key and a ticket, see [`Command::SubmitApplication`].
//! - Clocks: a command's time is its proposer's. The next leader's clock may be behind or ahead; nothing relies on order.
//! - Old data: fields that came later have defaults, in the state (snapshots) and in commands (logs).
//!
//! # Supervised drivers
//!
//! When the driver process of an application with `supervise` ends without having reported a result, or is lost with its
//! worker, the application goes back to its place in the queue without its executors, and after a delay of 1 s, doubling
//! to 60 s, [`schedule`] grants the next attempt. The driver's own word and a kill end the application as ever. There is
//! never more than one live driver; that an old one on a worker out of sight has really ended is the lease's business
//! ([`Launch::ends_with_lease`]).

mod apply;
mod command;
mod desired;
mod digest;
pub mod invariants;
mod members;
mod placement;
mod schedule;
mod state;
mod waiting;

pub use apply::{
    MAX_ACTIVE_APPLICATIONS, MAX_ENDED_DRIVERS, MAX_ENDED_EXECUTORS, MAX_EXECUTOR_FAILURES,
    MAX_FINISHED_APPLICATIONS, MAX_GONE_WORKERS, MAX_KEY_BYTES, apply,
};
pub use command::{Command, Outcome, Rejection};
pub use desired::{Launch, ShuffleTenants, desired, shuffle_tenants, shuffle_workers};
pub use members::{MAX_REMOVED_MEMBERS, feature_level_to_set};
pub use schedule::{MAX_GRANTS_PER_PLAN, schedule, wake_at_ms};
pub use state::{Application, ClusterState, FEATURE_LEVEL, FindError, Member, Process, Worker};
pub use waiting::{Explanation, Obstacle, waiting};
