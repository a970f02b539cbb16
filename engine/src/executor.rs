//! The executor: runs the task fragments of one application on its cores, inside its memory.

use crate::session::{self, option_header};
use crate::settings::{InvalidSetting, Settings};
use crate::tasks::{TaskRunner, TaskService};
use crate::transport::{ApplicationChannels, InvalidToken, RequireToken};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion_distributed::{DistributedExt, Worker, WorkerQueryContext, WorkerSessionBuilder};
use firesteel_common::ExecutorLaunch;
use firesteel_proto::v1::tasks_server::TasksServer;
use std::fs::File;
use std::io::{self, Write};
use tokio::net::TcpListener;
use tonic::service::interceptor::InterceptedService;

#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    #[error(transparent)]
    Token(#[from] InvalidToken),
    #[error(transparent)]
    Runtime(#[from] DataFusionError),
    #[error("cannot listen on {host}: {source}")]
    Listen { host: String, source: io::Error },
    #[error("cannot tell the worker that the executor listens: {0}")]
    Ready(io::Error),
    #[error("the executor's server ended: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Builds the session of each task: the application's channels, and the options the driver planned with.
struct TaskSessions {
    channels: ApplicationChannels,
    test_functions: bool,
}

#[async_trait::async_trait]
impl WorkerSessionBuilder for TaskSessions {
    async fn build_session_state(
        &self,
        context: WorkerQueryContext,
    ) -> Result<SessionState, DataFusionError> {
        let WorkerQueryContext { mut builder, headers } = context;
        if let Some(config) = builder.config() {
            option_header::apply(&headers, config.options_mut())?;
        }
        let builder = session::with_functions(builder, self.test_functions);
        Ok(builder.with_distributed_channel_resolver(self.channels.clone()).build())
    }
}

/// Serves tasks until the process is told to stop. `ready` gets `HOST:PORT\n` once the port answers.
pub async fn run(launch: ExecutorLaunch, ready: Option<File>) -> Result<(), ExecutorError> {
    let settings = Settings::parse(&launch.conf)?;
    let memory = session::operator_bytes(&settings, launch.memory_mib);
    let runtime = session::runtime(&settings, Some(memory), &launch.scratch_dir)?;
    let channels = ApplicationChannels::new(&launch.token)?;
    let tasks = TaskService::new(TaskRunner::new(&launch, &settings, runtime.clone(), channels.clone())?);
    // Plans and inline outputs have no natural limit.
    let tasks =
        TasksServer::new(tasks).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
    let tasks = InterceptedService::new(tasks, RequireToken::new(launch.token.clone()));
    let worker =
        Worker::from_session_builder(TaskSessions { channels, test_functions: settings.test_functions })
            .with_runtime_env(runtime);
    let service = InterceptedService::new(worker.into_worker_server(), RequireToken::new(launch.token));

    let listen = |source| ExecutorError::Listen { host: launch.host.clone(), source };
    let listener = TcpListener::bind((launch.host.as_str(), 0)).await.map_err(listen)?;
    let port = listener.local_addr().map_err(listen)?.port();
    let address = firesteel_proto::channel::authority(&launch.host, port);
    tracing::info!("{} listens on {address}", launch.executor);
    if let Some(mut ready) = ready {
        ready.write_all(format!("{address}\n").as_bytes()).map_err(ExecutorError::Ready)?;
    }
    firesteel_proto::channel::server()
        .add_service(service)
        .add_service(tasks)
        .serve_with_incoming(firesteel_proto::channel::incoming(listener))
        .await?;
    Ok(())
}
