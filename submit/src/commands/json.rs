//! Statuses as JSON: names in lower case with underscores, times in milliseconds since 1970, absent when unknown.

use crate::progress::state_name;
use firesteel_proto::v1::application_spec::Executors;
use firesteel_proto::v1::{
    ApplicationStatus, DeployMode, ExecutorInfo, JobProgress, Resources, StageProgress, TaskProgress,
    TaskState,
};
use serde_json::{Map, Value, json};

fn time(ms: u64) -> Value {
    if ms == 0 { Value::Null } else { ms.into() }
}

pub fn text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

/// Drops what is unknown.
pub fn object(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            Value::Object(fields.into_iter().filter(|(_, v)| !v.is_null()).collect::<Map<_, _>>())
        }
        other => other,
    }
}

fn resources(resources: Option<&Resources>) -> Value {
    resources.map_or(Value::Null, |r| json!({"cores": r.cores, "memory_mib": r.memory_mib}))
}

/// `executor_target` as the specification implies it.
pub fn executor_target(status: &ApplicationStatus) -> u32 {
    let Some(spec) = &status.spec else { return 0 };
    match spec.executors {
        Some(Executors::ExecutorCount(count)) => count,
        Some(Executors::TotalExecutorCores(total)) => total / spec.executor.map_or(1, |e| e.cores.max(1)),
        None => 0,
    }
}

pub fn application(status: &ApplicationStatus) -> Value {
    let spec = status.spec.clone().unwrap_or_default();
    object(json!({
        "id": status.application_id,
        "name": text(&spec.name),
        "user": text(&spec.user),
        "state": state_name(status.state()),
        "message": text(&status.message),
        "deploy_mode": match spec.deploy_mode() {
            DeployMode::Client => json!("client"),
            DeployMode::Cluster => json!("cluster"),
            DeployMode::Unspecified => Value::Null,
        },
        "supervise": if spec.supervise { json!(true) } else { Value::Null },
        "resource": text(&spec.resource),
        "submitted_ms": time(status.submitted_ms),
        "started_ms": time(status.started_ms),
        "ended_ms": time(status.ended_ms),
        "queue_position": if status.queue_position == 0 { Value::Null } else { status.queue_position.into() },
        "executor_target": executor_target(status),
        "executor_resources": resources(spec.executor.as_ref()),
        "driver": text(&status.driver),
        "driver_worker": text(&status.driver_worker_id),
        "executors": status.executors.iter().map(executor).collect::<Vec<_>>(),
        "jobs": status.progress.as_ref().map_or(Value::Null, |p| p.jobs.iter().map(job).collect()),
        "ui_url": text(&status.ui_url),
    }))
}

pub fn executor_state(executor: &ExecutorInfo) -> &'static str {
    firesteel_common::ExecutorState::try_from(executor.state()).map_or("UNKNOWN", |state| state.as_str())
}

fn executor(executor: &ExecutorInfo) -> Value {
    object(json!({
        "number": executor.number,
        "state": executor_state(executor),
        "worker": text(&executor.worker_id),
        "host": text(&executor.host),
        "address": text(&executor.address),
        "resources": resources(executor.resources.as_ref()),
        "granted_ms": time(executor.granted_ms),
        "ended_ms": time(executor.ended_ms),
        "message": text(&executor.message),
    }))
}

pub fn task_state(state: TaskState) -> &'static str {
    match state {
        TaskState::Pending => "PENDING",
        TaskState::Running => "RUNNING",
        TaskState::Succeeded => "SUCCEEDED",
        TaskState::Failed => "FAILED",
        TaskState::Unspecified => "UNKNOWN",
    }
}

fn job(job: &JobProgress) -> Value {
    object(json!({
        "id": job.id,
        "description": text(&job.description),
        "state": task_state(job.state()),
        "started_ms": time(job.started_ms),
        "ended_ms": time(job.ended_ms),
        "rows": job.rows,
        "restarts": job.restarts,
        "mode": text(&job.mode),
        "error": text(&job.error),
        "stages": job.stages.iter().map(stage).collect::<Vec<_>>(),
    }))
}

fn stage(stage: &StageProgress) -> Value {
    json!({
        "id": stage.id,
        "description": stage.description,
        "task_count": stage.task_count,
        "attempts": stage.attempts,
        "again": stage.again,
        "output_rows": stage.output_rows,
        "output_bytes": stage.output_bytes,
        "spilled_bytes": stage.spilled_bytes,
        "tasks": stage.tasks.iter().map(task).collect::<Vec<_>>(),
    })
}

fn task(task: &TaskProgress) -> Value {
    object(json!({
        "index": task.index,
        "state": task_state(task.state()),
        "executor": task.executor,
        "attempts": task.attempts,
        "started_ms": time(task.started_ms),
        "ended_ms": time(task.ended_ms),
    }))
}
