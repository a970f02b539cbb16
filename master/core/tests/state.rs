//! The state as a whole: what old data gives, how states are compared, what clocks and overflowing histories do.

use firesteel_common::{
    ApplicationId, ApplicationSpec, ApplicationState, DeployMode, ExecutorCount, ExecutorState, OutputFormat,
    ProcessEnd, ProcessId, Resources, Secret, WorkerId, WorkerStatus,
};
use firesteel_master_core::{
    ClusterState, Command, MAX_FINISHED_APPLICATIONS, MAX_REMOVED_MEMBERS, Outcome, Rejection, apply,
    feature_level_to_set, invariants, schedule, shuffle_tenants, shuffle_workers, wake_at_ms,
};

/// As the first builds wrote them, before there were members, keys and supervised drivers.
const FIRST_STATE: &str = include_str!("data/first_state.json");
const FIRST_LOG: &str = include_str!("data/first_log.json");

const NOON_MS: u64 = 1_795_262_400_000;

#[derive(Default)]
struct Log {
    state: ClusterState,
    index: u64,
}

impl Log {
    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let outcome = apply(&mut self.state, self.index, command);
        assert_eq!(invariants::check(&self.state), Ok(()));
        outcome
    }

    fn submit(&mut self, spec: ApplicationSpec, key: &str, ticket: u64) -> Outcome {
        self.apply(Command::SubmitApplication {
            spec,
            token: Secret::new(format!("token {}", self.index)),
            key: key.into(),
            ticket,
            at_ms: NOON_MS,
        })
    }

    fn finish(&mut self, application: ApplicationId) {
        let finish =
            Command::FinishApplication { application, success: true, message: String::new(), at_ms: NOON_MS };
        assert_eq!(self.apply(finish), Outcome::Ok);
    }

    /// One worker and a supervised application that runs on it.
    fn supervised(at_ms: u64) -> (Self, ApplicationId) {
        let mut log = Self::default();
        let register = Command::RegisterWorker {
            id: worker(),
            incarnation: 1,
            host: "h".into(),
            port: 1,
            capacity: Resources::new(4, 8192),
            version: String::new(),
            ui_url: String::new(),
            at_ms,
        };
        assert_eq!(log.apply(register), Outcome::Ok);
        let spec = ApplicationSpec { deploy_mode: DeployMode::Cluster, supervise: true, ..spec("s") };
        let Outcome::Submitted { id } = log.submit(spec, "", 0) else { panic!("not submitted") };
        log.schedule(at_ms);
        (log, id)
    }

    fn schedule(&mut self, now_ms: u64) -> usize {
        let plan = schedule(&self.state, now_ms);
        let grants = plan.len();
        for command in plan {
            assert_eq!(self.apply(command), Outcome::Ok);
        }
        grants
    }

    /// The newest driver ends; the delay until the next.
    fn driver_ends(&mut self, application: &ApplicationId, at_ms: u64) -> u64 {
        let app = self.state.application(application).unwrap();
        let process =
            ProcessId::Driver { application: application.clone(), attempt: app.driver_starts() - 1 };
        let end = ProcessEnd::Exited { code: 1 };
        let ended = Command::ProcessEnded { process, state: ExecutorState::Failed, end, at_ms };
        assert_eq!(self.apply(ended), Outcome::Ok);
        self.state.application(application).unwrap().driver_retry_at_ms - at_ms
    }
}

fn worker() -> WorkerId {
    "worker-1".parse().unwrap()
}

fn spec(name: &str) -> ApplicationSpec {
    ApplicationSpec {
        name: name.into(),
        user: "ana".into(),
        deploy_mode: DeployMode::Client,
        resource: "q.sql".into(),
        artifact: String::new(),
        conf: Default::default(),
        output: OutputFormat::Table,
        driver: Resources::new(0, 512),
        executor: Resources::new(1, 1024),
        executors: ExecutorCount::Exactly(1),
        supervise: false,
    }
}

fn member(id: u64, at_ms: u64) -> Command {
    Command::PutMember {
        id,
        raft_address: format!("m{id}:7177"),
        client_address: format!("m{id}:7077"),
        ui_url: String::new(),
        version: "0.1.0".into(),
        feature_level: 1,
        non_voter: false,
        at_ms,
    }
}

#[test]
fn a_snapshot_of_the_first_builds_loads() {
    let state: ClusterState = serde_json::from_str(FIRST_STATE).expect("it loads");
    assert_eq!(invariants::check(&state), Ok(()));
    assert_eq!(state.feature_level(), 1);
    assert_eq!(state.members().count(), 0);
    let states: Vec<_> =
        state.applications().map(|app| (app.state, app.key.as_str(), app.submitted_index)).collect();
    assert_eq!(
        states,
        [
            (ApplicationState::Finished, "", 0),
            (ApplicationState::Running, "", 0),
            (ApplicationState::Waiting, "", 0)
        ]
    );
    let mut log = Log { state, index: 100 };
    assert_eq!(log.apply(member(1, NOON_MS)), Outcome::Ok);
    let Outcome::Submitted { id } = log.submit(spec("new"), "k", 100) else { panic!("not submitted") };
    assert_eq!(log.submit(spec("new"), "k", 100), Outcome::Submitted { id });
}

#[test]
fn a_log_of_the_first_builds_is_understood() {
    let commands: Vec<Command> = serde_json::from_str(FIRST_LOG).expect("it loads");
    let mut log = Log::default();
    for command in commands {
        assert!(!matches!(log.apply(command), Outcome::Rejected(_)));
    }
    assert_eq!(log.state.applications().count(), 3);
}

#[test]
fn a_new_state_is_on_the_first_feature_level() {
    assert_eq!(ClusterState::default().feature_level(), 1);
    assert_eq!(feature_level_to_set(&ClusterState::default()), None);
}

#[test]
fn hashes_are_equal_for_equal_states_only() {
    let state: ClusterState = serde_json::from_str(FIRST_STATE).expect("it loads");
    let mut hashes = vec![state.hash(), ClusterState::default().hash()];
    assert_eq!(state.clone().hash(), state.hash());
    let changed = |command: Command| {
        let mut changed = Log { state: state.clone(), index: 100 };
        assert_eq!(changed.apply(command), Outcome::Ok);
        changed.state.hash()
    };
    hashes.push(changed(member(1, NOON_MS)));
    hashes.push(changed(member(2, NOON_MS)));
    hashes.push(changed(member(1, NOON_MS + 1)));
    let dead =
        Command::SetWorkerStatus { id: worker(), incarnation: 7, status: WorkerStatus::Dead, at_ms: NOON_MS };
    hashes.push(changed(dead));
    // A token is in no log and on no page, and yet part of the state.
    let other_token = FIRST_STATE.replace("\"t3\"", "\"t4\"");
    assert_ne!(other_token, FIRST_STATE);
    hashes.push(serde_json::from_str::<ClusterState>(&other_token).expect("it loads").hash());
    let count = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), count);
}

#[test]
fn a_repetition_that_comes_too_late_is_refused_and_never_run_again() {
    let mut log = Log::default();
    let before = log.index;
    let Outcome::Submitted { id } = log.submit(spec("a"), "k", before) else { panic!("not submitted") };
    assert_eq!(log.state.application(&id).unwrap().key, "k");
    assert!(log.state.application(&id).unwrap().token.matches("token 0"));
    log.finish(id.clone());
    for _ in 1..MAX_FINISHED_APPLICATIONS {
        let Outcome::Submitted { id } = log.submit(spec("other"), "", 0) else { panic!("not submitted") };
        log.finish(id);
    }
    assert_eq!(log.submit(spec("a"), "k", before), Outcome::Submitted { id: id.clone() }, "just remembered");
    assert!(log.state.application_of_key("k").unwrap().token.matches("token 0"), "the original token stays");

    let fresh = log.index;
    let Outcome::Submitted { id: last } = log.submit(spec("z"), "z", fresh) else { panic!("not submitted") };
    log.finish(last);
    assert_eq!(log.state.application(&id), None);
    assert_eq!(log.submit(spec("a"), "k", before), Outcome::Rejected(Rejection::SubmissionTooOld));
    assert_eq!(
        log.submit(spec("b"), "new", 1),
        Outcome::Rejected(Rejection::SubmissionTooOld),
        "nobody knows"
    );
    // Someone who begins now cannot have been forgotten; someone who wants no protection is never refused.
    assert!(matches!(log.submit(spec("b"), "new", fresh), Outcome::Submitted { .. }));
    assert!(matches!(log.submit(spec("a"), "", 0), Outcome::Submitted { .. }));
}

#[test]
fn keys_have_a_length() {
    let mut log = Log::default();
    assert!(matches!(log.submit(spec("a"), &"k".repeat(256), 0), Outcome::Submitted { .. }));
    let refused = log.submit(spec("a"), &"k".repeat(257), 0);
    let Outcome::Rejected(why @ Rejection::InvalidSpec(_)) = refused else { panic!("{refused:?}") };
    assert!(why.to_string().contains("256 bytes"), "{why}");
}

#[test]
fn removed_members_are_remembered_up_to_a_number() {
    let mut log = Log::default();
    let most = MAX_REMOVED_MEMBERS as u64;
    // Not in the order of their ids: the first that was removed is the first to be forgotten.
    for id in (1..=most + 1).rev() {
        assert_eq!(log.apply(member(id, NOON_MS)), Outcome::Ok);
        assert_eq!(log.apply(Command::RemoveMember { id, at_ms: NOON_MS }), Outcome::Ok);
    }
    assert!(!log.state.is_removed_member(most + 1));
    assert!((1..=most).all(|id| log.state.is_removed_member(id)));
    assert_eq!(log.apply(member(7, NOON_MS)), Outcome::Rejected(Rejection::MemberRemoved(7)));
}

#[test]
fn a_supervised_driver_that_keeps_ending_is_slowed_down_and_its_history_is_bounded() {
    let mut now_ms = NOON_MS;
    let (mut log, app) = Log::supervised(now_ms);
    let mut delays = Vec::new();
    for _ in 0..150 {
        now_ms += 5;
        let delay = log.driver_ends(&app, now_ms);
        delays.push(delay);
        assert_eq!(log.schedule(now_ms), 0);
        assert_eq!(log.schedule(now_ms + delay - 1), 0);
        assert_eq!(wake_at_ms(&log.state, now_ms), Some(now_ms + delay));
        now_ms += delay;
        assert_eq!(log.schedule(now_ms), 2, "the driver and the executor");
    }
    assert_eq!(delays[..8], [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
    assert!(delays[8..].iter().all(|&delay| delay == 60_000));
    let app = log.state.application(&app).unwrap();
    assert_eq!((app.driver_starts(), app.drivers.len()), (151, 101));
}

#[test]
fn a_clock_that_leaps_costs_nobody_more_than_two_delays() {
    const HOUR_MS: u64 = 3_600_000;
    for (then_ms, now_ms) in [(NOON_MS + HOUR_MS, NOON_MS), (NOON_MS, NOON_MS + HOUR_MS)] {
        let (mut log, app) = Log::supervised(then_ms);
        // Written down by the leader of before, acted upon by the next, with another clock.
        assert_eq!(log.driver_ends(&app, then_ms), 1000);
        assert_eq!(log.schedule(now_ms), 2, "{then_ms}, then {now_ms}");
        let process = ProcessId::Driver { application: app.clone(), attempt: 1 };
        let started = Command::ProcessStarted { process, address: String::new(), at_ms: now_ms };
        assert_eq!(log.apply(started), Outcome::Ok);
        // Granted and started by one clock, ended by the other: a life of less than nothing, or of an hour.
        let settled = then_ms > now_ms;
        assert_eq!(log.driver_ends(&app, then_ms), if settled { 1000 } else { 2000 });
    }
    // Slightly ahead: that delay lasts longer by the difference.
    let (mut log, app) = Log::supervised(NOON_MS + 30_000);
    log.driver_ends(&app, NOON_MS + 30_000);
    assert_eq!(log.schedule(NOON_MS + 30_999), 0);
    assert_eq!(wake_at_ms(&log.state, NOON_MS), Some(NOON_MS + 31_000));
}

impl Log {
    /// Whose map outputs the workers shall keep, as `worker: application`.
    fn tenants(&self) -> Vec<String> {
        let of = |(worker, apps): (WorkerId, std::collections::BTreeMap<ApplicationId, Secret>)| {
            apps.into_keys().map(move |app| format!("{worker}: {app}")).collect::<Vec<_>>()
        };
        shuffle_tenants(&self.state).into_iter().flat_map(of).collect()
    }

    fn registers(&mut self, id: &str, incarnation: u64) {
        let register = Command::RegisterWorker {
            id: id.parse().unwrap(),
            incarnation,
            host: "h".into(),
            port: 1,
            capacity: Resources::new(4, 8192),
            version: String::new(),
            ui_url: String::new(),
            at_ms: NOON_MS,
        };
        assert_eq!(self.apply(register), Outcome::Ok);
    }
}

#[test]
fn map_outputs_are_kept_where_executors_were_until_the_application_ends() {
    let mut log = Log::default();
    log.registers("worker-1", 1);
    log.registers("worker-2", 1);
    log.registers("worker-3", 1);
    let two = ApplicationSpec { executors: ExecutorCount::Exactly(2), ..spec("two") };
    let Outcome::Submitted { id } = log.submit(two, "", 0) else { panic!("not submitted") };
    assert_eq!(log.tenants(), [""; 0], "waiting");
    log.schedule(NOON_MS);
    let both = [format!("worker-1: {id}"), format!("worker-2: {id}")];
    assert_eq!(log.tenants(), both);
    assert!(shuffle_tenants(&log.state)[&worker()][&id].matches("token 3"));

    // Dead, and all its executors are lost: what it has on its disk is still there when it comes back.
    let status = |status| Command::SetWorkerStatus { id: worker(), incarnation: 1, status, at_ms: NOON_MS };
    assert_eq!(log.apply(status(WorkerStatus::Dead)), Outcome::Ok);
    assert_eq!(log.tenants(), both);
    log.schedule(NOON_MS);
    let all = [both[0].clone(), both[1].clone(), format!("worker-3: {id}")];
    assert_eq!(log.tenants(), all);
    log.registers("worker-1", 2);
    assert_eq!(log.tenants(), all, "another life of it has the same directory");

    // From what a new leader reads, the same follows.
    let read: ClusterState = serde_json::from_str(&serde_json::to_string(&log.state).unwrap()).unwrap();
    assert_eq!(shuffle_tenants(&read), shuffle_tenants(&log.state));

    log.finish(id.clone());
    assert_eq!(log.tenants(), [""; 0]);
    assert_eq!(shuffle_workers(log.state.application(&id).unwrap()).len(), 0);
}

#[test]
fn outputs_made_for_an_earlier_driver_are_not_kept() {
    let (mut log, app) = Log::supervised(NOON_MS);
    assert_eq!(log.tenants(), [format!("worker-1: {app}")]);
    let delay = log.driver_ends(&app, NOON_MS);
    assert_eq!(log.tenants(), [""; 0], "while the next driver is awaited");
    assert_eq!(log.schedule(NOON_MS + delay), 2);
    assert_eq!(log.tenants(), [format!("worker-1: {app}")], "for the executor of the new driver");
    // Without the grant of that executor: the old one does not count.
    let mut before = log.state.clone();
    let app_now = before.application(&app).unwrap();
    let (number, _) = app_now.live_executors().next().unwrap();
    let process = ProcessId::Executor(firesteel_common::ExecutorId { application: app.clone(), number });
    assert!(app_now.process(&process).unwrap().grant_index > app_now.driver().unwrap().1.grant_index);
    let end = ProcessEnd::Exited { code: 1 };
    let ended = Command::ProcessEnded { process, state: ExecutorState::Failed, end, at_ms: NOON_MS };
    assert_eq!(apply(&mut before, 100, ended), Outcome::Ok);
    assert_eq!(shuffle_tenants(&before), shuffle_tenants(&log.state), "its end changes nothing");
}
