//! A whole cluster in one thread: masters, workers and clients over a simulated network, disks and clocks, and everything
//! that can go wrong with them. All of it follows from one number, so whatever breaks can be looked at again.
//!
//! The masters are real [nodes](super::node) over the real log format and the real cluster state. While mishaps happen,
//! and after, it is checked that
//!
//! - a term has at most one leader, and a leader has everything that was committed before it was elected;
//! - what one member has applied at an index no other member ever applies differently, restarts included;
//! - members that have applied the same have the same state, and its invariants hold;
//! - a submission that was acknowledged is never missing: not at the end, and not for a reader after it;
//! - no submission becomes two applications, no process is launched twice, and no worker stops one that shall run;
//! - when the mishaps end, everything comes to rest: members equal, requests answered, workers running what they shall.

mod actors;
mod member;
mod mishaps;
mod network;
mod notes;
mod random;
mod record;

pub use notes::Trace;

use super::log_store::{Bootstrap, LogStore};
use super::node::{FatalError, Input};
use super::{OpenError, ProposeError, StoreError};
use actors::{Client, Orders, Stage, Worker};
use firesteel_common::{ApplicationId, ProcessId};
use firesteel_master_core::{desired, schedule};
use member::{Member, Pending, Purpose, TIMING};
use network::Network;
use notes::{Note, Notes};
use raft::eraftpb::{Message, MessageType};
use random::Random;
use record::{Observed, Record};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const CLUSTER: &str = "simulated";
/// 2026, so that application ids look as they do.
const EPOCH_MS: u64 = 1_790_000_000_000;
/// After the mishaps everything must be at rest within this.
const REST_LIMIT_MS: u64 = 60_000;
/// A simulation that takes more events than this is going round in circles.
const MAX_EVENTS: u64 = 1_000_000;

/// What a simulation went through; counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub simulated_ms: u64,
    pub rounds: u64,
    pub messages: u64,
    /// Terms that had a leader.
    pub leaders: u64,
    pub entries: u64,
    pub crashes: u64,
    pub failed_disks: u64,
    pub snapshots_sent: u64,
    pub snapshots: u64,
    pub membership_changes: u64,
    pub removed: u64,
    pub transfers: u64,
    pub submissions: u64,
    pub reads: u64,
    pub launches: u64,
    /// Orders of a leader that had been replaced, which a worker refused.
    pub refused_orders: u64,
}

impl Summary {
    fn numbers(&mut self) -> [(&'static str, &mut u64); 16] {
        [
            ("simulated ms", &mut self.simulated_ms),
            ("rounds", &mut self.rounds),
            ("messages", &mut self.messages),
            ("leaders", &mut self.leaders),
            ("log entries", &mut self.entries),
            ("crashes", &mut self.crashes),
            ("failed disks", &mut self.failed_disks),
            ("snapshots sent", &mut self.snapshots_sent),
            ("snapshots by hand", &mut self.snapshots),
            ("membership changes", &mut self.membership_changes),
            ("members removed", &mut self.removed),
            ("transfers", &mut self.transfers),
            ("submissions", &mut self.submissions),
            ("reads", &mut self.reads),
            ("launches", &mut self.launches),
            ("refused orders", &mut self.refused_orders),
        ]
    }

    pub fn add(&mut self, mut other: Self) {
        for ((_, sum), (_, number)) in self.numbers().into_iter().zip(other.numbers()) {
            *sum += *number;
        }
    }

    /// Each count with its name.
    pub fn counts(mut self) -> [(&'static str, u64); 16] {
        self.numbers().map(|(name, number)| (name, *number))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> =
            self.counts().iter().map(|(name, number)| format!("{number} {name}")).collect();
        f.write_str(&words.join(", "))
    }
}

/// What broke, and when.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub what: String,
    /// What happened last.
    pub events: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, what, events } = self;
        for event in events {
            writeln!(f, "{event}")?;
        }
        writeln!(f, "seed {seed}: {what}")?;
        write!(f, "replay: target/release/simulate --seed {seed} --trace")
    }
}

impl std::error::Error for Failure {}

/// Runs one simulation.
pub fn run(seed: u64) -> Result<Summary, Failure> {
    World::new(seed, None, Disks::Honest).and_then(World::run)
}

/// As [`run`], showing every event as it happens.
pub fn run_traced(seed: u64, trace: Trace) -> Result<Summary, Failure> {
    World::new(seed, Some(trace), Disks::Honest).and_then(World::run)
}

/// Runs the simulations of `count` seeds from `first` on; the sum of their counts, or the first failure.
pub fn run_many(first: u64, count: u64) -> Result<Summary, Failure> {
    let mut sum = Summary::default();
    for seed in first..first + count {
        sum.add(run(seed)?);
    }
    Ok(sum)
}

/// To see whether the checks notice a disk that lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disks {
    Honest,
    #[cfg_attr(not(test), allow(dead_code))]
    ForgetSyncs,
}

enum Event {
    /// A member that was busy can go on.
    Wake {
        member: u64,
        life: u32,
    },
    Tick {
        member: u64,
        life: u32,
    },
    Deliver(Box<Message>),
    /// What a member learns about the network.
    Feedback {
        member: u64,
        life: u32,
        input: Box<Input<Observed>>,
    },
    Restart(u64),
    Heal,
    Mishap,
    Calm,
    Client {
        number: usize,
        stamp: u32,
    },
    Worker(usize),
    WorkerUp(usize),
    Orders(Box<Orders>),
    Exit {
        worker: usize,
        process: ProcessId,
    },
    Read,
    LookForRest,
}

/// Ordered by time, then by when it was planned.
struct Planned {
    at_ms: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.number).cmp(&(other.at_ms, other.number))
    }
}

struct World {
    seed: u64,
    random: Random,
    now_ms: u64,
    /// The instant of 0 ms; only differences count.
    start: Instant,
    queue: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    members: BTreeMap<u64, Member>,
    network: Network,
    clients: Vec<Client>,
    workers: Vec<Worker>,
    record: Record,
    /// What clients were promised, oldest first.
    acknowledged: Vec<ApplicationId>,
    /// The newest state that any member has shown, and how far it goes.
    newest: (u64, Arc<Observed>),
    /// Members that have something to do now.
    woken: BTreeSet<u64>,
    /// A change of members is under way.
    changing: bool,
    /// No mishaps any more.
    calm: bool,
    pace_ms: u64,
    disks: Disks,
    notes: Notes,
    summary: Summary,
}

impl World {
    fn new(seed: u64, trace: Option<Trace>, disks: Disks) -> Result<Self, Failure> {
        let mut random = Random::new(seed);
        let mut network = Network::default();
        // A few seeds have a good network, so that other mishaps are seen undisturbed.
        if random.chance(70) {
            network.loss_percent = random.below(12);
            network.doubled_percent = random.below(8);
            network.late_percent = random.below(20);
            network.late_ms = random.between(10, 1_500);
        }
        let mut world = Self {
            seed,
            pace_ms: random.between(100, 900),
            random,
            now_ms: 0,
            start: Instant::now(),
            queue: BinaryHeap::new(),
            planned: 0,
            members: BTreeMap::new(),
            network,
            clients: Vec::new(),
            workers: Vec::new(),
            record: Record::new(),
            acknowledged: Vec::new(),
            newest: (0, Arc::default()),
            woken: BTreeSet::new(),
            changing: false,
            calm: false,
            disks,
            notes: Notes::new(trace),
            summary: Summary::default(),
        };
        world.found().map_err(|what| world.failure(what))?;
        Ok(world)
    }

    fn found(&mut self) -> Result<(), String> {
        let size = self.random.pick(&[3, 3, 3, 4, 5]).unwrap_or(3);
        let voters: Vec<u64> = (1..=size).collect();
        for id in &voters {
            let mut member = Member::new(Bootstrap::founders(CLUSTER.to_owned(), *id, voters.clone()));
            member.clock_ms = self.random.below(2_000);
            // Some disks are slow.
            member.disk_ms = if self.random.chance(15) { self.random.between(20, 400) } else { 1 };
            if self.disks == Disks::ForgetSyncs {
                member.disk.forget_syncs();
            }
            self.members.insert(*id, member);
            self.later_between(1, 300, Event::Restart(*id));
        }
        for number in 0..self.random.between(1, 3) as usize {
            self.clients.push(Client::new());
            self.later_between(500, 2_500, Event::Client { number, stamp: 0 });
        }
        for number in 0..self.random.between(1, 3) as usize {
            self.workers.push(Worker::new(number)?);
            self.later_between(500, 2_500, Event::Worker(number));
        }
        self.later_between(500, 2_500, Event::Mishap);
        self.later_between(500, 2_500, Event::Read);
        self.later_between(8_000, 14_000, Event::Calm);
        Ok(())
    }

    fn run(mut self) -> Result<Summary, Failure> {
        // The `raft` crate panics where it finds itself contradicted.
        let result = catch_unwind(AssertUnwindSafe(|| self.events())).unwrap_or_else(|panic| {
            let said = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("a panic: {}", said.unwrap_or_default()))
        });
        result.map_err(|what| self.failure(what))?;
        self.summary.simulated_ms = self.now_ms;
        self.summary.leaders = self.record.leaders.len() as u64;
        self.summary.entries = self.record.last_applied();
        Ok(self.summary)
    }

    fn failure(&self, what: String) -> Failure {
        Failure { seed: self.seed, what, events: self.notes.lines() }
    }

    fn events(&mut self) -> Result<(), String> {
        let mut rest_by_ms = u64::MAX;
        for _ in 0..MAX_EVENTS {
            let Some(Reverse(Planned { at_ms, event, .. })) = self.queue.pop() else {
                return Err("nothing is planned any more".to_owned());
            };
            self.now_ms = at_ms;
            if at_ms > rest_by_ms {
                let why = self.unrest()?.unwrap_or_default();
                return Err(format!("no rest {REST_LIMIT_MS} ms after the last mishap: {why}"));
            }
            match event {
                Event::Calm => {
                    self.calm_down();
                    rest_by_ms = at_ms + REST_LIMIT_MS;
                }
                Event::LookForRest => match self.unrest()? {
                    None => return self.compare_all(),
                    Some(_) => self.later(250, Event::LookForRest),
                },
                other => self.handle(other)?,
            }
        }
        Err(format!("more than {MAX_EVENTS} events"))
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Wake { member, life } => {
                if let Some(m) = self.members.get_mut(&member).filter(|m| m.life == life) {
                    m.wake_set = false;
                    self.wake(member);
                }
            }
            Event::Tick { member, life } => {
                if let Some(m) = self.members.get_mut(&member).filter(|m| m.life == life) {
                    m.tick_due = true;
                    let tick = TIMING.tick.as_millis() as u64;
                    // No two clocks run alike.
                    let next = tick - 3 + member % 7;
                    self.later(next, Event::Tick { member, life });
                    self.wake(member);
                }
            }
            Event::Deliver(message) => self.deliver(*message),
            Event::Feedback { member, life, input } => {
                if self.members.get(&member).is_some_and(|m| m.life == life) {
                    self.give(member, *input);
                }
            }
            Event::Restart(id) => self.start(id)?,
            Event::Heal => {
                self.say(|| "the network is whole".to_owned());
                self.network.heal();
            }
            Event::Mishap => self.mishap()?,
            Event::Client { number, stamp } => self.client_step(number, stamp)?,
            Event::Worker(number) => self.worker_beat(number)?,
            Event::WorkerUp(number) => self.workers[number].up = true,
            Event::Orders(orders) => self.orders(&orders)?,
            Event::Exit { worker, process } => self.exit(worker, process),
            Event::Read => self.ask_to_read(),
            Event::Calm | Event::LookForRest => {}
        }
        self.run_woken()
    }

    fn later(&mut self, delay_ms: u64, event: Event) {
        self.planned += 1;
        self.queue.push(Reverse(Planned { at_ms: self.now_ms + delay_ms, number: self.planned, event }));
    }

    fn later_between(&mut self, from_ms: u64, to_ms: u64, event: Event) {
        let delay = self.random.between(from_ms, to_ms);
        self.later(delay, event);
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        self.notes.add(self.now_ms, Note::Said(text()));
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    /// What a member believes that time is.
    fn clock_of(&self, id: u64) -> u64 {
        EPOCH_MS + self.now_ms + self.members.get(&id).map_or(0, |m| m.clock_ms)
    }

    fn start(&mut self, id: u64) -> Result<(), String> {
        let (seed, now) = (self.seed, self.instant());
        let Some(member) = self.members.get_mut(&id).filter(|m| m.running.is_none() && !m.gone) else {
            return Ok(());
        };
        // What it writes while it opens counts against its disk.
        match member.start(seed, now) {
            Ok(()) => {
                let life = member.life;
                let (applied, term) = member
                    .running
                    .as_ref()
                    .map_or((0, 0), |r| (r.published().applied, r.published().epoch.0));
                self.say(|| format!("{id} starts with {applied} applied in term {term}"));
                self.record.states(id)?;
                self.later_between(1, 100, Event::Tick { member: id, life });
                self.wake(id);
                Ok(())
            }
            Err(OpenError::State(FatalError::Removed)) => {
                self.gone(id);
                Ok(())
            }
            Err(OpenError::Store(StoreError::Io { .. })) => {
                member.disk.repair();
                self.later_between(50, 500, Event::Restart(id));
                Ok(())
            }
            Err(error) => Err(format!("member {id} does not start: {error}")),
        }
    }

    fn gone(&mut self, id: u64) {
        self.say(|| format!("{id} knows that it was removed"));
        self.summary.removed += 1;
        if let Some(member) = self.members.get_mut(&id) {
            member.gone = true;
        }
    }

    /// Takes a member's process away; whoever waited for it is told what it had answered.
    fn end(&mut self, id: u64) -> Result<(), String> {
        self.poll(id)?;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        for call in member.end() {
            self.answered(id, call.purpose, Err(ProposeError::Stopped))?;
        }
        Ok(())
    }

    fn poll(&mut self, id: u64) -> Result<(), String> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let mut answered = Vec::new();
        member.calls.retain_mut(|call| match call.answer.poll() {
            Some(result) => {
                answered.push((call.purpose, result));
                false
            }
            None => true,
        });
        for (purpose, result) in answered {
            self.answered(id, purpose, result)?;
        }
        Ok(())
    }

    /// Puts something into a member's queue.
    fn give(&mut self, id: u64, input: Input<Observed>) {
        if let Some(member) = self.members.get_mut(&id).filter(|m| m.running.is_some()) {
            member.inbox.push(input);
            self.wake(id);
        }
    }

    fn feed_back(&mut self, delay_ms: u64, id: u64, input: Input<Observed>) {
        if let Some(member) = self.members.get(&id) {
            let life = member.life;
            self.later(delay_ms, Event::Feedback { member: id, life, input: Box::new(input) });
        }
    }

    /// Lets a member work as soon as it is free.
    fn wake(&mut self, id: u64) {
        let now_ms = self.now_ms;
        let Some(member) = self.members.get_mut(&id).filter(|m| m.running.is_some() && !m.wake_set) else {
            return;
        };
        member.wake_set = true;
        if member.busy_until_ms > now_ms {
            let (delay, life) = (member.busy_until_ms - now_ms, member.life);
            self.later(delay, Event::Wake { member: id, life });
        } else {
            self.woken.insert(id);
        }
    }

    /// Rounds of all members that have something to do now.
    fn run_woken(&mut self) -> Result<(), String> {
        while let Some(id) = self.woken.pop_first() {
            self.round(id)?;
        }
        Ok(())
    }

    fn round(&mut self, id: u64) -> Result<(), String> {
        let now = self.instant();
        let Some(member) = self.members.get_mut(&id).filter(|m| m.running.is_some()) else { return Ok(()) };
        member.wake_set = false;
        let result = member.round(now);
        member.busy_until_ms = self.now_ms + self.random.between(0, member.disk_ms);
        let messages = member.outbox.take();
        self.summary.rounds += 1;
        for message in messages {
            self.transmit(message);
        }
        self.look_at(id)?;
        self.poll(id)?;
        match result {
            Ok(()) => self.lead(id),
            Err(FatalError::Removed) => {
                self.end(id)?;
                self.gone(id);
                Ok(())
            }
            Err(FatalError::Store(StoreError::Io { .. })) => {
                self.summary.failed_disks += 1;
                self.crash(id, "cannot write")
            }
            Err(error) => Err(format!("member {id} ends: {error}")),
        }
    }

    /// Compares what a member shows with what is known.
    fn look_at(&mut self, id: u64) -> Result<(), String> {
        self.record.states(id)?;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let Some(running) = &member.running else { return Ok(()) };
        let (applied, term, leads) = {
            let published = running.views.published.borrow();
            if published.applied > self.newest.0 {
                self.newest = (published.applied, published.state.clone());
            }
            (published.applied, published.epoch.0, published.leader_id == Some(id))
        };
        let log = running.node.log();
        if member.compared < applied {
            let first = log.first_index().max(member.compared + 1);
            if first <= applied {
                let entries = log.entries(first, applied + 1, None);
                self.record.applied(id, &entries.map_err(|error| error.to_string())?)?;
            }
            member.compared = applied;
        }
        if leads && self.record.leads(id, term, log)? {
            self.say(|| format!("{id} leads in term {term}"));
        }
        Ok(())
    }

    fn transmit(&mut self, message: Message) {
        let (from, to) = (message.from, message.to);
        self.summary.messages += 1;
        let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        let there = self.members.get(&to).is_some_and(|m| m.running.is_some());
        if !there || !self.network.passes(from, to) || self.random.chance(self.network.loss_percent) {
            self.notes.add(self.now_ms, Note::Message { fate: "lost", message: (&message).into() });
            let delay = self.random.between(1, 500);
            if is_snapshot {
                self.feed_back(delay, from, Input::SnapshotSent { to, ok: false });
            }
            if self.random.chance(30) {
                self.feed_back(delay, from, Input::Unreachable(to));
            }
            return;
        }
        let delay = self.network.delay_ms(&mut self.random);
        if is_snapshot {
            self.summary.snapshots_sent += 1;
            self.feed_back(delay + 1, from, Input::SnapshotSent { to, ok: true });
        }
        if self.random.chance(self.network.doubled_percent) {
            let delay = self.network.delay_ms(&mut self.random);
            self.later(delay, Event::Deliver(Box::new(message.clone())));
        }
        self.later(delay, Event::Deliver(Box::new(message)));
    }

    fn deliver(&mut self, message: Message) {
        let (from, to) = (message.from, message.to);
        // A partition also stops what is under way.
        let passes = self.network.passes(from, to);
        let fate = if passes { "arrives" } else { "lost" };
        self.notes.add(self.now_ms, Note::Message { fate, message: (&message).into() });
        if passes {
            self.give(to, Input::Message(message));
        }
    }

    fn ask_to_read(&mut self) {
        if self.calm {
            return;
        }
        self.later_between(50, 500, Event::Read);
        let ids: Vec<u64> = self.members.keys().copied().collect();
        let leaders: Vec<u64> = self
            .members
            .values()
            .filter(|m| m.running.as_ref().is_some_and(|r| r.views.published.borrow().leader))
            .map(|m| m.id)
            .collect();
        let asked = if self.random.chance(90) { self.random.pick(&leaders) } else { self.random.pick(&ids) };
        if let Some(asked) = asked {
            let acknowledged = self.acknowledged.len();
            let (answer, receiver) = oneshot::channel();
            self.ask(
                asked,
                Input::ReadBarrier(answer),
                Purpose::Read { acknowledged },
                Pending::Done(receiver),
            );
        }
    }

    /// The end of all mishaps.
    fn calm_down(&mut self) {
        self.say(|| "calm".to_owned());
        self.calm = true;
        self.network = Network::default();
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            if let Some(member) = self.members.get_mut(&id) {
                member.disk.repair();
                member.busy_until_ms = member.busy_until_ms.min(self.now_ms + 100);
            }
            self.later(1, Event::Restart(id));
        }
        for worker in &mut self.workers {
            worker.up = true;
        }
        self.later(500, Event::LookForRest);
    }

    /// What is not at rest yet.
    fn unrest(&mut self) -> Result<Option<String>, String> {
        let newest = self
            .members
            .values()
            .filter_map(|m| m.running.as_ref())
            .map(|r| r.published())
            .filter(|published| published.leader)
            .max_by_key(|published| published.epoch);
        let Some(leader) = newest else { return Ok(Some("nobody leads".to_owned())) };
        let id = leader.member_id;
        let Some(view) = self.members.get(&id).and_then(|m| m.running.as_ref()).map(|r| r.members()) else {
            return Ok(Some("nobody leads".to_owned()));
        };
        if !view.quorum || !view.leading {
            return Ok(Some(format!("{id} leads without a majority")));
        }
        let group: BTreeSet<u64> = view.voters.union(&view.learners).copied().collect();
        let outside: Vec<u64> =
            self.members.values().filter(|m| !m.gone && !group.contains(&m.id)).map(|m| m.id).collect();
        if let Some(outsider) = outside.first() {
            // It asks the others why nobody answers, and they tell it; one that was never added is taken away.
            self.end(*outsider)?;
            self.gone(*outsider);
            return Ok(Some(format!("{outsider} does not belong to the group")));
        }
        for member in self.members.values().filter(|m| !m.gone) {
            let Some(running) = &member.running else {
                return Ok(Some(format!("{} is down", member.id)));
            };
            let published = running.published();
            if (published.applied, published.epoch) != (view.last_index, leader.epoch) {
                return Ok(Some(format!(
                    "{} has applied {} of {} in term {}",
                    member.id, published.applied, view.last_index, published.epoch.0
                )));
            }
            if let Some(call) = member.calls.first() {
                return Ok(Some(format!("{} owes an answer to {:?}", member.id, call.purpose)));
            }
        }
        if let Some((number, client)) =
            self.clients.iter().enumerate().find(|(_, c)| !matches!(c.stage, Stage::Resting))
        {
            return Ok(Some(format!("client {number} is {:?}", client.stage)));
        }
        let state = &leader.state.0;
        if let Some(planned) = schedule(state, self.clock_of(id)).first() {
            return Ok(Some(format!("the scheduler wants {planned:?}")));
        }
        for worker in &self.workers {
            let known = state.worker(&worker.id);
            if !known.is_some_and(|w| w.is_alive() && w.incarnation == worker.incarnation) {
                return Ok(Some(format!("{} is not registered", worker.id)));
            }
            let shall: BTreeSet<ProcessId> =
                desired(state, &worker.id).into_iter().map(|launch| launch.process).collect();
            if shall != worker.running || !worker.reports.is_empty() {
                return Ok(Some(format!("{} does not run what it shall", worker.id)));
            }
        }
        Ok(None)
    }

    /// At rest: every member must be the same, down to its disk.
    fn compare_all(&mut self) -> Result<(), String> {
        let mut first: Option<(u64, Arc<Observed>)> = None;
        let mut logs = Vec::new();
        for member in self.members.values().filter(|m| !m.gone) {
            let Some(running) = &member.running else { continue };
            let state = running.published().state;
            if let Some((other, known)) = &first {
                if *known != state {
                    return Err(format!("members {other} and {} have different states at rest", member.id));
                }
            } else {
                self.record.kept(&state.0)?;
                firesteel_master_core::invariants::check(&state.0)?;
                first = Some((member.id, state));
            }
            let log = running.node.log();
            let entries = log.entries(log.first_index(), log.last_index() + 1, None);
            logs.push((member.id, entries.map_err(|error| error.to_string())?));
        }
        for (id, entries) in logs {
            self.record.applied(id, &entries)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_hundred_clusters_survive() {
        let sum = run_many(0, 300).unwrap_or_else(|failure| panic!("{failure}"));
        for (what, count) in sum.counts() {
            assert!(count > 0, "no {what} in any of them: {sum}");
        }
    }

    #[test]
    fn a_seed_repeats_exactly() {
        for seed in [1, 77] {
            assert_eq!(run(seed).unwrap(), run(seed).unwrap());
        }
    }

    #[test]
    fn a_disk_that_forgets_what_it_synced_is_noticed() {
        let broken = |seed| World::new(seed, None, Disks::ForgetSyncs).and_then(World::run).is_err();
        assert!((0..20).any(broken));
    }
}
