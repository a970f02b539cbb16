//! The command line of `firesteel-worker`: parses the configuration, then runs [`daemon`].

use crate::config::{Args, ArgsError, Config, ConfigError};
use crate::daemon;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// The whole program. It is in the library because futures are compiled where they are polled: a `main` of the binary's own
/// that polls them would compile them all a second time.
pub fn main() -> ExitCode {
    let args = match Args::parse_with_properties(std::env::args_os().collect()) {
        Ok(args) => args,
        Err(ArgsError::Usage(error)) => error.exit(),
        Err(error) => return fail(&error, "", ExitCode::from(2)),
    };
    let config = match configure(&args) {
        Ok(config) => config,
        Err(error) => return fail(&error, error.hint(), ExitCode::from(2)),
    };
    // Few tasks, little work: more threads would only cost memory.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start threads: {error}"), "", ExitCode::FAILURE),
    };
    match runtime.block_on(daemon::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, &error.hint(), error.exit_code()),
    }
}

fn configure(args: &Args) -> Result<Config, ConfigError> {
    let filter = EnvFilter::try_new(&args.log_level).map_err(|error| ConfigError::LogLevel {
        value: args.log_level.clone(),
        reason: error.to_string(),
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let executable = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/"));
    Config::new(args, executable.parent().unwrap_or(&executable))
}

fn fail(error: &dyn std::fmt::Display, hint: &str, code: ExitCode) -> ExitCode {
    eprintln!("error: {error}");
    if !hint.is_empty() {
        eprintln!("hint: {hint}");
    }
    code
}
