//! Who votes: its stored form, and changes of it inside log entries.
//!
//! The `raft` crate would decode changes with protobuf 2 (RUSTSEC-2024-0437). An entry may come from the network, so
//! ours carries the change as JSON in its context, and that is what every member reads when it applies the entry.

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry};
use raft::{Changer, ProgressTracker};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredConfState {
    voters: Vec<u64>,
    learners: Vec<u64>,
    voters_outgoing: Vec<u64>,
    learners_next: Vec<u64>,
    auto_leave: bool,
}

impl From<&ConfState> for StoredConfState {
    fn from(conf: &ConfState) -> Self {
        Self {
            voters: conf.voters.clone(),
            learners: conf.learners.clone(),
            voters_outgoing: conf.voters_outgoing.clone(),
            learners_next: conf.learners_next.clone(),
            auto_leave: conf.auto_leave,
        }
    }
}

impl From<StoredConfState> for ConfState {
    fn from(stored: StoredConfState) -> Self {
        ConfState {
            voters: stored.voters,
            learners: stored.learners,
            voters_outgoing: stored.voters_outgoing,
            learners_next: stored.learners_next,
            auto_leave: stored.auto_leave,
            ..Default::default()
        }
    }
}

/// One step of a membership change; ids are Raft member ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembershipStep {
    AddVoter(u64),
    AddLearner(u64),
    Remove(u64),
}

pub fn to_conf_change(steps: &[MembershipStep]) -> ConfChangeV2 {
    let changes: Vec<ConfChangeSingle> = steps
        .iter()
        .map(|step| {
            let (kind, node_id) = match *step {
                MembershipStep::AddVoter(id) => (ConfChangeType::AddNode, id),
                MembershipStep::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
                MembershipStep::Remove(id) => (ConfChangeType::RemoveNode, id),
            };
            let mut single = ConfChangeSingle { node_id, ..Default::default() };
            single.set_change_type(kind);
            single
        })
        .collect();
    ConfChangeV2 { changes: changes.into(), ..Default::default() }
}

/// Whether `id` has a part in the group, voting or not.
pub fn contains(conf: &ConfState, id: u64) -> bool {
    let ConfState { voters, learners, voters_outgoing, learners_next, .. } = conf;
    [voters, learners, voters_outgoing, learners_next].iter().any(|ids| ids.contains(&id))
}

/// What is wrong with applying a change to the group as it is now, if anything.
pub fn refusal(group: &ProgressTracker, change: &ConfChangeV2) -> Option<String> {
    let mut changer = Changer::new(group);
    let result = if change.leave_joint() {
        changer.leave_joint()
    } else if let Some(auto_leave) = change.enter_joint() {
        changer.enter_joint(auto_leave, &change.changes)
    } else {
        changer.simple(&change.changes)
    };
    result.err().map(|error| error.to_string())
}

/// Whether an entry carries a change that every member can read.
pub fn is_membership_change(entry: &Entry) -> bool {
    conf_change_of(entry).is_ok()
}

/// The change that an entry carries. An entry without one is Raft's own, which leaves a joint configuration.
pub fn conf_change_of(entry: &Entry) -> Result<ConfChangeV2, serde_json::Error> {
    if entry.context.is_empty() && entry.data.is_empty() {
        return Ok(ConfChangeV2::default());
    }
    let steps: Vec<MembershipStep> = serde_json::from_slice(&entry.context)?;
    Ok(to_conf_change(&steps))
}
