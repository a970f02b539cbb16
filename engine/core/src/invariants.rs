//! What must hold after every event, for tests. Costs as much as all tasks and attempts there are.

use crate::context::Context;
use crate::fleet::ExecutorIndex;
use crate::graph::producers_of;
use crate::job::{At, Delivery, Job, RegionState, TaskState};
use crate::{AttemptId, AttemptState, Counters, JobState, Scheduler};
use std::collections::{BTreeMap, BTreeSet};

/// Says which invariant is broken, and where.
pub fn check(scheduler: &Scheduler) -> Result<(), String> {
    let cx = &scheduler.cx;
    let mut live: BTreeMap<ExecutorIndex, BTreeSet<AttemptId>> = BTreeMap::new();
    for job in scheduler.jobs.values() {
        job_holds(cx, job, &mut live).map_err(|broken| format!("{}: {broken}", job.id))?;
    }
    let mut running = 0;
    for (index, executor) in cx.fleet.executors() {
        let expected = live.remove(&index).unwrap_or_default();
        ensure(*executor.running() == expected, || format!("{} runs other attempts", executor.id))?;
        ensure(executor.up || expected.is_empty(), || format!("{} is down and runs tasks", executor.id))?;
        let full = expected.len() >= executor.slots() as usize;
        ensure(!(full && executor.is_free()), || format!("{} is full and counts as free", executor.id))?;
        running += expected.len() as u64;
    }
    let some_up = cx.fleet.executors().any(|(_, executor)| executor.up && executor.slots() > 0);
    ensure(some_up == cx.fleet.usable().next().is_some(), || "all executors are excluded".to_owned())?;
    ensure(cx.totals.running() == running, || "the counters do not add up to what runs".to_owned())?;
    ensure(cx.totals.launched == reasons(&cx.totals), || "launches do not add up".to_owned())?;
    ensure(cx.pools.sums().0 == running, || "the pools count other attempts".to_owned())?;
    for turn in &cx.gangs {
        let listed = scheduler.jobs.get(&turn.job).is_some_and(|job| job.regions[turn.stage].listed);
        ensure(listed, || format!("{turn:?} is to be launched and should not"))?;
    }
    let listed: usize =
        scheduler.jobs.values().map(|job| job.stages.iter().filter(|stage| stage.listed).count()).sum();
    ensure(cx.pools.sums().1 == listed, || "the pools wait for other stages".to_owned())
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

fn reasons(c: &Counters) -> u64 {
    let again = c.again_failed + c.again_interrupted + c.again_input_lost + c.again_output_lost;
    c.first + again + c.again_region_restarted + c.again_inputs_replaced + c.speculative
}

fn job_holds(
    cx: &Context,
    job: &Job,
    live: &mut BTreeMap<ExecutorIndex, BTreeSet<AttemptId>>,
) -> Result<(), String> {
    for stage in 0..job.stages.len() {
        stage_holds(cx, job, stage).map_err(|broken| format!("{}: {broken}", job.stages[stage].id))?;
        for task in 0..job.stages[stage].task_count() {
            let at = At { stage, task };
            task_holds(job, at).map_err(|broken| format!("{}: {broken}", job.task_id(at)))?;
            for number in job.task(at).live.iter() {
                let executor = job.task(at).attempts[number as usize].executor;
                live.entry(executor).or_default().insert(job.attempt_id(at, number));
            }
        }
    }
    for (n, region) in job.regions.iter().enumerate().filter(|(_, region)| region.stages.len() > 1) {
        let tasks = job.tasks_of(n);
        let states: BTreeSet<u8> = tasks.iter().map(|&at| gang_state(job.task(at).state)).collect();
        let expected = match region.state {
            RegionState::Waiting => 0,
            RegionState::Running => 1,
            RegionState::Done => 2,
        };
        let stopped = !job.is_alive();
        ensure(stopped || states == BTreeSet::from([expected]), || {
            format!("region {n} is torn: {states:?}")
        })?;
        let missing = tasks.iter().filter(|&&at| job.task(at).state == TaskState::Running).count();
        let counted = region.state != RegionState::Running || missing as u32 == region.missing;
        ensure(stopped || counted, || format!("region {n} does not miss {}", region.missing))?;
    }
    let open = job.stages.iter().filter(|stage| stage.result && stage.open > 0).count() as u32;
    ensure(open == job.results_open, || format!("{open} results are open, not {}", job.results_open))?;
    ensure(job.state != JobState::Running || open > 0 || job.stages.is_empty(), || {
        "it is finished".to_owned()
    })?;
    if job.state == JobState::Finished {
        ensure(open == 0, || "it is not finished".to_owned())?;
    }
    let running = job.stages.iter().any(|stage| stage.running > 0);
    ensure(job.is_running() || !running, || "it has ended, and something runs".to_owned())
}

fn gang_state(state: TaskState) -> u8 {
    match state {
        TaskState::Waiting => 0,
        TaskState::Running | TaskState::Held => 1,
        TaskState::Done | TaskState::Gone => 2,
    }
}

fn stage_holds(cx: &Context, job: &Job, index: usize) -> Result<(), String> {
    let stage = &job.stages[index];
    let count = |holds: &dyn Fn(&crate::job::Task) -> bool| {
        stage.tasks.iter().filter(|task| holds(task)).count() as u32
    };
    ensure(count(&|task| task.is_open()) == stage.open, || "open tasks".to_owned())?;
    ensure(count(&|task| task.live.len() > 0) == stage.running, || "running tasks".to_owned())?;
    let undelivered = if stage.result { count(&|task| task.delivery < Delivery::All) } else { 0 };
    ensure(undelivered == stage.undelivered, || "undelivered tasks".to_owned())?;
    let gone = (0..).zip(&stage.tasks).filter(|(_, task)| task.state == TaskState::Gone).map(|(n, _)| n);
    ensure(gone.eq(stage.gone.iter().copied()), || "gone tasks".to_owned())?;
    let inputs = stage.inputs.iter().filter(|edge| !edge.streamed);
    let blocked_by = inputs.filter(|edge| job.stages[edge.stage].open > 0).count() as u32;
    ensure(blocked_by == stage.blocked_by, || "blocked by".to_owned())?;
    let bytes = stage.tasks.iter().filter(|task| task.state == TaskState::Done);
    let bytes = bytes.filter_map(|task| task.output.as_ref()).filter(|made| made.worker.is_some());
    let bytes: u64 = bytes.map(|made| made.output.bytes).sum();
    ensure(bytes == stage.bytes_on.values().sum(), || "bytes on workers".to_owned())?;
    ensure((stage.open == 0) == stage.ended.is_some(), || "when it ended".to_owned())?;
    ensure(stage.counters.launched == reasons(&stage.counters), || "launches".to_owned())?;
    if job.is_gang(index) {
        return ensure(!stage.listed && stage.alarm.is_none(), || "part of a gang in the queues".to_owned());
    }
    let alarm = stage.alarm.is_none_or(|at| cx.alarms.iter().any(|&(set, _)| set == at));
    ensure(alarm, || "its alarm is not set".to_owned())?;
    if !job.is_running() {
        return ensure(!stage.listed && stage.alarm.is_none(), || "it should not wait".to_owned());
    }
    for (n, task) in (0..).zip(&stage.tasks) {
        let waiting = task.state == TaskState::Waiting;
        ensure(stage.queue.contains(n) == waiting, || format!("task {n} in the queue"))?;
        let copy = task.state == TaskState::Running && task.live.len() == 1;
        ensure(copy || !stage.copies.contains(&n), || format!("a copy of task {n}"))?;
    }
    ensure(stage.queue.len() as u32 == count(&|t| t.state == TaskState::Waiting), || "queue".to_owned())?;
    let wants = stage.blocked_by == 0 && !(stage.queue.is_empty() && stage.copies.is_empty());
    ensure(wants == stage.listed, || "in the pool".to_owned())?;
    // No slot is left empty while a task could have it.
    ensure(!stage.listed || job.choose(cx, index).is_none(), || "could be launched".to_owned())
}

fn task_holds(job: &Job, at: At) -> Result<(), String> {
    let task = job.task(at);
    let runs = |number: &u32| task.attempts[*number as usize].state == AttemptState::Running;
    let running = task.attempts.iter().filter(|attempt| attempt.state == AttemptState::Running).count();
    ensure(running == task.live.len() && task.live.iter().all(|n| runs(&n)), || "live attempts".to_owned())?;
    if !job.is_alive() {
        return ensure(running == 0, || "runs for a job that has failed".to_owned());
    }
    ensure((running > 0) == (task.state == TaskState::Running), || format!("is {:?}", task.state))?;
    ensure(running < 2 || task.copied && !job.is_gang(at.stage), || "runs twice".to_owned())?;
    let has_output = matches!(task.state, TaskState::Held | TaskState::Done);
    ensure(has_output == task.output.is_some(), || "output".to_owned())?;
    if let Some(made) = &task.output {
        let state = task.attempts[made.attempt as usize].state;
        ensure(state == AttemptState::Succeeded, || "the output of another".to_owned())?;
    }
    if !task.is_open() {
        return Ok(());
    }
    // What an open task reads is there or will be.
    for edge in job.stages[at.stage].inputs.iter().filter(|edge| !edge.streamed) {
        let producer = &job.stages[edge.stage];
        let consumers = job.stages[at.stage].task_count();
        let read = producers_of(edge.kind, producer.task_count(), consumers, at.task);
        let gone = producer.gone.range(read).next();
        ensure(gone.is_none(), || format!("reads {} task {gone:?}, which is gone", producer.id))?;
    }
    Ok(())
}
