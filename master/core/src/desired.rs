//! What a worker shall run, and whose map outputs it shall keep.

use crate::state::{Application, ClusterState};
use firesteel_common::{ApplicationId, ApplicationSpec, ProcessId, Resources, Secret, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
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

/// By worker: the applications whose map outputs it shall keep, with their tokens.
pub type ShuffleTenants = BTreeMap<WorkerId, BTreeMap<ApplicationId, Secret>>;

/// Whose map outputs each worker shall keep; a worker that keeps none is left out.
///
/// Says nothing about whether a worker is alive: one that comes back has kept its files.
pub fn shuffle_tenants(state: &ClusterState) -> ShuffleTenants {
    let mut tenants = ShuffleTenants::new();
    for app in state.active() {
        for worker in shuffle_workers(app) {
            tenants.entry(worker.clone()).or_default().insert(app.id.clone(), app.token.clone());
        }
    }
    tenants
}

/// The workers that an application that has not ended may have left map outputs on: all that have run an executor for the
/// driver that it has now. Outputs that were made for an earlier driver are of no use to the next, which runs its queries
/// under new names.
///
/// Of very many executors that have ended the oldest are forgotten ([`crate::MAX_ENDED_EXECUTORS`]), and so may be a worker
/// that ran none since: then its outputs are as lost as they are with the worker.
pub fn shuffle_workers(app: &Application) -> BTreeSet<&WorkerId> {
    let since = match (app.state.is_final(), app.is_cluster_mode()) {
        (true, _) => None,
        (false, false) => Some(0),
        (false, true) => app.live_driver().map(|(_, driver)| driver.grant_index),
    };
    let Some(since) = since else { return BTreeSet::new() };
    app.executors.values().filter(|e| e.grant_index > since).map(|e| &e.worker).collect()
}
