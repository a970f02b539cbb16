//! What the worker tells its supervisor (one JSON line on standard input) and hears back (JSON lines on standard output).

use firesteel_common::Secret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The descriptor on which the payload finds its launch document.
pub const LAUNCH_FD: i32 = 3;
/// The descriptor to which an executor writes `HOST:PORT\n` once it listens.
pub const READY_FD: i32 = 4;

/// Single bytes that the worker sends after the [`Spec`]. The end of the pipe means that the worker is gone.
pub mod command {
    /// SIGTERM to the leader; SIGKILL to everything after the grace period.
    pub const TERMINATE: u8 = b'T';
    /// SIGKILL to everything, now.
    pub const KILL: u8 = b'K';
}

/// A payload and what it gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// The program (an absolute path) and its arguments. No secrets: anyone can read them in `ps`.
    pub argv: Vec<String>,
    /// The whole environment of the payload.
    pub env: BTreeMap<String, String>,
    /// Working directory; removed at the end. Must exist.
    pub scratch_dir: PathBuf,
    pub stdout: PathBuf,
    pub stderr: PathBuf,
    /// The launch document. Secret, because it holds the application's token.
    pub launch: Secret,
    /// Whether the payload gets [`READY_FD`].
    pub ready: bool,
    /// Soft and hard limit of open descriptors, as far as the supervisor's own hard limit allows.
    pub open_files_max: u64,
    pub grace_ms: u64,
    /// Held shared while anything of the payload may live: a restarted worker waits for it before it touches the directories.
    pub lock: PathBuf,
}

/// What the supervisor tells, in this order: `started`, `ready` (executors), `ended`; or `launch_failed` alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    Started {
        pid: u32,
    },
    Ready {
        address: String,
    },
    LaunchFailed {
        reason: String,
    },
    /// Nothing of the payload runs any more and its scratch directory is gone.
    Ended(End),
}

/// How the payload's leader ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    ExitCode(i32),
    Signal(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_as_documented() {
        for (report, json) in [
            (Report::Started { pid: 7 }, r#"{"started":{"pid":7}}"#),
            (Report::Ready { address: "h:1".into() }, r#"{"ready":{"address":"h:1"}}"#),
            (Report::LaunchFailed { reason: "x".into() }, r#"{"launch_failed":{"reason":"x"}}"#),
            (Report::Ended(End::ExitCode(3)), r#"{"ended":{"exit_code":3}}"#),
            (Report::Ended(End::Signal(9)), r#"{"ended":{"signal":9}}"#),
        ] {
            assert_eq!(serde_json::to_string(&report).unwrap(), json);
            assert_eq!(serde_json::from_str::<Report>(json).unwrap(), report);
        }
    }
}
