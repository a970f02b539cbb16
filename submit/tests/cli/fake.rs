//! A master that does what the test tells it, behind the real protocol.

use firesteel_proto::masters::not_leader_status;
use firesteel_proto::v1::client_server::{Client, ClientServer};
use firesteel_proto::v1::masters_server::{Masters, MastersServer};
use firesteel_proto::v1::*;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

pub const ID: &str = "app-20261121074500-0001";
/// The ids of the members of every fake cluster.
pub const MEMBERS: [&str; 3] = ["a1b2c3d4e5f60718", "b1b2c3d4e5f60718", "c1b2c3d4e5f60718"];

/// A log file: its bytes so far, and whether it is complete.
#[derive(Debug, Clone, Default)]
pub struct LogFile {
    pub data: Vec<u8>,
    pub complete: bool,
}

#[derive(Debug, Default)]
pub struct Seen {
    pub uploads: Vec<Vec<u8>>,
    pub specs: Vec<ApplicationSpec>,
    /// Key and ticket of each submission.
    pub keys: Vec<(String, u64)>,
    pub kills: Vec<String>,
    pub reports: Vec<process_end::Kind>,
    /// The processes whose standard output was asked for.
    pub logs: Vec<String>,
    /// What was asked about the masters.
    pub changes: Vec<String>,
}

pub struct State {
    pub status: watch::Sender<ApplicationStatus>,
    pub stdout: watch::Sender<LogFile>,
    pub stderr: watch::Sender<LogFile>,
    pub seen: watch::Sender<Seen>,
    /// The offsets at which logs were asked for.
    pub offsets: Mutex<Vec<u64>>,
    /// What it says about who leads, and its ticket.
    role: Mutex<WhoLeadsResponse>,
    /// Who leads once this master has been asked.
    next_leader: Mutex<Option<String>>,
    no_members: AtomicBool,
    /// Does what it is asked, and dies before it can say so.
    swallow_answers: AtomicBool,
    /// Counts the deaths of this master; streams end with the one they were opened under.
    deaths: watch::Sender<u64>,
    dead: AtomicBool,
}

pub struct Fake {
    pub state: Arc<State>,
    address: SocketAddr,
    server: Option<JoinHandle<()>>,
}

impl Fake {
    pub async fn start() -> Self {
        let status = ApplicationStatus {
            application_id: ID.into(),
            state: ApplicationState::Waiting.into(),
            ..Default::default()
        };
        let state = Arc::new(State {
            status: watch::Sender::new(status),
            stdout: watch::Sender::default(),
            stderr: watch::Sender::default(),
            seen: watch::Sender::default(),
            offsets: Mutex::default(),
            role: Mutex::new(WhoLeadsResponse { leading: true, ticket: 41, ..Default::default() }),
            next_leader: Mutex::default(),
            no_members: AtomicBool::new(false),
            swallow_answers: AtomicBool::new(false),
            deaths: watch::Sender::default(),
            dead: AtomicBool::new(false),
        });
        let mut fake = Self { state, address: ([127, 0, 0, 1], 0).into(), server: None };
        fake.listen().await;
        fake
    }

    /// Listens, on the same port as before.
    pub async fn listen(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        self.state.swallow_answers.store(false, Ordering::Relaxed);
        self.state.dead.store(false, Ordering::Relaxed);
        let server = firesteel_proto::channel::server()
            .add_service(ClientServer::from_arc(self.state.clone()))
            .add_service(MastersServer::from_arc(self.state.clone()));
        self.server = Some(tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        }));
    }

    /// Ends open streams as a dying master does, and the port with them.
    pub async fn die(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            drop(server.await);
        }
        // tonic serves each connection in a task of its own, which goes on: what it serves must end.
        self.state.dead.store(true, Ordering::Relaxed);
        self.state.deaths.send_modify(|deaths| *deaths += 1);
    }

    pub fn url(&self) -> String {
        format!("firesteel://{}", self.address)
    }

    /// Leads from now on; `ticket` is how far its log has come.
    pub fn lead(&self, ticket: u64) {
        *self.state.role.lock().unwrap() = WhoLeadsResponse { leading: true, ticket, ..Default::default() };
    }

    /// Does not lead any more; says that `leader` does.
    pub fn follow(&self, leader: Option<&Fake>) {
        let leader = leader.map(|leader| leader.address.to_string()).unwrap_or_default();
        *self.state.role.lock().unwrap() = WhoLeadsResponse { leader, ticket: 40, ..Default::default() };
    }

    /// Says once more that it leads, and from then on that `leader` does.
    pub fn lose_the_lead_to(&self, leader: &Fake) {
        *self.state.next_leader.lock().unwrap() = Some(leader.address.to_string());
    }

    /// No member has any id any more.
    pub fn forget_members(&self) {
        self.state.no_members.store(true, Ordering::Relaxed);
    }

    /// From now on requests are carried out, but the answers never arrive: it has to die next.
    pub fn swallow_answers(&self) {
        self.state.swallow_answers.store(true, Ordering::Relaxed);
    }

    pub fn update(&self, change: impl FnOnce(&mut ApplicationStatus)) {
        self.state.status.send_modify(change);
    }

    pub fn run_driver(&self) {
        self.update(|status| {
            status.state = ApplicationState::Running.into();
            status.driver = "driver-0".into();
            status.driver_worker_id = "worker-1".into();
        });
    }

    pub fn print(&self, text: impl AsRef<[u8]>) {
        self.state.stdout.send_modify(|log| log.data.extend_from_slice(text.as_ref()));
    }

    pub fn end(&self, state: ApplicationState, message: &str) {
        self.state.stdout.send_modify(|log| log.complete = true);
        self.state.stderr.send_modify(|log| log.complete = true);
        self.update(|status| {
            status.state = state.into();
            status.message = message.into();
            status.ended_ms = 1;
        });
    }

    /// Waits until `condition` holds of what was asked of this master.
    pub async fn wait_for(&self, what: &str, condition: impl FnMut(&Seen) -> bool) {
        let mut seen = self.state.seen.subscribe();
        let waiting = seen.wait_for(condition);
        tokio::time::timeout(Duration::from_secs(20), waiting)
            .await
            .unwrap_or_else(|_| panic!("no {what}"))
            .unwrap();
    }

    pub async fn submitted(&self) {
        self.wait_for("submission", |seen| !seen.specs.is_empty()).await;
    }

    /// Waits until somebody reads the driver's standard output.
    pub async fn log_readers(&self, readers: usize) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while self.state.offsets.lock().unwrap().len() < readers {
            assert!(tokio::time::Instant::now() < deadline, "nobody reads the log");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl State {
    fn record(&self, change: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(change);
    }

    fn must_lead(&self) -> Result<(), Status> {
        if self.dead.load(Ordering::Relaxed) {
            return Err(dying());
        }
        let role = self.role.lock().unwrap();
        if role.leading {
            return Ok(());
        }
        let details = NotLeader { leader: role.leader.clone(), ..Default::default() };
        Err(not_leader_status("this master does not lead", &details))
    }

    /// The answer, unless this master dies over it.
    async fn answer<T>(&self, answer: T) -> Answer<T> {
        if self.swallow_answers.load(Ordering::Relaxed) {
            // It may be dead already: the flag is set before the death is counted.
            self.deaths.subscribe().wait_for(|_| self.dead.load(Ordering::Relaxed)).await.unwrap();
            return Err(dying());
        }
        Ok(Response::new(answer))
    }

    fn known(&self, id: &str) -> Result<(), Status> {
        self.must_lead()?;
        if ID.starts_with(id) || ID.ends_with(id) {
            Ok(())
        } else {
            Err(Status::not_found(format!("no application matches {id:?}")))
        }
    }
}

fn dying() -> Status {
    Status::unavailable("the master stops")
}

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Client for State {
    async fn upload_artifact(
        &self,
        request: Request<Streaming<ArtifactChunk>>,
    ) -> Answer<UploadArtifactResponse> {
        self.must_lead()?;
        let mut stream = request.into_inner();
        let mut data = Vec::new();
        while let Some(chunk) = stream.message().await? {
            data.extend(chunk.data);
        }
        let bytes = data.len() as u64;
        self.record(|seen| seen.uploads.push(data));
        Ok(Response::new(UploadArtifactResponse { sha256: "a".repeat(64), bytes }))
    }

    async fn submit_application(
        &self,
        request: Request<SubmitApplicationRequest>,
    ) -> Answer<SubmitApplicationResponse> {
        self.must_lead()?;
        let SubmitApplicationRequest { spec, key, ticket } = request.into_inner();
        let spec = spec.unwrap();
        firesteel_proto::convert::application_spec(Some(spec.clone())).unwrap();
        match spec.name.as_str() {
            "refuse" => return Err(Status::permission_denied("ana may not submit")),
            "another" => return Err(Status::already_exists(format!("the key {key} names {ID}"))),
            "late" => return Err(Status::out_of_range("what was submitted so long ago is forgotten")),
            _ => {}
        }
        if spec.deploy_mode() == DeployMode::Cluster && self.seen.borrow().uploads.is_empty() {
            let message = format!("the script {} has not been uploaded to this master", spec.artifact);
            return Err(Status::failed_precondition(message));
        }
        self.status.send_modify(|status| status.spec = Some(spec.clone()));
        self.record(|seen| {
            seen.specs.push(spec);
            seen.keys.push((key, ticket));
        });
        self.answer(SubmitApplicationResponse {
            existed: false,
            application_id: ID.into(),
            token: "t0ken".into(),
            ui_url: "http://ui/app".into(),
        })
        .await
    }

    type WatchApplicationStream = Stream<ApplicationStatus>;
    async fn watch_application(
        &self,
        request: Request<WatchApplicationRequest>,
    ) -> Answer<Self::WatchApplicationStream> {
        self.known(&request.into_inner().application_id)?;
        let mut changes = self.status.subscribe();
        let mut deaths = self.deaths.subscribe();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let status = changes.borrow_and_update().clone();
                let ended = status.ended_ms > 0;
                if sender.send(Ok(status)).await.is_err() || ended {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    _ = deaths.changed() => return drop(sender.send(Err(dying())).await),
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_applications(
        &self,
        _: Request<ListApplicationsRequest>,
    ) -> Answer<ListApplicationsResponse> {
        self.must_lead()?;
        Ok(Response::new(ListApplicationsResponse { applications: vec![self.status.borrow().clone()] }))
    }

    async fn kill_application(
        &self,
        request: Request<KillApplicationRequest>,
    ) -> Answer<KillApplicationResponse> {
        let id = request.into_inner().application_id;
        self.known(&id)?;
        let status = self.status.borrow().clone();
        if status.ended_ms > 0 {
            let state = firesteel_common::ApplicationState::try_from(status.state()).unwrap();
            let message = format!("application {ID} has already ended ({state})");
            return Err(Status::failed_precondition(message));
        }
        self.record(|seen| seen.kills.push(id));
        self.status.send_modify(|status| {
            status.state = ApplicationState::Killed.into();
            status.message = "killed by ana".into();
            status.ended_ms = 1;
        });
        self.stdout.send_modify(|log| log.complete = true);
        self.answer(KillApplicationResponse { application_id: ID.into() }).await
    }

    async fn report_driver_end(
        &self,
        request: Request<ReportDriverEndRequest>,
    ) -> Answer<ReportDriverEndResponse> {
        let request = request.into_inner();
        if request.token != "t0ken" {
            return Err(Status::unauthenticated("wrong token"));
        }
        let kind = request.end.and_then(|end| end.kind).unwrap();
        self.record(|seen| seen.reports.push(kind.clone()));
        let end = firesteel_proto::convert::process_end(ProcessEnd { kind: Some(kind) }).unwrap();
        self.status.send_modify(|status| {
            if status.ended_ms == 0 {
                status.ended_ms = 1;
                // Stands for the driver that told its success itself.
                let told = end.is_success();
                let state = if told { ApplicationState::Finished } else { ApplicationState::Failed };
                status.state = state.into();
                status.message = if told { String::new() } else { format!("the driver {end}") };
            }
        });
        Ok(Response::new(ReportDriverEndResponse {}))
    }

    type ReadLogStream = Stream<LogChunk>;
    async fn read_log(&self, request: Request<ReadLogRequest>) -> Answer<Self::ReadLogStream> {
        let request = request.into_inner();
        let stdout = request.stream() == LogStream::Stdout;
        self.known(ID)?;
        let mut log = if stdout { self.stdout.subscribe() } else { self.stderr.subscribe() };
        if stdout {
            self.offsets.lock().unwrap().push(request.offset);
            self.record(|seen| seen.logs.push(request.process.clone().unwrap_or_default().name));
        }
        let mut deaths = self.deaths.subscribe();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut offset = request.offset as usize;
            if request.tail_bytes > 0 {
                offset = log.borrow().data.len().saturating_sub(request.tail_bytes as usize);
            }
            loop {
                let now = log.borrow_and_update().clone();
                // In small pieces, cut without regard to lines or characters.
                while offset < now.data.len() {
                    let end = now.data.len().min(offset + 1000);
                    let chunk = LogChunk { data: now.data[offset..end].to_vec(), next_offset: end as u64 };
                    if sender.send(Ok(chunk)).await.is_err() {
                        return;
                    }
                    offset = end;
                }
                if now.complete || !request.follow {
                    return;
                }
                tokio::select! {
                    changed = log.changed() => if changed.is_err() { return },
                    _ = deaths.changed() => return drop(sender.send(Err(dying())).await),
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl State {
    /// The one member whose id begins with `id`; records that it was asked to `change`.
    fn member(&self, change: &str, id: &str) -> Result<String, Status> {
        self.must_lead()?;
        self.record(|seen| seen.changes.push(format!("{change} {id}")));
        match MEMBERS.iter().find(|member| member.starts_with(id)) {
            Some(member) if !self.no_members.load(Ordering::Relaxed) => Ok((*member).to_owned()),
            _ => Err(Status::not_found(format!("no member {id:?}"))),
        }
    }
}

#[tonic::async_trait]
impl Masters for State {
    async fn who_leads(&self, _: Request<WhoLeadsRequest>) -> Answer<WhoLeadsResponse> {
        let mut role = self.role.lock().unwrap();
        let answer = role.clone();
        if let Some(leader) = self.next_leader.lock().unwrap().take() {
            *role = WhoLeadsResponse { leader, ..Default::default() };
        }
        Ok(Response::new(answer))
    }

    async fn list_members(&self, _: Request<ListMembersRequest>) -> Answer<ListMembersResponse> {
        self.must_lead()?;
        let roles = [MemberRole::Leader, MemberRole::Follower, MemberRole::Learner];
        let members = MEMBERS.iter().zip(roles).enumerate().map(|(n, (id, role))| Member {
            id: (*id).into(),
            role: role.into(),
            client_address: format!("h{n}:7077"),
            raft_address: format!("h{n}:7078"),
            version: "0.1.0".into(),
            matched: 100 - n as u64,
            last_contact_ms: Some(10 * n as u64),
            alive: n < 2,
            ..Default::default()
        });
        let members = members.collect();
        Ok(Response::new(ListMembersResponse { cluster_id: "c1".into(), term: 3, committed: 100, members }))
    }

    async fn add_voter(&self, request: Request<AddVoterRequest>) -> Answer<AddVoterResponse> {
        let id = self.member("add", &request.into_inner().id)?;
        self.answer(AddVoterResponse { id }).await
    }

    async fn remove_member(&self, request: Request<RemoveMemberRequest>) -> Answer<RemoveMemberResponse> {
        let id = self.member("remove", &request.into_inner().id)?;
        if id == MEMBERS[1] {
            let message = "1 of the 2 masters that are left is silent: no majority\nhint: start it first";
            return Err(Status::failed_precondition(message));
        }
        self.answer(RemoveMemberResponse { id }).await
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Answer<TransferLeadershipResponse> {
        let leader_id = self.member("transfer", &request.into_inner().id)?;
        self.answer(TransferLeadershipResponse { leader_id }).await
    }

    async fn take_snapshot(&self, _: Request<TakeSnapshotRequest>) -> Answer<TakeSnapshotResponse> {
        self.must_lead()?;
        self.answer(TakeSnapshotResponse { index: 99 }).await
    }
}
