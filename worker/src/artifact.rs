//! Fetching a script from the masters.

use crate::backoff::Backoff;
use firesteel_proto::channel::MAX_MESSAGE_BYTES;
use firesteel_proto::masters::Masters;
use firesteel_proto::v1;
use firesteel_proto::v1::workers_client::WorkersClient;
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// An election takes a second or two; this is for masters that are started again.
const RETRY_FOR: Duration = Duration::from_secs(60);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// Why a script is not here.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("cannot fetch the script from the master: {0}")]
    Fetch(String),
    #[error("cannot fetch the script from the masters, tried for {seconds} s: {reason}")]
    GivenUp { seconds: u64, reason: String },
    #[error("the script does not have its hash: {expected} asked, {got} received")]
    Hash { expected: String, got: String },
    #[error("cannot write the script to {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Fetches into `path` and verifies; on an error nothing usable is left there. `sha256` has been checked for its form.
/// A leader that is lost meanwhile is looked for again.
pub async fn fetch(masters: &Masters, sha256: &str, path: &Path) -> Result<(), ArtifactError> {
    fetch_within(RETRY_FOR, masters, sha256, path).await
}

async fn fetch_within(
    time: Duration,
    masters: &Masters,
    sha256: &str,
    path: &Path,
) -> Result<(), ArtifactError> {
    let deadline = Instant::now() + time;
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
    let mut reason = "no answer".to_owned();
    loop {
        match timeout_at(deadline, fetch_from_leader(masters, sha256, path)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Failure::Final(error))) => return Err(error),
            Ok(Err(Failure::Transient(why))) => reason = why,
            Err(_) => return Err(ArtifactError::GivenUp { seconds: time.as_secs(), reason }),
        }
        // The sleep is cut short by the time limit of the next attempt.
        sleep_until(deadline.min(Instant::now() + backoff.next(rand::random()))).await;
    }
}

enum Failure {
    Final(ArtifactError),
    /// Another leader may do better.
    Transient(String),
}

async fn fetch_from_leader(masters: &Masters, sha256: &str, path: &Path) -> Result<(), Failure> {
    let leader = masters.leader().await.map_err(|error| Failure::Transient(error.to_string()))?;
    match fetch_once(leader.channel.clone(), sha256, path).await {
        Ok(()) => Ok(()),
        Err(Broken::Here(error)) => Err(Failure::Final(error)),
        Err(Broken::There(status)) => match status.code() {
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Aborted => {
                masters.failed(&leader, Some(&status));
                Err(Failure::Transient(status.message().to_owned()))
            }
            _ => Err(Failure::Final(ArtifactError::Fetch(status.message().to_owned()))),
        },
    }
}

/// Where an attempt went wrong.
enum Broken {
    Here(ArtifactError),
    There(Status),
}

async fn fetch_once(channel: Channel, sha256: &str, path: &Path) -> Result<(), Broken> {
    let write = |source| Broken::Here(ArtifactError::Write { path: path.to_path_buf(), source });
    let mut client = WorkersClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let request = v1::GetArtifactRequest { sha256: sha256.to_owned() };
    let mut chunks = client.get_artifact(request).await.map_err(Broken::There)?.into_inner();
    let mut file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(write)?;
    let mut hash = Sha256::new();
    while let Some(chunk) = chunks.message().await.map_err(Broken::There)? {
        hash.update(&chunk.data);
        file.write_all(&chunk.data).map_err(write)?;
    }
    let got: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if got == sha256 {
        Ok(())
    } else {
        Err(Broken::Here(ArtifactError::Hash { expected: sha256.to_owned(), got }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fetch_that_finds_no_leader_gives_up_with_the_reason() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("firesteel://{}", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);
        let path = Path::new("/nonexistent/script");
        let fetched = fetch_within(Duration::from_millis(200), &Masters::new(&url), "", path).await;
        let error = fetched.unwrap_err().to_string();
        assert!(error.ends_with("connection refused") && error.contains("tried for 0 s"), "{error}");
    }
}
