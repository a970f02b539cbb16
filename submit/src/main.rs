//! `submit`: hands SQL scripts to a Firesteel cluster, shows how they are doing, and ends with an exit code that says how
//! they ended. Results go to standard output, everything else to standard error.

mod cli;
mod commands;
mod display;
mod exit;
mod log;
mod master;
mod output;
mod progress;
mod run;
mod script;
mod settings;

use cli::{Cli, ColorWhen};
use exit::{Exit, Failure};
use master::Cluster;
use settings::Property;
use std::process::ExitCode;
use std::time::Instant;

/// Where the master's URL comes from when no option and no file names it.
const MASTER_VARIABLE: &str = "FIRESTEEL_MASTER";

fn main() -> ExitCode {
    let started = Instant::now();
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" that succeed. A closed standard output is nobody's fault.
            drop(error.print());
            return if error.use_stderr() { code(Exit::Usage) } else { code(Exit::Success) };
        }
    };
    match cli.common.color {
        ColorWhen::Auto => {}
        ColorWhen::Always => anstream::ColorChoice::Always.write_global(),
        ColorWhen::Never => anstream::ColorChoice::Never.write_global(),
    }
    match execute(cli, started) {
        Ok(exit) => code(exit),
        Err(failure) => {
            failure.report();
            code(failure.exit)
        }
    }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}

/// Checks everything that can be checked here, before the first packet is sent.
fn execute(cli: Cli, started: Instant) -> Result<Exit, Failure> {
    let Cli { common, submission, command } = cli;
    for (flag, given) in
        [("class", &submission.class), ("jars", &submission.jars), ("packages", &submission.packages)]
    {
        if given.is_some() {
            return Err(Failure::usage(format!(
                "--{flag} means nothing here: there is no JVM to load classes into"
            )));
        }
    }
    let properties = properties(&common)?;
    let environment = match std::env::var(MASTER_VARIABLE) {
        Ok(url) if !url.is_empty() => Some(url),
        _ => None,
    };
    if let Some(command) = command {
        let url = settings::resolve_master(&common, &properties, environment.as_deref())?;
        return block_on(commands::run(command, url, common.quiet));
    }
    let script = script::load(&submission.words)?;
    let key =
        submission.idempotency_key.clone().unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
    let settings =
        settings::resolve(&common, &submission, &properties, environment.as_deref(), script.file_name())?;
    // What is printed beside the id of a detached application would be noise.
    let cluster = Cluster::new(&settings.master, common.quiet || settings.detach);
    let run =
        run::Run { settings, cluster, script, key, verbose: common.verbose, quiet: common.quiet, started };
    block_on(run.run())
}

fn properties(common: &cli::Common) -> Result<Vec<Property>, Failure> {
    let Some(path) = &common.properties_file else { return Ok(Vec::new()) };
    let name = path.to_string_lossy();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read the properties file {name}: {error}")))?;
    settings::parse_properties(&name, &text)
}

/// One thread is enough for copying bytes, and starts faster than several. The driver is started on it, too: a death
/// signal follows the thread that started a child, and this one lives as long as the process.
fn block_on<F: Future<Output = Result<Exit, Failure>>>(future: F) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::ApplicationFailed, format!("cannot start: {error}")))?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, future);
    // A write to a reader that does not read must not hold up the exit.
    runtime.shutdown_background();
    result
}
