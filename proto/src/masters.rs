//! Finding the leader among a cluster's masters: all are asked at once, and the answer is kept until it proves wrong.

use crate::channel::{self, ConnectError};
use crate::v1;
use firesteel_common::MasterUrl;
use prost::Message;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};
use v1::masters_client::MastersClient;

/// A master that does not say within this time who leads is passed over; the next look asks it again.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Once a master has answered, the others get so long: a machine that is gone says nothing, and must not hold up whoever
/// looks for the leader that its peers are electing. An answer that comes later is kept for the next look.
const GRACE: Duration = Duration::from_millis(300);
/// More masters than this are not remembered, and not asked at a time: a cluster has seven at most.
const MAX_KNOWN: usize = 16;

/// The master that leads, as far as is known.
#[derive(Debug, Clone)]
pub struct Leader {
    /// `HOST:PORT`.
    pub address: String,
    pub channel: Channel,
    pub term: u64,
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
    /// Masters are there, but none of them leads now: an election, or too few of them. `failed` says what became of those
    /// that did not answer: the leader may be one that cannot be reached from here.
    #[error(
        "{} answered, but no master leads now: too few of them are up, or an election is under way{}",
        answered.join(", "),
        failed.iter().map(|why| format!("; {why}")).collect::<String>()
    )]
    NoLeader { answered: Vec<String>, failed: Vec<String> },
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

    /// Whether the masters are there, so that one of them is likely to lead in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NoLeader { .. })
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
        let (given, learned) = {
            let known = self.known();
            if let Some(leader) = &known.leader {
                return Ok(leader.clone());
            }
            (known.given.clone(), known.learned.clone())
        };
        let mut asked = BTreeSet::new();
        let mut asking = JoinSet::new();
        for address in given.iter().chain(&learned) {
            self.ask(&mut asking, &mut asked, address);
        }
        let mut answered = Vec::new();
        let mut failures: Vec<(String, Failure)> = Vec::new();
        let mut until = None;
        while let Some(result) = next(&mut asking, until).await {
            // A task that panicked has no answer to give.
            let Ok((address, answer)) = result else { continue };
            match answer {
                Ok(Answer::Leads(leader)) => return Ok(leader),
                Ok(Answer::Follows { leader }) => {
                    if !leader.is_empty() {
                        self.ask(&mut asking, &mut asked, &leader);
                    }
                    answered.push(address);
                    until.get_or_insert_with(|| Instant::now() + GRACE);
                }
                Err(failure) => failures.push((address, failure)),
            }
        }
        asking.detach_all();
        // What the user wrote is what the user can mend: the first of those.
        failures.sort_by_key(|(address, _)| given.iter().position(|g| g == address).unwrap_or(usize::MAX));
        if !answered.is_empty() {
            answered.sort();
            let failed = failures.iter().map(|(address, failure)| failure.in_words(address)).collect();
            return Err(FindLeaderError::NoLeader { answered, failed });
        }
        Err(match failures.into_iter().next() {
            Some((_, Failure::Connect(error))) => FindLeaderError::Unreachable(error),
            Some((address, Failure::Status(status))) => FindLeaderError::Refused { address, status },
            None => FindLeaderError::Unreachable(ConnectError::Address { address: String::new() }),
        })
    }

    /// The connection to `leader` broke, or it said that it does not lead: the next look asks everybody again, and whom
    /// it named.
    pub fn failed(&self, leader: &Leader, status: Option<&Status>) {
        let mut known = self.known();
        if known.leader.as_ref().is_some_and(|l| l.address == leader.address) {
            known.leader = None;
        }
        if let Some(details) = status.and_then(not_leader) {
            known.learn(details.masters.into_iter().chain([details.leader]));
        }
    }

    fn ask(&self, asking: &mut JoinSet<Asked>, asked: &mut BTreeSet<String>, address: &str) {
        if asked.len() >= MAX_KNOWN || !asked.insert(address.to_owned()) {
            return;
        }
        let (masters, address) = (self.clone(), address.to_owned());
        asking.spawn(async move {
            let answer = match who_leads(&address).await {
                Ok((channel, answer)) => Ok(masters.hear(&address, channel, answer)),
                Err(failure) => Err(failure),
            };
            (address, answer)
        });
    }

    /// Keeps what a master said, whether or not somebody still waits for it.
    fn hear(&self, address: &str, channel: Channel, answer: v1::WhoLeadsResponse) -> Answer {
        let mut known = self.known();
        if !answer.leading {
            known.learn(answer.masters);
            return Answer::Follows { leader: answer.leader };
        }
        // The leader's list is the whole truth: whom it does not name is no member any more.
        if !answer.masters.is_empty() {
            known.learned.clear();
            known.learn(answer.masters);
        }
        let leader =
            Leader { address: address.to_owned(), channel, term: answer.term, ticket: answer.ticket };
        if known.leader.as_ref().is_none_or(|l| l.term <= leader.term) {
            known.leader = Some(leader.clone());
        }
        Answer::Leads(leader)
    }
}

impl Known {
    fn learn(&mut self, masters: impl IntoIterator<Item = String>) {
        for address in masters {
            if self.learned.len() < MAX_KNOWN && !address.is_empty() && !self.given.contains(&address) {
                self.learned.insert(address);
            }
        }
    }
}

enum Answer {
    Leads(Leader),
    /// `leader` is empty when it knows of none.
    Follows {
        leader: String,
    },
}

enum Failure {
    Connect(ConnectError),
    Status(Box<Status>),
}

impl Failure {
    fn in_words(&self, address: &str) -> String {
        match self {
            Self::Connect(error) => error.to_string(),
            Self::Status(status) => format!("{address}: {}", status.message()),
        }
    }
}

type Asked = (String, Result<Answer, Failure>);

/// The next answer; `None` when there is nobody left to wait for, or the time is over.
async fn next(asking: &mut JoinSet<Asked>, until: Option<Instant>) -> Option<Result<Asked, JoinError>> {
    match until {
        Some(until) => tokio::time::timeout_at(until, asking.join_next()).await.ok().flatten(),
        None => asking.join_next().await,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;
    use tokio::task::JoinHandle;
    use tonic::{Request, Response};
    use v1::masters_server::{Masters as Service, MastersServer};

    /// What a fake master says, and when.
    struct State {
        answer: Mutex<v1::WhoLeadsResponse>,
        asked: AtomicUsize,
        /// Each answer takes one; closed, they are free.
        permits: Semaphore,
    }

    struct Fake {
        state: Arc<State>,
        address: String,
        server: JoinHandle<()>,
    }

    impl Fake {
        async fn start() -> Self {
            let state = Arc::new(State {
                answer: Mutex::default(),
                asked: AtomicUsize::new(0),
                permits: Semaphore::new(0),
            });
            state.permits.close();
            Self::serve(state).await
        }

        /// Answers only as often as it is permitted to.
        async fn start_hesitating() -> Self {
            let state =
                State { answer: Mutex::default(), asked: AtomicUsize::new(0), permits: Semaphore::new(0) };
            Self::serve(Arc::new(state)).await
        }

        async fn serve(state: Arc<State>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let service = MastersServer::from_arc(state.clone());
            let server = tokio::spawn(async move {
                let incoming = channel::incoming(listener);
                channel::server().add_service(service).serve_with_incoming(incoming).await.unwrap();
            });
            Self { state, address, server }
        }

        fn leads(&self, term: u64, masters: &[&Fake]) {
            let masters = masters.iter().map(|master| master.address.clone()).collect();
            *self.state.answer.lock().unwrap() =
                v1::WhoLeadsResponse { leading: true, term, masters, ticket: 7, ..Default::default() };
        }

        fn follows(&self, leader: &str, masters: &[&Fake]) {
            let masters = masters.iter().map(|master| master.address.clone()).collect();
            *self.state.answer.lock().unwrap() =
                v1::WhoLeadsResponse { leader: leader.into(), masters, ..Default::default() };
        }

        /// No new connection is taken from here on.
        async fn die(self) -> String {
            self.server.abort();
            drop(self.server.await);
            self.address
        }
    }

    #[tonic::async_trait]
    impl Service for State {
        async fn who_leads(
            &self,
            _: Request<v1::WhoLeadsRequest>,
        ) -> Result<Response<v1::WhoLeadsResponse>, Status> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if let Ok(permit) = self.permits.acquire().await {
                permit.forget();
            }
            Ok(Response::new(self.answer.lock().unwrap().clone()))
        }

        async fn list_members(
            &self,
            _: Request<v1::ListMembersRequest>,
        ) -> Result<Response<v1::ListMembersResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }

        async fn add_voter(
            &self,
            _: Request<v1::AddVoterRequest>,
        ) -> Result<Response<v1::AddVoterResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }

        async fn remove_member(
            &self,
            _: Request<v1::RemoveMemberRequest>,
        ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }

        async fn transfer_leadership(
            &self,
            _: Request<v1::TransferLeadershipRequest>,
        ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }

        async fn take_snapshot(
            &self,
            _: Request<v1::TakeSnapshotRequest>,
        ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }
    }

    fn masters(addresses: &[&str]) -> Masters {
        Masters::new(&format!("firesteel://{}", addresses.join(",")).parse().unwrap())
    }

    /// Where nobody listens.
    async fn nowhere() -> String {
        Fake::start().await.die().await
    }

    #[tokio::test]
    async fn the_leader_is_found_whichever_it_is_and_asked_once() {
        let (a, b, dead) = (Fake::start().await, Fake::start().await, nowhere().await);
        b.leads(3, &[&a, &b]);
        let masters = masters(&[&dead, &a.address, &b.address]);
        let leader = masters.leader().await.unwrap();
        assert_eq!((leader.address.as_str(), leader.term, leader.ticket), (b.address.as_str(), 3, 7));
        assert_eq!(masters.clone().leader().await.unwrap().address, b.address);
        assert_eq!(b.state.asked.load(Ordering::Relaxed), 1, "the answer is kept, and shared");
    }

    #[tokio::test]
    async fn without_a_leader_it_says_who_answered_and_who_did_not() {
        let (a, b, dead) = (Fake::start().await, Fake::start().await, nowhere().await);
        a.follows(&dead, &[]);
        let error = masters(&[&b.address, &a.address]).leader().await.unwrap_err();
        assert!(error.is_transient() && error.hint().contains("more than half"));
        let text = error.to_string();
        let mut both = [a.address.as_str(), b.address.as_str()];
        both.sort_unstable();
        assert!(text.starts_with(&format!("{} answered, but no master leads", both.join(", "))), "{text}");
        assert!(text.ends_with(&format!("; cannot reach {dead}: connection refused")), "{text}");
    }

    #[tokio::test]
    async fn when_nobody_answers_the_first_address_is_explained() {
        let (first, second) = (nowhere().await, nowhere().await);
        let error = masters(&[&first, &second]).leader().await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot reach {first}: connection refused"));
        assert!(!error.is_transient() && error.hint().contains("start-master"));
    }

    #[tokio::test]
    async fn another_service_on_the_port_is_told_from_a_master() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                drop(socket.read(&mut [0; 16]).await);
                drop(socket.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await);
            }
        });
        match masters(&[&address]).leader().await.unwrap_err() {
            FindLeaderError::Refused { address: at, status } => {
                assert_eq!(at, address);
                assert!(channel::is_not_grpc(&status), "{status:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn hints_are_followed_from_one_named_master() {
        let (a, b, c) = (Fake::start().await, Fake::start().await, Fake::start().await);
        a.follows(&b.address, &[]);
        // It has only just lost the lead itself.
        b.follows(&c.address, &[]);
        c.leads(4, &[]);
        assert_eq!(masters(&[&a.address]).leader().await.unwrap().address, c.address);
    }

    #[tokio::test]
    async fn masters_that_send_each_other_round_in_circles_end_the_search() {
        let (a, b) = (Fake::start().await, Fake::start().await);
        a.follows(&b.address, &[]);
        b.follows(&a.address, &[]);
        let error = masters(&[&a.address]).leader().await.unwrap_err();
        assert!(
            matches!(&error, FindLeaderError::NoLeader { answered, .. } if answered.len() == 2),
            "{error}"
        );
        assert_eq!(a.state.asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn learned_masters_replace_the_given_one_when_it_is_dead() {
        let (a, b, c) = (Fake::start().await, Fake::start().await, Fake::start().await);
        a.leads(1, &[&a, &b, &c]);
        let masters = masters(&[&a.address]);
        let leader = masters.leader().await.unwrap();
        assert_eq!(leader.address, a.address);
        a.die().await;
        c.leads(2, &[]);
        masters.failed(&leader, None);
        assert_eq!(masters.leader().await.unwrap().address, c.address);
    }

    #[tokio::test]
    async fn a_master_that_does_not_lead_any_more_names_its_successor() {
        let (a, b) = (Fake::start().await, Fake::start().await);
        a.leads(1, &[]);
        b.leads(2, &[]);
        let masters = masters(&[&a.address]);
        let leader = masters.leader().await.unwrap();
        a.follows("", &[]);
        let details = v1::NotLeader { leader: b.address.clone(), ..Default::default() };
        masters.failed(&leader, Some(&not_leader_status("not any more", &details)));
        let next = masters.leader().await.unwrap();
        assert_eq!(next.address, b.address);
        // Old news about the old leader do not touch the new one.
        masters.failed(&leader, None);
        assert_eq!(masters.leader().await.unwrap().address, b.address);
        assert_eq!(b.state.asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn whom_the_leader_does_not_name_is_forgotten() {
        let (a, b, removed) = (Fake::start().await, Fake::start().await, Fake::start().await);
        a.follows("", &[&removed]);
        let masters = masters(&[&a.address]);
        masters.leader().await.unwrap_err();
        assert!(masters.known().learned.contains(&removed.address));
        a.leads(1, &[&a, &b]);
        masters.leader().await.unwrap();
        assert_eq!(masters.known().learned.iter().collect::<Vec<_>>(), [&b.address]);
    }

    #[tokio::test]
    async fn a_silent_master_does_not_hold_up_the_others_and_its_late_answer_counts() {
        let (a, silent) = (Fake::start().await, Fake::start_hesitating().await);
        silent.leads(5, &[]);
        let masters = masters(&[&silent.address, &a.address]);
        let began = Instant::now();
        assert!(masters.leader().await.unwrap_err().is_transient());
        assert!(began.elapsed() < ASK_TIMEOUT, "{:?}", began.elapsed());
        silent.state.permits.add_permits(1);
        let deadline = Instant::now() + Duration::from_secs(20);
        while masters.known().leader.is_none() {
            assert!(Instant::now() < deadline, "the late answer was lost");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(masters.leader().await.unwrap().address, silent.address);
        assert_eq!(silent.state.asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_master_that_names_very_many_is_not_followed_to_all_of_them() {
        let a = Fake::start().await;
        let many: Vec<String> = (0..1000).map(|n| format!("127.0.0.1:{n}")).collect();
        *a.state.answer.lock().unwrap() = v1::WhoLeadsResponse { masters: many, ..Default::default() };
        let masters = masters(&[&a.address]);
        masters.leader().await.unwrap_err();
        assert_eq!(masters.known().learned.len(), MAX_KNOWN);
        let error = masters.leader().await.unwrap_err();
        assert!(
            matches!(&error, FindLeaderError::NoLeader { failed, .. } if failed.len() < MAX_KNOWN),
            "{error}"
        );
    }

    #[test]
    fn only_the_status_of_a_follower_names_a_leader() {
        let details = v1::NotLeader { leader: "h:1".into(), term: 3, masters: vec!["h:1".into()] };
        assert_eq!(not_leader(&not_leader_status("x", &details)), Some(details.clone()));
        assert_eq!(not_leader(&Status::unavailable("x")), None);
        let other = Status::with_details(Code::Internal, "x", details.encode_to_vec().into());
        assert_eq!(not_leader(&other), None);
    }
}
