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
}

/// Everything the worker shall run: what it runs beyond that, it stops. Empty for an unknown, dead or departed worker.
pub fn desired(state: &ClusterState, worker: &WorkerId) -> Vec<Launch> {
    let Some(worker) = state.worker(worker) else { return Vec::new() };
    worker
        .live
        .iter()
        .filter_map(|id| {
            let app = state.application(id.application())?;
            let process = app.process(id)?;
            Some(Launch {
                process: id.clone(),
                resources: process.resources,
                token: app.token.clone(),
                spec: app.spec.clone(),
                grant_index: process.grant_index,
            })
        })
        .collect()
}
