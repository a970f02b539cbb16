//! `submit list`

use super::{json, table};
use crate::cli::ListFormat;
use crate::display::{between, duration, now_ms, one_line, shorten};
use crate::exit::{Exit, Failure};
use crate::master::{Cluster, client};
use crate::output::print;
use crate::progress::{executor_counts, is_final, state_name};
use firesteel_proto::v1::{ApplicationStatus, ListApplicationsRequest};
use std::time::Duration;

pub async fn run(cluster: &Cluster, format: ListFormat) -> Result<Exit, Failure> {
    let list = async |leader| client(&leader).list_applications(ListApplicationsRequest {}).await;
    let answer = cluster.request(list).await.map_err(|error| error.failure("list applications"))?;
    print(&render(&answer.into_inner().applications, format, now_ms()))?;
    Ok(Exit::Success)
}

fn render(applications: &[ApplicationStatus], format: ListFormat, now_ms: u64) -> String {
    match format {
        ListFormat::Json => {
            let all: Vec<_> = applications.iter().map(json::application).collect();
            format!("{:#}\n", serde_json::Value::from(all))
        }
        ListFormat::Jsonl => {
            applications.iter().map(|status| format!("{}\n", json::application(status))).collect()
        }
        ListFormat::Table => table(
            &["ID", "NAME", "USER", "STATE", "EXECUTORS", "SUBMITTED", "DURATION", "MESSAGE"],
            &["EXECUTORS"],
            applications.iter().map(|status| row(status, now_ms)).collect(),
        ),
    }
}

fn row(status: &ApplicationStatus, now_ms: u64) -> Vec<String> {
    let spec = status.spec.clone().unwrap_or_default();
    let executors = if is_final(status) {
        String::new()
    } else {
        format!("{}/{}", executor_counts(status).0, json::executor_target(status))
    };
    vec![
        one_line(&status.application_id),
        shorten(&one_line(&spec.name), 30),
        shorten(&one_line(&spec.user), 16),
        state_name(status.state()).to_owned(),
        executors,
        age(status.submitted_ms, now_ms),
        run_time(status, now_ms),
        shorten(&one_line(&status.message), 80),
    ]
}

/// `3 min ago`, to the larger unit.
pub fn age(then_ms: u64, now_ms: u64) -> String {
    let age = Duration::from_millis(now_ms.saturating_sub(then_ms));
    let text = if age < Duration::from_secs(1) {
        "now".to_owned()
    } else {
        duration(Duration::from_secs(age.as_secs()))
    };
    // The first number and its unit.
    match text.split(' ').collect::<Vec<_>>()[..] {
        [number, unit, ..] => format!("{} {unit} ago", number.trim_end_matches(".0")),
        _ => text,
    }
}

/// How long it has run, or ran; empty while it waits.
pub fn run_time(status: &ApplicationStatus, now_ms: u64) -> String {
    match (status.started_ms, status.ended_ms) {
        (0, _) => String::new(),
        (started, 0) => between(started, now_ms),
        (started, ended) => between(started, ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_proto::v1::{ApplicationSpec, ApplicationState};

    fn status() -> ApplicationStatus {
        ApplicationStatus {
            application_id: "app-1".into(),
            spec: Some(ApplicationSpec {
                name: "evil\x1b[2J\nname".into(),
                user: "ana".into(),
                ..Default::default()
            }),
            state: ApplicationState::Finished.into(),
            submitted_ms: 1_000,
            started_ms: 2_000,
            ended_ms: 3_500,
            ..Default::default()
        }
    }

    #[test]
    fn a_row_shows_what_matters() {
        let text = render(&[status()], ListFormat::Table, 184_000);
        let row = text.lines().nth(1).unwrap();
        assert_eq!(row, "app-1  evil [2J name  ana   FINISHED             3 min ago  1.5 s");
    }

    #[test]
    fn an_empty_list_is_a_header_or_empty_json() {
        assert_eq!(render(&[], ListFormat::Table, 0).lines().count(), 1);
        assert_eq!(render(&[], ListFormat::Json, 0), "[]\n");
        assert_eq!(render(&[], ListFormat::Jsonl, 0), "");
    }

    #[test]
    fn json_lines_hold_one_application_each() {
        let text = render(&[status(), status()], ListFormat::Jsonl, 0);
        assert_eq!(text.lines().count(), 2);
        let value: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(value["state"], "FINISHED");
        assert_eq!(value["name"], "evil\x1b[2J\nname");
        assert!(value.get("queue_position").is_none());
    }

    #[test]
    fn ages_have_one_unit() {
        assert_eq!(age(1_000, 1_500), "now");
        assert_eq!(age(0, 5_900), "5 s ago");
        assert_eq!(age(0, 3_700_000), "1 h ago");
        assert_eq!(age(10, 5), "now");
    }
}
