//! A master in this process, and those who talk to it.

use clap::Parser;
use firesteel_master::config::{Flags, resolve};
use firesteel_master::daemon::Daemon;
use firesteel_proto::{channel, v1};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use v1::client_client::ClientClient;
use v1::drivers_client::DriversClient;
use v1::workers_client::WorkersClient;

/// Generous: a loaded machine is slow, a fault is for ever.
const DEADLINE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: nothing within {DEADLINE:?}"))
}

pub struct Master {
    dir: TempDir,
    arguments: Vec<String>,
    address: String,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<()>,
}

async fn start(dir: &Path, arguments: &[String]) -> Result<Daemon, String> {
    let data_dir = dir.join("data").display().to_string();
    let mut all: Vec<&str> =
        vec!["firesteel-master", "--webui-port", "0", "--raft-port", "0", "--data-dir", &data_dir];
    all.extend(arguments.iter().map(String::as_str));
    if !arguments.iter().any(|a| a == "--port") {
        all.extend(["--port", "0"]);
    }
    let flags = Flags::try_parse_from(all).map_err(|e| e.to_string())?;
    let config = resolve(flags, |_| None).map_err(|e| e.to_string())?;
    Daemon::start(&config).await.map_err(|e| e.to_string())
}

/// Why a master does not start.
pub async fn start_error(arguments: &[&str], data_dir: Option<PathBuf>) -> String {
    let temp = tempfile::tempdir().unwrap();
    let dir = data_dir.unwrap_or_else(|| temp.path().to_owned());
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    match start(&dir, &arguments).await {
        Ok(_) => panic!("it starts"),
        Err(error) => error,
    }
}

impl Master {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Self::start_in(tempfile::tempdir().unwrap(), arguments).await
    }

    async fn start_in(dir: TempDir, arguments: Vec<String>) -> Self {
        let daemon = start(dir.path(), &arguments).await.expect("the master starts");
        let address = daemon.cluster().master_url().authorities().next().unwrap();
        let mut published = daemon.cluster().published();
        soon("leadership", published.wait_for(|p| p.leader)).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            daemon.run(Box::pin(async { drop(stopped.await) })).await.expect("it ends in order");
        });
        Self { dir, arguments, address, stop, running }
    }

    /// The directory in which this master keeps its own.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub fn port(&self) -> u16 {
        self.address.rsplit(':').next().unwrap().parse().unwrap()
    }

    pub async fn stop(self) {
        let _ = self.stop.send(());
        soon("the end of the master", self.running).await.unwrap();
    }

    /// Ends it and starts another on the same data.
    pub async fn restart(self) -> Self {
        let _ = self.stop.send(());
        soon("the end of the master", self.running).await.unwrap();
        Self::start_in(self.dir, self.arguments).await
    }

    async fn channel(&self) -> Channel {
        channel::connect(&self.address).await.expect("the master answers")
    }

    pub async fn client(&self) -> ClientClient<Channel> {
        ClientClient::new(self.channel().await)
    }

    pub async fn submit(&self, spec: v1::ApplicationSpec) -> Result<v1::SubmitApplicationResponse, Status> {
        let request = v1::SubmitApplicationRequest { spec: Some(spec), ..Default::default() };
        Ok(self.client().await.submit_application(request).await?.into_inner())
    }

    pub async fn watch(&self, id: &str) -> Result<Streaming<v1::ApplicationStatus>, Status> {
        let request = v1::WatchApplicationRequest { application_id: id.to_owned() };
        Ok(self.client().await.watch_application(request).await?.into_inner())
    }

    pub async fn next<T>(&self, stream: &mut Streaming<T>) -> T {
        soon("a message", stream.message()).await.expect("no error").expect("a message")
    }

    pub async fn until<T>(&self, stream: &mut Streaming<T>, wanted: impl Fn(&T) -> bool) -> T {
        until(stream, wanted).await
    }

    pub async fn status(&self, id: &str) -> v1::ApplicationStatus {
        let mut watch = self.watch(id).await.unwrap();
        self.next(&mut watch).await
    }

    pub async fn list(&self) -> Vec<v1::ApplicationStatus> {
        self.client()
            .await
            .list_applications(v1::ListApplicationsRequest {})
            .await
            .unwrap()
            .into_inner()
            .applications
    }

    pub async fn kill(&self, id: &str) -> Result<String, Status> {
        let request = v1::KillApplicationRequest { application_id: id.to_owned(), user: "ana".into() };
        Ok(self.client().await.kill_application(request).await?.into_inner().application_id)
    }

    pub async fn finish(&self, app: &v1::SubmitApplicationResponse, success: bool) -> Result<(), Status> {
        let request = v1::FinishRequest {
            application_id: app.application_id.clone(),
            token: app.token.clone(),
            success,
            message: String::new(),
            progress: None,
        };
        DriversClient::new(self.channel().await).finish(request).await.map(drop)
    }

    pub async fn driver(&self, app: &v1::SubmitApplicationResponse) -> Result<FakeDriver, Status> {
        use v1::driver_message::Kind;
        let (messages, outbound) = mpsc::channel(8);
        let hello = v1::DriverHello { application_id: app.application_id.clone(), token: app.token.clone() };
        messages.send(v1::DriverMessage { kind: Some(Kind::Hello(hello)) }).await.unwrap();
        let mut client = DriversClient::new(self.channel().await);
        let updates = client.attach(ReceiverStream::new(outbound)).await?.into_inner();
        Ok(FakeDriver { messages, updates })
    }

    pub async fn upload(&self, bytes: &[u8]) -> Result<String, Status> {
        let chunks: Vec<_> =
            bytes.chunks(channel::CHUNK_BYTES).map(|c| v1::ArtifactChunk { data: c.to_vec() }).collect();
        let response = self.client().await.upload_artifact(tokio_stream::iter(chunks)).await?.into_inner();
        assert_eq!(response.bytes, bytes.len() as u64);
        Ok(response.sha256)
    }

    pub async fn artifact(&self, sha256: &str) -> Result<Vec<u8>, Status> {
        let request = v1::GetArtifactRequest { sha256: sha256.to_owned() };
        let mut chunks = WorkersClient::new(self.channel().await).get_artifact(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = soon("a chunk", chunks.message()).await? {
            bytes.extend(chunk.data);
        }
        Ok(bytes)
    }

    pub async fn read_log(&self, id: &str, process: &str, follow: bool) -> Result<String, Status> {
        soon("the log", read_log(&mut self.client().await, id, process, follow)).await
    }
}

async fn until<T>(stream: &mut Streaming<T>, wanted: impl Fn(&T) -> bool) -> T {
    soon("the wanted message", async {
        loop {
            let message = stream.message().await.expect("no error").expect("a message");
            if wanted(&message) {
                return message;
            }
        }
    })
    .await
}

pub async fn read_log(
    client: &mut ClientClient<Channel>,
    id: &str,
    process: &str,
    follow: bool,
) -> Result<String, Status> {
    let request = v1::ReadLogRequest {
        process: Some(v1::ProcessId { application_id: id.to_owned(), name: process.to_owned() }),
        stream: v1::LogStream::Stdout.into(),
        offset: 0,
        tail_bytes: 0,
        follow,
    };
    let mut chunks = client.read_log(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        bytes.extend(chunk.data);
    }
    Ok(String::from_utf8(bytes).unwrap())
}

pub fn client_spec(executors: u32) -> v1::ApplicationSpec {
    v1::ApplicationSpec {
        name: "q".into(),
        user: "ana".into(),
        deploy_mode: v1::DeployMode::Client.into(),
        resource: "q.sql".into(),
        artifact: String::new(),
        conf: Default::default(),
        output: v1::OutputFormat::Table.into(),
        driver: Some(v1::Resources { cores: 0, memory_mib: 512 }),
        executor: Some(v1::Resources { cores: 1, memory_mib: 1024 }),
        executors: Some(v1::application_spec::Executors::ExecutorCount(executors)),
        supervise: false,
    }
}

pub fn cluster_spec(sha256: &str) -> v1::ApplicationSpec {
    v1::ApplicationSpec {
        deploy_mode: v1::DeployMode::Cluster.into(),
        artifact: sha256.to_owned(),
        ..client_spec(1)
    }
}

#[derive(Debug)]
pub struct FakeDriver {
    messages: mpsc::Sender<v1::DriverMessage>,
    updates: Streaming<v1::DriverUpdate>,
}

impl FakeDriver {
    pub async fn until(&mut self, wanted: impl Fn(&v1::DriverUpdate) -> bool) -> v1::DriverUpdate {
        until(&mut self.updates, wanted).await
    }

    pub async fn progress(&self, progress: v1::Progress) {
        let kind = Some(v1::driver_message::Kind::Progress(progress));
        self.messages.send(v1::DriverMessage { kind }).await.unwrap();
    }
}

#[derive(Debug)]
pub struct FakeWorker {
    reports: Reports,
    assignments: Streaming<v1::Assignment>,
}

/// The way up of a fake worker.
#[derive(Debug, Clone)]
pub struct Reports(mpsc::Sender<v1::WorkerMessage>);

impl Reports {
    /// Whether the stream is still open.
    pub async fn report(&self, processes: &[(&str, &str, v1::ExecutorState)]) -> bool {
        let processes = processes.iter().map(|(app, name, state)| process(app, name, *state)).collect();
        self.send(processes).await
    }

    async fn send(&self, processes: Vec<v1::ProcessReport>) -> bool {
        let report = v1::WorkerReport { processes, cpu_percent: 12.5, memory_used_mib: 100, sequence: 0 };
        let kind = Some(v1::worker_message::Kind::Report(report));
        self.0.send(v1::WorkerMessage { kind }).await.is_ok()
    }
}

fn process(app: &str, name: &str, state: v1::ExecutorState) -> v1::ProcessReport {
    v1::ProcessReport {
        process: Some(v1::ProcessId { application_id: app.to_owned(), name: name.to_owned() }),
        state: state.into(),
        address: "127.0.0.1:4000".into(),
        pid: 1,
        end: None,
    }
}

impl FakeWorker {
    pub async fn attach(master: &Master, id: &str, incarnation: u64) -> Result<Self, Status> {
        Self::attach_at(master, id, incarnation, 1).await
    }

    pub async fn attach_at(master: &Master, id: &str, incarnation: u64, port: u16) -> Result<Self, Status> {
        let (messages, outbound) = mpsc::channel(8);
        let register = v1::RegisterWorker {
            worker_id: id.to_owned(),
            incarnation,
            host: "127.0.0.1".into(),
            port: port.into(),
            capacity: Some(v1::Resources { cores: 4, memory_mib: 8192 }),
            version: "0.1.0".into(),
            ui_url: String::new(),
        };
        let kind = Some(v1::worker_message::Kind::Register(register));
        messages.send(v1::WorkerMessage { kind }).await.unwrap();
        let mut client = WorkersClient::new(master.channel().await);
        let attached = soon("an answer to register", client.attach(ReceiverStream::new(outbound))).await;
        Ok(Self { reports: Reports(messages), assignments: attached?.into_inner() })
    }

    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    pub async fn next(&mut self) -> v1::Assignment {
        until(&mut self.assignments, |_| true).await
    }

    pub async fn until(&mut self, wanted: impl Fn(&v1::Assignment) -> bool) -> v1::Assignment {
        until(&mut self.assignments, wanted).await
    }

    /// Waits until the master has ended the stream with an error.
    pub async fn ended(&mut self) {
        soon("the end of the stream", async { while let Ok(Some(_)) = self.assignments.message().await {} })
            .await;
    }

    pub async fn report(&self, processes: &[(&str, &str, v1::ExecutorState)]) {
        assert!(self.reports.report(processes).await, "the stream is open");
    }

    pub async fn report_end(&self, app: &str, name: &str, kind: v1::process_end::Kind) {
        let mut report = process(app, name, v1::ExecutorState::Failed);
        report.end = Some(v1::ProcessEnd { kind: Some(kind) });
        assert!(self.reports.send(vec![report]).await, "the stream is open");
    }

    pub async fn leave(&self) {
        let kind = Some(v1::worker_message::Kind::Leave(v1::LeaveWorker {}));
        self.reports.0.send(v1::WorkerMessage { kind }).await.unwrap();
    }
}

pub async fn attach_without_register(master: &Master) -> Status {
    let kind = Some(v1::worker_message::Kind::Leave(v1::LeaveWorker {}));
    let messages = tokio_stream::iter([v1::WorkerMessage { kind }]);
    WorkersClient::new(master.channel().await).attach(messages).await.unwrap_err()
}

/// A worker's log service: nothing there until something is put.
pub struct FakeLogs {
    pub port: u16,
    text: Arc<Mutex<Option<String>>>,
    asked: watch::Sender<u32>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl FakeLogs {
    pub async fn serve() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = Arc::new(Mutex::new(None));
        let asked = watch::Sender::new(0);
        let service = LogService { text: text.clone(), asked: asked.clone() };
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            channel::server()
                .add_service(v1::worker_logs_server::WorkerLogsServer::new(service))
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped)
                .await
                .unwrap();
        });
        Self { port, text, asked, stop, server }
    }

    pub async fn asked(&self) {
        let mut asked = self.asked.subscribe();
        soon("a question", asked.wait_for(|n| *n > 0)).await.unwrap();
    }

    pub fn put(&self, text: &str) {
        *self.text.lock().unwrap() = Some(text.to_owned());
    }

    /// Returns when its last connection is closed.
    pub async fn stop(self) {
        self.stop.cancel();
        soon("the end of the log server", self.server).await.unwrap();
    }
}

struct LogService {
    text: Arc<Mutex<Option<String>>>,
    asked: watch::Sender<u32>,
}

#[tonic::async_trait]
impl v1::worker_logs_server::WorkerLogs for LogService {
    type ReadLogStream = ReceiverStream<Result<v1::LogChunk, Status>>;

    async fn read_log(
        &self,
        _: Request<v1::ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        let text = self.text.lock().unwrap().clone();
        self.asked.send_modify(|n| *n += 1);
        let text = text.ok_or_else(|| Status::not_found("never run here"))?;
        let (sender, receiver) = mpsc::channel(1);
        let chunk = v1::LogChunk { next_offset: text.len() as u64, data: text.into_bytes() };
        sender.send(Ok(chunk)).await.unwrap();
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
