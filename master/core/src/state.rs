//! What every master knows: workers, applications, their processes.

use firesteel_common::{
    ApplicationId, ApplicationSpec, ApplicationState, DeployMode, ExecutorState, ProcessId, Resources,
    Secret, WorkerId, WorkerStatus,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The level of commands that this build knows; a state may be on a lower one.
///
/// During a rolling upgrade masters of two builds run side by side, and each must be able to apply whatever is committed.
/// So a command of a newer level may only be proposed once [`ClusterState::feature_level`] says so, and the state says so
/// once every member's build knows that level ([`crate::feature_level_to_set`]).
pub const FEATURE_LEVEL: u32 = 1;

/// The replicated state. Cloning copies pointers; it serialises the same on every master.
///
/// A field that is added gets a `serde` default: snapshots from before it must load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    pub(crate) workers: BTreeMap<WorkerId, Arc<Worker>>,
    pub(crate) applications: BTreeMap<ApplicationId, Arc<Application>>,
    /// Waiting and running applications by submission number. Ids do not sort by age: clocks step back.
    pub(crate) active: BTreeMap<u64, ApplicationId>,
    /// Ended applications by the order of their ends.
    pub(crate) finished: BTreeMap<u64, ApplicationId>,
    pub(crate) submitted_total: u64,
    pub(crate) finished_total: u64,
    /// Submissions that are known by their keys, for as long as their applications are remembered.
    #[serde(default)]
    pub(crate) keys: BTreeMap<String, ApplicationId>,
    /// The newest log index of a submission with a key that has been forgotten since; 0 while none has.
    #[serde(default)]
    pub(crate) forgotten_index: u64,
    #[serde(default)]
    pub(crate) members: BTreeMap<u64, Member>,
    /// Ids of removed members → log index of the removal.
    #[serde(default)]
    pub(crate) removed_members: BTreeMap<u64, u64>,
    #[serde(default = "first_feature_level")]
    pub(crate) feature_level: u32,
}

const fn first_feature_level() -> u32 {
    1
}

impl Default for ClusterState {
    fn default() -> Self {
        Self {
            workers: BTreeMap::new(),
            applications: BTreeMap::new(),
            active: BTreeMap::new(),
            finished: BTreeMap::new(),
            submitted_total: 0,
            finished_total: 0,
            keys: BTreeMap::new(),
            forgotten_index: 0,
            members: BTreeMap::new(),
            removed_members: BTreeMap::new(),
            feature_level: first_feature_level(),
        }
    }
}

/// A master of the cluster: what it is called and where it is found.
///
/// Who votes and who leads is Raft's own configuration, which changes by its own entries. These records say nothing about
/// that; they may be a moment ahead of it or behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its raft id.
    pub id: u64,
    /// HOST:PORT for other masters. No two members share one.
    pub raft_address: String,
    /// HOST:PORT for submit, workers and drivers.
    pub client_address: String,
    pub ui_url: String,
    pub version: String,
    /// What its build knows.
    pub feature_level: u32,
    /// It shall never vote.
    pub non_voter: bool,
    pub joined_ms: u64,
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
    /// The submitter's name for the submission; empty if it gave none.
    #[serde(default)]
    pub key: String,
    /// Log index of the submission; 0 if it is from a time when that was not kept.
    #[serde(default)]
    pub submitted_index: u64,
    pub spec: Arc<ApplicationSpec>,
    pub token: Secret,
    pub state: ApplicationState,
    pub submitted_ms: u64,
    /// When its very first executor was granted.
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    /// The outcome in words; empty before the end and after success.
    pub message: String,
    /// Cluster mode: driver processes by attempt: a live one, and the last of those that ended.
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
    /// Supervised: drivers in a row that ended without a result and had not lived long.
    #[serde(default)]
    pub driver_failures: u32,
    /// Supervised: the next driver is not granted before this time.
    #[serde(default)]
    pub driver_retry_at_ms: u64,
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

    /// How often its driver has been placed; also the number of the next attempt.
    pub fn driver_starts(&self) -> u32 {
        self.driver().map_or(0, |(last, _)| last.saturating_add(1))
    }

    /// Whether its driver ended without a result and another takes its place (a supervised application). It has no executor
    /// then.
    pub fn awaits_next_driver(&self) -> bool {
        !self.state.is_final() && self.needs_driver() && !self.drivers.is_empty()
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

    /// The application of the submission with this key, as long as it is remembered.
    pub fn application_of_key(&self, key: &str) -> Option<&Arc<Application>> {
        self.applications.get(self.keys.get(key)?)
    }

    /// The masters by raft id. Who of them votes is Raft's to say, see [`Member`].
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub fn member(&self, id: u64) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Whether a member of this id was removed. The oldest removals of very many are forgotten.
    pub fn is_removed_member(&self, id: u64) -> bool {
        self.removed_members.contains_key(&id)
    }

    /// Commands up to this level may be proposed; see [`FEATURE_LEVEL`].
    pub fn feature_level(&self) -> u32 {
        self.feature_level
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
