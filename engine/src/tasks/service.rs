//! The gRPC face of the task runner.

use crate::tasks::runner::TaskRunner;
use firesteel_proto::v1;
use firesteel_proto::v1::tasks_server::Tasks;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

pub struct TaskService {
    runner: Arc<TaskRunner>,
}

impl TaskService {
    pub fn new(runner: TaskRunner) -> Self {
        Self { runner: Arc::new(runner) }
    }
}

/// Ends the attempt when the driver drops the call or dies.
struct Attempt(JoinHandle<v1::TaskEnd>);

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tonic::async_trait]
impl Tasks for TaskService {
    type RunStream = BoxStream<'static, Result<v1::TaskEnd, Status>>;

    async fn run(&self, request: Request<v1::RunTask>) -> Result<Response<Self::RunStream>, Status> {
        let runner = Arc::clone(&self.runner);
        let mut attempt = Attempt(tokio::spawn(runner.run(request.into_inner())));
        let end = async move {
            match (&mut attempt.0).await {
                Ok(end) => Ok(end),
                // A panic: the process goes on, this attempt has failed.
                Err(stopped) => Ok(v1::TaskEnd {
                    kind: Some(v1::task_end::Kind::Failure(v1::TaskFailure {
                        kind: v1::task_failure::Kind::Retryable.into(),
                        message: format!("the task ended without a result: {stopped}"),
                        lost_output: String::new(),
                    })),
                }),
            }
        };
        Ok(Response::new(futures::stream::once(end).boxed()))
    }
}
