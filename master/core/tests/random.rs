//! Ten thousand random commands and what the scheduler says to them: the invariants hold after each, and the same log
//! gives the same state.

use firesteel_common::{
    ApplicationId, ApplicationSpec, DeployMode, ExecutorCount, ExecutorId, ExecutorState, OutputFormat,
    ProcessEnd, ProcessId, Resources, Secret, WorkerId, WorkerStatus,
};
use firesteel_master_core::{
    ClusterState, Command, MAX_FINISHED_APPLICATIONS, Outcome, Rejection, apply, desired,
    feature_level_to_set, invariants, schedule, waiting, wake_at_ms,
};
use std::collections::{BTreeMap, BTreeSet};

/// xorshift64*: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.below(from.len() as u64) as usize) }
    }
}

fn worker_id(n: u64) -> WorkerId {
    format!("worker-{n}").parse().expect("an id")
}

fn spec(random: &mut Random) -> ApplicationSpec {
    let cores = 1 + random.below(4) as u32;
    let deploy_mode = if random.below(2) == 0 { DeployMode::Client } else { DeployMode::Cluster };
    ApplicationSpec {
        name: "q".into(),
        user: "ana".into(),
        deploy_mode,
        resource: "q.sql".into(),
        artifact: String::new(),
        conf: Default::default(),
        output: OutputFormat::Table,
        driver: Resources::new(random.below(2) as u32, 128 + random.below(1024)),
        executor: Resources::new(cores, 256 + random.below(2048)),
        executors: match random.below(2) {
            0 => ExecutorCount::Exactly(1 + random.below(6) as u32),
            _ => ExecutorCount::TotalCores(cores * (1 + random.below(4) as u32)),
        },
        supervise: deploy_mode == DeployMode::Cluster && random.below(2) == 0,
    }
}

/// Any process of any application, ended ones and ones that never were included.
fn any_process(random: &mut Random, state: &ClusterState) -> Option<ProcessId> {
    let apps: Vec<_> = match random.below(8) {
        0 => state.finished().take(20).collect(),
        _ => state.active().collect(),
    };
    let app = random.pick(&apps)?;
    Some(match random.below(4) {
        0 => ProcessId::Driver {
            application: app.id.clone(),
            attempt: app.driver_starts().saturating_sub(random.below(3) as u32),
        },
        _ => ProcessId::Executor(ExecutorId {
            application: app.id.clone(),
            number: random.below(u64::from(app.next_executor) + 1) as u32,
        }),
    })
}

fn any_application(random: &mut Random, state: &ClusterState) -> Option<ApplicationId> {
    let apps: Vec<_> = match random.below(8) {
        0 => state.finished().take(5).collect(),
        _ => state.active().collect(),
    };
    random.pick(&apps).map(|app| app.id.clone())
}

/// A new submission, or one that was made before, or one with the key of another.
fn any_submission(random: &mut Random, run: &mut Run, at_ms: u64) -> Command {
    let (key, ticket, spec) = match (random.below(6), random.pick(&run.submissions).cloned()) {
        (0, _) => (String::new(), 0, spec(random)),
        (1, Some((key, ticket, _))) => (key, ticket, spec(random)),
        (2 | 3, Some(again)) => again,
        _ => {
            let submission = (format!("k{}", run.submissions.len()), run.log.len() as u64, spec(random));
            run.submissions.push(submission.clone());
            // The first attempt may get lost, and come again much later.
            if random.below(4) == 0
                && let Some(other) = random.pick(&run.submissions)
            {
                other.clone()
            } else {
                submission
            }
        }
    };
    Command::SubmitApplication { spec, token: Secret::new("t"), key, ticket, at_ms }
}

fn any_change_of_members(random: &mut Random, state: &ClusterState, at_ms: u64) -> Command {
    let id = 1 + random.below(12);
    match random.below(16) {
        0 => Command::RemoveMember { id, at_ms },
        1..4 => Command::SetNonVoter { id, non_voter: random.below(2) == 0 },
        4..6 => Command::SetFeatureLevel {
            level: feature_level_to_set(state).unwrap_or_else(|| random.below(5) as u32),
        },
        _ => Command::PutMember {
            id,
            raft_address: format!("m{}:7177", random.below(16)),
            client_address: String::new(),
            ui_url: String::new(),
            version: String::new(),
            feature_level: state.feature_level() + random.below(3) as u32,
            non_voter: random.below(4) == 0,
            at_ms,
        },
    }
}

fn any_command(random: &mut Random, run: &mut Run, at_ms: u64) -> Option<Command> {
    let state = &run.state;
    let known = |id: &WorkerId| state.worker(id).map_or(1, |w| w.incarnation);
    Some(match random.below(105) {
        0..12 => {
            let id = worker_id(random.below(8));
            // Mostly the same life again; sometimes a new one.
            let incarnation = known(&id) + u64::from(random.below(6) == 0);
            Command::RegisterWorker {
                id,
                incarnation,
                host: "h".into(),
                port: 1,
                capacity: Resources::new(1 + random.below(8) as u32, 512 + random.below(8192)),
                version: String::new(),
                ui_url: String::new(),
                at_ms,
            }
        }
        12..18 => {
            let id = worker_id(random.below(9));
            let status = match random.below(4) {
                0 => WorkerStatus::Left,
                1 => WorkerStatus::Dead,
                _ => WorkerStatus::Alive,
            };
            let incarnation = known(&id).saturating_sub(u64::from(random.below(8) == 0));
            Command::SetWorkerStatus { id, incarnation, status, at_ms }
        }
        18..45 => {
            // A queue that only grows would be the same test at a hundred times the cost.
            if state.active().count() > 30 {
                return None;
            }
            any_submission(random, run, at_ms)
        }
        45..65 => {
            Command::ProcessStarted { process: any_process(random, state)?, address: "h:1".into(), at_ms }
        }
        65..80 => {
            let end = match random.below(3) {
                0 => ProcessEnd::Exited { code: random.below(2) as i32 },
                1 => ProcessEnd::Signaled { signal: 9 },
                _ => ProcessEnd::LaunchFailed { reason: "no".into() },
            };
            let state_reported = match random.below(8) {
                0 => ExecutorState::Killed,
                1 => ExecutorState::Running,
                _ if end.is_success() => ExecutorState::Exited,
                _ => ExecutorState::Failed,
            };
            Command::ProcessEnded { process: any_process(random, state)?, state: state_reported, end, at_ms }
        }
        80..92 => Command::FinishApplication {
            application: any_application(random, state)?,
            success: random.below(3) > 0,
            message: String::new(),
            at_ms,
        },
        92..97 => {
            Command::KillApplication { application: any_application(random, state)?, by: "b".into(), at_ms }
        }
        97..102 => any_change_of_members(random, state, at_ms),
        // A leader that decided on an old state.
        _ => Command::GrantExecutor {
            application: any_application(random, state)?,
            number: random.below(4) as u32,
            worker: worker_id(random.below(9)),
            incarnation: 1 + random.below(2),
            at_ms,
        },
    })
}

struct Run {
    state: ClusterState,
    log: Vec<Command>,
    granted: BTreeMap<ProcessId, u64>,
    /// Key, ticket and specification of what submitters ever tried to submit.
    submissions: Vec<(String, u64, ApplicationSpec)>,
    /// What each key was answered with.
    by_key: BTreeMap<String, ApplicationId>,
    outcomes: [usize; 3],
}

impl Run {
    fn apply(&mut self, seed: u64, command: Command) -> Outcome {
        self.log.push(command.clone());
        let index = self.log.len() as u64;
        let grant = match &command {
            Command::GrantDriver { application, attempt, .. } => {
                Some(ProcessId::Driver { application: application.clone(), attempt: *attempt })
            }
            Command::GrantExecutor { application, number, .. } => {
                Some(ProcessId::Executor(ExecutorId { application: application.clone(), number: *number }))
            }
            _ => None,
        };
        let key = match &command {
            Command::SubmitApplication { key, .. } if !key.is_empty() => Some(key.clone()),
            _ => None,
        };
        // What must not end a supervised application.
        let spares_supervised = matches!(
            command,
            Command::RegisterWorker { .. }
                | Command::SetWorkerStatus { .. }
                | Command::ProcessEnded { process: ProcessId::Driver { .. }, .. }
        );
        let before = self.state.clone();
        let outcome = apply(&mut self.state, index, command);
        if let Err(broken) = invariants::check(&self.state) {
            panic!("seed {seed}, command {index} {:?}: {broken}", self.log.last());
        }
        if spares_supervised {
            for app in before.active().filter(|app| app.spec.supervise) {
                let ended = self.state.application(&app.id).is_none_or(|app| app.state.is_final());
                assert!(!ended, "seed {seed}: {:?} ended {}", self.log.last(), app.id);
            }
        }
        if let (Some(key), Outcome::Submitted { id }) = (key, &outcome) {
            let first = self.by_key.entry(key.clone()).or_insert_with(|| id.clone());
            assert_eq!(first, id, "seed {seed}: {key} was submitted twice");
        }
        match (&outcome, grant) {
            (Outcome::Ok, Some(process)) => {
                let again = self.granted.insert(process.clone(), index);
                assert_eq!(again, None, "seed {seed}: {process} was granted twice");
            }
            (Outcome::Rejected(_), _) => {
                assert_eq!(before, self.state, "seed {seed}: a rejected command changes nothing");
            }
            _ => {}
        }
        self.outcomes[match outcome {
            Outcome::Submitted { .. } => 0,
            Outcome::Ok => 1,
            Outcome::Rejected(_) => 2,
        }] += 1;
        outcome
    }

    /// What the scheduler says is taken up in full, and then it has nothing more to say.
    fn schedule(&mut self, seed: u64, now_ms: u64) {
        let plan = schedule(&self.state, now_ms);
        for command in plan {
            let text = format!("{command:?}");
            let outcome = self.apply(seed, command);
            assert_eq!(outcome, Outcome::Ok, "seed {seed}: the scheduler's own plan: {text}");
        }
        assert_eq!(schedule(&self.state, now_ms), [], "seed {seed}: a second look");
    }
}

fn run(seed: u64, commands: usize) -> Run {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut run = Run {
        state: ClusterState::default(),
        log: vec![],
        granted: BTreeMap::new(),
        submissions: vec![],
        by_key: BTreeMap::new(),
        outcomes: [0; 3],
    };
    let mut true_ms = 1_795_247_100_000;
    let mut now_ms = true_ms;
    for _ in 0..commands {
        let passed = random.below(400);
        true_ms += passed;
        now_ms += passed;
        if random.below(300) == 0 {
            // Another leads, and its clock is behind or ahead.
            now_ms = true_ms - 20 * 60_000 + random.below(40 * 60_000);
        }
        // Some took their time to propose.
        let at_ms = now_ms - random.below(200);
        if let Some(command) = any_command(&mut random, &mut run, at_ms) {
            run.apply(seed, command);
        }
        if random.below(3) > 0 {
            run.schedule(seed, now_ms);
            // A driver without an executor is what is left of a loss, never a decision.
            for app in run.state.active() {
                let stranded = app.live_driver().is_some() && app.next_executor == 0;
                assert!(!stranded, "seed {seed}: {} was given a driver alone", app.id);
            }
            if let Some(wake) = wake_at_ms(&run.state, now_ms) {
                assert!(wake > now_ms && wake - now_ms <= 2 * 60_000, "seed {seed}: {wake} after {now_ms}");
            }
        }
        let explanations = if random.below(8) == 0 { waiting(&run.state) } else { BTreeMap::new() };
        for (id, explanation) in explanations {
            assert_eq!(explanation.workers.len(), run.state.alive_workers().count(), "seed {seed}: {id}");
            assert!(explanation.text.ends_with('.'), "seed {seed}: {id}: {}", explanation.text);
        }
    }
    run
}

#[test]
fn invariants_hold_and_the_same_log_gives_the_same_state() {
    for (seed, commands) in [(1, 10_000), (2, 1_500), (3, 1_500), (4, 1_500)] {
        let run = run(seed, commands);
        let [submitted, done, rejected] = run.outcomes;
        let full = submitted > MAX_FINISHED_APPLICATIONS;
        assert_eq!(full, commands == 10_000, "the long run fills the history: {submitted}");
        assert!(done > commands / 5 && rejected > commands / 20, "one-sided: {:?}", run.outcomes);
        assert!(run.granted.len() > commands / 10, "hardly anything ran: {}", run.granted.len());
        let attempts = |p: &ProcessId| if let ProcessId::Driver { attempt, .. } = p { *attempt } else { 0 };
        let most = run.granted.keys().map(attempts).max();
        assert!(most >= Some(2), "no driver was started again and again: {most:?}");
        assert!(run.state.feature_level() > 1, "the feature level never rose");

        let mut again = ClusterState::default();
        let mut reasons = BTreeSet::new();
        for (n, command) in run.log.iter().enumerate() {
            let wire = serde_json::to_string(command).expect("a command serialises");
            let command = serde_json::from_str(&wire).expect("and comes back");
            if let Outcome::Rejected(why) = apply(&mut again, n as u64 + 1, command) {
                reasons.insert(match why {
                    Rejection::KeyReused { .. } => "key reused",
                    Rejection::SubmissionTooOld => "too old",
                    Rejection::MemberRemoved(_) => "removed",
                    Rejection::AddressInUse { .. } => "address in use",
                    _ => "other",
                });
            }
        }
        let expected = if full { 5 } else { 4 };
        assert!(reasons.len() >= expected, "seed {seed} rejected only for {reasons:?}");
        let text = serde_json::to_string(&run.state).expect("a state serialises");
        assert_eq!(serde_json::to_string(&again).expect("a state serialises"), text);
        let restored: ClusterState = serde_json::from_str(&text).expect("a snapshot loads");
        assert_eq!(restored, run.state);
        assert_eq!((again.hash(), restored.hash()), (run.state.hash(), run.state.hash()));
    }
}

#[test]
fn desired_sets_are_the_live_processes() {
    let run = run(77, 2_000);
    let mut wanted: Vec<ProcessId> =
        run.state.workers().flat_map(|w| desired(&run.state, &w.id)).map(|launch| launch.process).collect();
    wanted.sort();
    let mut live: Vec<ProcessId> = Vec::new();
    for app in run.state.applications() {
        for (number, _) in app.live_executors() {
            live.push(ProcessId::Executor(ExecutorId { application: app.id.clone(), number }));
        }
        if let Some((attempt, _)) = app.live_driver() {
            live.push(ProcessId::Driver { application: app.id.clone(), attempt });
        }
    }
    live.sort();
    assert!(!live.is_empty());
    assert_eq!(wanted, live);
}

#[test]
fn applications_are_found_by_the_ends_of_their_ids() {
    let mut state = ClusterState::default();
    let mut random = Random(5);
    for n in 0..12 {
        let command = Command::SubmitApplication {
            spec: spec(&mut random),
            token: Secret::new("t"),
            key: String::new(),
            ticket: 0,
            at_ms: 1_795_247_100_000 + n * 1000,
        };
        apply(&mut state, n + 1, command);
    }
    let id = |text: &str| state.find_application(text).map(|app| app.sequence);
    assert_eq!(id("app-20261121074500-0001"), Ok(1));
    assert_eq!(id("0012"), Ok(12));
    assert_eq!(id("app-20261121074505"), Ok(6));
    assert!(id("app-2026").unwrap_err().to_string().contains(" or "), "ambiguous");
    assert!(id("2").unwrap_err().to_string().contains("0002 or app-"), "0002 and 0012");
    for unknown in ["", "x", "app-20261121074500-00011"] {
        assert!(id(unknown).unwrap_err().to_string().starts_with("there is no application"), "{unknown:?}");
    }
}
