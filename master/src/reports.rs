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
