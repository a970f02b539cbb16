//! The cluster in the shape of the Spark standalone master's `/json/`, for tools that read that. Memory is in MiB,
//! times are in milliseconds since 1970.

use super::format::java_date;
use super::layout::Role;
use super::{View, WebContext};
use axum::Json;
use axum::extract::State;
use firesteel_common::Resources;
use firesteel_master_core::{Application, Worker};
use serde_json::{Value, json};

pub async fn master(State(context): State<WebContext>) -> Json<Value> {
    Json(document(&View::of(&context)))
}

fn document(view: &View) -> Value {
    let state = &view.published.state;
    let alive: Vec<_> = state.alive_workers().collect();
    let capacity = Resources::total(alive.iter().map(|w| w.capacity));
    let used = Resources::total(alive.iter().map(|w| w.used));
    let drivers = |active: bool| -> Vec<Value> {
        let apps = state.applications().filter(|app| app.state.is_final() != active);
        apps.filter_map(|app| driver(app, active)).collect()
    };
    json!({
        "url": view.master_url,
        "workers": state.workers().map(|w| worker(view, w)).collect::<Vec<_>>(),
        "aliveworkers": alive.len(),
        "cores": capacity.cores,
        "coresused": used.cores,
        "memory": capacity.memory_mib,
        "memoryused": used.memory_mib,
        "resources": alive.iter().map(|_| json!({})).collect::<Vec<_>>(),
        "resourcesused": alive.iter().map(|_| json!({})).collect::<Vec<_>>(),
        "activeapps": state.active().map(|app| application(view, app)).collect::<Vec<_>>(),
        "completedapps": state.finished().map(|app| application(view, app)).collect::<Vec<_>>(),
        "activedrivers": drivers(true),
        "completeddrivers": drivers(false),
        "status": match view.role() {
            Role::Leader => "ALIVE",
            Role::Follower => "STANDBY",
            Role::NoLeader => "RECOVERING",
        },
    })
}

fn worker(view: &View, worker: &Worker) -> Value {
    let free = worker.free();
    let last_heartbeat = match view.soft.worker(&worker.id) {
        Some(signs) => {
            let age = view.now.saturating_duration_since(signs.last_heartbeat);
            view.now_ms.saturating_sub(age.as_millis() as u64)
        }
        None => worker.status_changed_ms,
    };
    json!({
        "id": worker.id.as_str(),
        "host": worker.host,
        "port": worker.port,
        "webuiaddress": worker.ui_url,
        "cores": worker.capacity.cores,
        "coresused": worker.used.cores,
        "coresfree": free.cores,
        "memory": worker.capacity.memory_mib,
        "memoryused": worker.used.memory_mib,
        "memoryfree": free.memory_mib,
        "resources": {},
        "resourcesused": {},
        "resourcesfree": {},
        "state": worker.status.as_str(),
        "lastheartbeat": last_heartbeat,
    })
}

fn application(view: &View, app: &Application) -> Value {
    let cores: u32 = app.live_executors().map(|(_, e)| e.resources.cores).sum();
    let end = app.ended_ms.unwrap_or(view.now_ms);
    json!({
        "id": app.id.as_str(),
        "starttime": app.submitted_ms,
        "name": app.spec.name,
        "cores": cores,
        "user": app.spec.user,
        "memoryperexecutor": app.spec.executor.memory_mib,
        "memoryperslave": app.spec.executor.memory_mib,
        "resourcesperexecutor": [],
        "resourcesperslave": [],
        "submitdate": java_date(app.submitted_ms),
        "state": app.state.as_str(),
        "duration": end.saturating_sub(app.submitted_ms),
    })
}

/// A cluster-mode application's newest driver; an active application's only if it has been placed.
fn driver(app: &Application, active: bool) -> Option<Value> {
    if !app.is_cluster_mode() {
        return None;
    }
    let (attempt, process) = app.driver()?;
    Some(json!({
        "id": format!("{}/driver-{attempt}", app.id),
        "starttime": process.granted_ms.to_string(),
        "state": if active { process.state.as_str() } else { app.state.as_str() },
        "cores": process.resources.cores,
        "memory": process.resources.memory_mib,
        "resources": {},
        "submitdate": java_date(app.submitted_ms),
        "worker": process.worker.as_str(),
        "mainclass": app.spec.resource,
    }))
}
