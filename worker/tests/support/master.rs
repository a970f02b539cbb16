//! A master that says what a test wants it to say.

use super::LIMIT;
use firesteel_proto::v1;
use firesteel_proto::v1::worker_message::Kind;
use firesteel_proto::v1::workers_server::{Workers, WorkersServer};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// What a worker has told, so far.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub registrations: Vec<v1::RegisterWorker>,
    pub report: Option<v1::WorkerReport>,
    pub reports: usize,
    pub left: bool,
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

struct Service {
    desired: watch::Receiver<v1::Assignment>,
    heard: Arc<watch::Sender<Heard>>,
    refusal: Arc<Mutex<Option<Status>>>,
    artifacts: Arc<Mutex<HashMap<String, Vec<u8>>>>,
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
        self.heard.send_modify(|heard| heard.registrations.push(registration));
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                heard.send_modify(|heard| match message.kind {
                    Some(Kind::Report(report)) => {
                        heard.reports += 1;
                        heard.report = Some(report);
                    }
                    Some(Kind::Leave(_)) => heard.left = true,
                    _ => {}
                });
            }
        });
        Ok(Response::new(Box::pin(WatchStream::new(self.desired.clone()).map(Ok))))
    }

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let bytes = self.artifacts.lock().unwrap().get(&request.into_inner().sha256).cloned();
        let bytes = bytes.ok_or_else(|| Status::not_found("there is no such artifact"))?;
        let chunks: Vec<_> = bytes.chunks(3).map(|c| Ok(v1::ArtifactChunk { data: c.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}

pub struct Master {
    pub port: u16,
    desired: watch::Sender<v1::Assignment>,
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
        let service = WorkersServer::new(Service {
            desired: self.desired.subscribe(),
            heard: self.heard.clone(),
            refusal: self.refusal.clone(),
            artifacts: self.artifacts.clone(),
        });
        let server = firesteel_proto::channel::server().add_service(service);
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

    pub fn url(&self) -> String {
        format!("firesteel://127.0.0.1:{}", self.port)
    }

    pub fn assign(&self, launches: Vec<v1::Launch>) {
        self.desired.send_modify(|assignment| assignment.processes = launches);
    }

    pub fn assign_in_epoch(&self, epoch: u64, launches: Vec<v1::Launch>) {
        self.desired.send_replace(v1::Assignment {
            epoch,
            processes: launches,
            heartbeat_ms: 100,
            ..Default::default()
        });
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

pub fn executor(number: u32, mode: &str) -> v1::Launch {
    v1::Launch {
        process: Some(v1::ProcessId { application_id: "app-1".into(), name: format!("executor-{number}") }),
        resources: Some(v1::Resources { cores: 1, memory_mib: 512 }),
        token: "token-41d9-secret".into(),
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
