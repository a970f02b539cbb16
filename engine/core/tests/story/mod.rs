//! Runs a story and writes down what happens.

mod parse;
mod print;

use firesteel_engine_core::{
    Action, AttemptId, Event, ExecutorId, Failure, Output, Place, Policy, Scheduler, WorkerKey, invariants,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

struct Teller {
    scheduler: Scheduler,
    now: Duration,
    workers: BTreeMap<ExecutorId, WorkerKey>,
    ran_on: BTreeMap<AttemptId, ExecutorId>,
    running: BTreeSet<AttemptId>,
    out: String,
}

/// The story again, with the output of each block as it is now.
pub fn tell(text: &str) -> String {
    let mut teller = Teller::new(Policy::default());
    let mut told = String::new();
    let mut in_output = false;
    for line in text.lines().chain([""]) {
        match line {
            "---" => in_output = true,
            "" => {
                if in_output {
                    told.push_str("---\n");
                    told.push_str(&std::mem::take(&mut teller.out));
                }
                assert!(teller.out.is_empty(), "a block without --- is checked for nothing: {}", teller.out);
                told.push('\n');
                in_output = false;
            }
            _ if in_output => {}
            command => {
                told.push_str(command);
                told.push('\n');
                if !command.starts_with('#') {
                    teller.command(command);
                }
            }
        }
    }
    format!("{}\n", told.trim_end())
}

impl Teller {
    fn new(policy: Policy) -> Self {
        Self {
            scheduler: Scheduler::new(policy),
            now: Duration::ZERO,
            workers: BTreeMap::new(),
            ran_on: BTreeMap::new(),
            running: BTreeSet::new(),
            out: String::new(),
        }
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["policy", settings @ ..] => *self = Self::new(parse::policy(settings)),
            ["up", executor, "on", worker, slots] => {
                let (executor, worker) = (parse::executor(executor), WorkerKey::from(*worker));
                self.workers.insert(executor, worker.clone());
                let slots = slots.parse().expect("slots");
                self.tell(Event::ExecutorUp { executor, worker, slots });
            }
            ["lost", executor, reason @ ..] => {
                let (executor, reason) = (parse::executor(executor), reason.join(" "));
                self.forget(|ran_on, _| *ran_on == executor);
                self.tell(Event::ExecutorLost { executor, reason });
            }
            ["worker-lost", worker, reason @ ..] => {
                let (worker, reason) = (WorkerKey::from(*worker), reason.join(" "));
                self.forget(|ran_on, workers| workers[ran_on] == worker);
                self.tell(Event::WorkerLost { worker, reason });
            }
            ["job", number, rest @ ..] => self.tell(Event::Submit(parse::job(number, rest))),
            ["ok", rest @ ..] => self.succeed(rest),
            ["all", stage] => {
                let pattern = format!("{stage}.*");
                while !self.matching(&pattern).is_empty() {
                    self.succeed(&[&pattern]);
                }
            }
            [how @ ("fail" | "oom" | "fatal" | "gone" | "cancelled"), attempt, message @ ..] => {
                let message = message.join(" ");
                let failure = match *how {
                    "fail" => Failure::Retryable(message),
                    "oom" => Failure::OutOfMemory(message),
                    "fatal" => Failure::Fatal(message),
                    "gone" => Failure::ExecutorGone(message),
                    _ => Failure::Cancelled,
                };
                self.fail(parse::attempt(attempt), failure);
            }
            ["fetch", attempt, "lost", lost] => {
                let (lost, message) = (parse::attempt(lost), "connection refused".to_owned());
                self.fail(parse::attempt(attempt), Failure::FetchFailed { lost, message });
            }
            ["driver-fetch", lost] => {
                let (lost, message) = (parse::attempt(lost), "connection refused".to_owned());
                self.tell(Event::FetchFailed { lost, message });
            }
            ["delivered", task, how] => {
                let task = parse::attempt(&format!("{task}#0")).task;
                self.tell(Event::Delivered { task, all: *how == "all" });
            }
            ["cancel", job, reason @ ..] => {
                self.tell(Event::CancelJob { job: parse::job_id(job), reason: reason.join(" ") });
            }
            ["release", job] => self.tell(Event::Release { job: parse::job_id(job) }),
            ["pass", ms] => {
                self.now += Duration::from_millis(ms.parse().expect("milliseconds"));
                self.tell(Event::Tick);
            }
            ["wake"] => {
                let wake = self.scheduler.next_wakeup();
                let _ = match wake {
                    None => writeln!(self.out, "nothing depends on time"),
                    Some(at) => writeln!(self.out, "look again at {} ms", at.as_millis()),
                };
            }
            ["state"] => self.out.push_str(&print::state(&self.scheduler)),
            ["counters"] => self.out.push_str(&print::counters(&self.scheduler)),
            ["outputs", stage] => self.out.push_str(&print::outputs(&self.scheduler, stage)),
            ["attempts", task] => self.out.push_str(&print::attempts(&self.scheduler, task)),
            _ => panic!("no such command: {line}"),
        }
    }

    fn tell(&mut self, event: Event) {
        for action in self.scheduler.handle(self.now, event) {
            self.out.push_str(&print::action(&action));
            match action {
                Action::Launch { attempt, executor, .. } => self.start(attempt, executor),
                Action::LaunchRegion { attempts, .. } => {
                    attempts.into_iter().for_each(|(attempt, executor)| self.start(attempt, executor));
                }
                Action::Cancel { attempt, .. } => {
                    self.running.remove(&attempt);
                }
                _ => {}
            }
        }
        if let Err(broken) = invariants::check(&self.scheduler) {
            panic!("{broken}\n{}", self.out);
        }
    }

    fn start(&mut self, attempt: AttemptId, executor: ExecutorId) {
        assert!(self.ran_on.insert(attempt, executor).is_none(), "{attempt} was launched before");
        self.running.insert(attempt);
    }

    /// Attempts that die with what they run on.
    fn forget(&mut self, dies: impl Fn(&ExecutorId, &BTreeMap<ExecutorId, WorkerKey>) -> bool) {
        let (ran_on, workers) = (&self.ran_on, &self.workers);
        self.running.retain(|attempt| !dies(&ran_on[attempt], workers));
    }

    /// Running attempts of a stage for `S.*`, else the one attempt, running or not.
    fn matching(&self, pattern: &str) -> Vec<AttemptId> {
        match pattern.strip_suffix(".*") {
            None => vec![parse::attempt(pattern)],
            Some(stage) => {
                let of = parse::attempt(&format!("{stage}.0#0")).task;
                let same = |a: &&AttemptId| a.task.job == of.job && a.task.stage == of.stage;
                self.running.iter().filter(same).copied().collect()
            }
        }
    }

    fn succeed(&mut self, words: &[&str]) {
        let option = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let bytes = option("bytes").map_or(100, |text| text.parse().expect("bytes"));
        for pattern in words.iter().filter(|word| word.contains('.')) {
            for attempt in self.matching(pattern) {
                let worker = match (option("at"), self.ran_on.get(&attempt)) {
                    (Some(worker), _) => WorkerKey::from(worker),
                    (None, Some(executor)) => self.workers[executor].clone(),
                    (None, None) => WorkerKey::from("w0"),
                };
                let inline = words.contains(&"inline");
                let place = if inline { Place::Inline } else { Place::Worker(worker) };
                self.running.remove(&attempt);
                self.tell(Event::Succeeded { attempt, output: Output { place, bytes, rows: 1 } });
            }
        }
    }

    fn fail(&mut self, attempt: AttemptId, failure: Failure) {
        self.running.remove(&attempt);
        self.tell(Event::Failed { attempt, failure });
    }
}
