//! What the scheduler says, short.

use firesteel_engine_core::{
    Action, AttemptId, AttemptState, CancelReason, Cause, Counters, Hints, JobId, JobState, Place, Scheduler,
    StageId, StageState,
};
use std::fmt::Write;

fn attempt(id: AttemptId) -> String {
    let task = id.task;
    let job = if task.job == JobId(1) { String::new() } else { format!("j{}:", task.job.0) };
    format!("{job}{}.{}#{}", task.stage.0, task.task, id.attempt)
}

fn hints(hints: Hints) -> &'static str {
    match (hints.out_of_memory_before, hints.speculative) {
        (false, false) => "",
        (true, false) => ", frugal",
        (false, true) => ", a copy",
        (true, true) => ", a copy, frugal",
    }
}

pub fn action(action: &Action) -> String {
    match action {
        Action::Launch { attempt: id, executor, hints: h } => {
            format!("launch {} on e{}{}\n", attempt(*id), executor.0, hints(*h))
        }
        Action::LaunchRegion { attempts, hints: h, .. } => {
            let mut text = format!("launch together{}\n", hints(*h));
            for (id, executor) in attempts {
                let _ = writeln!(text, "  {} on e{}", attempt(*id), executor.0);
            }
            text
        }
        Action::Cancel { attempt: id, executor, why } => {
            let why = match why {
                CancelReason::LostRace => "lost the race",
                CancelReason::RegionRestarts => "its region restarts",
                CancelReason::InputsReplaced => "its inputs are replaced",
                CancelReason::NotNeeded => "not needed",
                CancelReason::JobEnded => "the job has ended",
            };
            format!("cancel {} on e{}: {why}\n", attempt(*id), executor.0)
        }
        Action::Discard { attempt: id, place: Place::Worker(worker) } => {
            format!("discard {} on {worker}\n", attempt(*id))
        }
        Action::Discard { attempt: id, place: Place::Inline } => format!("discard {}\n", attempt(*id)),
        Action::ResultReady { attempt: id } => format!("result {}\n", attempt(*id)),
        Action::StageFinished { job, stage } => format!("{job}: {stage} finished\n"),
        Action::JobFinished { job } => format!("{job} finished\n"),
        Action::JobFailed { error } => format!("{} failed: {error}\n", error.job),
        Action::DiscardJob { job } => format!("discard {job}\n"),
    }
}

pub fn state(scheduler: &Scheduler) -> String {
    let mut text = String::new();
    for job in (0..100).filter_map(|n| scheduler.progress(JobId(n))) {
        let state = match &job.state {
            JobState::Running => "RUNNING",
            JobState::Finished => "FINISHED",
            JobState::Failed(_) => "FAILED",
        };
        let _ = writeln!(text, "{} {state}", job.job);
        for stage in job.stages {
            let state = match stage.state {
                StageState::Waiting => "waiting",
                StageState::Running => "running",
                StageState::Finished => "finished",
            };
            let _ = write!(
                text,
                "  {} {state}: {} of {} done, {} running, {} bytes",
                stage.stage, stage.done, stage.tasks, stage.running, stage.output_bytes
            );
            for (n, executor) in stage.excluded.iter().enumerate() {
                let _ = write!(text, "{}e{}", if n == 0 { ", excluded: " } else { ", " }, executor.0);
            }
            text.push('\n');
        }
    }
    text
}

pub fn counters(scheduler: &Scheduler) -> String {
    let c: Counters = scheduler.counters();
    let named = [
        ("first", c.first),
        ("again because it failed", c.again_failed),
        ("again because it was interrupted", c.again_interrupted),
        ("again because an input was lost", c.again_input_lost),
        ("again because the output was lost", c.again_output_lost),
        ("again with its region", c.again_region_restarted),
        ("again because inputs were replaced", c.again_inputs_replaced),
        ("copies", c.speculative),
    ];
    let mut text = format!("launched {}:", c.launched);
    for (name, count) in named.into_iter().filter(|(_, count)| *count > 0) {
        let _ = write!(text, " {count} {name},");
    }
    let text = text.trim_end_matches(',');
    let ended = [
        ("succeeded", c.succeeded),
        ("failed", c.failed),
        ("lost an input", c.input_lost),
        ("cancelled", c.cancelled),
        ("interrupted", c.interrupted),
        ("running", c.running()),
    ];
    let ended = ended.into_iter().filter(|(_, count)| *count > 0);
    let ended: Vec<String> = ended.map(|(name, count)| format!("{count} {name}")).collect();
    format!("{text}; {}\n", ended.join(", "))
}

pub fn outputs(scheduler: &Scheduler, stage: &str) -> String {
    let stage = StageId(stage.parse().expect("a stage"));
    let mut text = String::new();
    for task in scheduler.tasks(JobId(1), stage, 0, usize::MAX) {
        let _ = match task.output {
            Some((id, output)) => match output.place {
                Place::Worker(worker) => writeln!(text, "{} on {worker}", attempt(id)),
                Place::Inline => writeln!(text, "{} inline", attempt(id)),
            },
            None => writeln!(text, "none of {}.{}", stage.0, task.task),
        };
    }
    text
}

pub fn attempts(scheduler: &Scheduler, task: &str) -> String {
    let id = super::parse::attempt(&format!("{task}#0")).task;
    let mut text = String::new();
    for task in scheduler.tasks(id.job, id.stage, id.task, 1) {
        for (n, now) in task.attempts.iter().enumerate() {
            let cause = match now.cause {
                Cause::First => "first",
                Cause::Failed => "after a failure",
                Cause::Interrupted => "after an interruption",
                Cause::InputLost => "after a lost input",
                Cause::OutputLost => "after its output was lost",
                Cause::Speculation => "a copy",
                Cause::RegionRestarted => "with its region",
                Cause::InputsReplaced => "its inputs were replaced",
            };
            let state = match now.state {
                AttemptState::Running => "running",
                AttemptState::Succeeded => "succeeded",
                AttemptState::Failed => "failed",
                AttemptState::InputLost => "lost an input",
                AttemptState::Cancelled => "cancelled",
                AttemptState::Interrupted => "interrupted",
            };
            let until = now.ended.map_or(String::new(), |at| format!(" to {}", at.as_millis()));
            let _ = writeln!(
                text,
                "#{n} on e{}, {cause}: {state}, {}{until} ms",
                now.executor.0,
                now.started.as_millis()
            );
        }
    }
    text
}
