//! The job for pages.

use super::{Job, Stage};
use crate::context::Context;
use crate::{AttemptProgress, Counters, JobProgress, StageId, StageProgress, StageState, TaskProgress};

impl Job {
    pub fn progress(&self, cx: &Context) -> JobProgress {
        let stages: Vec<StageProgress> =
            self.stages.iter().map(|stage| self.stage_progress(cx, stage)).collect();
        JobProgress {
            job: self.id,
            pool: self.pool_name.clone(),
            state: self.state.clone(),
            submitted: self.submitted,
            ended: self.ended,
            counters: stages.iter().fold(Counters::default(), |sum, stage| sum + stage.counters),
            stages,
        }
    }

    fn stage_progress(&self, cx: &Context, stage: &Stage) -> StageProgress {
        let excluded = stage.distrust.excluded(&cx.fleet);
        StageProgress {
            stage: stage.id,
            state: match (stage.open, stage.blocked_by) {
                (0, _) => StageState::Finished,
                (_, 0) => StageState::Running,
                _ if stage.running > 0 => StageState::Running,
                _ => StageState::Waiting,
            },
            region: stage.region as u32,
            tasks: stage.task_count(),
            done: stage.task_count() - stage.open,
            running: stage.running,
            output_bytes: stage.output_bytes,
            output_rows: stage.output_rows,
            started: stage.started,
            ended: stage.ended,
            excluded: excluded.into_iter().map(|index| cx.fleet.executor(index).id).collect(),
            counters: stage.counters,
        }
    }

    pub fn tasks_progress(
        &self,
        cx: &Context,
        stage: StageId,
        first: u32,
        limit: usize,
    ) -> Vec<TaskProgress> {
        let Some(&stage) = self.numbers.get(&stage) else { return Vec::new() };
        let tasks = (0..).zip(&self.stages[stage].tasks).skip(first as usize).take(limit);
        tasks
            .map(|(task, now)| TaskProgress {
                task,
                last_error: match self.is_gang(stage) {
                    true => self.regions[self.stages[stage].region].retries.last_error.clone(),
                    false => now.retries.last_error.clone(),
                },
                output: now.output.as_ref().map(|made| {
                    (self.attempt_id(super::At { stage, task }, made.attempt), made.output.clone())
                }),
                attempts: now
                    .attempts
                    .iter()
                    .map(|attempt| AttemptProgress {
                        executor: cx.fleet.executor(attempt.executor).id,
                        cause: attempt.cause,
                        state: attempt.state,
                        started: attempt.started,
                        ended: attempt.ended,
                    })
                    .collect(),
            })
            .collect()
    }
}
