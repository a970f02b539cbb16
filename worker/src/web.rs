//! The worker's own page. Plain HTML, no script; also `/json/`, `/healthz` and `/metrics`.

use crate::agent::Link;
use crate::node::Handle;
use crate::processes::Process;
use crate::shuffle::Limits;
use crate::shuffle::service::ShuffleService;
use crate::shuffle::usage::Report;
use crate::usage::Usage;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use firesteel_common::{ExecutorState, MemorySize, ProcessId, Resources, WorkerId};
use maud::{DOCTYPE, Markup, html};
use serde_json::json;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

const STYLE: &str = include_str!("web.css");
/// Nothing but our own style sheet is ever loaded, and nobody may frame the page.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// What the page shows.
pub struct Page {
    pub id: WorkerId,
    pub masters: String,
    pub host: String,
    pub port: u16,
    pub capacity: Resources,
    pub node: Handle,
    pub link: watch::Receiver<Link>,
    pub usage: Arc<Usage>,
    pub shuffle: ShuffleService,
    pub shuffle_limits: Limits,
    /// The last measurement.
    pub shuffle_usage: watch::Receiver<Arc<Report>>,
}

/// All routes, with the checks around them.
pub fn router(page: Arc<Page>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/json/", get(as_json))
        .route("/json", get(as_json))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .route("/style.css", get(|| async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is no such page\n") })
        .layer(middleware::from_fn_with_state(page.clone(), guard))
        .with_state(page)
}

/// A foreign name that resolves to this machine (DNS rebinding) is refused, and every answer carries its policy.
async fn guard(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let mut response = if host.is_some_and(|host| is_own_host(host, &page.host)) {
        next.run(request).await
    } else {
        (StatusCode::MISDIRECTED_REQUEST, "this worker does not answer to that host name\n").into_response()
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The port is free, so that a forwarded port works.
fn is_own_host(header: &str, own: &str) -> bool {
    let Ok(uri) = header.parse::<Uri>() else { return false };
    let Some(host) = uri.host() else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    [own, "localhost", "127.0.0.1", "::1"].iter().any(|name| name.eq_ignore_ascii_case(host))
}

async fn index(State(page): State<Arc<Page>>) -> Html<String> {
    Html(render(&page).into_string())
}

fn render(page: &Page) -> Markup {
    let snapshot = page.node.snapshots().borrow().clone();
    let link = page.link.borrow().clone();
    let (used, usage) = (snapshot.used(), page.usage.sample());
    let (live, ended): (Vec<_>, Vec<_>) = snapshot.processes.iter().partition(|p| p.is_live());
    let memory = |mib| MemorySize::from_mib(mib).to_string();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (page.id) " – Firesteel worker" }
                link rel="stylesheet" href="/style.css";
            }
            body {
                h1 { (page.id) }
                p.muted { "Firesteel worker " (env!("CARGO_PKG_VERSION")) }
                dl {
                    div { dt { "Masters" } dd { (page.masters) } }
                    div {
                        dt { "Connection" }
                        @match &link {
                            Link::Registered { master } => dd { "✔ registered with " (master) ", epoch " (snapshot.epoch) },
                            Link::Down { reason: None } => dd { "… connecting" },
                            Link::Down { reason: Some(reason) } => dd.bad { "✖ " (reason) },
                        }
                    }
                    div { dt { "Lease" } dd { (page.node.lease_in_words()) } }
                    div { dt { "Cores" } dd { (used.cores) " of " (page.capacity.cores) " used" } }
                    div {
                        dt { "Memory" }
                        dd { (memory(used.memory_mib)) " of " (memory(page.capacity.memory_mib)) " used" }
                    }
                    div {
                        dt { "This machine" }
                        dd { (format!("{:.0}", usage.cpu_percent)) " % CPU, " (memory(usage.memory_used_mib)) " in use" }
                    }
                }
                h2 { "Running (" (live.len()) ")" }
                (table(&live, "Nothing runs here."))
                (map_outputs(&page.shuffle_usage.borrow().clone(), page.shuffle_limits))
                h2 { "Ended" }
                (table(&ended.into_iter().chain(&snapshot.finished).collect::<Vec<_>>(), "Nothing has ended here yet."))
            }
        }
    }
}

fn table(processes: &[&Process], empty: &str) -> Markup {
    if processes.is_empty() {
        return html! { p.muted { (empty) } };
    }
    html! {
        div.table { table {
            thead { tr {
                th { "Application" } th { "Process" } th { "State" } th.number { "Cores" } th.number { "Memory" }
                th.number { "Process id" } th { "Address" } th { "How it ended" }
            } }
            tbody { @for process in processes { tr {
                td {
                    (process.id.application())
                    @if let Some(name) = &process.application_name { br; span.muted { (name) } }
                }
                td { (process.id.name()) }
                td.state { (symbol(process.state)) " " (process.state) }
                td.number { (process.resources.cores) }
                td.number { (MemorySize::from_mib(process.resources.memory_mib)) }
                td.number { @if let Some(pid) = process.pid { (pid) } }
                td { @if let Some(address) = &process.address { (address) } }
                td { @if let Some(end) = &process.end { (end) } }
            } } }
        } }
    }
}

/// Nothing, as long as no application has any here.
fn map_outputs(report: &Report, limits: Limits) -> Markup {
    if report.applications.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Map outputs" }
        p.muted {
            "Each application may keep " (size(limits.quota_bytes)) "; " (size(limits.free_floor_bytes)) " of the disk stay free"
            @if let Some(free) = report.free_bytes { ", " (size(free)) " are" } "."
        }
        div.table { table {
            thead { tr {
                th { "Application" } th.number { "Size" } th.number { "Outputs" } th.number { "Being written" }
            } }
            tbody { @for (id, usage) in &report.applications { tr {
                td { (id) }
                td.number { (size(usage.bytes)) }
                td.number { (usage.outputs) }
                td.number { (usage.unfinished) }
            } } }
        } }
    }
}

/// Sizes below a MiB are no sizes of memory.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => MemorySize::from_mib(bytes >> 20).to_string(),
    }
}

fn symbol(state: ExecutorState) -> &'static str {
    match state {
        ExecutorState::Launching => "…",
        ExecutorState::Running => "▶",
        ExecutorState::Exited => "✔",
        ExecutorState::Killed => "■",
        ExecutorState::Failed | ExecutorState::Lost => "✖",
    }
}

/// In the shape of Spark's worker; `drivers` and `finisheddrivers` are ours.
async fn as_json(State(page): State<Arc<Page>>) -> Json<serde_json::Value> {
    let snapshot = page.node.snapshots().borrow().clone();
    let used = snapshot.used();
    let is_driver = |p: &&Process| matches!(p.id, ProcessId::Driver { .. });
    let list = |drivers: bool, live: bool| -> Vec<_> {
        let ended = snapshot.finished.iter().filter(|_| !live);
        let known = snapshot.processes.iter().filter(|p| p.is_live() == live);
        known.chain(ended).filter(|p| is_driver(p) == drivers).map(process_json).collect()
    };
    Json(json!({
        "id": page.id.as_str(),
        "masterurl": page.masters,
        "masterwebuiurl": "",
        "cores": page.capacity.cores,
        "coresused": used.cores,
        "memory": page.capacity.memory_mib,
        "memoryused": used.memory_mib,
        "resources": {},
        "resourcesused": {},
        "executors": list(false, true),
        "finishedexecutors": list(false, false),
        "drivers": list(true, true),
        "finisheddrivers": list(true, false),
    }))
}

fn process_json(process: &Process) -> serde_json::Value {
    let application = process.id.application().as_str();
    let number = match &process.id {
        ProcessId::Driver { attempt, .. } => *attempt,
        ProcessId::Executor(id) => id.number,
    };
    json!({
        "id": number,
        "name": process.id.name(),
        "memory": process.resources.memory_mib,
        "cores": process.resources.cores,
        "resources": {},
        "state": process.state.as_str(),
        "pid": process.pid,
        "starttime": process.launched_ms,
        "endtime": process.ended_ms,
        "appid": application,
        "appdesc": {
            "name": process.application_name.as_deref().unwrap_or(application),
            "cores": process.resources.cores,
            "memoryperexecutor": process.resources.memory_mib,
            "resourcesperexecutor": [],
            "user": process.user.as_deref().unwrap_or(""),
            "command": "",
        },
    })
}

async fn metrics(State(page): State<Arc<Page>>) -> Response {
    let snapshot = page.node.snapshots().borrow().clone();
    let registered = matches!(*page.link.borrow(), Link::Registered { .. });
    let (used, usage) = (snapshot.used(), page.usage.sample());
    let live = snapshot.processes.iter().filter(|p| p.is_live()).count();
    let bytes = |mib: u64| mib.saturating_mul(1 << 20) as f64;
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    };
    metric(
        "firesteel_worker_registered",
        "gauge",
        "1 while registered with a master.",
        f64::from(registered),
    );
    metric("firesteel_worker_cores", "gauge", "Cores offered.", page.capacity.cores.into());
    metric("firesteel_worker_cores_used", "gauge", "Cores given to live processes.", used.cores.into());
    metric("firesteel_worker_memory_bytes", "gauge", "Memory offered.", bytes(page.capacity.memory_mib));
    metric(
        "firesteel_worker_memory_used_bytes",
        "gauge",
        "Memory given to live processes.",
        bytes(used.memory_mib),
    );
    metric("firesteel_worker_processes", "gauge", "Live drivers and executors.", live as f64);
    metric(
        "firesteel_worker_launches_total",
        "counter",
        "Processes launched.",
        snapshot.launches_total as f64,
    );
    metric(
        "firesteel_worker_launch_failures_total",
        "counter",
        "Processes that could not be started.",
        snapshot.launch_failures_total as f64,
    );
    metric("firesteel_worker_epoch", "gauge", "Highest epoch seen.", snapshot.epoch.0 as f64);
    if let Some(left) = page.node.lease_left() {
        let help = "Time until the lease runs out, 0 when it has.";
        metric("firesteel_worker_lease_left_seconds", "gauge", help, left.as_secs_f64());
    }
    metric("firesteel_machine_cpu_ratio", "gauge", "CPU use, 0 to 1.", f64::from(usage.cpu_percent) / 100.0);
    metric("firesteel_machine_memory_used_bytes", "gauge", "Memory in use.", bytes(usage.memory_used_mib));
    let (counters, slots) = (page.shuffle.counters(), page.shuffle.slots());
    metric(
        "firesteel_worker_shuffle_fetches_total",
        "counter",
        "Fetches of map outputs with a right token.",
        counters.fetches() as f64,
    );
    metric(
        "firesteel_worker_shuffle_fetch_failures_total",
        "counter",
        "Of those, the ones that ended in an error.",
        counters.failures() as f64,
    );
    metric(
        "firesteel_worker_shuffle_read_bytes_total",
        "counter",
        "Bytes of map outputs read for fetches.",
        counters.read_bytes() as f64,
    );
    metric(
        "firesteel_worker_shuffle_streams",
        "gauge",
        "Fetches that are being served.",
        counters.streams() as f64,
    );
    metric("firesteel_worker_shuffle_open_files", "gauge", "Map outputs open for them.", slots.used() as f64);
    metric(
        "firesteel_worker_shuffle_waiting",
        "gauge",
        "Fetches that wait for a file to be closed.",
        slots.waiting() as f64,
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    metric("firesteel_worker_time_seconds", "gauge", "The worker's clock, seconds since 1970.", now);
    let report = page.shuffle_usage.borrow().clone();
    let name = "firesteel_worker_shuffle_bytes";
    let _ = writeln!(text, "# HELP {name} Map outputs on the disk.\n# TYPE {name} gauge");
    for (id, usage) in &report.applications {
        let _ = writeln!(text, "{name}{{application=\"{id}\"}} {}", usage.bytes);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!([0, 1023, 4096, 3 << 20, 5 << 30].map(size), ["0 B", "1023 B", "4 KiB", "3 MiB", "5 GiB"]);
    }

    #[test]
    fn foreign_host_names_are_not_ours() {
        for own in ["127.0.0.1:8081", "localhost", "LOCALHOST:9", "[::1]:8081", "10.1.2.3:8081"] {
            assert!(is_own_host(own, "10.1.2.3"), "{own}");
        }
        for foreign in
            ["evil.example", "evil.example:8081", "10.1.2.4", "", "a b", "localhost.evil.example", "@"]
        {
            assert!(!is_own_host(foreign, "10.1.2.3"), "{foreign}");
        }
    }
}
