//! How much the applications keep on the disk. For people: what enforces the quota is the executors' own counting.

use super::TEMPORARY_PREFIX;
use super::output::open_application;
use super::remover::each_query;
use firesteel_common::ApplicationId;
use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between two measurements, and at least so many times as long as the last one took.
const INTERVAL: Duration = Duration::from_secs(5);
const PAUSE_FACTOR: u32 = 50;

/// What one application keeps here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Lengths of all files, also of those that are being written.
    pub bytes: u64,
    pub outputs: u64,
    pub unfinished: u64,
}

/// One look at the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub applications: BTreeMap<ApplicationId, Usage>,
    /// Of the disk; `None` when the system does not say.
    pub free_bytes: Option<u64>,
}

/// Measures from time to time until nobody listens any more.
pub async fn watch(root: PathBuf, reports: watch::Sender<Arc<Report>>) {
    loop {
        let (root, began) = (root.clone(), Instant::now());
        if let Ok(report) = tokio::task::spawn_blocking(move || measure(&root)).await {
            reports.send_replace(Arc::new(report));
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL.max(began.elapsed() * PAUSE_FACTOR)) => {}
            () = reports.closed() => return,
        }
    }
}

/// Blocks. What cannot be looked at (any more) counts for nothing.
pub fn measure(root: &Path) -> Report {
    let mut applications = BTreeMap::new();
    let names = std::fs::read_dir(root).into_iter().flatten().flatten();
    for id in names.filter_map(|entry| entry.file_name().to_str()?.parse::<ApplicationId>().ok()) {
        if let Ok(usage) = measure_application(root, &id) {
            applications.insert(id, usage);
        }
    }
    Report { applications, free_bytes: disk(root).map(|disk| disk.free_bytes) }
}

fn measure_application(root: &Path, id: &ApplicationId) -> rustix::io::Result<Usage> {
    let mut usage = Usage::default();
    each_query(&open_application(root, id)?, |query| {
        for entry in Dir::read_from(query.as_fd())? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            match rustix::fs::statat(&query, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => usage.bytes += u64::try_from(stat.st_size).unwrap_or(0),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            }
            match name.starts_with(TEMPORARY_PREFIX.as_bytes()) {
                true => usage.unfinished += 1,
                false => usage.outputs += 1,
            }
        }
        Ok(())
    })?;
    Ok(usage)
}

/// The disk that `path` is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// `None` when the system does not say.
pub fn disk(path: &Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Disk {
        total_bytes: stat.f_blocks.checked_mul(stat.f_frsize)?,
        free_bytes: stat.f_bavail.checked_mul(stat.f_frsize)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_summed_by_application_and_links_count_for_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let query = dir.path().join("app-1/q");
        std::fs::create_dir_all(&query).unwrap();
        std::fs::create_dir_all(dir.path().join("app-2")).unwrap();
        std::fs::create_dir_all(dir.path().join(".removed-app-3-1/q")).unwrap();
        for (name, bytes) in [("1-0-0.shuffle", 1000), ("1-1-0.shuffle", 500), (".tmp-3-x", 7)] {
            std::fs::write(query.join(name), vec![0; bytes]).unwrap();
        }
        std::os::unix::fs::symlink("/", dir.path().join("app-1/root")).unwrap();
        let report = measure(dir.path());
        let of = |id: &str| report.applications.get(&id.parse().unwrap()).copied();
        assert_eq!(of("app-1"), Some(Usage { bytes: 1507, outputs: 2, unfinished: 1 }));
        assert_eq!(of("app-2"), Some(Usage::default()));
        assert_eq!(report.applications.len(), 2);
        let disk = disk(dir.path()).unwrap();
        assert!(disk.free_bytes <= disk.total_bytes && report.free_bytes.is_some());
        assert_eq!(measure(&dir.path().join("none")).applications.len(), 0);
    }
}
