//! A master that says what a test wants it to say.

use super::LIMIT;
use firesteel_proto::masters::not_leader_status;
use firesteel_proto::v1;
use firesteel_proto::v1::masters_server::{Masters, MastersServer};
use firesteel_proto::v1::worker_message::Kind;
use firesteel_proto::v1::workers_server::{Workers, WorkersServer};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What a worker has told, so far.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub registrations: Vec<v1::RegisterWorker>,
    pub report: Option<v1::WorkerReport>,
    pub reports: usize,
    pub left: bool,
    /// Scripts that were asked for.
    pub fetches: usize,
}

impl Heard {
    pub fn process(&self, name: &str) -> Option<&v1::ProcessReport> {
        let of = |p: &&v1::ProcessReport| p.process.as_ref().is_some_and(|id| id.name == name);
        self.report.as_ref()?.processes.iter().find(of)
    }

    pub fn state(&self, name: &str) -> Option<v1::ExecutorState> {
        self.process(name).map(|p| p.state())
    }
}

/// How it stands in its cluster.
#[derive(Debug, Clone)]
struct Role {
    leads: bool,
    /// Whom it calls the leader while it does not lead.
    leader: String,
    /// Its connections stand, but it neither hears nor says anything.
    silent: bool,
    /// Scripts are asked for and not given.
    keeps_scripts: bool,
}

#[derive(Clone)]
struct Service {
    desired: watch::Receiver<v1::Assignment>,
    role: watch::Receiver<Role>,
    heard: Arc<watch::Sender<Heard>>,
    refusal: Arc<Mutex<Option<Status>>>,
    artifacts: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl Service {
    /// The role, once it is not a silent one.
    async fn speaking(&self) -> Role {
        self.role.clone().wait_for(|role| !role.silent).await.unwrap().clone()
    }

    /// Takes messages and answers each with the desired set, until it does not lead any more.
    async fn serve(
        mut self,
        mut messages: Streaming<v1::WorkerMessage>,
        answers: mpsc::Sender<Result<v1::Assignment, Status>>,
    ) {
        let mut sequence = 0;
        loop {
            let role = self.speaking().await;
            self.role.mark_unchanged();
            if !role.leads {
                let _ = answers.send(Err(not_leader(role))).await;
                return;
            }
            let desired = self.desired.borrow_and_update().clone();
            if answers.send(Ok(v1::Assignment { heard: sequence, ..desired })).await.is_err() {
                return;
            }
            tokio::select! {
                changed = self.desired.changed() => if changed.is_err() { return },
                changed = self.role.changed() => if changed.is_err() { return },
                message = messages.message() => {
                    let Ok(Some(message)) = message else { return };
                    self.heard.send_modify(|heard| match message.kind {
                        Some(Kind::Report(report)) => {
                            sequence = report.sequence;
                            heard.reports += 1;
                            heard.report = Some(report);
                        }
                        Some(Kind::Leave(_)) => heard.left = true,
                        _ => {}
                    });
                }
            }
        }
    }
}

fn not_leader(role: Role) -> Status {
    let details = v1::NotLeader { leader: role.leader, ..Default::default() };
    not_leader_status("this master does not lead", &details)
}

#[tonic::async_trait]
impl Masters for Service {
    async fn who_leads(
        &self,
        _: Request<v1::WhoLeadsRequest>,
    ) -> Result<Response<v1::WhoLeadsResponse>, Status> {
        let role = self.speaking().await;
        Ok(Response::new(v1::WhoLeadsResponse {
            leading: role.leads,
            leader: if role.leads { String::new() } else { role.leader },
            term: self.desired.borrow().epoch,
            ..Default::default()
        }))
    }

    async fn list_members(
        &self,
        _: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, Status> {
        Err(Status::unimplemented("not for workers"))
    }
    async fn add_voter(
        &self,
        _: Request<v1::AddVoterRequest>,
    ) -> Result<Response<v1::AddVoterResponse>, Status> {
        Err(Status::unimplemented("not for workers"))
    }
    async fn remove_member(
        &self,
        _: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        Err(Status::unimplemented("not for workers"))
    }
    async fn transfer_leadership(
        &self,
        _: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        Err(Status::unimplemented("not for workers"))
    }
    async fn take_snapshot(
        &self,
        _: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
        Err(Status::unimplemented("not for workers"))
    }
}

type Assignments = Pin<Box<dyn Stream<Item = Result<v1::Assignment, Status>> + Send>>;
type Chunks = Pin<Box<dyn Stream<Item = Result<v1::ArtifactChunk, Status>> + Send>>;

#[tonic::async_trait]
impl Workers for Service {
    type AttachStream = Assignments;
    type GetArtifactStream = Chunks;

    async fn attach(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Assignments>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|m| m.kind);
        let Some(Kind::Register(registration)) = first else {
            return Err(Status::invalid_argument("the first message is no registration"));
        };
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let role = self.speaking().await;
        if !role.leads {
            return Err(not_leader(role));
        }
        self.heard.send_modify(|heard| heard.registrations.push(registration));
        let (answers, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().serve(messages, answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<Chunks>, Status> {
        self.heard.send_modify(|heard| heard.fetches += 1);
        self.role.clone().wait_for(|role| !role.keeps_scripts).await.unwrap();
        let bytes = self.artifacts.lock().unwrap().get(&request.into_inner().sha256).cloned();
        let bytes = bytes.ok_or_else(|| Status::not_found("there is no such artifact"))?;
        let chunks: Vec<_> = bytes.chunks(3).map(|c| Ok(v1::ArtifactChunk { data: c.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}

pub struct Master {
    pub port: u16,
    desired: watch::Sender<v1::Assignment>,
    role: watch::Sender<Role>,
    heard: Arc<watch::Sender<Heard>>,
    refusal: Arc<Mutex<Option<Status>>>,
    artifacts: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// A runtime of its own, so that its connections end with it.
    server: Option<Runtime>,
}

impl Master {
    pub async fn start() -> Self {
        let mut master = Self {
            port: 0,
            desired: watch::Sender::new(v1::Assignment {
                epoch: 1,
                processes: vec![],
                heartbeat_ms: 100,
                ..Default::default()
            }),
            role: watch::Sender::new(Role {
                leads: true,
                leader: String::new(),
                silent: false,
                keeps_scripts: false,
            }),
            heard: Arc::new(watch::Sender::new(Heard::default())),
            refusal: Arc::default(),
            artifacts: Arc::default(),
            server: None,
        };
        master.listen().await;
        master
    }

    /// On the port it had before, if any.
    pub async fn listen(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let port = self.port;
        let bind = async move { TcpListener::bind(("127.0.0.1", port)).await.unwrap() };
        let listener = runtime.spawn(bind).await.unwrap();
        self.port = listener.local_addr().unwrap().port();
        let service = Service {
            desired: self.desired.subscribe(),
            role: self.role.subscribe(),
            heard: self.heard.clone(),
            refusal: self.refusal.clone(),
            artifacts: self.artifacts.clone(),
        };
        let server = firesteel_proto::channel::server()
            .add_service(WorkersServer::new(service.clone()))
            .add_service(MastersServer::new(service));
        runtime.spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        self.server = Some(runtime);
    }

    /// Goes away, connections and all; the port is free until [`Master::listen`].
    pub fn stop(&mut self) {
        if let Some(runtime) = self.server.take() {
            runtime.shutdown_background();
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("firesteel://{}", self.address())
    }

    /// Calls another the leader; nobody when that is empty.
    pub fn follow(&self, leader: &str) {
        self.role.send_modify(|role| (role.leads, role.leader) = (false, leader.to_owned()));
    }

    pub fn lead(&self) {
        self.role.send_modify(|role| role.leads = true);
    }

    /// Neither hears nor says anything, or does so again.
    pub fn be_silent(&self, silent: bool) {
        self.role.send_modify(|role| role.silent = silent);
    }

    pub fn keep_scripts(&self) {
        self.role.send_modify(|role| role.keeps_scripts = true);
    }

    pub fn lend(&self, lease_ms: u32) {
        self.desired.send_modify(|assignment| assignment.lease_ms = lease_ms);
    }

    pub fn assign(&self, launches: Vec<v1::Launch>) {
        self.desired.send_modify(|assignment| assignment.processes = launches);
    }

    pub fn assign_in_epoch(&self, epoch: u64, launches: Vec<v1::Launch>) {
        self.desired.send_modify(|assignment| (assignment.epoch, assignment.processes) = (epoch, launches));
    }

    /// Of these applications the worker keeps map outputs; their token is that of [`executor`].
    pub fn keep_shuffles(&self, applications: &[&str]) {
        self.desired.send_modify(|assignment| assignment.shuffle_tenants = tenants(applications));
    }

    pub fn refuse(&self, status: Status) {
        *self.refusal.lock().unwrap() = Some(status);
    }

    pub fn put(&self, sha256: &str, bytes: &[u8]) {
        self.artifacts.lock().unwrap().insert(sha256.to_owned(), bytes.to_vec());
    }

    pub fn heard(&self) -> Heard {
        self.heard.borrow().clone()
    }

    /// What it has heard, once that is as wanted.
    pub async fn hears(&self, what: &str, mut wanted: impl FnMut(&Heard) -> bool) -> Heard {
        let mut heard = self.heard.subscribe();
        let found = tokio::time::timeout(LIMIT, heard.wait_for(|h| wanted(h))).await;
        match found {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("not within {LIMIT:?}: {what}; last heard {:#?}", self.heard()),
        }
    }

    pub async fn state(&self, name: &str, state: v1::ExecutorState) -> v1::ProcessReport {
        let heard = self.hears(&format!("{name} is {state:?}"), |h| h.state(name) == Some(state)).await;
        heard.process(name).unwrap().clone()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.stop();
    }
}

pub const TOKEN: &str = "token-41d9-secret";

fn tenants(applications: &[&str]) -> Vec<v1::ShuffleTenant> {
    let tenant = |id: &&str| v1::ShuffleTenant { application_id: (*id).to_owned(), token: TOKEN.into() };
    applications.iter().map(tenant).collect()
}

pub fn executor(number: u32, mode: &str) -> v1::Launch {
    v1::Launch {
        process: Some(v1::ProcessId { application_id: "app-1".into(), name: format!("executor-{number}") }),
        resources: Some(v1::Resources { cores: 1, memory_mib: 512 }),
        token: TOKEN.into(),
        spec: None,
        conf: [("mode".to_owned(), mode.to_owned())].into(),
        grant_index: 1,
        ..Default::default()
    }
}

pub fn driver(attempt: u32, mode: &str, artifact: &str) -> v1::Launch {
    let spec = v1::ApplicationSpec {
        name: "<b>report</b>".into(),
        user: "ana".into(),
        deploy_mode: v1::DeployMode::Cluster.into(),
        resource: "report.sql".into(),
        artifact: artifact.into(),
        conf: Default::default(),
        output: v1::OutputFormat::Csv.into(),
        driver: Some(v1::Resources { cores: 0, memory_mib: 512 }),
        executor: Some(v1::Resources { cores: 1, memory_mib: 512 }),
        executors: Some(v1::application_spec::Executors::ExecutorCount(1)),
        supervise: false,
    };
    let process = v1::ProcessId { application_id: "app-1".into(), name: format!("driver-{attempt}") };
    v1::Launch { process: Some(process), spec: Some(spec), ..executor(0, mode) }
}

/// The same launch, but not to outlive the worker's lease.
pub fn bound(launch: v1::Launch) -> v1::Launch {
    v1::Launch { ends_with_lease: true, ..launch }
}

pub fn supervised(mut driver: v1::Launch) -> v1::Launch {
    driver.spec.as_mut().unwrap().supervise = true;
    bound(driver)
}

pub fn cluster_url(masters: &[&Master]) -> String {
    let addresses: Vec<_> = masters.iter().map(|master| master.address()).collect();
    format!("firesteel://{}", addresses.join(","))
}
