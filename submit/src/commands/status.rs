//! `submit status ID`

use super::list::{age, run_time};
use super::{current, json, table};
use crate::cli::ListFormat;
use crate::display::{between, count, lines, now_ms, one_line, shorten};
use crate::exit::{Exit, Failure};
use crate::master::Cluster;
use crate::output::print;
use crate::progress::{executor_counts, state_name};
use firesteel_common::Resources;
use firesteel_proto::v1::{ApplicationStatus, DeployMode, ExecutorInfo, JobProgress, TaskState};

pub async fn run(cluster: &Cluster, id: &str, format: ListFormat) -> Result<Exit, Failure> {
    let status = current(cluster, id).await?;
    print(&match format {
        ListFormat::Json => format!("{:#}\n", json::application(&status)),
        ListFormat::Jsonl => format!("{}\n", json::application(&status)),
        ListFormat::Table => render(&status, now_ms()),
    })?;
    Ok(Exit::Success)
}

fn render(status: &ApplicationStatus, now_ms: u64) -> String {
    let spec = status.spec.clone().unwrap_or_default();
    let mut text = String::new();
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            // Further lines of a value stand under its first one.
            let value = value.replace('\n', "\n            ");
            text += &format!("{name:<11} {value}\n");
        }
    };
    field("id", one_line(&status.application_id));
    field("name", one_line(&spec.name));
    field("user", one_line(&spec.user));
    field("state", state_name(status.state()).to_owned());
    if status.queue_position > 0 {
        field("queue", format!("position {}", status.queue_position));
    }
    field("message", lines(&status.message));
    field("script", one_line(&spec.resource));
    let supervised = if spec.supervise { ", supervised" } else { "" };
    field(
        "deploy mode",
        match spec.deploy_mode() {
            DeployMode::Cluster if status.driver.is_empty() => format!("cluster{supervised}"),
            DeployMode::Cluster => {
                let (driver, worker) = (one_line(&status.driver), one_line(&status.driver_worker_id));
                format!("cluster{supervised}, {driver} on {worker}")
            }
            DeployMode::Client => "client".to_owned(),
            DeployMode::Unspecified => String::new(),
        },
    );
    field("submitted", age(status.submitted_ms, now_ms));
    field("run time", run_time(status, now_ms));
    let each = spec.executor.map(|each| format!(", each {}", Resources::from(each))).unwrap_or_default();
    field("executors", format!("{} of {}{each}", executor_counts(status).0, json::executor_target(status)));
    field("page", one_line(&status.ui_url));
    if !status.executors.is_empty() {
        text.push('\n');
        let rows = status.executors.iter().map(|e| executor_row(e, now_ms)).collect();
        text +=
            &table(&["EXECUTOR", "STATE", "HOST", "CORES", "AGE", "MESSAGE"], &["EXECUTOR", "CORES"], rows);
    }
    let jobs = status.progress.as_ref().map_or(&[][..], |progress| &progress.jobs);
    if !jobs.is_empty() {
        text.push('\n');
        let rows = jobs.iter().enumerate().map(|(i, job)| job_row(i + 1, job, now_ms)).collect();
        let header = ["STATEMENT", "STATE", "TASKS", "ROWS", "TIME", "SQL", "ERROR"];
        text += &table(&header, &["STATEMENT", "TASKS", "ROWS", "TIME"], rows);
    }
    text
}

fn executor_row(executor: &ExecutorInfo, now_ms: u64) -> Vec<String> {
    let until = if executor.ended_ms == 0 { now_ms } else { executor.ended_ms };
    vec![
        executor.number.to_string(),
        json::executor_state(executor).to_owned(),
        one_line(&executor.host),
        executor.resources.map(|r| r.cores.to_string()).unwrap_or_default(),
        if executor.granted_ms == 0 { String::new() } else { between(executor.granted_ms, until) },
        shorten(&one_line(&executor.message), 80),
    ]
}

fn job_row(index: usize, job: &JobProgress, now_ms: u64) -> Vec<String> {
    let tasks = || job.stages.iter().flat_map(|stage| &stage.tasks);
    let done = tasks().filter(|task| task.state() == TaskState::Succeeded).count();
    let until = if job.ended_ms == 0 { now_ms } else { job.ended_ms };
    vec![
        index.to_string(),
        json::task_state(job.state()).to_owned(),
        if tasks().next().is_none() { String::new() } else { format!("{done}/{}", tasks().count()) },
        count(job.rows),
        if job.started_ms == 0 { String::new() } else { between(job.started_ms, until) },
        shorten(&one_line(&job.description), 50),
        shorten(&one_line(&job.error), 80),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_proto::v1::application_spec::Executors;
    use firesteel_proto::v1::{ApplicationSpec, ApplicationState, ExecutorState, Progress};

    #[test]
    fn everything_known_is_shown_and_nothing_else() {
        let status = ApplicationStatus {
            application_id: "app-1".into(),
            spec: Some(ApplicationSpec {
                name: "q".into(),
                deploy_mode: DeployMode::Cluster.into(),
                executor: Some(Resources::new(2, 1024).into()),
                executors: Some(Executors::TotalExecutorCores(5)),
                supervise: true,
                ..Default::default()
            }),
            state: ApplicationState::Failed.into(),
            message: "x.sql:1:1: bad\nsecond line".into(),
            submitted_ms: 1,
            driver: "driver-0".into(),
            driver_worker_id: "worker-1".into(),
            executors: vec![ExecutorInfo {
                number: 3,
                state: ExecutorState::Running.into(),
                host: "h".into(),
                ..Default::default()
            }],
            progress: Some(Progress {
                jobs: vec![JobProgress {
                    id: 7,
                    description: "SELECT\n1".into(),
                    state: TaskState::Failed.into(),
                    error: "bad".into(),
                    ..Default::default()
                }],
                at_ms: 0,
            }),
            ..Default::default()
        };
        let text = render(&status, 5_001);
        for expected in [
            "state       FAILED\n",
            "message     x.sql:1:1: bad\n            second line\n",
            "deploy mode cluster, supervised, driver-0 on worker-1\n",
            "submitted   5 s ago\n",
            "executors   1 of 2, each 2 cores, 1 GiB\n",
            "       3  RUNNING  h",
            "        1  FAILED",
            "SELECT 1",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
        assert!(!text.contains("user") && !text.contains("page"), "{text}");
    }
}
