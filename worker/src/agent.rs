//! The connection to the masters: find the leader, register, report, obey; lose it, come back.
//!
//! What runs goes on while there is no connection, as long as the lease lasts ([`crate::lease`]). A reason for not being connected is logged when it changes, not with
//! every attempt.

use crate::backoff::Backoff;
use crate::lease::Attachment;
use crate::node::{Handle, Snapshot};
use crate::processes::Assignment;
use crate::usage::Usage;
use crate::wire;
use firesteel_common::MasterUrl;
use firesteel_proto::channel::{self, ConnectError, MAX_MESSAGE_BYTES, WRONG_PORT_HINT};
use firesteel_proto::masters::{FindLeaderError, Leader, Masters};
use firesteel_proto::v1;
use firesteel_proto::v1::worker_message::Kind;
use firesteel_proto::v1::workers_client::WorkersClient;
use futures::Stream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// After a registration that has lasted for so long, the leader is looked for again without a pause.
const STABLE: Duration = Duration::from_secs(1);
/// A leader that takes no report for so many beats is not waited for.
const BEATS_MISSED_MAX: u32 = 3;
/// Until the first assignment, which answers the registration. Long, because a master waits for a sign of life of an earlier process with the same id.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than any connection lasts.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
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

impl From<&FindLeaderError> for Failure {
    fn from(error: &FindLeaderError) -> Self {
        match error {
            FindLeaderError::Unreachable(error) => error.into(),
            FindLeaderError::Refused { address, status } => classify(status, address),
            FindLeaderError::NoLeader { .. } => {
                Self { hint: error.hint().to_owned(), ..Self::transient(error.to_string()) }
            }
        }
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

/// What failed before a first registration may have been the connection to something else; then its words were lost.
async fn explain(error: &FindLeaderError) -> Failure {
    let failure = Failure::from(error);
    let address = match error {
        FindLeaderError::Unreachable(ConnectError::Unreachable { address, .. }) => address,
        FindLeaderError::Refused { address, .. } => address,
        _ => return failure,
    };
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
    /// As the user gave it.
    pub url: MasterUrl,
    pub masters: Masters,
    pub registration: v1::RegisterWorker,
    pub node: Handle,
    pub usage: Arc<Usage>,
    pub link: watch::Sender<Link>,
    /// Cancelled when everything has been stopped and the masters are to be told goodbye.
    pub leave: CancellationToken,
}

/// How an attempt ended that did not end with a goodbye.
struct Broken {
    failures: Vec<Failure>,
    /// For how long the worker was registered, if it was.
    registered: Option<Duration>,
}

/// Why a connection ended.
struct Lost {
    failure: Failure,
    /// What the leader said last.
    status: Option<Status>,
}

impl From<Failure> for Lost {
    fn from(failure: Failure) -> Self {
        Self { failure, status: None }
    }
}

impl Lost {
    fn said(status: Status, address: &str) -> Self {
        Self { failure: classify(&status, address), status: Some(status) }
    }
}

impl Agent {
    /// Returns after a goodbye, or when this cluster is not for this worker.
    pub async fn run(self) -> Result<(), AgentError> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
        let mut ever_registered = false;
        let mut told: Option<String> = None;
        loop {
            let Some(Broken { failures, registered }) = self.attempt(ever_registered).await else {
                return Ok(());
            };
            if registered.is_some() {
                ever_registered = true;
                told = None;
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
            if registered.is_some_and(|time| time >= STABLE) {
                backoff.reset();
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next(rand::random())) => {}
                () = self.leave.cancelled() => return Ok(()),
            }
        }
    }

    /// One look for the leader and one connection to it. `None` after a goodbye.
    async fn attempt(&self, ever_registered: bool) -> Option<Broken> {
        let found = tokio::select! {
            found = self.masters.leader() => found,
            () = self.leave.cancelled() => return None,
        };
        let leader = match found {
            Ok(leader) => leader,
            Err(error) => {
                let failures =
                    if ever_registered { vec![Failure::from(&error)] } else { self.why_not(&error).await };
                return Some(Broken { failures, registered: None });
            }
        };
        let mut registered = None;
        let lost = self.session(&leader, &mut registered).await?;
        self.masters.failed(&leader, lost.status.as_ref());
        let registered = registered.map(|since: Instant| since.elapsed());
        Some(Broken { failures: vec![lost.failure], registered })
    }

    /// Why nobody led the worker in. An address that is wrong is a reason to give up only if all of them are.
    async fn why_not(&self, error: &FindLeaderError) -> Vec<Failure> {
        let first = explain(error).await;
        if first.kind != FailureKind::WrongAddress || self.url.addresses().len() == 1 {
            return vec![first];
        }
        let each = self.url.addresses().iter().map(|(host, port)| async {
            match Masters::new(&MasterUrl::new(host.clone(), *port)).leader().await {
                Ok(leader) => Failure::transient(format!("{} leads since a moment ago", leader.address)),
                Err(error) => explain(&error).await,
            }
        });
        futures::future::join_all(each).await
    }

    /// Whether to give up. A worker that has been registered gives up only when its identity has been taken over:
    /// everything else may be a master's trouble, and what runs here shall go on.
    fn verdict(&self, failures: &[Failure], ever_registered: bool) -> Option<AgentError> {
        let url = self.url.to_string();
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

    /// One connection to the leader. `None` after a goodbye. `registered`: since when it is.
    async fn session(&self, leader: &Leader, registered: &mut Option<Instant>) -> Option<Lost> {
        tokio::select! {
            ended = self.connected(leader, registered) => match ended {
                Ok(()) => None,
                // However a master takes the goodbye, it was said.
                Err(_) if self.leave.is_cancelled() => None,
                Err(lost) => Some(lost),
            },
            () = async {
                self.leave.cancelled().await;
                // The goodbye is on its way; a master that does not answer will miss the heartbeats.
                tokio::time::sleep(LEAVE_TIMEOUT).await;
            } => None,
        }
    }

    async fn connected(&self, leader: &Leader, registered: &mut Option<Instant>) -> Result<(), Lost> {
        let address = leader.address.as_str();
        let late = |_| Failure::transient(format!("{address} does not answer the registration"));
        let attachment = self.node.attach();
        let (beat_in, beat) = watch::channel(HEARTBEAT);
        let outbound = self.outbound(attachment, beat);
        let mut client =
            WorkersClient::new(leader.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut inbound = timeout(REGISTRATION_TIMEOUT, client.attach(outbound))
            .await
            .map_err(late)?
            .map_err(|status| Lost::said(status, address))?
            .into_inner();
        let mut patience = Patience::new(Instant::now());
        loop {
            let message = timeout_at(patience.until, inbound.message()).await;
            let message = message.map_err(|_| patience.failure(address))?;
            let Some(message) = message.map_err(|status| Lost::said(status, address))? else {
                if self.leave.is_cancelled() {
                    return Ok(());
                }
                return Err(Failure::transient(format!("{address} has closed the connection")).into());
            };
            let assignment = wire::assignment(message)
                .map_err(|error| Failure::transient(format!("{address} sent what is not valid: {error}")))?;
            beat_in.send_if_modified(|beat| {
                std::mem::replace(beat, assignment.heartbeat) != assignment.heartbeat
            });
            patience.hear(&assignment, Instant::now());
            self.node.assign(attachment, assignment).await.map_err(|stale| Failure {
                kind: FailureKind::Transient,
                reason: format!("{address} is not the leader this worker has known: {stale}"),
                hint: "if the masters' data was deleted, delete the file `epoch` in the work directory and restart \
                       this worker"
                    .to_owned(),
            })?;
            if registered.is_none() {
                *registered = Some(Instant::now());
                tracing::info!(master = address, "registered");
                self.link.send_replace(Link::Registered { master: address.to_owned() });
            }
        }
    }

    /// Registration, then a report at once, on every change and with every beat; a goodbye and the end after `leave`.
    ///
    /// A report is made when the connection has room for it, so a slow master gets fewer and fresher ones, not a queue.
    fn outbound(
        &self,
        attachment: Attachment,
        mut beat: watch::Receiver<Duration>,
    ) -> impl Stream<Item = v1::WorkerMessage> + use<> {
        let ticks = ticks(*beat.borrow_and_update());
        let state = Outbound {
            registration: Some(self.registration.clone()),
            node: self.node.clone(),
            attachment,
            reports: 0,
            snapshots: self.node.snapshots(),
            usage: self.usage.clone(),
            beat,
            ticks,
            leave: self.leave.clone(),
            left: false,
        };
        futures::stream::unfold(state, |mut state| async move {
            let kind = state.next().await?;
            Some((v1::WorkerMessage { kind: Some(kind) }, state))
        })
    }
}

/// For how long the leader is waited for. One that gives leases and takes no report any more may be stopped while its
/// connection stands: another has to be found while the lease lasts.
struct Patience {
    until: Instant,
    registered: bool,
    heard: u64,
    heard_at: Instant,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self { until: now + REGISTRATION_TIMEOUT, registered: false, heard: 0, heard_at: now }
    }

    fn hear(&mut self, assignment: &Assignment, now: Instant) {
        if !self.registered || assignment.lease.is_zero() || assignment.heard > self.heard {
            self.heard_at = now;
        }
        self.registered = true;
        self.heard = self.heard.max(assignment.heard);
        self.until = if assignment.lease.is_zero() {
            // It need not say anything: a connection that is dead is noticed by its keep-alive.
            now + FOREVER
        } else {
            self.heard_at + (assignment.lease / 2).max(assignment.heartbeat * BEATS_MISSED_MAX)
        };
    }

    fn failure(&self, address: &str) -> Failure {
        Failure::transient(if self.registered {
            let time = self.until.duration_since(self.heard_at).as_secs_f32();
            format!("{address} has taken no report for {time:.1} s")
        } else {
            format!("{address} does not answer the registration")
        })
    }
}

struct Outbound {
    registration: Option<v1::RegisterWorker>,
    node: Handle,
    attachment: Attachment,
    /// How many have been made on this connection.
    reports: u64,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    usage: Arc<Usage>,
    beat: watch::Receiver<Duration>,
    ticks: tokio::time::Interval,
    leave: CancellationToken,
    left: bool,
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
        if self.reports > 0 && !self.due().await? {
            self.left = true;
            return Some(Kind::Leave(v1::LeaveWorker {}));
        }
        let usage = self.usage.sample();
        let snapshot = self.snapshots.borrow_and_update().clone();
        self.reports += 1;
        self.node.report_sent(self.attachment, self.reports);
        Some(Kind::Report(wire::report(snapshot.processes.iter(), usage, self.reports)))
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
    fn a_leader_that_takes_no_reports_is_not_waited_for_until_the_lease_is_over() {
        let start = Instant::now();
        let s = Duration::from_secs;
        let says = |heard, lease| Assignment {
            epoch: firesteel_common::Epoch(1),
            processes: vec![],
            heartbeat: s(1),
            heard,
            lease: s(lease),
            shuffle_tenants: Default::default(),
        };
        let mut patience = Patience::new(start);
        assert_eq!(patience.until, start + REGISTRATION_TIMEOUT);
        patience.hear(&says(0, 10), start + s(1));
        assert_eq!(patience.until, start + s(6));
        patience.hear(&says(2, 10), start + s(3));
        patience.hear(&says(2, 10), start + s(4));
        assert_eq!(patience.until, start + s(8), "it talks, but it does not hear");
        assert!(patience.failure("h:1").reason.ends_with("h:1 has taken no report for 5.0 s"));
        patience.hear(&says(3, 2), start + s(5));
        assert_eq!(patience.until, start + s(8), "some beats, however short the lease");
        patience.hear(&says(3, 0), start + s(6));
        assert!(patience.until > start + s(3600), "without a lease there is no hurry");
    }

    #[tokio::test]
    async fn only_a_taken_identity_ends_a_worker_that_has_been_registered() {
        let (node, handle) = crate::node::Node::for_tests();
        drop(node);
        let url = "firesteel://a:1,b:2".parse().unwrap();
        let agent = Agent {
            masters: Masters::new(&url),
            url,
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
