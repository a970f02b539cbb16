//! What a worker shall run.

use crate::state::ClusterState;
use firesteel_common::{ApplicationSpec, ProcessId, Resources, Secret, WorkerId};
use std::sync::Arc;

/// One process of a worker's desired set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    pub process: ProcessId,
    pub resources: Resources,
    pub token: Secret,
    pub spec: Arc<ApplicationSpec>,
    pub grant_index: u64,
    /// The worker's incarnation that it was granted for.
    pub incarnation: u64,
    /// It must not outlive the worker's lease, because something may be started in its place once that has run out.
    pub ends_with_lease: bool,
}

/// Everything the worker shall run: what it runs beyond that, it stops. Empty for an unknown, dead or departed worker.
pub fn desired(state: &ClusterState, worker: &WorkerId) -> Vec<Launch> {
    let Some(worker) = state.worker(worker) else { return Vec::new() };
    // While a single master is away nobody replaces anything, so what runs may go on until it is back. Of several, another
    // goes on, and must be able to tell when what it cannot see has ended.
    let several_masters = state.members().filter(|member| !member.non_voter).nth(1).is_some();
    worker
        .live
        .iter()
        .filter_map(|id| {
            let app = state.application(id.application())?;
            let process = app.process(id)?;
            let supervised_driver = app.spec.supervise && matches!(id, ProcessId::Driver { .. });
            Some(Launch {
                process: id.clone(),
                resources: process.resources,
                token: app.token.clone(),
                spec: app.spec.clone(),
                grant_index: process.grant_index,
                incarnation: process.incarnation,
                ends_with_lease: supervised_driver || several_masters,
            })
        })
        .collect()
}
