//! The only place where the state changes.

use crate::command::{Command, Outcome, Rejection};
use crate::members;
use crate::state::{Application, ClusterState, Member, Process, Worker};
use firesteel_common::{
    ApplicationId, ApplicationSpec, ApplicationState, ExecutorId, ExecutorState, ProcessEnd, ProcessId,
    Resources, Secret, WorkerId, WorkerStatus,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Ended applications that are remembered.
pub const MAX_FINISHED_APPLICATIONS: usize = 1000;
/// Applications that may wait and run at a time.
pub const MAX_ACTIVE_APPLICATIONS: usize = 10_000;
/// Ended executors that an application remembers.
pub const MAX_ENDED_EXECUTORS: usize = 1000;
/// Ended drivers that a supervised application remembers.
pub const MAX_ENDED_DRIVERS: usize = 100;
/// Dead and departed workers that are remembered.
pub const MAX_GONE_WORKERS: usize = 1000;
/// So many executors in a row may end before any has come up; then the application fails.
pub const MAX_EXECUTOR_FAILURES: u32 = 10;
/// An executor that lived so long ended for a reason of its own, not because it cannot work here.
const SETTLED_MS: u64 = 10_000;
const RETRY_FIRST_MS: u64 = 100;
pub(crate) const RETRY_MAX_MS: u64 = 2_000;
/// A supervised driver that ran so long did its work: the next one is not slowed down by the failures before it.
const DRIVER_SETTLED_MS: u64 = 10 * 60_000;
pub(crate) const DRIVER_RETRY_FIRST_MS: u64 = 1_000;
pub(crate) const DRIVER_RETRY_MAX_MS: u64 = 60_000;
/// Keys are random or a user's own words, not documents.
pub const MAX_KEY_BYTES: usize = 256;
/// Reasons are for people; a megabyte of one in the log would help nobody.
const MAX_TEXT_BYTES: usize = 8 << 10;

/// What is written down about processes that end because their application has.
const APPLICATION_ENDED: &str = "the application has ended";

/// Applies one committed command. Equal states and commands give equal states and outcomes, whatever the machine.
///
/// The commands' times come from the clocks of whoever led when they were proposed, so they may step back or leap from one
/// command to the next. They are recorded, and only the lengths of lives and delays are taken from them.
///
/// A command that no longer applies (the application has ended, the worker is gone or is another incarnation, the
/// resources are taken) changes nothing and is [`Outcome::Rejected`].
pub fn apply(state: &mut ClusterState, index: u64, command: Command) -> Outcome {
    match try_apply(state, index, command) {
        Ok(outcome) => outcome,
        Err(rejection) => Outcome::Rejected(rejection),
    }
}

fn try_apply(state: &mut ClusterState, index: u64, command: Command) -> Result<Outcome, Rejection> {
    match command {
        Command::RegisterWorker { id, incarnation, host, port, capacity, version, ui_url, at_ms } => {
            let worker = Worker {
                id,
                incarnation,
                host,
                port,
                capacity,
                version,
                ui_url,
                status: WorkerStatus::Alive,
                registered_ms: at_ms,
                status_changed_ms: at_ms,
                used: Resources::default(),
                live: BTreeSet::new(),
            };
            register_worker(state, worker)?;
        }
        Command::SetWorkerStatus { id, incarnation, status, at_ms } => {
            set_worker_status(state, id, incarnation, status, at_ms)?;
        }
        Command::SubmitApplication { spec, token, key, ticket, at_ms } => {
            return submit(state, index, spec, token, key, ticket, at_ms);
        }
        Command::GrantDriver { application, attempt, worker, incarnation, at_ms } => {
            let app = active(state, &application)?;
            if !app.is_cluster_mode() {
                return Err(Rejection::ClientMode(application));
            }
            if app.live_driver().is_some() {
                return Err(Rejection::NothingMissing(application));
            }
            let need = app.spec.driver;
            check_number(app.driver_starts(), attempt)?;
            let process = ProcessId::Driver { application, attempt };
            grant(state, process, worker, incarnation, need, index, at_ms)?;
        }
        Command::GrantExecutor { application, number, worker, incarnation, at_ms } => {
            let app = active(state, &application)?;
            if app.needs_driver() {
                return Err(Rejection::NoDriver(application));
            }
            if app.missing_executors() == 0 {
                return Err(Rejection::NothingMissing(application));
            }
            let need = app.spec.executor;
            check_number(app.next_executor, number)?;
            let process = ProcessId::Executor(ExecutorId { application, number });
            grant(state, process, worker, incarnation, need, index, at_ms)?;
        }
        Command::ProcessStarted { process, address, at_ms } => {
            process_started(state, &process, address, at_ms)?
        }
        Command::ProcessEnded { process, state: ended, end, at_ms } => {
            process_ended(state, &process, ended, &end, at_ms)?;
        }
        Command::FinishApplication { application, success, message, at_ms } => {
            active(state, &application)?;
            let outcome = if success { ApplicationState::Finished } else { ApplicationState::Failed };
            // It was done with them: they ended in good order, whatever the result.
            let processes = (ExecutorState::Exited, APPLICATION_ENDED);
            end_application(state, &application, outcome, shorten(message), processes, at_ms);
        }
        Command::KillApplication { application, by, at_ms } => {
            active(state, &application)?;
            let message = if by.is_empty() { "killed".to_owned() } else { format!("killed by {by}") };
            let message = shorten(message);
            let processes = (ExecutorState::Killed, message.as_str());
            end_application(state, &application, ApplicationState::Killed, message.clone(), processes, at_ms);
        }
        Command::PutMember {
            id,
            raft_address,
            client_address,
            ui_url,
            version,
            feature_level,
            non_voter,
            at_ms,
        } => {
            let member = Member {
                id,
                raft_address,
                client_address,
                ui_url,
                version,
                feature_level,
                non_voter,
                joined_ms: at_ms,
            };
            members::put(state, member)?;
        }
        Command::SetNonVoter { id, non_voter } => members::set_non_voter(state, id, non_voter)?,
        // The time is for readers of the log.
        Command::RemoveMember { id, at_ms: _ } => members::remove(state, index, id)?,
        Command::SetFeatureLevel { level } => members::set_feature_level(state, level)?,
    }
    Ok(Outcome::Ok)
}

fn active<'a>(state: &'a ClusterState, id: &ApplicationId) -> Result<&'a Arc<Application>, Rejection> {
    let app = state.applications.get(id).ok_or_else(|| Rejection::NoSuchApplication(id.clone()))?;
    if app.state.is_final() {
        return Err(Rejection::ApplicationEnded { id: id.clone(), state: app.state });
    }
    Ok(app)
}

fn check_number(expected: u32, given: u32) -> Result<(), Rejection> {
    if expected == given { Ok(()) } else { Err(Rejection::WrongNumber { expected, given }) }
}

fn register_worker(state: &mut ClusterState, mut new: Worker) -> Result<(), Rejection> {
    match state.workers.get(&new.id) {
        Some(old) if old.incarnation == new.incarnation => {
            if !new.capacity.fits(old.used) {
                return Err(Rejection::CapacityBelowUse {
                    worker: new.id,
                    capacity: new.capacity,
                    used: old.used,
                });
            }
            // The same life: what it runs goes on, and it has been here since it first registered.
            new.used = old.used;
            new.live = old.live.clone();
            new.registered_ms = old.registered_ms;
            if old.is_alive() {
                new.status_changed_ms = old.status_changed_ms;
            }
        }
        Some(_) => lose_processes(state, &new.id, "was restarted", new.registered_ms),
        None => {}
    }
    state.workers.insert(new.id.clone(), Arc::new(new));
    Ok(())
}

fn set_worker_status(
    state: &mut ClusterState,
    id: WorkerId,
    incarnation: u64,
    status: WorkerStatus,
    at_ms: u64,
) -> Result<(), Rejection> {
    let worker = state.workers.get_mut(&id).ok_or_else(|| Rejection::NoSuchWorker(id.clone()))?;
    if worker.incarnation != incarnation {
        return Err(Rejection::OtherIncarnation(id));
    }
    match (worker.status, status) {
        (old, new) if old == new => return Err(Rejection::StatusUnchanged(id)),
        // One that said goodbye comes back by registering, not by a late heartbeat.
        (WorkerStatus::Left, _) => return Err(Rejection::WorkerNotAlive(id)),
        _ => {}
    }
    let worker = Arc::make_mut(worker);
    worker.status = status;
    worker.status_changed_ms = at_ms;
    match status {
        WorkerStatus::Alive => {}
        WorkerStatus::Dead => lose_processes(state, &id, "was lost", at_ms),
        WorkerStatus::Left => lose_processes(state, &id, "was stopped", at_ms),
    }
    forget_gone_workers(state);
    Ok(())
}

fn forget_gone_workers(state: &mut ClusterState) {
    let mut gone: Vec<_> = state
        .workers
        .values()
        .filter(|w| !w.is_alive())
        .map(|w| (w.status_changed_ms, w.id.clone()))
        .collect();
    if gone.len() > MAX_GONE_WORKERS {
        gone.sort();
        for (_, id) in &gone[..gone.len() - MAX_GONE_WORKERS] {
            state.workers.remove(id);
        }
    }
}

/// Exactly once: a submission with a key gives one application, however often it is repeated.
///
/// The key is known for as long as the application is remembered. After that a repetition looks like a new submission;
/// what gives it away is its ticket, a log index from before its first attempt. The first attempt, if it was committed,
/// has a higher index than that. So with a ticket above every forgotten index it was not forgotten, and being unknown it
/// was never committed; with a lower one nobody can tell, and the submission is refused.
fn submit(
    state: &mut ClusterState,
    index: u64,
    spec: ApplicationSpec,
    token: Secret,
    key: String,
    ticket: u64,
    at_ms: u64,
) -> Result<Outcome, Rejection> {
    if key.len() > MAX_KEY_BYTES {
        return Err(Rejection::InvalidSpec(format!(
            "the submission's key is longer than {MAX_KEY_BYTES} bytes"
        )));
    }
    if let Some(known) = state.application_of_key(&key) {
        let id = known.id.clone();
        return match *known.spec == spec {
            true => Ok(Outcome::Submitted { id }),
            false => Err(Rejection::KeyReused { key, application: id }),
        };
    }
    if !key.is_empty() && state.forgotten_index > 0 && ticket <= state.forgotten_index {
        return Err(Rejection::SubmissionTooOld);
    }
    spec.validate().map_err(|e| Rejection::InvalidSpec(e.to_string()))?;
    if state.active.len() >= MAX_ACTIVE_APPLICATIONS {
        return Err(Rejection::QueueFull(state.active.len()));
    }
    state.submitted_total += 1;
    let id = ApplicationId::new(at_ms, state.submitted_total);
    let app = Application {
        id: id.clone(),
        sequence: state.submitted_total,
        key: key.clone(),
        submitted_index: index,
        spec: Arc::new(spec),
        token,
        state: ApplicationState::Waiting,
        submitted_ms: at_ms,
        started_ms: None,
        ended_ms: None,
        message: String::new(),
        drivers: BTreeMap::new(),
        executors: BTreeMap::new(),
        next_executor: 0,
        failed_starts: 0,
        quick_ends: 0,
        retry_at_ms: 0,
        driver_failures: 0,
        driver_retry_at_ms: 0,
    };
    if !key.is_empty() {
        state.keys.insert(key, id.clone());
    }
    state.active.insert(app.sequence, id.clone());
    state.applications.insert(id.clone(), Arc::new(app));
    Ok(Outcome::Submitted { id })
}

/// Books `need` on the worker and adds the process; everything about the application has been checked.
fn grant(
    state: &mut ClusterState,
    process: ProcessId,
    worker: WorkerId,
    incarnation: u64,
    need: Resources,
    index: u64,
    at_ms: u64,
) -> Result<(), Rejection> {
    let app_id = process.application();
    let (Some(host), Some(app)) = (state.workers.get_mut(&worker), state.applications.get_mut(app_id)) else {
        return Err(Rejection::NoSuchWorker(worker));
    };
    if !host.is_alive() {
        return Err(Rejection::WorkerNotAlive(worker));
    }
    if host.incarnation != incarnation {
        return Err(Rejection::OtherIncarnation(worker));
    }
    let used = match host.used.checked_add(need) {
        Some(used) if host.capacity.fits(used) => used,
        _ => return Err(Rejection::DoesNotFit { worker, free: host.free(), need }),
    };
    let host = Arc::make_mut(host);
    host.used = used;
    host.live.insert(process.clone());
    let app = Arc::make_mut(app);
    let granted = Arc::new(Process {
        worker,
        incarnation,
        resources: need,
        state: ExecutorState::Launching,
        grant_index: index,
        granted_ms: at_ms,
        started_ms: None,
        ended_ms: None,
        address: String::new(),
        message: String::new(),
    });
    match process {
        ProcessId::Driver { attempt, .. } => {
            app.drivers.insert(attempt, granted);
        }
        ProcessId::Executor(id) => {
            app.executors.insert(id.number, granted);
            app.next_executor = id.number.saturating_add(1);
            if app.state == ApplicationState::Waiting {
                app.state = ApplicationState::Running;
                // Where a driver was started again it has run before.
                app.started_ms = app.started_ms.or(Some(at_ms));
            }
        }
    }
    Ok(())
}

fn process_mut<'a>(app: &'a mut Application, id: &ProcessId) -> Option<&'a mut Process> {
    let process = match id {
        ProcessId::Driver { attempt, .. } => app.drivers.get_mut(attempt),
        ProcessId::Executor(executor) => app.executors.get_mut(&executor.number),
    };
    process.map(Arc::make_mut)
}

fn process_started(
    state: &mut ClusterState,
    id: &ProcessId,
    address: String,
    at_ms: u64,
) -> Result<(), Rejection> {
    match state.process(id).map(|p| p.state) {
        None => return Err(Rejection::NoSuchProcess(id.clone())),
        Some(ExecutorState::Launching) => {}
        Some(state) => return Err(Rejection::ProcessState { id: id.clone(), state }),
    }
    if let Some(app) = state.applications.get_mut(id.application()) {
        let app = Arc::make_mut(app);
        if matches!(id, ProcessId::Executor(_)) {
            app.failed_starts = 0;
        }
        if let Some(process) = process_mut(app, id) {
            process.state = ExecutorState::Running;
            process.started_ms = Some(at_ms);
            process.address = shorten(address);
        }
    }
    Ok(())
}

fn process_ended(
    state: &mut ClusterState,
    id: &ProcessId,
    ended: ExecutorState,
    end: &ProcessEnd,
    at_ms: u64,
) -> Result<(), Rejection> {
    if !matches!(ended, ExecutorState::Exited | ExecutorState::Failed | ExecutorState::Killed) {
        return Err(Rejection::NotAnEnd(ended));
    }
    match state.process(id) {
        None => return Err(Rejection::NoSuchProcess(id.clone())),
        Some(process) if !process.is_live() => {
            return Err(Rejection::ProcessState { id: id.clone(), state: process.state });
        }
        Some(_) => {}
    }
    let words = shorten(end.to_string());
    end_process(state, id, ended, &words, at_ms);
    match id {
        ProcessId::Driver { application, .. } => {
            // A driver reports its result before it ends; one that ends while the application is active never will.
            let message = if end.is_success() {
                format!("the driver {words} before it reported a result")
            } else {
                format!("the driver {words}")
            };
            driver_ended(state, application, message, at_ms);
        }
        ProcessId::Executor(executor) => {
            count_executor_end(state, &executor.application, executor.number, &words, at_ms);
        }
    }
    Ok(())
}

/// An executor of an active application ended by itself: when to try the next, and when to stop trying.
fn count_executor_end(state: &mut ClusterState, id: &ApplicationId, number: u32, words: &str, at_ms: u64) {
    let Some(app) = state.applications.get_mut(id) else { return };
    let app = Arc::make_mut(app);
    let Some(process) = app.executors.get(&number) else { return };
    if at_ms.saturating_sub(process.granted_ms) >= SETTLED_MS {
        app.quick_ends = 0;
    } else {
        app.quick_ends = app.quick_ends.saturating_add(1);
    }
    // The first replacement comes at once; only a row of short lives is slowed down.
    if app.quick_ends > 1 {
        let delay = RETRY_FIRST_MS.saturating_mul(1 << (app.quick_ends - 2).min(16)).min(RETRY_MAX_MS);
        app.retry_at_ms = at_ms.saturating_add(delay);
    }
    if process.started_ms.is_none() {
        app.failed_starts = app.failed_starts.saturating_add(1);
    }
    let none_runs = !app.executors.values().any(|e| e.state == ExecutorState::Running);
    if app.failed_starts >= MAX_EXECUTOR_FAILURES && none_runs {
        let message = format!("{} executors in a row failed; the last {words}", app.failed_starts);
        let processes = (ExecutorState::Killed, APPLICATION_ENDED);
        end_application(state, id, ApplicationState::Failed, message, processes, at_ms);
    }
}

/// The driver of an active application is gone without having reported a result. Unless it is supervised, that is the end.
fn driver_ended(state: &mut ClusterState, id: &ApplicationId, message: String, at_ms: u64) {
    let Some(app) = state.applications.get_mut(id) else { return };
    if !app.spec.supervise {
        let processes = (ExecutorState::Killed, APPLICATION_ENDED);
        return end_application(state, id, ApplicationState::Failed, message, processes, at_ms);
    }
    let app = Arc::make_mut(app);
    let lived_ms = app.driver().and_then(|(_, last)| Some(last.ended_ms?.saturating_sub(last.started_ms?)));
    if lived_ms.is_some_and(|lived| lived >= DRIVER_SETTLED_MS) {
        app.driver_failures = 0;
    }
    let delay =
        DRIVER_RETRY_FIRST_MS.saturating_mul(1 << app.driver_failures.min(16)).min(DRIVER_RETRY_MAX_MS);
    app.driver_failures = app.driver_failures.saturating_add(1);
    app.driver_retry_at_ms = at_ms.saturating_add(delay);
    // Back in its place in the queue: to the next driver the work of the one before is lost, and so are the executors,
    // which hold its tasks and its shuffles.
    app.state = ApplicationState::Waiting;
    for process in live_processes(app) {
        end_process(state, &process, ExecutorState::Killed, "the driver is started again", at_ms);
    }
}

/// The processes of a worker are gone with it.
fn lose_processes(state: &mut ClusterState, worker: &WorkerId, how: &str, at_ms: u64) {
    let Some(lost) = state.workers.get(worker).map(|w| w.live.clone()) else { return };
    for process in &lost {
        end_process(state, process, ExecutorState::Lost, &format!("its worker {worker} {how}"), at_ms);
    }
    for process in lost {
        if let ProcessId::Driver { application, .. } = process {
            let message = format!("the driver's worker {worker} {how}");
            driver_ended(state, &application, message, at_ms);
        }
    }
}

/// Marks a live process as ended and gives back what it held.
fn end_process(state: &mut ClusterState, id: &ProcessId, ended: ExecutorState, message: &str, at_ms: u64) {
    let Some(app) = state.applications.get_mut(id.application()) else { return };
    let app = Arc::make_mut(app);
    let Some(process) = process_mut(app, id) else { return };
    process.state = ended;
    process.ended_ms = Some(at_ms);
    process.message = message.to_owned();
    let (resources, worker) = (process.resources, process.worker.clone());
    if let Some(worker) = state.workers.get_mut(&worker) {
        let worker = Arc::make_mut(worker);
        if worker.live.remove(id) {
            worker.used = worker.used.saturating_sub(resources);
        }
    }
    let app = state.applications.get_mut(id.application()).map(Arc::make_mut);
    if let Some(app) = app {
        let ended: Vec<u32> =
            app.executors.iter().filter(|(_, e)| !e.is_live()).map(|(number, _)| *number).collect();
        for number in ended.iter().take(ended.len().saturating_sub(MAX_ENDED_EXECUTORS)) {
            app.executors.remove(number);
        }
        let ended = app.drivers.values().filter(|d| !d.is_live()).count();
        // The newest stays in any case: it numbers the next.
        for _ in MAX_ENDED_DRIVERS..ended {
            app.drivers.pop_first();
        }
    }
}

fn live_processes(app: &Application) -> Vec<ProcessId> {
    let driver = app.live_driver().map(|(attempt, _)| attempt);
    let driver = driver.map(|attempt| ProcessId::Driver { application: app.id.clone(), attempt });
    let executors = app
        .live_executors()
        .map(|(number, _)| ProcessId::Executor(ExecutorId { application: app.id.clone(), number }));
    driver.into_iter().chain(executors).collect()
}

/// Puts an active application into a final state and stops its processes: they leave their workers' desired sets.
/// `processes` is what becomes of those, and why.
fn end_application(
    state: &mut ClusterState,
    id: &ApplicationId,
    outcome: ApplicationState,
    message: String,
    processes: (ExecutorState, &str),
    at_ms: u64,
) {
    let Some(app) = state.applications.get_mut(id) else { return };
    if app.state.is_final() {
        return;
    }
    let app = Arc::make_mut(app);
    app.state = outcome;
    app.ended_ms = Some(at_ms);
    app.message = message;
    let sequence = app.sequence;
    let (ended, why) = processes;
    for process in live_processes(app) {
        end_process(state, &process, ended, why, at_ms);
    }
    state.active.remove(&sequence);
    state.finished_total += 1;
    state.finished.insert(state.finished_total, id.clone());
    while state.finished.len() > MAX_FINISHED_APPLICATIONS {
        let oldest = state.finished.pop_first().and_then(|(_, oldest)| state.applications.remove(&oldest));
        if let Some(app) = oldest.filter(|app| !app.key.is_empty()) {
            state.keys.remove(&app.key);
            state.forgotten_index = state.forgotten_index.max(app.submitted_index);
        }
    }
}

fn shorten(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let mut end = MAX_TEXT_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
