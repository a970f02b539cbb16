//! The way out: one connection to each other member, opened when there is something to say.

use super::addresses::AddressBook;
use super::wire;
use crate::consensus::{PeerInbox, StateMachine, Transport, Unreachable};
use firesteel_proto::{channel, v1};
use raft::eraftpb::{Message, MessageType};
use std::collections::HashMap;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use v1::peer_message::Kind;
use v1::peers_client::PeersClient;
use v1::snapshot_part::Kind as PartKind;

/// Messages that wait for a connection; what is beyond is lost, and Raft sends again.
const QUEUE: usize = 1024;
/// After a connection that could not be made. Short: a member that comes back must not wait for its first message.
const PAUSE: Duration = Duration::from_millis(100);
/// No part of a snapshot may take longer.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);
/// The largest message of another member: one entry may be that of a large command.
pub const MAX_PEER_MESSAGE_BYTES: usize = 64 << 20;

/// What a connection to another member is made from.
pub struct Network<S: StateMachine> {
    cluster_id: String,
    me: u64,
    addresses: AddressBook,
    inbox: PeerInbox<S>,
    runtime: Handle,
    links: HashMap<u64, mpsc::Sender<Message>>,
}

impl<S: StateMachine> Network<S> {
    /// Must be called within a tokio runtime, on which the connections live.
    pub fn new(cluster_id: String, me: u64, addresses: AddressBook, inbox: PeerInbox<S>) -> Self {
        Self { cluster_id, me, addresses, inbox, runtime: Handle::current(), links: HashMap::new() }
    }

    fn link(&mut self, to: u64) -> &mpsc::Sender<Message> {
        self.links.entry(to).or_insert_with(|| {
            let (queue, messages) = mpsc::channel(QUEUE);
            let link = Link {
                hello: v1::PeerHello { cluster_id: self.cluster_id.clone(), from: self.me, to },
                addresses: self.addresses.clone(),
                inbox: self.inbox.clone(),
            };
            self.runtime.spawn(link.run(messages));
            queue
        })
    }
}

impl<S: StateMachine> Transport for Network<S> {
    fn send(&mut self, message: Message) -> Result<(), Unreachable> {
        let to = message.to;
        if self.addresses.get(to).is_none_or(|a| a.raft.is_empty()) {
            // Never known, or removed: its link goes, too.
            self.links.remove(&to);
            return Err(Unreachable);
        }
        if message.get_msg_type() != MessageType::MsgSnapshot {
            return self.link(to).try_send(message).map_err(|_| Unreachable);
        }
        // A snapshot goes beside the stream, so that heartbeats do not wait behind it.
        let address = self.addresses.get(to).ok_or(Unreachable)?.raft;
        let hello = v1::PeerHello { cluster_id: self.cluster_id.clone(), from: self.me, to };
        let inbox = self.inbox.clone();
        self.runtime.spawn(async move {
            let sent = match tokio::time::timeout(SNAPSHOT_TIMEOUT, send_snapshot(&address, hello, message)).await {
                Ok(sent) => sent,
                Err(_) => Err(Status::deadline_exceeded("the snapshot took too long")),
            };
            if let Err(error) = &sent {
                tracing::warn!(to = %format!("{to:x}"), address, reason = error.message(), "cannot send a snapshot");
            }
            inbox.snapshot_sent(to, sent.is_ok());
        });
        Ok(())
    }
}

struct Link<S: StateMachine> {
    hello: v1::PeerHello,
    addresses: AddressBook,
    inbox: PeerInbox<S>,
}

impl<S: StateMachine> Link<S> {
    /// Until the network is dropped.
    async fn run(self, mut messages: mpsc::Receiver<Message>) {
        let to = self.hello.to;
        let mut told: Option<String> = None;
        while let Some(first) = messages.recv().await {
            let begun = std::time::Instant::now();
            let reason = self.connection(first, &mut messages).await;
            self.inbox.unreachable(to);
            if told.as_ref() != Some(&reason) || begun.elapsed() > Duration::from_secs(5) {
                tracing::info!(to = %format!("{to:x}"), reason, "no connection to another master; retrying");
                told = Some(reason);
            }
            // What has gathered meanwhile is old: Raft knows that it may be lost.
            while messages.try_recv().is_ok() {}
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One connection, until it breaks; why.
    async fn connection(&self, first: Message, messages: &mut mpsc::Receiver<Message>) -> String {
        let to = self.hello.to;
        let Some(addresses) = self.addresses.get(to) else {
            return format!("the address of member {to:x} is not known");
        };
        let channel = match channel::connect_peer(&addresses.raft).await {
            Ok(channel) => channel,
            Err(error) => return error.to_string(),
        };
        let (queue, stream) = mpsc::channel(16);
        let mut client = PeersClient::new(channel).max_encoding_message_size(MAX_PEER_MESSAGE_BYTES);
        let delivering = client.deliver(ReceiverStream::new(stream));
        let feeding = async {
            let hello = v1::PeerMessage { kind: Some(Kind::Hello(self.hello.clone())) };
            if queue.send(hello).await.is_err() {
                return;
            }
            let mut next = Some(first);
            while let Some(message) = next {
                if let Some(raft) = wire::encode(&message)
                    && queue.send(v1::PeerMessage { kind: Some(Kind::Raft(raft)) }).await.is_err()
                {
                    return;
                }
                next = messages.recv().await;
            }
        };
        tokio::pin!(delivering);
        let answer = tokio::select! {
            answer = &mut delivering => answer,
            () = feeding => delivering.await,
        };
        match answer {
            Ok(_) => "it closed the connection".to_owned(),
            Err(status) => {
                if status.code() == Code::PermissionDenied {
                    self.inbox.removed();
                }
                format!("{}: {}", addresses.raft, status.message())
            }
        }
    }
}

async fn send_snapshot(address: &str, hello: v1::PeerHello, message: Message) -> Result<(), Status> {
    let data = message.get_snapshot().data.clone();
    let head =
        v1::SnapshotHead { hello: Some(hello), message: wire::encode(&message), bytes: data.len() as u64 };
    let channel = channel::connect_peer(address).await.map_err(|e| Status::unavailable(e.to_string()))?;
    let parts = std::iter::once(PartKind::Head(head)).chain(
        (0..data.len())
            .step_by(channel::CHUNK_BYTES)
            .map(move |at| PartKind::Data(data[at..data.len().min(at + channel::CHUNK_BYTES)].to_vec())),
    );
    let parts = parts.map(|kind| v1::SnapshotPart { kind: Some(kind) });
    PeersClient::new(channel).deliver_snapshot(tokio_stream::iter(parts)).await.map(drop)
}
