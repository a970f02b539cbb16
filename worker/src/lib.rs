//! The worker daemon: one per machine. It registers capacity with the masters, runs what they want run, each process under
//! a supervisor of its own, keeps the logs, and reports.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the program: from its command line to its exit code |
//! | [`config`] | flags and environment, parsed into types before anything is opened |
//! | [`workdir`] | the work directory: lock, identity, highest epoch, paths |
//! | [`processes`] | pure: desired × actual → actions |
//! | [`lease`], [`boottime`] | pure: when the worker's lease ends; and the clock that it is measured with |
//! | [`node`] | the loop that owns [`processes`] and feeds [`launcher`] |
//! | [`launcher`] | from a launch to a running supervisor, and what it reports |
//! | [`supervisor`] | the `firesteel-supervisor` binary: isolation, waiting, killing, cleaning up |
//! | [`agent`] | the connection to the masters |
//! | [`logs`], [`retention`] | reading logs, and how long they stay |
//! | [`shuffle`] | map outputs: their directories, who may read them, how |
//! | [`web`] | the worker's own page |
//! | [`daemon`] | wiring, start and stop |

pub mod agent;
pub mod artifact;
pub mod backoff;
pub mod boottime;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod launcher;
pub mod lease;
pub mod logs;
pub mod node;
pub mod orphans;
pub mod processes;
pub mod retention;
pub mod scratch;
pub mod shuffle;
pub mod supervisor;
pub mod usage;
pub mod web;
pub mod wire;
pub mod workdir;
