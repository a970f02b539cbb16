//! What the driver tells the master about its jobs; the newest picture replaces the one before.

use crate::sql::plan::StageShape;
use crate::sql::script::summary;
use datafusion_distributed::TaskKey;
use firesteel_proto::v1::{JobProgress, Progress, StageProgress, TaskProgress, TaskState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Pictures are kept small: the first so many tasks of a stage are told one by one.
pub const TASKS_TOLD_MAX: usize = 1000;
const DESCRIPTION_CHARS_MAX: usize = 200;

/// Shared by whoever learns something about the work; every change wakes the link to the master.
#[derive(Debug, Clone)]
pub struct ProgressBoard {
    progress: Arc<Mutex<Progress>>,
    changed: Arc<watch::Sender<u64>>,
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Default for ProgressBoard {
    fn default() -> Self {
        Self { progress: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }
}

impl ProgressBoard {
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn picture(&self) -> Progress {
        let mut picture = self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        picture.at_ms = now_ms();
        picture
    }

    fn change(&self, f: impl FnOnce(&mut Progress)) {
        f(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|n| *n += 1);
    }

    fn change_job(&self, id: u32, f: impl FnOnce(&mut JobProgress)) {
        self.change(|p| {
            if let Some(job) = p.jobs.iter_mut().find(|job| job.id == id) {
                f(job);
            }
        });
    }

    /// All statements of the script, before the first one runs.
    pub fn plan_jobs<'a>(&self, statements: impl Iterator<Item = &'a str>) {
        let jobs = statements
            .enumerate()
            .map(|(i, text)| JobProgress {
                id: i as u32,
                description: summary(text, DESCRIPTION_CHARS_MAX),
                state: TaskState::Pending.into(),
                ..Default::default()
            })
            .collect();
        self.change(|p| p.jobs = jobs);
    }

    pub fn job_started(&self, id: u32) {
        self.change_job(id, |job| {
            job.state = TaskState::Running.into();
            job.started_ms = now_ms();
        });
    }

    /// A query (again) begins: its stages, all tasks pending.
    pub fn stages_planned(&self, id: u32, stages: &[StageShape], restarts: u32) {
        self.change_job(id, |job| {
            job.restarts = restarts;
            job.stages = stages
                .iter()
                .map(|stage| StageProgress {
                    id: stage.id as u32,
                    description: stage.description.clone(),
                    task_count: stage.tasks as u32,
                    tasks: (0..stage.tasks.min(TASKS_TOLD_MAX))
                        .map(|index| TaskProgress {
                            index: index as u32,
                            state: TaskState::Pending.into(),
                            ..Default::default()
                        })
                        .collect(),
                    ..Default::default()
                })
                .collect();
        });
    }

    pub fn task_changed(&self, id: u32, key: TaskKey, state: TaskState, executor: Option<u32>) {
        self.change_job(id, |job| {
            let task = job
                .stages
                .iter_mut()
                .find(|stage| stage.id as usize == key.stage_id)
                .and_then(|stage| stage.tasks.get_mut(key.task_number));
            let Some(task) = task else { return };
            task.state = state.into();
            if let Some(executor) = executor {
                task.executor = executor;
            }
            match state {
                TaskState::Running => task.started_ms = now_ms(),
                TaskState::Succeeded | TaskState::Failed => task.ended_ms = now_ms(),
                TaskState::Pending | TaskState::Unspecified => {}
            }
        });
    }

    /// One stage as it is now; its description stays.
    pub fn stage_changed(&self, id: u32, stage: StageProgress) {
        self.change_job(id, |job| {
            if let Some(told) = job.stages.iter_mut().find(|s| s.id == stage.id) {
                let description = std::mem::take(&mut told.description);
                *told = StageProgress { description, ..stage };
            }
        });
    }

    /// How the query runs, and why.
    pub fn mode_chosen(&self, id: u32, mode: String) {
        self.change_job(id, |job| job.mode = mode);
    }

    pub fn job_ended(&self, id: u32, rows: u64, error: Option<&str>) {
        self.change_job(id, |job| {
            let (done, open) = match error {
                None => (TaskState::Succeeded, TaskState::Succeeded),
                Some(_) => (TaskState::Failed, TaskState::Failed),
            };
            job.state = done.into();
            job.ended_ms = now_ms();
            job.rows = rows;
            job.error = error.map(|e| summary(e, 1000)).unwrap_or_default();
            for task in job.stages.iter_mut().flat_map(|stage| &mut stage.tasks) {
                if task.state == i32::from(TaskState::Running) {
                    task.state = open.into();
                    task.ended_ms = job.ended_ms;
                }
            }
        });
    }

    pub fn rows_so_far(&self, id: u32, rows: u64) {
        self.change_job(id, |job| job.rows = rows);
    }
}
