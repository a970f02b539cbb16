//! What a launched process is told, as one JSON document on an inherited descriptor.
//!
//! Nothing of it stands in argv or the environment: it holds the application's token, and settings may hold keys.
//!
//! Contract with `firesteel-engine {driver,executor} --launch-fd N [--ready-fd M] LABEL`: the document is read from `N` to
//! its end; an executor that listens writes `HOST:PORT\n` to `M` and closes it. LABEL is for people who run `ps`.

use crate::{ApplicationId, ExecutorId, OutputFormat, Secret, WorkerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// For a driver, started by a worker (cluster mode) or by `submit` (client mode).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DriverLaunch {
    pub application: ApplicationId,
    /// Master URL to report to.
    pub master: String,
    pub token: Secret,
    /// The script's file on this machine.
    pub script: PathBuf,
    /// The script's name as the user gave it, for messages.
    pub resource: String,
    pub output: OutputFormat,
    pub conf: BTreeMap<String, String>,
    pub memory_mib: u64,
    /// A private directory that is removed when the process has ended.
    pub scratch_dir: PathBuf,
}

/// For an executor, started by a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecutorLaunch {
    pub executor: ExecutorId,
    pub token: Secret,
    /// The address to bind (any free port) and to announce.
    pub host: String,
    pub cores: u32,
    pub memory_mib: u64,
    pub conf: BTreeMap<String, String>,
    /// A private directory that is removed when the process has ended.
    pub scratch_dir: PathBuf,
    pub shuffle: ShuffleLaunch,
}

/// Where an executor leaves its map outputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShuffleLaunch {
    /// The worker that serves them; on its machine they are read from `dir`.
    pub worker: WorkerId,
    /// The application's own directory on this worker; it stays when the executor ends, until the application does.
    pub dir: PathBuf,
    /// How much the application may keep there.
    pub quota_bytes: u64,
    /// How much of the disk must stay free.
    pub free_floor_bytes: u64,
}
