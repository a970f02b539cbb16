//! Assignments and reports between their wire form and [`crate::processes`]; the parts are converted by `proto::convert`.

use crate::processes::{Assignment, Launch, Process};
use crate::usage::Sample;
use firesteel_common::{ApplicationId, Epoch, ProcessId, Secret};
use firesteel_proto::convert::{self, InvalidMessage};
use firesteel_proto::v1;
use std::time::Duration;

/// Bounds what a master can ask for: neither a flood nor silence.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 50..=60_000;

/// An assignment is taken whole or not at all: guessing at half a desired set would stop processes.
pub fn assignment(wire: v1::Assignment) -> Result<Assignment, InvalidMessage> {
    Ok(Assignment {
        epoch: Epoch(wire.epoch),
        processes: wire.processes.into_iter().map(launch).collect::<Result<_, _>>()?,
        heartbeat: Duration::from_millis(
            u64::from(wire.heartbeat_ms).clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end()),
        ),
        heard: wire.heard,
        lease: Duration::from_millis(wire.lease_ms.into()),
        shuffle_tenants: wire.shuffle_tenants.into_iter().map(tenant).collect::<Result<_, _>>()?,
    })
}

fn tenant(wire: v1::ShuffleTenant) -> Result<(ApplicationId, Secret), InvalidMessage> {
    Ok((convert::application_id(&wire.application_id)?, Secret::new(wire.token)))
}

fn launch(wire: v1::Launch) -> Result<Launch, InvalidMessage> {
    let id = convert::process_id(wire.process)?;
    let spec = match id {
        ProcessId::Driver { .. } => Some(convert::application_spec(wire.spec)?),
        ProcessId::Executor(_) => None,
    };
    Ok(Launch {
        id,
        resources: convert::resources(wire.resources, "launch.resources")?,
        token: Secret::new(wire.token),
        spec,
        conf: wire.conf,
        grant_index: wire.grant_index,
        incarnation: wire.incarnation,
        ends_with_lease: wire.ends_with_lease,
    })
}

/// `sequence`: see `WorkerReport.sequence`.
pub fn report<'a>(
    processes: impl Iterator<Item = &'a Process>,
    usage: Sample,
    sequence: u64,
) -> v1::WorkerReport {
    v1::WorkerReport {
        processes: processes.map(process_report).collect(),
        cpu_percent: usage.cpu_percent,
        memory_used_mib: usage.memory_used_mib,
        sequence,
    }
}

fn process_report(process: &Process) -> v1::ProcessReport {
    v1::ProcessReport {
        process: Some((&process.id).into()),
        state: v1::ExecutorState::from(process.state).into(),
        address: process.address.clone().unwrap_or_default(),
        pid: process.pid.unwrap_or_default(),
        end: process.end.as_ref().map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(name: &str) -> v1::Assignment {
        v1::Assignment {
            epoch: 3,
            processes: vec![v1::Launch {
                process: Some(v1::ProcessId { application_id: "app-1".into(), name: name.into() }),
                resources: Some(v1::Resources { cores: 1, memory_mib: 512 }),
                token: "secret".into(),
                spec: None,
                conf: [("k".to_owned(), "v".to_owned())].into(),
                grant_index: 9,
                incarnation: 8,
                ends_with_lease: true,
            }],
            heartbeat_ms: 0,
            heard: 7,
            lease_ms: 6,
            shuffle_tenants: vec![v1::ShuffleTenant {
                application_id: "app-2".into(),
                token: "secret-2".into(),
            }],
        }
    }

    #[test]
    fn an_assignment_is_converted_whole_or_refused() {
        let got = assignment(wire("executor-1")).unwrap();
        assert_eq!((got.epoch, got.processes.len()), (Epoch(3), 1));
        assert_eq!(got.heartbeat, Duration::from_millis(50), "no beat at all would be a flood");
        assert_eq!((got.heard, got.lease), (7, Duration::from_millis(6)));
        let launch = &got.processes[0];
        assert_eq!((launch.grant_index, launch.incarnation, launch.ends_with_lease), (9, 8, true));
        assert!(got.shuffle_tenants[&"app-2".parse().unwrap()].matches("secret-2"));
        assert!(!format!("{got:?}").contains("secret"));
        assert_eq!(assignment(wire("driver-0")).unwrap_err(), InvalidMessage::Missing("spec"));
        assert!(assignment(wire("../x-1")).is_err());
        let mut outside = wire("executor-1");
        outside.shuffle_tenants[0].application_id = "app-/../x".into();
        assert!(assignment(outside).is_err());
    }
}
