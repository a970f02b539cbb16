//! What the leader knows without writing it down: heartbeats, usage, progress, who is connected.
//!
//! It is gone with the process; workers and drivers tell it again when they attach to the next leader.

use firesteel_common::{ApplicationId, WorkerId};
use firesteel_proto::v1;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Progress of one application; the newest report replaces the one before. `None` until the first.
pub type ProgressReceiver = watch::Receiver<Option<Arc<v1::Progress>>>;

/// Shared soft state. Cloning shares it.
#[derive(Clone, Default)]
pub struct Soft {
    inner: Arc<Mutex<Inner>>,
    /// Something happened that moves a deadline nearer.
    deadlines: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    next_session: u64,
    workers: HashMap<WorkerId, WorkerEntry>,
    drivers: HashMap<ApplicationId, DriverEntry>,
}

struct WorkerEntry {
    session: u64,
    incarnation: u64,
    attached: bool,
    last_heartbeat: Instant,
    usage: Usage,
    /// Ends the session's streams when another takes its place.
    replaced: CancellationToken,
    /// Counts heartbeats and detachments, for those who wait for a sign of life.
    signs: watch::Sender<u64>,
}

struct DriverEntry {
    attached: u32,
    /// When the last stream ended; `None` while one is open or none ever was.
    gone_since: Option<Instant>,
    progress: watch::Sender<Option<Arc<v1::Progress>>>,
}

/// A worker's machine, as of its last heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Percent of the whole machine, 0 to 100.
    pub cpu_percent: f32,
    pub memory_used_mib: u64,
}

/// What is known of a worker beyond the replicated state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerSigns {
    pub incarnation: u64,
    /// Whether its stream is open.
    pub attached: bool,
    pub last_heartbeat: Instant,
    pub usage: Usage,
}

/// What is known of an application's driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverSigns {
    NeverAttached,
    Attached,
    GoneSince(Instant),
}

/// One worker stream's place in the soft state.
#[derive(Debug, Clone)]
pub struct WorkerSession {
    id: WorkerId,
    number: u64,
    /// Cancelled when the same worker has attached anew.
    pub replaced: CancellationToken,
}

impl Soft {
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every section below leaves the maps whole, so a panic elsewhere does not spoil them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a deadline may have moved nearer.
    pub async fn deadline_changed(&self) {
        self.deadlines.notified().await;
    }

    pub fn worker(&self, id: &WorkerId) -> Option<WorkerSigns> {
        self.lock().workers.get(id).map(|w| WorkerSigns {
            incarnation: w.incarnation,
            attached: w.attached,
            last_heartbeat: w.last_heartbeat,
            usage: w.usage,
        })
    }

    /// Takes the worker's place; the session that held it ends.
    pub fn attach_worker(&self, id: &WorkerId, incarnation: u64, now: Instant) -> WorkerSession {
        let mut inner = self.lock();
        inner.next_session += 1;
        let session = inner.next_session;
        let replaced = CancellationToken::new();
        let entry = WorkerEntry {
            session,
            incarnation,
            attached: true,
            last_heartbeat: now,
            usage: Usage::default(),
            replaced: replaced.clone(),
            signs: watch::Sender::new(0),
        };
        if let Some(old) = inner.workers.insert(id.clone(), entry) {
            old.replaced.cancel();
        }
        WorkerSession { id: id.clone(), number: session, replaced }
    }

    pub fn heartbeat(&self, session: &WorkerSession, usage: Usage, now: Instant) {
        let mut inner = self.lock();
        if let Some(worker) = inner.workers.get_mut(&session.id)
            && worker.session == session.number
        {
            worker.last_heartbeat = now;
            worker.usage = usage;
            worker.signs.send_modify(|n| *n += 1);
        }
    }

    pub fn detach_worker(&self, session: &WorkerSession) {
        let mut inner = self.lock();
        if let Some(worker) = inner.workers.get_mut(&session.id)
            && worker.session == session.number
        {
            worker.attached = false;
            worker.signs.send_modify(|n| *n += 1);
        }
    }

    /// If another incarnation of this worker is attached: a receiver that changes with its next sign of life, or when
    /// it detaches.
    pub fn rival(&self, id: &WorkerId, incarnation: u64) -> Option<watch::Receiver<u64>> {
        let inner = self.lock();
        let worker = inner.workers.get(id)?;
        (worker.attached && worker.incarnation != incarnation).then(|| worker.signs.subscribe())
    }

    pub fn attach_driver(&self, id: &ApplicationId) {
        let mut inner = self.lock();
        let driver = inner.driver(id);
        driver.attached += 1;
        driver.gone_since = None;
    }

    pub fn detach_driver(&self, id: &ApplicationId, now: Instant) {
        let mut inner = self.lock();
        let driver = inner.driver(id);
        driver.attached = driver.attached.saturating_sub(1);
        if driver.attached == 0 {
            driver.gone_since = Some(now);
        }
        drop(inner);
        self.deadlines.notify_one();
    }

    pub fn driver(&self, id: &ApplicationId) -> DriverSigns {
        match self.lock().drivers.get(id) {
            Some(driver) if driver.attached > 0 => DriverSigns::Attached,
            Some(DriverEntry { gone_since: Some(since), .. }) => DriverSigns::GoneSince(*since),
            _ => DriverSigns::NeverAttached,
        }
    }

    pub fn set_progress(&self, id: &ApplicationId, progress: v1::Progress) {
        self.lock().driver(id).progress.send_replace(Some(Arc::new(progress)));
    }

    /// The application's progress now and as it changes.
    pub fn progress(&self, id: &ApplicationId) -> ProgressReceiver {
        self.lock().driver(id).progress.subscribe()
    }

    /// The newest report, if there is one.
    pub fn latest_progress(&self, id: &ApplicationId) -> Option<Arc<v1::Progress>> {
        self.lock().drivers.get(id).and_then(|driver| driver.progress.borrow().clone())
    }

    /// Forgets the applications and workers that the replicated state has forgotten.
    pub fn retain(
        &self,
        mut application: impl FnMut(&ApplicationId) -> bool,
        mut worker: impl FnMut(&WorkerId) -> bool,
    ) {
        let mut inner = self.lock();
        inner.drivers.retain(|id, driver| driver.attached > 0 || application(id));
        inner.workers.retain(|id, entry| entry.attached || worker(id));
    }
}

impl Inner {
    fn driver(&mut self, id: &ApplicationId) -> &mut DriverEntry {
        self.drivers.entry(id.clone()).or_insert_with(|| DriverEntry {
            attached: 0,
            gone_since: None,
            progress: watch::Sender::new(None),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn worker() -> WorkerId {
        "worker-1".parse().unwrap()
    }

    #[test]
    fn a_new_session_replaces_the_old_one_and_the_old_one_no_longer_counts() {
        let soft = Soft::new();
        let start = Instant::now();
        let old = soft.attach_worker(&worker(), 1, start);
        let new = soft.attach_worker(&worker(), 1, start);
        assert!(old.replaced.is_cancelled() && !new.replaced.is_cancelled());
        soft.heartbeat(&old, Usage::default(), start + Duration::from_secs(9));
        soft.detach_worker(&old);
        let signs = soft.worker(&worker()).unwrap();
        assert!(signs.attached);
        assert_eq!(signs.last_heartbeat, start);
    }

    #[test]
    fn a_rival_is_another_incarnation_that_is_attached() {
        let soft = Soft::new();
        assert!(soft.rival(&worker(), 1).is_none());
        let session = soft.attach_worker(&worker(), 1, Instant::now());
        assert!(soft.rival(&worker(), 1).is_none(), "the same life reconnects");
        let signs = soft.rival(&worker(), 2).expect("a rival");
        assert!(!signs.has_changed().unwrap());
        soft.heartbeat(&session, Usage::default(), Instant::now());
        assert!(signs.has_changed().unwrap());
        soft.detach_worker(&session);
        assert!(soft.rival(&worker(), 2).is_none());
    }

    #[test]
    fn a_driver_is_gone_when_its_last_stream_is() {
        let soft = Soft::new();
        let app: ApplicationId = "app-1".parse().unwrap();
        assert_eq!(soft.driver(&app), DriverSigns::NeverAttached);
        soft.attach_driver(&app);
        soft.attach_driver(&app);
        let now = Instant::now();
        soft.detach_driver(&app, now);
        assert_eq!(soft.driver(&app), DriverSigns::Attached);
        soft.detach_driver(&app, now);
        assert_eq!(soft.driver(&app), DriverSigns::GoneSince(now));
        soft.attach_driver(&app);
        assert_eq!(soft.driver(&app), DriverSigns::Attached);
    }

    #[test]
    fn what_the_state_forgets_is_forgotten_here() {
        let soft = Soft::new();
        let app: ApplicationId = "app-1".parse().unwrap();
        let mut progress = soft.progress(&app);
        soft.set_progress(&app, v1::Progress { at_ms: 7, ..Default::default() });
        assert_eq!(progress.borrow_and_update().as_ref().unwrap().at_ms, 7);
        soft.retain(|_| true, |_| true);
        assert!(soft.latest_progress(&app).is_some());
        soft.retain(|_| false, |_| false);
        assert!(soft.latest_progress(&app).is_none());
    }
}
