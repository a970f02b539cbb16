//! The master's gRPC services: thin ways from the wire to commands and from the state to the wire.

mod client;
mod drivers;
mod logs;
mod masters;
mod workers;

pub use client::artifact_status;

use crate::cluster::Cluster;
use firesteel_proto::{channel, v1};
use std::future::Future;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;
use tonic::{Status, Streaming};

/// A client that has opened a stream and says nothing holds resources for nothing.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// What is buffered per stream: a slow reader gets the newest state when it reads, not all that were in between.
const STREAM_BUFFER: usize = 2;
/// Requests are small but for a large job's progress.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// A server stream fed by a task.
pub type Answers<T> = ReceiverStream<Result<T, Status>>;

/// All services of this master, ready to be served on a listener.
pub fn router(cluster: Cluster) -> Router {
    channel::server()
        .add_service(
            v1::client_server::ClientServer::new(client::ClientService::new(cluster.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            v1::masters_server::MastersServer::new(masters::MastersService::new(cluster.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            v1::workers_server::WorkersServer::new(workers::WorkersService::new(cluster.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            v1::drivers_server::DriversServer::new(drivers::DriversService::new(cluster))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
}

/// Runs `task` until it ends, the caller goes away, or this master stops.
fn stream<T, F>(cluster: &Cluster, task: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(STREAM_BUFFER);
    let stopping = cluster.stopping().clone();
    let work = task(sender.clone());
    tokio::spawn(async move {
        let end = tokio::select! {
            () = stopping.cancelled() => Err(Status::unavailable("this master is stopping")),
            () = sender.closed() => return,
            end = work => end,
        };
        if let Err(status) = end {
            // The caller may be gone; then nobody needs to know.
            let _ = sender.send(Err(status)).await;
        }
    });
    ReceiverStream::new(receiver)
}

/// A file in pieces.
pub fn send_file(cluster: &Cluster, mut file: tokio::fs::File) -> Answers<v1::ArtifactChunk> {
    stream(cluster, |sender| async move {
        loop {
            let mut data = Vec::with_capacity(channel::CHUNK_BYTES);
            (&mut file)
                .take(channel::CHUNK_BYTES as u64)
                .read_to_end(&mut data)
                .await
                .map_err(|e| Status::internal(format!("cannot read the artifact: {e}")))?;
            if data.is_empty() {
                return Ok(());
            }
            sender.send(Ok(v1::ArtifactChunk { data })).await.map_err(gone)?;
        }
    })
}

async fn first_message<T>(inbound: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, inbound.message()).await {
        Ok(message) => {
            message?.ok_or_else(|| Status::invalid_argument("the stream ended before its first message"))
        }
        Err(_) => Err(Status::deadline_exceeded("no first message within 10 s")),
    }
}

/// The caller has gone away.
fn gone<E>(_: E) -> Status {
    Status::cancelled("the caller has gone away")
}
