//! What a member sees of its group: for operators' pages, and for decisions about membership.

use super::log_store::Position;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct MembersView {
    pub term: u64,
    pub leader_id: Option<u64>,
    /// This member's own id.
    pub member_id: u64,
    /// As in [`Published::leader`](super::Published).
    pub leading: bool,
    pub voters: BTreeSet<u64>,
    pub learners: BTreeSet<u64>,
    /// Of the log: what came before is only in the snapshot.
    pub first_index: u64,
    pub last_index: u64,
    pub committed: u64,
    pub applied: u64,
    /// The newest snapshot, and when it was written (milliseconds since 1970).
    pub snapshot: Option<(Position, u64)>,
    /// On the leader: every other member.
    pub peers: BTreeMap<u64, PeerView>,
    /// A write could succeed now: this member leads and a majority has answered within the election timeout, or it
    /// follows a leader that it has heard within that time.
    pub quorum: bool,
    /// The state's hash as of an index that is the same on every member: (index, hash).
    pub hash: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerView {
    /// The last log index that it is known to have on disk.
    pub matched: u64,
    pub last_contact: Option<Instant>,
    /// It is being sent a snapshot.
    pub snapshotting: bool,
}

impl MembersView {
    /// Whether anything differs but the times of contact.
    pub(super) fn same_but_contacts(&self, other: &Self) -> bool {
        let without = |view: &Self| {
            let mut view = view.clone();
            view.peers.values_mut().for_each(|peer| peer.last_contact = None);
            view
        };
        without(self) == without(other)
    }
}

/// When this member was last sure to lead. Kept beside the published views, whose reader could not tell a loop that hangs in
/// a write from one that has nothing to say. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct LeadProof(Arc<Mutex<Option<Instant>>>);

impl LeadProof {
    pub(super) fn renew(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Whether the proof is not older than this.
    pub fn within(&self, age: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() <= age)
    }
}
