//! The command line of `firesteel-master`: parses, checks, starts.

use crate::config::{Config, Flags, LogFormat, resolve};
use crate::daemon;
use clap::Parser;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// As for `submit`: 2 is a fault in the command line.
const USAGE: u8 = 2;

/// The whole program. It is in the library because futures are compiled where they are polled: a `main` of the binary's own
/// that polls them would compile them all a second time.
pub fn main() -> ExitCode {
    let config = match resolve(Flags::parse(), |name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => return fail(&error, USAGE),
    };
    start_log(&config);
    // Two threads are enough for what a master does, and keep its memory small.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    match runtime.block_on(daemon::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("firesteel-master: {error}");
    ExitCode::from(code)
}

fn start_log(config: &Config) {
    let filter = EnvFilter::new(&config.log_level);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
