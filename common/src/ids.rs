//! Identifiers. Each is safe as a path component and as a word in a command line.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A string that is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {kind}: expected {expected}")]
pub struct InvalidId {
    value: String,
    kind: &'static str,
    expected: &'static str,
}

/// Lower-case letters, digits, `-`, `.` and `_`, not starting with a dot, at most 128 bytes: no separator, no traversal.
fn is_path_safe(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && !text.starts_with('.')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_'))
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                if value.starts_with($prefix) && is_path_safe(&value) {
                    Ok(Self(value))
                } else {
                    Err(InvalidId { value, kind: $kind, expected: $expected })
                }
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

string_id!(
    /// `app-20261121074500-0001`: the time of submission (UTC) and a counter that never repeats within a cluster.
    ApplicationId,
    "app-",
    "an application id",
    "something like app-20261121074500-0001"
);
string_id!(
    /// `worker-…`: chosen by the worker when its work directory is created, and kept there.
    WorkerId,
    "worker-",
    "a worker id",
    "something like worker-20261121074500-127.0.0.1-7079"
);

impl ApplicationId {
    /// Builds the id from the submission time (milliseconds since 1970, UTC) and the cluster's counter.
    pub fn new(submitted_ms: u64, number: u64) -> Self {
        Self(format!("app-{}-{number:04}", compact_utc(submitted_ms)))
    }
}

impl WorkerId {
    /// Builds an id from the time of creation (milliseconds since 1970, UTC) and a distinguishing suffix
    /// (host and port, or random text); characters that are not safe in a path become `-`.
    pub fn new(created_ms: u64, suffix: &str) -> Self {
        let safe: String = suffix
            .to_ascii_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
            .take(80)
            .collect();
        Self(format!("worker-{}-{safe}", compact_utc(created_ms)))
    }
}

/// `YYYYMMDDhhmmss` in UTC, by the proleptic Gregorian calendar (days-to-civil after H. Hinnant).
fn compact_utc(ms: u64) -> String {
    let secs = ms / 1000;
    let (days, rest) = ((secs / 86_400) as i64, secs % 86_400);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// An executor: its application and a number that is never used twice within it. A replacement gets a new number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExecutorId {
    pub application: ApplicationId,
    pub number: u32,
}

impl fmt::Display for ExecutorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/executor-{}", self.application, self.number)
    }
}

/// A process that a worker launches for an application. Launches are identified by this id alone:
/// a driver's `attempt` and an executor's `number` grow with every launch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProcessId {
    Driver { application: ApplicationId, attempt: u32 },
    Executor(ExecutorId),
}

impl ProcessId {
    pub fn application(&self) -> &ApplicationId {
        match self {
            Self::Driver { application, .. } => application,
            Self::Executor(id) => &id.application,
        }
    }

    /// The process's name within its application, `driver-0` or `executor-3`: a safe path component.
    pub fn name(&self) -> String {
        match self {
            Self::Driver { attempt, .. } => format!("driver-{attempt}"),
            Self::Executor(id) => format!("executor-{}", id.number),
        }
    }

    /// The reverse of [`ProcessId::name`].
    pub fn from_name(application: ApplicationId, name: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId {
            value: name.to_owned(),
            kind: "a process name",
            expected: "driver-N or executor-N",
        };
        let (kind, number) = name.split_once('-').ok_or_else(invalid)?;
        let number: u32 = number.parse().map_err(|_| invalid())?;
        match kind {
            "driver" => Ok(Self::Driver { application, attempt: number }),
            "executor" => Ok(Self::Executor(ExecutorId { application, number })),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.application(), self.name())
    }
}

/// The leader's Raft term, stamped on every master → worker command; a worker rejects anything older than it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn application_ids_carry_the_utc_date() {
        let id = ApplicationId::new(1_795_247_100_000, 7);
        assert_eq!(id.as_str(), "app-20261121074500-0007");
        assert_eq!(ApplicationId::new(951_782_400_000, 1).as_str(), "app-20000229000000-0001");
        assert_eq!(ApplicationId::new(0, 12_345).as_str(), "app-19700101000000-12345");
    }

    #[test]
    fn ids_that_could_leave_a_directory_are_refused() {
        for bad in ["", "app", "app-../x", "app-a/b", "app-A", "worker-1", "app-\0", "app-é"] {
            assert!(bad.parse::<ApplicationId>().is_err(), "{bad:?}");
        }
        assert!("app-1".parse::<ApplicationId>().is_ok());
        assert_eq!(WorkerId::new(0, "Host:7/../x").as_str(), "worker-19700101000000-host-7-..-x");
    }

    #[test]
    fn process_names_round_trip() {
        let app: ApplicationId = "app-1".parse().unwrap();
        for name in ["driver-0", "executor-12"] {
            assert_eq!(ProcessId::from_name(app.clone(), name).unwrap().name(), name);
        }
        for bad in ["driver", "driver-", "executor--1", "x-1", "executor-99999999999"] {
            assert!(ProcessId::from_name(app.clone(), bad).is_err(), "{bad}");
        }
    }
}
