//! What enters the log, and what becomes of it.

use firesteel_common::{
    ApplicationId, ApplicationSpec, ExecutorState, ProcessEnd, ProcessId, Resources, Secret, WorkerId,
    WorkerStatus,
};
use serde::{Deserialize, Serialize};

/// A change of the cluster's state. Times are milliseconds since 1970 (UTC), read by the proposer.
///
/// Grants and status changes name the worker's incarnation: decided about one life of a worker, they must not hit the next.
///
/// A command, or a field of one, that older builds do not know belongs to a new [feature level](crate::FEATURE_LEVEL):
/// nobody may propose it before the state says that every master is there. Fields that came later have a default, because
/// a log may hold commands from before them.
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
        /// For a repetition of a submission that is known, the application keeps the token it has: read it from the state.
        token: Secret,
        /// Names the submission, so that its repetition is not run again; empty for no such protection.
        #[serde(default)]
        key: String,
        /// A log index that the cluster had reached before the submission was made for the first time.
        #[serde(default)]
        ticket: u64,
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
    /// A master is a member, under these names and addresses. For a known one it brings changes of them in; whether that
    /// one shall vote is left as it is ([`Command::SetNonVoter`]).
    PutMember {
        /// Its raft id.
        id: u64,
        raft_address: String,
        client_address: String,
        ui_url: String,
        version: String,
        feature_level: u32,
        non_voter: bool,
        at_ms: u64,
    },
    SetNonVoter {
        id: u64,
        non_voter: bool,
    },
    /// A master is no member any more, and will not be again under this id.
    RemoveMember {
        id: u64,
        at_ms: u64,
    },
    /// Commands of this level may be proposed from now on. See [`crate::feature_level_to_set`].
    SetFeatureLevel {
        level: u32,
    },
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The application of this submission, whether it is new or was known by its key.
    Submitted {
        id: ApplicationId,
    },
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
    #[error(
        "the key {key:?} names application {application}, which was submitted with another specification"
    )]
    KeyReused { key: String, application: ApplicationId },
    #[error("the submission is too old: it may have run already and been forgotten; look at submit list")]
    SubmissionTooOld,
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
    #[error("a member cannot be recorded so: {0}")]
    InvalidMember(String),
    #[error("master {0:x} was removed from this cluster: it can only come back empty, as a new member")]
    MemberRemoved(u64),
    #[error("{address} is the address of master {member:x}: remove that member first")]
    AddressInUse { address: String, member: u64 },
    #[error("there is no member {0:x}")]
    NoSuchMember(u64),
    #[error(
        "feature level {needed} is needed, and master {member:x} is of a build that knows only level {has}"
    )]
    BuildTooOld { member: u64, has: u32, needed: u32 },
    #[error("feature level {asked} is no rise: the cluster is on level {current}")]
    NoRise { asked: u32, current: u32 },
    #[error("there is no member yet whose build could know feature level {0}")]
    NoMembers(u32),
}
