//! The connection to the master, and what to do when it breaks.

use crate::exit::{Failure, is_connection_loss};
use crate::progress::is_final;
use firesteel_common::MasterUrl;
use firesteel_proto::channel::{MAX_MESSAGE_BYTES, connect_master};
use firesteel_proto::v1::client_client::ClientClient;
use firesteel_proto::v1::{ApplicationStatus, WatchApplicationRequest};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;

pub type Client = ClientClient<Channel>;

/// Connects to the first master of `url` that answers.
pub async fn connect(url: &MasterUrl) -> Result<Client, Failure> {
    let channel = connect_master(url).await?;
    Ok(ClientClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// Growing pauses between attempts, with jitter, so that many clients do not come back in step.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(5);

    pub fn new() -> Self {
        Self { pause: Self::FIRST }
    }

    /// The next pause: half to all of the current step.
    fn next(&mut self) -> Duration {
        let pause = self.pause.mul_f64(rand::random_range(0.5..=1.0));
        self.pause = (self.pause * 2).min(Self::MAX);
        pause
    }

    /// Waits, then connects; again and again until a master answers.
    pub async fn reconnect(&mut self, url: &MasterUrl) -> Client {
        loop {
            tokio::time::sleep(self.next()).await;
            if let Ok(client) = connect(url).await {
                return client;
            }
        }
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

/// Follows an application to its end, through every loss of the connection. The channel closes after a final state or a
/// refusal.
pub async fn watch(url: MasterUrl, mut client: Client, id: String, sights: mpsc::Sender<Sight>) {
    let mut backoff = Backoff::new();
    let mut lost = false;
    loop {
        let reason =
            match client.watch_application(WatchApplicationRequest { application_id: id.clone() }).await {
                Ok(answer) => {
                    let mut stream = answer.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(status)) => {
                                if std::mem::take(&mut lost) && sights.send(Sight::Back).await.is_err() {
                                    return;
                                }
                                backoff = Backoff::new();
                                let ended = is_final(&status);
                                if sights.send(Sight::Status(Box::new(status))).await.is_err() || ended {
                                    return;
                                }
                            }
                            Ok(None) => break Ok("it closed the connection".to_owned()),
                            Err(status) => break Err(status),
                        }
                    }
                }
                Err(status) => Err(status),
            };
        let reason = match reason {
            Ok(reason) => reason,
            Err(status) if is_connection_loss(&status) => first_line(&status),
            Err(status) => {
                let failure = Failure::from_status(&status, &format!("follow {id}"));
                drop(sights.send(Sight::Refused(failure)).await);
                return;
            }
        };
        if !lost {
            lost = true;
            if sights.send(Sight::Lost(reason)).await.is_err() {
                return;
            }
        }
        client = backoff.reconnect(&url).await;
    }
}

/// A status without the hint in its further lines.
pub fn first_line(status: &tonic::Status) -> String {
    status.message().lines().next().unwrap_or(status.code().description()).to_owned()
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
}
