//! The words of a story.

use firesteel_engine_core::{
    AttemptId, Exclusion, ExecutorId, Input, InputKind, JobId, JobOrder, JobSpec, Policy, Pool, Speculation,
    StageId, StageSpec, TaskId,
};
use std::time::Duration;

pub fn executor(text: &str) -> ExecutorId {
    ExecutorId(text.strip_prefix('e').and_then(|n| n.parse().ok()).expect("an executor like e0"))
}

pub fn job_id(text: &str) -> JobId {
    JobId(text.parse().expect("a job"))
}

/// `[jN:]stage.task#attempt`
pub fn attempt(text: &str) -> AttemptId {
    let parse = || {
        let (job, rest) = text.split_once(':').unwrap_or(("j1", text));
        let (task, attempt) = rest.split_once('#')?;
        let (stage, task) = task.split_once('.')?;
        Some(AttemptId {
            task: TaskId {
                job: JobId(job.strip_prefix('j')?.parse().ok()?),
                stage: StageId(stage.parse().ok()?),
                task: task.parse().ok()?,
            },
            attempt: attempt.parse().ok()?,
        })
    };
    parse().unwrap_or_else(|| panic!("{text} is no attempt"))
}

pub fn job(number: &str, words: &[&str]) -> JobSpec {
    let split = words.iter().position(|word| *word == "->").expect("-> before the results");
    let (stages, results) = (&words[..split], &words[split + 1..]);
    let pool = stages.iter().find_map(|word| word.strip_prefix("pool=")).unwrap_or_default();
    JobSpec {
        id: job_id(number),
        pool: pool.to_owned(),
        stages: stages.iter().filter(|word| word.contains(':')).map(|word| stage(word)).collect(),
        results: results.iter().map(|id| StageId(id.parse().expect("a stage"))).collect(),
    }
}

fn stage(text: &str) -> StageSpec {
    let (id, rest) = text.split_once(':').expect("ID:TASKS");
    let (tasks, inputs) = rest.split_once('<').unwrap_or((rest, ""));
    StageSpec {
        id: StageId(id.parse().expect("a stage")),
        tasks: tasks.trim_end_matches('!').parse().expect("how many tasks"),
        inputs: inputs.split(',').filter(|input| !input.is_empty()).map(input).collect(),
        repeatable: !tasks.ends_with('!'),
    }
}

fn input(text: &str) -> Input {
    let number = text.trim_end_matches(['*', '+', '~']);
    Input {
        stage: StageId(number.parse().expect("a stage")),
        kind: match () {
            _ if text.contains('*') => InputKind::Broadcast,
            _ if text.contains('+') => InputKind::Coalesce,
            _ => InputKind::Shuffle,
        },
        streamed: text.contains('~'),
    }
}

pub fn policy(settings: &[&str]) -> Policy {
    let mut policy = Policy::default();
    for setting in settings {
        let (key, value) = setting.split_once('=').expect("KEY=VALUE");
        let number = || value.parse::<u32>().expect("a number");
        let ms = || Duration::from_millis(u64::from(number()));
        match key {
            "task-attempts" => policy.task_attempts_max = number(),
            "stage-attempts" => policy.stage_attempts_max = number(),
            "interruptions" => policy.interruptions_max = number(),
            "suspicion" => policy.suspicion = ms(),
            "locality-wait" => policy.locality_wait = ms(),
            "exclusion" if value == "none" => policy.exclusion = None,
            "exclusion" => policy.exclusion = Some(exclusion(value)),
            "speculation" if value == "none" => policy.speculation = None,
            "speculation" => {
                policy.speculation = Some(Speculation { running_min: ms(), ..Speculation::default() });
            }
            "order" if value == "fair" => policy.order = JobOrder::Fair,
            "pool" => {
                let (name, weight) = value.split_once(':').expect("NAME:WEIGHT");
                policy.pools.insert(name.to_owned(), Pool { weight: weight.parse().expect("a weight") });
            }
            _ => panic!("no such setting: {setting}"),
        }
    }
    policy
}

/// `STAGE/APPLICATION/WORKER`
fn exclusion(text: &str) -> Exclusion {
    let limits: Vec<u32> = text.split('/').map(|n| n.parse().expect("a limit")).collect();
    Exclusion {
        stage_failures_max: limits[0],
        application_failures_max: limits[1],
        executors_per_worker_max: limits[2],
    }
}
