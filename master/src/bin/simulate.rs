//! `simulate`: runs the masters of whole clusters through years of mishaps, one seed after the other.

use clap::Parser;
use firesteel_master::consensus::simulator::{Failure, Summary, run, run_many, run_traced};
use std::process::ExitCode;
use std::time::Instant;

/// Simulates clusters of several masters and checks what they promise. Each seed is another history.
#[derive(Parser)]
#[command(name = "simulate", version)]
struct Flags {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run this one only.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Print every event. Needs --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let start = Instant::now();
    let (count, result) = match flags.seed {
        Some(seed) if flags.trace => (1, run_traced(seed, Box::new(|line| println!("{line}")))),
        Some(seed) => (1, run(seed)),
        None => (flags.seeds, in_parallel(flags.first, flags.seeds)),
    };
    match result {
        Ok(summary) => {
            let seconds = start.elapsed().as_secs_f64();
            println!("{count} seeds passed in {seconds:.1} s ({:.0} per second)", count as f64 / seconds);
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// On every processor, each with seeds of its own.
fn in_parallel(first: u64, count: u64) -> Result<Summary, Failure> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(count.max(1));
    let share = count.div_ceil(threads);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let from = first + (thread * share).min(count);
                let to = first + ((thread + 1) * share).min(count);
                scope.spawn(move || run_many(from, to - from))
            })
            .collect();
        let mut sum = Summary::default();
        for thread in running {
            match thread.join() {
                Ok(result) => sum.add(result?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(sum)
    })
}
