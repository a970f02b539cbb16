//! Who uses the masters: clients that submit, workers that run, and the duties of whoever leads.

use super::super::state_machine::encode_command;
use super::super::{ProposeError, node::Input, node::Proposal};
use super::member::{Answered, Call, Pending, Purpose};
use super::{Event, World};
use firesteel_common::{
    ApplicationId, ApplicationSpec, DeployMode, ExecutorCount, ExecutorState, OutputFormat, ProcessEnd,
    ProcessId, Resources, Secret, WorkerId, WorkerStatus,
};
use firesteel_master_core::{Command, Outcome, Rejection, desired, schedule};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::oneshot;

/// A worker that the leader has not heard of for so long is dead.
const WORKER_TIMEOUT_MS: u64 = 3_000;

/// Submits one application after the other, and ends each.
pub struct Client {
    pub stage: Stage,
    made: u32,
    /// Rises with every step: answers to earlier ones are too late.
    stamp: u32,
    master: Option<u64>,
}

#[derive(Debug, Clone)]
pub enum Stage {
    Resting,
    Submitting { name: String, ticket: Option<u64> },
    Waiting { application: ApplicationId },
    Ending { application: ApplicationId },
}

impl Client {
    pub fn new() -> Self {
        Self { stage: Stage::Resting, made: 0, stamp: 0, master: None }
    }
}

/// The one place that knows what makes a submission safe to repeat.
fn submission(name: &str, ticket: u64, at_ms: u64, shape: u64) -> Command {
    let cluster_mode = shape.is_multiple_of(2);
    let spec = ApplicationSpec {
        name: name.to_owned(),
        user: "ana".into(),
        deploy_mode: if cluster_mode { DeployMode::Cluster } else { DeployMode::Client },
        resource: "q.sql".into(),
        artifact: String::new(),
        conf: BTreeMap::new(),
        output: OutputFormat::Table,
        driver: Resources::new(0, 256),
        executor: Resources::new(1, 512),
        executors: ExecutorCount::Exactly(1 + (shape / 2 % 3) as u32),
        supervise: cluster_mode && shape.is_multiple_of(4),
    };
    Command::SubmitApplication { spec, token: Secret::new("t"), key: name.to_owned(), ticket, at_ms }
}

pub struct Worker {
    pub id: WorkerId,
    pub up: bool,
    pub incarnation: u64,
    /// The highest it has seen, on its disk.
    epoch: u64,
    /// How new the set was that it follows, within the epoch: a stream keeps its order.
    seen: u64,
    pub running: BTreeSet<ProcessId>,
    launched: BTreeSet<ProcessId>,
    pub reports: Vec<Report>,
    reported: u64,
    master: Option<u64>,
}

pub struct Report {
    stamp: u64,
    process: ProcessId,
    /// How it ended, or that it runs.
    end: Option<ExecutorState>,
    under_way: bool,
}

/// What a leader tells a worker.
pub struct Orders {
    worker: usize,
    incarnation: u64,
    epoch: u64,
    applied: u64,
    processes: BTreeSet<ProcessId>,
}

impl Worker {
    pub fn new(number: usize) -> Result<Self, String> {
        let id = format!("worker-{number}").parse().map_err(|error| format!("{error}"))?;
        Ok(Self {
            id,
            up: true,
            incarnation: 1,
            epoch: 0,
            seen: 0,
            running: BTreeSet::new(),
            launched: BTreeSet::new(),
            reports: Vec::new(),
            reported: 0,
            master: None,
        })
    }

    /// Its processes end with it.
    pub fn crash(&mut self) {
        self.up = false;
        self.incarnation += 1;
        self.running.clear();
        self.reports.clear();
        self.seen = 0;
    }
}

impl World {
    /// Asks a member to replicate commands. `false` when it is down.
    pub fn propose(&mut self, member: u64, commands: &[Command], purpose: Purpose) -> Result<bool, String> {
        let commands = commands.iter().map(encode_command).collect::<Result<_, _>>();
        let commands = commands.map_err(|error| error.to_string())?;
        let (answer, receiver) = oneshot::channel();
        let input = Input::Propose(Proposal { commands, answer, permit: None });
        Ok(self.ask(member, input, purpose, Pending::Outcomes(receiver)))
    }

    pub fn ask(
        &mut self,
        member: u64,
        input: Input<super::record::Observed>,
        purpose: Purpose,
        answer: Pending,
    ) -> bool {
        let Some(asked) = self.members.get_mut(&member).filter(|m| m.running.is_some()) else { return false };
        asked.inbox.push(input);
        asked.calls.push(Call { purpose, answer });
        self.wake(member);
        true
    }

    /// A member that says that it leads, or any other to ask.
    fn some_master(&mut self, known: Option<u64>) -> Option<u64> {
        let ids: Vec<u64> = self.members.values().filter(|m| !m.gone).map(|m| m.id).collect();
        known.filter(|id| ids.contains(id)).or_else(|| self.random.pick(&ids))
    }

    fn leads(&self, member: u64) -> bool {
        let running = self.members.get(&member).and_then(|m| m.running.as_ref());
        running.is_some_and(|r| r.views.published.borrow().leader)
    }

    pub fn client_step(&mut self, number: usize, stamp: u32) -> Result<(), String> {
        if self.clients[number].stamp != stamp {
            return Ok(());
        }
        let known = self.clients[number].master.take();
        let Some(master) = self.some_master(known) else { return Ok(()) };
        let calm = self.calm;
        let leads = self.leads(master);
        let applied = self
            .members
            .get(&master)
            .and_then(|m| m.running.as_ref())
            .map_or(0, |r| r.views.published.borrow().applied);
        let at_ms = self.clock_of(master);
        let shape = self.random.next();
        let client = &mut self.clients[number];
        client.stamp += 1;
        let stamp = client.stamp;
        if matches!(client.stage, Stage::Resting) {
            if calm {
                return Ok(());
            }
            client.made += 1;
            client.stage = Stage::Submitting { name: format!("{number}-{}", client.made), ticket: None };
        }
        let mut patience = self.random.between(50, 300);
        if leads {
            client.master = Some(master);
            patience = self.random.between(1_000, 4_000);
            match &mut client.stage {
                Stage::Submitting { name, ticket } => {
                    let ticket = *ticket.get_or_insert(applied);
                    // A repetition must be the same submission.
                    let shape = super::random::mix([self.seed, number as u64, u64::from(client.made)]);
                    let command = submission(name, ticket, at_ms, shape);
                    self.propose(master, &[command], Purpose::Submit { client: number, stamp })?;
                }
                Stage::Waiting { application } | Stage::Ending { application } => {
                    let application = application.clone();
                    client.stage = Stage::Ending { application: application.clone() };
                    let command = match shape % 4 {
                        0 => Command::KillApplication { application, by: "ana".into(), at_ms },
                        _ => Command::FinishApplication {
                            application,
                            success: shape % 4 == 1,
                            message: String::new(),
                            at_ms,
                        },
                    };
                    self.propose(master, &[command], Purpose::End { client: number, stamp })?;
                }
                Stage::Resting => {}
            }
        }
        self.later(patience, Event::Client { number, stamp });
        Ok(())
    }

    /// Goes on after an answer. The answer itself may get lost.
    fn client_answered(&mut self, number: usize, stamp: u32, next: Option<Stage>) {
        let lost = !self.calm && self.random.chance(8);
        let client = &mut self.clients[number];
        if client.stamp != stamp || lost {
            return;
        }
        client.stamp += 1;
        let stamp = client.stamp;
        let rest = match next {
            Some(stage) => {
                client.stage = stage;
                self.random.between(20, 600)
            }
            None => {
                client.master = None;
                self.random.between(20, 300)
            }
        };
        self.later(rest, Event::Client { number, stamp });
    }

    pub fn worker_beat(&mut self, number: usize) -> Result<(), String> {
        self.later_between(200, 500, Event::Worker(number));
        if !self.workers[number].up {
            return Ok(());
        }
        let known = self.workers[number].master;
        let Some(master) = self.some_master(known) else { return Ok(()) };
        if !self.leads(master) {
            self.workers[number].master = None;
            return Ok(());
        }
        let at_ms = self.clock_of(master);
        let now_ms = self.now_ms;
        let Some(member) = self.members.get_mut(&master) else { return Ok(()) };
        let Some(running) = &member.running else { return Ok(()) };
        let published = running.published();
        let worker = &mut self.workers[number];
        worker.master = Some(master);
        member.lead.heard_ms.insert(worker.id.clone(), now_ms);
        let known = published.state.0.worker(&worker.id);
        if known.is_none_or(|w| w.incarnation != worker.incarnation || !w.is_alive()) {
            let command = Command::RegisterWorker {
                id: worker.id.clone(),
                incarnation: worker.incarnation,
                host: "h".into(),
                port: 1,
                capacity: Resources::new(3, 4096),
                version: String::new(),
                ui_url: String::new(),
                at_ms,
            };
            self.propose(master, &[command], Purpose::Register)?;
            return Ok(());
        }
        let launches = desired(&published.state.0, &worker.id);
        let orders = Orders {
            worker: number,
            incarnation: worker.incarnation,
            epoch: published.epoch.0,
            applied: published.applied,
            processes: launches.into_iter().map(|launch| launch.process).collect(),
        };
        // They may overtake each other: an old leader's may come after its successor's.
        let late = !self.calm && self.random.chance(15);
        let delay = if late { self.random.between(100, 4_000) } else { self.random.between(1, 20) };
        self.later(delay, Event::Orders(Box::new(orders)));
        self.report(number, master, at_ms)
    }

    fn report(&mut self, number: usize, master: u64, at_ms: u64) -> Result<(), String> {
        let worker = &mut self.workers[number];
        let Some(report) = worker.reports.first_mut().filter(|report| !report.under_way) else {
            return Ok(());
        };
        report.under_way = true;
        let (process, stamp) = (report.process.clone(), report.stamp);
        let command = match report.end {
            None => Command::ProcessStarted { process, address: "h:1".into(), at_ms },
            Some(state) => {
                Command::ProcessEnded { process, state, end: ProcessEnd::Exited { code: 1 }, at_ms }
            }
        };
        if !self.propose(master, &[command], Purpose::Report { worker: number, stamp })? {
            self.reported(number, stamp, false);
        }
        Ok(())
    }

    fn reported(&mut self, number: usize, stamp: u64, taken: bool) {
        let reports = &mut self.workers[number].reports;
        if let Some(at) = reports.iter().position(|report| report.stamp == stamp) {
            if taken {
                reports.remove(at);
            } else {
                reports[at].under_way = false;
            }
        }
    }

    pub fn orders(&mut self, orders: &Orders) -> Result<(), String> {
        let worker = &mut self.workers[orders.worker];
        if !worker.up || worker.incarnation != orders.incarnation {
            return Ok(());
        }
        if orders.epoch < worker.epoch {
            self.summary.refused_orders += 1;
            return Ok(());
        }
        if orders.epoch == worker.epoch && orders.applied < worker.seen {
            return Ok(());
        }
        (worker.epoch, worker.seen) = (orders.epoch, orders.applied);
        for process in worker.running.difference(&orders.processes) {
            // A leader that has everything that was committed knows of every grant, and what has ended does not come back.
            if self.newest.1.0.process(process).is_some_and(|known| known.is_live()) {
                return Err(format!(
                    "{} stops {process} on orders of epoch {}, but it shall run",
                    worker.id, orders.epoch
                ));
            }
        }
        worker.running.retain(|process| orders.processes.contains(process));
        let mut short_lived = Vec::new();
        for process in &orders.processes {
            // What it has launched once, and what has ended since, is not launched again.
            if worker.launched.insert(process.clone()) {
                self.record.launch(process, format!("{} in life {}", worker.id, worker.incarnation))?;
                self.summary.launches += 1;
                worker.running.insert(process.clone());
                worker.reported += 1;
                worker.reports.push(Report {
                    stamp: worker.reported,
                    process: process.clone(),
                    end: None,
                    under_way: false,
                });
                if self.random.chance(15) && !self.calm {
                    short_lived.push(process.clone());
                }
            }
        }
        for process in short_lived {
            self.later_between(100, 2_000, Event::Exit { worker: orders.worker, process });
        }
        Ok(())
    }

    /// A process ends by itself.
    pub fn exit(&mut self, number: usize, process: ProcessId) {
        let worker = &mut self.workers[number];
        if worker.running.remove(&process) {
            worker.reported += 1;
            let end = Some(ExecutorState::Failed);
            worker.reports.push(Report { stamp: worker.reported, process, end, under_way: false });
        }
    }

    /// What a leader does by itself.
    pub fn lead(&mut self, id: u64) -> Result<(), String> {
        let at_ms = self.clock_of(id);
        let now_ms = self.now_ms;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let Some(running) = &member.running else { return Ok(()) };
        let published = running.published();
        let lead = &mut member.lead;
        if !published.leader {
            return Ok(());
        }
        if lead.term != published.epoch.0 {
            *lead = super::member::Lead { term: published.epoch.0, since_ms: now_ms, ..Default::default() };
        }
        let due = lead.planned_at != published.applied || now_ms >= lead.plan_again_ms;
        if lead.planning || !due {
            return Ok(());
        }
        lead.planned_at = published.applied;
        lead.plan_again_ms = now_ms + 500;
        let mut plan = Vec::new();
        for worker in published.state.0.alive_workers() {
            let heard = lead.heard_ms.get(&worker.id).copied().unwrap_or_default().max(lead.since_ms);
            if now_ms >= heard + WORKER_TIMEOUT_MS {
                plan.push(Command::SetWorkerStatus {
                    id: worker.id.clone(),
                    incarnation: worker.incarnation,
                    status: WorkerStatus::Dead,
                    at_ms,
                });
            }
        }
        plan.extend(schedule(&published.state.0, at_ms));
        if !plan.is_empty() {
            lead.planning = true;
            let term = lead.term;
            self.propose(id, &plan, Purpose::Plan { term })?;
        }
        Ok(())
    }

    /// What a member has answered.
    pub fn answered(
        &mut self,
        member: u64,
        purpose: Purpose,
        result: Result<Answered, ProposeError>,
    ) -> Result<(), String> {
        let outcome = match &result {
            Ok(Answered::Outcomes(outcomes)) => outcomes.first().map(|(_, outcome)| outcome),
            _ => None,
        };
        match purpose {
            Purpose::Submit { client, stamp } => {
                let next = match outcome {
                    Some(Outcome::Submitted { id }) => {
                        let name = match result {
                            Ok(Answered::Outcomes(ref outcomes)) => self.name_of(member, outcomes),
                            _ => None,
                        };
                        let Some(name) = name else {
                            return Err(format!(
                                "member {member} answered that {id} is submitted, and its state does not have it"
                            ));
                        };
                        if self.record.acknowledge(&name, id)? {
                            self.acknowledged.push(id.clone());
                        }
                        self.summary.submissions += 1;
                        Some(Stage::Waiting { application: id.clone() })
                    }
                    Some(other) => return Err(format!("a submission was answered with {other:?}")),
                    None => None,
                };
                self.client_answered(client, stamp, next);
            }
            Purpose::End { client, stamp } => {
                let next = match outcome {
                    Some(Outcome::Ok | Outcome::Rejected(Rejection::ApplicationEnded { .. })) => {
                        Some(Stage::Resting)
                    }
                    Some(other) => {
                        return Err(format!("the end of an acknowledged application: {other:?}"));
                    }
                    None => None,
                };
                self.client_answered(client, stamp, next);
            }
            Purpose::Report { worker, stamp } => self.reported(worker, stamp, outcome.is_some()),
            Purpose::Plan { term } => {
                if let Some(member) = self.members.get_mut(&member).filter(|m| m.lead.term == term) {
                    member.lead.planning = false;
                }
            }
            Purpose::Register => {}
            Purpose::Read { acknowledged } => {
                if result.is_ok() {
                    self.read(member, acknowledged)?;
                }
            }
            Purpose::Change => {
                self.changing = false;
                self.summary.membership_changes += u64::from(result.is_ok());
            }
            Purpose::Transfer { term } => {
                if result.is_ok() {
                    self.summary.transfers += 1;
                    let view =
                        self.members.get(&member).and_then(|m| m.running.as_ref()).map(|r| r.published());
                    if view.is_some_and(|view| view.epoch.0 == term && view.leader) {
                        return Err(format!("member {member} handed over and still leads in term {term}"));
                    }
                }
            }
            Purpose::Snapshot { applied } => {
                if let Ok(Answered::Position(position)) = result {
                    self.summary.snapshots += 1;
                    if position.index < applied {
                        return Err(format!(
                            "member {member} had applied {applied} and wrote a snapshot of {}",
                            position.index
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// The name of the application that was just submitted, from the state that the member shows with its answer.
    fn name_of(&self, member: u64, outcomes: &[(u64, Outcome)]) -> Option<String> {
        let published = self.members.get(&member)?.running.as_ref()?.published();
        let Some((_, Outcome::Submitted { id })) = outcomes.first() else { return None };
        Some(published.state.0.application(id)?.spec.name.clone())
    }

    /// After a read barrier everything that was acknowledged before it must be there.
    fn read(&mut self, member: u64, acknowledged: usize) -> Result<(), String> {
        self.summary.reads += 1;
        let Some(running) = self.members.get(&member).and_then(|m| m.running.as_ref()) else { return Ok(()) };
        let published = running.published();
        for id in self.acknowledged.iter().take(acknowledged) {
            if published.state.0.application(id).is_none() {
                return Err(format!(
                    "a read at member {member} in term {} does not show {id}, which was acknowledged before",
                    published.epoch.0
                ));
            }
        }
        Ok(())
    }
}
