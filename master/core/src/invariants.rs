//! What must hold of every state, by name. Tests check it after every command.

use crate::apply::{
    DRIVER_RETRY_FIRST_MS, DRIVER_RETRY_MAX_MS, MAX_ACTIVE_APPLICATIONS, MAX_ENDED_DRIVERS,
    MAX_ENDED_EXECUTORS, MAX_FINISHED_APPLICATIONS, MAX_GONE_WORKERS, MAX_KEY_BYTES,
};
use crate::members::MAX_REMOVED_MEMBERS;
use crate::state::ClusterState;
use firesteel_common::{ApplicationState, Resources};
use std::collections::BTreeSet;

type Check = fn(&ClusterState) -> Result<(), String>;

/// Every invariant with its name.
pub const ALL: &[(&str, Check)] = &[
    ("a_worker_is_never_over_committed", never_over_committed),
    ("a_live_process_is_on_exactly_its_own_worker", live_on_its_worker),
    ("an_ended_application_has_no_live_process", ended_have_no_live_process),
    ("an_application_has_at_most_one_live_driver", one_live_driver),
    ("only_a_supervised_driver_is_started_again", only_supervised_start_again),
    ("a_driver_that_ended_is_awaited_with_a_delay", next_driver_is_awaited),
    ("cluster_mode_executors_live_beside_a_driver", executors_beside_a_driver),
    ("executor_numbers_only_grow", numbers_only_grow),
    ("a_waiting_application_has_no_executor", waiting_have_no_executor),
    ("no_application_exceeds_its_target", within_target),
    ("history_is_bounded", bounded),
    ("every_application_is_active_or_finished", indexed_once),
    ("a_key_names_one_application", keys_name_one),
    ("a_removed_member_is_no_member", removed_are_no_members),
    ("no_two_members_share_an_address", no_shared_address),
    ("every_member_knows_the_feature_level", level_is_known),
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
        let newest = usize::from(app.live_driver().is_some());
        ensure(live == newest, || format!("{}: another driver than the newest is live", app.id))?;
        let grants: Vec<u64> = app.drivers.values().map(|d| d.grant_index).collect();
        ensure(grants.is_sorted(), || format!("{}: drivers were granted out of order", app.id))?;
    }
    Ok(())
}

fn only_supervised_start_again(state: &ClusterState) -> Result<(), String> {
    for app in state.applications() {
        let starts = app.driver_starts();
        ensure(starts <= 1 || app.spec.supervise, || format!("{} started {starts} drivers", app.id))?;
    }
    Ok(())
}

fn next_driver_is_awaited(state: &ClusterState) -> Result<(), String> {
    for app in state.active().filter(|app| app.awaits_next_driver()) {
        ensure(app.spec.supervise, || format!("{} is not supervised and has lost its driver", app.id))?;
        ensure(app.state == ApplicationState::Waiting, || format!("{} is {}", app.id, app.state))?;
        let ended_ms = app.driver().and_then(|(_, last)| last.ended_ms).unwrap_or(u64::MAX);
        let delay = app.driver_retry_at_ms.saturating_sub(ended_ms);
        let bounds = DRIVER_RETRY_FIRST_MS..=DRIVER_RETRY_MAX_MS;
        ensure(bounds.contains(&delay), || format!("{} starts its driver after {delay} ms", app.id))?;
    }
    Ok(())
}

fn executors_beside_a_driver(state: &ClusterState) -> Result<(), String> {
    for app in state.applications().filter(|app| app.needs_driver()) {
        let live = app.live_executors().count();
        ensure(live == 0, || format!("{} has {live} executors and no driver", app.id))?;
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
        // One whose driver is started again has had some.
        let has = if app.driver_failures > 0 {
            app.live_executors().next().is_some()
        } else {
            !app.executors.is_empty()
        };
        ensure(!(waits && has), || format!("{} waits with executors", app.id))?;
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
    let removed = state.removed_members.len();
    ensure(removed <= MAX_REMOVED_MEMBERS, || format!("{removed} removed members"))?;
    let gone = state.workers().filter(|w| !w.is_alive()).count();
    ensure(gone <= MAX_GONE_WORKERS, || format!("{gone} gone workers"))?;
    for app in state.applications() {
        let ended = app.executors.values().filter(|e| !e.is_live()).count();
        ensure(ended <= MAX_ENDED_EXECUTORS, || format!("{} remembers {ended} executors", app.id))?;
        let ended = app.drivers.values().filter(|d| !d.is_live()).count();
        ensure(ended <= MAX_ENDED_DRIVERS, || format!("{} remembers {ended} drivers", app.id))?;
        ensure(app.key.len() <= MAX_KEY_BYTES, || format!("{} has a huge key", app.id))?;
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

fn keys_name_one(state: &ClusterState) -> Result<(), String> {
    let mut keyed = 0;
    for app in state.applications().filter(|app| !app.key.is_empty()) {
        keyed += 1;
        let named = state.keys.get(&app.key);
        ensure(named == Some(&app.id), || format!("{:?} names {named:?}, not {}", app.key, app.id))?;
    }
    // Each keyed application is named by its own key; equal numbers leave no key that names nothing.
    let keys = state.keys.len();
    ensure(keys == keyed, || format!("{keys} keys for {keyed} applications"))
}

fn removed_are_no_members(state: &ClusterState) -> Result<(), String> {
    let returned = state.members().find(|m| state.is_removed_member(m.id));
    ensure(returned.is_none(), || format!("{returned:?} was removed"))?;
    let misnamed = state.members.iter().find(|(id, member)| **id != member.id || **id == 0);
    ensure(misnamed.is_none(), || format!("{misnamed:?} has another id"))
}

fn no_shared_address(state: &ClusterState) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    // Empty: another has moved to its address.
    let twice = state.members().find(|m| !m.raft_address.is_empty() && !seen.insert(&m.raft_address));
    ensure(twice.is_none(), || format!("the address of {twice:?} is another's"))
}

fn level_is_known(state: &ClusterState) -> Result<(), String> {
    let old = state.members().find(|m| m.feature_level < state.feature_level);
    ensure(old.is_none(), || format!("{old:?} does not know level {}", state.feature_level))
}
