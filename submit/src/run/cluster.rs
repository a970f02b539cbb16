//! Cluster mode: ship the script, then watch and copy. The driver lives under a worker and does not need us.

use super::submission::{repetition_hint, submit};
use super::{Interrupts, Run, end_verb, kill, next_redraw, outcome, report_sight, sleep_until};
use crate::exit::{Exit, Failure};
use crate::log::{Log, Movement};
use crate::master::watch;
use crate::output::{Output, Reporter, Stream, print};
use crate::progress::is_final;
use firesteel_proto::v1::{ApplicationState, ApplicationStatus, LogStream};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// An ended application's log is all there; when no byte of it has come for so long, its worker must be gone.
const LOG_PATIENCE: Duration = Duration::from_secs(10);
/// How much of a driver's standard error is shown when it ended without an error message.
const STDERR_LINES: u32 = 20;

pub async fn run(run: &Run, reporter: &mut Reporter, interrupts: &mut Interrupts) -> Result<Exit, Failure> {
    let submitted = tokio::select! {
        done = submit(run, reporter) => done?,
        () = interrupts.recv() => return Err(Failure::new(Exit::Interrupted, "interrupted before the submission was confirmed")
            .hint(repetition_hint(&run.key))),
        () = sleep_until(run.deadline()) => return Err(Failure::new(Exit::Timeout, "the master did not take the submission in time")
            .hint(repetition_hint(&run.key))),
    };
    let id = submitted.application_id;
    if run.settings.detach {
        print(&format!("{id}\n"))?;
        return Ok(Exit::Success);
    }
    reporter.submitted(&id, &run.script.resource, &submitted.ui_url);
    let mut wait = Wait::new(run, id, reporter);
    let result = wait.until_the_end(reporter, interrupts).await;
    reporter.clear();
    result
}

type LogCopy = Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

/// Waiting for an application: its states and its output arrive independently.
struct Wait<'a> {
    run: &'a Run,
    id: String,
    stdout: Option<Output>,
    copying: Option<LogCopy>,
    movement: Movement,
    copied: Arc<AtomicU64>,
    /// `--verbose`: the standard error of the driver named here, too. Its end is not waited for.
    stderr: Option<(String, JoinHandle<()>)>,
    ended: Option<Box<ApplicationStatus>>,
}

impl<'a> Wait<'a> {
    fn new(run: &'a Run, id: String, reporter: &Reporter) -> Self {
        let copied = Arc::new(AtomicU64::new(0));
        Self {
            run,
            id,
            stdout: Some(Output::new(Stream::Stdout, reporter.bar())),
            copying: None,
            movement: Movement::new(copied.clone()),
            copied,
            stderr: None,
            ended: None,
        }
    }

    async fn until_the_end(
        &mut self,
        reporter: &mut Reporter,
        interrupts: &mut Interrupts,
    ) -> Result<Exit, Failure> {
        let (sender, mut sights) = mpsc::channel(16);
        let watching = tokio::spawn(watch(self.run.cluster.clone(), self.id.clone(), sender));
        let deadline = self.run.deadline();
        let mut silent_until = None;
        while self.ended.is_none() || self.copying.is_some() {
            tokio::select! {
                sight = sights.recv(), if self.ended.is_none() => match sight {
                    Some(sight) => if let Some(status) = report_sight(sight, reporter)? {
                        self.see(status, reporter);
                    },
                    None => return Err(Failure::new(Exit::Unreachable, "the master stopped telling about the application")),
                },
                copied = copy(&mut self.copying) => {
                    self.copying = None;
                    copied.map_err(|failure| self.incomplete(failure))?;
                }
                () = sleep_until(silent_until), if self.ended.is_some() => {
                    if !self.movement.moved() {
                        let silence = Failure::new(Exit::Unreachable, "its log does not come to an end");
                        return Err(self.incomplete(silence));
                    }
                    silent_until = None;
                }
                () = interrupts.recv() => {
                    reporter.clear();
                    let id = &self.id;
                    reporter.note(&format!(
                        "detached: {id} goes on in the cluster\n  see how it is doing: submit status {id}\n  \
                         read its output:      submit logs {id} -f\n  end it:               submit kill {id}"
                    ));
                    return Err(Failure::quiet(Exit::Interrupted));
                }
                () = sleep_until(deadline) => {
                    reporter.clear();
                    let killed = kill(&self.run.cluster, &self.id).await;
                    return Err(self.run.timeout_failure(&self.id, killed));
                }
                () = next_redraw(reporter) => reporter.redraw(),
            }
            if self.ended.is_some() && silent_until.is_none() {
                silent_until = Some(tokio::time::Instant::now() + LOG_PATIENCE);
            }
        }
        watching.abort();
        self.conclude(reporter).await
    }

    /// Starts copying the driver's output once the driver has a place. A supervised driver's only once the application has
    /// ended: what an attempt wrote that is then repeated must not be part of the result.
    fn see(&mut self, status: Box<ApplicationStatus>, reporter: &Reporter) {
        let ended = is_final(&status);
        let supervised = self.run.settings.spec.supervise;
        let log = |stream| Log::new(&self.id, &status.driver, stream);
        if !status.driver.is_empty()
            && (ended || !supervised)
            && let Some(mut output) = self.stdout.take()
        {
            let (cluster, copied) = (self.run.cluster.clone(), self.copied.clone());
            let stdout = log(LogStream::Stdout);
            self.copying = Some(Box::pin(async move {
                // The loss of the connection is told by the one who watches.
                stdout.follow(&cluster, 0, &mut output, &copied, |_| {}).await
            }));
        }
        let is_followed = self.stderr.as_ref().is_some_and(|(driver, _)| *driver == status.driver);
        if self.run.verbose && !status.driver.is_empty() && !is_followed {
            let (cluster, stderr) = (self.run.cluster.clone(), log(LogStream::Stderr));
            let mut output = Output::new(Stream::Stderr, reporter.bar());
            let following = tokio::task::spawn_local(async move {
                drop(stderr.follow(&cluster, 0, &mut output, &AtomicU64::new(0), |_| {}).await);
            });
            self.stderr = Some((status.driver.clone(), following));
        }
        if ended {
            self.ended = Some(status);
        }
    }

    /// The result could not be copied to its end: never a success, whatever the application's state.
    fn incomplete(&self, cause: Failure) -> Failure {
        if cause.exit == Exit::BrokenPipe {
            return cause;
        }
        let exit = if cause.exit == Exit::ApplicationFailed { cause.exit } else { Exit::Unreachable };
        Failure::new(exit, format!("the output of {} is incomplete here: {}", self.id, cause.message))
            .hint(format!("submit logs {} --stdout", self.id))
    }

    async fn conclude(&mut self, reporter: &mut Reporter) -> Result<Exit, Failure> {
        let Some(status) = self.ended.take() else {
            return Err(Failure::new(Exit::Unreachable, "the application's end was not seen"));
        };
        reporter.end(end_verb(&status));
        if let Some((_, stderr)) = self.stderr.take() {
            drop(tokio::time::timeout(Duration::from_secs(1), stderr).await);
        } else if status.state() == ApplicationState::Failed && died_without_a_word(&status) {
            self.show_last_words(&status, reporter).await;
        }
        outcome(&status)
    }

    /// The driver's last lines on standard error: all there is to explain a sudden death.
    async fn show_last_words(&mut self, status: &ApplicationStatus, reporter: &Reporter) {
        if status.driver.is_empty() {
            return;
        }
        let log = Log::new(&self.id, &status.driver, LogStream::Stderr);
        let reading = log.tail(&self.run.cluster, STDERR_LINES);
        if let Ok(Ok((data, _))) = tokio::time::timeout(Duration::from_secs(2), reading).await
            && !data.is_empty()
        {
            reporter.note(&format!("the driver's last lines (all: submit logs {} --stderr):", self.id));
            for line in String::from_utf8_lossy(&data).lines() {
                reporter.note(&format!("  {}", crate::display::one_line(line)));
            }
        }
    }
}

/// The copy's end, or never while nothing is copied.
async fn copy(copying: &mut Option<LogCopy>) -> Result<(), Failure> {
    match copying {
        Some(copying) => copying.await,
        None => std::future::pending().await,
    }
}

/// The master speaks of the driver's process when the driver itself has said nothing: "the driver was killed by …".
fn died_without_a_word(status: &ApplicationStatus) -> bool {
    status.message.is_empty() || status.message.starts_with("the driver ")
}
