//! What must be true, seen from outside.
//!
//! Every attempt has *rows*, a number that stands for what it leaves: of a repeatable stage it follows from the task and
//! the rows that were read, otherwise also from the attempt. All that a job's results are made of, back to the leaves,
//! must be of one world: no task may have contributed with two different rows.

use super::World;
use firesteel_engine_core::{
    AttemptId, Cause, ExecutorId, InputKind, JobId, JobSpec, StageId, StageSpec, TaskId, WorkerKey,
};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::ops::Range;

pub struct JobModel {
    pub spec: JobSpec,
    pub finished: bool,
    pub failed: bool,
    pub released: bool,
    /// Results that the driver has read, of which attempts.
    pub delivered: BTreeMap<TaskId, AttemptId>,
    /// Results of which it has passed on some rows.
    pub begun: BTreeMap<TaskId, AttemptId>,
    /// Outputs that counted at some time.
    pub counted: BTreeMap<TaskId, AttemptId>,
    /// Outputs that the scheduler was told are lost.
    pub lost: BTreeSet<AttemptId>,
}

/// An attempt.
pub struct Run {
    pub executor: ExecutorId,
    /// In truth.
    pub runs: bool,
    /// Outputs that it reads, streams left out.
    pub reads: Vec<AttemptId>,
    /// All attempts of the gang it is part of.
    pub gang: Vec<AttemptId>,
    pub inline: bool,
    pub rows: u64,
}

impl JobModel {
    pub fn new(spec: JobSpec) -> Self {
        Self {
            spec,
            finished: false,
            failed: false,
            released: false,
            delivered: BTreeMap::new(),
            begun: BTreeMap::new(),
            counted: BTreeMap::new(),
            lost: BTreeSet::new(),
        }
    }

    pub fn has_ended(&self) -> bool {
        self.failed || self.released || (self.finished && self.delivered.len() == self.result_tasks().len())
    }

    pub fn stage(&self, id: StageId) -> &StageSpec {
        self.spec.stages.iter().find(|stage| stage.id == id).expect("a stage of the job")
    }

    pub fn result_tasks(&self) -> Vec<TaskId> {
        let results: BTreeSet<StageId> = self.spec.results.iter().copied().collect();
        let tasks = |stage: StageId| {
            (0..self.stage(stage).tasks).map(move |task| TaskId { job: self.spec.id, stage, task })
        };
        results.into_iter().flat_map(tasks).collect()
    }

    fn has_streams(&self) -> bool {
        self.spec.stages.iter().flat_map(|stage| &stage.inputs).any(|input| input.streamed)
    }

    fn is_repeatable(&self) -> bool {
        self.spec.stages.iter().all(|stage| stage.repeatable)
    }
}

/// As `datafusion-distributed` deals tasks out to the tasks that coalesce them.
fn group(producers: u32, consumers: u32, task: u32) -> Range<u32> {
    let mut groups = vec![0; consumers as usize];
    (0..producers).for_each(|n| groups[(n % consumers) as usize] += 1);
    let start = groups[..task as usize].iter().sum();
    start..start + groups[task as usize]
}

impl World {
    /// The outputs that an attempt will read; all of them must be there.
    pub fn inputs_of(&self, attempt: AttemptId) -> Vec<AttemptId> {
        let (job, task) = (&self.jobs[&attempt.task.job], attempt.task);
        let consumer = job.stage(task.stage);
        let mut reads = Vec::new();
        for input in consumer.inputs.iter().filter(|input| !input.streamed) {
            let producer = job.stage(input.stage);
            let read = match input.kind {
                InputKind::Shuffle | InputKind::Broadcast => 0..producer.tasks,
                InputKind::Coalesce => group(producer.tasks, consumer.tasks, task.task),
            };
            for n in read {
                let input = TaskId { stage: producer.id, task: n, ..task };
                let output = self.scheduler.output(input);
                let (read, _) = output.unwrap_or_else(|| panic!("{attempt} is launched without {input}"));
                reads.push(read);
            }
        }
        reads
    }

    pub fn check_single(&self, attempt: AttemptId, executor: ExecutorId, speculative: bool) {
        let known = &self.executors[&executor];
        assert!(known.up, "{attempt} is launched on {executor}, which is lost");
        let running = self.live.iter().filter(|other| self.runs[other].executor == executor).count();
        assert!(running < known.slots as usize, "{attempt} is launched on {executor}, which is full");
        let twins: Vec<_> = self.live.iter().filter(|other| other.task == attempt.task).collect();
        assert_eq!(twins.len(), usize::from(speculative), "{attempt} beside {twins:?}");
        assert!(twins.iter().all(|twin| self.runs[twin].executor != executor), "{attempt} beside {twins:?}");
        self.check_need(attempt);
    }

    pub fn check_gang(&self, attempts: &[(AttemptId, ExecutorId)]) {
        let tasks: BTreeSet<TaskId> = attempts.iter().map(|(attempt, _)| attempt.task).collect();
        assert_eq!(tasks.len(), attempts.len(), "a task twice in {attempts:?}");
        let job = &self.jobs[&attempts[0].0.task.job];
        let stages: BTreeSet<StageId> = tasks.iter().map(|task| task.stage).collect();
        let all: u32 = stages.iter().map(|&id| job.stage(id).tasks).sum();
        assert_eq!(all as usize, tasks.len(), "not all tasks of {stages:?}");
        for stage in &job.spec.stages {
            for input in stage.inputs.iter().filter(|input| input.streamed) {
                let (from, to) = (stages.contains(&input.stage), stages.contains(&stage.id));
                assert_eq!(from, to, "a stream leaves the gang of {stages:?}");
            }
        }
        for (attempt, executor) in attempts {
            assert!(self.executors[executor].up, "{attempt} is launched on {executor}, which is lost");
            assert!(self.live.iter().all(|other| other.task != attempt.task), "{attempt} runs already");
        }
    }

    /// What runs again does so because its output was lost; without faults of that kind nothing does.
    fn check_need(&self, attempt: AttemptId) {
        let job = &self.jobs[&attempt.task.job];
        if job.has_streams() || !job.is_repeatable() {
            return;
        }
        if let Some(counted) = job.counted.get(&attempt.task) {
            assert!(job.lost.contains(counted), "{attempt} runs although {counted} was not lost");
        }
    }

    pub fn start(
        &mut self,
        attempt: AttemptId,
        executor: ExecutorId,
        reads: Vec<AttemptId>,
        gang: Vec<AttemptId>,
    ) {
        let job = &self.jobs[&attempt.task.job];
        let mut hash = DefaultHasher::new();
        attempt.task.hash(&mut hash);
        for read in &reads {
            self.runs[read].rows.hash(&mut hash);
        }
        if gang.is_empty() {
            if !job.stage(attempt.task.stage).repeatable {
                attempt.attempt.hash(&mut hash);
            }
        } else {
            // It depends on all that the gang reads, and on chance if one of its stages does.
            for other in &gang {
                for read in self.inputs_of(*other) {
                    self.runs[&read].rows.hash(&mut hash);
                }
                if !job.stage(other.task.stage).repeatable {
                    other.attempt.hash(&mut hash);
                }
            }
        }
        let progress = self.scheduler.tasks(attempt.task.job, attempt.task.stage, attempt.task.task, 1);
        let now = progress.first().and_then(|task| task.attempts.get(attempt.attempt as usize));
        let cause = now.expect("the scheduler knows what it has launched").cause;
        if cause != Cause::First {
            self.seen.count(format!("launch: again because of {cause:?}"));
        }
        let lives = self.executors[&executor].lives;
        let run = Run { executor, runs: lives, reads, gang, inline: false, rows: hash.finish() };
        assert!(self.runs.insert(attempt, run).is_none(), "{attempt} was launched before");
        self.live.insert(attempt);
    }

    pub fn note_counted(&mut self, task: TaskId) {
        if let (Some(job), Some((attempt, _))) = (self.jobs.get_mut(&task.job), self.scheduler.output(task)) {
            job.counted.insert(task, attempt);
        }
    }

    pub fn note_lost(&mut self, lost: AttemptId) {
        if let Some(job) = self.jobs.get_mut(&lost.task.job) {
            job.lost.insert(lost);
        }
    }

    pub fn note_worker_lost(&mut self, worker: &WorkerKey) {
        let Some(n) = self.workers.iter().position(|known| known.key == *worker) else { return };
        self.workers[n].death_is_known = true;
        for executor in self.executors.values_mut().filter(|executor| executor.worker == n) {
            executor.up = false;
        }
        let (executors, runs) = (&self.executors, &self.runs);
        self.live.retain(|attempt| executors[&runs[attempt].executor].worker != n);
        for (attempt, run) in self.runs.iter().filter(|(_, run)| executors[&run.executor].worker == n) {
            if !run.inline {
                self.jobs.get_mut(&attempt.task.job).expect("a job").lost.insert(*attempt);
            }
        }
    }

    pub fn note_delivered(&mut self, task: TaskId, all: bool) {
        if let (Some(job), Some((attempt, _)), true) =
            (self.jobs.get_mut(&task.job), self.scheduler.output(task), all)
        {
            job.delivered.insert(task, attempt);
        }
    }

    pub fn note_some_delivered(&mut self, attempt: AttemptId) {
        let job = self.jobs.get_mut(&attempt.task.job).expect("a job");
        job.begun.insert(attempt.task, attempt);
    }

    /// All results are there, and are of one world.
    pub fn check_rows(&self, id: JobId) {
        let job = &self.jobs[&id];
        let mut open: Vec<AttemptId> = Vec::new();
        for task in job.result_tasks() {
            let attempt = match job.delivered.get(&task) {
                Some(attempt) => *attempt,
                None => self.scheduler.output(task).unwrap_or_else(|| panic!("{id} has no {task}")).0,
            };
            let begun = job.begun.get(&task);
            assert!(begun.is_none_or(|begun| *begun == attempt), "{attempt} after rows of {begun:?}");
            open.push(attempt);
        }
        let mut rows: BTreeMap<TaskId, (u64, AttemptId)> = BTreeMap::new();
        let mut seen: BTreeSet<AttemptId> = BTreeSet::new();
        while let Some(attempt) = open.pop() {
            if !seen.insert(attempt) {
                continue;
            }
            let run = &self.runs[&attempt];
            let (first, by) = *rows.entry(attempt.task).or_insert((run.rows, attempt));
            assert_eq!(first, run.rows, "{id} is made of rows of both {by} and {attempt}");
            open.extend(run.reads.iter().chain(&run.gang));
        }
    }
}
