//! How a master with an empty data directory finds its cluster: alone, as one of several founders, or by joining one.
//!
//! Founders agree without a leader: each waits until it has seen all of them, and then works out the same cluster id and the
//! same first voters from their Raft ids. A founder that is late finds itself named by those who were not.

use crate::consensus::Bootstrap;
use crate::peers::addresses::Addresses;
use crate::peers::service::Presence;
use firesteel_master_core::FEATURE_LEVEL;
use firesteel_proto::{channel, v1};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::{Code, Status};
use v1::peers_client::PeersClient;

/// Between two rounds of looking for the others.
const PAUSE: Duration = Duration::from_millis(200);
/// What one other master may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// How a new master begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// `HOST:PORT` of other masters' Raft ports.
    pub join: Vec<String>,
    /// How many masters found the cluster together; 0 when it exists.
    pub expect: u32,
    pub non_voter: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum FormationError {
    #[error("cannot use {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{message}")]
    Refused { message: String },
    #[error(
        "two masters have the same id {id:x}: was a data directory copied?\nhint: start one of them with an empty --data-dir"
    )]
    SameId { id: u64 },
}

/// The Raft id of a member that does not belong to a cluster yet: kept, because others may have counted on it.
#[derive(Serialize, Deserialize)]
struct Pending {
    raft_id: u64,
}

/// The id that this directory's member will have. A wiped directory gives a new one.
pub fn pending_id(data_dir: &Path) -> Result<u64, FormationError> {
    let path = data_dir.join("raft").join("pending.json");
    let failed = |source| FormationError::Io { path: path.clone(), source };
    match std::fs::read(&path) {
        Ok(bytes) => {
            let pending: Pending = serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?;
            return Ok(pending.raft_id);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let pending = Pending { raft_id: rand::random_range(1..=u64::MAX) };
    write_durably(&path, &pending).map_err(failed)?;
    Ok(pending.raft_id)
}

/// The member has begun: should its log be lost, it must not come back under an id that has voted.
pub fn forget_pending(data_dir: &Path) -> Result<(), FormationError> {
    let path = data_dir.join("raft").join("pending.json");
    match std::fs::remove_file(&path) {
        Ok(()) => path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|source| FormationError::Io { path: path.clone(), source })
}

fn write_durably<T: Serialize>(path: &Path, document: &T) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let partial = path.with_extension("partial");
    let file = std::fs::File::create(&partial)?;
    serde_json::to_writer(&file, document)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[derive(Default, Serialize, Deserialize)]
struct Founders {
    ids: Vec<u64>,
}

fn founders_file(data_dir: &Path) -> PathBuf {
    data_dir.join("raft").join("founders.json")
}

/// Kept, to tell founders that come late. Durable before this master acts as a founder.
pub fn write_founders(data_dir: &Path, ids: &[u64]) -> Result<(), FormationError> {
    let path = founders_file(data_dir);
    let write = || write_durably(&path, &Founders { ids: ids.to_vec() });
    write().map_err(|source| FormationError::Io { path: path.clone(), source })
}

/// Empty when this master was no founder.
pub fn read_founders(data_dir: &Path) -> Vec<u64> {
    let bytes = std::fs::read(founders_file(data_dir)).unwrap_or_default();
    serde_json::from_slice::<Founders>(&bytes).unwrap_or_default().ids
}

/// Looks for members of the own cluster at addresses that were given or were good once; where they say that they are now.
pub async fn find_members(cluster_id: &str, asked: BTreeSet<String>) -> BTreeMap<u64, Addresses> {
    let asking = asked.into_iter().map(|address| async move {
        let discover = async {
            let channel = channel::connect_peer(&address).await.ok()?;
            let answer = PeersClient::new(channel).discover(v1::DiscoverRequest {}).await.ok()?.into_inner();
            (answer.cluster_id == cluster_id).then_some((answer.raft_id, answer.addresses?.into()))
        };
        tokio::time::timeout(ASK_TIMEOUT, discover).await.ok().flatten()
    });
    futures::future::join_all(asking).await.into_iter().flatten().collect()
}

/// What a new master starts with.
#[derive(Debug)]
pub struct Beginning {
    pub bootstrap: Bootstrap,
    pub cluster_id: String,
    /// Where the others are, as far as is known.
    pub addresses: BTreeMap<u64, Addresses>,
    /// Empty unless this one is a founder.
    pub founders: Vec<u64>,
}

/// Works out how to begin; waits for the others where it must. Tells on `progress` what it waits for, once per change.
pub async fn begin(
    plan: &Plan,
    presence: &Presence,
    mut progress: impl FnMut(&str),
) -> Result<Beginning, FormationError> {
    let me = presence.raft_id();
    let own = presence.addresses().clone();
    if plan.join.is_empty() {
        let cluster_id = uuid::Uuid::new_v4().to_string();
        let bootstrap = Bootstrap::founders(cluster_id.clone(), me, vec![me]);
        return Ok(Beginning { bootstrap, cluster_id, addresses: [(me, own)].into(), founders: vec![me] });
    }
    let mut told = String::new();
    loop {
        let round = look_around(plan, me, &own).await?;
        if plan.expect > 0
            && let Some(beginning) = found(plan, me, &own, &round)
        {
            return Ok(beginning);
        }
        let mut waiting = round.missing(plan);
        // Somebody belongs to a cluster: this one joins it, whatever it was told to expect.
        for address in round.in_cluster() {
            match join(plan, me, &own, &address).await {
                Ok(beginning) => return Ok(beginning),
                Err(status) if is_final(&status) => {
                    return Err(FormationError::Refused {
                        message: format!("{address} refuses this master: {}", status.message()),
                    });
                }
                Err(status) => waiting = format!("{address}: {}", status.message()),
            }
        }
        if waiting != told {
            progress(&waiting);
            told = waiting;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::AlreadyExists
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

/// What the others answered in one round.
struct Round {
    answers: BTreeMap<String, Result<v1::DiscoverResponse, String>>,
    me: u64,
}

impl Round {
    fn others(&self) -> impl Iterator<Item = &v1::DiscoverResponse> {
        self.answers.values().filter_map(|a| a.as_ref().ok()).filter(|a| a.raft_id != self.me)
    }

    fn in_cluster(&self) -> Vec<String> {
        let member = |answer: &Result<v1::DiscoverResponse, String>| {
            answer.as_ref().is_ok_and(|a| a.raft_id != self.me && !a.cluster_id.is_empty())
        };
        self.answers.iter().filter(|(_, answer)| member(answer)).map(|(address, _)| address.clone()).collect()
    }

    /// In words: who is not there.
    fn missing(&self, plan: &Plan) -> String {
        let absent: Vec<String> = self
            .answers
            .iter()
            .filter_map(|(address, answer)| match answer {
                Err(reason) => Some(format!("{address} ({reason})")),
                Ok(answer)
                    if plan.expect > 0 && answer.cluster_id.is_empty() && answer.expect != plan.expect =>
                {
                    Some(format!(
                        "{address} (it expects {} masters, this one {})",
                        answer.expect, plan.expect
                    ))
                }
                Ok(_) => None,
            })
            .collect();
        let here = self.others().count() + 1;
        match plan.expect {
            0 => format!("waiting for a cluster to join at {}", absent.join(", ")),
            expect => format!("{here} of {expect} masters are here; waiting for {}", absent.join(", ")),
        }
    }
}

async fn look_around(plan: &Plan, me: u64, own: &Addresses) -> Result<Round, FormationError> {
    let asked = plan.join.iter().map(|address| async move {
        let discover = async {
            let channel = channel::connect_peer(address).await.map_err(|e| e.to_string())?;
            let answer = PeersClient::new(channel).discover(v1::DiscoverRequest {}).await;
            answer.map(tonic::Response::into_inner).map_err(|e| e.message().to_owned())
        };
        let answer = tokio::time::timeout(ASK_TIMEOUT, discover).await;
        (address.clone(), answer.unwrap_or_else(|_| Err("no answer".to_owned())))
    });
    let answers: BTreeMap<_, _> = futures::future::join_all(asked).await.into_iter().collect();
    let own_address = |a: &v1::DiscoverResponse| a.addresses.as_ref().is_some_and(|x| x.raft == own.raft);
    for answer in answers.values().filter_map(|a| a.as_ref().ok()) {
        if answer.raft_id == me && !own_address(answer) {
            return Err(FormationError::SameId { id: me });
        }
    }
    Ok(Round { answers, me })
}

/// Founds the cluster when all founders have been seen, or one that was faster names this master as one.
fn found(plan: &Plan, me: u64, own: &Addresses, round: &Round) -> Option<Beginning> {
    let mut addresses: BTreeMap<u64, Addresses> = [(me, own.clone())].into();
    let mut founders = BTreeSet::from([me]);
    let mut named: Option<BTreeSet<u64>> = None;
    for answer in round.others() {
        addresses.insert(answer.raft_id, answer.addresses.clone().unwrap_or_default().into());
        if !answer.cluster_id.is_empty() {
            // A cluster that was made anew by force has another id: its founders are history.
            if answer.founders.contains(&me) && cluster_id_of(&answer.founders) == answer.cluster_id {
                named = Some(answer.founders.iter().copied().collect());
            }
        } else if answer.expect == plan.expect {
            founders.insert(answer.raft_id);
        }
    }
    let complete = founders.len() == plan.expect as usize && round.in_cluster().is_empty();
    let founders = match named {
        Some(named) => named,
        None if complete => founders,
        None => return None,
    };
    let voters: Vec<u64> = founders.into_iter().collect();
    let cluster_id = cluster_id_of(&voters);
    Some(Beginning {
        bootstrap: Bootstrap::founders(cluster_id.clone(), me, voters.clone()),
        cluster_id,
        addresses,
        founders: voters,
    })
}

/// The same for every founder: a UUID's shape over a hash of who they are.
fn cluster_id_of(founders: &[u64]) -> String {
    let mut hash = Sha256::new();
    for id in founders {
        hash.update(id.to_be_bytes());
    }
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

async fn join(plan: &Plan, me: u64, own: &Addresses, address: &str) -> Result<Beginning, Status> {
    let request = v1::JoinRequest {
        raft_id: me,
        cluster_id: String::new(),
        addresses: Some(own.into()),
        non_voter: plan.non_voter,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        feature_level: FEATURE_LEVEL,
    };
    let asking = async {
        let channel = channel::connect_peer(address).await.map_err(|e| Status::unavailable(e.to_string()))?;
        PeersClient::new(channel).join(request).await
    };
    let answer = tokio::time::timeout(ASK_TIMEOUT * 5, asking)
        .await
        .map_err(|_| Status::unavailable("no answer"))??
        .into_inner();
    let addresses =
        answer.members.into_iter().map(|m| (m.raft_id, m.addresses.unwrap_or_default().into())).collect();
    Ok(Beginning {
        bootstrap: Bootstrap::joining(answer.cluster_id.clone(), me),
        cluster_id: answer.cluster_id,
        addresses,
        founders: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(raft_id: u64, cluster_id: &str, founders: &[u64]) -> v1::DiscoverResponse {
        v1::DiscoverResponse {
            raft_id,
            addresses: Some(v1::MemberAddresses { raft: format!("h{raft_id}:1"), ..Default::default() }),
            cluster_id: cluster_id.to_owned(),
            expect: 3,
            founders: founders.to_vec(),
        }
    }

    fn round(me: u64, answers: Vec<Option<v1::DiscoverResponse>>) -> Round {
        let named = answers
            .into_iter()
            .enumerate()
            .map(|(n, a)| (format!("a{n}:1"), a.ok_or_else(|| "connection refused".to_owned())));
        Round { answers: named.collect(), me }
    }

    fn plan() -> Plan {
        Plan { join: vec!["a0:1".into(), "a1:1".into()], expect: 3, non_voter: false }
    }

    #[test]
    fn founders_agree_once_all_of_them_are_seen() {
        let own = Addresses::default();
        let early = round(1, vec![Some(answer(2, "", &[])), None]);
        assert!(found(&plan(), 1, &own, &early).is_none());
        assert_eq!(early.missing(&plan()), "2 of 3 masters are here; waiting for a1:1 (connection refused)");
        let first =
            found(&plan(), 1, &own, &round(1, vec![Some(answer(2, "", &[])), Some(answer(3, "", &[]))]))
                .unwrap();
        let second =
            found(&plan(), 3, &own, &round(3, vec![Some(answer(2, "", &[])), Some(answer(1, "", &[]))]))
                .unwrap();
        assert_eq!((first.cluster_id.clone(), first.founders.clone()), (second.cluster_id, second.founders));
        assert_eq!(first.founders, [1, 2, 3]);

        // One has gone ahead and is now a member: the last founder still finds itself named.
        let late = round(2, vec![Some(answer(1, &first.cluster_id, &[1, 2, 3])), None]);
        assert_eq!(found(&plan(), 2, &own, &late).unwrap().cluster_id, first.cluster_id);
    }

    #[test]
    fn a_wiped_founder_does_not_found_again() {
        // It has a new id, and the others a cluster that does not name it: it must join.
        let wiped = round(9, vec![Some(answer(1, "c", &[1, 2, 3])), Some(answer(2, "c", &[1, 2, 3]))]);
        assert!(found(&plan(), 9, &Addresses::default(), &wiped).is_none());
        assert_eq!(wiped.in_cluster(), ["a0:1", "a1:1"]);
        // Also when one of the others has been wiped, too: two new ones and one old one are no founders.
        let mixed = round(9, vec![Some(answer(1, "c", &[1, 2, 3])), Some(answer(8, "", &[]))]);
        assert!(found(&plan(), 9, &Addresses::default(), &mixed).is_none());
    }

    #[test]
    fn a_pending_id_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let id = pending_id(dir.path()).unwrap();
        assert_eq!(pending_id(dir.path()).unwrap(), id);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(pending_id(other.path()).unwrap(), id);
        forget_pending(dir.path()).unwrap();
        forget_pending(dir.path()).unwrap();
        assert_ne!(pending_id(dir.path()).unwrap(), id, "whoever has voted under it is gone");
    }
}
