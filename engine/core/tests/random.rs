//! Random queries on random clusters where everything goes wrong, from one number each.
//!
//! `SEEDS=100000 cargo test --release -p firesteel-engine-core --test random` runs more of them;
//! `SEED=7 …  -- --nocapture` runs one and tells all that happens.
//!
//! After every event the scheduler's own invariants are checked ([`firesteel_engine_core::invariants`]), and from outside:
//! what is launched can run, nothing runs twice without need, and the rows that a job ends with are of one world
//! (`simulation/model.rs`). When the faults stop, every job ends.

mod simulation;

use simulation::World;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn whatever_happens_every_job_ends_and_is_right() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SEED") {
        let world = World::run(seed, true);
        println!("{:#?}", world.seen);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(if cfg!(debug_assertions) { 200 } else { 2_000 });
    let mut seen = simulation::Seen::default();
    for seed in 0..seeds {
        match catch_unwind(AssertUnwindSafe(|| World::run(seed, false))) {
            Ok(world) => seen.add(&world.seen),
            Err(cause) => {
                let replay = "cargo test -p firesteel-engine-core --test random -- --nocapture";
                eprintln!("seed {seed} failed; replay with: SEED={seed} {replay}");
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("{seeds} seeds: {seen:#?}");
    // A test that never gets anywhere near trouble shows nothing.
    seen.assert_all_sides_were_seen();
}
