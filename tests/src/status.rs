//! What `submit status -o json` says about an application.

use crate::cluster::Cluster;
use crate::procs::wait_for;
use serde_json::Value;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

pub fn status(cluster: &Cluster, id: &str) -> Value {
    let run = cluster.run(["status", id, "-o", "json"]);
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {} {}", run.stdout, run.stderr))
}

/// The id of the only application, once there is one.
pub fn only_application(cluster: &Cluster) -> String {
    wait_for("an application", LIMIT, || {
        let run = cluster.run(["list", "-o", "json"]);
        let list: Value = serde_json::from_str(&run.stdout).map_err(|e| e.to_string())?;
        list[0]["id"].as_str().map(str::to_owned).ok_or(run.stdout)
    })
}

pub fn items<'a>(parent: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    parent[key].as_array().into_iter().flatten()
}

pub fn stages(status: &Value) -> impl Iterator<Item = &Value> {
    items(status, "jobs").flat_map(|job| items(job, "stages"))
}

pub fn tasks(status: &Value) -> impl Iterator<Item = &Value> {
    stages(status).flat_map(|stage| items(stage, "tasks"))
}
