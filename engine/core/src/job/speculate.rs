//! Copies of slow tasks.
//!
//! Problem: one slow machine holds a stage up. When most of a stage's tasks have finished, a task that has run much longer
//! than they did gets one copy on another executor, and whichever ends first counts (after Spark and MapReduce's backup
//! tasks). Copies wait for slots like any task, behind the tasks of their stage.

use super::{Delivery, Job, TaskState};
use crate::context::Context;
use std::time::Duration;

impl Job {
    /// How long a task of the stage may run before it gets a copy. `None`: no copies now.
    fn patience(&self, cx: &Context, stage: usize) -> Option<Duration> {
        let rules = cx.policy.speculation.as_ref()?;
        let stage = &self.stages[stage];
        let (tasks, done) = (u64::from(stage.task_count()), u64::from(stage.task_count() - stage.open));
        let enough = done > 0 && done * 100 >= tasks * u64::from(rules.finished_percent_min);
        enough.then(|| {
            (stage.durations.get().saturating_mul(rules.median_percent) / 100).max(rules.running_min)
        })
    }

    /// When the next task becomes a straggler, if none ends before.
    pub fn next_straggler(&self, cx: &Context, stage: usize) -> Option<Duration> {
        let (started, _) = *self.stages[stage].candidates.first()?;
        Some(started.saturating_add(self.patience(cx, stage)?))
    }

    /// Wants copies of all that have become stragglers by now.
    pub fn find_stragglers(&mut self, cx: &mut Context, stage: usize) {
        while self.next_straggler(cx, stage).is_some_and(|at| at <= cx.now) {
            let stage = &mut self.stages[stage];
            let Some((_, number)) = stage.candidates.pop_first() else { break };
            let task = &mut stage.tasks[number as usize];
            task.copied = true;
            // Of a result that is being passed on as it comes a copy is of no use.
            if task.state == TaskState::Running && task.delivery == Delivery::Nothing {
                stage.copies.insert(number);
            }
        }
        self.refresh(cx, stage);
    }
}
