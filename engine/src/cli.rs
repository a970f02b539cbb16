//! The command line: what `firesteel-engine` was started as, and the runtime that it runs on.

use crate::settings::Settings;
use crate::{driver, executor, launch, local, sample_data};
use clap::{Parser, Subcommand};
use firesteel_common::{DriverLaunch, ExecutorLaunch, OutputFormat};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Firesteel's engine. Workers and `submit` start drivers and executors with it; `local` and `sample-data` are for people.
#[derive(Parser)]
#[command(name = "firesteel-engine", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs an application's driver (started by a worker or by submit).
    Driver {
        /// Inherited descriptor that the launch document is read from.
        #[arg(long)]
        launch_fd: i32,
        /// The process's name, for people who run ps.
        label: Option<String>,
    },
    /// Runs an executor (started by a worker).
    Executor {
        /// Inherited descriptor that the launch document is read from.
        #[arg(long)]
        launch_fd: i32,
        /// Inherited descriptor that gets HOST:PORT once the executor listens.
        #[arg(long)]
        ready_fd: Option<i32>,
        /// The process's name, for people who run ps.
        label: Option<String>,
    },
    /// Runs an SQL script in this one process, without a cluster.
    Local {
        script: PathBuf,
        /// Threads and partitions [default: all cores].
        #[arg(long)]
        cores: Option<usize>,
        /// table, csv or json.
        #[arg(short, long, default_value = "table")]
        output: OutputFormat,
        /// KEY=VALUE settings, as with submit.
        #[arg(short, long = "conf", value_parser = key_value)]
        conf: Vec<(String, String)>,
        /// Print how long each statement took, in milliseconds, as one JSON array on standard error.
        #[arg(long)]
        timings: bool,
    },
    /// Writes TPC-H or TPC-DS tables as Parquet files.
    SampleData {
        /// Directory to write to; gets one directory per table.
        dir: PathBuf,
        /// Whose tables.
        #[arg(long, value_enum, default_value_t = sample_data::Benchmark::Tpch)]
        benchmark: sample_data::Benchmark,
        /// Scale factor: 1 is about 1 GB of raw data.
        #[arg(long, default_value_t = 0.1)]
        scale: f64,
        /// Files per large table.
        #[arg(long, default_value_t = 1)]
        parts: i32,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// The whole program. It is in the library because futures are compiled where they are polled: a `main` of the binary's own
/// that polls them would compile them all a second time.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(command: Command) -> Result<u8, Box<dyn std::error::Error>> {
    match command {
        Command::Driver { launch_fd, .. } => {
            // Descriptors are taken over before anything else opens one.
            let launch: DriverLaunch = launch::document(launch_fd)?;
            log_to_stderr("warn");
            die_with_parent()?;
            Ok(runtime(2)?.block_on(driver::run(launch)).exit_code())
        }
        Command::Executor { launch_fd, ready_fd, .. } => {
            let ready = ready_fd.map(launch::inherited).transpose()?;
            let launch: ExecutorLaunch = launch::document(launch_fd)?;
            log_to_stderr("info");
            let threads = launch.cores.max(1) as usize;
            runtime(threads)?.block_on(executor::run(launch, ready))?;
            Ok(0)
        }
        Command::Local { script, cores, output, conf, timings } => {
            let settings = Settings::parse(&conf.into_iter().collect::<BTreeMap<_, _>>())?;
            let cores = match cores {
                Some(cores) => cores.max(1),
                None => std::thread::available_parallelism()?.get(),
            };
            let run = local::LocalRun { script, settings, cores, output, scratch: std::env::temp_dir() };
            let durations = runtime(cores)?.block_on(local::run(run))?;
            if timings {
                let millis: Vec<f64> = durations.iter().map(|d| d.as_secs_f64() * 1e3).collect();
                eprintln!("{}", serde_json::to_string(&millis)?);
            }
            Ok(0)
        }
        Command::SampleData { dir, benchmark, scale, parts } => {
            sample_data::write(benchmark, &dir, scale, parts)?;
            println!("{}", dir.display());
            Ok(0)
        }
    }
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// A driver started by `submit` ends with it. (Under a worker the supervisor has arranged the same already.)
fn die_with_parent() -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

fn log_to_stderr(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
