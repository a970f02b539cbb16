//! What every master knows: workers, applications, their processes.

use firesteel_common::{
    ApplicationId, ApplicationSpec, ApplicationState, DeployMode, ExecutorState, ProcessId, Resources,
    Secret, WorkerId, WorkerStatus,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The replicated state. Cloning copies pointers; it serialises the same on every master.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    pub(crate) workers: BTreeMap<WorkerId, Arc<Worker>>,
    pub(crate) applications: BTreeMap<ApplicationId, Arc<Application>>,
    /// Waiting and running applications by submission number. Ids do not sort by age: clocks step back.
    pub(crate) active: BTreeMap<u64, ApplicationId>,
    /// Ended applications by the order of their ends.
    pub(crate) finished: BTreeMap<u64, ApplicationId>,
    pub(crate) submitted_total: u64,
    pub(crate) finished_total: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    pub id: WorkerId,
    pub incarnation: u64,
    /// Where its own gRPC service listens.
    pub host: String,
    pub port: u16,
    pub capacity: Resources,
    pub version: String,
    pub ui_url: String,
    pub status: WorkerStatus,
    pub registered_ms: u64,
    pub status_changed_ms: u64,
    /// The sum of what its live processes were granted.
    pub used: Resources,
    /// Processes that it shall run.
    pub live: BTreeSet<ProcessId>,
}

impl Worker {
    pub fn is_alive(&self) -> bool {
        self.status == WorkerStatus::Alive
    }

    pub fn free(&self) -> Resources {
        self.capacity.saturating_sub(self.used)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    pub id: ApplicationId,
    /// Counts submissions from 1: the order of the queue.
    pub sequence: u64,
    pub spec: Arc<ApplicationSpec>,
    pub token: Secret,
    pub state: ApplicationState,
    pub submitted_ms: u64,
    /// When its first executor was granted.
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    /// The outcome in words; empty before the end and after success.
    pub message: String,
    /// Cluster mode: driver processes by attempt.
    pub drivers: BTreeMap<u32, Arc<Process>>,
    /// Executors by number: all live ones, and the last of those that ended.
    pub executors: BTreeMap<u32, Arc<Process>>,
    pub next_executor: u32,
    /// Executors in a row that ended without any having become running.
    pub failed_starts: u32,
    /// Executors in a row that ended soon after their grant.
    pub quick_ends: u32,
    /// No executor is granted before this time: an executor that keeps crashing must not be started in a tight loop.
    pub retry_at_ms: u64,
}

impl Application {
    pub fn is_cluster_mode(&self) -> bool {
        self.spec.deploy_mode == DeployMode::Cluster
    }

    /// The newest driver process and its attempt, live or not.
    pub fn driver(&self) -> Option<(u32, &Arc<Process>)> {
        self.drivers.last_key_value().map(|(attempt, process)| (*attempt, process))
    }

    pub fn live_driver(&self) -> Option<(u32, &Arc<Process>)> {
        self.driver().filter(|(_, process)| process.is_live())
    }

    pub fn live_executors(&self) -> impl Iterator<Item = (u32, &Arc<Process>)> {
        self.executors.iter().filter(|(_, e)| e.is_live()).map(|(number, e)| (*number, e))
    }

    /// Whether it still lacks the driver that a worker shall run.
    pub fn needs_driver(&self) -> bool {
        self.is_cluster_mode() && self.live_driver().is_none()
    }

    /// How many executors it lacks.
    pub fn missing_executors(&self) -> u32 {
        let live = u32::try_from(self.live_executors().count()).unwrap_or(u32::MAX);
        self.spec.executor_target().saturating_sub(live)
    }

    pub fn process(&self, id: &ProcessId) -> Option<&Arc<Process>> {
        match id {
            ProcessId::Driver { attempt, .. } => self.drivers.get(attempt),
            ProcessId::Executor(executor) => self.executors.get(&executor.number),
        }
    }

    /// What its live processes were granted.
    pub fn held(&self) -> Resources {
        Resources::total(
            self.drivers.values().chain(self.executors.values()).filter(|p| p.is_live()).map(|p| p.resources),
        )
    }
}

/// An executor, or a cluster-mode driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub worker: WorkerId,
    pub incarnation: u64,
    pub resources: Resources,
    pub state: ExecutorState,
    /// Log index of the grant: rises with every launch, across leaders.
    pub grant_index: u64,
    pub granted_ms: u64,
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    /// HOST:PORT of a running executor; empty otherwise.
    pub address: String,
    /// How it ended, in words; empty while it lives.
    pub message: String,
}

impl Process {
    pub fn is_live(&self) -> bool {
        !self.state.is_final()
    }
}

/// Why a piece of text does not name one application.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    #[error("there is no application {text:?}")]
    Unknown { text: String },
    #[error("{text:?} could be {}", matches.join(" or "))]
    Ambiguous {
        text: String,
        /// At most five of them.
        matches: Vec<String>,
    },
}

impl ClusterState {
    pub fn workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.workers.values()
    }

    pub fn alive_workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.workers.values().filter(|w| w.is_alive())
    }

    pub fn worker(&self, id: &WorkerId) -> Option<&Arc<Worker>> {
        self.workers.get(id)
    }

    pub fn application(&self, id: &ApplicationId) -> Option<&Arc<Application>> {
        self.applications.get(id)
    }

    /// Every application that is remembered, by id.
    pub fn applications(&self) -> impl Iterator<Item = &Arc<Application>> {
        self.applications.values()
    }

    /// How many ended applications have left the history.
    pub fn forgotten_applications(&self) -> u64 {
        self.submitted_total.saturating_sub(self.applications.len() as u64)
    }

    /// Waiting and running applications in the order of their submission.
    pub fn active(&self) -> impl Iterator<Item = &Arc<Application>> {
        self.active.values().filter_map(|id| self.applications.get(id))
    }

    /// Ended applications, the last to end first.
    pub fn finished(&self) -> impl Iterator<Item = &Arc<Application>> {
        self.finished.values().rev().filter_map(|id| self.applications.get(id))
    }

    pub fn process(&self, id: &ProcessId) -> Option<&Arc<Process>> {
        self.applications.get(id.application())?.process(id)
    }

    /// The application with this id, or the only one whose id starts or ends with `text`.
    pub fn find_application(&self, text: &str) -> Result<&Arc<Application>, FindError> {
        let unknown = || FindError::Unknown { text: text.chars().take(128).collect() };
        if text.is_empty() {
            return Err(unknown());
        }
        if let Some(exact) = text.parse().ok().and_then(|id: ApplicationId| self.applications.get(&id)) {
            return Ok(exact);
        }
        let matches: Vec<_> = self
            .applications
            .iter()
            .filter(|(id, _)| id.as_str().starts_with(text) || id.as_str().ends_with(text))
            .map(|(id, application)| (id.as_str(), application))
            .collect();
        match matches.as_slice() {
            [] => Err(unknown()),
            [(_, one)] => Ok(one),
            several => Err(FindError::Ambiguous {
                text: text.to_owned(),
                matches: several.iter().take(5).map(|(id, _)| (*id).to_owned()).collect(),
            }),
        }
    }
}
