//! A cluster, its driver and its queries, and a dice.

mod faults;
mod jobs;
mod model;

use firesteel_engine_core::{
    Action, AttemptId, Event, ExecutorId, JobErrorKind, JobId, JobOrder, Output, Place, Policy, Pool,
    Scheduler, Speculation, TaskId, WorkerKey, invariants,
};
use model::{JobModel, Run};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub struct World {
    pub seen: Seen,
    tells: bool,
    dice: StdRng,
    faults: faults::Faults,
    scheduler: Scheduler,
    now: Duration,
    executors: BTreeMap<ExecutorId, Executor>,
    workers: Vec<Worker>,
    /// Every attempt that was ever launched.
    runs: BTreeMap<AttemptId, Run>,
    /// Attempts that the scheduler must think are running.
    live: BTreeSet<AttemptId>,
    /// Outputs that are where they were left.
    files: BTreeSet<AttemptId>,
    jobs: BTreeMap<JobId, JobModel>,
    /// What is on its way to the scheduler.
    inbox: BTreeMap<(Duration, u64), Event>,
    posted: u64,
}

struct Executor {
    worker: usize,
    slots: u32,
    /// In truth.
    lives: bool,
    /// As the scheduler was told.
    up: bool,
}

struct Worker {
    key: WorkerKey,
    lives: bool,
    /// The scheduler has heard of its last death.
    death_is_known: bool,
}

/// What has happened, so that a run shows that it has tested something.
#[derive(Debug, Default)]
pub struct Seen {
    counts: BTreeMap<String, u64>,
}

impl Seen {
    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (what, n) in &other.counts {
            *self.counts.entry(what.clone()).or_default() += n;
        }
    }

    pub fn assert_all_sides_were_seen(&self) {
        for what in [
            "finished",
            "failed: Fatal",
            "failed: FailedTooOften",
            "failed: InterruptedTooOften",
            "failed: LostTooOften",
            "failed: Delivered",
            "failed: Cancelled",
            "failed: Invalid",
            "launch",
            "launch: a copy",
            "launch: a gang",
            "launch: again because of OutputLost",
            "launch: again because of InputLost",
            "launch: again because of InputsReplaced",
            "launch: again because of RegionRestarted",
            "discard",
            "result read",
            "result lost",
        ] {
            assert!(self.counts.get(what).is_some_and(|&n| n > 0), "{what} was never seen: {self:#?}");
        }
    }
}

impl World {
    /// Some hundred steps with faults, then without until all is over.
    pub fn run(seed: u64, tells: bool) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let policy = policy(&mut dice);
        let faults = faults::Faults::any(&mut dice);
        let mut world = Self {
            seen: Seen::default(),
            tells,
            scheduler: Scheduler::new(policy),
            faults,
            now: Duration::ZERO,
            executors: BTreeMap::new(),
            workers: (0..dice.random_range(1..5))
                .map(|n| Worker {
                    key: WorkerKey::from(format!("w{n}").as_str()),
                    lives: true,
                    death_is_known: true,
                })
                .collect(),
            dice,
            runs: BTreeMap::new(),
            live: BTreeSet::new(),
            files: BTreeSet::new(),
            jobs: BTreeMap::new(),
            inbox: BTreeMap::new(),
            posted: 0,
        };
        let steps = world.dice.random_range(50..400);
        for _ in 0..steps {
            world.step();
        }
        world.calm_down();
        world
    }

    fn step(&mut self) {
        match self.dice.random_range(0..100) {
            0..8 => self.submit(),
            8..45 => self.end_an_attempt(),
            45..75 => self.deliver_next(),
            75..80 => {
                self.now += Duration::from_millis(self.dice.random_range(0..4000));
                self.tell(Event::Tick);
            }
            80..86 => self.read_a_result(),
            86..88 => self.release_a_job(),
            88..93 => self.start_an_executor(),
            _ => self.misfortune(),
        }
    }

    /// No more faults: everything that is on its way arrives, everything that runs ends, and then all jobs have ended.
    fn calm_down(&mut self) {
        self.faults = faults::Faults::none();
        for round in 0.. {
            while !self.inbox.is_empty() {
                self.deliver_next();
            }
            if !self.executors.values().any(|executor| executor.up && executor.lives && executor.slots > 0) {
                self.start_an_executor();
                continue;
            }
            for attempt in self.runs.iter().filter(|(_, run)| run.runs).map(|(id, _)| *id).collect::<Vec<_>>()
            {
                self.end(attempt);
            }
            for task in self.readable() {
                self.read(task);
            }
            if let Some(at) = self.scheduler.next_wakeup() {
                self.now = self.now.max(at);
                self.tell(Event::Tick);
            }
            let open = self.jobs.values().filter(|job| !job.has_ended()).count();
            if open == 0 && self.inbox.is_empty() && self.runs.values().all(|run| !run.runs) {
                break;
            }
            assert!(round < 2_000, "{open} jobs never end: {:#?}", self.scheduler);
        }
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.tell(Event::Release { job });
            assert_eq!(self.scheduler.progress(job), None);
        }
        assert_eq!(self.scheduler.counters().running(), 0);
        assert_eq!(self.scheduler.counters().launched, self.runs.len() as u64);
    }

    /// Tells the scheduler, does what it says, and looks whether it can be right.
    fn tell(&mut self, event: Event) {
        if self.tells {
            println!("{:>8} ms  {event:?}", self.now.as_millis());
        }
        self.note(&event);
        let ended = match &event {
            Event::Succeeded { attempt, .. } => Some(attempt.task),
            _ => None,
        };
        let actions = self.scheduler.handle(self.now, event);
        if let Some(task) = ended {
            self.note_counted(task);
        }
        for action in &actions {
            if self.tells {
                println!("             {action:?}");
            }
            self.act(action);
        }
        if let Err(broken) = invariants::check(&self.scheduler) {
            panic!("{broken}");
        }
        let running = self.scheduler.counters().running();
        assert_eq!(running, self.live.len() as u64, "the scheduler thinks that other attempts run");
    }

    /// What the scheduler will know from this event.
    fn note(&mut self, event: &Event) {
        match event {
            Event::Submit(spec) => {
                self.jobs.entry(spec.id).or_insert_with(|| JobModel::new(spec.clone()));
            }
            Event::ExecutorUp { executor, slots, .. } => {
                if let Some(executor) = self.executors.get_mut(executor) {
                    executor.up = true;
                    executor.slots = *slots;
                }
            }
            Event::ExecutorLost { executor, .. } => {
                if let Some(known) = self.executors.get_mut(executor) {
                    known.up = false;
                    self.live.retain(|attempt| self.runs[attempt].executor != *executor);
                }
            }
            Event::WorkerLost { worker, .. } => self.note_worker_lost(worker),
            Event::Succeeded { attempt, .. } => {
                self.live.remove(attempt);
            }
            Event::Failed { attempt, failure } => {
                if let firesteel_engine_core::Failure::FetchFailed { lost, .. } = failure
                    && self.live.contains(attempt)
                {
                    self.note_lost(*lost);
                }
                self.live.remove(attempt);
            }
            Event::FetchFailed { lost, .. } => self.note_lost(*lost),
            Event::Delivered { task, all } => self.note_delivered(*task, *all),
            Event::CancelJob { .. } | Event::Release { .. } | Event::Tick => {}
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Launch { attempt, executor, hints } => {
                self.seen.count(if hints.speculative { "launch: a copy" } else { "launch" });
                self.check_single(*attempt, *executor, hints.speculative);
                let reads = self.inputs_of(*attempt);
                self.start(*attempt, *executor, reads, Vec::new());
            }
            Action::LaunchRegion { attempts, .. } => {
                self.seen.count("launch: a gang");
                self.check_gang(attempts);
                let all: Vec<AttemptId> = attempts.iter().map(|(attempt, _)| *attempt).collect();
                for (attempt, executor) in attempts {
                    let reads = self.inputs_of(*attempt);
                    self.start(*attempt, *executor, reads, all.clone());
                }
            }
            Action::Cancel { attempt, executor, .. } => {
                assert_eq!(self.runs[attempt].executor, *executor);
                assert!(self.live.remove(attempt), "{attempt} does not run");
                self.cancel(*attempt);
            }
            Action::Discard { attempt, .. } => {
                self.seen.count("discard");
                let current = self.scheduler.output(attempt.task).map(|(id, _)| id);
                assert_ne!(current, Some(*attempt), "an output that counts is discarded");
                self.files.remove(attempt);
            }
            Action::ResultReady { attempt } => {
                let job = &self.jobs[&attempt.task.job];
                assert!(job.spec.results.contains(&attempt.task.stage), "{attempt} is no result");
            }
            Action::StageFinished { .. } => {}
            Action::JobFinished { job } => {
                self.seen.count("finished");
                self.check_rows(*job);
                self.jobs.get_mut(job).expect("a job").finished = true;
            }
            Action::JobFailed { error } => {
                self.seen.count(format!("failed: {:?}", error.kind));
                let job = self.jobs.get_mut(&error.job).expect("a job");
                assert!(!job.failed, "{} failed twice", error.job);
                job.failed = true;
                assert!(error.kind != JobErrorKind::Fatal || self.faults.may_be_fatal(), "{error}");
            }
            Action::DiscardJob { job } => {
                self.files.retain(|attempt| attempt.task.job != *job);
            }
        }
    }

    fn post(&mut self, delay_ms: u64, event: Event) {
        self.posted += 1;
        self.inbox.insert((self.now + Duration::from_millis(delay_ms), self.posted), event);
    }

    fn deliver_next(&mut self) {
        if let Some(((at, _), event)) = self.inbox.pop_first() {
            self.now = self.now.max(at);
            self.tell(event);
        }
    }

    fn submit(&mut self) {
        if self.jobs.values().filter(|job| !job.has_ended()).count() < 6 {
            let job = jobs::any(&mut self.dice, JobId(self.jobs.len() as u32));
            self.tell(Event::Submit(job));
        }
    }

    /// A new executor, sometimes on a worker that has died and come back.
    fn start_an_executor(&mut self) {
        let n = self.dice.random_range(0..self.workers.len());
        let worker = &mut self.workers[n];
        if !worker.lives && !worker.death_is_known {
            return;
        }
        worker.lives = true;
        let (executor, worker) = (ExecutorId(self.executors.len() as u32), worker.key.clone());
        let slots = self.dice.random_range(1..4);
        self.executors.insert(executor, Executor { worker: n, slots, lives: true, up: true });
        self.tell(Event::ExecutorUp { executor, worker, slots });
    }

    /// Result tasks whose outputs are there and have not been read.
    fn readable(&self) -> Vec<TaskId> {
        let jobs = self.jobs.values().filter(|job| !job.failed && !job.released);
        let tasks = jobs
            .flat_map(|job| job.result_tasks().into_iter().filter(|task| !job.delivered.contains_key(task)));
        tasks.filter(|task| self.scheduler.output(*task).is_some()).collect()
    }

    fn read_a_result(&mut self) {
        let readable = self.readable();
        if !readable.is_empty() {
            let n = self.dice.random_range(0..readable.len());
            self.read(readable[n]);
        }
    }

    /// The driver reads a result, or finds that it cannot.
    fn read(&mut self, task: TaskId) {
        let Some((attempt, Output { place, .. })) = self.scheduler.output(task) else { return };
        let fails = self.dice.random_bool(self.faults.fetch);
        if *place == Place::Inline || (self.files.contains(&attempt) && !fails) {
            self.seen.count("result read");
            self.tell(Event::Delivered { task, all: true });
        } else {
            self.seen.count("result lost");
            self.tell(Event::FetchFailed { lost: attempt, message: "gone".into() });
        }
    }

    fn release_a_job(&mut self) {
        let all_read = |job: &&JobModel| job.finished && job.delivered.len() == job.result_tasks().len();
        let done = self.jobs.values().find(|job| !job.released && (job.failed || all_read(job)));
        if let Some(job) = done.map(|job| job.spec.id) {
            self.tell(Event::Release { job });
            self.jobs.get_mut(&job).expect("a job").released = true;
        }
    }
}

fn policy(dice: &mut StdRng) -> Policy {
    let default = Policy::default();
    Policy {
        task_attempts_max: dice.random_range(1..6),
        stage_attempts_max: dice.random_range(1..6),
        interruptions_max: dice.random_range(1..10),
        suspicion: Duration::from_millis(dice.random_range(1..5000)),
        locality_wait: Duration::from_millis(if dice.random_bool(0.5) { 0 } else { 1000 }),
        locality_percent_min: dice.random_range(0..101),
        exclusion: default.exclusion.filter(|_| dice.random_bool(0.7)),
        speculation: default.speculation.filter(|_| dice.random_bool(0.7)).map(|rules| Speculation {
            finished_percent_min: dice.random_range(1..100),
            running_min: Duration::from_millis(dice.random_range(0..1000)),
            ..rules
        }),
        order: if dice.random_bool(0.5) { JobOrder::Fair } else { JobOrder::Fifo },
        pools: BTreeMap::from([("b".to_owned(), Pool { weight: 3 })]),
    }
}
