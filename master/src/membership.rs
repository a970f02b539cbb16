//! Who belongs to the group of masters: what the leader does when one joins, votes, leaves.

use crate::cluster::{Cluster, now_ms, rejected, status};
use crate::consensus::{MembersView, MembershipStep, ProposeError};
use crate::formation::{Plan, find_members};
use crate::peers::addresses::Addresses;
use firesteel_master_core::{ClusterState, Command, FEATURE_LEVEL, Member, Rejection, feature_level_to_set};
use firesteel_proto::{channel, v1};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use v1::peers_client::PeersClient;

/// Metadata of a join that has been passed on: it is not passed on again.
pub const FORWARDED: &str = "firesteel-forwarded";
/// A member that has been silent for so long counts as dead when a majority is reckoned.
pub const ALIVE_WITHIN: Duration = Duration::from_secs(3);
/// A learner this near to the leader can vote without holding the group up.
const CAUGHT_UP_ENTRIES: u64 = 200;
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
/// What another master may take to answer.
const ASK_PATIENCE: Duration = Duration::from_secs(3);
const MAX_TEXT_BYTES: usize = 512;

/// Makes a master a member, as a learner that is promoted once it has caught up.
pub async fn join(
    cluster: &Cluster,
    request: v1::JoinRequest,
    forwarded: bool,
) -> Result<v1::JoinResponse, Status> {
    if !request.cluster_id.is_empty() && request.cluster_id != cluster.cluster_id() {
        return Err(status(
            Code::FailedPrecondition,
            format!("this is cluster {}, not {}", cluster.cluster_id(), request.cluster_id),
            "a master's data directory belongs to one cluster: give it an empty --data-dir to join another",
        ));
    }
    if !cluster.published().borrow().leader {
        return pass_on(cluster, request, forwarded).await;
    }
    if cluster.is_recovering() {
        return Err(Status::unavailable("the lost masters are being removed"));
    }
    let id = request.raft_id;
    let addresses: Addresses =
        request.addresses.ok_or_else(|| Status::invalid_argument("the request lacks addresses"))?.into();
    for text in [&addresses.raft, &addresses.client, &addresses.ui_url, &request.version] {
        if text.len() > MAX_TEXT_BYTES || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Status::invalid_argument("an address or the version is not acceptable"));
        }
    }
    if id == 0 || !addresses.raft.contains(':') || !addresses.client.contains(':') {
        return Err(Status::invalid_argument("a member needs an id and addresses of the form HOST:PORT"));
    }
    // Before anything is written: a refused master must leave no trace.
    if request.cluster_id.is_empty() && cluster.members().borrow().voters.contains(&id) {
        return Err(status(
            Code::AlreadyExists,
            format!("member {id:x} votes here, and this master has lost what it voted"),
            &format!(
                "let it leave first: submit masters remove {id:x}; then start it with an empty --data-dir"
            ),
        ));
    }
    let put = put_member(id, &addresses, &request.version, request.feature_level, request.non_voter);
    if let Some(stale) = stale_record(cluster, id, &addresses.raft) {
        // Left over from a member that is none any more: it does not hold the address.
        let gone = Command::RemoveMember { id: stale, at_ms: now_ms() };
        cluster.change(gone).await?.map_err(|why| rejected(&why))?;
    }
    cluster.change(put).await?.map_err(|why| match &why {
        Rejection::AddressInUse { member, .. } => status(
            Code::AlreadyExists,
            &why,
            &format!(
                "if that master's data is lost, let it leave first: submit masters remove {member:x}; then start this one again"
            ),
        ),
        Rejection::MemberRemoved(_) => status(
            Code::PermissionDenied,
            &why,
            "a removed master does not come back with its old data: give it an empty --data-dir",
        ),
        _ => rejected(&why),
    })?;
    let known = |view: &MembersView| view.voters.contains(&id) || view.learners.contains(&id);
    if !known(&cluster.members().borrow()) {
        change(cluster, MembershipStep::AddLearner(id)).await?;
        tracing::info!(member = %format!("{id:x}"), address = addresses.raft, "a master has joined");
    }
    let members = cluster.addresses().all().into_iter();
    Ok(v1::JoinResponse {
        cluster_id: cluster.cluster_id().to_owned(),
        members: members
            .map(|(raft_id, a)| v1::MemberAddress { raft_id, addresses: Some((&a).into()) })
            .collect(),
    })
}

/// Another member's record with this address, although Raft's configuration does not know that member.
fn stale_record(cluster: &Cluster, id: u64, raft_address: &str) -> Option<u64> {
    let view = cluster.members().borrow().clone();
    let state = cluster.state();
    let other = state.members().find(|m| m.id != id && m.raft_address == raft_address)?.id;
    (!view.voters.contains(&other) && !view.learners.contains(&other)).then_some(other)
}

/// To the leader, once.
async fn pass_on(
    cluster: &Cluster,
    request: v1::JoinRequest,
    forwarded: bool,
) -> Result<v1::JoinResponse, Status> {
    let leader = cluster.published().borrow().leader_id.filter(|id| *id != cluster.member_id());
    let address = leader.and_then(|id| cluster.addresses().get(id)).filter(|_| !forwarded);
    let Some(address) = address else {
        return Err(Status::unavailable("the cluster has no leader now"));
    };
    let channel =
        channel::connect_peer(&address.raft).await.map_err(|e| Status::unavailable(e.to_string()))?;
    let mut request = Request::new(request);
    request.metadata_mut().insert(FORWARDED, MetadataValue::from_static("1"));
    PeersClient::new(channel).join(request).await.map(tonic::Response::into_inner)
}

pub fn put_member(
    id: u64,
    addresses: &Addresses,
    version: &str,
    feature_level: u32,
    non_voter: bool,
) -> Command {
    Command::PutMember {
        id,
        raft_address: addresses.raft.clone(),
        client_address: addresses.client.clone(),
        ui_url: addresses.ui_url.clone(),
        version: version.to_owned(),
        feature_level,
        non_voter,
        at_ms: now_ms(),
    }
}

/// One step of the group's configuration; waits while another is under way.
async fn change(cluster: &Cluster, step: MembershipStep) -> Result<(), Status> {
    let deadline = Instant::now() + CHANGE_PATIENCE;
    loop {
        match cluster.change_membership(vec![step]).await {
            Err(ProposeError::Busy) if Instant::now() < deadline => {
                // The other change is applied within a commit or two.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            result => return result.map_err(|e| cluster.propose_status(e)),
        }
    }
}

/// The members that are alive in the leader's eyes, itself among them.
pub fn alive(view: &MembersView, now: Instant) -> BTreeSet<u64> {
    let heard = view
        .peers
        .iter()
        .filter(|(_, peer)| {
            peer.last_contact.is_some_and(|at| now.saturating_duration_since(at) < ALIVE_WITHIN)
        })
        .map(|(id, _)| *id);
    heard.chain([view.member_id]).collect()
}

/// Whether those who would be left are a working majority.
fn may_remove(view: &MembersView, id: u64, now: Instant) -> Result<(), String> {
    if !view.voters.contains(&id) {
        return Ok(());
    }
    let rest: BTreeSet<u64> = view.voters.iter().copied().filter(|v| *v != id).collect();
    let alive = alive(view, now).intersection(&rest).count();
    let needed = rest.len() / 2 + 1;
    match alive >= needed && !rest.is_empty() {
        true => Ok(()),
        false if rest.is_empty() => Err("it is the only voter: the cluster would be gone".to_owned()),
        false => {
            Err(format!("of the {} voters left only {alive} are alive, {needed} are needed", rest.len()))
        }
    }
}

/// The members after another round of heartbeats: one that has died a moment ago still looks alive in an older view.
async fn fresh_view(cluster: &Cluster, leaving: u64) -> Arc<MembersView> {
    let asked = Instant::now();
    let mut members = cluster.members();
    let all_heard = |view: &Arc<MembersView>| {
        let needed = view.voters.iter().filter(|id| **id != leaving && **id != view.member_id);
        needed
            .map(|id| view.peers.get(id))
            .all(|p| p.and_then(|p| p.last_contact).is_some_and(|at| at > asked))
    };
    // Those that are dead are not heard: then the wait ends with its time.
    let _ = tokio::time::timeout(ALIVE_WITHIN, members.wait_for(all_heard)).await;
    // Whoever has not been heard since the question is no longer ALIVE_WITHIN by now.
    cluster.members().borrow().clone()
}

/// A learner that shall vote and has caught up: the next to be promoted.
pub fn to_promote(state: &ClusterState, view: &MembersView, now: Instant) -> Option<u64> {
    let alive = alive(view, now);
    view.learners.iter().copied().find(|id| {
        alive.contains(id)
            && state.member(*id).is_some_and(|m| !m.non_voter)
            && view
                .peers
                .get(id)
                .is_some_and(|p| p.matched + CAUGHT_UP_ENTRIES >= view.committed && p.matched > 0)
    })
}

pub async fn promote(cluster: &Cluster, id: u64) -> Result<(), Status> {
    let _alone = cluster.membership_lock().lock().await;
    change(cluster, MembershipStep::AddVoter(id)).await
}

/// The member whose id, in hexadecimal, begins with `text`.
fn find(cluster: &Cluster, text: &str) -> Result<u64, Status> {
    let view = cluster.members().borrow().clone();
    let known: BTreeSet<u64> = cluster
        .state()
        .members()
        .map(|m| m.id)
        .chain(view.voters.iter().copied())
        .chain(view.learners.iter().copied())
        .collect();
    let text = text.trim().to_ascii_lowercase();
    let matching: Vec<u64> =
        known.into_iter().filter(|id| !text.is_empty() && format!("{id:x}").starts_with(&text)).collect();
    match matching.as_slice() {
        [one] => Ok(*one),
        [] => {
            Err(status(Code::NotFound, format!("there is no master {text:?}"), "submit masters lists them"))
        }
        _ => Err(status(
            Code::InvalidArgument,
            format!("{text:?} could be several masters"),
            "give more of the id",
        )),
    }
}

pub async fn add_voter(cluster: &Cluster, text: &str) -> Result<u64, Status> {
    cluster.must_lead()?;
    let id = find(cluster, text)?;
    if cluster.members().borrow().voters.contains(&id) {
        return Ok(id);
    }
    cluster.change(Command::SetNonVoter { id, non_voter: false }).await?.map_err(|why| rejected(&why))?;
    let mut members = cluster.members();
    let voting = members.wait_for(|view| view.voters.contains(&id) || !view.leading);
    match tokio::time::timeout(CHANGE_PATIENCE, voting).await {
        Ok(Ok(view)) if view.voters.contains(&id) => Ok(id),
        Ok(_) => Err(cluster.not_leader()),
        Err(_) => Err(status(
            Code::DeadlineExceeded,
            format!("master {id:x} has not caught up yet"),
            "it votes as soon as it has; submit masters shows its lag",
        )),
    }
}

pub async fn remove(cluster: &Cluster, text: &str) -> Result<u64, Status> {
    cluster.must_lead()?;
    let id = find(cluster, text)?;
    // Two removals at a time could each find the other's member still there.
    let _alone = cluster.membership_lock().lock().await;
    let view = fresh_view(cluster, id).await;
    may_remove(&view, id, Instant::now()).map_err(|why| {
        status(
            Code::FailedPrecondition,
            format!("master {id:x} cannot be removed: {why}"),
            "bring the others up first, or add another master",
        )
    })?;
    if id == view.member_id {
        // The next leader removes this one: the caller asks it.
        cluster.transfer_leadership(None).await?;
        return Err(cluster.not_leader());
    }
    if view.voters.contains(&id) || view.learners.contains(&id) {
        change(cluster, MembershipStep::Remove(id)).await?;
        let mut members = cluster.members();
        let gone = members.wait_for(|view| !view.voters.contains(&id) && !view.learners.contains(&id));
        // The view is a tick behind at most; without it the next removal would reckon with this one.
        let _ = tokio::time::timeout(ASK_PATIENCE, gone).await;
    }
    match cluster.change(Command::RemoveMember { id, at_ms: now_ms() }).await? {
        Ok(_) | Err(Rejection::NoSuchMember(_)) => {}
        Err(why) => return Err(rejected(&why)),
    }
    tracing::info!(member = %format!("{id:x}"), "a master was removed");
    Ok(id)
}

pub async fn transfer(cluster: &Cluster, text: &str) -> Result<u64, Status> {
    cluster.must_lead()?;
    let to = if text.is_empty() { None } else { Some(find(cluster, text)?) };
    let view = cluster.members().borrow().clone();
    if to == Some(view.member_id) {
        return Ok(view.member_id);
    }
    if to.is_some_and(|id| !view.voters.contains(&id)) {
        return Err(status(
            Code::FailedPrecondition,
            "a master that does not vote cannot lead",
            "submit masters add ID lets it vote",
        ));
    }
    if view.voters.len() < 2 {
        return Err(Status::failed_precondition("there is no other voter to lead"));
    }
    cluster.transfer_leadership(to).await?;
    Ok(cluster.published().borrow().leader_id.unwrap_or_default())
}

/// Every member, as the leader sees it.
pub fn list(cluster: &Cluster) -> v1::ListMembersResponse {
    let view: Arc<MembersView> = cluster.members().borrow().clone();
    let state = cluster.state();
    let now = Instant::now();
    let alive = alive(&view, now);
    let ids: BTreeSet<u64> =
        view.voters.iter().chain(&view.learners).copied().chain(state.members().map(|m| m.id)).collect();
    let members = ids.into_iter().map(|id| {
        let record: Option<&Member> = state.member(id);
        let role = match () {
            // Only the leader is asked; its view may be a tick older than its leadership.
            () if view.member_id == id => v1::MemberRole::Leader,
            () if view.voters.contains(&id) => v1::MemberRole::Follower,
            () => v1::MemberRole::Learner,
        };
        let peer = view.peers.get(&id);
        let me = id == view.member_id;
        v1::Member {
            id: format!("{id:x}"),
            role: role.into(),
            raft_address: record.map(|m| m.raft_address.clone()).unwrap_or_default(),
            client_address: record.map(|m| m.client_address.clone()).unwrap_or_default(),
            ui_url: record.map(|m| m.ui_url.clone()).unwrap_or_default(),
            version: record.map(|m| m.version.clone()).unwrap_or_default(),
            non_voter: record.is_some_and(|m| m.non_voter),
            matched: if me { view.last_index } else { peer.map_or(0, |p| p.matched) },
            last_contact_ms: match me {
                true => Some(0),
                false => peer.and_then(|p| p.last_contact).map(|at| {
                    u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX)
                }),
            },
            alive: alive.contains(&id),
        }
    });
    v1::ListMembersResponse {
        cluster_id: cluster.cluster_id().to_owned(),
        term: view.term,
        committed: view.committed,
        members: members.collect(),
    }
}

/// Any other master will do: it passes the request on. The leader may not know where to reach this master, so that this one
/// hears of no leader.
async fn ask_any(cluster: &Cluster, request: v1::JoinRequest) -> Result<(), Status> {
    let mut last = Status::unavailable("no other master is known");
    for (id, addresses) in cluster.addresses().all() {
        if id == cluster.member_id() {
            continue;
        }
        let asking = async {
            let channel = channel::connect_peer(&addresses.raft)
                .await
                .map_err(|e| Status::unavailable(e.to_string()))?;
            PeersClient::new(channel).join(request.clone()).await
        };
        match tokio::time::timeout(ASK_PATIENCE, asking).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => last = status,
            Err(_) => last = Status::deadline_exceeded("no answer"),
        }
    }
    Err(last)
}

/// What a leader does for the group: lets learners that have caught up vote, and raises the feature level once every member
/// knows the higher one. After a recovery
/// by force the lost members' records go.
pub async fn lead(cluster: Cluster) {
    let mut members = cluster.members();
    loop {
        let view = members.borrow_and_update().clone();
        let published = cluster.published().borrow().clone();
        if published.leader {
            let mut commands = Vec::new();
            if cluster.is_recovering() {
                let others = published.state.members().map(|m| m.id).filter(|id| *id != cluster.member_id());
                commands.extend(others.map(|id| Command::RemoveMember { id, at_ms: now_ms() }));
            }
            if let Some(level) = feature_level_to_set(&published.state) {
                commands.push(Command::SetFeatureLevel { level });
            }
            match cluster.propose(commands).await {
                Ok(_) => cluster.set_recovering(false),
                Err(error) => tracing::debug!(%error, "cannot change the members' records now"),
            }
            if let Some(id) = to_promote(&published.state, &view, Instant::now()) {
                match promote(&cluster, id).await {
                    Ok(()) => tracing::info!(member = %format!("{id:x}"), "a master votes now"),
                    Err(status) => tracing::debug!(reason = status.message(), "cannot promote a master now"),
                }
            }
        }
        tokio::select! {
            () = cluster.stopping().cancelled() => return,
            changed = members.changed() => if changed.is_err() { return },
        }
    }
}

/// Keeps this master's own addresses in the replicated state right, whoever leads; and while it hears of no leader, looks for
/// the others where they may be.
pub async fn announce(cluster: Cluster, own: Addresses, plan: Plan) {
    const PAUSE: Duration = Duration::from_millis(200);
    const PAUSE_MAX: Duration = Duration::from_secs(5);
    /// Longer than an election takes.
    const LONELY: Duration = Duration::from_secs(4);
    let version = env!("CARGO_PKG_VERSION");
    let me = cluster.member_id();
    let mut published = cluster.published();
    let mut pause = PAUSE;
    let mut told = String::new();
    let mut leader_seen = Instant::now();
    loop {
        let now = published.borrow_and_update().clone();
        if now.leader_id.is_some() {
            leader_seen = Instant::now();
        }
        let known = now.state.member(me).is_some_and(|m| {
            m.raft_address == own.raft
                && m.client_address == own.client
                && m.ui_url == own.ui_url
                && m.version == version
                && m.feature_level == FEATURE_LEVEL
        });
        let lonely = leader_seen.elapsed() >= LONELY;
        if known && !lonely {
            pause = PAUSE;
            tokio::select! {
                () = cluster.stopping().cancelled() => return,
                changed = published.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LONELY), if now.leader_id.is_none() => {}
            }
            continue;
        }
        if lonely {
            let good_once =
                cluster.addresses().all().into_iter().filter(|(id, _)| *id != me).map(|(_, a)| a.raft);
            let asked = good_once.chain(plan.join.iter().cloned()).collect();
            let found = find_members(cluster.cluster_id(), asked).await;
            cluster.addresses().learn(found.into_iter().filter(|(id, _)| *id != me));
        }
        let non_voter = now.state.member(me).map_or(plan.non_voter, |m| m.non_voter);
        let said = if now.leader {
            let put = put_member(me, &own, version, FEATURE_LEVEL, non_voter);
            match cluster.change(put).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(why)) => Err(rejected(&why)),
                Err(status) => Err(status),
            }
        } else {
            let request = v1::JoinRequest {
                raft_id: me,
                cluster_id: cluster.cluster_id().to_owned(),
                addresses: Some((&own).into()),
                non_voter,
                version: version.to_owned(),
                feature_level: FEATURE_LEVEL,
            };
            ask_any(&cluster, request).await
        };
        match said {
            Ok(()) => leader_seen = Instant::now(),
            Err(status) => {
                if status.code() == Code::PermissionDenied {
                    cluster.removed();
                }
                let reason = status.message();
                if told != reason {
                    tracing::info!(reason, "cannot tell the leader where this master is; retrying");
                    reason.clone_into(&mut told);
                }
            }
        }
        tokio::select! {
            () = cluster.stopping().cancelled() => return,
            // An election is a matter of moments; what is refused, or nobody there to ask, is not.
            () = tokio::time::sleep(pause) => {
                pause = if now.leader_id.is_some() || lonely { (pause * 2).min(PAUSE_MAX) } else { PAUSE };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::PeerView;
    use std::collections::BTreeMap;

    fn view(voters: &[u64], heard: &[u64], now: Instant) -> MembersView {
        let peers: BTreeMap<u64, PeerView> = voters
            .iter()
            .filter(|id| **id != 1)
            .map(|id| {
                let last_contact = heard.contains(id).then_some(now);
                (*id, PeerView { matched: 10, last_contact, snapshotting: false })
            })
            .collect();
        MembersView {
            term: 2,
            leader_id: Some(1),
            member_id: 1,
            leading: true,
            voters: voters.iter().copied().collect(),
            peers,
            committed: 10,
            ..MembersView::default()
        }
    }

    #[test]
    fn nobody_is_removed_whose_absence_would_stop_the_cluster() {
        let now = Instant::now();
        assert!(may_remove(&view(&[1, 2, 3], &[2], now), 3, now).is_ok(), "the dead third may go");
        let error = may_remove(&view(&[1, 2, 3], &[2], now), 2, now).unwrap_err();
        assert_eq!(error, "of the 2 voters left only 1 are alive, 2 are needed");
        assert!(may_remove(&view(&[1], &[], now), 1, now).unwrap_err().contains("only voter"));
        assert!(may_remove(&view(&[1, 2], &[2], now), 9, now).is_ok(), "one that does not vote");
        let later = now + ALIVE_WITHIN;
        assert!(may_remove(&view(&[1, 2, 3], &[2], now), 3, later).is_err(), "silence counts");
    }
}
