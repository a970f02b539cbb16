//! The loop that owns the state of this worker: assignments and events in, launches, stops and snapshots out.

use crate::boottime::{self, Alarm};
use crate::launcher::{Launcher, Stop};
use crate::lease::{Attachment, Lease};
use crate::processes::{Action, Assignment, Event, Process, Processes, StaleEpoch};
use crate::retention;
use crate::shuffle::store::Store;
use crate::workdir::WorkDir;
use firesteel_common::{ApplicationId, Epoch, ProcessEnd, ProcessId, Resources};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};

/// Old logs go when an application ends; this catches those that only grow old.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);
/// How many ended processes the worker's page shows.
const FINISHED_SHOWN: usize = 100;

/// What everyone else may know: a picture after every change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub epoch: Epoch,
    /// What the masters are told: live processes, and ended ones that they still ask for.
    pub processes: Vec<Process>,
    /// Ended ones that they no longer ask for, newest first.
    pub finished: Vec<Process>,
    pub launches_total: u64,
    pub launch_failures_total: u64,
}

impl Snapshot {
    pub fn is_live(&self, id: &ProcessId) -> bool {
        self.processes.iter().any(|p| p.id == *id && p.is_live())
    }

    pub fn used(&self) -> Resources {
        Resources::total(self.processes.iter().filter(|p| p.is_live()).map(|p| p.resources))
    }
}

enum Request {
    Assign { attachment: Attachment, assignment: Assignment, reply: oneshot::Sender<Result<(), StaleEpoch>> },
    Drain { reply: oneshot::Sender<()> },
    KillAll,
}

/// How the connection and the daemon talk to the loop.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    lease: SharedLease,
}

/// Written by the connection and by the loop, read by the page.
#[derive(Debug, Clone, Default)]
struct SharedLease(Arc<Mutex<Lease>>);

impl SharedLease {
    fn lock(&self) -> MutexGuard<'_, Lease> {
        // Each step of it leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Starts a new count of reports.
    pub fn attach(&self) -> Attachment {
        self.lease.lock().new_attachment()
    }

    /// To be called before the report goes out.
    pub fn report_sent(&self, attachment: Attachment, sequence: u64) {
        self.lease.lock().sent(attachment, sequence, boottime::now());
    }

    pub fn lease_in_words(&self) -> String {
        self.lease.lock().in_words(boottime::now())
    }

    /// Zero when it has run out; `None` when there was none.
    pub fn lease_left(&self) -> Option<Duration> {
        self.lease.lock().ends_at().map(|end| end.saturating_sub(boottime::now()))
    }

    /// Answers when the assignment, which came over `attachment`, has been taken in.
    pub async fn assign(&self, attachment: Attachment, assignment: Assignment) -> Result<(), StaleEpoch> {
        let (reply, answer) = oneshot::channel();
        // The loop outlives every handle that asks; were it gone, the daemon would be ending.
        let _ = self.requests.send(Request::Assign { attachment, assignment, reply }).await;
        answer.await.unwrap_or(Ok(()))
    }

    /// Stops everything gracefully and answers when nothing runs any more. Nothing is launched from then on.
    pub async fn drain(&self) {
        let (reply, answer) = oneshot::channel();
        let _ = self.requests.send(Request::Drain { reply }).await;
        let _ = answer.await;
    }

    /// Ends the grace of a [`Handle::drain`].
    pub async fn kill_all(&self) {
        let _ = self.requests.send(Request::KillAll).await;
    }

    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }
}

/// The loop's state.
#[derive(Debug)]
pub struct Node {
    processes: Processes,
    launcher: Launcher,
    lease: SharedLease,
    /// Rings at the end of the lease.
    alarm: Alarm,
    workdir: Arc<WorkDir>,
    limits: retention::Limits,
    shuffle: Store,
    snapshots: watch::Sender<Arc<Snapshot>>,
    requests: mpsc::Receiver<Request>,
    events: mpsc::Receiver<(ProcessId, Event)>,
    drained: Vec<oneshot::Sender<()>>,
    launches_total: u64,
    launch_failures_total: u64,
}

impl Node {
    /// `launcher` builds the launcher around the channel of its events.
    pub fn new(
        workdir: Arc<WorkDir>,
        processes: Processes,
        alarm: Alarm,
        limits: retention::Limits,
        shuffle: Store,
        launcher: impl FnOnce(mpsc::Sender<(ProcessId, Event)>) -> Launcher,
    ) -> (Self, Handle) {
        let (events_in, events) = mpsc::channel(64);
        let (requests_in, requests) = mpsc::channel(16);
        let (snapshots, snapshots_out) = watch::channel(Arc::default());
        let lease = SharedLease::default();
        let node = Self {
            processes,
            launcher: launcher(events_in),
            lease: lease.clone(),
            alarm,
            workdir,
            limits,
            shuffle,
            snapshots,
            requests,
            events,
            drained: Vec::new(),
            launches_total: 0,
            launch_failures_total: 0,
        };
        (node, Handle { requests: requests_in, snapshots: snapshots_out, lease })
    }

    /// Runs until every handle is gone.
    pub async fn run(mut self) {
        let mut retention = tokio::time::interval(RETENTION_INTERVAL);
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request),
                    None => return,
                },
                Some((id, event)) = self.events.recv() => self.observe(&id, event),
                () = self.alarm.rings() => self.lease_may_be_over(),
                _ = retention.tick() => { self.clean_logs(); continue }
            }
            self.publish();
            if !self.processes.any_live() {
                for reply in self.drained.drain(..) {
                    let _ = reply.send(());
                }
            }
        }
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Assign { attachment, assignment, reply } => {
                let _ = reply.send(self.assign(attachment, assignment));
            }
            Request::Drain { reply } => {
                let actions = self.processes.drain(now_ms());
                self.perform(actions);
                self.drained.push(reply);
            }
            Request::KillAll => self.launcher.stop_all(Stop::Now),
        }
    }

    fn assign(&mut self, attachment: Attachment, assignment: Assignment) -> Result<(), StaleEpoch> {
        let epoch = assignment.epoch;
        self.processes.check_epoch(epoch)?;
        if epoch > self.processes.epoch() {
            // Before anything of it is done: a restart must not obey an older leader again.
            if let Err(error) = self.workdir.store_epoch(epoch) {
                tracing::error!(%epoch, "cannot store the epoch, a restart may forget it: {error}");
            }
        }
        let now = boottime::now();
        let (lapsed, is_live, ends_at, reason) = {
            let mut lease = self.lease.lock();
            let reason = lease.end_reason(now);
            let lapsed = lease.heard(attachment, assignment.heard, assignment.lease);
            (lapsed, lease.is_live(now), lease.ends_at(), reason)
        };
        if lapsed {
            self.expire(&reason);
        }
        if is_live {
            self.set_alarm(ends_at);
        }
        let tenants = assignment.shuffle_tenants.clone();
        let actions = self.processes.assign(assignment, is_live, now_ms())?;
        self.shuffle.assign(tenants);
        self.perform(actions);
        Ok(())
    }

    fn set_alarm(&mut self, at: Option<Duration>) {
        if let Err(error) = self.alarm.set(at) {
            tracing::error!("cannot set the timer for the end of the lease: {error}");
        }
    }

    /// The alarm was set for the lease as it was then.
    fn lease_may_be_over(&mut self) {
        let now = boottime::now();
        let (is_live, ends_at, reason) = {
            let lease = self.lease.lock();
            (lease.is_live(now), lease.ends_at(), lease.end_reason(now))
        };
        if is_live {
            self.set_alarm(ends_at);
        } else {
            self.expire(&reason);
        }
    }

    fn expire(&mut self, reason: &str) {
        let actions = self.processes.expire(reason);
        if !actions.is_empty() {
            tracing::warn!(processes = actions.len(), "{reason}; what may be started elsewhere is killed");
        }
        self.perform(actions);
    }

    fn observe(&mut self, id: &ProcessId, event: Event) {
        match &event {
            Event::Started { pid } => tracing::info!(process = %id, pid, "started"),
            Event::Ready { address } => tracing::info!(process = %id, address, "ready"),
            Event::Ended { end } => {
                if let ProcessEnd::LaunchFailed { .. } = end {
                    self.launch_failures_total += 1;
                    tracing::warn!(process = %id, "{end}");
                } else {
                    tracing::info!(process = %id, "{end}");
                }
                self.launcher.ended(id);
                retention::touch(&self.workdir.application_logs(id.application()));
                if let ProcessId::Executor(executor) = id {
                    self.shuffle.executor_ended(executor);
                }
            }
        }
        let actions = self.processes.observe(id, event, now_ms());
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut forgotten = false;
        for action in actions {
            match action {
                Action::Launch(launch) => {
                    self.launches_total += 1;
                    if let ProcessId::Executor(executor) = &launch.id {
                        self.shuffle.expect(&executor.application);
                    }
                    self.launcher.launch(*launch);
                }
                Action::Kill(id) => {
                    tracing::info!(process = %id, "killing");
                    self.launcher.stop(&id, Stop::Now);
                }
                Action::Ignore { id, why } => {
                    tracing::warn!(process = %id, "a launch is ignored: {why}");
                }
                Action::Stop(id) => {
                    tracing::info!(process = %id, "stopping");
                    self.launcher.stop(&id, Stop::Gracefully);
                }
                Action::Forget(_) => forgotten = true,
            }
        }
        if forgotten {
            self.clean_logs();
        }
        let processes = &self.processes;
        self.shuffle.tidy(|application| processes.may_write(application));
    }

    fn clean_logs(&self) {
        let live: BTreeSet<ApplicationId> =
            self.processes.known().map(|p| p.id.application().clone()).collect();
        let (logs, limits) = (self.workdir.logs_root(), self.limits);
        tokio::task::spawn_blocking(move || match retention::clean(&logs, &live, limits) {
            Ok(0) => {}
            Ok(n) => tracing::info!("removed the logs of {n} old applications"),
            Err(error) => tracing::warn!("cannot remove old logs: {error}"),
        });
    }

    /// Whoever waits for a change is woken by changes only: a report that answers an assignment that answers a report would
    /// go round without end.
    fn publish(&self) {
        let new = Snapshot {
            epoch: self.processes.epoch(),
            processes: self.processes.known().cloned().collect(),
            finished: self.processes.forgotten().take(FINISHED_SHOWN).cloned().collect(),
            launches_total: self.launches_total,
            launch_failures_total: self.launch_failures_total,
        };
        self.snapshots.send_if_modified(|old| {
            let changed = **old != new;
            if changed {
                *old = Arc::new(new);
            }
            changed
        });
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
impl Node {
    /// A node in a directory that is gone already: for tests that never launch anything.
    pub(crate) fn for_tests() -> (Self, Handle) {
        let dir = tempfile::tempdir().unwrap();
        let workdir = Arc::new(WorkDir::open(dir.path()).unwrap());
        let url = firesteel_common::MasterUrl::new("127.0.0.1", 1);
        let context = Arc::new(crate::launcher::Context {
            worker: firesteel_common::WorkerId::new(0, "test"),
            workdir: workdir.clone(),
            supervisor: "/nonexistent".into(),
            engine: "/nonexistent".into(),
            host: "127.0.0.1".into(),
            master_url: url.clone(),
            masters: firesteel_proto::masters::Masters::new(&url),
            environment: Default::default(),
            ready_timeout: Duration::from_secs(1),
            orphans: Default::default(),
            shuffle: crate::shuffle::Limits::new(None, None, 0),
        });
        let limits = retention::Limits::default();
        let alarm = Alarm::new().unwrap();
        let shuffle = Store::open(workdir.shuffle_root(), true).unwrap();
        Self::new(workdir, Processes::default(), alarm, limits, shuffle, |events| {
            Launcher::new(context, events)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_assignment_that_changes_nothing_wakes_nobody() {
        let (node, handle) = Node::for_tests();
        tokio::spawn(node.run());
        let attachment = handle.attach();
        let assign = || {
            let (epoch, heartbeat) = (Epoch(1), Duration::from_secs(1));
            let nothing = Assignment {
                epoch,
                processes: vec![],
                heartbeat,
                heard: 0,
                lease: Duration::ZERO,
                shuffle_tenants: Default::default(),
            };
            handle.assign(attachment, nothing)
        };
        let mut snapshots = handle.snapshots();
        // What an assignment changed has been published when the next one is answered.
        assign().await.unwrap();
        assign().await.unwrap();
        assert_eq!(snapshots.borrow_and_update().epoch, Epoch(1));
        assign().await.unwrap();
        assign().await.unwrap();
        assert!(!snapshots.has_changed().unwrap());
    }
}
