//! Wire → domain, once, with typed errors; and back.

use crate::v1;
use firesteel_common::{
    ApplicationId, ApplicationSpec, ApplicationState, DeployMode, ExecutorCount, ExecutorState, InvalidId,
    InvalidSpec, OutputFormat, ProcessEnd, ProcessId, Resources, WorkerId, WorkerStatus,
};

/// A message that the protocol does not allow. Becomes `INVALID_ARGUMENT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    #[error("the message lacks {0}")]
    Missing(&'static str),
    #[error("{value} is not a known {kind}")]
    UnknownEnum { kind: &'static str, value: i32 },
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Spec(#[from] InvalidSpec),
    #[error("{0:?} is not a SHA-256 in lower-case hex")]
    Hash(String),
    #[error("{0:?} is not HOST:PORT")]
    Address(String),
    #[error("{0} is not a port")]
    Port(u32),
}

impl From<InvalidMessage> for tonic::Status {
    fn from(error: InvalidMessage) -> Self {
        tonic::Status::invalid_argument(error.to_string())
    }
}

pub fn application_id(text: &str) -> Result<ApplicationId, InvalidMessage> {
    Ok(text.parse()?)
}

pub fn worker_id(text: &str) -> Result<WorkerId, InvalidMessage> {
    Ok(text.parse()?)
}

/// Checks the form of a content hash, so that it can be used as a file name.
pub fn sha256(text: &str) -> Result<&str, InvalidMessage> {
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(text)
    } else {
        Err(InvalidMessage::Hash(text.chars().take(80).collect()))
    }
}

pub fn resources(wire: Option<v1::Resources>, what: &'static str) -> Result<Resources, InvalidMessage> {
    wire.map(Resources::from).ok_or(InvalidMessage::Missing(what))
}

impl From<v1::Resources> for Resources {
    fn from(r: v1::Resources) -> Self {
        Resources::new(r.cores, r.memory_mib)
    }
}

impl From<Resources> for v1::Resources {
    fn from(r: Resources) -> Self {
        Self { cores: r.cores, memory_mib: r.memory_mib }
    }
}

pub fn process_id(wire: Option<v1::ProcessId>) -> Result<ProcessId, InvalidMessage> {
    let wire = wire.ok_or(InvalidMessage::Missing("process"))?;
    Ok(ProcessId::from_name(application_id(&wire.application_id)?, &wire.name)?)
}

impl From<&ProcessId> for v1::ProcessId {
    fn from(id: &ProcessId) -> Self {
        Self { application_id: id.application().to_string(), name: id.name() }
    }
}

pub fn process_end(wire: v1::ProcessEnd) -> Result<ProcessEnd, InvalidMessage> {
    use v1::process_end::Kind;
    Ok(match wire.kind.ok_or(InvalidMessage::Missing("end.kind"))? {
        Kind::ExitCode(code) => ProcessEnd::Exited { code },
        Kind::Signal(signal) => ProcessEnd::Signaled { signal },
        Kind::LaunchFailure(reason) => ProcessEnd::LaunchFailed { reason },
        Kind::Killed(reason) => ProcessEnd::Killed { reason },
    })
}

impl From<&ProcessEnd> for v1::ProcessEnd {
    fn from(end: &ProcessEnd) -> Self {
        use v1::process_end::Kind;
        Self {
            kind: Some(match end {
                ProcessEnd::Exited { code } => Kind::ExitCode(*code),
                ProcessEnd::Signaled { signal } => Kind::Signal(*signal),
                ProcessEnd::LaunchFailed { reason } => Kind::LaunchFailure(reason.clone()),
                ProcessEnd::Killed { reason } => Kind::Killed(reason.clone()),
            }),
        }
    }
}

macro_rules! enum_conversions {
    ($domain:ident, $kind:literal, $($variant:ident),+) => {
        impl From<$domain> for v1::$domain {
            fn from(value: $domain) -> Self {
                match value { $($domain::$variant => Self::$variant),+ }
            }
        }
        impl TryFrom<v1::$domain> for $domain {
            type Error = InvalidMessage;
            fn try_from(value: v1::$domain) -> Result<Self, InvalidMessage> {
                match value {
                    v1::$domain::Unspecified => Err(InvalidMessage::Missing($kind)),
                    $(v1::$domain::$variant => Ok(Self::$variant)),+
                }
            }
        }
    };
}

enum_conversions!(DeployMode, "deploy mode", Client, Cluster);
enum_conversions!(OutputFormat, "output format", Table, Csv, Json);
enum_conversions!(ApplicationState, "application state", Waiting, Running, Finished, Failed, Killed);
enum_conversions!(ExecutorState, "executor state", Launching, Running, Exited, Failed, Killed, Lost);
enum_conversions!(WorkerStatus, "worker status", Alive, Dead, Left);

fn known<W: TryFrom<i32>, D: TryFrom<W, Error = InvalidMessage>>(
    value: i32,
    kind: &'static str,
) -> Result<D, InvalidMessage> {
    D::try_from(W::try_from(value).map_err(|_| InvalidMessage::UnknownEnum { kind, value })?)
}

pub fn executor_state(value: i32) -> Result<ExecutorState, InvalidMessage> {
    known::<v1::ExecutorState, _>(value, "executor state")
}

pub fn application_state(value: i32) -> Result<ApplicationState, InvalidMessage> {
    known::<v1::ApplicationState, _>(value, "application state")
}

/// Converts and validates: what comes back obeys [`ApplicationSpec::validate`], and a cluster-mode spec names an artifact.
pub fn application_spec(wire: Option<v1::ApplicationSpec>) -> Result<ApplicationSpec, InvalidMessage> {
    use v1::application_spec::Executors;
    let wire = wire.ok_or(InvalidMessage::Missing("spec"))?;
    let spec = ApplicationSpec {
        deploy_mode: known::<v1::DeployMode, _>(wire.deploy_mode, "deploy mode")?,
        output: known::<v1::OutputFormat, _>(wire.output, "output format")?,
        driver: resources(wire.driver, "spec.driver")?,
        executor: resources(wire.executor, "spec.executor")?,
        executors: match wire.executors.ok_or(InvalidMessage::Missing("spec.executors"))? {
            Executors::ExecutorCount(n) => ExecutorCount::Exactly(n),
            Executors::TotalExecutorCores(n) => ExecutorCount::TotalCores(n),
        },
        name: wire.name,
        user: wire.user,
        resource: wire.resource,
        artifact: wire.artifact,
        conf: wire.conf,
        supervise: wire.supervise,
    };
    if spec.deploy_mode == DeployMode::Cluster {
        sha256(&spec.artifact)?;
    }
    spec.validate()?;
    Ok(spec)
}

impl From<&ApplicationSpec> for v1::ApplicationSpec {
    fn from(spec: &ApplicationSpec) -> Self {
        use v1::application_spec::Executors;
        Self {
            name: spec.name.clone(),
            user: spec.user.clone(),
            deploy_mode: v1::DeployMode::from(spec.deploy_mode).into(),
            resource: spec.resource.clone(),
            artifact: spec.artifact.clone(),
            conf: spec.conf.clone(),
            output: v1::OutputFormat::from(spec.output).into(),
            driver: Some(spec.driver.into()),
            executor: Some(spec.executor.into()),
            executors: Some(match spec.executors {
                ExecutorCount::Exactly(n) => Executors::ExecutorCount(n),
                ExecutorCount::TotalCores(n) => Executors::TotalExecutorCores(n),
            }),
            supervise: spec.supervise,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::ApplicationSpec {
        v1::ApplicationSpec::from(&ApplicationSpec {
            name: "q".into(),
            user: "ana".into(),
            deploy_mode: DeployMode::Cluster,
            resource: "q.sql".into(),
            artifact: "a".repeat(64),
            conf: [("k".to_owned(), "v".to_owned())].into(),
            output: OutputFormat::Csv,
            driver: Resources::new(0, 512),
            executor: Resources::new(1, 1024),
            executors: ExecutorCount::TotalCores(2),
            supervise: false,
        })
    }

    #[test]
    fn a_specification_survives_the_wire() {
        let spec = application_spec(Some(wire())).unwrap();
        assert_eq!(v1::ApplicationSpec::from(&spec), wire());
    }

    #[test]
    fn hostile_specifications_are_refused() {
        let check = |change: fn(&mut v1::ApplicationSpec)| {
            let mut w = wire();
            change(&mut w);
            application_spec(Some(w)).unwrap_err()
        };
        assert_eq!(application_spec(None), Err(InvalidMessage::Missing("spec")));
        assert_eq!(
            check(|w| w.deploy_mode = 9),
            InvalidMessage::UnknownEnum { kind: "deploy mode", value: 9 }
        );
        assert_eq!(check(|w| w.deploy_mode = 0), InvalidMessage::Missing("deploy mode"));
        assert!(matches!(check(|w| w.artifact = "../../etc/passwd".into()), InvalidMessage::Hash(_)));
        assert_eq!(check(|w| w.executors = None), InvalidMessage::Missing("spec.executors"));
        assert!(matches!(
            check(|w| w.executor = Some(v1::Resources { cores: 0, memory_mib: 1024 })),
            InvalidMessage::Spec(_)
        ));
    }

    #[test]
    fn process_names_are_checked_before_they_become_paths() {
        let id = |app: &str, name: &str| {
            process_id(Some(v1::ProcessId { application_id: app.into(), name: name.into() }))
        };
        assert!(id("app-1", "executor-3").is_ok());
        assert!(id("app-../x", "executor-3").is_err());
        assert!(id("app-1", "../3").is_err());
        assert!(process_id(None).is_err());
    }
}
