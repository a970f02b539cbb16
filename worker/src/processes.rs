//! What this worker shall run, what it runs, and what follows from the difference. No I/O, no clock.
//!
//! Assignments carry the whole desired set, so a lost, repeated or late one does no harm:
//! - desired and unknown: launch; running and not desired: stop; ended and not desired: forget;
//! - an id is launched once. A process that has ended is reported as ended for as long as it is desired, also when it had
//!   been forgotten meanwhile: ids are never used twice, so an assignment that brings one back is an old one;
//! - an epoch below the highest seen is refused whole; a launch that was granted to another life of this worker is not
//!   done, and a second grant of an id that is known changes nothing about it.
//!
//! What must not outlive the worker's lease ([`crate::lease`]) waits for one, and is killed when it has run out.

use crate::lease::OnLeaseEnd;
use firesteel_common::{
    ApplicationId, ApplicationSpec, Epoch, ExecutorState, ProcessEnd, ProcessId, Resources, Secret,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
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
    /// Raft log index at which it was granted.
    pub grant_index: u64,
    /// The life of this worker that it was granted for; 0 when the master does not say.
    pub incarnation: u64,
    /// Must not outlive the lease: once that has run out, another may be started in its place.
    pub ends_with_lease: bool,
}

impl Launch {
    fn is_bound_to_lease(&self, policy: OnLeaseEnd) -> bool {
        let supervised = self.spec.as_ref().is_some_and(|spec| spec.supervise);
        self.ends_with_lease && (supervised || policy == OnLeaseEnd::Stop)
    }
}

/// The whole desired set, as of `epoch`.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub epoch: Epoch,
    pub processes: Vec<Launch>,
    pub heartbeat: Duration,
    /// The newest of this worker's reports that the leader has taken; 0 for none.
    pub heard: u64,
    /// What the leader lends from the sending of that report; zero for nothing.
    pub lease: Duration,
    /// Whose map outputs this worker shall keep, with their tokens.
    pub shuffle_tenants: BTreeMap<ApplicationId, Secret>,
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
    grant_index: u64,
    desired: bool,
    stopping: bool,
    bound_to_lease: bool,
    /// Why it is killed, once its lease has run out.
    expired: Option<String>,
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
    /// Gracefully.
    Stop(ProcessId),
    /// At once: something else may be started in its place.
    Kill(ProcessId),
    /// Said once about each launch that is not done.
    Ignore {
        id: ProcessId,
        why: Ignored,
    },
    /// It has ended and nobody asks for it any more.
    Forget(ProcessId),
}

/// Why a launch is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// It was granted to an earlier life of this worker.
    Incarnation { granted: u64, own: u64 },
    /// Its id is known by another grant.
    Grant { granted: u64, known: u64 },
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incarnation { granted, own } => {
                write!(
                    f,
                    "it was granted to incarnation {granted} of this worker, which is incarnation {own} now"
                )
            }
            Self::Grant { granted, known } => {
                write!(
                    f,
                    "it was granted at index {granted}, but this worker knows it as granted at index {known}"
                )
            }
        }
    }
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
    incarnation: u64,
    policy: OnLeaseEnd,
    known: BTreeMap<ProcessId, Process>,
    /// Known, desired, and not started before there is a lease.
    waiting: Vec<Launch>,
    /// Launches of the last assignment that were not done and have been told of.
    ignored: BTreeSet<ProcessId>,
    /// Ended and no longer desired, oldest first.
    forgotten: VecDeque<Process>,
    draining: bool,
}

impl Processes {
    /// `epoch`: the highest that any earlier run of this worker has seen. `incarnation`: of this run.
    pub fn new(epoch: Epoch, incarnation: u64, policy: OnLeaseEnd) -> Self {
        Self { epoch, incarnation, policy, ..Self::default() }
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

    /// Whether an executor of this application lives, which may be writing map outputs.
    pub fn may_write(&self, application: &ApplicationId) -> bool {
        let of = |p: &Process| matches!(&p.id, ProcessId::Executor(e) if e.application == *application);
        self.known.values().any(|p| p.is_live() && of(p))
    }

    pub fn any_live(&self) -> bool {
        self.known.values().any(Process::is_live)
    }

    /// Whether an assignment of `epoch` would be taken.
    pub fn check_epoch(&self, epoch: Epoch) -> Result<(), StaleEpoch> {
        if epoch < self.epoch { Err(StaleEpoch { got: epoch, seen: self.epoch }) } else { Ok(()) }
    }

    /// `has_lease`: whether, with this assignment, there is a lease that has not run out.
    pub fn assign(
        &mut self,
        assignment: Assignment,
        has_lease: bool,
        now_ms: u64,
    ) -> Result<Vec<Action>, StaleEpoch> {
        self.check_epoch(assignment.epoch)?;
        self.epoch = assignment.epoch;
        let desired: BTreeSet<ProcessId> = assignment.processes.iter().map(|l| l.id.clone()).collect();
        let mut actions = Vec::new();
        // Stops first: what they free may be what the launches need.
        for process in self.known.values_mut() {
            process.desired = desired.contains(&process.id);
            if !process.desired {
                stop(process, &mut self.waiting, now_ms, &mut actions);
            }
        }
        self.forget(&mut actions);
        self.ignored.retain(|id| desired.contains(id));
        for launch in assignment.processes {
            let id = launch.id.clone();
            if let Err(why) = self.take(launch, now_ms)
                && self.ignored.insert(id.clone())
            {
                actions.push(Action::Ignore { id, why });
            }
        }
        let policy = self.policy;
        let ready = self.waiting.extract_if(.., |launch| has_lease || !launch.is_bound_to_lease(policy));
        actions.extend(ready.map(|launch| Action::Launch(Box::new(launch))));
        Ok(actions)
    }

    /// Makes a new launch known and lets it wait for its start.
    fn take(&mut self, launch: Launch, now_ms: u64) -> Result<(), Ignored> {
        if let Some(at) = self.forgotten.iter().position(|p| p.id == launch.id)
            && let Some(mut process) = self.forgotten.remove(at)
        {
            process.desired = true;
            self.known.insert(launch.id.clone(), process);
        }
        let (granted, own) = (launch.grant_index, self.incarnation);
        if let Some(process) = self.known.get_mut(&launch.id) {
            let known = process.grant_index;
            if granted != known {
                return Err(Ignored::Grant { granted, known });
            }
            // A cluster that has got a second master binds what has been running free.
            process.bound_to_lease = launch.is_bound_to_lease(self.policy);
            return Ok(());
        }
        if launch.incarnation != 0 && launch.incarnation != own {
            return Err(Ignored::Incarnation { granted: launch.incarnation, own });
        }
        if !self.draining {
            let process = launching(&launch, launch.is_bound_to_lease(self.policy), now_ms);
            self.known.insert(launch.id.clone(), process);
            self.waiting.push(launch);
        }
        Ok(())
    }

    /// The lease has run out, for `reason`: kills what is bound to it, also what is being stopped gracefully.
    pub fn expire(&mut self, reason: &str) -> Vec<Action> {
        let waiting = &self.waiting;
        let bound = self.known.values_mut().filter(|p| {
            p.is_live()
                && p.bound_to_lease
                && p.expired.is_none()
                && !waiting.iter().any(|launch| launch.id == p.id)
        });
        bound
            .map(|process| {
                process.stopping = true;
                process.expired = Some(reason.to_owned());
                Action::Kill(process.id.clone())
            })
            .collect()
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
                process.end = Some(match (process.expired.take(), end) {
                    // Its last words are its own.
                    (None, end) | (_, end @ ProcessEnd::Exited { .. }) => end,
                    (Some(reason), _) => ProcessEnd::Killed { reason },
                });
                process.ended_ms = Some(now_ms);
            }
        }
        self.forget(&mut actions);
        actions
    }

    /// Stops everything; nothing is launched from here on.
    pub fn drain(&mut self, now_ms: u64) -> Vec<Action> {
        self.draining = true;
        let mut actions = Vec::new();
        for process in self.known.values_mut() {
            stop(process, &mut self.waiting, now_ms, &mut actions);
        }
        actions
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

/// What has not been started yet ends here and now.
fn stop(process: &mut Process, waiting: &mut Vec<Launch>, now_ms: u64, actions: &mut Vec<Action>) {
    if !process.is_live() || process.stopping {
        return;
    }
    process.stopping = true;
    let Some(at) = waiting.iter().position(|launch| launch.id == process.id) else {
        actions.push(Action::Stop(process.id.clone()));
        return;
    };
    waiting.remove(at);
    process.state = ExecutorState::Killed;
    process.end = Some(ProcessEnd::LaunchFailed { reason: "it was stopped before it started".to_owned() });
    process.ended_ms = Some(now_ms);
}

fn launching(launch: &Launch, bound_to_lease: bool, now_ms: u64) -> Process {
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
        grant_index: launch.grant_index,
        desired: true,
        stopping: false,
        bound_to_lease,
        expired: None,
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
            grant_index: 7,
            incarnation: 0,
            ends_with_lease: false,
        };
        Assignment {
            epoch: Epoch(epoch),
            processes: ids.iter().map(launch).collect(),
            heartbeat: Duration::from_secs(1),
            heard: 0,
            lease: Duration::ZERO,
            shuffle_tenants: BTreeMap::new(),
        }
    }
    /// As [`assignment`], but nothing of it may outlive the lease.
    fn bound(ids: &[ProcessId]) -> Assignment {
        let mut assignment = assignment(1, ids);
        for launch in &mut assignment.processes {
            launch.ends_with_lease = true;
        }
        assignment
    }
    fn supervised(supervise: bool) -> ApplicationSpec {
        ApplicationSpec {
            name: "q".into(),
            user: "ana".into(),
            deploy_mode: firesteel_common::DeployMode::Cluster,
            resource: "q.sql".into(),
            artifact: "a".repeat(64),
            conf: BTreeMap::new(),
            output: firesteel_common::OutputFormat::Csv,
            driver: Resources::new(0, 512),
            executor: Resources::new(1, 512),
            executors: firesteel_common::ExecutorCount::Exactly(1),
            supervise,
        }
    }
    fn words(actions: Vec<Action>) -> Vec<String> {
        let word = |action| match action {
            Action::Launch(l) => format!("launch {}", l.id.name()),
            Action::Stop(id) => format!("stop {}", id.name()),
            Action::Kill(id) => format!("kill {}", id.name()),
            Action::Ignore { id, .. } => format!("ignore {}", id.name()),
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
            words(p.assign(assignment(1, &[e.clone(), d.clone()]), false, 1).unwrap()),
            ["launch executor-1", "launch driver-0"]
        );
        assert!(p.assign(assignment(1, &[e.clone(), d.clone()]), false, 2).unwrap().is_empty(), "repeated");
        p.observe(&e, Event::Started { pid: 5 }, 3);
        p.observe(&d, Event::Started { pid: 6 }, 3);
        assert_eq!(state(&p, &e), Some(ExecutorState::Launching), "an executor has to say where it listens");
        assert_eq!(state(&p, &d), Some(ExecutorState::Running));
        p.observe(&e, Event::Ready { address: "h:1".into() }, 4);
        assert_eq!(state(&p, &e), Some(ExecutorState::Running));
        assert_eq!(
            words(p.assign(assignment(1, std::slice::from_ref(&d)), false, 5).unwrap()),
            ["stop executor-1"]
        );
        assert!(
            p.assign(assignment(1, std::slice::from_ref(&d)), false, 6).unwrap().is_empty(),
            "stopped once"
        );
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
        p.assign(assignment(1, std::slice::from_ref(&e)), false, 0).unwrap();
        p.observe(&e, Event::Started { pid: 1 }, 0);
        assert!(p.observe(&e, FAILED, 1).is_empty());
        assert!(
            p.assign(assignment(1, std::slice::from_ref(&e)), false, 2).unwrap().is_empty(),
            "never twice"
        );
        assert_eq!(state(&p, &e), Some(ExecutorState::Failed));
        assert_eq!(words(p.assign(assignment(1, &[]), false, 3).unwrap()), ["forget executor-1"]);
    }

    #[test]
    fn an_old_assignment_does_not_bring_back_the_dead() {
        let mut p = Processes::default();
        let e = executor(1);
        p.assign(assignment(1, std::slice::from_ref(&e)), false, 0).unwrap();
        p.observe(&e, FAILED, 1);
        p.assign(assignment(1, &[]), false, 2).unwrap();
        assert_eq!(state(&p, &e), None);
        // Reordered: the set from before arrives after the newer one.
        assert!(p.assign(assignment(1, std::slice::from_ref(&e)), false, 3).unwrap().is_empty());
        assert_eq!(state(&p, &e), Some(ExecutorState::Failed), "it is reported as it ended");
        assert_eq!(words(p.assign(assignment(1, &[]), false, 4).unwrap()), ["forget executor-1"]);
    }

    #[test]
    fn reordered_sets_heal_and_a_stop_is_not_taken_back() {
        let mut p = Processes::default();
        let (a, b) = (executor(1), executor(2));
        assert_eq!(
            words(p.assign(assignment(1, std::slice::from_ref(&b)), false, 0).unwrap()),
            ["launch executor-2"]
        );
        // The older set without b arrives late, then the newer one again.
        assert_eq!(
            words(p.assign(assignment(1, std::slice::from_ref(&a)), false, 1).unwrap()),
            ["stop executor-2", "launch executor-1"]
        );
        assert!(p.assign(assignment(1, &[a, b.clone()]), false, 2).unwrap().is_empty());
        assert!(p.observe(&b, KILLED, 3).is_empty());
        assert_eq!(state(&p, &b), Some(ExecutorState::Killed), "the master learns that it is gone");
    }

    #[test]
    fn an_older_epoch_changes_nothing() {
        let mut p = Processes::new(Epoch(4), 1, OnLeaseEnd::Stop);
        let e = executor(1);
        let stale = p.assign(assignment(3, std::slice::from_ref(&e)), false, 0).unwrap_err();
        assert_eq!(stale, StaleEpoch { got: Epoch(3), seen: Epoch(4) });
        assert_eq!(p.known().count(), 0);
        p.assign(assignment(5, std::slice::from_ref(&e)), false, 0).unwrap();
        assert!(p.assign(assignment(4, &[]), false, 0).is_err());
        assert!(p.any_live(), "the old leader cannot stop it");
        assert_eq!(p.epoch(), Epoch(5));
        assert_eq!(words(p.assign(assignment(5, &[]), false, 0).unwrap()), ["stop executor-1"]);
    }

    #[test]
    fn the_end_can_come_in_any_state_and_only_once() {
        let mut p = Processes::default();
        let e = executor(1);
        p.assign(assignment(1, &[e.clone(), e.clone()]), false, 0).unwrap();
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
        p.assign(assignment(1, &[executor(1)]), false, 0).unwrap();
        assert_eq!(words(p.drain(9)), ["stop executor-1"]);
        assert!(p.drain(9).is_empty());
        assert!(p.assign(assignment(1, &[executor(1), executor(2)]), false, 1).unwrap().is_empty());
        p.observe(&executor(1), KILLED, 2);
        assert!(!p.any_live());
    }

    #[test]
    fn memory_of_the_dead_is_bounded() {
        let mut p = Processes::default();
        for n in 0..FORGOTTEN_MAX as u32 + 10 {
            p.assign(assignment(1, &[executor(n)]), false, 0).unwrap();
            p.observe(&executor(n), FAILED, 0);
        }
        p.assign(assignment(1, &[]), false, 0).unwrap();
        assert_eq!(p.forgotten().count(), FORGOTTEN_MAX);
        assert_eq!(p.forgotten().next().unwrap().id, executor(FORGOTTEN_MAX as u32 + 9));
    }

    const REASON: &str = "the worker's lease ran out: no master could be reached for 10 s";

    #[test]
    fn what_must_not_outlive_the_lease_waits_for_one() {
        let mut p = Processes::default();
        let e = executor(1);
        assert!(p.assign(bound(std::slice::from_ref(&e)), false, 0).unwrap().is_empty());
        assert_eq!(state(&p, &e), Some(ExecutorState::Launching), "the masters see that it is known");
        assert!(p.expire(REASON).is_empty(), "there is nothing to kill");
        let launched = p.assign(bound(std::slice::from_ref(&e)), true, 1).unwrap();
        assert_eq!(words(launched), ["launch executor-1"]);
        assert!(p.assign(bound(std::slice::from_ref(&e)), true, 2).unwrap().is_empty(), "once");
    }

    #[test]
    fn what_waits_for_a_lease_and_is_no_longer_desired_is_over() {
        let mut p = Processes::default();
        let (a, b) = (executor(1), executor(2));
        p.assign(bound(&[a.clone(), b.clone()]), false, 0).unwrap();
        assert_eq!(
            words(p.assign(bound(std::slice::from_ref(&b)), false, 1).unwrap()),
            ["forget executor-1"]
        );
        assert_eq!(p.forgotten().next().unwrap().state, ExecutorState::Killed);
        assert_eq!(words(p.assign(bound(&[a, b]), true, 2).unwrap()), ["launch executor-2"], "never again");
        p.assign(bound(&[executor(3)]), false, 3).unwrap();
        p.drain(4);
        assert_eq!(state(&p, &executor(3)), Some(ExecutorState::Killed));
    }

    #[test]
    fn a_lease_that_has_run_out_kills_what_is_bound_to_it_and_nothing_else() {
        let mut p = Processes::default();
        let (a, b, free) = (executor(1), executor(2), executor(3));
        let mut all = bound(&[a.clone(), b.clone(), free.clone()]);
        all.processes[2].ends_with_lease = false;
        p.assign(all.clone(), true, 0).unwrap();
        p.observe(&a, Event::Ready { address: "h:1".into() }, 1);
        assert_eq!(words(p.expire(REASON)), ["kill executor-1", "kill executor-2"]);
        assert!(p.expire(REASON).is_empty(), "killed once");
        p.observe(&a, Event::Ended { end: ProcessEnd::Signaled { signal: 9 } }, 2);
        let end = ProcessEnd::LaunchFailed { reason: "it was stopped before it started".into() };
        p.observe(&b, Event::Ended { end }, 2);
        for id in [&a, &b] {
            let process = p.known().find(|x| x.id == *id).unwrap();
            let killed = ProcessEnd::Killed { reason: REASON.into() };
            assert_eq!((process.state, process.end.as_ref()), (ExecutorState::Killed, Some(&killed)));
        }
        assert_eq!(state(&p, &free), Some(ExecutorState::Launching));
        assert!(p.assign(all, true, 3).unwrap().is_empty(), "a new lease does not bring them back");
    }

    #[test]
    fn a_lease_that_has_run_out_ends_the_grace_of_what_is_being_stopped() {
        let mut p = Processes::default();
        p.assign(bound(&[executor(1)]), true, 0).unwrap();
        assert_eq!(words(p.assign(bound(&[]), true, 1).unwrap()), ["stop executor-1"]);
        assert_eq!(words(p.expire(REASON)), ["kill executor-1"]);
    }

    #[test]
    fn an_end_of_its_own_is_reported_as_such_also_when_the_lease_ran_out() {
        let mut p = Processes::default();
        p.assign(bound(&[executor(1)]), true, 0).unwrap();
        p.expire(REASON);
        p.observe(&executor(1), Event::Ended { end: ProcessEnd::Exited { code: 0 } }, 1);
        assert_eq!(p.known().next().unwrap().end, Some(ProcessEnd::Exited { code: 0 }));
    }

    #[test]
    fn under_keep_only_a_supervised_driver_ends_with_the_lease() {
        let mut p = Processes::new(Epoch(0), 1, OnLeaseEnd::Keep);
        let mut all = bound(&[executor(1), driver(0), driver(1)]);
        all.processes[1].spec = Some(supervised(false));
        all.processes[2].spec = Some(supervised(true));
        let launched = p.assign(all.clone(), false, 0).unwrap();
        assert_eq!(words(launched), ["launch executor-1", "launch driver-0"], "the other waits for a lease");
        assert_eq!(words(p.assign(all, true, 1).unwrap()), ["launch driver-1"]);
        assert_eq!(words(p.expire(REASON)), ["kill driver-1"]);
    }

    #[test]
    fn a_grant_to_another_life_of_the_worker_is_ignored_and_told_once() {
        let mut p = Processes::new(Epoch(0), 5, OnLeaseEnd::Stop);
        let mut all = assignment(1, &[executor(1), executor(2), executor(3)]);
        for (launch, incarnation) in all.processes.iter_mut().zip([4, 5, 0]) {
            launch.incarnation = incarnation;
        }
        let first = p.assign(all.clone(), false, 0).unwrap();
        assert!(matches!(first[0], Action::Ignore { why: Ignored::Incarnation { granted: 4, own: 5 }, .. }));
        assert_eq!(words(first), ["ignore executor-1", "launch executor-2", "launch executor-3"]);
        assert!(p.assign(all, false, 1).unwrap().is_empty());
        assert_eq!(state(&p, &executor(1)), None);
    }

    #[test]
    fn a_second_grant_of_a_known_id_changes_nothing() {
        let mut p = Processes::default();
        let e = executor(1);
        p.assign(assignment(1, std::slice::from_ref(&e)), false, 0).unwrap();
        let mut again = assignment(1, std::slice::from_ref(&e));
        again.processes[0].grant_index = 8;
        let actions = p.assign(again.clone(), false, 1).unwrap();
        assert!(matches!(actions[..], [Action::Ignore { why: Ignored::Grant { granted: 8, known: 7 }, .. }]));
        assert!(p.assign(again.clone(), false, 2).unwrap().is_empty(), "told once");
        assert_eq!(state(&p, &e), Some(ExecutorState::Launching), "what is there is kept");
        p.observe(&e, FAILED, 3);
        p.assign(assignment(1, &[]), false, 4).unwrap();
        assert_eq!(
            words(p.assign(again, false, 5).unwrap()),
            ["ignore executor-1"],
            "it is not launched again"
        );
        assert_eq!(state(&p, &e), Some(ExecutorState::Failed));
    }
}
