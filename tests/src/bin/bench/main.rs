//! The benchmark: the cluster beside one DataFusion process on the same cores, in one run, as ratios.

mod latency;
mod masters;
mod queries;
mod status;
mod tasks;

use clap::{Parser, ValueEnum};
use firesteel_tests::cluster::Cluster;
use firesteel_tests::matrix::MODES;
use firesteel_tests::procs;
use firesteel_tests::suite::{TPCDS, TPCH};
use std::path::PathBuf;

/// Measures a fresh local cluster: TPC-H against one DataFusion process on the same number of cores, the latency of
/// `submit` in its parts, how fast the daemons start and what memory they hold while idle.
///
/// Nothing else should run on the machine. Everything is printed; nothing is stored.
#[derive(Parser)]
#[command(name = "bench")]
struct Args {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Part::Daemons, Part::Latency, Part::Tpch])]
    parts: Vec<Part>,
    /// Scale factor of TPC-H and TPC-DS; the data is made once and kept under target/.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Workers, each with one executor.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Cores per worker and per executor.
    #[arg(long, default_value_t = 1)]
    cores: u32,
    /// Memory per executor.
    #[arg(long, default_value = "3g")]
    executor_memory: String,
    /// Where the driver of the queries runs: client or cluster.
    #[arg(long, default_value = "cluster")]
    deploy_mode: String,
    /// Modes of execution to measure side by side: pipelined, staged, auto.
    #[arg(long, value_delimiter = ',', default_values_t = MODES.map(str::to_owned))]
    mode: Vec<String>,
    /// Rounds of the queries; the modes and the single process take turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rounds of the latency measurement.
    #[arg(long, default_value_t = 20)]
    latency_rounds: usize,
    /// Rounds of the failover measurement.
    #[arg(long, default_value_t = 50)]
    failover_rounds: usize,
    /// Rounds of faults under load.
    #[arg(long, default_value_t = 200)]
    chaos_rounds: usize,
    /// Seconds per line of the write measurement.
    #[arg(long, default_value_t = 5)]
    write_seconds: u64,
    /// Only these queries, such as 1,6,11.
    #[arg(long, value_delimiter = ',')]
    queries: Vec<u32>,
    /// Data to use instead of made data (DIR/TABLE/*.parquet).
    #[arg(long)]
    data: Option<PathBuf>,
    /// Further `--conf KEY=VALUE` for the cluster's applications.
    #[arg(long)]
    conf: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Start time and idle memory of master and worker.
    Daemons,
    /// `submit` of one SELECT, from the command's start to its end.
    Latency,
    /// The 22 queries of TPC-H.
    Tpch,
    /// The 99 queries of TPC-DS.
    Tpcds,
    /// What a task costs besides its work.
    Tasks,
    /// Three masters: a leader killed or asked to hand over, until the next submission is acknowledged.
    Failover,
    /// Replicated submissions per second beside the disk's fdatasync.
    Writes,
    /// Masters killed, stopped and cut off under a stream of submissions, with an audit (takes long).
    Chaos,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Daemons => "daemons",
            Self::Latency => "latency",
            Self::Tpch => "tpch",
            Self::Tpcds => "tpcds",
            Self::Tasks => "tasks",
            Self::Failover => "failover",
            Self::Writes => "writes",
            Self::Chaos => "chaos",
        })
    }
}

fn main() {
    let args = Args::parse();
    for part in &args.parts {
        match part {
            Part::Daemons => daemons(),
            Part::Latency => latency::run(args.workers, args.cores, args.latency_rounds),
            Part::Tpch => queries::run(TPCH, &args),
            Part::Tpcds => queries::run(TPCDS, &args),
            Part::Tasks => tasks::run(args.workers, args.cores),
            Part::Failover => masters::failover(args.failover_rounds),
            Part::Writes => masters::writes(args.write_seconds),
            Part::Chaos => masters::chaos(args.chaos_rounds),
        }
    }
}

fn daemons() {
    println!("== daemons: process start to ready, idle resident memory");
    let rounds = 5;
    let (mut master, mut worker) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let cluster = Cluster::start(1, 1);
        master.push(cluster.masters[0].start_time.as_secs_f64() * 1e3);
        worker.push(cluster.workers[0].start_time.as_secs_f64() * 1e3);
        if round + 1 == rounds {
            // Idle: registered, and several heartbeats old.
            std::thread::sleep(std::time::Duration::from_secs(3));
            let mib = |pid| procs::resident_kib(pid).unwrap_or(0) as f64 / 1024.0;
            println!(
                "  master   start {:6.0} ms   idle {:5.1} MiB",
                median(&mut master),
                mib(cluster.masters[0].pid())
            );
            println!(
                "  worker   start {:6.0} ms   idle {:5.1} MiB   (start: registered with the master)",
                median(&mut worker),
                mib(cluster.workers[0].pid())
            );
        }
    }
}

/// The value below which this share of the measurements lies.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// The middle of some measurements; 0 of none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
