//! What ends, dies and gets lost.

use super::World;
use firesteel_engine_core::{AttemptId, Event, ExecutorId, Failure, JobId, Output, Place, StageId, TaskId};
use rand::Rng;
use rand::rngs::StdRng;

/// How likely it is that something goes wrong. Some worlds know only some kinds of trouble, so that it can be said what
/// must not happen in them.
#[derive(Debug)]
pub struct Faults {
    /// An attempt fails.
    pub failure: f64,
    pub fatal: f64,
    /// An output that is there cannot be read.
    pub fetch: f64,
    pub executors: bool,
    pub workers: bool,
    /// The driver hears wrong, twice, or late.
    pub confusion: bool,
    pub cancels: bool,
}

impl Faults {
    pub fn any(dice: &mut StdRng) -> Self {
        let mut some = |likely: f64| if dice.random_bool(0.5) { likely } else { 0.0 };
        Self {
            failure: some(0.2),
            fatal: some(0.005),
            fetch: some(0.1),
            executors: some(1.0) > 0.0,
            workers: some(1.0) > 0.0,
            confusion: some(1.0) > 0.0,
            cancels: some(1.0) > 0.0,
        }
    }

    pub fn none() -> Self {
        Self {
            failure: 0.0,
            fatal: 0.0,
            fetch: 0.0,
            executors: false,
            workers: false,
            confusion: false,
            cancels: false,
        }
    }

    /// Reports of earlier faults may still be on their way.
    pub fn may_be_fatal(&self) -> bool {
        true
    }
}

impl World {
    pub fn end_an_attempt(&mut self) {
        let running: Vec<AttemptId> =
            self.runs.iter().filter(|(_, run)| run.runs).map(|(id, _)| *id).collect();
        if !running.is_empty() {
            let n = self.dice.random_range(0..running.len());
            self.end(running[n]);
        }
    }

    /// An attempt comes to its end, and its report is on its way.
    pub fn end(&mut self, attempt: AttemptId) {
        self.runs.get_mut(&attempt).expect("an attempt").runs = false;
        let run = &self.runs[&attempt];
        let unreadable = run.reads.iter().find(|read| {
            let read_run = &self.runs[read];
            !read_run.inline && !self.files.contains(read)
        });
        // It may have read it before it got lost.
        let unreadable = unreadable.copied().filter(|_| self.dice.random_bool(0.9));
        let noise = run.reads.first().copied().filter(|_| self.dice.random_bool(self.faults.fetch));
        let worker = self.workers[self.executors[&run.executor].worker].key.clone();
        let event = if let Some(lost) = unreadable.or(noise) {
            Event::Failed { attempt, failure: Failure::FetchFailed { lost, message: "gone".into() } }
        } else if self.dice.random_bool(self.faults.failure) {
            let failure = match self.dice.random_range(0..5) {
                0 => Failure::OutOfMemory("too little".into()),
                1 => Failure::Cancelled,
                2 => Failure::ExecutorGone("reset".into()),
                _ => Failure::Retryable("disk full".into()),
            };
            Event::Failed { attempt, failure }
        } else if self.dice.random_bool(self.faults.fatal) {
            Event::Failed { attempt, failure: Failure::Fatal("division by zero".into()) }
        } else {
            let inline = self.dice.random_bool(0.2);
            self.runs.get_mut(&attempt).expect("an attempt").inline = inline;
            if !inline {
                self.files.insert(attempt);
            }
            let place = if inline { Place::Inline } else { Place::Worker(worker) };
            let bytes = self.dice.random_range(0..1000);
            Event::Succeeded { attempt, output: Output { place, bytes, rows: 1 } }
        };
        let delay = self.delay();
        if self.faults.confusion && self.dice.random_bool(0.1) {
            let later = self.delay();
            self.post(later, event.clone());
        }
        self.post(delay, event);
    }

    fn delay(&mut self) -> u64 {
        match self.faults.confusion && self.dice.random_bool(0.1) {
            true => self.dice.random_range(0..20_000),
            false => self.dice.random_range(0..50),
        }
    }

    /// The scheduler does not want this attempt any more; it may not hear of that in time.
    pub fn cancel(&mut self, attempt: AttemptId) {
        let run = self.runs.get_mut(&attempt).expect("an attempt");
        if run.runs && self.dice.random_bool(0.7) {
            run.runs = false;
            if self.dice.random_bool(0.5) {
                self.post(10, Event::Failed { attempt, failure: Failure::Cancelled });
            }
        }
    }

    pub fn misfortune(&mut self) {
        match self.dice.random_range(0..6) {
            0 if self.faults.executors => {
                if let Some(executor) = self.any_living_executor() {
                    self.kill(executor);
                }
            }
            1 if self.faults.workers => self.kill_a_worker(),
            2 if self.faults.confusion && self.faults.executors => self.false_alarm(),
            3 if self.faults.confusion => self.nonsense(),
            4 if self.faults.cancels => self.cancel_or_start_to_deliver(),
            5 if self.faults.confusion => {
                // Its slots change.
                if let Some(executor) = self.any_living_executor().filter(|id| self.executors[id].up) {
                    let worker = self.workers[self.executors[&executor].worker].key.clone();
                    let slots = self.dice.random_range(0..4);
                    self.tell(Event::ExecutorUp { executor, worker, slots });
                }
            }
            _ => {}
        }
    }

    fn any_living_executor(&mut self) -> Option<ExecutorId> {
        let living: Vec<ExecutorId> =
            self.executors.iter().filter(|(_, executor)| executor.lives).map(|(id, _)| *id).collect();
        (!living.is_empty()).then(|| living[self.dice.random_range(0..living.len())])
    }

    /// It dies at once; that is known a little later, and sometimes first from its broken connections.
    fn kill(&mut self, executor: ExecutorId) {
        self.executors.get_mut(&executor).expect("an executor").lives = false;
        let mut gone = Vec::new();
        for (attempt, run) in self.runs.iter_mut().filter(|(_, run)| run.executor == executor && run.runs) {
            run.runs = false;
            gone.push(*attempt);
        }
        for attempt in gone {
            if self.dice.random_bool(0.5) {
                let failure = Failure::ExecutorGone("connection reset".into());
                self.post(5, Event::Failed { attempt, failure });
            }
        }
        let delay = self.dice.random_range(0..2000);
        self.post(delay, Event::ExecutorLost { executor, reason: "signal 9".into() });
    }

    fn kill_a_worker(&mut self) {
        let n = self.dice.random_range(0..self.workers.len());
        if !self.workers[n].lives {
            return;
        }
        self.workers[n].lives = false;
        self.workers[n].death_is_known = false;
        for executor in self.executors_on(n) {
            self.kill(executor);
        }
        let (executors, runs) = (&self.executors, &self.runs);
        self.files.retain(|attempt| executors[&runs[attempt].executor].worker != n);
        let delay = self.dice.random_range(0..5000);
        let worker = self.workers[n].key.clone();
        self.post(delay, Event::WorkerLost { worker, reason: "no heartbeat".into() });
    }

    fn executors_on(&self, worker: usize) -> Vec<ExecutorId> {
        let here = self.executors.iter().filter(|(_, executor)| executor.worker == worker && executor.lives);
        here.map(|(id, _)| *id).collect()
    }

    /// An executor counts as lost and lives: it may report later, and it may come back.
    fn false_alarm(&mut self) {
        let Some(executor) = self.any_living_executor() else { return };
        let worker = self.workers[self.executors[&executor].worker].key.clone();
        let slots = self.executors[&executor].slots.max(1);
        self.tell(Event::ExecutorLost { executor, reason: "no heartbeat".into() });
        if self.dice.random_bool(0.5) {
            self.tell(Event::ExecutorUp { executor, worker, slots });
        } else {
            // It is told to go away: nothing that runs there will ever be asked for.
            self.executors.get_mut(&executor).expect("an executor").lives = false;
        }
    }

    fn nonsense(&mut self) {
        let task = TaskId {
            job: JobId(self.dice.random_range(0..12)),
            stage: StageId(self.dice.random_range(0..7) * 10),
            task: self.dice.random_range(0..6),
        };
        let attempt = task.attempt(self.dice.random_range(0..3));
        let known = self.runs.contains_key(&attempt);
        let executor = ExecutorId(self.dice.random_range(1000..1010));
        let event = match self.dice.random_range(0..8) {
            0 if !known => {
                let place = Place::Worker(self.workers[0].key.clone());
                Event::Succeeded { attempt, output: Output { place, bytes: u64::MAX, rows: u64::MAX } }
            }
            1 if !known => Event::Failed { attempt, failure: Failure::Fatal("what?".into()) },
            2 => Event::FetchFailed { lost: attempt, message: "where?".into() },
            3 => Event::ExecutorLost { executor, reason: "who?".into() },
            4 => Event::WorkerLost { worker: "nobody".into(), reason: "who?".into() },
            5 => Event::Release { job: JobId(999) },
            6 => Event::CancelJob { job: JobId(999), reason: "why?".into() },
            _ => Event::Tick,
        };
        self.tell(event);
    }

    fn cancel_or_start_to_deliver(&mut self) {
        let live: Vec<AttemptId> = self.live.iter().copied().collect();
        if live.is_empty() {
            return;
        }
        let attempt = live[self.dice.random_range(0..live.len())];
        let job = &self.jobs[&attempt.task.job];
        let copies = live.iter().filter(|other| other.task == attempt.task).count();
        if job.spec.results.contains(&attempt.task.stage)
            && copies == 1
            && !job.delivered.contains_key(&attempt.task)
        {
            self.note_some_delivered(attempt);
            self.tell(Event::Delivered { task: attempt.task, all: false });
        } else if self.dice.random_bool(0.1) {
            self.tell(Event::CancelJob { job: attempt.task.job, reason: "the user".into() });
        }
    }
}
