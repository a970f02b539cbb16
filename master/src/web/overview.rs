//! The first page: what the cluster has, what it does, what it did.

use super::format::{count, duration, moment, plural};
use super::layout::{
    application_state, bar, cell, command, head, memory_used_of, number_cell, used_of, worker_status,
};
use super::{View, application_path, masters};
use firesteel_common::{ApplicationState, MemorySize, Resources, WorkerStatus};
use firesteel_master_core::{Application, Explanation, Worker, waiting};
use maud::{Markup, html};
use std::sync::Arc;

/// Ended applications on one page; the rest are reached by their ids.
const FINISHED_SHOWN: usize = 100;
/// Active applications on one page.
const ACTIVE_SHOWN: usize = 500;

pub fn render(view: &View) -> Markup {
    let state = &view.published.state;
    html! {
        h1.hidden { "Cluster overview" }
        (view.role_notice())
        (tiles(view))
        @if state.alive_workers().next().is_none() { (start_a_worker(view)) }
        @else if state.applications().next().is_none() { (submit_something(view)) }
        (workers(view))
        (masters::render(view))
        (active(view))
        (finished(view))
    }
}

fn tiles(view: &View) -> Markup {
    let state = &view.published.state;
    let capacity = Resources::total(state.alive_workers().map(|w| w.capacity));
    let used = Resources::total(state.alive_workers().map(|w| w.used));
    let (used_memory, memory) =
        (MemorySize::from_mib(used.memory_mib), MemorySize::from_mib(capacity.memory_mib));
    let alive = state.alive_workers().count() as u64;
    let dead = state.workers().filter(|w| w.status == WorkerStatus::Dead).count() as u64;
    let running = state.active().filter(|a| a.state == ApplicationState::Running).count() as u64;
    let queued = state.active().filter(|a| a.state == ApplicationState::Waiting).count() as u64;
    html! {
        div.tiles {
            div.tile {
                h2 { "Cores in use" }
                p.big { (used.cores) span.of { " / " (capacity.cores) } }
                (bar(used.cores.into(), capacity.cores.into(), &format!("{} of {} cores in use", used.cores, capacity.cores)))
            }
            div.tile {
                h2 { "Memory in use" }
                p.big {
                    @if used.memory_mib == 0 { "0" } @else { (used_memory) }
                    span.of { " / " @if capacity.memory_mib == 0 { "0" } @else { (memory) } }
                }
                (bar(used.memory_mib, capacity.memory_mib, &format!("{used_memory} of {memory} in use")))
            }
            div.tile {
                h2 { "Workers" }
                p.big { (count(alive)) }
                p.note { "alive" @if dead > 0 { ", " span.bad { (count(dead)) " dead" } } }
            }
            div.tile {
                h2 { "Applications" }
                p.big { (count(running)) }
                p.note { "running, " (count(queued)) " waiting" }
            }
        }
    }
}

fn start_a_worker(view: &View) -> Markup {
    html! {
        section.card.start {
            h2 { "No worker is alive" }
            p { "Start one, on this machine or on another that can reach this master:" }
            (command(&format!("scripts/start-worker.sh {}", view.master_url)))
            p { "then submit a script:" }
            (command(&format!("submit --master {} query.sql", view.master_url)))
        }
    }
}

fn submit_something(view: &View) -> Markup {
    html! {
        section.card.start {
            h2 { "Ready" }
            p { "Nothing has been submitted yet. Submit a SQL script:" }
            (command(&format!("submit --master {} query.sql", view.master_url)))
        }
    }
}

fn workers(view: &View) -> Markup {
    let mut workers: Vec<&Arc<Worker>> = view.published.state.workers().collect();
    if workers.is_empty() {
        return html! {};
    }
    // Those that are there first, then the newest of those that are gone.
    workers.sort_by_key(|w| (!w.is_alive(), std::cmp::Reverse(w.status_changed_ms), w.id.clone()));
    html! {
        section {
            h2 { "Workers " span.count { (workers.len()) } }
            table {
                (head(&["Worker", "Host", "State", "Cores", "Memory", "Last heartbeat"]))
                tbody { @for worker in workers { (worker_row(view, worker)) } }
            }
        }
    }
}

fn worker_row(view: &View, worker: &Worker) -> Markup {
    let capacity = worker.capacity;
    let heartbeat =
        view.soft.worker(&worker.id).filter(|signs| signs.incarnation == worker.incarnation).map(|signs| {
            let age = view.now.saturating_duration_since(signs.last_heartbeat).as_millis() as u64;
            moment(view.now_ms.saturating_sub(age), view.now_ms)
        });
    html! {
        tr.gone[!worker.is_alive()] {
            (cell("Worker", html! { code { (worker.id) } }))
            (cell("Host", html! { (worker.host) ":" (worker.port) }))
            (cell("State", worker_status(worker.status)))
            (cell("Cores", used_of(worker.used.cores.into(), capacity.cores.into())))
            (cell("Memory", memory_used_of(worker.used.memory_mib, capacity.memory_mib)))
            (number_cell("Last heartbeat", html! {
                @if let Some(heartbeat) = heartbeat { (heartbeat) }
                @else if worker.is_alive() { span.quiet { "none yet" } }
                @else { "left " (moment(worker.status_changed_ms, view.now_ms)) }
            }))
        }
    }
}

fn active(view: &View) -> Markup {
    let state = &view.published.state;
    let total = state.active().count();
    if total == 0 {
        return html! {};
    }
    let why = waiting(state);
    html! {
        section {
            h2 { "Active applications " span.count { (total) } }
            table {
                (head(&["Application", "Name", "User", "State", "Executors", "Cores", "Submitted", "Duration"]))
                tbody {
                    @for app in state.active().take(ACTIVE_SHOWN) { (active_row(view, app, why.get(&app.id))) }
                }
            }
            @if total > ACTIVE_SHOWN { p.note { "The first " (ACTIVE_SHOWN) " of " (count(total as u64)) " are shown." } }
        }
    }
}

fn active_row(view: &View, app: &Application, why: Option<&Explanation>) -> Markup {
    let executors = app.live_executors().count();
    let cores: u32 = app.live_executors().map(|(_, e)| e.resources.cores).sum();
    html! {
        tr {
            (application_cells(app))
            (cell("State", html! {
                (application_state(app.state))
                @if let Some(position) = why.and_then(|w| w.queue_position) { span.position { " #" (position) } }
                @if let Some(why) = why { p.why { (why.text) } }
            }))
            (number_cell("Executors", html! { (executors) " / " (app.spec.executor_target()) }))
            (number_cell("Cores", cores))
            (number_cell("Submitted", moment(app.submitted_ms, view.now_ms)))
            (number_cell("Duration", duration(view.now_ms.saturating_sub(app.submitted_ms))))
        }
    }
}

fn application_cells(app: &Application) -> Markup {
    html! {
        (cell("Application", html! { a href=(application_path(&app.id)) { code { (app.id) } } }))
        (cell("Name", html! { span.name { (app.spec.name) } }))
        (cell("User", &app.spec.user))
    }
}

fn finished(view: &View) -> Markup {
    let state = &view.published.state;
    let total = state.finished().count();
    if total == 0 {
        return html! {};
    }
    html! {
        section {
            h2 { "Finished applications " span.count { (count(total as u64)) } }
            table {
                (head(&["Application", "Name", "User", "State", "Submitted", "Ended", "Duration"]))
                tbody {
                    @for app in state.finished().take(FINISHED_SHOWN) {
                        @let ended = app.ended_ms.unwrap_or(app.submitted_ms);
                        tr {
                            (application_cells(app))
                            (cell("State", html! {
                                (application_state(app.state))
                                @if !app.message.is_empty() { p.why { (first_line(&app.message)) } }
                            }))
                            (number_cell("Submitted", moment(app.submitted_ms, view.now_ms)))
                            (number_cell("Ended", moment(ended, view.now_ms)))
                            (number_cell("Duration", duration(ended.saturating_sub(app.submitted_ms))))
                        }
                    }
                }
            }
            @if total > FINISHED_SHOWN {
                p.note { "The last " (FINISHED_SHOWN) " are shown; " (plural((total - FINISHED_SHOWN) as u64, "older one")) " can be opened by id." }
            }
        }
    }
}

/// Enough of a message for a table; the application's page has all of it.
fn first_line(message: &str) -> String {
    const SHOWN: usize = 160;
    let line = message.lines().next().unwrap_or_default();
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
