//! One run of a query in stages: takes the fragments that the planner's coordinator hands out, and is the driver's end of
//! the result.

use crate::driver::jobs::graph::Graph;
use crate::driver::jobs::runner::{Command, Jobs};
use crate::shuffle::{OutputReader, ShuffleError, Source, find_shuffle_error};
use crate::tasks::decode_metrics;
use arrow::array::RecordBatch;
use datafusion::common::{internal_err, not_impl_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest, GetWorkerInfoResponse,
    MaybeEncoded, RouteTasksEvent, RouteTasksEventResponse, SetPlanRequest, TaskKey, TaskMetrics,
    WorkerChannel, WorkerToCoordinatorMsg,
};
use firesteel_common::shuffle::OutputId;
use firesteel_engine_core::{AttemptId, JobError, JobId, StageId, TaskId};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::HeaderMap;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, watch};
use url::Url;

/// Names tasks by their place in the plan, not by where they run: nobody knows that yet.
#[derive(Debug, Default)]
pub struct VirtualUrls {
    stages: std::sync::atomic::AtomicU64,
}

impl VirtualUrls {
    pub fn route(&self, event: &RouteTasksEvent) -> Result<RouteTasksEventResponse> {
        let stage = self.stages.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let urls = (0..event.task_count)
            .map(|task| Url::parse(&format!("f://{stage}/{task}")))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| DataFusionError::External(Box::new(e)))?;
        Ok(RouteTasksEventResponse::new(urls))
    }
}

/// A task's fragment, kept until the query ends: each attempt gets it.
pub struct Fragment {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    pub headers: Arc<BTreeMap<String, String>>,
    /// Takes what the task measured; `None` when nobody asked, or it is known already.
    metrics: Mutex<Option<oneshot::Sender<TaskMetrics>>>,
}

impl Fragment {
    pub fn wants_metrics(&self) -> bool {
        lock(&self.metrics).is_some()
    }

    pub fn measured(&self, encoded: &[u8]) {
        match decode_metrics(encoded) {
            Ok(metrics) => {
                if let Some(to) = lock(&self.metrics).take() {
                    let _ = to.send(metrics);
                }
            }
            Err(error) => tracing::warn!("an executor's measurements are not understood: {error}"),
        }
    }

    pub fn encode(&self) -> Result<Vec<u8>> {
        MaybeEncoded::Decoded(Arc::clone(&self.plan)).encode(&self.context)
    }
}

/// Where a result partition is read from.
#[derive(Debug, Clone)]
pub enum ResultPlace {
    Inline(Arc<HashMap<u32, bytes::Bytes>>),
    Worker { worker: String, address: String },
}

/// What the runner tells the query.
#[derive(Debug, Clone, Default)]
pub struct News {
    pub results: HashMap<TaskKeyParts, (AttemptId, ResultPlace)>,
    pub failed: Option<JobError>,
}

/// Stage and task.
pub type TaskKeyParts = (u32, u32);

/// A query that is under way. Dropped, it ends its job.
#[derive(Clone)]
pub struct StagedQuery {
    shared: Arc<Shared>,
}

struct Shared {
    job: JobId,
    pool: String,
    graph: Graph,
    measure: bool,
    jobs: Jobs,
    reader: OutputReader,
    fragments: Mutex<Fragments>,
    /// The runner's end, until the job is submitted: what is left then ends with the runner.
    to_news: Mutex<Option<watch::Sender<News>>>,
    news: watch::Receiver<News>,
    /// Result partitions of a task that have not been read to their end.
    unread: Mutex<HashMap<TaskKeyParts, usize>>,
    /// The attempt that a result's rows come from, once there are any: another one may have other rows in each partition.
    chosen: Mutex<HashMap<TaskKeyParts, AttemptId>>,
}

#[derive(Default)]
struct Fragments {
    by_task: HashMap<TaskKeyParts, Arc<Fragment>>,
    headers: Option<Arc<BTreeMap<String, String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.jobs.send(Command::Release(self.job, None));
    }
}

impl StagedQuery {
    /// `measure`: the tasks' measurements are handed to the plan's own collection.
    pub fn new(jobs: &Jobs, pool: &str, graph: Graph, reader: OutputReader, measure: bool) -> Self {
        let (to_news, news) = watch::channel(News::default());
        let shared = Shared {
            job: jobs.next_job(),
            pool: pool.to_owned(),
            graph,
            measure,
            jobs: jobs.clone(),
            reader,
            fragments: Mutex::default(),
            to_news: Mutex::new(Some(to_news)),
            news,
            unread: Mutex::default(),
            chosen: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub fn job(&self) -> JobId {
        self.shared.job
    }

    /// The attempts whose outputs are the result, as tasks name the directories that they write to.
    pub fn result_attempts(&self) -> Vec<String> {
        let news = self.shared.news.borrow();
        news.results.values().map(|(attempt, _)| attempt_name(*attempt)).collect()
    }

    /// Ends the job and waits until its last state is on the progress board.
    pub async fn conclude(self) {
        let (done, concluded) = oneshot::channel();
        self.shared.jobs.send(Command::Release(self.shared.job, Some(done)));
        let _ = concluded.await;
    }

    /// Keeps a fragment; the last one starts the job.
    fn keep(
        &self,
        headers: HeaderMap,
        request: SetPlanRequest,
        context: &Arc<TaskContext>,
    ) -> Result<oneshot::Receiver<TaskMetrics>> {
        let MaybeEncoded::Decoded(plan) = request.plan else { return internal_err!("an encoded fragment") };
        let mut fragments = lock(&self.shared.fragments);
        // The same for all tasks of a query.
        let headers = Arc::clone(fragments.headers.get_or_insert_with(|| Arc::new(header_map(&headers))));
        let key = (request.task_key.stage_id as u32, request.task_key.task_number as u32);
        let (to, metrics) = oneshot::channel();
        let to = Mutex::new(self.shared.measure.then_some(to));
        let fragment = Fragment { plan, context: Arc::clone(context), headers, metrics: to };
        fragments.by_task.insert(key, Arc::new(fragment));
        if fragments.by_task.len() == self.shared.graph.tasks()
            && let Some(news) = lock(&self.shared.to_news).take()
        {
            let graph = self.shared.graph.clone();
            self.shared.jobs.send(Command::Submit {
                spec: graph.staged_job(self.shared.job, &self.shared.pool),
                graph,
                fragments: std::mem::take(&mut fragments.by_task),
                news,
            });
        }
        Ok(metrics)
    }

    /// One partition of a result, from whichever attempt has it. An output that is lost before its first row came is waited
    /// for again.
    fn result(&self, key: TaskKeyParts, partition: usize) -> BoxStream<'static, Result<RecordBatch>> {
        let state = ResultStream {
            query: self.clone(),
            news: self.shared.news.clone(),
            key,
            partition,
            batches: None,
            begun: false,
            not: None,
        };
        stream::unfold(Some(state), |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(Some(batch)) => Some((Ok(batch), Some(state))),
                Ok(None) => {
                    state.query.read_to_end(state.key);
                    None
                }
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    /// Rows of this attempt are the task's result from now on; an error if those of another one are already.
    fn choose(&self, key: TaskKeyParts, attempt: AttemptId) -> Result<()> {
        let mut chosen = lock(&self.shared.chosen);
        let first = *chosen.entry(key).or_insert(attempt);
        if first != attempt {
            let reason = "a part of it was read before it got lost".to_owned();
            let output = self.output(first);
            return Err(ShuffleError::Lost { output, reason }.into());
        }
        Ok(())
    }

    fn output(&self, attempt: AttemptId) -> OutputId {
        let TaskId { stage, task, .. } = attempt.task;
        OutputId { query: self.shared.graph.query, stage: stage.0, task, attempt: attempt.attempt }
    }

    fn read_to_end(&self, key: TaskKeyParts) {
        let mut unread = lock(&self.shared.unread);
        if let Some(left) = unread.get_mut(&key) {
            *left -= 1;
            if *left == 0 {
                self.shared.jobs.send(Command::Delivered(self.task(key)));
            }
        }
    }

    fn task(&self, (stage, task): TaskKeyParts) -> TaskId {
        TaskId { job: self.shared.job, stage: StageId(stage), task }
    }
}

struct ResultStream {
    query: StagedQuery,
    news: watch::Receiver<News>,
    key: TaskKeyParts,
    partition: usize,
    batches: Option<(AttemptId, BoxStream<'static, Result<RecordBatch>>)>,
    begun: bool,
    /// The attempt whose output turned out to be lost.
    not: Option<AttemptId>,
}

impl ResultStream {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some((attempt, batches)) = &mut self.batches else {
                self.batches = Some(self.ready().await?);
                continue;
            };
            match batches.next().await {
                None => {
                    self.query.choose(self.key, *attempt)?;
                    return Ok(None);
                }
                Some(Ok(batch)) => {
                    if !self.begun {
                        self.query.choose(self.key, *attempt)?;
                        self.begun = true;
                    }
                    return Ok(Some(batch));
                }
                Some(Err(error)) => {
                    let lost = matches!(find_shuffle_error(&error), Some(ShuffleError::Lost { .. }));
                    if !lost || self.begun {
                        return Err(error);
                    }
                    let attempt = *attempt;
                    self.not = Some(attempt);
                    self.batches = None;
                    let message = crate::sql::run::friendly(&error);
                    self.query.shared.jobs.send(Command::ResultLost { attempt, message });
                }
            }
        }
    }

    async fn ready(&mut self) -> Result<(AttemptId, BoxStream<'static, Result<RecordBatch>>)> {
        loop {
            {
                let news = self.news.borrow_and_update();
                if let Some(error) = &news.failed {
                    return Err(DataFusionError::External(Box::new(error.clone())));
                }
                if let Some((attempt, place)) = news.results.get(&self.key)
                    && self.not != Some(*attempt)
                {
                    let shared = &self.query.shared;
                    let output = self.query.output(*attempt);
                    let source = match place {
                        ResultPlace::Inline(parts) => {
                            Source::Inline(parts.get(&(self.partition as u32)).cloned().unwrap_or_default())
                        }
                        ResultPlace::Worker { worker, address } => {
                            Source::Worker { worker: worker.clone(), address: address.clone() }
                        }
                    };
                    let inputs = shared.graph.tasks();
                    return Ok((*attempt, shared.reader.read(output, source, self.partition, inputs)));
                }
            }
            if self.news.changed().await.is_err() {
                return internal_err!("the job scheduler has ended");
            }
        }
    }
}

fn attempt_name(attempt: AttemptId) -> String {
    let TaskId { stage, task, .. } = attempt.task;
    crate::sql::write::attempt_name(stage.0, task, attempt.attempt)
}

fn header_map(headers: &HeaderMap) -> BTreeMap<String, String> {
    headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect()
}

#[async_trait::async_trait]
impl ChannelResolver for StagedQuery {
    async fn get_worker_client_for_url(&self, _virtual_url: &Url) -> Result<Box<dyn WorkerChannel>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl WorkerChannel for StagedQuery {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        request: SetPlanRequest,
        _messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        _metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        let metrics = self.keep(headers, request, context)?;
        let message = async { metrics.await.ok().map(|m| Ok(WorkerToCoordinatorMsg::TaskMetrics(m))) };
        match self.shared.measure {
            true => Ok(stream::once(message).filter_map(std::future::ready).boxed()),
            false => Ok(stream::empty().boxed()),
        }
    }

    async fn execute_task(
        &mut self,
        _headers: HeaderMap,
        request: ExecuteTaskRequest,
        _metrics: ExecutionPlanMetricsSet,
        _context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let TaskKey { stage_id, task_number, .. } = request.task_key;
        let key = (stage_id as u32, task_number as u32);
        let range = request.target_partition_start..request.target_partition_end;
        lock(&self.shared.unread).insert(key, range.len());
        Ok(range.map(|partition| self.result(key, partition)).collect())
    }

    async fn get_worker_info(&mut self, _request: GetWorkerInfoRequest) -> Result<GetWorkerInfoResponse> {
        not_impl_err!("a query has no worker information")
    }
}
