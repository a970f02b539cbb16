//! How long logs stay.

use firesteel_common::ApplicationId;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Limits for the logs of applications that run nothing here any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub applications_max: usize,
    pub age_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { applications_max: 200, age_max: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// Which applications' logs have to go. `kept`: every application with logs and the time of its last launch or end.
pub fn expired(
    mut kept: Vec<(ApplicationId, SystemTime)>,
    live: &BTreeSet<ApplicationId>,
    limits: Limits,
    now: SystemTime,
) -> Vec<ApplicationId> {
    kept.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| b.0.cmp(&a.0)));
    let mut place = 0;
    kept.into_iter()
        .filter(|(id, used)| {
            place += 1;
            let age = now.duration_since(*used).unwrap_or_default();
            !live.contains(id) && (place > limits.applications_max || age > limits.age_max)
        })
        .map(|(id, _)| id)
        .collect()
}

/// Removes what has expired. Directories that are not named like an application are left alone.
pub fn clean(logs: &Path, live: &BTreeSet<ApplicationId>, limits: Limits) -> io::Result<usize> {
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(logs)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<ApplicationId>().ok()) else {
            continue;
        };
        kept.push((id, entry.metadata()?.modified()?));
    }
    let over = expired(kept, live, limits, SystemTime::now());
    for id in &over {
        crate::scratch::remove_tree(&logs.join(id.as_str()))?;
    }
    Ok(over.len())
}

/// Restarts the clock of an application's logs: called when one of its processes ends, because nothing else in the
/// directory changes then.
pub fn touch(application_logs: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    let _ = rustix::fs::utimensat(CWD, application_logs, &times, AtFlags::SYMLINK_NOFOLLOW);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(n: u32) -> ApplicationId {
        format!("app-{n}").parse().unwrap()
    }
    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn the_oldest_go_first_and_the_living_stay() {
        let limits = Limits { applications_max: 2, age_max: Duration::from_secs(100) };
        let kept =
            vec![(app(1), at(950)), (app(2), at(990)), (app(3), at(980)), (app(4), at(10)), (app(5), at(1))];
        assert_eq!(expired(kept.clone(), &[app(5)].into(), limits, at(1000)), [app(1), app(4)]);
        let roomy = Limits { applications_max: 10, ..limits };
        assert_eq!(expired(kept.clone(), &BTreeSet::new(), roomy, at(1000)), [app(4), app(5)]);
        assert!(expired(kept, &BTreeSet::new(), roomy, at(0)).is_empty(), "a clock set back removes nothing");
    }

    #[test]
    fn only_application_directories_are_touched() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["app-1", "app-2", "lost+found"] {
            std::fs::create_dir_all(dir.path().join(name).join("executor-1")).unwrap();
        }
        let limits = Limits { applications_max: 0, age_max: Duration::MAX };
        assert_eq!(clean(dir.path(), &[app(2)].into(), limits).unwrap(), 1);
        assert!(!dir.path().join("app-1").exists());
        assert!(dir.path().join("app-2").exists() && dir.path().join("lost+found").exists());
        touch(&dir.path().join("app-2"));
    }
}
