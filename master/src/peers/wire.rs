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
    #[error("it cannot be from an honest member: {0}")]
    Nonsense(&'static str),
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

/// Refuses what would make the `raft` crate, which trusts its peers, end the process.
fn check(message: &Message) -> Result<(), InvalidRaftMessage> {
    let honest = |holds: bool, what| if holds { Ok(()) } else { Err(InvalidRaftMessage::Nonsense(what)) };
    honest(message.from != 0 && message.to != 0, "it has no sender or no receiver")?;
    honest(message.term != 0, "its term is 0, which is for events inside a member")?;
    let in_order = message.entries.iter().zip(message.index.saturating_add(1)..).all(|(e, i)| e.index == i);
    honest(in_order && message.index < u64::MAX / 2, "its entries do not follow each other")?;
    honest(
        message.entries.iter().all(|e| e.term >= 1 && e.term <= message.term),
        "an entry of a later term",
    )?;
    let changes = message.entries.iter().filter(|e| e.get_entry_type() != EntryType::EntryNormal);
    honest(
        changes.into_iter().all(crate::consensus::is_membership_change),
        "a change of members that says nothing",
    )?;
    let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
    honest(is_snapshot == message.snapshot.is_some(), "a snapshot that is none")?;
    if is_snapshot {
        let metadata = message.get_snapshot().get_metadata();
        let conf = metadata.get_conf_state();
        honest(metadata.index > 0 && metadata.term > 0, "a snapshot of nothing")?;
        honest(!conf.voters.is_empty(), "a snapshot without voters")?;
        let ids: Vec<u64> = conf.voters.iter().chain(&conf.learners).copied().collect();
        let unique: std::collections::BTreeSet<u64> = ids.iter().copied().collect();
        honest(
            unique.len() == ids.len() && !unique.contains(&0),
            "a snapshot whose members are not told apart",
        )?;
    }
    Ok(())
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
    check(&message)?;
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
        let mut entry = Entry { term: 3, index: 6, data: vec![1, 2].into(), ..Entry::default() };
        entry.context = vec![7].into();
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
        let refused = |change: fn(&mut v1::RaftMessage)| {
            let entry = |index| v1::RaftEntry { term: 2, index, ..Default::default() };
            let mut wire = v1::RaftMessage {
                kind: 1,
                from: 1,
                to: 2,
                term: 2,
                index: 4,
                entries: vec![entry(5), entry(6)],
                ..Default::default()
            };
            assert!(decode(wire.clone(), vec![]).is_ok());
            change(&mut wire);
            assert!(matches!(decode(wire, vec![]), Err(InvalidRaftMessage::Nonsense(_))));
        };
        refused(|m| m.from = 0);
        refused(|m| m.term = 0);
        refused(|m| m.index = 7);
        refused(|m| m.entries[1].index = 9);
        refused(|m| m.entries[1].term = 3);
        refused(|m| {
            m.entries[1].kind = 2;
            m.entries[1].context = b"x".to_vec();
        });
        refused(|m| m.kind = 5);
        refused(|m| {
            m.kind = 5;
            m.snapshot =
                Some(v1::RaftSnapshot { index: 3, term: 1, voters: vec![1, 1], ..Default::default() });
        });
        let entry = v1::RaftEntry { kind: 9, ..Default::default() };
        let forged = v1::RaftMessage { kind: 1, entries: vec![entry], ..Default::default() };
        assert_eq!(decode(forged, vec![]).unwrap_err(), InvalidRaftMessage::EntryKind(9));
    }
}
