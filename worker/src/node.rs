//! The loop that owns the state of this worker: assignments and events in, launches, stops and snapshots out.

use crate::launcher::{Launcher, Stop};
use crate::processes::{Action, Assignment, Event, Process, Processes, StaleEpoch};
use crate::retention;
use crate::workdir::WorkDir;
use firesteel_common::{ApplicationId, Epoch, ProcessEnd, ProcessId, Resources};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;

/// Old logs go when an application ends; this catches those that only grow old.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);
/// How many ended processes the worker's page shows.
const FINISHED_SHOWN: usize = 100;

/// What everyone else may know: a picture after every change.
#[derive(Debug, Clone, Default)]
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
    Assign { assignment: Assignment, master: Channel, reply: oneshot::Sender<Result<(), StaleEpoch>> },
    Drain { reply: oneshot::Sender<()> },
    KillAll,
}

/// How the connection and the daemon talk to the loop.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Handle {
    /// Answers when the assignment has been taken in; `master` is where its scripts are.
    pub async fn assign(&self, assignment: Assignment, master: Channel) -> Result<(), StaleEpoch> {
        let (reply, answer) = oneshot::channel();
        // The loop outlives every handle that asks; were it gone, the daemon would be ending.
        let _ = self.requests.send(Request::Assign { assignment, master, reply }).await;
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
    workdir: Arc<WorkDir>,
    limits: retention::Limits,
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
        epoch: Epoch,
        limits: retention::Limits,
        launcher: impl FnOnce(mpsc::Sender<(ProcessId, Event)>) -> Launcher,
    ) -> (Self, Handle) {
        let (events_in, events) = mpsc::channel(64);
        let (requests_in, requests) = mpsc::channel(16);
        let (snapshots, snapshots_out) = watch::channel(Arc::default());
        let node = Self {
            processes: Processes::new(epoch),
            launcher: launcher(events_in),
            workdir,
            limits,
            snapshots,
            requests,
            events,
            drained: Vec::new(),
            launches_total: 0,
            launch_failures_total: 0,
        };
        (node, Handle { requests: requests_in, snapshots: snapshots_out })
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
            Request::Assign { assignment, master, reply } => {
                let _ = reply.send(self.assign(assignment, master));
            }
            Request::Drain { reply } => {
                let actions = self.processes.drain();
                self.perform(actions, None);
                self.drained.push(reply);
            }
            Request::KillAll => self.launcher.stop_all(Stop::Now),
        }
    }

    fn assign(&mut self, assignment: Assignment, master: Channel) -> Result<(), StaleEpoch> {
        let before = self.processes.epoch();
        let epoch = assignment.epoch;
        if epoch > before {
            // Before anything of it is done: a restart must not obey an older leader again.
            if let Err(error) = self.workdir.store_epoch(epoch) {
                tracing::error!(%epoch, "cannot store the epoch, a restart may forget it: {error}");
            }
        }
        let actions = self.processes.assign(assignment, now_ms())?;
        self.perform(actions, Some(master));
        Ok(())
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
            }
        }
        let actions = self.processes.observe(id, event, now_ms());
        self.perform(actions, None);
    }

    fn perform(&mut self, actions: Vec<Action>, master: Option<Channel>) {
        let mut forgotten = false;
        for action in actions {
            match action {
                Action::Launch(launch) => {
                    if let Some(master) = &master {
                        self.launches_total += 1;
                        self.launcher.launch(*launch, master.clone());
                    }
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

    fn publish(&self) {
        self.snapshots.send_replace(Arc::new(Snapshot {
            epoch: self.processes.epoch(),
            processes: self.processes.known().cloned().collect(),
            finished: self.processes.forgotten().take(FINISHED_SHOWN).cloned().collect(),
            launches_total: self.launches_total,
            launch_failures_total: self.launch_failures_total,
        }));
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
        let context = Arc::new(crate::launcher::Context {
            workdir: workdir.clone(),
            supervisor: "/nonexistent".into(),
            engine: "/nonexistent".into(),
            host: "127.0.0.1".into(),
            masters: "firesteel://127.0.0.1:1".parse().unwrap(),
            environment: Default::default(),
            ready_timeout: Duration::from_secs(1),
            orphans: Default::default(),
        });
        Self::new(workdir, Epoch(0), retention::Limits::default(), |events| Launcher::new(context, events))
    }
}
