//! Mode `pipelined`: where the tasks of a query whose stages all run at once go, and who notes it.

use crate::driver::progress::ProgressBoard;
use crate::transport::{ApplicationChannels, address_of};
use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest, GetWorkerInfoResponse,
    NetworkBoundaryExt, RouteTasksEvent, RouteTasksEventResponse, SetPlanRequest, Stage, WorkerChannel,
    WorkerToCoordinatorMsg,
};
use firesteel_proto::v1::TaskState;
use futures::stream::BoxStream;
use http::HeaderMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use url::Url;

/// The executors of the running attempt, shared with the planner's hooks.
#[derive(Debug, Default)]
pub struct Region {
    /// Numbers and URLs.
    pub executors: Vec<(u32, Url)>,
    /// The statement being run.
    pub job: u32,
}

pub type SharedRegion = Arc<Mutex<Region>>;

fn lock(region: &SharedRegion) -> MutexGuard<'_, Region> {
    region.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Task i of a stage runs on executor i, round and round: partners of a shuffle meet on the same machine as often as
/// can be. A stage of one task runs beside an input that is one task, too; the others take turns by statement.
pub fn route(region: &SharedRegion, event: &RouteTasksEvent) -> Option<DfResult<RouteTasksEventResponse>> {
    let region = lock(region);
    let executors = &region.executors;
    if executors.is_empty() {
        return Some(Err(DataFusionError::Execution("no executor is running".to_owned())));
    }
    if event.task_count == 1
        && let Some(beside) = lone_input(event.plan)
    {
        return Some(Ok(RouteTasksEventResponse::new(vec![beside])));
    }
    let offset = if event.task_count == 1 { region.job as usize } else { 0 };
    let url = |i: usize| executors[(i + offset) % executors.len()].1.clone();
    Some(Ok(RouteTasksEventResponse::new((0..event.task_count).map(url).collect())))
}

/// Where the first input stage of one task runs, if there is one.
fn lone_input(plan: &Arc<dyn ExecutionPlan>) -> Option<Url> {
    if let Some(boundary) = plan.as_network_boundary() {
        return match boundary.input_stage() {
            Stage::Remote(input) if input.workers.len() == 1 => input.workers.first().cloned(),
            _ => None,
        };
    }
    plan.children().into_iter().find_map(lone_input)
}

/// Channels that note which task went to which executor.
#[derive(Clone)]
pub struct TrackedChannels {
    pub channels: ApplicationChannels,
    pub board: ProgressBoard,
    pub region: SharedRegion,
}

#[async_trait::async_trait]
impl ChannelResolver for TrackedChannels {
    async fn get_worker_client_for_url(&self, url: &Url) -> DfResult<Box<dyn WorkerChannel>> {
        let executor = lock(&self.region).executors.iter().find(|(_, u)| u == url).map(|(number, _)| *number);
        let inner = self.channels.get_worker_client_for_url(url).await.inspect_err(|_| {
            if let Ok(address) = address_of(url) {
                self.channels.forget(&address);
            }
        })?;
        Ok(Box::new(TrackedChannel {
            inner,
            executor,
            job: lock(&self.region).job,
            board: self.board.clone(),
        }))
    }
}

struct TrackedChannel {
    inner: Box<dyn WorkerChannel>,
    executor: Option<u32>,
    job: u32,
    board: ProgressBoard,
}

#[async_trait::async_trait]
impl WorkerChannel for TrackedChannel {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        request: SetPlanRequest,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> DfResult<BoxStream<'static, DfResult<WorkerToCoordinatorMsg>>> {
        let key = request.task_key;
        let answers = self.inner.coordinator_channel(headers, request, messages, metrics, context).await?;
        // In a region of streamed stages all tasks run until the region ends: the stream of answers may end long before.
        self.board.task_changed(self.job, key, TaskState::Running, self.executor);
        Ok(answers)
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> DfResult<Vec<BoxStream<'static, DfResult<RecordBatch>>>> {
        self.inner.execute_task(headers, request, metrics, context).await
    }

    async fn get_worker_info(&mut self, request: GetWorkerInfoRequest) -> DfResult<GetWorkerInfoResponse> {
        self.inner.get_worker_info(request).await
    }
}
