//! What this worker shall run, what it runs, and what follows from the difference. No I/O, no clock.
//!
//! Assignments carry the whole desired set, so a lost, repeated or late one does no harm:
//! - desired and unknown: launch; running and not desired: stop; ended and not desired: forget;
//! - an id is launched once. A process that has ended is reported as ended for as long as it is desired, also when it had
//!   been forgotten meanwhile: ids are never used twice, so an assignment that brings one back is an old one;
//! - an epoch below the highest seen is refused whole.

use firesteel_common::{ApplicationSpec, Epoch, ExecutorState, ProcessEnd, ProcessId, Resources, Secret};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How many ended processes are remembered after the masters have stopped asking for them.
pub const FORGOTTEN_MAX: usize = 1000;

/// Everything needed to start one process.
#[derive(Debug, Clone)]
pub struct Launch {
    pub id: ProcessId,
    pub resources: Resources,
    pub token: Secret,
    /// Drivers only.
    pub spec: Option<ApplicationSpec>,
    pub conf: BTreeMap<String, String>,
}

/// The whole desired set, as of `epoch`.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub epoch: Epoch,
    pub processes: Vec<Launch>,
    pub heartbeat: Duration,
}

/// One process as this worker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub id: ProcessId,
    pub resources: Resources,
    /// The application's name, where the worker was told it (drivers).
    pub application_name: Option<String>,
    pub user: Option<String>,
    pub state: ExecutorState,
    pub pid: Option<u32>,
    /// Where a running executor listens.
    pub address: Option<String>,
    pub end: Option<ProcessEnd>,
    /// Milliseconds since 1970.
    pub launched_ms: u64,
    pub ended_ms: Option<u64>,
    desired: bool,
    stopping: bool,
}

impl Process {
    pub fn is_live(&self) -> bool {
        !self.state.is_final()
    }
}

/// What happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Started {
        pid: u32,
    },
    Ready {
        address: String,
    },
    /// Nothing of it runs any more.
    Ended {
        end: ProcessEnd,
    },
}

/// What has to be done.
#[derive(Debug, Clone)]
pub enum Action {
    Launch(Box<Launch>),
    Stop(ProcessId),
    /// It has ended and nobody asks for it any more.
    Forget(ProcessId),
}

/// An assignment from a leader that has been replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its epoch {got} is older than epoch {seen}, which this worker has seen")]
pub struct StaleEpoch {
    pub got: Epoch,
    pub seen: Epoch,
}

/// The state machine.
#[derive(Debug, Default)]
pub struct Processes {
    epoch: Epoch,
    known: BTreeMap<ProcessId, Process>,
    /// Ended and no longer desired, oldest first.
    forgotten: VecDeque<Process>,
    draining: bool,
}

impl Processes {
    /// `epoch`: the highest that any earlier run of this worker has seen.
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, ..Self::default() }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Everything to be reported to the masters.
    pub fn known(&self) -> impl Iterator<Item = &Process> {
        self.known.values()
    }

    /// Ended processes that are no longer reported, newest first.
    pub fn forgotten(&self) -> impl Iterator<Item = &Process> {
        self.forgotten.iter().rev()
    }

    pub fn any_live(&self) -> bool {
        self.known.values().any(Process::is_live)
    }

    pub fn assign(&mut self, assignment: Assignment, now_ms: u64) -> Result<Vec<Action>, StaleEpoch> {
        if assignment.epoch < self.epoch {
            return Err(StaleEpoch { got: assignment.epoch, seen: self.epoch });
        }
        self.epoch = assignment.epoch;
        let desired: BTreeSet<ProcessId> = assignment.processes.iter().map(|l| l.id.clone()).collect();
        let mut actions = Vec::new();
        // Stops first: what they free may be what the launches need.
        for process in self.known.values_mut() {
            process.desired = desired.contains(&process.id);
            if !process.desired && process.is_live() && !process.stopping {
                process.stopping = true;
                actions.push(Action::Stop(process.id.clone()));
            }
        }
        self.forget(&mut actions);
        for launch in assignment.processes {
            if self.known.contains_key(&launch.id) {
                continue;
            }
            if let Some(at) = self.forgotten.iter().position(|p| p.id == launch.id) {
                if let Some(mut process) = self.forgotten.remove(at) {
                    process.desired = true;
                    self.known.insert(launch.id, process);
                }
            } else if !self.draining {
                self.known.insert(launch.id.clone(), launching(&launch, now_ms));
                actions.push(Action::Launch(Box::new(launch)));
            }
        }
        Ok(actions)
    }

    /// Events about processes that are not known, or that come after the end, change nothing.
    pub fn observe(&mut self, id: &ProcessId, event: Event, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(process) = self.known.get_mut(id).filter(|p| p.is_live()) else { return actions };
        match event {
            Event::Started { pid } => {
                process.pid = Some(pid);
                // A driver has nothing to announce: it dials.
                if matches!(id, ProcessId::Driver { .. }) {
                    process.state = ExecutorState::Running;
                }
            }
            Event::Ready { address } => {
                process.address = Some(address);
                process.state = ExecutorState::Running;
            }
            Event::Ended { end } => {
                process.state = match (process.stopping, end.is_success()) {
                    (true, _) => ExecutorState::Killed,
                    (false, true) => ExecutorState::Exited,
                    (false, false) => ExecutorState::Failed,
                };
                process.address = None;
                process.end = Some(end);
                process.ended_ms = Some(now_ms);
            }
        }
        self.forget(&mut actions);
        actions
    }

    /// Stops everything; nothing is launched from here on.
    pub fn drain(&mut self) -> Vec<Action> {
        self.draining = true;
        let live = self.known.values_mut().filter(|p| p.is_live() && !p.stopping);
        live.map(|process| {
            process.stopping = true;
            Action::Stop(process.id.clone())
        })
        .collect()
    }

    fn forget(&mut self, actions: &mut Vec<Action>) {
        let over: Vec<ProcessId> =
            self.known.values().filter(|p| !p.desired && !p.is_live()).map(|p| p.id.clone()).collect();
        for id in over {
            if let Some(process) = self.known.remove(&id) {
                if self.forgotten.len() == FORGOTTEN_MAX {
                    self.forgotten.pop_front();
                }
                self.forgotten.push_back(process);
                actions.push(Action::Forget(id));
            }
        }
    }
}

fn launching(launch: &Launch, now_ms: u64) -> Process {
    Process {
        id: launch.id.clone(),
        resources: launch.resources,
        application_name: launch.spec.as_ref().map(|s| s.name.clone()),
        user: launch.spec.as_ref().map(|s| s.user.clone()),
        state: ExecutorState::Launching,
        pid: None,
        address: None,
        end: None,
        launched_ms: now_ms,
        ended_ms: None,
        desired: true,
        stopping: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_common::ExecutorId;

    fn executor(number: u32) -> ProcessId {
        ProcessId::Executor(ExecutorId { application: "app-1".parse().unwrap(), number })
    }
    fn driver(attempt: u32) -> ProcessId {
        ProcessId::Driver { application: "app-1".parse().unwrap(), attempt }
    }
    fn assignment(epoch: u64, ids: &[ProcessId]) -> Assignment {
        let launch = |id: &ProcessId| Launch {
            id: id.clone(),
            resources: Resources::new(1, 512),
            token: Secret::new("t"),
            spec: None,
            conf: BTreeMap::new(),
        };
        Assignment {
            epoch: Epoch(epoch),
            processes: ids.iter().map(launch).collect(),
            heartbeat: Duration::from_secs(1),
        }
    }
    fn words(actions: Vec<Action>) -> Vec<String> {
        let word = |action| match action {
            Action::Launch(l) => format!("launch {}", l.id.name()),
            Action::Stop(id) => format!("stop {}", id.name()),
            Action::Forget(id) => format!("forget {}", id.name()),
        };
        actions.into_iter().map(word).collect()
    }
    fn state(p: &Processes, id: &ProcessId) -> Option<ExecutorState> {
        p.known().find(|x| x.id == *id).map(|x| x.state)
    }
    const KILLED: Event = Event::Ended { end: ProcessEnd::Signaled { signal: 15 } };
    const FAILED: Event = Event::Ended { end: ProcessEnd::Exited { code: 1 } };

    #[test]
    fn a_process_is_launched_once_and_stopped_when_it_is_no_longer_desired() {
        let mut p = Processes::default();
        let (e, d) = (executor(1), driver(0));
        assert_eq!(
            words(p.assign(assignment(1, &[e.clone(), d.clone()]), 1).unwrap()),
            ["launch executor-1", "launch driver-0"]
        );
        assert!(p.assign(assignment(1, &[e.clone(), d.clone()]), 2).unwrap().is_empty(), "repeated");
        p.observe(&e, Event::Started { pid: 5 }, 3);
        p.observe(&d, Event::Started { pid: 6 }, 3);
        assert_eq!(state(&p, &e), Some(ExecutorState::Launching), "an executor has to say where it listens");
        assert_eq!(state(&p, &d), Some(ExecutorState::Running));
        p.observe(&e, Event::Ready { address: "h:1".into() }, 4);
        assert_eq!(state(&p, &e), Some(ExecutorState::Running));
        assert_eq!(words(p.assign(assignment(1, std::slice::from_ref(&d)), 5).unwrap()), ["stop executor-1"]);
        assert!(p.assign(assignment(1, std::slice::from_ref(&d)), 6).unwrap().is_empty(), "stopped once");
        assert_eq!(state(&p, &e), Some(ExecutorState::Running), "reported until it has really ended");
        assert_eq!(words(p.observe(&e, KILLED, 7)), ["forget executor-1"]);
        assert_eq!(state(&p, &e), None);
        let last = p.forgotten().next().unwrap();
        assert_eq!((last.state, last.ended_ms), (ExecutorState::Killed, Some(7)));
    }

    #[test]
    fn a_process_that_ended_stays_ended_while_it_is_desired() {
        let mut p = Processes::default();
        let e = executor(1);
        p.assign(assignment(1, std::slice::from_ref(&e)), 0).unwrap();
        p.observe(&e, Event::Started { pid: 1 }, 0);
        assert!(p.observe(&e, FAILED, 1).is_empty());
        assert!(p.assign(assignment(1, std::slice::from_ref(&e)), 2).unwrap().is_empty(), "never twice");
        assert_eq!(state(&p, &e), Some(ExecutorState::Failed));
        assert_eq!(words(p.assign(assignment(1, &[]), 3).unwrap()), ["forget executor-1"]);
    }

    #[test]
    fn an_old_assignment_does_not_bring_back_the_dead() {
        let mut p = Processes::default();
        let e = executor(1);
        p.assign(assignment(1, std::slice::from_ref(&e)), 0).unwrap();
        p.observe(&e, FAILED, 1);
        p.assign(assignment(1, &[]), 2).unwrap();
        assert_eq!(state(&p, &e), None);
        // Reordered: the set from before arrives after the newer one.
        assert!(p.assign(assignment(1, std::slice::from_ref(&e)), 3).unwrap().is_empty());
        assert_eq!(state(&p, &e), Some(ExecutorState::Failed), "it is reported as it ended");
        assert_eq!(words(p.assign(assignment(1, &[]), 4).unwrap()), ["forget executor-1"]);
    }

    #[test]
    fn reordered_sets_heal_and_a_stop_is_not_taken_back() {
        let mut p = Processes::default();
        let (a, b) = (executor(1), executor(2));
        assert_eq!(
            words(p.assign(assignment(1, std::slice::from_ref(&b)), 0).unwrap()),
            ["launch executor-2"]
        );
        // The older set without b arrives late, then the newer one again.
        assert_eq!(
            words(p.assign(assignment(1, std::slice::from_ref(&a)), 1).unwrap()),
            ["stop executor-2", "launch executor-1"]
        );
        assert!(p.assign(assignment(1, &[a, b.clone()]), 2).unwrap().is_empty());
        assert!(p.observe(&b, KILLED, 3).is_empty());
        assert_eq!(state(&p, &b), Some(ExecutorState::Killed), "the master learns that it is gone");
    }

    #[test]
    fn an_older_epoch_changes_nothing() {
        let mut p = Processes::new(Epoch(4));
        let e = executor(1);
        let stale = p.assign(assignment(3, std::slice::from_ref(&e)), 0).unwrap_err();
        assert_eq!(stale, StaleEpoch { got: Epoch(3), seen: Epoch(4) });
        assert_eq!(p.known().count(), 0);
        p.assign(assignment(5, std::slice::from_ref(&e)), 0).unwrap();
        assert!(p.assign(assignment(4, &[]), 0).is_err());
        assert!(p.any_live(), "the old leader cannot stop it");
        assert_eq!(p.epoch(), Epoch(5));
        assert_eq!(words(p.assign(assignment(5, &[]), 0).unwrap()), ["stop executor-1"]);
    }

    #[test]
    fn the_end_can_come_in_any_state_and_only_once() {
        let mut p = Processes::default();
        let e = executor(1);
        p.assign(assignment(1, &[e.clone(), e.clone()]), 0).unwrap();
        assert_eq!(p.known().count(), 1, "named twice, launched once");
        let end = ProcessEnd::LaunchFailed { reason: "no".into() };
        p.observe(&e, Event::Ended { end: end.clone() }, 1);
        p.observe(&e, Event::Ready { address: "h:1".into() }, 2);
        p.observe(&e, Event::Ended { end: ProcessEnd::Exited { code: 0 } }, 3);
        p.observe(&executor(9), Event::Started { pid: 1 }, 3);
        let process = p.known().next().unwrap();
        assert_eq!((process.state, process.end.as_ref()), (ExecutorState::Failed, Some(&end)));
        assert_eq!((process.address.as_ref(), process.ended_ms), (None, Some(1)));
    }

    #[test]
    fn a_draining_worker_stops_everything_and_launches_nothing() {
        let mut p = Processes::default();
        p.assign(assignment(1, &[executor(1)]), 0).unwrap();
        assert_eq!(words(p.drain()), ["stop executor-1"]);
        assert!(p.drain().is_empty());
        assert!(p.assign(assignment(1, &[executor(1), executor(2)]), 1).unwrap().is_empty());
        p.observe(&executor(1), KILLED, 2);
        assert!(!p.any_live());
    }

    #[test]
    fn memory_of_the_dead_is_bounded() {
        let mut p = Processes::default();
        for n in 0..FORGOTTEN_MAX as u32 + 10 {
            p.assign(assignment(1, &[executor(n)]), 0).unwrap();
            p.observe(&executor(n), FAILED, 0);
        }
        p.assign(assignment(1, &[]), 0).unwrap();
        assert_eq!(p.forgotten().count(), FORGOTTEN_MAX);
        assert_eq!(p.forgotten().next().unwrap().id, executor(FORGOTTEN_MAX as u32 + 9));
    }
}
