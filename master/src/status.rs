//! Replicated and soft state → what clients and drivers are shown.

use crate::cluster::Cluster;
use firesteel_common::{ApplicationId, ApplicationSpec, ApplicationState};
use firesteel_master_core::{Application, ClusterState, shuffle_workers};
use firesteel_proto::{channel, v1};
use std::sync::Arc;

/// One application as clients see it. The progress is left out unless asked for.
pub fn application_status(
    cluster: &Cluster,
    state: &Arc<ClusterState>,
    app: &Application,
    progress: Option<Arc<v1::Progress>>,
) -> v1::ApplicationStatus {
    let mut message = app.message.clone();
    let mut queue_position = 0;
    if !app.state.is_final()
        && let Some(explanation) = cluster.explanations(state).get(&app.id)
    {
        queue_position = explanation.queue_position.unwrap_or(0);
        if app.state == ApplicationState::Waiting {
            message.clone_from(&explanation.text);
        }
    }
    let driver = app.driver();
    v1::ApplicationStatus {
        application_id: app.id.to_string(),
        spec: Some(shown_spec(&app.spec)),
        state: v1::ApplicationState::from(app.state).into(),
        submitted_ms: app.submitted_ms,
        started_ms: app.started_ms.unwrap_or(0),
        ended_ms: app.ended_ms.unwrap_or(0),
        message,
        executors: executors(state, app),
        driver: driver.map(|(attempt, _)| format!("driver-{attempt}")).unwrap_or_default(),
        driver_worker_id: driver.map(|(_, p)| p.worker.to_string()).unwrap_or_default(),
        progress: progress.map(Arc::unwrap_or_clone),
        ui_url: cluster.application_url(&app.id),
        queue_position,
    }
}

/// The specification without the values of settings that look like keys or passwords: whoever may look at an application
/// need not be the one who may use its storage.
fn shown_spec(spec: &ApplicationSpec) -> v1::ApplicationSpec {
    let mut shown = v1::ApplicationSpec::from(spec);
    for (name, value) in &mut shown.conf {
        if is_sensitive(name) {
            "***".clone_into(value);
        }
    }
    shown
}

/// As Spark's `spark.redaction.regex`, and a little more.
fn is_sensitive(setting: &str) -> bool {
    let name = setting.to_ascii_lowercase().replace(['.', '_', '-'], "");
    ["secret", "password", "passwd", "token", "credential", "accesskey", "apikey", "privatekey", "accountkey"]
        .iter()
        .any(|word| name.contains(word))
}

/// Live executors, and those that have ended as long as they are remembered.
pub fn executors(state: &ClusterState, app: &Application) -> Vec<v1::ExecutorInfo> {
    app.executors
        .iter()
        .map(|(number, executor)| v1::ExecutorInfo {
            number: *number,
            state: v1::ExecutorState::from(executor.state).into(),
            worker_id: executor.worker.to_string(),
            host: state.worker(&executor.worker).map(|w| w.host.clone()).unwrap_or_default(),
            address: executor.address.clone(),
            resources: Some(executor.resources.into()),
            granted_ms: executor.granted_ms,
            ended_ms: executor.ended_ms.unwrap_or(0),
            message: executor.message.clone(),
        })
        .collect()
}

/// What a driver is told; `stop` once the application has ended or is forgotten.
pub fn driver_update(cluster: &Cluster, state: &Arc<ClusterState>, id: &ApplicationId) -> v1::DriverUpdate {
    let Some(app) = state.application(id) else {
        return v1::DriverUpdate {
            stop: true,
            stop_reason: format!("application {id} is not known any more"),
            ..Default::default()
        };
    };
    let stop = app.state.is_final();
    let waiting_reason = match stop || app.missing_executors() == 0 {
        true => String::new(),
        false => cluster.explanations(state).get(id).map(|e| e.text.clone()).unwrap_or_default(),
    };
    let stop_reason = match (stop, app.message.is_empty()) {
        (false, _) => String::new(),
        (true, false) => app.message.clone(),
        (true, true) => format!("the application is {}", app.state),
    };
    v1::DriverUpdate {
        executors: executors(state, app),
        executor_target: app.spec.executor_target(),
        waiting_reason,
        stop,
        stop_reason,
        shuffle_hosts: shuffle_hosts(state, app),
    }
}

/// Where the application's map outputs are served. One that was declared dead is back in the list as soon as it is back: it
/// has kept its files.
fn shuffle_hosts(state: &ClusterState, app: &Application) -> Vec<v1::ShuffleHost> {
    let alive = |id| state.worker(id).filter(|worker| worker.is_alive());
    shuffle_workers(app)
        .into_iter()
        .filter_map(alive)
        .map(|worker| v1::ShuffleHost {
            worker_id: worker.id.to_string(),
            address: channel::authority(&worker.host, worker.port),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::is_sensitive;

    #[test]
    fn settings_that_look_like_keys_are_not_shown() {
        for name in [
            "aws_secret_access_key",
            "aws.access-key.id",
            "google.api_key",
            "db.Password",
            "azure.account_key",
        ] {
            assert!(is_sensitive(name), "{name}");
        }
        for name in ["datafusion.execution.batch_size", "aws.region", "firesteel.keyspace"] {
            assert!(!is_sensitive(name), "{name}");
        }
    }
}
