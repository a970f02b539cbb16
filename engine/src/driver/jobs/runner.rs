//! Carries out what the scheduler decides. One task owns it; everything else talks to it in messages.

use crate::driver::fleet::Executor;
use crate::driver::jobs::attempts::{self, Order, Outcome};
use crate::driver::jobs::graph::Graph;
use crate::driver::jobs::query::{Fragment, News, ResultPlace, TaskKeyParts};
use crate::driver::progress::ProgressBoard;
use crate::transport::ApplicationChannels;
use bytes::Bytes;
use datafusion_distributed::GetWorkerInfoRequest;
use datafusion_distributed::grpc::create_worker_client;
use firesteel_common::ApplicationId;
use firesteel_common::shuffle::OutputId;
use firesteel_engine_core::{
    Action, AttemptId, AttemptState, Event, ExecutorId, Failure, JobId, JobSpec, Output, Place, Policy,
    Scheduler, StageId, TaskId, WorkerKey,
};
use firesteel_proto::v1;
use firesteel_proto::v1::shuffle_client::ShuffleClient;
use futures::FutureExt;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

/// Who does not answer a probe within this is taken for dead.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an executor that did not answer is left alone.
const PROBE_AGAIN: Duration = Duration::from_secs(3);
/// Pairs of producer and consumer tasks up to which outputs travel in messages: every consumer is sent all of them.
const INLINE_PAIRS_MAX: u64 = 1024;
/// Pictures of the tasks are taken at most this often.
const PICTURE_INTERVAL: Duration = Duration::from_millis(100);

/// What the runner is told.
pub enum Command {
    Submit {
        spec: JobSpec,
        graph: Graph,
        fragments: HashMap<TaskKeyParts, Arc<Fragment>>,
        news: watch::Sender<News>,
    },
    /// The query has ended; answered once its last picture has been taken.
    Release(JobId, Option<oneshot::Sender<()>>),
    Delivered(TaskId),
    /// The driver could not read a result.
    ResultLost {
        attempt: AttemptId,
        message: String,
    },
    /// The executors and shuffle hosts that there are now.
    Fleet {
        executors: Vec<Executor>,
        hosts: BTreeMap<String, String>,
    },
    /// Which statement a job belongs to, for progress.
    Watch {
        job: JobId,
        statement: u32,
    },
    Ended {
        attempt: AttemptId,
        executor: u32,
        outcome: Outcome,
    },
    /// An executor was looked at after a call to it had broken.
    Probed {
        executor: u32,
        alive: bool,
    },
    /// The worker of an output that could not be read was looked at.
    HostProbed {
        worker: String,
        alive: bool,
    },
}

/// The jobs of the application.
#[derive(Clone)]
pub struct Jobs {
    commands: mpsc::UnboundedSender<Command>,
    next: Arc<AtomicU32>,
}

impl Jobs {
    pub fn start(
        application: ApplicationId,
        policy: Policy,
        channels: ApplicationChannels,
        board: ProgressBoard,
        inline_bytes_max: u64,
    ) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let runner = Runner {
            application,
            scheduler: Scheduler::new(policy),
            epoch: Instant::now(),
            channels,
            board,
            inline_bytes_max,
            jobs: HashMap::new(),
            executors: BTreeMap::new(),
            silent: BTreeMap::new(),
            hosts: BTreeMap::new(),
            attempts: HashMap::new(),
            probes: HashMap::new(),
            host_probes: HashMap::new(),
            own: commands.downgrade(),
        };
        tokio::spawn(runner.run(inbox));
        Self { commands, next: Arc::default() }
    }

    pub fn next_job(&self) -> JobId {
        JobId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub fn send(&self, command: Command) {
        // The runner ends with the process.
        let _ = self.commands.send(command);
    }
}

struct Job {
    graph: Graph,
    fragments: HashMap<TaskKeyParts, Arc<Fragment>>,
    news: watch::Sender<News>,
    inline: HashMap<AttemptId, Arc<HashMap<u32, Bytes>>>,
    /// Of each stage, as its consumers are told; made when first asked for, dropped when an output changes.
    inputs: HashMap<u32, v1::StageInput>,
    /// Bytes that the tasks of each stage have spilled.
    spilled: HashMap<u32, u64>,
    statement: Option<u32>,
    changed: bool,
}

struct Runner {
    application: ApplicationId,
    scheduler: Scheduler,
    epoch: Instant,
    channels: ApplicationChannels,
    board: ProgressBoard,
    /// Outputs up to this size travel in messages: they would be more file than data.
    inline_bytes_max: u64,
    jobs: HashMap<JobId, Job>,
    executors: BTreeMap<u32, Executor>,
    /// Those that did not answer, and that the master still lists.
    silent: BTreeMap<u32, Executor>,
    /// Where each worker's outputs are served.
    hosts: BTreeMap<String, String>,
    attempts: HashMap<AttemptId, AbortHandle>,
    /// Executors being looked at, with the attempts whose calls broke.
    probes: HashMap<u32, Vec<(AttemptId, String)>>,
    /// Workers being looked at, with those that could not read from them.
    host_probes: HashMap<String, Vec<Event>>,
    own: mpsc::WeakUnboundedSender<Command>,
}

impl Runner {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut pictures = tokio::time::interval(PICTURE_INTERVAL);
        pictures.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wakeup = self.scheduler.next_wakeup().map(|at| self.epoch + at);
            let tick = async {
                match wakeup {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.take(command),
                    None => return,
                },
                () = tick => self.tell(Event::Tick),
                _ = pictures.tick(), if self.jobs.values().any(|job| job.changed) => self.take_pictures(),
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit { spec, graph, fragments, news } => {
                let id = spec.id;
                // Its query has ended already.
                let Some(announced) = self.jobs.remove(&id) else { return };
                let statement = announced.statement;
                let job = Job {
                    graph,
                    fragments,
                    news,
                    inline: HashMap::new(),
                    inputs: HashMap::new(),
                    spilled: HashMap::new(),
                    statement,
                    changed: true,
                };
                self.jobs.insert(id, job);
                self.tell(Event::Submit(spec));
            }
            Command::Watch { job, statement } => {
                let placeholder = || Job {
                    graph: Graph::default(),
                    fragments: HashMap::new(),
                    news: watch::Sender::new(News::default()),
                    inline: HashMap::new(),
                    inputs: HashMap::new(),
                    spilled: HashMap::new(),
                    statement: None,
                    changed: false,
                };
                self.jobs.entry(job).or_insert_with(placeholder).statement = Some(statement);
            }
            Command::Release(job, done) => {
                self.picture(job);
                self.tell(Event::Release { job });
                self.jobs.remove(&job);
                if let Some(done) = done {
                    let _ = done.send(());
                }
            }
            Command::Delivered(task) => self.tell(Event::Delivered { task, all: true }),
            Command::ResultLost { attempt, message } => {
                self.look_at_host(attempt, Event::FetchFailed { lost: attempt, message });
            }
            Command::Fleet { executors, hosts } => self.fleet(executors, hosts),
            Command::Ended { attempt, executor, outcome } => self.ended(attempt, executor, outcome),
            Command::Probed { executor, alive } => {
                let waiting = self.probes.remove(&executor).unwrap_or_default();
                if !alive && let Some(silent) = self.executors.remove(&executor) {
                    let reason = waiting.first().map(|(_, m)| m.clone()).unwrap_or_default();
                    tracing::warn!("executor {executor} does not answer: {reason}");
                    self.tell(Event::ExecutorLost { executor: ExecutorId(executor), reason });
                    self.silent.insert(executor, silent);
                }
                if alive && let Some(back) = self.silent.remove(&executor) {
                    self.executors.insert(executor, back);
                }
                if self.silent.contains_key(&executor) {
                    // Only the master can say that it has ended; until then it may have been busy.
                    self.probe_executor(executor, PROBE_AGAIN);
                }
                for (attempt, message) in waiting {
                    self.tell(Event::Failed { attempt, failure: Failure::ExecutorGone(message) });
                }
                // It answers: only the call had broken.
                if let Some(known) = self.executors.get(&executor).cloned() {
                    self.executor_up(&known);
                }
            }
            Command::HostProbed { worker, alive } => {
                let events = self.host_probes.remove(&worker).unwrap_or_default();
                if !alive {
                    tracing::warn!("the map outputs of worker {worker} are lost: it does not answer");
                    let reason = "it does not answer".to_owned();
                    self.tell(Event::WorkerLost { worker: WorkerKey::from(worker.as_str()), reason });
                    // Its executors count as lost with it. Those that answer nevertheless get tasks again.
                    let on_it = self.executors.values().filter(|e| e.worker == worker);
                    for number in on_it.map(|e| e.number).collect::<Vec<_>>() {
                        self.probe_executor(number, Duration::ZERO);
                    }
                }
                for event in events {
                    self.tell(event);
                }
            }
        }
    }

    /// Tells the scheduler and does what it says.
    fn tell(&mut self, event: Event) {
        for action in self.scheduler.handle(self.epoch.elapsed(), event) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Launch { attempt, executor, hints } => {
                self.launch(attempt, executor, hints.out_of_memory_before);
            }
            // No job of ours has streamed edges.
            Action::LaunchRegion { job, .. } => tracing::error!("{job} was launched as a region"),
            Action::Cancel { attempt, why, .. } => {
                tracing::debug!("{attempt} is cancelled: {why:?}");
                if let Some(handle) = self.attempts.remove(&attempt) {
                    handle.abort();
                }
                self.changed(attempt.task.job);
            }
            Action::Discard { attempt, place } => self.discard(attempt, place),
            Action::ResultReady { attempt } => self.result_ready(attempt),
            Action::StageFinished { job, .. } => self.changed(job),
            Action::JobFinished { job } => self.changed(job),
            Action::JobFailed { error } => {
                self.changed(error.job);
                if let Some(job) = self.jobs.get(&error.job) {
                    job.news.send_modify(|news| news.failed = Some(error));
                }
            }
            Action::DiscardJob { job } => {
                if let Some(job) = self.jobs.get(&job) {
                    let queries = vec![format!("{:032x}", job.graph.query)];
                    for address in self.hosts.values() {
                        self.send_discard(address.clone(), Vec::new(), queries.clone());
                    }
                }
            }
        }
    }

    fn changed(&mut self, job: JobId) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.changed = true;
        }
    }

    fn launch(&mut self, attempt: AttemptId, executor: ExecutorId, sort_merge_joins: bool) {
        let Some(own) = self.own.upgrade() else { return };
        let Some(address) = self.executors.get(&executor.0).map(|e| e.address.clone()) else {
            let gone = Failure::ExecutorGone("the executor is gone".to_owned());
            let outcome = Command::Ended {
                attempt,
                executor: executor.0,
                outcome: Outcome::Unknown(format!("{gone:?}")),
            };
            let _ = own.send(outcome);
            return;
        };
        let Some(order) = self.order(attempt, sort_merge_joins) else {
            let outcome = Outcome::Impossible(format!("{attempt} has no fragment"));
            let _ = own.send(Command::Ended { attempt, executor: executor.0, outcome });
            return;
        };
        let channels = self.channels.clone();
        let running = tokio::spawn(async move {
            let run = AssertUnwindSafe(attempts::run(channels, address, order)).catch_unwind();
            let outcome =
                run.await.unwrap_or_else(|_| Outcome::Impossible("the driver could not send it".to_owned()));
            let _ = own.send(Command::Ended { attempt, executor: executor.0, outcome });
        });
        self.attempts.insert(attempt, running.abort_handle());
        self.changed(attempt.task.job);
    }

    /// What the executor is told about an attempt.
    fn order(&mut self, attempt: AttemptId, sort_merge_joins: bool) -> Option<Order> {
        let TaskId { job: id, stage, task } = attempt.task;
        let job = self.jobs.get_mut(&id)?;
        let fragment = Arc::clone(job.fragments.get(&(stage.0, task))?);
        let shape = job.graph.stages.get(&stage.0)?.clone();
        let places: Vec<&String> = self.hosts.keys().collect();
        let mut inputs = Vec::with_capacity(shape.inputs.len());
        for input in &shape.inputs {
            if !job.inputs.contains_key(input) {
                let made = stage_input(
                    &self.scheduler,
                    id,
                    *input,
                    job.graph.stages.get(input)?,
                    &job.inline,
                    &places,
                )?;
                job.inputs.insert(*input, made);
            }
            inputs.push(job.inputs.get(input)?.clone());
        }
        let readers: u64 = job
            .graph
            .stages
            .values()
            .filter(|s| s.inputs.contains(&stage.0))
            .map(|s| u64::from(s.tasks))
            .sum::<u64>()
            .max(1);
        let inline_bytes_max = match readers * u64::from(shape.tasks) <= INLINE_PAIRS_MAX {
            true => self.inline_bytes_max,
            false => 0,
        };
        let output = output_id(&job.graph, attempt).to_string();
        let locations = self
            .hosts
            .iter()
            .map(|(worker, address)| v1::Location { worker_id: worker.clone(), address: address.clone() })
            .collect();
        let request = v1::RunTask {
            output,
            task_count: shape.tasks,
            plan: Vec::new(),
            headers: BTreeMap::new(),
            inputs,
            locations,
            inline_bytes_max,
            collect_metrics: fragment.wants_metrics(),
            sort_merge_joins,
        };
        Some(Order { request, fragment })
    }

    fn ended(&mut self, attempt: AttemptId, executor: u32, outcome: Outcome) {
        self.attempts.remove(&attempt);
        self.changed(attempt.task.job);
        match outcome {
            Outcome::Success(success) => self.succeeded(attempt, executor, success),
            Outcome::Impossible(message) => {
                self.tell(Event::Failed { attempt, failure: Failure::Fatal(message) });
            }
            Outcome::Failure(failed) => match attempts::failure(&failed) {
                Some(failure) => self.tell(Event::Failed { attempt, failure }),
                None => match self.lost_attempt(attempt.task.job, &failed.lost_output) {
                    Some(lost) => {
                        let failure = Failure::FetchFailed { lost, message: failed.message };
                        self.look_at_host(lost, Event::Failed { attempt, failure });
                    }
                    None => {
                        let failure = Failure::Retryable(failed.message);
                        self.tell(Event::Failed { attempt, failure });
                    }
                },
            },
            Outcome::Unknown(message) => self.look_at_executor(attempt, executor, message),
        }
    }

    fn succeeded(&mut self, attempt: AttemptId, executor: u32, success: v1::TaskSuccess) {
        let worker = self.executors.get(&executor).map(|e| e.worker.clone());
        let place = match (success.is_inline, worker) {
            (true, _) => Place::Inline,
            (false, Some(worker)) => Place::Worker(WorkerKey::from(worker.as_str())),
            (false, None) => {
                // Its executor was given up meanwhile: the scheduler has moved on.
                let gone = Failure::ExecutorGone("the executor is gone".to_owned());
                return self.tell(Event::Failed { attempt, failure: gone });
            }
        };
        if let Some(job) = self.jobs.get_mut(&attempt.task.job) {
            job.inputs.remove(&attempt.task.stage.0);
            *job.spilled.entry(attempt.task.stage.0).or_default() += success.spilled_bytes;
            let key = (attempt.task.stage.0, attempt.task.task);
            if !success.metrics.is_empty()
                && let Some(fragment) = job.fragments.get(&key)
            {
                fragment.measured(&success.metrics);
            }
            if success.is_inline {
                let parts = success.inline.into_iter().map(|p| (p.partition, p.bytes.into())).collect();
                job.inline.insert(attempt, Arc::new(parts));
            }
        }
        let bytes = success.partition_bytes.iter().sum();
        self.tell(Event::Succeeded { attempt, output: Output { place, bytes, rows: success.rows } });
    }

    fn result_ready(&mut self, attempt: AttemptId) {
        let Some(job) = self.jobs.get(&attempt.task.job) else { return };
        let place = match self.scheduler.output(attempt.task).map(|(_, output)| output.place.clone()) {
            Some(Place::Inline) => job.inline.get(&attempt).cloned().map(ResultPlace::Inline),
            Some(Place::Worker(worker)) => {
                let address = self.hosts.get(worker.as_str()).cloned().unwrap_or_default();
                Some(ResultPlace::Worker { worker: worker.as_str().to_owned(), address })
            }
            None => None,
        };
        if let Some(place) = place {
            let key = (attempt.task.stage.0, attempt.task.task);
            job.news.send_modify(|news| {
                news.results.insert(key, (attempt, place));
            });
        }
    }

    /// A call broke: is the executor gone, or only the call?
    fn look_at_executor(&mut self, attempt: AttemptId, number: u32, message: String) {
        if !self.executors.contains_key(&number) {
            return self.tell(Event::Failed { attempt, failure: Failure::ExecutorGone(message) });
        }
        if let Some(waiting) = self.probes.get_mut(&number) {
            waiting.push((attempt, message));
            return;
        }
        self.probes.insert(number, vec![(attempt, message)]);
        self.probe_executor(number, Duration::ZERO);
    }

    /// Looks whether an executor answers, after a pause.
    fn probe_executor(&self, number: u32, pause: Duration) {
        let known = self.executors.get(&number).or_else(|| self.silent.get(&number));
        let (Some(address), Some(own)) = (known.map(|e| e.address.clone()), self.own.upgrade()) else {
            return;
        };
        let channels = self.channels.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let alive = executor_answers(&channels, &address).await;
            let _ = own.send(Command::Probed { executor: number, alive });
        });
    }

    /// An output could not be read: is it alone, or is everything lost that its worker has?
    fn look_at_host(&mut self, lost: AttemptId, event: Event) {
        let worker = match self.scheduler.output(lost.task) {
            Some((current, Output { place: Place::Worker(worker), .. })) if current == lost => {
                worker.as_str().to_owned()
            }
            // Already replaced, or never a file.
            _ => return self.tell(event),
        };
        if let Some(waiting) = self.host_probes.get_mut(&worker) {
            waiting.push(event);
            return;
        }
        let (Some(address), Some(own)) = (self.hosts.get(&worker).cloned(), self.own.upgrade()) else {
            return self.tell(event);
        };
        self.host_probes.insert(worker.clone(), vec![event]);
        let (channels, application) = (self.channels.clone(), self.application.to_string());
        tokio::spawn(async move {
            let alive = host_answers(&channels, &address, application).await;
            let _ = own.send(Command::HostProbed { worker, alive });
        });
    }

    fn fleet(&mut self, executors: Vec<Executor>, hosts: BTreeMap<String, String>) {
        let gone: Vec<String> = self.hosts.keys().filter(|w| !hosts.contains_key(*w)).cloned().collect();
        let moved: Vec<JobId> = match self.hosts == hosts {
            true => Vec::new(),
            false => self.jobs.keys().copied().collect(),
        };
        self.hosts = hosts;
        for job in moved {
            // Locations are told by their number.
            if let Some(job) = self.jobs.get_mut(&job) {
                job.inputs.clear();
                let hosts = &self.hosts;
                job.news.send_modify(|news| {
                    for (_, place) in news.results.values_mut() {
                        if let ResultPlace::Worker { worker, address } = place
                            && let Some(now) = hosts.get(worker)
                        {
                            address.clone_from(now);
                        }
                    }
                });
            }
        }
        for worker in gone {
            let reason = "the master has given it up".to_owned();
            self.tell(Event::WorkerLost { worker: WorkerKey::from(worker.as_str()), reason });
        }
        let now: HashSet<u32> = executors.iter().map(|e| e.number).collect();
        let lost: Vec<u32> = self.executors.keys().filter(|n| !now.contains(n)).copied().collect();
        for number in lost {
            self.executors.remove(&number);
            let reason = "it has ended".to_owned();
            self.tell(Event::ExecutorLost { executor: ExecutorId(number), reason });
        }
        self.silent.retain(|number, _| now.contains(number));
        for executor in executors {
            if self.silent.contains_key(&executor.number) {
                continue;
            }
            if self.executors.insert(executor.number, executor.clone()).is_none() {
                self.executor_up(&executor);
            }
        }
    }

    fn executor_up(&mut self, executor: &Executor) {
        let worker = WorkerKey::from(executor.worker.as_str());
        let slots = executor.resources.cores.max(1);
        self.tell(Event::ExecutorUp { executor: ExecutorId(executor.number), worker, slots });
    }

    fn discard(&mut self, attempt: AttemptId, place: Place) {
        let Some(job) = self.jobs.get_mut(&attempt.task.job) else { return };
        match place {
            Place::Inline => {
                job.inline.remove(&attempt);
            }
            Place::Worker(worker) => {
                let output = output_id(&job.graph, attempt).to_string();
                if let Some(address) = self.hosts.get(worker.as_str()).cloned() {
                    self.send_discard(address, vec![output], Vec::new());
                }
            }
        }
    }

    /// A worker that cannot be told keeps its files until the application ends.
    fn send_discard(&self, address: String, outputs: Vec<String>, queries: Vec<String>) {
        let (channels, application_id) = (self.channels.clone(), self.application.to_string());
        tokio::spawn(async move {
            if let Ok(channel) = channels.channel(&address).await {
                let request = v1::DiscardRequest { application_id, outputs, queries };
                if let Err(status) = ShuffleClient::new(channel).discard(request).await {
                    tracing::debug!("{address} was not told to discard: {}", status.message());
                }
            }
        });
    }

    fn lost_attempt(&self, job: JobId, output: &str) -> Option<AttemptId> {
        let id: OutputId = output.parse().ok()?;
        let known = self.jobs.get(&job)?.graph.query == id.query;
        known.then(|| TaskId { job, stage: StageId(id.stage), task: id.task }.attempt(id.attempt))
    }

    fn take_pictures(&mut self) {
        let changed: Vec<JobId> =
            self.jobs.iter().filter(|(_, job)| job.changed).map(|(id, _)| *id).collect();
        for job in changed {
            self.picture(job);
        }
    }

    /// The tasks' states, for the page.
    fn picture(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.changed = false;
        let Some(statement) = job.statement else { return };
        let Some(progress) = self.scheduler.progress(id) else { return };
        let now_ms = crate::driver::progress::now_ms();
        let elapsed = self.epoch.elapsed();
        let wall = |at: Duration| now_ms.saturating_sub(elapsed.saturating_sub(at).as_millis() as u64);
        for stage in &progress.stages {
            let tasks = self.scheduler.tasks(id, stage.stage, 0, crate::driver::progress::TASKS_TOLD_MAX);
            let told = tasks
                .iter()
                .map(|task| {
                    let last = task.attempts.last();
                    let state = match (&task.output, last.map(|a| a.state)) {
                        (Some(_), _) | (None, Some(AttemptState::Succeeded)) => v1::TaskState::Succeeded,
                        (None, Some(AttemptState::Running)) => v1::TaskState::Running,
                        (None, Some(AttemptState::Failed)) => v1::TaskState::Failed,
                        _ => v1::TaskState::Pending,
                    };
                    v1::TaskProgress {
                        index: task.task,
                        state: state.into(),
                        executor: last.map_or(0, |a| a.executor.0),
                        started_ms: last.map_or(0, |a| wall(a.started)),
                        ended_ms: last.and_then(|a| a.ended).map_or(0, wall),
                        attempts: task.attempts.len() as u32,
                    }
                })
                .collect();
            let again = stage.counters.launched - stage.counters.first - stage.counters.speculative;
            let picture = v1::StageProgress {
                id: stage.stage.0,
                tasks: told,
                task_count: stage.tasks,
                attempts: stage.counters.launched as u32,
                again: again as u32,
                output_rows: stage.output_rows,
                output_bytes: stage.output_bytes,
                spilled_bytes: job.spilled.get(&stage.stage.0).copied().unwrap_or(0),
                ..Default::default()
            };
            self.board.stage_changed(statement, picture);
        }
    }
}

fn output_id(graph: &Graph, attempt: AttemptId) -> OutputId {
    let TaskId { stage, task, .. } = attempt.task;
    OutputId { query: graph.query, stage: stage.0, task, attempt: attempt.attempt }
}

/// The outputs of a stage, as a reader of all of them is told; `None` if one is missing.
fn stage_input(
    scheduler: &Scheduler,
    job: JobId,
    stage: u32,
    shape: &crate::driver::jobs::graph::GraphStage,
    inline: &HashMap<AttemptId, Arc<HashMap<u32, Bytes>>>,
    places: &[&String],
) -> Option<v1::StageInput> {
    let outputs = (0..shape.tasks).map(|task| {
        let (attempt, output) = scheduler.output(TaskId { job, stage: StageId(stage), task })?;
        Some(match &output.place {
            Place::Inline => v1::InputOutput {
                attempt: attempt.attempt,
                location: 0,
                is_inline: true,
                inline: inline
                    .get(&attempt)?
                    .iter()
                    .map(|(&partition, bytes)| v1::InlinePartition { partition, bytes: bytes.to_vec() })
                    .collect(),
            },
            Place::Worker(worker) => v1::InputOutput {
                attempt: attempt.attempt,
                // A worker that is not known any more makes the reader report the output as lost.
                location: places
                    .iter()
                    .position(|place| place.as_str() == worker.as_str())
                    .map_or(u32::MAX, |at| at as u32),
                is_inline: false,
                inline: Vec::new(),
            },
        })
    });
    Some(v1::StageInput {
        stage,
        outputs: outputs.collect::<Option<Vec<_>>>()?,
        broadcast_partitions: shape.broadcast_partitions.unwrap_or(0),
    })
}

async fn executor_answers(channels: &ApplicationChannels, address: &str) -> bool {
    let answer = async {
        channels.forget(address);
        let channel = channels.channel(address).await?;
        create_worker_client(channel).get_worker_info(GetWorkerInfoRequest {}).await
    };
    matches!(tokio::time::timeout(PROBE_TIMEOUT, answer).await, Ok(Ok(_)))
}

/// Any answer will do: the worker is there.
async fn host_answers(channels: &ApplicationChannels, address: &str, application_id: String) -> bool {
    let answer = async {
        channels.forget(address);
        let channel = channels.channel(address).await.ok()?;
        let request = v1::DiscardRequest { application_id, ..Default::default() };
        match ShuffleClient::new(channel).discard(request).await {
            Ok(_) => Some(()),
            Err(status) => (status.code() != tonic::Code::Unavailable).then_some(()),
        }
    };
    matches!(tokio::time::timeout(PROBE_TIMEOUT, answer).await, Ok(Some(())))
}
