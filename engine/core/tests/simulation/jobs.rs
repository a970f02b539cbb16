//! Random queries.

use firesteel_engine_core::{Input, InputKind, JobId, JobSpec, StageId, StageSpec};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeSet;

/// Mostly trees with a few joins and shared branches; sometimes with streams; now and then nonsense.
pub fn any(dice: &mut StdRng, id: JobId) -> JobSpec {
    let count = dice.random_range(1..7u32);
    let (streamed, unrepeatable) = match dice.random_range(0..4) {
        0 => (0.5, 0.0),
        1 => (0.3, 0.3),
        2 => (0.0, 0.3),
        _ => (0.0, 0.0),
    };
    let mut unread: BTreeSet<u32> = BTreeSet::new();
    let mut stages = Vec::new();
    for n in 0..count {
        let last = n == count - 1;
        let mut inputs: BTreeSet<u32> = BTreeSet::new();
        if last {
            inputs.clone_from(&unread);
        } else {
            for _ in 0..dice.random_range(0..3) {
                if n > 0 {
                    inputs.insert(dice.random_range(0..n));
                }
            }
        }
        for input in &inputs {
            unread.remove(input);
        }
        unread.insert(n);
        stages.push(StageSpec {
            id: StageId(n * 10),
            tasks: dice.random_range(1..6),
            inputs: inputs.into_iter().map(|stage| input(dice, stage, streamed)).collect(),
            repeatable: !dice.random_bool(unrepeatable),
        });
    }
    let mut results = vec![StageId((count - 1) * 10)];
    if count > 1 && dice.random_bool(0.1) {
        results.push(StageId(0));
    }
    if dice.random_bool(0.02) {
        results.clear();
    }
    JobSpec { id, pool: ["a", "b", "c"][dice.random_range(0..3)].to_owned(), stages, results }
}

fn input(dice: &mut StdRng, stage: u32, streamed: f64) -> Input {
    let kind = match dice.random_range(0..3) {
        0 => InputKind::Shuffle,
        1 => InputKind::Broadcast,
        _ => InputKind::Coalesce,
    };
    Input { stage: StageId(stage * 10), kind, streamed: dice.random_bool(streamed) }
}
