//! Raft's messages on the wire: field by field, because the `raft` crate's own decoder (protobuf 2, RUSTSEC-2024-0437) must not
//! see bytes from the network.

use firesteel_proto::v1;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

/// A message that no honest member sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRaftMessage {
    #[error("kind {0} does not travel between members")]
    Kind(u32),
    #[error("an entry of unknown kind {0}")]
    EntryKind(u32),
}

/// The kinds that travel; the others are events inside a member, which nobody may forge from outside. A proposal is made where
/// its proposer waits.
const KINDS: &[(u32, MessageType)] = &[
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgRequestVote),
    (4, MessageType::MsgRequestVoteResponse),
    (5, MessageType::MsgSnapshot),
    (6, MessageType::MsgHeartbeat),
    (7, MessageType::MsgHeartbeatResponse),
    (8, MessageType::MsgTimeoutNow),
    (9, MessageType::MsgReadIndex),
    (10, MessageType::MsgReadIndexResp),
    (11, MessageType::MsgRequestPreVote),
    (12, MessageType::MsgRequestPreVoteResponse),
];

const ENTRY_KINDS: &[(u32, EntryType)] =
    &[(0, EntryType::EntryNormal), (1, EntryType::EntryConfChange), (2, EntryType::EntryConfChangeV2)];

/// `None` for a message that must not leave its member. A snapshot's data is left out: it travels in pieces.
pub fn encode(message: &Message) -> Option<v1::RaftMessage> {
    let kind = KINDS.iter().find(|(_, kind)| *kind == message.get_msg_type())?.0;
    Some(v1::RaftMessage {
        kind,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.iter().map(encode_entry).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: message.snapshot.as_ref().map(encode_snapshot),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.to_vec(),
        priority: message.priority,
    })
}

fn encode_entry(entry: &Entry) -> v1::RaftEntry {
    let kind = ENTRY_KINDS.iter().find(|(_, kind)| *kind == entry.get_entry_type()).map_or(0, |(n, _)| *n);
    v1::RaftEntry {
        kind,
        term: entry.term,
        index: entry.index,
        data: entry.data.to_vec(),
        context: entry.context.to_vec(),
    }
}

fn encode_snapshot(snapshot: &Snapshot) -> v1::RaftSnapshot {
    let metadata = snapshot.get_metadata();
    let conf = metadata.get_conf_state();
    v1::RaftSnapshot {
        index: metadata.index,
        term: metadata.term,
        voters: conf.voters.clone(),
        learners: conf.learners.clone(),
        voters_outgoing: conf.voters_outgoing.clone(),
        learners_next: conf.learners_next.clone(),
        auto_leave: conf.auto_leave,
    }
}

/// `snapshot_data`: what came in pieces beside the message; empty for all kinds but snapshots.
pub fn decode(wire: v1::RaftMessage, snapshot_data: Vec<u8>) -> Result<Message, InvalidRaftMessage> {
    let kind =
        KINDS.iter().find(|(kind, _)| *kind == wire.kind).ok_or(InvalidRaftMessage::Kind(wire.kind))?;
    let mut message = Message {
        to: wire.to,
        from: wire.from,
        term: wire.term,
        log_term: wire.log_term,
        index: wire.index,
        entries: wire.entries.into_iter().map(decode_entry).collect::<Result<Vec<_>, _>>()?.into(),
        commit: wire.commit,
        commit_term: wire.commit_term,
        request_snapshot: wire.request_snapshot,
        reject: wire.reject,
        reject_hint: wire.reject_hint,
        context: wire.context.into(),
        priority: wire.priority,
        ..Message::default()
    };
    message.set_msg_type(kind.1);
    if let Some(snapshot) = wire.snapshot {
        message.set_snapshot(decode_snapshot(snapshot, snapshot_data));
    }
    Ok(message)
}

fn decode_entry(wire: v1::RaftEntry) -> Result<Entry, InvalidRaftMessage> {
    let kind = ENTRY_KINDS.iter().find(|(kind, _)| *kind == wire.kind);
    let kind = kind.ok_or(InvalidRaftMessage::EntryKind(wire.kind))?;
    let mut entry = Entry {
        term: wire.term,
        index: wire.index,
        data: wire.data.into(),
        context: wire.context.into(),
        ..Entry::default()
    };
    entry.set_entry_type(kind.1);
    Ok(entry)
}

fn decode_snapshot(wire: v1::RaftSnapshot, data: Vec<u8>) -> Snapshot {
    let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
    let metadata = snapshot.mut_metadata();
    metadata.index = wire.index;
    metadata.term = wire.term;
    metadata.set_conf_state(ConfState {
        voters: wire.voters,
        learners: wire.learners,
        voters_outgoing: wire.voters_outgoing,
        learners_next: wire.learners_next,
        auto_leave: wire.auto_leave,
        ..ConfState::default()
    });
    snapshot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_comes_through() {
        let mut entry = Entry { term: 3, index: 9, data: vec![1, 2].into(), ..Entry::default() };
        entry.context = vec![7].into();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        let mut message = Message {
            to: 1,
            from: 2,
            term: 3,
            log_term: 4,
            index: 5,
            entries: vec![entry].into(),
            commit: 6,
            commit_term: 7,
            request_snapshot: 8,
            reject: true,
            reject_hint: 9,
            context: vec![1].into(),
            priority: -4,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgSnapshot);
        let mut snapshot = Snapshot { data: vec![5; 3].into(), ..Snapshot::default() };
        snapshot.mut_metadata().index = 11;
        snapshot.mut_metadata().term = 2;
        snapshot.mut_metadata().set_conf_state(ConfState::from((vec![1, 2], vec![3])));
        message.set_snapshot(snapshot);
        let wire = encode(&message).unwrap();
        assert_eq!(decode(wire, vec![5; 3]).unwrap(), message);
    }

    #[test]
    fn events_inside_a_member_cannot_be_forged() {
        for kind in [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgTransferLeader] {
            let mut message = Message::default();
            message.set_msg_type(kind);
            assert_eq!(encode(&message), None, "{kind:?}");
        }
        let forged = v1::RaftMessage { kind: 0, ..Default::default() };
        assert_eq!(decode(forged, vec![]).unwrap_err(), InvalidRaftMessage::Kind(0));
        let entry = v1::RaftEntry { kind: 9, ..Default::default() };
        let forged = v1::RaftMessage { kind: 1, entries: vec![entry], ..Default::default() };
        assert_eq!(decode(forged, vec![]).unwrap_err(), InvalidRaftMessage::EntryKind(9));
    }
}
