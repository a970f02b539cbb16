//! What a user asks for, and the states that things go through.

use crate::Resources;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Where the driver runs: on the submitter's machine or under a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeployMode {
    Client,
    Cluster,
}

/// How the result of a statement is written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum OutputFormat {
    /// Aligned columns for people.
    #[default]
    Table,
    /// RFC 4180 with a header line; the data alone.
    Csv,
    /// One JSON object per row and line; the data alone.
    Json,
}

/// How many executors an application wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExecutorCount {
    /// `--num-executors`: exactly so many (fewer while the cluster has no room).
    Exactly(u32),
    /// `--total-executor-cores`: as many executors as fit in so many cores.
    TotalCores(u32),
}

/// A submission: everything the master needs to know to queue, place and launch an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationSpec {
    pub name: String,
    pub user: String,
    pub deploy_mode: DeployMode,
    /// The script's file name, as the user gave it: for messages (`report.sql:3:7`), never opened in cluster mode.
    pub resource: String,
    /// SHA-256 (lower-case hex) of the script in the artifact store; empty in client mode, where the driver reads the file itself.
    pub artifact: String,
    /// `--conf` and properties-file settings.
    pub conf: BTreeMap<String, String>,
    pub output: OutputFormat,
    /// What a cluster-mode driver takes from its worker. Cores may be 0: a driver coordinates, it does no data work.
    pub driver: Resources,
    /// What one executor takes from its worker.
    pub executor: Resources,
    pub executors: ExecutorCount,
    /// Start the driver again when its process dies without having reported a result; cluster mode only.
    #[serde(default)]
    pub supervise: bool,
}

/// Why a specification cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    #[error("an executor needs at least one core")]
    NoExecutorCores,
    #[error("an executor needs at least {minimum} MiB of memory, {asked} MiB asked")]
    TooLittleExecutorMemory { asked: u64, minimum: u64 },
    #[error("a driver needs at least {minimum} MiB of memory, {asked} MiB asked")]
    TooLittleDriverMemory { asked: u64, minimum: u64 },
    #[error("an application needs at least one executor")]
    NoExecutors,
    #[error("an application may have at most {maximum} executors, {asked} asked")]
    TooManyExecutors { asked: u32, maximum: u32 },
    #[error(
        "--total-executor-cores {total} is less than --executor-cores {per_executor}: not one executor would fit"
    )]
    TotalBelowOneExecutor { total: u32, per_executor: u32 },
    #[error("--supervise needs --deploy-mode cluster: a driver beside submit ends with submit")]
    SuperviseClientMode,
    #[error("the application's {field} is longer than {maximum} bytes")]
    TooLong { field: &'static str, maximum: usize },
}

impl ApplicationSpec {
    /// Under this an executor cannot hold DataFusion and its buffers.
    pub const MIN_EXECUTOR_MEMORY_MIB: u64 = 256;
    pub const MIN_DRIVER_MEMORY_MIB: u64 = 128;
    pub const MAX_EXECUTORS: u32 = 100_000;

    /// How many executors the application is meant to have.
    pub fn executor_target(&self) -> u32 {
        match self.executors {
            ExecutorCount::Exactly(n) => n,
            ExecutorCount::TotalCores(total) => total / self.executor.cores.max(1),
        }
    }

    pub fn validate(&self) -> Result<(), InvalidSpec> {
        if self.supervise && self.deploy_mode == DeployMode::Client {
            return Err(InvalidSpec::SuperviseClientMode);
        }
        if self.executor.cores == 0 {
            return Err(InvalidSpec::NoExecutorCores);
        }
        if self.executor.memory_mib < Self::MIN_EXECUTOR_MEMORY_MIB {
            return Err(InvalidSpec::TooLittleExecutorMemory {
                asked: self.executor.memory_mib,
                minimum: Self::MIN_EXECUTOR_MEMORY_MIB,
            });
        }
        if self.driver.memory_mib < Self::MIN_DRIVER_MEMORY_MIB {
            return Err(InvalidSpec::TooLittleDriverMemory {
                asked: self.driver.memory_mib,
                minimum: Self::MIN_DRIVER_MEMORY_MIB,
            });
        }
        if let ExecutorCount::TotalCores(total) = self.executors
            && total < self.executor.cores
        {
            return Err(InvalidSpec::TotalBelowOneExecutor { total, per_executor: self.executor.cores });
        }
        match self.executor_target() {
            0 => return Err(InvalidSpec::NoExecutors),
            n if n > Self::MAX_EXECUTORS => {
                return Err(InvalidSpec::TooManyExecutors { asked: n, maximum: Self::MAX_EXECUTORS });
            }
            _ => {}
        }
        let conf_bytes: usize = self.conf.iter().map(|(k, v)| k.len() + v.len()).sum();
        for (field, len, maximum) in [
            ("name", self.name.len(), 512),
            ("user", self.user.len(), 256),
            ("resource name", self.resource.len(), 4096),
            ("configuration", conf_bytes, 1 << 20),
        ] {
            if len > maximum {
                return Err(InvalidSpec::TooLong { field, maximum });
            }
        }
        Ok(())
    }
}

macro_rules! named_states {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }
        impl $name {
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

named_states!(
    /// An application's life. The last three are final.
    ApplicationState {
        /// Queued: no executor has been granted yet (cluster mode: the driver may wait for a place, too).
        Waiting = "WAITING",
        Running = "RUNNING",
        Finished = "FINISHED",
        Failed = "FAILED",
        Killed = "KILLED",
    }
);

impl ApplicationState {
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Killed)
    }
}

named_states!(
    /// The life of an executor or of a cluster-mode driver.
    ExecutorState {
        /// Granted; the worker is starting it.
        Launching = "LAUNCHING",
        /// Up: an executor has said where it listens.
        Running = "RUNNING",
        /// Ended by itself with success, or because its application was done with it.
        Exited = "EXITED",
        /// Ended by itself with an error, or could not be started.
        Failed = "FAILED",
        /// Ended because it was no longer wanted.
        Killed = "KILLED",
        /// Its worker is gone.
        Lost = "LOST",
    }
);

impl ExecutorState {
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Launching | Self::Running)
    }
}

named_states!(
    /// What the cluster thinks of a worker.
    WorkerStatus {
        Alive = "ALIVE",
        /// No heartbeat for too long; its executors are lost.
        Dead = "DEAD",
        /// It said goodbye.
        Left = "LEFT",
    }
);

/// How a process ended, in the words that a user is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessEnd {
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    /// It never ran: the reason, from the sandbox or the operating system.
    LaunchFailed {
        reason: String,
    },
    /// Its worker ended it by its own decision.
    Killed {
        reason: String,
    },
}

impl ProcessEnd {
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Exited { code: 0 })
    }
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Signaled { signal } => match signal_name(*signal) {
                Some(name) => write!(f, "was killed by signal {signal} ({name})"),
                None => write!(f, "was killed by signal {signal}"),
            },
            Self::LaunchFailed { reason } => write!(f, "could not be started: {reason}"),
            Self::Killed { reason } => write!(f, "was killed: {reason}"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

impl FromStr for OutputFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "csv" => Ok(Self::Csv),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is not an output format: use table, csv or json")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ApplicationSpec {
        ApplicationSpec {
            name: "q".into(),
            user: "ana".into(),
            deploy_mode: DeployMode::Cluster,
            resource: "q.sql".into(),
            artifact: String::new(),
            conf: BTreeMap::new(),
            output: OutputFormat::Table,
            driver: Resources::new(0, 512),
            executor: Resources::new(1, 1024),
            executors: ExecutorCount::Exactly(2),
            supervise: false,
        }
    }

    #[test]
    fn targets_follow_the_count_or_the_total_cores() {
        let mut s = spec();
        assert_eq!(s.executor_target(), 2);
        s.executor.cores = 4;
        s.executors = ExecutorCount::TotalCores(11);
        assert_eq!(s.executor_target(), 2);
        assert_eq!(s.validate(), Ok(()));
    }

    #[test]
    fn impossible_specifications_are_refused() {
        let check = |change: fn(&mut ApplicationSpec)| {
            let mut s = spec();
            change(&mut s);
            s.validate().unwrap_err()
        };
        assert_eq!(check(|s| s.executor.cores = 0), InvalidSpec::NoExecutorCores);
        let supervised_client = check(|s| (s.supervise, s.deploy_mode) = (true, DeployMode::Client));
        assert_eq!(supervised_client, InvalidSpec::SuperviseClientMode);
        assert_eq!(check(|s| s.executors = ExecutorCount::Exactly(0)), InvalidSpec::NoExecutors);
        assert!(matches!(check(|s| s.executor.memory_mib = 1), InvalidSpec::TooLittleExecutorMemory { .. }));
        assert!(matches!(check(|s| s.driver.memory_mib = 1), InvalidSpec::TooLittleDriverMemory { .. }));
        assert!(matches!(
            check(|s| s.executors = ExecutorCount::Exactly(u32::MAX)),
            InvalidSpec::TooManyExecutors { .. }
        ));
        assert!(matches!(check(|s| s.name = "x".repeat(600)), InvalidSpec::TooLong { field: "name", .. }));
        assert!(matches!(
            check(|s| {
                s.executor.cores = 4;
                s.executors = ExecutorCount::TotalCores(3);
            }),
            InvalidSpec::TotalBelowOneExecutor { .. }
        ));
    }
}
