//! Staged execution as the driver sees it: the jobs of the application, run by the scheduler of `engine/core` on whatever
//! executors there are.
//!
//! [`Jobs`] is the handle; one task of its own ([`runner`]) owns the scheduler and carries out what it decides. A query that
//! runs ([`query`]) hands its fragments over and reads its results from the outputs of its last stages.

mod attempts;
mod graph;
mod query;
mod runner;

pub use graph::{Graph, GraphStage, graph};
pub use query::{StagedQuery, VirtualUrls};
pub use runner::{Command, Jobs};
