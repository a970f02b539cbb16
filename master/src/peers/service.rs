//! The way in: what other masters send.

use super::addresses::Addresses;
use super::network::MAX_PEER_MESSAGE_BYTES;
use super::wire;
use crate::artifacts::{ArtifactError, Artifacts};
use crate::cluster::Cluster;
use crate::consensus::PeerInbox;
use crate::membership;
use crate::services::{Answers, send_file};
use firesteel_master_core::ClusterState;
use firesteel_proto::{channel, convert, v1};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};
use v1::artifact_part::Kind as ArtifactKind;
use v1::peer_message::Kind;
use v1::peers_server::{Peers, PeersServer};
use v1::snapshot_part::Kind as PartKind;

/// A stream between masters that says nothing for so long in a transfer is given up.
const IDLE: Duration = Duration::from_secs(30);
/// The state of a cluster: far more than a history of a thousand applications needs.
const MAX_SNAPSHOT_BYTES: u64 = 1 << 30;

/// What this master is to others, from before it belongs to a cluster.
#[derive(Clone)]
pub struct Presence {
    inner: Arc<Inner>,
}

struct Inner {
    raft_id: u64,
    addresses: Addresses,
    /// How many founders it waits for; 0 when it does not found.
    expect: u32,
    running: OnceLock<Running>,
}

/// What there is once it belongs to one.
pub struct Running {
    pub cluster: Cluster,
    pub inbox: PeerInbox<ClusterState>,
    pub founders: Vec<u64>,
}

impl Presence {
    pub fn new(raft_id: u64, addresses: Addresses, expect: u32) -> Self {
        Self { inner: Arc::new(Inner { raft_id, addresses, expect, running: OnceLock::new() }) }
    }

    pub fn raft_id(&self) -> u64 {
        self.inner.raft_id
    }

    pub fn addresses(&self) -> &Addresses {
        &self.inner.addresses
    }

    /// From here on it takes Raft's messages. Only the first call counts.
    pub fn begin(&self, running: Running) {
        let _ = self.inner.running.set(running);
    }

    fn running(&self) -> Result<&Running, Status> {
        self.inner
            .running
            .get()
            .ok_or_else(|| Status::unavailable("this master does not belong to a cluster yet"))
    }

    /// The service, ready to be served on a listener.
    pub fn router(&self) -> Router {
        let service = PeersService { presence: self.clone() };
        channel::server().add_service(
            PeersServer::new(service)
                .max_decoding_message_size(MAX_PEER_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_PEER_MESSAGE_BYTES),
        )
    }
}

struct PeersService {
    presence: Presence,
}

impl PeersService {
    fn same_cluster(&self, cluster_id: &str) -> Result<&Running, Status> {
        let running = self.presence.running()?;
        let own = running.cluster.cluster_id();
        if own == cluster_id {
            return Ok(running);
        }
        Err(Status::failed_precondition(format!(
            "this master belongs to cluster {own}, the caller to {cluster_id}: was one of them started on another's address?"
        )))
    }

    fn check_hello(&self, hello: &v1::PeerHello) -> Result<&Running, Status> {
        let running = self.same_cluster(&hello.cluster_id)?;
        let me = self.presence.inner.raft_id;
        if hello.to != me {
            return Err(Status::failed_precondition(format!(
                "member {:x} is not here: this is {me:x}, which has taken over its address",
                hello.to
            )));
        }
        // The caller may only learn that it is gone from somebody who has applied its removal.
        if running.cluster.state().is_removed_member(hello.from) {
            return Err(Status::permission_denied(format!(
                "master {:x} has been removed from the cluster",
                hello.from
            )));
        }
        Ok(running)
    }
}

/// Tells the loop when the connection ends, however it ends.
struct Connected<'a> {
    inbox: &'a PeerInbox<ClusterState>,
    from: u64,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.inbox.connection_lost(self.from);
    }
}

fn missing(what: &'static str) -> Status {
    convert::InvalidMessage::Missing(what).into()
}

fn decode(
    wire: Option<v1::RaftMessage>,
    hello: &v1::PeerHello,
    data: Vec<u8>,
) -> Result<raft::eraftpb::Message, Status> {
    let wire = wire.ok_or_else(|| missing("message"))?;
    if wire.from != hello.from || wire.to != hello.to {
        return Err(Status::invalid_argument("a message of another sender or for another member"));
    }
    wire::decode(wire, data).map_err(|e| Status::invalid_argument(e.to_string()))
}

#[tonic::async_trait]
impl Peers for PeersService {
    async fn deliver(
        &self,
        request: Request<Streaming<v1::PeerMessage>>,
    ) -> Result<Response<v1::DeliverResponse>, Status> {
        let mut messages = request.into_inner();
        let Some(v1::PeerMessage { kind: Some(Kind::Hello(hello)) }) = messages.message().await? else {
            return Err(missing("hello"));
        };
        let running = self.check_hello(&hello)?;
        let connected = Connected { inbox: &running.inbox, from: hello.from };
        let mut published = running.cluster.published();
        loop {
            let message = tokio::select! {
                message = messages.message() => message?,
                // A member that is removed while it is connected must learn of it, too.
                changed = published.wait_for(|p| p.state.is_removed_member(hello.from)) => {
                    changed.map_err(|_| Status::unavailable("this master is stopping"))?;
                    return Err(Status::permission_denied("this master has been removed from the cluster"));
                }
                () = running.cluster.stopping().cancelled() => {
                    return Err(Status::unavailable("this master is stopping"));
                }
            };
            match message {
                Some(v1::PeerMessage { kind: Some(Kind::Raft(wire)) }) => {
                    if wire.snapshot.is_some() {
                        return Err(Status::invalid_argument(
                            "a snapshot comes in pieces, by DeliverSnapshot",
                        ));
                    }
                    connected.inbox.deliver(decode(Some(wire), &hello, Vec::new())?);
                }
                Some(_) => {
                    return Err(Status::invalid_argument("hello is said once, then come Raft's messages"));
                }
                None => return Ok(Response::new(v1::DeliverResponse {})),
            }
        }
    }

    async fn deliver_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::DeliverResponse>, Status> {
        let mut parts = request.into_inner();
        let Some(v1::SnapshotPart { kind: Some(PartKind::Head(head)) }) = parts.message().await? else {
            return Err(missing("head"));
        };
        let hello = head.hello.ok_or_else(|| missing("hello"))?;
        let running = self.check_hello(&hello)?;
        if head.bytes > MAX_SNAPSHOT_BYTES {
            return Err(Status::invalid_argument(format!("a snapshot of {} bytes is too large", head.bytes)));
        }
        let mut data = Vec::new();
        while let Some(part) = next_part(&mut parts).await? {
            match part.kind {
                Some(PartKind::Data(piece)) if data.len() as u64 + piece.len() as u64 <= head.bytes => {
                    data.extend_from_slice(&piece);
                }
                _ => {
                    return Err(Status::invalid_argument(
                        "a snapshot is a head and as many bytes as it says",
                    ));
                }
            }
        }
        if data.len() as u64 != head.bytes {
            return Err(Status::data_loss(format!("{} of {} bytes came", data.len(), head.bytes)));
        }
        running.inbox.deliver(decode(head.message, &hello, data)?);
        Ok(Response::new(v1::DeliverResponse {}))
    }

    async fn discover(
        &self,
        _: Request<v1::DiscoverRequest>,
    ) -> Result<Response<v1::DiscoverResponse>, Status> {
        let inner = &self.presence.inner;
        let running = inner.running.get();
        Ok(Response::new(v1::DiscoverResponse {
            raft_id: inner.raft_id,
            addresses: Some((&inner.addresses).into()),
            cluster_id: running.map(|r| r.cluster.cluster_id().to_owned()).unwrap_or_default(),
            expect: inner.expect,
            founders: running.map(|r| r.founders.clone()).unwrap_or_default(),
        }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let forwarded = request.metadata().contains_key(membership::FORWARDED);
        let running = self.presence.running()?;
        let answer = membership::join(&running.cluster, request.into_inner(), forwarded).await?;
        Ok(Response::new(answer))
    }

    async fn put_artifact(
        &self,
        request: Request<Streaming<v1::ArtifactPart>>,
    ) -> Result<Response<v1::PutArtifactResponse>, Status> {
        let mut parts = request.into_inner();
        let Some(v1::ArtifactPart { kind: Some(ArtifactKind::Head(head)) }) = parts.message().await? else {
            return Err(missing("head"));
        };
        let artifacts = self.same_cluster(&head.cluster_id)?.cluster.artifacts();
        let expected = convert::sha256(&head.sha256)?.to_owned();
        let mut upload = artifacts.upload().await.map_err(artifact_status)?;
        while let Some(part) = next_part(&mut parts).await? {
            match part.kind {
                Some(ArtifactKind::Data(data)) => upload.write(&data).await.map_err(artifact_status)?,
                _ => return Err(Status::invalid_argument("an artifact is a head and its bytes")),
            }
        }
        upload.finish_as(&expected).await.map_err(artifact_status)?;
        Ok(Response::new(v1::PutArtifactResponse {}))
    }

    type GetArtifactStream = Answers<v1::ArtifactChunk>;

    async fn get_artifact(
        &self,
        request: Request<v1::PeerArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let request = request.into_inner();
        let cluster = &self.same_cluster(&request.cluster_id)?.cluster;
        let sha256 = convert::sha256(&request.sha256)?;
        let file = open(cluster.artifacts(), sha256).await?;
        Ok(Response::new(send_file(cluster, file)))
    }
}

async fn open(artifacts: &Artifacts, sha256: &str) -> Result<tokio::fs::File, Status> {
    let file = artifacts.read(sha256).await.map_err(artifact_status)?;
    file.ok_or_else(|| Status::not_found(format!("there is no artifact {sha256} on this master")))
}

fn artifact_status(error: ArtifactError) -> Status {
    crate::services::artifact_status(error)
}

async fn next_part<T>(parts: &mut Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(IDLE, parts.message())
        .await
        .map_err(|_| Status::deadline_exceeded(format!("nothing came for {} s", IDLE.as_secs())))?
}
