//! `submit logs ID`

use super::current;
use crate::display::one_line;
use crate::exit::{Exit, Failure};
use crate::log::Log;
use crate::master::{Cluster, Sight, watch};
use crate::output::{Output, Stream};
use crate::progress::is_final;
use firesteel_proto::v1::{ApplicationStatus, DeployMode, LogStream};
use std::io::Write;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::mpsc;

#[derive(Debug, Clone, Copy)]
pub struct Streams {
    pub stdout: bool,
    pub stderr: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub follow: bool,
    /// Lines.
    pub tail: Option<u32>,
    pub executor: Option<u32>,
    pub streams: Streams,
    pub quiet: bool,
}

/// How long the log of a driver that has a successor may take to end: the worker that has it may be gone for good.
const GRACE: Duration = Duration::from_secs(2);

pub async fn run(cluster: &Cluster, id: &str, mut wanted: Wanted) -> Result<Exit, Failure> {
    let status = current(cluster, id).await?;
    let id = status.application_id.clone();
    let supervised = status.spec.as_ref().is_some_and(|spec| spec.supervise);
    let mut process = match wanted.executor {
        Some(number) => executor(&status, number)?,
        None => driver(cluster, status, wanted.follow).await?,
    };
    if !(supervised && wanted.follow && wanted.executor.is_none()) {
        copy(cluster, &id, &process, wanted).await?;
        return Ok(Exit::Success);
    }
    loop {
        let next = tokio::select! {
            copied = copy(cluster, &id, &process, wanted) => {
                copied?;
                successor(cluster, &id, &process).await?
            }
            Ok(Some(next)) = async {
                let next = successor(cluster, &id, &process).await;
                tokio::time::sleep(GRACE).await;
                next
            } => Some(next),
        };
        let Some(next) = next else { return Ok(Exit::Success) };
        if !wanted.quiet {
            let note = format!("{} died; started again as {}", one_line(&process), one_line(&next));
            drop(writeln!(std::io::stderr(), "{note}"));
        }
        // All of what a later driver writes comes after the last lines of the first.
        wanted.tail = None;
        process = next;
    }
}

/// The driver that takes the place of `process`; `None` when the application ends without another one.
async fn successor(cluster: &Cluster, id: &str, process: &str) -> Result<Option<String>, Failure> {
    let (sender, mut sights) = mpsc::channel(4);
    tokio::spawn(watch(cluster.clone(), id.to_owned(), sender));
    while let Some(sight) = sights.recv().await {
        match sight {
            Sight::Status(status) if !status.driver.is_empty() && status.driver != process => {
                return Ok(Some(status.driver));
            }
            Sight::Refused(failure) => return Err(failure),
            Sight::Status(_) | Sight::Lost(_) | Sight::Back => {}
        }
    }
    Ok(None)
}

/// Standard output goes to standard output and standard error to standard error, as if the process ran here.
async fn copy(cluster: &Cluster, id: &str, process: &str, wanted: Wanted) -> Result<(), Failure> {
    let stdout = async {
        if wanted.streams.stdout {
            let log = Log::new(id, process, LogStream::Stdout);
            one(log, cluster, Output::new(Stream::Stdout, None), wanted, !wanted.quiet).await?;
        }
        Ok(())
    };
    let stderr = async {
        if wanted.streams.stderr {
            let log = Log::new(id, process, LogStream::Stderr);
            // One of the two tells about a lost connection.
            let tell = !wanted.quiet && !wanted.streams.stdout;
            one(log, cluster, Output::new(Stream::Stderr, None), wanted, tell).await?;
        }
        Ok(())
    };
    tokio::try_join!(stdout, stderr).map(|_| ())
}

async fn one(
    log: Log,
    cluster: &Cluster,
    mut output: Output,
    wanted: Wanted,
    tell: bool,
) -> Result<(), Failure> {
    let offset = match wanted.tail {
        None if wanted.follow => 0,
        tail => log.read(cluster, tail, &mut output).await?,
    };
    if !wanted.follow {
        return Ok(());
    }
    let on_loss = |reason: &str| {
        if tell {
            drop(writeln!(std::io::stderr(), "lost the log ({}); connecting again …", one_line(reason)));
        }
    };
    log.follow(cluster, offset, &mut output, &AtomicU64::new(0), on_loss).await
}

fn executor(status: &ApplicationStatus, number: u32) -> Result<String, Failure> {
    if status.executors.iter().any(|executor| executor.number == number) {
        return Ok(format!("executor-{number}"));
    }
    let known: Vec<String> = status.executors.iter().map(|e| e.number.to_string()).collect();
    let failure = Failure::usage(format!("{} has no executor {number}", status.application_id));
    Err(if known.is_empty() { failure } else { failure.hint(format!("it has {}", known.join(", "))) })
}

/// The name of the driver's process; with `follow` it waits until there is one.
async fn driver(cluster: &Cluster, status: ApplicationStatus, follow: bool) -> Result<String, Failure> {
    let id = status.application_id.clone();
    if status.spec.as_ref().is_some_and(|spec| spec.deploy_mode() == DeployMode::Client) {
        return Err(Failure::usage(format!(
            "{id} runs in client mode: its driver writes where it was submitted"
        ))
        .hint(format!("submit logs {id} --executor N shows an executor's log")));
    }
    if !status.driver.is_empty() {
        return Ok(status.driver);
    }
    let none = |status: &ApplicationStatus| {
        let why = one_line(&status.message);
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        if is_final(status) {
            Failure::new(Exit::ApplicationFailed, format!("{id} ended before it had a driver{why}"))
        } else {
            Failure::new(Exit::ApplicationFailed, format!("{id} has no driver yet{why}"))
                .hint(format!("submit logs {id} -f waits for it"))
        }
    };
    if !follow || is_final(&status) {
        return Err(none(&status));
    }
    let (sender, mut sights) = mpsc::channel(4);
    let watching = tokio::spawn(watch(cluster.clone(), id.clone(), sender));
    let mut last = status.clone();
    while let Some(sight) = sights.recv().await {
        match sight {
            Sight::Status(status) if !status.driver.is_empty() => {
                watching.abort();
                return Ok(status.driver);
            }
            Sight::Status(status) => last = *status,
            Sight::Refused(failure) => return Err(failure),
            Sight::Lost(_) | Sight::Back => {}
        }
    }
    Err(none(&last))
}
