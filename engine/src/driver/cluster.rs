//! Queries on the application's executors: which mode a query runs in, its plan, and its runs.

use crate::driver::fleet::{Executor, Fleet, Readiness};
use crate::driver::jobs::{Command, Jobs, StagedQuery, VirtualUrls, graph};
use crate::driver::link::MasterView;
use crate::driver::mode::{self, Choice};
use crate::driver::pipelined::{SharedRegion, TrackedChannels, route};
use crate::driver::progress::ProgressBoard;
use crate::output::OutputError;
use crate::session::{self, option_header};
use crate::settings::{Compression, MIN_TARGET_PARTITIONS, Mode, Settings};
use crate::shuffle::{OutputReader, ShuffleError, find_shuffle_error};
use crate::sql::limits::LimitBelowBroadcast;
use crate::sql::plan::{keep_work_off_the_driver, stages};
use crate::sql::run::{Backend, Output, RunError, friendly, show_plan};
use crate::sql::scan;
use crate::sql::write::{self, Staged};
use crate::transport::ApplicationChannels;
use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{ExecutionPlan, Partitioning, execute_stream};
use datafusion::prelude::SessionContext;
use datafusion_distributed::{
    CompressionType, DesiredTaskCountEvent, DesiredTaskCountEventResponse, DistributedExec, DistributedExt,
    DistributedMetricsFormat, GetWorkerInfoRequest, RouteTasksEvent, SessionStateBuilderExt, WorkerResolver,
    explain_analyze,
};
use firesteel_common::ApplicationId;
use firesteel_engine_core::{JobError, JobErrorKind, Policy, Speculation};
use futures::TryStreamExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use url::Url;

/// An executor that answers no probe within this is taken for dead.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Measurements follow the last row at once; those of an executor that died never come.
const METRICS_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of files per partition of a pipelined scan: it is spread over more executors the smaller this is.
const PIPELINED_SCAN_BYTES: usize = 16 << 20;
/// All jobs of a script belong to one pool.
const POOL: &str = "default";

/// What the planner's hooks are told about the plan being made or run.
#[derive(Debug, Default)]
struct Current {
    /// One URL per task that a stage may have.
    planned: Vec<Url>,
    /// Set while a query runs in stages: its tasks have no place yet.
    staged: Option<Arc<VirtualUrls>>,
}

type SharedCurrent = Arc<Mutex<Current>>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct ClusterBackend {
    settings: Settings,
    channels: ApplicationChannels,
    board: ProgressBoard,
    fleet: Arc<Mutex<Fleet>>,
    view: watch::Receiver<MasterView>,
    jobs: Jobs,
    reader: OutputReader,
    current: SharedCurrent,
    region: SharedRegion,
}

/// Takes a query's rows.
type Sink<'a> = &'a mut (dyn FnMut(Output) -> Result<(), OutputError> + Send);

impl ClusterBackend {
    pub fn new(
        application: &ApplicationId,
        settings: Settings,
        channels: ApplicationChannels,
        board: ProgressBoard,
        view: watch::Receiver<MasterView>,
    ) -> Self {
        let patience = Duration::from_secs(settings.executor_wait_secs);
        let policy = Policy {
            task_attempts_max: settings.task_attempts_max,
            speculation: settings.speculation.then(Speculation::default),
            ..Policy::default()
        };
        let backend = Self {
            fleet: Arc::new(Mutex::new(Fleet::new(Instant::now(), patience))),
            jobs: Jobs::start(
                application.clone(),
                policy,
                channels.clone(),
                board.clone(),
                settings.inline_bytes_max,
            ),
            reader: OutputReader::new(application.clone(), channels.clone(), None),
            settings,
            channels,
            board,
            view,
            current: SharedCurrent::default(),
            region: SharedRegion::default(),
        };
        backend.follow_master();
        backend
    }

    /// Keeps the fleet as the master tells it, and dials executors as soon as they are up.
    fn follow_master(&self) {
        let (mut view, fleet, channels) = (self.view.clone(), Arc::clone(&self.fleet), self.channels.clone());
        let jobs = self.jobs.clone();
        tokio::spawn(async move {
            loop {
                let news = view.borrow_and_update().clone();
                let hosts = news.hosts.clone();
                apply_news(&fleet, news);
                let executors = running(&fleet);
                for address in executors.iter().map(|e| e.address.clone()) {
                    let channels = channels.clone();
                    tokio::spawn(async move { channels.channel(&address).await.map(|_| ()) });
                }
                jobs.send(Command::Fleet { executors, hosts });
                if view.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// The session in which the script is planned.
    pub fn session(&self, runtime: Arc<RuntimeEnv>) -> DfResult<SessionContext> {
        let config = session::config(&self.settings, MIN_TARGET_PARTITIONS)?;
        let (current, region) = (Arc::clone(&self.current), Arc::clone(&self.region));
        let channels = TrackedChannels {
            channels: self.channels.clone(),
            board: self.board.clone(),
            region: Arc::clone(&self.region),
        };
        let builder =
            SessionStateBuilder::new().with_default_features().with_config(config).with_runtime_env(runtime);
        let builder = builder.with_physical_optimizer_rule(Arc::new(LimitBelowBroadcast));
        let state = session::with_functions(builder, self.settings.test_functions)
            .with_distributed_worker_resolver(PlannedTasks(Arc::clone(&self.current)))
            .with_distributed_channel_resolver(channels)
            .with_distributed_route_tasks_handler(move |event: RouteTasksEvent| {
                let staged = lock(&current).staged.clone();
                match staged {
                    Some(urls) => Some(urls.route(&event)),
                    None => route(&region, &event),
                }
            })
            .with_distributed_scale_up_leaf_node_handler(scan::spread)
            .with_distributed_metrics_collection(false)?
            .with_distributed_file_scan_config_bytes_per_partition(
                self.settings.scan_bytes_per_partition.unwrap_or(PIPELINED_SCAN_BYTES),
            )?
            .with_distributed_planner()
            .build();
        Ok(SessionContext::new_with_state(state))
    }

    fn fleet(&self) -> std::sync::MutexGuard<'_, Fleet> {
        lock(&self.fleet)
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
        let cores = executors.iter().map(|e| e.resources.cores as usize).max().unwrap_or(1);
        let config = state.config_mut();
        let partitions = config.target_partitions().max(cores);
        config.options_mut().execution.target_partitions = partitions;
        config.set_distributed_compression(compression)?;
        let headers = option_header::encode(config.options())?;
        config.set_distributed_passthrough_headers(headers)?;
        Ok(state)
    }

    /// Plans with up to `tasks` tasks per stage.
    async fn plan(&self, state: &SessionState, query: &LogicalPlan, tasks: usize) -> DfResult<Staged> {
        {
            let mut current = lock(&self.current);
            current.planned = (0..tasks.max(1)).map(placeholder).collect::<Result<_, _>>()?;
            current.staged = None;
        }
        let mut staged = write::stage(state.create_physical_plan(query).await?)?;
        staged.plan = keep_work_off_the_driver(staged.plan, false)?;
        Ok(staged)
    }

    /// What follows runs pipelined on these executors.
    fn use_executors(&self, job: u32, executors: &[Executor]) -> DfResult<()> {
        let urls = executors
            .iter()
            .map(|e| Ok((e.number, Url::parse(&format!("http://{}", e.address))?)))
            .collect::<Result<Vec<_>, url::ParseError>>()
            .map_err(|e| DataFusionError::External(Box::new(e)))?;
        lock(&self.current).staged = None;
        let mut region = lock(&self.region);
        region.job = job;
        region.executors = urls;
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
            news(&mut view, wait).await;
        }
    }

    /// Ends when there have been no executors for too long.
    async fn starved(&self) -> RunError {
        let mut view = self.view.clone();
        loop {
            apply_news(&self.fleet, view.borrow_and_update().clone());
            let readiness = self.fleet().readiness(Instant::now());
            let wait = match readiness {
                Readiness::GaveUp(why) => return RunError::NoExecutors(why),
                Readiness::Ready(_) => None,
                Readiness::Wait(wait) => wait,
            };
            news(&mut view, wait).await;
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
        sink: Sink<'_>,
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

    /// Runs the query pipelined, again when executors die before a row has left. `first` is a plan for `planned_for`
    /// executors, made while they still start.
    async fn run_pipelined(
        &self,
        ctx: &SessionContext,
        query: &LogicalPlan,
        job: u32,
        first: Planned,
        sink: Sink<'_>,
        emitted: &mut bool,
    ) -> Result<(), RunError> {
        let mut restarts = 0;
        let mut first = Some(first);
        loop {
            let executors = self.ready().await?;
            let planned = match first.take() {
                Some(first) if first.fits(&executors) => first,
                _ => {
                    let state = self.attempt_state(ctx, &executors)?;
                    let staged = self.plan(&state, query, executors.len()).await?;
                    Planned { state, staged, tasks: executors.len() }
                }
            };
            // The executors' distance is known only now.
            let state = self.attempt_state(ctx, &executors)?;
            let Planned { staged, .. } = planned;
            self.board.stages_planned(job, &stages(&staged.plan)?, restarts);
            self.use_executors(job, &executors)?;
            let outcome = self.attempt(Arc::clone(&staged.plan), state.task_ctx(), job, sink, emitted).await;
            let error = match outcome {
                Ok(()) => return Ok(staged.commit(&state, None).await?),
                Err(error) => error,
            };
            staged.abandon(&state).await;
            let RunError::DataFusion(cause) = &error else { return Err(error) };
            if self.bury_the_dead(&executors).await == 0 {
                return Err(error);
            }
            let cause = friendly(cause);
            if *emitted {
                return Err(RunError::LostAfterRows(cause));
            }
            if restarts >= self.settings.max_restarts {
                return Err(RunError::TooManyRestarts { restarts, last: cause });
            }
            restarts += 1;
            tracing::warn!("starting the query again ({restarts}): {cause}");
        }
    }

    /// Runs the query in stages. What is lost is made again without this noticing; only a result that was lost after a part
    /// of it had been read starts the query again.
    async fn run_staged(
        &self,
        ctx: &SessionContext,
        query: &LogicalPlan,
        job: u32,
        sink: Sink<'_>,
        emitted: &mut bool,
    ) -> Result<(), RunError> {
        let mut restarts = 0;
        loop {
            let executors = self.ready().await?;
            let mut state = self.attempt_state(ctx, &executors)?;
            let slots = executors.iter().map(|e| e.resources.cores.max(1) as usize).sum::<usize>();
            let staged = self.plan_staged(&mut state, query, slots).await?;
            self.board.stages_planned(job, &stages(&staged.plan)?, restarts);
            let graph = graph(&staged.plan)?;
            let run = StagedQuery::new(&self.jobs, POOL, graph, self.reader.clone(), false);
            self.jobs.send(Command::Watch { job: run.job(), statement: job });
            state.config_mut().set_distributed_channel_resolver(run.clone());
            lock(&self.current).staged = Some(Arc::default());
            let outcome = tokio::select! {
                outcome = self.attempt(Arc::clone(&staged.plan), state.task_ctx(), job, sink, emitted) => outcome,
                starved = self.starved() => Err(starved),
            };
            let error = match outcome {
                Ok(()) => {
                    let attempts = run.result_attempts();
                    run.conclude().await;
                    return Ok(staged.commit(&state, Some(&attempts)).await?);
                }
                Err(error) => error,
            };
            run.conclude().await;
            staged.abandon(&state).await;
            let RunError::DataFusion(cause) = &error else { return Err(error) };
            let failed = find_job_error(cause).cloned();
            // Rows that are still held back can be had again.
            let restarts_help = match &failed {
                Some(failed) => failed.kind == JobErrorKind::Delivered && !*emitted,
                None => matches!(find_shuffle_error(cause), Some(ShuffleError::Lost { .. })),
            };
            if !restarts_help {
                return Err(match failed {
                    Some(failed) => RunError::Job(Box::new(failed)),
                    None => error,
                });
            }
            let cause = friendly(cause);
            if *emitted {
                return Err(RunError::LostAfterRows(cause));
            }
            if restarts >= self.settings.max_restarts {
                return Err(RunError::TooManyRestarts { restarts, last: cause });
            }
            restarts += 1;
            tracing::warn!("starting the query again ({restarts}): {cause}");
        }
    }

    /// A plan with as many tasks per stage as its input is worth, and at least one per slot.
    async fn plan_staged(
        &self,
        state: &mut SessionState,
        query: &LogicalPlan,
        slots: usize,
    ) -> DfResult<Staged> {
        let first = self.plan(state, query, slots).await?;
        let tasks = self.staged_tasks(state, &first.plan, slots)?;
        self.plan(state, query, tasks).await
    }

    /// How many tasks a stage of `plan` may have when it runs in stages, and sets how much each scans.
    fn staged_tasks(
        &self,
        state: &mut SessionState,
        plan: &Arc<dyn ExecutionPlan>,
        slots: usize,
    ) -> DfResult<usize> {
        let partitions = state.config().target_partitions().max(1);
        let partition_bytes = self.settings.scan_bytes_per_partition;
        let partition_bytes = partition_bytes.unwrap_or(self.settings.task_bytes / partitions).max(1);
        state.config_mut().set_distributed_file_scan_config_bytes_per_partition(partition_bytes)?;
        // Readers times producers is what a shuffle costs: more readers than that do not pay.
        let readers = self.settings.shuffle_tasks_max.max(slots);
        state.config_mut().set_distributed_desired_task_count_handler(move |event: DesiredTaskCountEvent| {
            reads_shuffle(event.plan).then(|| Ok(DesiredTaskCountEventResponse::maximum(readers)))
        });
        let task_bytes = partition_bytes.saturating_mul(partitions) as u64;
        let wanted = mode::scanned_bytes(plan)?.div_ceil(task_bytes) as usize;
        // Whole waves: no slot is idle while the last tasks run.
        let slots = slots.max(1);
        Ok((wanted.div_ceil(slots) * slots).clamp(slots, self.settings.stage_tasks_max.max(slots)))
    }

    /// A plan whose operators report what they measure.
    async fn plan_measured(
        &self,
        state: &SessionState,
        query: &LogicalPlan,
        tasks: usize,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        {
            let mut current = lock(&self.current);
            current.planned = (0..tasks.max(1)).map(placeholder).collect::<Result<_, _>>()?;
            current.staged = None;
        }
        keep_work_off_the_driver(state.create_physical_plan(query).await?, true)
    }
}

/// A plan and what it was made for.
struct Planned {
    state: SessionState,
    staged: Staged,
    tasks: usize,
}

impl Planned {
    fn fits(&self, executors: &[Executor]) -> bool {
        let cores = executors.iter().map(|e| e.resources.cores as usize).max().unwrap_or(1);
        executors.len() == self.tasks && cores <= self.state.config().target_partitions()
    }
}

impl Backend for ClusterBackend {
    async fn query(
        &self,
        ctx: &SessionContext,
        query: &LogicalPlan,
        job: u32,
        sink: Sink<'_>,
    ) -> Result<(), RunError> {
        let mut emitted = false;
        // The first plan is made while the executors still start.
        let (tasks, memory) = self.expected();
        let state = self.attempt_state(ctx, &[])?;
        let staged = self.plan(&state, query, tasks).await?;
        if stages(&staged.plan)?.is_empty() {
            self.board.stages_planned(job, &[], 0);
            self.attempt(Arc::clone(&staged.plan), state.task_ctx(), job, sink, &mut emitted).await?;
            return Ok(staged.commit(&state, None).await?);
        }
        let choice = Choice::of(&self.settings, &staged.plan, tasks, memory)?;
        self.board.mode_chosen(job, choice.to_string());
        if choice.mode == Mode::Staged {
            return self.run_staged(ctx, query, job, sink, &mut emitted).await;
        }
        let first = Planned { state, staged, tasks };
        match self.run_pipelined(ctx, query, job, first, sink, &mut emitted).await {
            Err(RunError::DataFusion(error))
                if self.settings.mode == Mode::Auto && !emitted && mode::is_out_of_memory(&error) =>
            {
                tracing::warn!(
                    "the query does not fit into memory at once, so it runs in stages: {}",
                    friendly(&error)
                );
                self.run_staged(ctx, query, job, sink, &mut emitted).await
            }
            outcome => outcome,
        }
    }

    async fn explain(&self, ctx: &SessionContext, query: &LogicalPlan) -> Result<String, RunError> {
        let (tasks, memory) = self.expected();
        let mut state = self.attempt_state(ctx, &[])?;
        let mut plan = self.plan(&state, query, tasks).await?.plan;
        if stages(&plan)?.is_empty() {
            return Ok(show_plan(plan.as_ref()));
        }
        let choice = Choice::of(&self.settings, &plan, tasks, memory)?;
        if choice.mode == Mode::Staged {
            plan = self.plan_staged(&mut state, query, tasks).await?.plan;
        }
        Ok(format!("mode: {choice}\n{}", show_plan(plan.as_ref())))
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
        let mut plan = self.plan_measured(&state, query, executors.len()).await?;
        let (_, memory) = self.expected();
        let choice = match query {
            // What it writes is meant to stay; only a query that is not measured moves it into place at its end.
            LogicalPlan::Copy(_) | LogicalPlan::Dml(_) => Choice::for_measured_write(),
            _ => Choice::of(&self.settings, &plan, executors.len(), memory)?,
        };
        let mut run = None;
        if choice.mode == Mode::Staged && !stages(&plan)?.is_empty() {
            let slots = executors.iter().map(|e| e.resources.cores.max(1) as usize).sum::<usize>();
            let tasks = self.staged_tasks(&mut state, &plan, slots)?;
            plan = self.plan_measured(&state, query, tasks).await?;
            let staged = StagedQuery::new(&self.jobs, POOL, graph(&plan)?, self.reader.clone(), true);
            self.jobs.send(Command::Watch { job: staged.job(), statement: job });
            state.config_mut().set_distributed_channel_resolver(staged.clone());
            lock(&self.current).staged = Some(Arc::default());
            run = Some(staged);
        } else {
            self.use_executors(job, &executors)?;
        }
        self.board.mode_chosen(job, choice.to_string());
        self.board.stages_planned(job, &stages(&plan)?, 0);
        let mut batches = execute_stream(Arc::clone(&plan), state.task_ctx())?;
        let drained = async {
            while batches.try_next().await?.is_some() {}
            Ok(())
        };
        let outcome = tokio::select! {
            outcome = drained => outcome,
            starved = self.starved() => Err(starved),
        };
        drop(batches);
        if let Some(run) = run {
            run.conclude().await;
        }
        outcome?;
        if !plan.is::<DistributedExec>() {
            return Ok(Some(show_plan(plan.as_ref())));
        }
        // A lost report must not hang the statement.
        let measured = explain_analyze(plan, DistributedMetricsFormat::Aggregated);
        match tokio::time::timeout(METRICS_TIMEOUT, measured).await {
            Ok(measured) => Ok(Some(format!("mode: {choice}\n{}", measured?.trim_end()))),
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

impl ClusterBackend {
    /// How many executors to count on, and their memory for operators; `None` while none has been granted.
    fn expected(&self) -> (usize, Option<u64>) {
        let fleet = self.fleet();
        let memory: u64 = fleet.running().map(|e| e.resources.memory_mib << 20).sum();
        let memory = (memory as f64 * self.settings.memory_fraction) as u64;
        (fleet.planned(), (memory > 0).then_some(memory))
    }
}

/// Whether a shuffle ends right below the operator.
fn reads_shuffle(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.children().into_iter().any(|child| {
        child
            .downcast_ref::<RepartitionExec>()
            .is_some_and(|repartition| matches!(repartition.partitioning(), Partitioning::Hash(..)))
    })
}

/// The scheduler's verdict under DataFusion's layers.
fn find_job_error(error: &DataFusionError) -> Option<&JobError> {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => find_job_error(inner),
        DataFusionError::Shared(inner) => find_job_error(inner),
        DataFusionError::External(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => find_job_error(inner),
            None => inner.downcast_ref::<JobError>(),
        },
        _ => None,
    }
}

/// Waits for the master's next word, at most so long.
async fn news(view: &mut watch::Receiver<MasterView>, wait: Option<Duration>) {
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

fn apply_news(fleet: &Mutex<Fleet>, news: MasterView) {
    if let Some(executors) = news.executors {
        lock(fleet).update(executors, news.target, news.waiting_reason, Instant::now());
    }
}

fn running(fleet: &Mutex<Fleet>) -> Vec<Executor> {
    lock(fleet).running().cloned().collect()
}

/// Stands for an executor, or a task's place, in a plan that is made before there is one.
fn placeholder(index: usize) -> DfResult<Url> {
    Url::parse(&format!("http://executor-{index}")).map_err(|e| DataFusionError::External(Box::new(e)))
}

/// How many tasks per stage the planner may count on.
struct PlannedTasks(SharedCurrent);

impl WorkerResolver for PlannedTasks {
    fn get_urls(&self) -> DfResult<Vec<Url>> {
        Ok(lock(&self.0).planned.clone())
    }
}
