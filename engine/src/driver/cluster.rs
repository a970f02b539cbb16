//! Queries on the application's executors, mode `pipelined`: the whole query is one region of streamed stages, which
//! starts again on what is left or replaced when an executor dies before a row has reached the user.

use crate::driver::fleet::{Executor, Fleet, Readiness};
use crate::driver::link::MasterView;
use crate::driver::progress::ProgressBoard;
use crate::output::OutputError;
use crate::session::{self, option_header};
use crate::settings::{Compression, MIN_TARGET_PARTITIONS, Settings};
use crate::sql::plan::{keep_work_off_the_driver, stages};
use crate::sql::run::{Backend, Output, RunError, friendly, show_plan};
use crate::sql::write::{self, Staged};
use crate::transport::{ApplicationChannels, address_of};
use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionContext;
use datafusion_distributed::{
    ChannelResolver, CompressionType, CoordinatorToWorkerMsg, DistributedExec, DistributedExt,
    DistributedMetricsFormat, ExecuteTaskRequest, GetWorkerInfoRequest, GetWorkerInfoResponse,
    NetworkBoundaryExt, RouteTasksEvent, RouteTasksEventResponse, SessionStateBuilderExt, SetPlanRequest,
    Stage, WorkerChannel, WorkerResolver, WorkerToCoordinatorMsg, explain_analyze,
};
use firesteel_proto::v1::TaskState;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use http::HeaderMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use url::Url;

/// An executor that answers no probe within this is taken for dead.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Measurements follow the last row at once; those of an executor that died never come.
const METRICS_TIMEOUT: Duration = Duration::from_secs(20);

/// The executors that the running query uses, shared with the planner's hooks.
#[derive(Debug, Default)]
struct Current {
    /// One URL per executor that a plan may count on; placeholders while none is up.
    planned: Vec<Url>,
    /// The executors of the running attempt, with their URLs.
    running: Vec<(u32, Url)>,
    /// The statement being run.
    job: u32,
}

type SharedCurrent = Arc<Mutex<Current>>;

fn lock(current: &SharedCurrent) -> std::sync::MutexGuard<'_, Current> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct ClusterBackend {
    settings: Settings,
    channels: ApplicationChannels,
    board: ProgressBoard,
    fleet: Arc<Mutex<Fleet>>,
    view: watch::Receiver<MasterView>,
    current: SharedCurrent,
}

impl ClusterBackend {
    pub fn new(
        settings: Settings,
        channels: ApplicationChannels,
        board: ProgressBoard,
        view: watch::Receiver<MasterView>,
    ) -> Self {
        let patience = Duration::from_secs(settings.executor_wait_secs);
        let fleet = Arc::new(Mutex::new(Fleet::new(Instant::now(), patience)));
        let backend = Self { settings, channels, board, fleet, view, current: SharedCurrent::default() };
        backend.follow_master();
        backend
    }

    /// Keeps the fleet as the master tells it, and dials executors as soon as they are up.
    fn follow_master(&self) {
        let (mut view, fleet, channels) = (self.view.clone(), Arc::clone(&self.fleet), self.channels.clone());
        tokio::spawn(async move {
            loop {
                let news = view.borrow_and_update().clone();
                apply_news(&fleet, news);
                for address in running_addresses(&fleet) {
                    let channels = channels.clone();
                    tokio::spawn(async move { channels.channel(&address).await.map(|_| ()) });
                }
                if view.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// The session in which the script is planned.
    pub fn session(&self, runtime: Arc<RuntimeEnv>) -> DfResult<SessionContext> {
        let config = session::config(&self.settings, MIN_TARGET_PARTITIONS)?;
        let current = Arc::clone(&self.current);
        let channels = TrackedChannels {
            channels: self.channels.clone(),
            board: self.board.clone(),
            current: Arc::clone(&self.current),
        };
        let state = SessionStateBuilder::new()
            .with_default_features()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_distributed_worker_resolver(PlannedExecutors(Arc::clone(&self.current)))
            .with_distributed_channel_resolver(channels)
            .with_distributed_route_tasks_handler(move |event: RouteTasksEvent| route(&current, &event))
            .with_distributed_metrics_collection(false)?
            .with_distributed_file_scan_config_bytes_per_partition(self.settings.scan_bytes_per_partition)?
            .with_distributed_planner()
            .build();
        Ok(SessionContext::new_with_state(state))
    }

    fn fleet(&self) -> std::sync::MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session's state for one attempt: the executors' cores and distance, and the options they shall run with.
    fn attempt_state(&self, ctx: &SessionContext, executors: &[Executor]) -> DfResult<SessionState> {
        let mut state = ctx.state();
        let compression = match self.settings.compression {
            Compression::Lz4 => Some(CompressionType::LZ4_FRAME),
            Compression::Zstd => Some(CompressionType::ZSTD),
            Compression::None => None,
            Compression::Auto => {
                let one_machine = executors.windows(2).all(|pair| pair[0].host == pair[1].host);
                (!one_machine).then_some(CompressionType::LZ4_FRAME)
            }
        };
        let config = state.config_mut();
        config.set_distributed_compression(compression)?;
        let headers = option_header::encode(config.options())?;
        config.set_distributed_passthrough_headers(headers)?;
        Ok(state)
    }

    /// Plans for the executors that are granted or, before that, asked for.
    async fn plan(&self, state: &SessionState, query: &LogicalPlan, executors: usize) -> DfResult<Staged> {
        lock(&self.current).planned = (0..executors.max(1)).map(placeholder).collect::<Result<_, _>>()?;
        let mut staged = write::stage(state.create_physical_plan(query).await?)?;
        staged.plan = keep_work_off_the_driver(staged.plan, false)?;
        Ok(staged)
    }

    /// What follows runs on these executors.
    fn use_executors(&self, job: u32, executors: &[Executor]) -> DfResult<()> {
        let running = executors
            .iter()
            .map(|e| Ok((e.number, Url::parse(&format!("http://{}", e.address))?)))
            .collect::<Result<Vec<_>, url::ParseError>>()
            .map_err(|e| DataFusionError::External(Box::new(e)))?;
        let mut current = lock(&self.current);
        current.job = job;
        current.planned = running.iter().map(|(_, url): &(u32, Url)| url.clone()).collect();
        current.running = running;
        Ok(())
    }

    /// Waits until a query may start.
    async fn ready(&self) -> Result<Vec<Executor>, RunError> {
        let mut view = self.view.clone();
        loop {
            apply_news(&self.fleet, view.borrow_and_update().clone());
            let readiness = self.fleet().readiness(Instant::now());
            let wait = match readiness {
                Readiness::Ready(executors) => return Ok(executors),
                Readiness::GaveUp(why) => return Err(RunError::NoExecutors(why)),
                Readiness::Wait(wait) => wait,
            };
            let changed = async {
                if view.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            match wait {
                None => changed.await,
                Some(wait) => {
                    let _ = tokio::time::timeout(wait, changed).await;
                }
            }
        }
    }

    /// After a failure: which of the attempt's executors are gone? Those are not used again.
    async fn bury_the_dead(&self, executors: &[Executor]) -> usize {
        let probes = executors.iter().map(|executor| async move {
            let alive = async {
                self.channels.forget(&executor.address);
                let channel = self.channels.channel(&executor.address).await?;
                let mut client = datafusion_distributed::grpc::create_worker_client(channel);
                client.get_worker_info(GetWorkerInfoRequest {}).await
            };
            let alive = matches!(tokio::time::timeout(PROBE_TIMEOUT, alive).await, Ok(Ok(_)));
            (!alive).then_some(executor.number)
        });
        let dead: Vec<u32> = futures::future::join_all(probes).await.into_iter().flatten().collect();
        for number in &dead {
            tracing::warn!("lost executor {number}");
            self.fleet().suspect(*number, Instant::now());
        }
        dead.len()
    }

    /// One attempt at a query. Rows wait in `held` until they are too many or the query has ended.
    async fn attempt(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        context: Arc<TaskContext>,
        job: u32,
        sink: &mut (dyn FnMut(Output) -> Result<(), OutputError> + Send),
        emitted: &mut bool,
    ) -> Result<(), RunError> {
        let schema = plan.schema();
        let mut batches = execute_stream(plan, context)?;
        let (mut held, mut held_bytes, mut rows): (Vec<RecordBatch>, u64, u64) = (Vec::new(), 0, 0);
        let mut emit = |held: &mut Vec<RecordBatch>, emitted: &mut bool| -> Result<(), RunError> {
            if !*emitted {
                sink(Output::Schema(Arc::clone(&schema)))?;
                *emitted = true;
            }
            for batch in held.drain(..) {
                sink(Output::Batch(batch))?;
            }
            Ok(())
        };
        while let Some(batch) = batches.try_next().await? {
            rows += batch.num_rows() as u64;
            held_bytes += batch.get_array_memory_size() as u64;
            held.push(batch);
            if *emitted || held_bytes > self.settings.result_buffer_bytes {
                // Writing may block (a slow terminal, a full pipe): the other tasks of this thread must go on.
                tokio::task::block_in_place(|| emit(&mut held, emitted))?;
                self.board.rows_so_far(job, rows);
            }
        }
        tokio::task::block_in_place(|| emit(&mut held, emitted))
    }
}

impl Backend for ClusterBackend {
    async fn query(
        &self,
        ctx: &SessionContext,
        query: &LogicalPlan,
        job: u32,
        sink: &mut (dyn FnMut(Output) -> Result<(), OutputError> + Send),
    ) -> Result<(), RunError> {
        let mut restarts = 0;
        let mut emitted = false;
        loop {
            // The first plan is made while the executors still start.
            let expected = self.fleet().planned();
            let planning_state = self.attempt_state(ctx, &[])?;
            let mut staged = self.plan(&planning_state, query, expected).await?;
            let local = stages(&staged.plan)?.is_empty();
            let (state, executors) = match local {
                true => (planning_state, Vec::new()),
                false => {
                    let executors = self.ready().await?;
                    let state = self.attempt_state(ctx, &executors)?;
                    let cores = executors.iter().map(|e| e.resources.cores as usize).max().unwrap_or(1);
                    let partitions = state.config().target_partitions();
                    if executors.len() != expected || cores > partitions {
                        let wide = state_with_partitions(state, cores.max(partitions));
                        staged = self.plan(&wide, query, executors.len()).await?;
                        (wide, executors)
                    } else {
                        (state, executors)
                    }
                }
            };
            self.board.stages_planned(job, &stages(&staged.plan)?, restarts);
            self.use_executors(job, &executors)?;
            let outcome =
                self.attempt(Arc::clone(&staged.plan), state.task_ctx(), job, sink, &mut emitted).await;
            let error = match outcome {
                Ok(()) => {
                    staged.commit(&state).await?;
                    return Ok(());
                }
                Err(error) => error,
            };
            staged.abandon(&state).await;
            let RunError::DataFusion(cause) = &error else { return Err(error) };
            if executors.is_empty() || self.bury_the_dead(&executors).await == 0 {
                return Err(error);
            }
            let cause = friendly(cause);
            if emitted {
                return Err(RunError::LostAfterRows(cause));
            }
            if restarts >= self.settings.max_restarts {
                return Err(RunError::TooManyRestarts { restarts, last: cause });
            }
            restarts += 1;
            tracing::warn!("starting the query again ({restarts}): {cause}");
        }
    }

    async fn explain(&self, ctx: &SessionContext, query: &LogicalPlan) -> Result<String, RunError> {
        let state = self.attempt_state(ctx, &[])?;
        let expected = self.fleet().planned();
        Ok(show_plan(self.plan(&state, query, expected).await?.plan.as_ref()))
    }

    async fn analyze(
        &self,
        ctx: &SessionContext,
        query: &LogicalPlan,
        job: u32,
    ) -> Result<Option<String>, RunError> {
        let executors = self.ready().await?;
        let mut state = self.attempt_state(ctx, &executors)?;
        state.config_mut().set_distributed_metrics_collection(true)?;
        lock(&self.current).planned = (0..executors.len()).map(placeholder).collect::<Result<_, _>>()?;
        let plan = keep_work_off_the_driver(state.create_physical_plan(query).await?, true)?;
        self.board.stages_planned(job, &stages(&plan)?, 0);
        self.use_executors(job, &executors)?;
        let mut batches = execute_stream(Arc::clone(&plan), state.task_ctx())?;
        while batches.try_next().await?.is_some() {}
        drop(batches);
        if !plan.is::<DistributedExec>() {
            return Ok(Some(show_plan(plan.as_ref())));
        }
        // A lost report must not hang the statement.
        let measured = explain_analyze(plan, DistributedMetricsFormat::Aggregated);
        match tokio::time::timeout(METRICS_TIMEOUT, measured).await {
            Ok(measured) => Ok(Some(measured?.trim_end().to_owned())),
            Err(_) => Err(RunError::Unsupported("an executor did not report what it measured".to_owned())),
        }
    }

    fn job_started(&self, job: u32) {
        self.board.job_started(job);
    }

    fn job_ended(&self, job: u32, rows: u64, error: Option<&str>) {
        self.board.job_ended(job, rows, error);
    }
}

fn state_with_partitions(mut state: SessionState, partitions: usize) -> SessionState {
    state.config_mut().options_mut().execution.target_partitions = partitions;
    state
}

fn apply_news(fleet: &Mutex<Fleet>, news: MasterView) {
    if let Some(executors) = news.executors {
        let mut fleet = fleet.lock().unwrap_or_else(PoisonError::into_inner);
        fleet.update(executors, news.target, news.waiting_reason, Instant::now());
    }
}

fn running_addresses(fleet: &Mutex<Fleet>) -> Vec<String> {
    let fleet = fleet.lock().unwrap_or_else(PoisonError::into_inner);
    fleet.running().map(|executor| executor.address.clone()).collect()
}

/// Stands for an executor in a plan that is made before there is one.
fn placeholder(index: usize) -> DfResult<Url> {
    Url::parse(&format!("http://executor-{index}")).map_err(|e| DataFusionError::External(Box::new(e)))
}

/// How many executors the planner may count on.
struct PlannedExecutors(SharedCurrent);

impl WorkerResolver for PlannedExecutors {
    fn get_urls(&self) -> DfResult<Vec<Url>> {
        Ok(lock(&self.0).planned.clone())
    }
}

/// Task i of a stage runs on executor i, round and round: partners of a shuffle meet on the same machine as often as
/// can be. A stage of one task runs beside an input that is one task, too; the others take turns by statement.
fn route(current: &SharedCurrent, event: &RouteTasksEvent) -> Option<DfResult<RouteTasksEventResponse>> {
    let current = lock(current);
    let executors = &current.running;
    if executors.is_empty() {
        return Some(Err(DataFusionError::Execution("no executor is running".to_owned())));
    }
    if event.task_count == 1
        && let Some(beside) = lone_input(event.plan)
    {
        return Some(Ok(RouteTasksEventResponse::new(vec![beside])));
    }
    let offset = if event.task_count == 1 { current.job as usize } else { 0 };
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
struct TrackedChannels {
    channels: ApplicationChannels,
    board: ProgressBoard,
    current: SharedCurrent,
}

#[async_trait::async_trait]
impl ChannelResolver for TrackedChannels {
    async fn get_worker_client_for_url(&self, url: &Url) -> DfResult<Box<dyn WorkerChannel>> {
        let executor = lock(&self.current).running.iter().find(|(_, u)| u == url).map(|(number, _)| *number);
        let inner = self.channels.get_worker_client_for_url(url).await.inspect_err(|_| {
            if let Ok(address) = address_of(url) {
                self.channels.forget(&address);
            }
        })?;
        Ok(Box::new(TrackedChannel {
            inner,
            executor,
            job: lock(&self.current).job,
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
