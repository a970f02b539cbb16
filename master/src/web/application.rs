//! One application: its state and why, its executors, its jobs, stages and tasks.

use super::format::{bytes, count, duration, moment, plural};
use super::layout::{application_state, cell, executor_state, head, number_cell, parts_bar, task_state};
use super::{View, application_path};
use firesteel_common::{DeployMode, MemorySize};
use firesteel_master_core::{Application, ClusterState, Process, waiting};
use firesteel_proto::v1::{JobProgress, Progress, StageProgress, TaskProgress, TaskState};
use maud::{Markup, html};
use serde::Deserialize;

const TASKS_PER_PAGE: usize = 200;
/// Ended executors that are shown beside the live ones.
const ENDED_EXECUTORS_SHOWN: usize = 50;

/// What the reader has opened. It stands in the address, so it survives a reload.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct Shown {
    /// The job of the stage whose tasks are listed.
    job: Option<u32>,
    stage: Option<u32>,
    /// Page of the task table, from 0.
    #[serde(default)]
    page: usize,
}

pub fn render(view: &View, app: &Application, shown: Shown) -> Markup {
    let progress = view.soft.latest_progress(&app.id);
    let live = !app.state.is_final();
    html! {
        nav.path { a href="/" { "Overview" } " / " code { (app.id) } }
        (view.role_notice())
        h1 { span.name { (app.spec.name) } " " (application_state(app.state)) }
        @if live && let Some(why) = waiting(&view.published.state).get(&app.id) {
            section.card.why-panel { h2 { "Why it waits" } p { (why.text) } }
        }
        @if !app.message.is_empty() {
            section.card.final.bad[app.state == firesteel_common::ApplicationState::Failed] {
                h2 { "How it ended" } pre { (app.message) }
            }
        }
        (summary(view, app))
        (executors(view, app))
        @match progress {
            Some(progress) => (jobs(view, app, &progress, shown)),
            None if live => section { h2 { "Jobs" } p.note { "The driver has not reported yet." } },
            None => section {
                h2 { "Jobs" }
                p.note { "No driver has told this master about its jobs. They are kept in the leader's memory only, not with the state." }
            },
        }
    }
}

fn summary(view: &View, app: &Application) -> Markup {
    let spec = &app.spec;
    let held = app.held();
    let end = app.ended_ms.unwrap_or(view.now_ms);
    let live = app.live_executors().count();
    html! {
        dl.facts {
            div { dt { "User" } dd { (spec.user) } }
            div { dt { "Script" } dd { code { (spec.resource) } } }
            div { dt { "Mode" } dd { (match spec.deploy_mode { DeployMode::Client => "client", DeployMode::Cluster => "cluster" }) } }
            div { dt { "Submitted" } dd { (moment(app.submitted_ms, view.now_ms)) } }
            @if let Some(started) = app.started_ms {
                div { dt { "Waited" } dd { (duration(started.saturating_sub(app.submitted_ms))) } }
            }
            @if let Some(ended) = app.ended_ms { div { dt { "Ended" } dd { (moment(ended, view.now_ms)) } } }
            div { dt { "Duration" } dd { (duration(end.saturating_sub(app.submitted_ms))) } }
            div { dt { "Executors" } dd { (live) " of " (spec.executor_target()) } }
            div { dt { "Per executor" } dd { (spec.executor) } }
            @if !app.state.is_final() { div { dt { "Holds" } dd { (held.cores) @if held.cores == 1 { " core, " } @else { " cores, " } (memory(held.memory_mib)) } } }
            @if let Some((attempt, driver)) = app.driver() {
                div {
                    dt { "Driver" }
                    dd {
                        (executor_state(driver.state)) " on " (host(&view.published.state, driver))
                        @if attempt > 0 { ", attempt " (attempt + 1) }
                        @if !driver.message.is_empty() { p.why { (driver.message) } }
                    }
                }
            }
        }
    }
}

fn memory(mib: u64) -> String {
    if mib == 0 { "0 MiB".to_owned() } else { MemorySize::from_mib(mib).to_string() }
}

/// The host that a process runs on, or its worker's id if that is forgotten.
fn host(state: &ClusterState, process: &Process) -> String {
    match state.worker(&process.worker) {
        Some(worker) => worker.host.clone(),
        None => process.worker.to_string(),
    }
}

fn executors(view: &View, app: &Application) -> Markup {
    let state = &view.published.state;
    let (live, ended): (Vec<_>, Vec<_>) = app.executors.iter().partition(|(_, e)| e.is_live());
    // The newest ends are the interesting ones.
    let hidden = ended.len().saturating_sub(ENDED_EXECUTORS_SHOWN);
    let shown = live.iter().chain(ended.iter().rev().take(ENDED_EXECUTORS_SHOWN));
    html! {
        section {
            h2 { "Executors " span.count { (live.len()) " live" } }
            @if app.executors.is_empty() { p.note { "None has been granted yet." } }
            @else {
                table {
                    (head(&["Executor", "State", "Worker", "Cores", "Memory", "Granted", "Ran", "Message"]))
                    tbody {
                        @for (number, executor) in shown {
                            @let end = executor.ended_ms.unwrap_or(view.now_ms);
                            tr.gone[!executor.is_live()] {
                                (cell("Executor", number))
                                (cell("State", executor_state(executor.state)))
                                (cell("Worker", html! { span title=(executor.worker) { (host(state, executor)) } }))
                                (number_cell("Cores", executor.resources.cores))
                                (number_cell("Memory", MemorySize::from_mib(executor.resources.memory_mib).to_string()))
                                (number_cell("Granted", moment(executor.granted_ms, view.now_ms)))
                                (number_cell("Ran", html! {
                                    @if let Some(started) = executor.started_ms { (duration(end.saturating_sub(started))) } @else { "–" }
                                }))
                                (cell("Message", html! { span.message { (executor.message) } }))
                            }
                        }
                    }
                }
                @if hidden > 0 { p.note { (hidden) " that ended before are not shown." } }
            }
        }
    }
}

/// Milliseconds that something took or has taken so far; `None` if it has not begun.
fn took(started_ms: u64, ended_ms: u64, now_ms: u64) -> Option<u64> {
    let end = if ended_ms == 0 { now_ms } else { ended_ms };
    (started_ms > 0).then(|| end.saturating_sub(started_ms))
}

fn took_text(started_ms: u64, ended_ms: u64, now_ms: u64) -> String {
    took(started_ms, ended_ms, now_ms).map_or("–".to_owned(), duration)
}

fn jobs(view: &View, app: &Application, progress: &Progress, shown: Shown) -> Markup {
    // What a driver that is gone last said still runs does not run any more.
    let now_ms = app.ended_ms.unwrap_or(view.now_ms);
    html! {
        section {
            h2 { "Jobs " span.count { (progress.jobs.len()) } }
            @if progress.jobs.is_empty() { p.note { "No statement has begun yet." } }
            // The newest first: it is what goes on.
            @for job in progress.jobs.iter().rev() {
                article.job id=(format!("job-{}", job.id)) {
                    h3 { "Job " (job.id) " " (task_state(job.state())) }
                    pre.sql { (job.description) }
                    p.facts-line {
                        span { (took_text(job.started_ms, job.ended_ms, now_ms)) }
                        @if !job.mode.is_empty() { span { (job.mode) } }
                        span { (count(job.rows)) (if job.rows == 1 { " row" } else { " rows" }) }
                        @if job.restarts > 0 {
                            span.warn { "started again " @if job.restarts == 1 { "once" } @else { (job.restarts) " times" } }
                        }
                    }
                    @if !job.error.is_empty() { pre.error { (job.error) } }
                    @if !job.stages.is_empty() { (stages(app, job, now_ms, shown)) }
                }
            }
        }
    }
}

/// Tasks by state, in the order of the bar.
fn task_counts(stage: &StageProgress) -> [(TaskState, &'static str, usize); 4] {
    let count = |state| stage.tasks.iter().filter(|t| t.state() == state).count();
    [
        (TaskState::Succeeded, "good", count(TaskState::Succeeded)),
        (TaskState::Running, "run", count(TaskState::Running)),
        (TaskState::Failed, "bad", count(TaskState::Failed)),
        (TaskState::Pending, "track", count(TaskState::Pending)),
    ]
}

fn stages(app: &Application, job: &JobProgress, now_ms: u64, shown: Shown) -> Markup {
    html! {
        table.stages {
            (head(&["Stage", "Description", "Tasks", "Output", "Duration", ""]))
            tbody {
                @for stage in &job.stages {
                    @let open = shown.job == Some(job.id) && shown.stage == Some(stage.id);
                    @let anchor = format!("stage-{}-{}", job.id, stage.id);
                    tr id=(anchor) {
                        (cell("Stage", stage.id))
                        (cell("Description", html! { span.message { (stage.description) } }))
                        (cell("Tasks", stage_tasks(stage)))
                        (cell("Output", stage_output(stage)))
                        (number_cell("Duration", stage_duration(stage, now_ms)))
                        (cell("", html! {
                            @let path = application_path(&app.id);
                            @if open { a href=(format!("{path}#{anchor}")) { "hide tasks" } }
                            @else if !stage.tasks.is_empty() {
                                a href=(format!("{path}?job={}&stage={}#{anchor}", job.id, stage.id)) { "show tasks" }
                            }
                        }))
                    }
                    @if open { tr.open { td colspan="6" { (tasks(app, job, stage, now_ms, shown.page)) } } }
                }
            }
        }
    }
}

fn stage_tasks(stage: &StageProgress) -> Markup {
    let counts = task_counts(stage);
    let words: Vec<String> = counts
        .iter()
        .filter(|(.., n)| *n > 0)
        .map(|(state, _, n)| {
            let word = match state {
                TaskState::Succeeded => "done",
                TaskState::Running => "running",
                TaskState::Failed => "failed",
                _ => "pending",
            };
            format!("{} {word}", count(*n as u64))
        })
        .collect();
    let words = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
    let parts = counts.map(|(_, class, n)| (class, n));
    html! {
        span.used {
            (words)
            @if stage.again > 0 { span.warn { ", " (count(stage.again.into())) " run again" } }
        }
        (parts_bar(&parts, &format!("Tasks: {words}")))
    }
}

/// What it left for later stages, and what did not fit into memory.
fn stage_output(stage: &StageProgress) -> Markup {
    html! {
        @if stage.output_bytes == 0 { "–" } @else {
            (plural(stage.output_rows, "row")) ", " (bytes(stage.output_bytes))
        }
        @if stage.spilled_bytes > 0 { span.warn { ", " (bytes(stage.spilled_bytes)) " spilled" } }
    }
}

/// From its first task's start to its last one's end.
fn stage_duration(stage: &StageProgress, now_ms: u64) -> String {
    let started = stage.tasks.iter().map(|t| t.started_ms).filter(|ms| *ms > 0).min().unwrap_or(0);
    let running = stage.tasks.iter().any(|t| t.state() == TaskState::Running);
    let ended = if running { 0 } else { stage.tasks.iter().map(|t| t.ended_ms).max().unwrap_or(0) };
    took_text(started, ended, now_ms)
}

fn tasks(app: &Application, job: &JobProgress, stage: &StageProgress, now_ms: u64, page: usize) -> Markup {
    let pages = stage.tasks.len().div_ceil(TASKS_PER_PAGE).max(1);
    let page = page.min(pages - 1);
    let start = page * TASKS_PER_PAGE;
    let on_page: &[TaskProgress] =
        stage.tasks.get(start..(start + TASKS_PER_PAGE).min(stage.tasks.len())).unwrap_or_default();
    let link = |to: usize| {
        let (path, job, stage) = (application_path(&app.id), job.id, stage.id);
        format!("{path}?job={job}&stage={stage}&page={to}#stage-{job}-{stage}")
    };
    html! {
        table.tasks {
            (head(&["Task", "State", "Executor", "Attempts", "Duration"]))
            tbody {
                @for task in on_page {
                    tr {
                        (cell("Task", task.index))
                        (cell("State", task_state(task.state())))
                        (cell("Executor", html! { @if task.state() == TaskState::Pending { "–" } @else { (task.executor) } }))
                        (number_cell("Attempts", task.attempts.max(1)))
                        (number_cell("Duration", took_text(task.started_ms, task.ended_ms, now_ms)))
                    }
                }
            }
        }
        @if pages > 1 {
            p.pages {
                @if page > 0 { a href=(link(page - 1)) { "← before" } }
                span { "tasks " (start + 1) " to " (start + on_page.len()) " of " (count(stage.tasks.len() as u64)) }
                @if page + 1 < pages { a href=(link(page + 1)) { "after →" } }
            }
        }
    }
}
