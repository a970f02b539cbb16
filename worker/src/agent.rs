//! The connection to the masters: register, report, obey; lose it, come back.
//!
//! What runs goes on while there is no connection. A reason for not being connected is logged when it changes, not with
//! every attempt.

use crate::backoff::Backoff;
use crate::node::{Handle, Snapshot};
use crate::usage::Usage;
use crate::wire;
use firesteel_common::MasterUrl;
use firesteel_proto::channel::{self, ConnectError, MAX_MESSAGE_BYTES, WRONG_PORT_HINT};
use firesteel_proto::v1;
use firesteel_proto::v1::worker_message::Kind;
use firesteel_proto::v1::workers_client::WorkersClient;
use futures::Stream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// Until the first assignment, which answers the registration. Long, because a master waits for a sign of life of an earlier process with the same id.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Until the first assignment says how often.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a master may take to hear a goodbye.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How things stand with the masters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not connected; the reason of the last failure.
    Down { reason: Option<String> },
    /// Registered with the master at this `HOST:PORT`.
    Registered { master: String },
}

/// Why the worker cannot be part of this cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    #[error("cannot join the cluster at {url}: {reason}")]
    Unreachable { url: String, reason: String, hint: String },
    #[error("the master at {url} refuses this worker: {reason}")]
    Refused { url: String, reason: String, hint: String },
}

impl AgentError {
    pub fn hint(&self) -> &str {
        match self {
            Self::Unreachable { hint, .. } | Self::Refused { hint, .. } => hint,
        }
    }
}

/// How one attempt or one connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    kind: FailureKind,
    reason: String,
    hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    /// May pass: nobody listens, no leader, connection lost.
    Transient,
    /// Wrong from the start: no such host, or something else listens there.
    WrongAddress,
    /// A master has said no to this worker.
    Refused,
    /// Another worker lives under this one's id.
    Duplicate,
}

impl Failure {
    fn transient(reason: impl Into<String>) -> Self {
        Self { kind: FailureKind::Transient, reason: reason.into(), hint: String::new() }
    }
}

impl From<&ConnectError> for Failure {
    fn from(error: &ConnectError) -> Self {
        let kind = if error.is_permanent() { FailureKind::WrongAddress } else { FailureKind::Transient };
        Self { kind, reason: error.to_string(), hint: error.hint().to_owned() }
    }
}

/// What a status on the worker's stream means.
fn classify(status: &Status, address: &str) -> Failure {
    // A master puts its own hint on a second line.
    let (message, hint) = status.message().split_once("\nhint: ").unwrap_or((status.message(), ""));
    let failure = |kind, own_hint: &str| Failure {
        kind,
        reason: message.to_owned(),
        hint: if hint.is_empty() { own_hint.to_owned() } else { hint.to_owned() },
    };
    match status.code() {
        Code::AlreadyExists => failure(FailureKind::Duplicate, "was this worker's work directory copied?"),
        Code::PermissionDenied | Code::Unauthenticated => {
            failure(FailureKind::Refused, "check the credentials of this worker")
        }
        Code::InvalidArgument => {
            failure(FailureKind::Refused, "is the master of the same version as this worker?")
        }
        Code::Unimplemented => Failure {
            kind: FailureKind::WrongAddress,
            reason: format!("{address} speaks gRPC, but it is not a Firesteel master"),
            hint: WRONG_PORT_HINT.to_owned(),
        },
        _ if channel::is_not_grpc(status) => no_protocol(address),
        _ => {
            Failure { hint: hint.to_owned(), ..Failure::transient(format!("{address}: {}", deepest(status))) }
        }
    }
}

/// A connection that broke before a first registration may have been to something else; then its words were lost.
async fn explain(failure: Failure, address: &str) -> Failure {
    if failure.kind == FailureKind::Transient && channel::speaks_http2(address).await == Some(false) {
        return no_protocol(address);
    }
    failure
}

fn no_protocol(address: &str) -> Failure {
    Failure {
        kind: FailureKind::WrongAddress,
        reason: format!("{address} does not speak Firesteel's protocol"),
        hint: WRONG_PORT_HINT.to_owned(),
    }
}

/// "connection reset by peer", not "transport error".
fn deepest(status: &Status) -> String {
    let mut source: &dyn std::error::Error = status;
    while let Some(next) = source.source() {
        source = next;
    }
    if std::ptr::addr_eq(source, status) {
        status.message().lines().next().unwrap_or_default().to_owned()
    } else {
        source.to_string()
    }
}

/// The agent and what it needs.
pub struct Agent {
    pub masters: MasterUrl,
    pub registration: v1::RegisterWorker,
    pub node: Handle,
    pub usage: Arc<Usage>,
    pub link: watch::Sender<Link>,
    /// Cancelled when everything has been stopped and the masters are to be told goodbye.
    pub leave: CancellationToken,
}

enum End {
    Left,
    Failed { failure: Failure, was_registered: bool },
}

impl Agent {
    /// Returns after a goodbye, or when this cluster is not for this worker.
    pub async fn run(self) -> Result<(), AgentError> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
        let mut ever_registered = false;
        let mut told: Option<String> = None;
        loop {
            let mut failures = Vec::new();
            for address in self.masters.authorities() {
                match self.session(&address).await {
                    End::Left => return Ok(()),
                    End::Failed { failure, was_registered } => {
                        if was_registered {
                            ever_registered = true;
                            backoff.reset();
                            told = None;
                        }
                        failures.push(if ever_registered {
                            failure
                        } else {
                            explain(failure, &address).await
                        });
                    }
                }
            }
            if let Some(error) = self.verdict(&failures, ever_registered) {
                return Err(error);
            }
            let reason = failures.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>().join("; ");
            if told.as_ref() != Some(&reason) {
                let hint = failures.iter().map(|f| f.hint.as_str()).find(|h| !h.is_empty()).unwrap_or("");
                tracing::warn!(hint, "{reason}; retrying");
                told = Some(reason.clone());
            }
            self.link.send_replace(Link::Down { reason: Some(reason) });
            tokio::select! {
                () = tokio::time::sleep(backoff.next(rand::random())) => {}
                () = self.leave.cancelled() => return Ok(()),
            }
        }
    }

    /// Whether to give up. A worker that has been registered gives up only when its identity has been taken over:
    /// everything else may be a master's trouble, and what runs here shall go on.
    fn verdict(&self, failures: &[Failure], ever_registered: bool) -> Option<AgentError> {
        let url = self.masters.to_string();
        let no = |f: &&Failure| match f.kind {
            FailureKind::Duplicate => true,
            FailureKind::Refused => !ever_registered,
            FailureKind::Transient | FailureKind::WrongAddress => false,
        };
        if let Some(f) = failures.iter().find(no) {
            return Some(AgentError::Refused { url, reason: f.reason.clone(), hint: f.hint.clone() });
        }
        let hopeless = failures.iter().all(|f| f.kind == FailureKind::WrongAddress);
        let first = failures.first().filter(|_| hopeless && !ever_registered)?;
        Some(AgentError::Unreachable { url, reason: first.reason.clone(), hint: first.hint.clone() })
    }

    /// One connection, from the first byte to the last.
    async fn session(&self, address: &str) -> End {
        let mut was_registered = false;
        tokio::select! {
            failure = self.connected(address, &mut was_registered) => match failure {
                Ok(()) => End::Left,
                // However a master takes the goodbye, it was said.
                Err(_) if self.leave.is_cancelled() => End::Left,
                Err(failure) => End::Failed { failure, was_registered },
            },
            () = async {
                self.leave.cancelled().await;
                // The goodbye is on its way; a master that does not answer will miss the heartbeats.
                tokio::time::sleep(LEAVE_TIMEOUT).await;
            } => End::Left,
        }
    }

    async fn connected(&self, address: &str, was_registered: &mut bool) -> Result<(), Failure> {
        let late = |_| Failure::transient(format!("{address} does not answer the registration"));
        let connect = channel::connect(address);
        let channel = tokio::select! {
            connected = connect => connected.map_err(|error| Failure::from(&error))?,
            () = self.leave.cancelled() => return Ok(()),
        };
        let (beat_in, beat) = watch::channel(HEARTBEAT);
        let outbound = outbound(
            self.registration.clone(),
            self.node.snapshots(),
            self.usage.clone(),
            beat,
            self.leave.clone(),
        );
        let mut client = WorkersClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut inbound = timeout(REGISTRATION_TIMEOUT, client.attach(outbound))
            .await
            .map_err(late)?
            .map_err(|status| classify(&status, address))?
            .into_inner();
        loop {
            let message = if *was_registered {
                inbound.message().await
            } else {
                timeout(REGISTRATION_TIMEOUT, inbound.message()).await.map_err(late)?
            };
            let Some(message) = message.map_err(|status| classify(&status, address))? else {
                if self.leave.is_cancelled() {
                    return Ok(());
                }
                return Err(Failure::transient(format!("{address} has closed the connection")));
            };
            let assignment = wire::assignment(message)
                .map_err(|error| Failure::transient(format!("{address} sent what is not valid: {error}")))?;
            beat_in.send_if_modified(|beat| {
                std::mem::replace(beat, assignment.heartbeat) != assignment.heartbeat
            });
            self.node.assign(assignment, channel.clone()).await.map_err(|stale| Failure {
                kind: FailureKind::Transient,
                reason: format!("{address} is not the leader this worker has known: {stale}"),
                hint: "if the masters' data was deleted, delete the file `epoch` in the work directory and restart \
                       this worker"
                    .to_owned(),
            })?;
            if !*was_registered {
                *was_registered = true;
                tracing::info!(master = address, "registered");
                self.link.send_replace(Link::Registered { master: address.to_owned() });
            }
        }
    }
}

struct Outbound {
    registration: Option<v1::RegisterWorker>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    usage: Arc<Usage>,
    beat: watch::Receiver<Duration>,
    ticks: tokio::time::Interval,
    leave: CancellationToken,
    left: bool,
    first_report: bool,
}

/// Registration, then a report at once, on every change and with every beat; a goodbye and the end after `leave`.
///
/// A report is made when the connection has room for it, so a slow master gets fewer and fresher ones, not a queue.
fn outbound(
    registration: v1::RegisterWorker,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    usage: Arc<Usage>,
    mut beat: watch::Receiver<Duration>,
    leave: CancellationToken,
) -> impl Stream<Item = v1::WorkerMessage> {
    let ticks = ticks(*beat.borrow_and_update());
    let registration = Some(registration);
    let state =
        Outbound { registration, snapshots, usage, beat, ticks, leave, left: false, first_report: true };
    futures::stream::unfold(state, |mut state| async move {
        let kind = state.next().await?;
        Some((v1::WorkerMessage { kind: Some(kind) }, state))
    })
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl Outbound {
    async fn next(&mut self) -> Option<Kind> {
        if let Some(registration) = self.registration.take() {
            return Some(Kind::Register(registration));
        }
        if self.left {
            return None;
        }
        if !std::mem::take(&mut self.first_report) && !self.due().await? {
            self.left = true;
            return Some(Kind::Leave(v1::LeaveWorker {}));
        }
        let usage = self.usage.sample();
        let snapshot = self.snapshots.borrow_and_update().clone();
        Some(Kind::Report(wire::report(snapshot.processes.iter(), usage)))
    }

    /// Waits until there is something to say: `true` for a report, `false` for a goodbye. `None` when the session has
    /// dropped its side.
    async fn due(&mut self) -> Option<bool> {
        loop {
            tokio::select! {
                biased;
                () = self.leave.cancelled() => return Some(false),
                changed = self.beat.changed() => {
                    changed.ok()?;
                    self.ticks = ticks(*self.beat.borrow_and_update());
                }
                changed = self.snapshots.changed() => return changed.ok().map(|()| true),
                _ = self.ticks.tick() => return Some(true),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_whether_to_come_back() {
        let kind = |code| classify(&Status::new(code, "m"), "h:1").kind;
        for code in
            [Code::Unavailable, Code::FailedPrecondition, Code::Internal, Code::Aborted, Code::Unknown]
        {
            assert_eq!(kind(code), FailureKind::Transient, "{code:?}");
        }
        assert_eq!(kind(Code::AlreadyExists), FailureKind::Duplicate);
        for code in [Code::Unauthenticated, Code::PermissionDenied, Code::InvalidArgument] {
            assert_eq!(kind(code), FailureKind::Refused, "{code:?}");
        }
        assert_eq!(kind(Code::Unimplemented), FailureKind::WrongAddress);
    }

    #[test]
    fn only_a_taken_identity_ends_a_worker_that_has_been_registered() {
        let (node, handle) = crate::node::Node::for_tests();
        drop(node);
        let agent = Agent {
            masters: "firesteel://a:1,b:2".parse().unwrap(),
            registration: v1::RegisterWorker::default(),
            node: handle,
            usage: Arc::default(),
            link: watch::channel(Link::Down { reason: None }).0,
            leave: CancellationToken::new(),
        };
        let refused = |code| classify(&Status::new(code, "no"), "a:1");
        let wrong = refused(Code::Unimplemented);
        let down = Failure::transient("refused");
        assert!(agent.verdict(&[down.clone(), wrong.clone()], false).is_none(), "one of them may come up");
        assert!(matches!(
            agent.verdict(&[wrong.clone(), wrong.clone()], false),
            Some(AgentError::Unreachable { .. })
        ));
        assert!(agent.verdict(&[wrong.clone(), wrong], true).is_none());
        let denied = refused(Code::PermissionDenied);
        assert!(agent.verdict(&[down.clone(), denied.clone()], false).is_some());
        assert!(agent.verdict(&[down.clone(), denied], true).is_none());
        let error = agent.verdict(&[down, refused(Code::AlreadyExists)], true).unwrap();
        assert!(error.to_string().ends_with("refuses this worker: no") && error.hint().contains("copied"));
        let f = classify(&Status::unavailable("not the leader\nhint: try another"), "a:1");
        assert_eq!((f.reason.as_str(), f.hint.as_str()), ("a:1: not the leader", "try another"));
    }
}
