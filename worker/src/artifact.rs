//! Fetching a script from the masters.

use firesteel_proto::channel::MAX_MESSAGE_BYTES;
use firesteel_proto::v1;
use firesteel_proto::v1::workers_client::WorkersClient;
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::Channel;

const ATTEMPTS: u32 = 5;

/// Why a script is not here.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("cannot fetch the script from the master: {0}")]
    Fetch(String),
    #[error("the script does not have its hash: {expected} asked, {got} received")]
    Hash { expected: String, got: String },
    #[error("cannot write the script to {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Fetches into `path` and verifies; on an error nothing usable is left there. `sha256` has been checked for its form.
/// A master that goes away meanwhile is asked again, as the channel reconnects by itself.
pub async fn fetch(channel: Channel, sha256: &str, path: &Path) -> Result<(), ArtifactError> {
    let mut attempt = 0;
    let mut pause = Duration::from_millis(100);
    loop {
        attempt += 1;
        let status = match fetch_once(channel.clone(), sha256, path).await {
            Ok(()) => return Ok(()),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Rpc(status)) => status,
        };
        let transient = matches!(
            status.code(),
            tonic::Code::Unavailable
                | tonic::Code::Cancelled
                | tonic::Code::Unknown
                | tonic::Code::DeadlineExceeded
        );
        if !transient || attempt == ATTEMPTS {
            return Err(ArtifactError::Fetch(status.message().to_owned()));
        }
        tokio::time::sleep(pause).await;
        pause *= 3;
    }
}

enum Failure {
    Final(ArtifactError),
    Rpc(tonic::Status),
}

async fn fetch_once(channel: Channel, sha256: &str, path: &Path) -> Result<(), Failure> {
    let write = |source| Failure::Final(ArtifactError::Write { path: path.to_path_buf(), source });
    let mut client = WorkersClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let request = v1::GetArtifactRequest { sha256: sha256.to_owned() };
    let mut chunks = client.get_artifact(request).await.map_err(Failure::Rpc)?.into_inner();
    let mut file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(write)?;
    let mut hash = Sha256::new();
    while let Some(chunk) = chunks.message().await.map_err(Failure::Rpc)? {
        hash.update(&chunk.data);
        file.write_all(&chunk.data).map_err(write)?;
    }
    let got: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if got == sha256 {
        Ok(())
    } else {
        Err(Failure::Final(ArtifactError::Hash { expected: sha256.to_owned(), got }))
    }
}
