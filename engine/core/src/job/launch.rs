//! The beginning and the end of an attempt, and whether a stage has something to launch.

use super::place::Choice;
use super::task::Attempt;
use super::{At, Job, TaskState};
use crate::context::{Alarm, Context};
use crate::fleet::ExecutorIndex;
use crate::pools::Turn;
use crate::{Action, AttemptId, AttemptState, Cause, Hints};
use std::time::Duration;

impl Job {
    pub fn turn(&self, stage: usize) -> Turn {
        Turn { sequence: self.sequence, job: self.id, stage }
    }

    /// Launches one task of the stage. `false`: none of them can be placed now.
    pub fn launch_one(&mut self, cx: &mut Context, stage: usize) -> bool {
        let choice = self.choose(cx, stage).or_else(|| {
            let lifted = self.stages[stage].distrust.lift_if_none_is_left(&cx.fleet);
            lifted.then(|| self.choose(cx, stage)).flatten()
        });
        let Some(Choice { task, executor, speculative }) = choice else { return false };
        let at = At { stage, task };
        let cause = if speculative { Cause::Speculation } else { self.task(at).cause };
        if speculative {
            self.stages[stage].copies.remove(&task);
        } else {
            self.stages[stage].queue.remove(task);
        }
        let attempt = self.start(cx, at, executor, cause);
        let hints = Hints { out_of_memory_before: self.task(at).retries.out_of_memory, speculative };
        let executor = cx.fleet.executor(executor).id;
        cx.actions.push(Action::Launch { attempt, executor, hints });
        self.refresh(cx, stage);
        true
    }

    /// Enters an attempt into all books.
    pub fn start(&mut self, cx: &mut Context, at: At, executor: ExecutorIndex, cause: Cause) -> AttemptId {
        let stage = &mut self.stages[at.stage];
        let task = &mut stage.tasks[at.task as usize];
        let number = task.attempts.len() as u32;
        let cause = if number == 0 { Cause::First } else { cause };
        let (life, started) = (cx.fleet.life(executor), cx.now);
        task.attempts.push(Attempt {
            executor,
            life,
            cause,
            state: AttemptState::Running,
            started,
            ended: None,
        });
        if task.live.len() == 0 {
            stage.running += 1;
            if !task.copied {
                stage.candidates.insert((started, at.task));
            }
        }
        task.live.add(number);
        task.state = TaskState::Running;
        stage.started.get_or_insert(started);
        stage.counters.count_launch(cause);
        cx.totals.count_launch(cause);
        let attempt = self.attempt_id(at, number);
        cx.fleet.occupy(executor, attempt);
        cx.pools.started(&self.pool);
        attempt
    }

    /// Takes a live attempt out of all books. What becomes of its task is the caller's business.
    pub fn end(&mut self, cx: &mut Context, at: At, number: u32, state: AttemptState) {
        let stage = &mut self.stages[at.stage];
        let task = &mut stage.tasks[at.task as usize];
        let attempt = &mut task.attempts[number as usize];
        attempt.state = state;
        attempt.ended = Some(cx.now);
        stage.candidates.remove(&(attempt.started, at.task));
        let executor = attempt.executor;
        task.live.remove(number);
        if task.live.len() == 0 {
            stage.running -= 1;
        }
        stage.counters.count_end(state);
        cx.totals.count_end(state);
        cx.fleet.release(executor, self.attempt_id(at, number));
        cx.pools.ended(&self.pool);
    }

    /// Ends all live attempts of a task from our side.
    pub fn cancel(&mut self, cx: &mut Context, at: At, why: crate::CancelReason) {
        for number in self.task(at).live.iter() {
            self.end(cx, at, number, AttemptState::Cancelled);
            let executor = cx.fleet.executor(self.task(at).attempts[number as usize].executor);
            if executor.up {
                let attempt = self.attempt_id(at, number);
                cx.actions.push(Action::Cancel { attempt, executor: executor.id, why });
            }
        }
        self.stages[at.stage].copies.remove(&at.task);
    }

    /// Lets a task wait for a slot, and if need be for its inputs.
    pub fn enqueue(&mut self, cx: &mut Context, at: At, cause: Cause) {
        let near = self.preference(cx, at);
        let stage = &mut self.stages[at.stage];
        let task = &mut stage.tasks[at.task as usize];
        task.state = TaskState::Waiting;
        task.cause = cause;
        task.copied = false;
        stage.copies.remove(&at.task);
        stage.queue.push(at.task, near);
        self.refresh(cx, at.stage);
    }

    /// Tells the pool whether the stage has something to launch, and the clock when to look at it.
    pub fn refresh(&mut self, cx: &mut Context, stage: usize) {
        if self.is_gang(stage) {
            return;
        }
        let running = self.is_running();
        let turn = self.turn(stage);
        let alarm = self.stage_alarm(cx, stage);
        let stage = &mut self.stages[stage];
        let listed = running && stage.blocked_by == 0 && !(stage.queue.is_empty() && stage.copies.is_empty());
        if listed != stage.listed {
            stage.listed = listed;
            cx.pools.set_waiting(&self.pool, turn, listed);
        }
        let key = Alarm::Stage { job: self.id, stage: turn.stage };
        cx.move_alarm(key, stage.alarm, alarm);
        stage.alarm = alarm;
    }

    /// When the stage has to be looked at although nothing happens.
    fn stage_alarm(&self, cx: &Context, stage: usize) -> Option<Duration> {
        if !self.is_running() {
            return None;
        }
        let straggler = self.next_straggler(cx, stage);
        let stage = &self.stages[stage];
        let holds_out = stage.blocked_by == 0 && stage.local_until > cx.now && stage.queue.has_wishes();
        let local = holds_out.then_some(stage.local_until);
        [straggler, local].into_iter().flatten().min()
    }
}
