//! The records of the masters themselves, and the feature level that they agree on.

use crate::command::Rejection;
use crate::state::{ClusterState, Member};

/// Ids of removed members that are remembered.
pub const MAX_REMOVED_MEMBERS: usize = 1000;
const MAX_TEXT_BYTES: usize = 512;

pub(crate) fn put(state: &mut ClusterState, mut new: Member) -> Result<(), Rejection> {
    check(&new)?;
    if state.is_removed_member(new.id) {
        return Err(Rejection::MemberRemoved(new.id));
    }
    let rival = state.members().find(|m| m.raft_address == new.raft_address && m.id != new.id);
    let rival = rival.map(|m| m.id);
    if let Some(member) = rival
        && state.member(new.id).is_none()
    {
        return Err(Rejection::AddressInUse { address: new.raft_address, member });
    }
    // It could not apply what is proposed to it.
    if new.feature_level < state.feature_level {
        return Err(Rejection::BuildTooOld {
            member: new.id,
            has: new.feature_level,
            needed: state.feature_level,
        });
    }
    if let Some(old) = state.member(new.id) {
        // A restart with the old flags must not undo what an operator has decided since.
        new.non_voter = old.non_voter;
        new.joined_ms = old.joined_ms;
    }
    state.members.insert(new.id, new);
    // A member that has moved to another's address is there now; the other tells its own when it is up.
    if let Some(rival) = rival.and_then(|id| state.members.get_mut(&id)) {
        rival.raft_address.clear();
    }
    Ok(())
}

fn check(member: &Member) -> Result<(), Rejection> {
    if member.id == 0 {
        return Err(Rejection::InvalidMember("0 is no raft id".to_owned()));
    }
    if member.raft_address.is_empty() {
        return Err(Rejection::InvalidMember("its address for other masters is missing".to_owned()));
    }
    for (what, text) in [
        ("address for other masters", &member.raft_address),
        ("address for clients", &member.client_address),
        ("UI address", &member.ui_url),
        ("version", &member.version),
    ] {
        if text.len() > MAX_TEXT_BYTES {
            return Err(Rejection::InvalidMember(format!(
                "its {what} is longer than {MAX_TEXT_BYTES} bytes"
            )));
        }
    }
    Ok(())
}

pub(crate) fn set_non_voter(state: &mut ClusterState, id: u64, non_voter: bool) -> Result<(), Rejection> {
    let member = state.members.get_mut(&id).ok_or(Rejection::NoSuchMember(id))?;
    member.non_voter = non_voter;
    Ok(())
}

pub(crate) fn remove(state: &mut ClusterState, index: u64, id: u64) -> Result<(), Rejection> {
    // Also one that has never told its addresses must not come back.
    if state.members.remove(&id).is_none() && state.is_removed_member(id) {
        return Err(Rejection::NoSuchMember(id));
    }
    state.removed_members.insert(id, index);
    while state.removed_members.len() > MAX_REMOVED_MEMBERS {
        let oldest = state.removed_members.iter().min_by_key(|(_, index)| **index).map(|(id, _)| *id);
        if let Some(oldest) = oldest {
            state.removed_members.remove(&oldest);
        }
    }
    Ok(())
}

/// The level that the leader shall propose with `SetFeatureLevel`: what every member's build knows, when that is more
/// than the state has. A member that is down counts: it will have to apply what it has missed.
pub fn feature_level_to_set(state: &ClusterState) -> Option<u32> {
    let known_to_all = state.members().map(|member| member.feature_level).min()?;
    (known_to_all > state.feature_level).then_some(known_to_all)
}

pub(crate) fn set_feature_level(state: &mut ClusterState, level: u32) -> Result<(), Rejection> {
    if level <= state.feature_level {
        return Err(Rejection::NoRise { asked: level, current: state.feature_level });
    }
    // A member may have joined since that was proposed.
    let oldest = state.members().min_by_key(|member| member.feature_level);
    let oldest = oldest.ok_or(Rejection::NoMembers(level))?;
    if oldest.feature_level < level {
        return Err(Rejection::BuildTooOld { member: oldest.id, has: oldest.feature_level, needed: level });
    }
    state.feature_level = level;
    Ok(())
}
