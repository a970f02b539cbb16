//! Exit codes, and errors that carry one.

use crate::display;
use anstyle::AnsiColor;
use firesteel_proto::channel::{WRONG_PORT_HINT, is_not_grpc};
use firesteel_proto::masters::{FindLeaderError, not_leader};
use std::fmt::Display;
use std::io::Write;
use tonic::Code;

/// What `submit` ends with. The numbers are part of the interface: scripts test them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Success = 0,
    ApplicationFailed = 1,
    Usage = 2,
    /// The master cannot be reached, or does not let us in.
    Unreachable = 3,
    Unschedulable = 4,
    Killed = 5,
    Timeout = 124,
    Interrupted = 130,
    /// The reader of standard output is gone (`submit … | head`): what a shell shows for SIGPIPE.
    BrokenPipe = 141,
}

/// The end of a command that did not succeed: what to print on standard error, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    /// Empty when everything has been said already.
    pub message: String,
    /// A way out; empty when there is none.
    pub hint: String,
}

impl Failure {
    /// Masters and engines write their hint as a last line of the message; it is taken apart here.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        let message = message.to_string();
        match message.split_once("\nhint: ") {
            Some((message, hint)) => Self { exit, message: message.to_owned(), hint: hint.to_owned() },
            None => Self { exit, message, hint: String::new() },
        }
    }

    pub fn usage(message: impl Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Ends with `exit` and prints nothing.
    pub fn quiet(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// Adds a way out, unless the message came with one: that knows more.
    pub fn hint(mut self, hint: impl Display) -> Self {
        if self.hint.is_empty() {
            self.hint = hint.to_string();
        }
        self
    }

    /// Prints `error:` and `hint:` to standard error.
    pub fn report(&self) {
        if self.message.is_empty() {
            return;
        }
        let red = AnsiColor::Red.on_default().bold();
        let cyan = AnsiColor::Cyan.on_default().bold();
        let mut stderr = anstream::stderr();
        // A closed standard error cannot be told anything.
        drop(writeln!(stderr, "{red}error:{red:#} {}", display::lines(&self.message)));
        if !self.hint.is_empty() {
            drop(writeln!(stderr, "{cyan}hint:{cyan:#} {}", display::lines(&self.hint)));
        }
    }

    /// An answer of the master to the request described by `doing` ("submit report.sql").
    pub fn from_status(status: &tonic::Status, doing: &str) -> Self {
        if is_not_grpc(status) {
            return Self::new(
                Exit::Unreachable,
                format!(
                    "cannot {doing}: the port does not speak Firesteel's protocol ({})",
                    status.message()
                ),
            )
            .hint(WRONG_PORT_HINT);
        }
        if let Some(cause) = deepest_cause(status)
            && is_connection_loss(status)
        {
            return Self::new(
                Exit::Unreachable,
                format!("cannot {doing}: the connection broke before an answer came ({cause})"),
            )
            .hint(format!("is it a master that stopped just now, or another service? {WRONG_PORT_HINT}"));
        }
        let text = if status.message().is_empty() { status.code().description() } else { status.message() };
        let failure = |exit| Self::new(exit, format!("cannot {doing}: {text}"));
        match status.code() {
            Code::NotFound => {
                failure(Exit::Usage).hint("`submit list` shows the applications that the master knows")
            }
            Code::InvalidArgument | Code::OutOfRange | Code::AlreadyExists => failure(Exit::Usage),
            Code::FailedPrecondition | Code::ResourceExhausted => failure(Exit::Unschedulable),
            Code::Unauthenticated | Code::PermissionDenied => failure(Exit::Unreachable),
            Code::Unimplemented => failure(Exit::Unreachable).hint(
                "the server does not know this request: are submit and the master of the same version?",
            ),
            _ => {
                failure(Exit::Unreachable).hint("the connection to the master was lost; is it still running?")
            }
        }
    }
}

impl From<FindLeaderError> for Failure {
    fn from(error: FindLeaderError) -> Self {
        match error {
            FindLeaderError::Refused { address, status } => {
                Self::from_status(&status, &format!("talk to the master at {address}"))
            }
            error => Self::new(Exit::Unreachable, &error).hint(error.hint()),
        }
    }
}

impl From<std::io::Error> for Failure {
    /// For writes to standard output.
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::quiet(Exit::BrokenPipe)
        } else {
            Self::new(Exit::ApplicationFailed, format!("cannot write to standard output: {error}"))
        }
    }
}

/// Whether the same request may succeed on a new connection: the master went away, or was not itself for a moment.
pub fn is_connection_loss(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal
            | Code::Aborted
            | Code::DeadlineExceeded
    )
}

/// Whether nobody may have dealt with the request, as the connection broke or the asked master does not lead.
pub fn is_break(status: &tonic::Status) -> bool {
    not_leader(status).is_some() || (is_connection_loss(status) && deepest_cause(status).is_some())
}

/// Whether a request that may be said twice should be: it broke, or the master is about to go.
pub fn is_worth_repeating(status: &tonic::Status) -> bool {
    // What a master itself calls an internal error, such as a full disk, does not pass in some seconds.
    is_break(status) || (is_connection_loss(status) && status.code() != Code::Internal)
}

/// Whether the request may have been carried out all the same: only its answer was lost.
pub fn may_have_been_done(status: &tonic::Status) -> bool {
    is_worth_repeating(status) && not_leader(status).is_none()
}

/// What broke the connection; `None` for a status that the server sent.
fn deepest_cause(status: &tonic::Status) -> Option<String> {
    let mut error = std::error::Error::source(status)?;
    while let Some(source) = error.source() {
        error = source;
    }
    Some(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_exit_codes() {
        for (status, exit) in [
            (tonic::Status::not_found("no application matches \"x\""), Exit::Usage),
            (tonic::Status::invalid_argument("x"), Exit::Usage),
            (tonic::Status::unauthenticated("x"), Exit::Unreachable),
            (tonic::Status::unavailable("x"), Exit::Unreachable),
            (tonic::Status::failed_precondition("x"), Exit::Unschedulable),
        ] {
            let failure = Failure::from_status(&status, "submit x.sql");
            assert_eq!(failure.exit, exit, "{status:?}");
            assert!(failure.message.starts_with("cannot submit x.sql: "), "{}", failure.message);
        }
    }

    #[test]
    fn what_may_pass_is_repeated_and_what_will_not_is_not() {
        use firesteel_proto::masters::not_leader_status;
        let broken = tonic::Status::from_error(Box::new(std::io::Error::other("connection reset")));
        let details = firesteel_proto::v1::NotLeader { term: 3, ..Default::default() };
        let moved = not_leader_status("ask another", &details);
        for (status, breaks, repeat, done) in [
            (broken, true, true, true),
            (moved, true, true, false),
            (tonic::Status::unavailable("this master is stopping"), false, true, true),
            (tonic::Status::internal("no space left on device"), false, false, false),
            (tonic::Status::failed_precondition("too late"), false, false, false),
            (tonic::Status::already_exists("key"), false, false, false),
        ] {
            let found = (is_break(&status), is_worth_repeating(&status), may_have_been_done(&status));
            assert_eq!(found, (breaks, repeat, done), "{status:?}");
        }
    }

    #[test]
    fn the_masters_hint_is_shown_as_one() {
        let failure = Failure::from_status(&tonic::Status::not_found("no such thing\nhint: look there"), "x");
        assert_eq!(
            (failure.message.as_str(), failure.hint.as_str()),
            ("cannot x: no such thing", "look there")
        );
    }

    #[test]
    fn another_protocol_is_recognised() {
        let status = tonic::Status::unknown("h2 protocol error: frame with invalid size");
        assert_eq!(Failure::from_status(&status, "x").hint, WRONG_PORT_HINT);
        let status = tonic::Status::not_found("frame with invalid size");
        assert_ne!(Failure::from_status(&status, "x").hint, WRONG_PORT_HINT);
    }

    #[test]
    fn a_closed_reader_is_not_an_error_to_talk_about() {
        let failure = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::BrokenPipe, ""));
    }
}
