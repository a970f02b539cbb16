//! A submission, from the resolved settings to the exit code.

mod client;
mod cluster;
mod driver;
mod scratch;
mod submission;

use crate::display;
use crate::exit::{Exit, Failure};
use crate::master::{Cluster, RequestError, Sight, client as client_of};
use crate::output::Reporter;
use crate::script::Script;
use crate::settings::Settings;
use firesteel_common::DeployMode;
use firesteel_proto::v1::{ApplicationState, ApplicationStatus, KillApplicationRequest};
use std::io;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The directory that relative paths in the script start from.
const WORKING_DIRECTORY: &str = "firesteel.submit.workingDirectory";

/// How often the elapsed time on a terminal is renewed.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// A submission on its way.
pub struct Run {
    pub settings: Settings,
    pub cluster: Cluster,
    pub script: Script,
    /// Names this submission to the masters, however often it is said.
    pub key: String,
    pub verbose: bool,
    pub quiet: bool,
    /// When the command was given.
    pub started: Instant,
}

impl Run {
    /// Runs it to its end, or to the point where `submit` has nothing more to do.
    pub async fn run(mut self) -> Result<Exit, Failure> {
        let spec = &mut self.settings.spec;
        spec.resource = self.script.resource.clone();
        spec.user = user();
        if !spec.conf.contains_key(WORKING_DIRECTORY)
            && let Ok(directory) = std::env::current_dir()
            && let Some(directory) = directory.to_str()
        {
            spec.conf.insert(WORKING_DIRECTORY.into(), directory.into());
        }
        // Once more, with the fields that have come in since.
        spec.validate().map_err(Failure::usage)?;
        let mut reporter = Reporter::new(self.quiet || self.settings.detach, self.started);
        self.preamble(&reporter);
        let mut interrupts = Interrupts::new()?;
        match self.settings.spec.deploy_mode {
            DeployMode::Client => client::run(&self, &mut reporter, &mut interrupts).await,
            DeployMode::Cluster => cluster::run(&self, &mut reporter, &mut interrupts).await,
        }
    }

    fn preamble(&self, reporter: &Reporter) {
        let ignored = &self.settings.ignored;
        if !ignored.is_empty() {
            let names = ignored.join(", ");
            reporter.note(&format!("ignored, as it has no equivalent here: {}", display::one_line(&names)));
        }
        if self.verbose {
            for (name, value, origin) in &self.settings.report {
                reporter.note(&format!("{name} = {} ({origin})", display::one_line(value)));
            }
        }
    }

    /// `None` when there is no limit.
    fn deadline(&self) -> Option<tokio::time::Instant> {
        self.settings.timeout.map(|timeout| tokio::time::Instant::from_std(self.started) + timeout)
    }

    fn timeout_failure(&self, id: &str, killed: Result<(), Failure>) -> Failure {
        let limit = display::duration(self.settings.timeout.unwrap_or_default());
        match killed {
            Ok(()) => Failure::new(Exit::Timeout, format!("{id} did not end within {limit} and was killed")),
            Err(failure) => {
                Failure::new(Exit::Timeout, format!("{id} did not end within {limit}; {}", failure.message))
                    .hint(format!("submit kill {id}"))
            }
        }
    }
}

/// Kills an application that nobody waits for any more, without letting unreachable masters hold up the exit.
async fn kill(cluster: &Cluster, id: &str) -> Result<(), Failure> {
    // Longer than an election.
    const PATIENCE: Duration = Duration::from_secs(5);
    let request = KillApplicationRequest { application_id: id.to_owned(), user: user() };
    let killing = cluster.request(async |leader| client_of(&leader).kill_application(request.clone()).await);
    let cannot = |why: String| {
        Err(Failure::new(Exit::Unreachable, format!("cannot kill {id}: {}", display::one_line(&why))))
    };
    match tokio::time::timeout(PATIENCE, killing).await {
        Ok(Ok(_)) => Ok(()),
        // It has ended by itself in the meantime, or by an attempt whose answer was lost.
        Ok(Err(RequestError::Status(status))) if status.code() == tonic::Code::FailedPrecondition => Ok(()),
        Ok(Err(error)) => cannot(error.reason()),
        Err(_) => cannot("the master does not answer".to_owned()),
    }
}

/// How an application ended, as the end of this command.
fn outcome(status: &ApplicationStatus) -> Result<Exit, Failure> {
    let (exit, otherwise) = match status.state() {
        ApplicationState::Finished => return Ok(Exit::Success),
        ApplicationState::Killed => (Exit::Killed, "the application was killed"),
        _ => (Exit::ApplicationFailed, "the application failed"),
    };
    let message = display::lines(&status.message);
    let message = if message.trim().is_empty() { otherwise } else { &message };
    Err(Failure::new(exit, message))
}

fn end_verb(status: &ApplicationStatus) -> &'static str {
    match status.state() {
        ApplicationState::Finished => "finished in",
        ApplicationState::Killed => "killed after",
        _ => "failed after",
    }
}

/// Passes what is seen to the reporter; gives back the status when it is one.
fn report_sight(sight: Sight, reporter: &mut Reporter) -> Result<Option<Box<ApplicationStatus>>, Failure> {
    match sight {
        Sight::Status(status) => {
            reporter.update(&status);
            Ok(Some(status))
        }
        Sight::Lost(reason) => {
            reporter.note(&format!("lost the master ({}); connecting again …", display::one_line(&reason)));
            Ok(None)
        }
        Sight::Back => {
            reporter.note("connected to the master again");
            Ok(None)
        }
        Sight::Refused(failure) => Err(failure),
    }
}

/// The signals by which people and systems ask `submit` to go.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::ApplicationFailed, format!("cannot listen for signals: {error}"))
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Ends when the time limit is over; never without one.
async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Ends after one interval on a terminal; elsewhere nothing has to be redrawn.
async fn next_redraw(reporter: &Reporter) {
    if reporter.is_live() {
        tokio::time::sleep(REDRAW_INTERVAL).await;
    } else {
        std::future::pending::<()>().await;
    }
}

/// Whose name the application goes by. Only a name: rights come with authentication.
pub fn user() -> String {
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| format!("uid {uid}"))
}

/// For errors of the local machine while a driver is started.
fn local(what: &str, error: &io::Error) -> Failure {
    Failure::new(Exit::ApplicationFailed, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: ApplicationState, message: &str) -> Result<Exit, Failure> {
        outcome(&ApplicationStatus { state: state.into(), message: message.into(), ..Default::default() })
    }

    #[test]
    fn final_states_become_exit_codes() {
        assert_eq!(ended(ApplicationState::Finished, ""), Ok(Exit::Success));
        assert_eq!(ended(ApplicationState::Failed, "").unwrap_err().exit, Exit::ApplicationFailed);
        let killed = ended(ApplicationState::Killed, "killed by ana").unwrap_err();
        assert_eq!((killed.exit, killed.message.as_str()), (Exit::Killed, "killed by ana"));
    }

    #[test]
    fn a_hint_in_the_message_is_shown_as_one() {
        let failure = ended(ApplicationState::Failed, "x.sql:3:7: no table \x1b[mt\nhint: did you mean u?")
            .unwrap_err();
        assert_eq!(failure.message, "x.sql:3:7: no table  [mt");
        assert_eq!(failure.hint, "did you mean u?");
    }
}
