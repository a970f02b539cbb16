//! What must hold of every state, by name. Tests check it after every command.

use crate::apply::{
    MAX_ACTIVE_APPLICATIONS, MAX_ENDED_EXECUTORS, MAX_FINISHED_APPLICATIONS, MAX_GONE_WORKERS,
};
use crate::state::ClusterState;
use firesteel_common::{ApplicationState, Resources};

type Check = fn(&ClusterState) -> Result<(), String>;

/// Every invariant with its name.
pub const ALL: &[(&str, Check)] = &[
    ("a_worker_is_never_over_committed", never_over_committed),
    ("a_live_process_is_on_exactly_its_own_worker", live_on_its_worker),
    ("an_ended_application_has_no_live_process", ended_have_no_live_process),
    ("an_application_has_at_most_one_live_driver", one_live_driver),
    ("executor_numbers_only_grow", numbers_only_grow),
    ("a_waiting_application_has_no_executor", waiting_have_no_executor),
    ("no_application_exceeds_its_target", within_target),
    ("history_is_bounded", bounded),
    ("every_application_is_active_or_finished", indexed_once),
];

/// Checks all of them; the error names the first that is broken.
pub fn check(state: &ClusterState) -> Result<(), String> {
    for (name, check) in ALL {
        check(state).map_err(|what| format!("{name}: {what}"))?;
    }
    Ok(())
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

fn never_over_committed(state: &ClusterState) -> Result<(), String> {
    for worker in state.workers() {
        let processes = worker.live.iter().filter_map(|id| state.process(id));
        let used = Resources::total(processes.map(|p| p.resources));
        ensure(used == worker.used, || format!("{} books {} but runs {used}", worker.id, worker.used))?;
        ensure(worker.capacity.fits(used), || format!("{} runs {used} of {}", worker.id, worker.capacity))?;
    }
    Ok(())
}

fn live_on_its_worker(state: &ClusterState) -> Result<(), String> {
    let mut hosted = 0;
    for worker in state.workers() {
        for id in &worker.live {
            hosted += 1;
            ensure(worker.is_alive(), || format!("{id} lives on {} which is {}", worker.id, worker.status))?;
            let own = state
                .process(id)
                .is_some_and(|p| p.is_live() && p.worker == worker.id && p.incarnation == worker.incarnation);
            ensure(own, || format!("{} shall run {id}, which is not live there", worker.id))?;
        }
    }
    // Each hosted process is live and on its own worker, so none is hosted twice; equal numbers leave none homeless.
    let live: usize = state
        .applications()
        .map(|app| app.drivers.values().chain(app.executors.values()).filter(|p| p.is_live()).count())
        .sum();
    ensure(hosted == live, || format!("{live} processes are live, {hosted} are on workers"))
}

fn ended_have_no_live_process(state: &ClusterState) -> Result<(), String> {
    for app in state.applications().filter(|app| app.state.is_final()) {
        ensure(app.held() == Resources::default(), || format!("{} holds {}", app.id, app.held()))?;
        ensure(app.ended_ms.is_some(), || format!("{} has no time of ending", app.id))?;
    }
    Ok(())
}

fn one_live_driver(state: &ClusterState) -> Result<(), String> {
    for app in state.applications() {
        let live = app.drivers.values().filter(|d| d.is_live()).count();
        ensure(live <= usize::from(app.is_cluster_mode()), || format!("{} has {live} drivers", app.id))?;
    }
    Ok(())
}

fn numbers_only_grow(state: &ClusterState) -> Result<(), String> {
    for app in state.applications() {
        let mut last_grant = 0;
        for (number, executor) in &app.executors {
            ensure(*number < app.next_executor, || format!("{} would use {number} again", app.id))?;
            ensure(executor.grant_index > last_grant, || {
                format!("{}/{number} was granted out of order", app.id)
            })?;
            last_grant = executor.grant_index;
        }
    }
    Ok(())
}

fn waiting_have_no_executor(state: &ClusterState) -> Result<(), String> {
    for app in state.applications() {
        let waits = app.state == ApplicationState::Waiting;
        ensure(!waits || app.executors.is_empty(), || format!("{} waits with executors", app.id))?;
    }
    Ok(())
}

fn within_target(state: &ClusterState) -> Result<(), String> {
    for app in state.applications() {
        let live = app.live_executors().count();
        let target = app.spec.executor_target() as usize;
        ensure(live <= target, || format!("{} has {live} of {target} executors", app.id))?;
    }
    Ok(())
}

fn bounded(state: &ClusterState) -> Result<(), String> {
    let finished = state.finished.len();
    ensure(finished <= MAX_FINISHED_APPLICATIONS, || format!("{finished} finished applications"))?;
    let active = state.active.len();
    ensure(active <= MAX_ACTIVE_APPLICATIONS, || format!("{active} active applications"))?;
    let gone = state.workers().filter(|w| !w.is_alive()).count();
    ensure(gone <= MAX_GONE_WORKERS, || format!("{gone} gone workers"))?;
    for app in state.applications() {
        let ended = app.executors.values().filter(|e| !e.is_live()).count();
        ensure(ended <= MAX_ENDED_EXECUTORS, || format!("{} remembers {ended} executors", app.id))?;
    }
    Ok(())
}

fn indexed_once(state: &ClusterState) -> Result<(), String> {
    let indexed = state.active.len() + state.finished.len();
    let all = state.applications.len();
    ensure(indexed == all, || format!("{indexed} indexed, {all} kept"))?;
    for app in state.active() {
        ensure(!app.state.is_final(), || format!("{} is active and {}", app.id, app.state))?;
    }
    for app in state.finished() {
        ensure(app.state.is_final(), || format!("{} is finished and {}", app.id, app.state))?;
    }
    Ok(())
}
