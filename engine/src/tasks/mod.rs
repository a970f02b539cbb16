//! The executor's side of staged execution: one attempt at one task, from its description to its map output.
//!
//! `datafusion-distributed` plans the fragments; here a fragment reads its network boundaries from map outputs, and what its
//! head would send to consumers goes into one.

mod failure;
mod head;
mod inputs;
mod joins;
mod metrics;
mod runner;
mod service;

pub use failure::classify;
pub use inputs::TaskInputs;
pub use metrics::decode as decode_metrics;
pub use runner::TaskRunner;
pub use service::TaskService;
