//! What enters the log, and what becomes of it.

use firesteel_common::{
    ApplicationId, ApplicationSpec, ExecutorState, ProcessEnd, ProcessId, Resources, Secret, WorkerId,
    WorkerStatus,
};
use serde::{Deserialize, Serialize};

/// A change of the cluster's state. Times are milliseconds since 1970 (UTC), read by the proposer.
///
/// Grants and status changes name the worker's incarnation: decided about one life of a worker, they must not hit the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A worker is there, with so much to give. Another incarnation than before means that it was restarted.
    RegisterWorker {
        id: WorkerId,
        incarnation: u64,
        host: String,
        port: u16,
        capacity: Resources,
        version: String,
        ui_url: String,
        at_ms: u64,
    },
    SetWorkerStatus {
        id: WorkerId,
        incarnation: u64,
        status: WorkerStatus,
        at_ms: u64,
    },
    SubmitApplication {
        spec: ApplicationSpec,
        token: Secret,
        at_ms: u64,
    },
    /// Places a cluster-mode driver. `attempt` must be the application's next.
    GrantDriver {
        application: ApplicationId,
        attempt: u32,
        worker: WorkerId,
        incarnation: u64,
        at_ms: u64,
    },
    /// Places an executor. `number` must be the application's next.
    GrantExecutor {
        application: ApplicationId,
        number: u32,
        worker: WorkerId,
        incarnation: u64,
        at_ms: u64,
    },
    /// Launching → running. `address` is where an executor listens; empty for a driver.
    ProcessStarted {
        process: ProcessId,
        address: String,
        at_ms: u64,
    },
    /// `state` is `Exited`, `Failed` or `Killed`.
    ProcessEnded {
        process: ProcessId,
        state: ExecutorState,
        end: ProcessEnd,
        at_ms: u64,
    },
    FinishApplication {
        application: ApplicationId,
        success: bool,
        message: String,
        at_ms: u64,
    },
    KillApplication {
        application: ApplicationId,
        by: String,
        at_ms: u64,
    },
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Submitted { id: ApplicationId },
    Ok,
    Rejected(Rejection),
}

/// Why a command did nothing. The same on every master; never a reason to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("the specification is not valid: {0}")]
    InvalidSpec(String),
    #[error("the queue is full: {0} applications are waiting or running")]
    QueueFull(usize),
    #[error("there is no application {0}")]
    NoSuchApplication(ApplicationId),
    #[error("application {id} has already ended ({state})")]
    ApplicationEnded { id: ApplicationId, state: firesteel_common::ApplicationState },
    #[error("there is no worker {0}")]
    NoSuchWorker(WorkerId),
    #[error("worker {0} is not alive")]
    WorkerNotAlive(WorkerId),
    #[error("worker {0} has been restarted since")]
    OtherIncarnation(WorkerId),
    #[error("worker {0} already has that status")]
    StatusUnchanged(WorkerId),
    #[error("worker {worker} cannot shrink to {capacity} while it runs {used}")]
    CapacityBelowUse { worker: WorkerId, capacity: Resources, used: Resources },
    #[error("worker {worker} has {free} free, {need} needed")]
    DoesNotFit { worker: WorkerId, free: Resources, need: Resources },
    #[error("application {0} has all the processes it is meant to have")]
    NothingMissing(ApplicationId),
    #[error("application {0} runs its driver itself")]
    ClientMode(ApplicationId),
    #[error("application {0} has no driver yet")]
    NoDriver(ApplicationId),
    #[error("the next process of that kind is number {expected}, not {given}")]
    WrongNumber { expected: u32, given: u32 },
    #[error("there is no process {0}")]
    NoSuchProcess(ProcessId),
    #[error("process {id} is {state} already")]
    ProcessState { id: ProcessId, state: ExecutorState },
    #[error("{0} is not an end of a process that a worker can report")]
    NotAnEnd(ExecutorState),
}
