//! Finding the leader among a cluster's masters: all are asked at once, and the answer is kept until it proves wrong.

use crate::channel::{self, ConnectError};
use crate::v1;
use firesteel_common::MasterUrl;
use prost::Message;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};
use v1::masters_client::MastersClient;

/// A master that does not say within this time who leads is passed over; the next look asks it again.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// More masters than this are not remembered: a cluster has seven at most, and addresses change over the years.
const MAX_KNOWN: usize = 16;

/// The master that leads, as far as is known.
#[derive(Debug, Clone)]
pub struct Leader {
    /// `HOST:PORT`.
    pub address: String,
    pub channel: Channel,
    /// See `WhoLeadsResponse.ticket`.
    pub ticket: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum FindLeaderError {
    /// Nobody answered; the reason of the first address.
    #[error(transparent)]
    Unreachable(ConnectError),
    /// A master answered that it cannot be asked, as its port speaks something else or it refuses the caller.
    #[error("{address}: {}", status.message())]
    Refused { address: String, status: Box<Status> },
    /// Masters are there, but none of them leads now: an election, or too few of them.
    #[error("{} answered, but no master leads now: too few of them are up, or an election is under way", answered.join(", "))]
    NoLeader { answered: Vec<String> },
}

impl FindLeaderError {
    /// A way out; empty when there is none.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable(error) => error.hint(),
            Self::Refused { .. } => "",
            Self::NoLeader { .. } => "try again in some seconds; more than half of the masters must be up",
        }
    }
}

/// Says that the answering master does not lead, and who does.
pub fn not_leader_status(message: &str, details: &v1::NotLeader) -> Status {
    Status::with_details(Code::Unavailable, message, details.encode_to_vec().into())
}

/// What a master that does not lead says about those who may; `None` for every other status.
pub fn not_leader(status: &Status) -> Option<v1::NotLeader> {
    if status.code() != Code::Unavailable || status.details().is_empty() {
        return None;
    }
    v1::NotLeader::decode(status.details()).ok()
}

/// The masters of one cluster. Cloning shares what is known.
#[derive(Debug, Clone)]
pub struct Masters {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug)]
struct Known {
    /// As the user gave them: always asked.
    given: Vec<String>,
    /// What masters said about each other.
    learned: BTreeSet<String>,
    leader: Option<Leader>,
}

impl Masters {
    pub fn new(url: &MasterUrl) -> Self {
        let known = Known { given: url.authorities().collect(), learned: BTreeSet::new(), leader: None };
        Self { known: Arc::new(Mutex::new(known)) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leader that was found last, or else the first that says that it leads. Does not wait for an election: whoever
    /// can wait asks again after a pause.
    pub async fn leader(&self) -> Result<Leader, FindLeaderError> {
        if let Some(leader) = self.known().leader.clone() {
            return Ok(leader);
        }
        let mut asked = BTreeSet::new();
        let mut asking = JoinSet::new();
        let given = {
            let known = self.known();
            for address in known.given.iter().chain(&known.learned) {
                ask(&mut asking, &mut asked, address);
            }
            known.given.clone()
        };
        let mut answered = Vec::new();
        let mut failures: Vec<(String, Failure)> = Vec::new();
        while let Some(result) = asking.join_next().await {
            // A task that panicked has no answer to give.
            let Ok((address, answer)) = result else { continue };
            match answer {
                Ok((channel, answer)) => {
                    self.learn(answer.masters);
                    if answer.leading {
                        let leader = Leader { address, channel, ticket: answer.ticket };
                        self.known().leader = Some(leader.clone());
                        return Ok(leader);
                    }
                    if !answer.leader.is_empty() {
                        ask(&mut asking, &mut asked, &answer.leader);
                    }
                    answered.push(address);
                }
                Err(failure) => failures.push((address, failure)),
            }
        }
        if !answered.is_empty() {
            answered.sort();
            return Err(FindLeaderError::NoLeader { answered });
        }
        // What the user wrote is what the user can mend: the first of those.
        failures.sort_by_key(|(address, _)| given.iter().position(|g| g == address).unwrap_or(usize::MAX));
        Err(match failures.into_iter().next() {
            Some((_, Failure::Connect(error))) => FindLeaderError::Unreachable(error),
            Some((address, Failure::Status(status))) => FindLeaderError::Refused { address, status },
            None => FindLeaderError::Unreachable(ConnectError::Address { address: String::new() }),
        })
    }

    /// The connection to `leader` broke, or it said that it does not lead: look again next time, and there first.
    pub fn failed(&self, leader: &Leader, status: Option<&Status>) {
        let mut known = self.known();
        if known.leader.as_ref().is_some_and(|l| l.address == leader.address) {
            known.leader = None;
        }
        drop(known);
        if let Some(details) = status.and_then(not_leader) {
            self.learn(details.masters.into_iter().chain([details.leader]));
        }
    }

    fn learn(&self, masters: impl IntoIterator<Item = String>) {
        let mut known = self.known();
        for address in masters {
            if known.learned.len() < MAX_KNOWN && !address.is_empty() && !known.given.contains(&address) {
                known.learned.insert(address);
            }
        }
    }
}

enum Failure {
    Connect(ConnectError),
    Status(Box<Status>),
}

type Answer = (String, Result<(Channel, v1::WhoLeadsResponse), Failure>);

fn ask(asking: &mut JoinSet<Answer>, asked: &mut BTreeSet<String>, address: &str) {
    if !asked.insert(address.to_owned()) {
        return;
    }
    let address = address.to_owned();
    asking.spawn(async move {
        let answer = who_leads(&address).await;
        (address, answer)
    });
}

async fn who_leads(address: &str) -> Result<(Channel, v1::WhoLeadsResponse), Failure> {
    let channel = channel::connect(address).await.map_err(Failure::Connect)?;
    let asking = async { MastersClient::new(channel.clone()).who_leads(v1::WhoLeadsRequest {}).await };
    match tokio::time::timeout(ASK_TIMEOUT, asking).await {
        Ok(Ok(answer)) => Ok((channel, answer.into_inner())),
        Ok(Err(status)) => Err(Failure::Status(Box::new(status))),
        Err(_) => Err(Failure::Connect(ConnectError::Unreachable {
            address: address.to_owned(),
            reason: format!("no answer in {} s", ASK_TIMEOUT.as_secs()),
            hint: "the master there may be stopped or overloaded",
        })),
    }
}
