//! Map outputs: where executors leave them, who may read them, when they go.
//!
//! ```text
//! shuffle/APP/QUERY/STAGE-TASK-ATTEMPT.shuffle  an output, whole (see `firesteel_common::shuffle`)
//! shuffle/APP/QUERY/.tmp-EXECUTOR-…             one that executor EXECUTOR is writing
//! shuffle/.removed-APP-N                        on its way out: nobody is served from it
//! ```
//!
//! Executors write, this worker serves: so outputs outlive the executor that made them. They also outlive the worker's
//! daemon, because the directory stays and the worker's id with it; not the machine's next start, because nobody syncs them.
//! They go when a leader says that their application keeps nothing here any more ([`store`]).
//!
//! | module | holds |
//! |---|---|
//! | [`store`] | whose directories are there and which have to go |
//! | [`remover`] | the thread that deletes |
//! | [`output`] | opening one output and reading its index, whatever an executor has put in its place |
//! | [`index_cache`] | decoded indexes: every consumer asks for its partition of the same outputs |
//! | [`slots`] | how many files are open at a time |
//! | [`service`] | the gRPC service |
//! | [`usage`] | how much is on the disk |

pub mod index_cache;
pub mod output;
pub mod remover;
pub mod service;
pub mod slots;
pub mod store;
pub mod usage;

use firesteel_common::{ApplicationId, Secret};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Begins the name of an output that is being written; the number of the executor and `-` follow.
pub const TEMPORARY_PREFIX: &str = ".tmp-";
/// Begins the name of a directory that is being removed.
pub const REMOVED_PREFIX: &str = ".removed-";

/// Whose outputs this worker keeps and serves, with their tokens. `None` before the first assignment of this run: until then
/// nothing is served, and nothing removed.
pub type Tenants = Option<Arc<BTreeMap<ApplicationId, Secret>>>;

/// What an executor's writer has to observe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What one application may keep on this worker.
    pub quota_bytes: u64,
    /// How much of the disk has to stay free.
    pub free_floor_bytes: u64,
}

const GIB: u64 = 1 << 30;

impl Limits {
    /// What is not given depends on the size of the disk.
    pub fn new(quota_bytes: Option<u64>, free_floor_bytes: Option<u64>, disk_bytes: u64) -> Self {
        Self {
            quota_bytes: quota_bytes.unwrap_or(disk_bytes / 10 * 8),
            free_floor_bytes: free_floor_bytes.unwrap_or(GIB.min(disk_bytes / 20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_the_disk_unless_they_are_given() {
        let limits = Limits::new(None, None, 100 * GIB);
        assert_eq!((limits.quota_bytes, limits.free_floor_bytes), (80 * GIB, GIB));
        let limits = Limits::new(None, None, 10 * GIB);
        assert_eq!((limits.quota_bytes, limits.free_floor_bytes), (8 * GIB, GIB / 2));
        let limits = Limits::new(Some(7), Some(5), GIB);
        assert_eq!((limits.quota_bytes, limits.free_floor_bytes), (7, 5));
    }
}
