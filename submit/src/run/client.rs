//! Client mode: the driver is our child, and ends with us.

use super::driver::Driver;
use super::submission::{repetition_hint, submit};
use super::{Interrupts, Run, end_verb, kill, next_redraw, outcome, report_sight, sleep_until};
use crate::exit::{Exit, Failure};
use crate::master::{client as client_of, watch};
use crate::output::{Output, Reporter, Stream, stdout_reader_is_gone};
use crate::progress::is_final;
use firesteel_common::ProcessEnd;
use firesteel_proto::v1::{ApplicationState, ApplicationStatus, ReportDriverEndRequest};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;
use tokio::sync::mpsc;

/// How long the master may take to confirm the end of a driver that has ended.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(10);

pub async fn run(run: &Run, reporter: &mut Reporter, interrupts: &mut Interrupts) -> Result<Exit, Failure> {
    // On a terminal results and the progress line share the screen, so they must pass through one hand.
    let capture = reporter.is_live() && std::io::stdout().is_terminal();
    let mut driver = Driver::spawn(run, capture)?;
    let result = supervise(run, &mut driver, reporter, interrupts).await;
    // However it ended: no process stays.
    driver.kill().await;
    reporter.clear();
    result
}

struct Submitted {
    id: String,
    token: String,
}

async fn supervise(
    run: &Run,
    driver: &mut Driver,
    reporter: &mut Reporter,
    interrupts: &mut Interrupts,
) -> Result<Exit, Failure> {
    let setup = async {
        let answer = submit(run, reporter).await?;
        driver.launch(run, &answer.application_id, answer.token.clone()).await?;
        let submitted = Submitted { id: answer.application_id, token: answer.token };
        Ok::<_, Failure>((submitted, answer.ui_url))
    };
    let (submitted, ui_url) = tokio::select! {
        done = setup => done?,
        () = interrupts.recv() => return Err(Failure::new(Exit::Interrupted, "interrupted before the application had started")
            .hint(repetition_hint(&run.key))),
        () = sleep_until(run.deadline()) => return Err(Failure::new(Exit::Timeout, "the master did not take the submission in time")
            .hint(repetition_hint(&run.key))),
    };
    reporter.submitted(&submitted.id, &run.script.resource, &ui_url);
    match wait(run, &submitted, driver, reporter, interrupts).await {
        Ok(end) => conclude(end, driver, reporter).await,
        Err(Stop::Failed(failure)) if failure.exit == Exit::BrokenPipe => {
            // Nobody reads the result: nobody needs the application.
            drop(kill(&run.cluster, &submitted.id).await);
            driver.stop().await;
            Err(failure)
        }
        Err(Stop::Failed(failure)) => {
            driver.stop().await;
            Err(failure)
        }
        Err(stop @ (Stop::Interrupted | Stop::TimedOut)) => {
            reporter.clear();
            // Somebody who presses Ctrl-C again wants out now; the dying driver tells the master.
            let killed = tokio::select! {
                killed = kill(&run.cluster, &submitted.id) => killed,
                () = interrupts.recv() => return Err(Failure::quiet(Exit::Interrupted)),
            };
            tokio::select! {
                () = driver.stop() => {}
                () = interrupts.recv() => {}
            }
            if matches!(stop, Stop::TimedOut) {
                return Err(run.timeout_failure(&submitted.id, killed));
            }
            match killed {
                Ok(()) => reporter.note(&format!("interrupted: {} was killed", submitted.id)),
                Err(failure) => reporter.note(&format!("interrupted; {}", failure.message)),
            }
            Err(Failure::quiet(Exit::Interrupted))
        }
    }
}

/// Both ends of one application: what the master says, and how our child ended.
struct End {
    status: Option<Box<ApplicationStatus>>,
    /// How the driver ended, when that was before the master knew of an end.
    sudden: Option<ProcessEnd>,
}

enum Stop {
    Interrupted,
    TimedOut,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

async fn wait(
    run: &Run,
    submitted: &Submitted,
    driver: &mut Driver,
    reporter: &mut Reporter,
    interrupts: &mut Interrupts,
) -> Result<End, Stop> {
    let (sender, mut sights) = mpsc::channel(16);
    let watching = tokio::spawn(watch(run.cluster.clone(), submitted.id.clone(), sender));
    let mut copying =
        driver.stdout().map(|stdout| Box::pin(copy(stdout, Output::new(Stream::Stdout, reporter.bar()))));
    let mut sudden: Option<ProcessEnd> = None;
    let mut confirm_until = None;
    let mut status = None;
    // A driver that ends before its application is reported to the master, which then ends the application.
    while status.is_none() || copying.is_some() {
        tokio::select! {
            sight = sights.recv(), if status.is_none() => match sight {
                Some(sight) => status = report_sight(sight, reporter)?.filter(|status| is_final(status)),
                None => return Err(Failure::new(Exit::Unreachable, "the master stopped telling about the application").into()),
            },
            end = driver.wait(), if sudden.is_none() && status.is_none() => {
                let end = end?;
                report_end(run, submitted, &end);
                confirm_until = Some(tokio::time::Instant::now() + CONFIRM_PATIENCE);
                sudden = Some(end);
            }
            copied = async { match &mut copying { Some(copying) => copying.await, None => std::future::pending().await } } => {
                copying = None;
                copied?;
            }
            // The master is away: what the driver said by its exit code must do.
            () = sleep_until(confirm_until), if status.is_none() => break,
            () = interrupts.recv() => return Err(Stop::Interrupted),
            () = sleep_until(run.deadline()) => return Err(Stop::TimedOut),
            () = next_redraw(reporter) => reporter.redraw(),
        }
    }
    watching.abort();
    Ok(End { status, sudden })
}

/// Says in the background how the driver ended; the answer is the final state in the watch. A driver that has told its
/// result itself is not affected: its word came first.
fn report_end(run: &Run, submitted: &Submitted, end: &ProcessEnd) {
    let request = ReportDriverEndRequest {
        application_id: submitted.id.clone(),
        token: submitted.token.clone(),
        end: Some(end.into()),
    };
    let cluster = run.cluster.clone();
    tokio::task::spawn_local(async move {
        let report = async |leader| client_of(&leader).report_driver_end(request.clone()).await;
        drop(cluster.insist(|_| {}, report).await);
    });
}

async fn copy(mut stdout: ChildStdout, mut output: Output) -> Result<(), Failure> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = stdout.read(&mut buffer).await?;
        if n == 0 {
            return Ok(output.finish().await?);
        }
        output.write(&buffer[..n]).await?;
    }
}

async fn conclude(end: End, driver: &mut Driver, reporter: &mut Reporter) -> Result<Exit, Failure> {
    let ended = match &end.sudden {
        Some(ended) => Some(ended.clone()),
        None => driver.leave().await,
    };
    let failed = end.status.as_ref().is_none_or(|status| status.state() != ApplicationState::Finished);
    if failed && stdout_reader_is_gone() {
        return Err(Failure::quiet(Exit::BrokenPipe));
    }
    let Some(status) = end.status else {
        reporter.clear();
        return match ended {
            Some(end) if end.is_success() => {
                reporter.note("finished, but the master is not there to confirm it");
                Ok(Exit::Success)
            }
            Some(end) => Err(died(&end, driver, reporter).await),
            None => Err(Failure::new(Exit::ApplicationFailed, "the driver's end was not seen")),
        };
    };
    reporter.end(end_verb(&status));
    match (&end.sudden, outcome(&status)) {
        // The master only repeats what it was told; this process saw it.
        (Some(end), Err(failure)) if failure.message.starts_with("the driver ") => {
            Err(Failure { hint: failure.hint, ..died(end, driver, reporter).await })
        }
        (_, outcome) => outcome,
    }
}

/// A driver that ended without telling the master why.
async fn died(end: &ProcessEnd, driver: &mut Driver, reporter: &Reporter) -> Failure {
    let words = driver.last_words().await;
    if !words.is_empty() {
        reporter.note("the driver's last lines:");
        for line in words {
            reporter.note(&format!("  {line}"));
        }
    }
    Failure::new(Exit::ApplicationFailed, format!("the driver {end}"))
}
