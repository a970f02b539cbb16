//! What a worker reports against what the state says: the commands that bring the state up to date.

use firesteel_common::{ExecutorState, ProcessEnd, ProcessId, WorkerId, WorkerStatus};
use firesteel_master_core::{ClusterState, Command, Process};
use firesteel_proto::convert::{self, InvalidMessage};
use firesteel_proto::v1;

/// Reports repeat with every heartbeat; only what is news becomes a command. What the worker should not have (processes
/// that are not its own, or have ended) is left to the desired set, which makes it stop them.
///
/// # Errors
/// A report that the protocol does not allow.
pub fn reconcile(
    state: &ClusterState,
    id: &WorkerId,
    incarnation: u64,
    reports: Vec<v1::ProcessReport>,
    now_ms: u64,
) -> Result<Vec<Command>, InvalidMessage> {
    let mut commands = Vec::new();
    let Some(worker) = state.worker(id).filter(|w| w.incarnation == incarnation) else {
        return Ok(commands);
    };
    if worker.status == WorkerStatus::Dead {
        // It was silent for too long, and it is not dead.
        commands.push(Command::SetWorkerStatus {
            id: id.clone(),
            incarnation,
            status: WorkerStatus::Alive,
            at_ms: now_ms,
        });
    }
    for report in reports {
        let process = convert::process_id(report.process.clone())?;
        let reported = convert::executor_state(report.state)?;
        let own = |p: &&Process| p.worker == *id && p.incarnation == incarnation && p.is_live();
        let Some(known) = state.process(&process).map(|p| &**p).filter(own) else { continue };
        match reported {
            ExecutorState::Launching => {}
            ExecutorState::Running if known.state == ExecutorState::Launching => {
                let address = match &process {
                    ProcessId::Driver { .. } => String::new(),
                    ProcessId::Executor(_) => address(report.address)?,
                };
                commands.push(Command::ProcessStarted { process, address, at_ms: now_ms });
            }
            ExecutorState::Running => {}
            ended => {
                let end = match report.end {
                    Some(end) => convert::process_end(end)?,
                    None => ProcessEnd::LaunchFailed { reason: "its worker does not know why".to_owned() },
                };
                let state = match ended {
                    // To the cluster it is lost when its worker is; the worker is here.
                    ExecutorState::Lost => ExecutorState::Failed,
                    other => other,
                };
                commands.push(Command::ProcessEnded { process, state, end, at_ms: now_ms });
            }
        }
    }
    Ok(commands)
}

/// `HOST:PORT` that another process can be told to dial.
fn address(text: String) -> Result<String, InvalidMessage> {
    let valid = text.len() <= 255
        && text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(|c: char| c.is_whitespace() || c.is_control() || "/@?#".contains(c))
                && port.parse::<u16>().is_ok_and(|p| p != 0)
        });
    if valid { Ok(text) } else { Err(InvalidMessage::Address(text.chars().take(255).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_common::{
        ApplicationId, ApplicationSpec, DeployMode, ExecutorCount, OutputFormat, Resources, Secret,
    };
    use firesteel_master_core::{Outcome, apply, schedule};

    fn worker() -> WorkerId {
        "worker-1".parse().unwrap()
    }

    /// A worker that shall run the driver and the executor of a cluster-mode application.
    fn state() -> (ClusterState, ApplicationId) {
        let mut state = ClusterState::default();
        let register = Command::RegisterWorker {
            id: worker(),
            incarnation: 1,
            host: "h".into(),
            port: 1,
            capacity: Resources::new(2, 4096),
            version: String::new(),
            ui_url: String::new(),
            at_ms: 1,
        };
        apply(&mut state, 1, register);
        let spec = ApplicationSpec {
            name: "q".into(),
            user: "ana".into(),
            deploy_mode: DeployMode::Cluster,
            resource: "q.sql".into(),
            artifact: "a".repeat(64),
            conf: Default::default(),
            output: OutputFormat::Table,
            driver: Resources::new(0, 512),
            executor: Resources::new(1, 1024),
            executors: ExecutorCount::Exactly(1),
            supervise: false,
        };
        let Outcome::Submitted { id } = apply(
            &mut state,
            2,
            Command::SubmitApplication {
                spec,
                token: Secret::new("t"),
                key: String::new(),
                ticket: 0,
                at_ms: 2,
            },
        ) else {
            panic!("not submitted")
        };
        for (n, command) in schedule(&state, 3).into_iter().enumerate() {
            assert_eq!(apply(&mut state, 3 + n as u64, command), Outcome::Ok);
        }
        (state, id)
    }

    fn report(app: &ApplicationId, name: &str, state: v1::ExecutorState) -> v1::ProcessReport {
        v1::ProcessReport {
            process: Some(v1::ProcessId { application_id: app.to_string(), name: name.into() }),
            state: state.into(),
            address: "h:4000".into(),
            pid: 1,
            end: None,
        }
    }

    fn reconciled(state: &ClusterState, reports: Vec<v1::ProcessReport>) -> Vec<Command> {
        reconcile(state, &worker(), 1, reports, 9).unwrap()
    }

    #[test]
    fn only_news_becomes_commands() {
        let (mut state, app) = state();
        let running = || {
            vec![
                report(&app, "driver-0", v1::ExecutorState::Running),
                report(&app, "executor-0", v1::ExecutorState::Running),
            ]
        };
        assert_eq!(reconciled(&state, vec![report(&app, "executor-0", v1::ExecutorState::Launching)]), []);
        let commands = reconciled(&state, running());
        assert!(matches!(&commands[0], Command::ProcessStarted { address, .. } if address.is_empty()));
        assert!(matches!(&commands[1], Command::ProcessStarted { address, .. } if address == "h:4000"));
        for command in commands {
            apply(&mut state, 10, command);
        }
        assert_eq!(reconciled(&state, running()), [], "a repeated report says nothing new");
        let ended = || vec![report(&app, "executor-0", v1::ExecutorState::Lost)];
        let commands = reconciled(&state, ended());
        assert!(matches!(&commands[..], [Command::ProcessEnded { state: ExecutorState::Failed, .. }]));
        apply(&mut state, 11, commands[0].clone());
        assert_eq!(reconciled(&state, ended()), []);
        assert_eq!(reconciled(&state, vec![report(&app, "executor-7", v1::ExecutorState::Running)]), []);
    }

    #[test]
    fn another_life_of_the_worker_says_nothing_about_this_one() {
        let (state, app) = state();
        let running = vec![report(&app, "executor-0", v1::ExecutorState::Running)];
        assert_eq!(reconcile(&state, &worker(), 2, running.clone(), 9).unwrap(), []);
        let stranger = "worker-2".parse().unwrap();
        assert_eq!(reconcile(&state, &stranger, 1, running, 9).unwrap(), []);
    }

    #[test]
    fn a_dead_worker_that_speaks_is_alive() {
        let (mut state, _) = state();
        let dead =
            Command::SetWorkerStatus { id: worker(), incarnation: 1, status: WorkerStatus::Dead, at_ms: 5 };
        apply(&mut state, 10, dead);
        let commands = reconciled(&state, vec![]);
        assert!(matches!(&commands[..], [Command::SetWorkerStatus { status: WorkerStatus::Alive, .. }]));
    }

    #[test]
    fn hostile_reports_are_refused() {
        let (state, app) = state();
        let check = |change: fn(&mut v1::ProcessReport)| {
            let mut bad = report(&app, "executor-0", v1::ExecutorState::Running);
            change(&mut bad);
            reconcile(&state, &worker(), 1, vec![bad], 9).unwrap_err().to_string()
        };
        assert!(check(|r| r.process = None).contains("lacks process"));
        assert!(check(|r| r.state = 99).contains("99"));
        for address in ["", "h", "h:0", "h:x", ":1", "h h:1", "http://h:1"] {
            let bad = v1::ProcessReport {
                address: address.into(),
                ..report(&app, "executor-0", v1::ExecutorState::Running)
            };
            assert!(reconcile(&state, &worker(), 1, vec![bad], 9).is_err(), "{address:?}");
        }
    }
}
