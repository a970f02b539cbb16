//! The cluster's masters, and what to do when the one that leads goes away.

use crate::display::one_line;
use crate::exit::{Failure, is_connection_loss, is_worth_repeating};
use crate::progress::is_final;
use firesteel_common::MasterUrl;
use firesteel_proto::channel::MAX_MESSAGE_BYTES;
use firesteel_proto::masters::{FindLeaderError, Leader, Masters};
use firesteel_proto::v1::client_client::ClientClient;
use firesteel_proto::v1::{ApplicationStatus, WatchApplicationRequest};
use std::io::Write;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

pub type Client = ClientClient<Channel>;

/// How long a command waits for a master that leads, while there are masters at all. An election takes 1 to 3 s.
const PATIENCE: Duration = Duration::from_secs(15);
/// A shorter wait is not worth a word.
const SILENCE: Duration = Duration::from_secs(1);

pub fn client(leader: &Leader) -> Client {
    ClientClient::new(leader.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Why a request has no answer.
#[derive(Debug)]
pub enum RequestError {
    /// There was nobody to ask.
    NoLeader(FindLeaderError),
    /// The master's own word, or how the connection broke.
    Status(Status),
}

impl RequestError {
    /// `doing` describes the request ("list applications").
    pub fn failure(self, doing: &str) -> Failure {
        match self {
            Self::NoLeader(error) => error.into(),
            Self::Status(status) => Failure::from_status(&status, doing),
        }
    }

    pub fn reason(&self) -> String {
        match self {
            Self::NoLeader(error) => first_line(&error.to_string()),
            Self::Status(status) => reason(status),
        }
    }
}

/// The cluster that a command talks to. Cloning shares what is known about its masters.
#[derive(Debug, Clone)]
pub struct Cluster {
    masters: Masters,
    quiet: bool,
}

impl Cluster {
    pub fn new(url: &MasterUrl, quiet: bool) -> Self {
        Self { masters: Masters::new(url), quiet }
    }

    /// The master that leads, for a request that follows. Waits for an election.
    pub async fn leader(&self) -> Result<Leader, Failure> {
        self.request(async |leader| Ok(leader)).await.map_err(|error| error.failure("find the master"))
    }

    /// Asks the leader; again when the connection breaks or another master takes over, until [`PATIENCE`] is over or no
    /// master is there at all. So `call` must be safe to repeat.
    pub async fn request<T>(
        &self,
        mut call: impl AsyncFnMut(Leader) -> Result<T, Status>,
    ) -> Result<T, RequestError> {
        let began = Instant::now();
        let mut backoff = Backoff::new();
        let mut told = self.quiet;
        loop {
            let error = match self.attempt(&mut call).await {
                Err(RequestError::NoLeader(error)) if error.is_transient() => RequestError::NoLeader(error),
                Err(RequestError::Status(status)) if is_worth_repeating(&status) => {
                    RequestError::Status(status)
                }
                end => return end,
            };
            let pause = backoff.next();
            if began.elapsed() + pause > PATIENCE {
                return Err(error);
            }
            if !told && began.elapsed() > SILENCE {
                told = true;
                let reason = one_line(&error.reason());
                // Nothing is owed to a standard error that is closed.
                drop(writeln!(std::io::stderr(), "waiting for a master that leads: {reason}"));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks until a leader has answered, however long that takes. `lost` hears of each attempt that failed.
    pub async fn insist<T>(
        &self,
        mut lost: impl FnMut(&RequestError),
        mut call: impl AsyncFnMut(Leader) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let mut backoff = Backoff::new();
        loop {
            match self.attempt(&mut call).await {
                Ok(answer) => return Ok(answer),
                Err(RequestError::Status(status)) if !is_worth_repeating(&status) => return Err(status),
                Err(error) => lost(&error),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn attempt<T>(
        &self,
        call: &mut impl AsyncFnMut(Leader) -> Result<T, Status>,
    ) -> Result<T, RequestError> {
        let leader = self.masters.leader().await.map_err(RequestError::NoLeader)?;
        call(leader.clone()).await.map_err(|status| {
            if is_worth_repeating(&status) {
                self.masters.failed(&leader, Some(&status));
            }
            RequestError::Status(status)
        })
    }

    /// The leader as one look finds it, without waiting.
    pub async fn look(&self) -> Result<Leader, FindLeaderError> {
        self.masters.leader().await
    }

    /// Have the leader looked for again.
    pub fn failed(&self, leader: &Leader, status: Option<&Status>) {
        self.masters.failed(leader, status);
    }
}

/// Growing pauses between attempts, with jitter, so that many clients do not come back in step.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(2);

    pub fn new() -> Self {
        Self { pause: Self::FIRST }
    }

    /// The next pause: half to all of the current step.
    pub fn next(&mut self) -> Duration {
        let pause = self.pause.mul_f64(rand::random_range(0.5..=1.0));
        self.pause = (self.pause * 2).min(Self::MAX);
        pause
    }
}

/// What is seen of an application.
#[derive(Debug)]
pub enum Sight {
    Status(Box<ApplicationStatus>),
    /// The connection broke; for these reasons. Told once per break.
    Lost(String),
    /// It stands again; a status follows.
    Back,
    /// The master refuses to tell: no attempt will help.
    Refused(Failure),
}

/// Follows an application to its end, through every loss of the connection and every change of the leader. The channel
/// closes after a final state or a refusal.
pub async fn watch(cluster: Cluster, id: String, sights: mpsc::Sender<Sight>) {
    let mut backoff = Backoff::new();
    let mut lost = false;
    loop {
        let reason = match cluster.look().await {
            Err(error) => first_line(&error.to_string()),
            Ok(leader) => {
                let status = match watch_at(&leader, &id, &sights, &mut lost, &mut backoff).await {
                    Watched::Enough => return,
                    Watched::Closed => None,
                    Watched::Broken(status) if is_connection_loss(&status) => Some(status),
                    Watched::Broken(status) => {
                        let failure = Failure::from_status(&status, &format!("follow {id}"));
                        drop(sights.send(Sight::Refused(failure)).await);
                        return;
                    }
                };
                cluster.failed(&leader, status.as_ref());
                status.map_or_else(|| "it closed the connection".to_owned(), |status| reason(&status))
            }
        };
        if !lost {
            lost = true;
            if sights.send(Sight::Lost(reason)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

enum Watched {
    /// A final state was seen, or nobody looks any more.
    Enough,
    Closed,
    Broken(Status),
}

/// Passes on what one master tells, until it stops.
async fn watch_at(
    leader: &Leader,
    id: &str,
    sights: &mpsc::Sender<Sight>,
    lost: &mut bool,
    backoff: &mut Backoff,
) -> Watched {
    let request = WatchApplicationRequest { application_id: id.to_owned() };
    let mut stream = match client(leader).watch_application(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Watched::Broken(status),
    };
    loop {
        match stream.message().await {
            Ok(Some(status)) => {
                if std::mem::take(lost) && sights.send(Sight::Back).await.is_err() {
                    return Watched::Enough;
                }
                *backoff = Backoff::new();
                let ended = is_final(&status);
                if sights.send(Sight::Status(Box::new(status))).await.is_err() || ended {
                    return Watched::Enough;
                }
            }
            Ok(None) => return Watched::Closed,
            Err(status) => return Watched::Broken(status),
        }
    }
}

/// A status without the hint in its further lines.
pub fn reason(status: &Status) -> String {
    let text = if status.message().is_empty() { status.code().description() } else { status.message() };
    first_line(text)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let mut backoff = Backoff::new();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= Backoff::FIRST && pauses[0] >= Backoff::FIRST / 2);
        assert!(pauses.iter().all(|p| *p <= Backoff::MAX));
        assert!(pauses[10] >= Backoff::MAX / 2);
    }

    #[test]
    fn a_reason_is_one_line_and_never_empty() {
        assert_eq!(reason(&Status::unavailable("the master stops\nhint: x")), "the master stops");
        assert!(!reason(&Status::unavailable("")).is_empty());
    }
}
