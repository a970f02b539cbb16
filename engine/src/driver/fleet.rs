//! The executors of this application as the driver knows them: pure, told by the master and by failed calls.

use firesteel_common::{ExecutorState, Resources};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// An executor in the master's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executor {
    pub number: u32,
    pub state: ExecutorState,
    /// `HOST:PORT`; empty until it runs.
    pub address: String,
    /// The worker that it runs under, which keeps its map outputs.
    pub worker: String,
    pub host: String,
    pub resources: Resources,
    /// How it ended, in words.
    pub message: String,
}

/// Whether a query may start now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Run on these.
    Ready(Vec<Executor>),
    /// Ask again when the fleet changes, or at the latest after so long.
    Wait(Option<Duration>),
    /// There were executors, now there are none, and none came in time.
    GaveUp(String),
}

/// Executors that are starting hold a query back for at most so long once another one is up.
pub const STRAGGLER_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct Fleet {
    executors: Vec<Executor>,
    target: u32,
    waiting_reason: String,
    /// Seen dead by this driver; the master may not know yet. Numbers are never used again.
    suspects: BTreeSet<u32>,
    had_executors: bool,
    /// When the set of usable executors last became empty, or non-empty while others were starting.
    since: Instant,
    patience: Duration,
}

impl Fleet {
    pub fn new(now: Instant, patience: Duration) -> Self {
        Self {
            executors: Vec::new(),
            target: 0,
            waiting_reason: String::new(),
            suspects: BTreeSet::new(),
            had_executors: false,
            since: now,
            patience,
        }
    }

    /// The master's newest list replaces the one before.
    pub fn update(&mut self, executors: Vec<Executor>, target: u32, waiting_reason: String, now: Instant) {
        let before = self.running().count();
        self.executors = executors;
        self.target = target;
        self.waiting_reason = waiting_reason;
        self.note_change(before, now);
    }

    /// A call to the executor failed in a way that says the process is gone.
    pub fn suspect(&mut self, number: u32, now: Instant) {
        let before = self.running().count();
        self.suspects.insert(number);
        self.note_change(before, now);
    }

    fn note_change(&mut self, before: usize, now: Instant) {
        let after = self.running().count();
        self.had_executors |= after > 0;
        if (before == 0) != (after == 0) {
            self.since = now;
        }
    }

    fn usable(&self) -> impl Iterator<Item = &Executor> {
        self.executors.iter().filter(|e| !e.state.is_final() && !self.suspects.contains(&e.number))
    }

    /// Executors that can take tasks.
    pub fn running(&self) -> impl Iterator<Item = &Executor> {
        self.usable().filter(|e| e.state == ExecutorState::Running && !e.address.is_empty())
    }

    /// How many executors a plan made now should count on: those granted, or the target while none is.
    pub fn planned(&self) -> usize {
        match self.usable().count() {
            0 => self.target.max(1) as usize,
            granted => granted,
        }
    }

    pub fn waiting_reason(&self) -> &str {
        &self.waiting_reason
    }

    pub fn readiness(&self, now: Instant) -> Readiness {
        let running: Vec<Executor> = self.running().cloned().collect();
        let waited = now.saturating_duration_since(self.since);
        if !running.is_empty() {
            let starting = self.usable().count() - running.len();
            return match STRAGGLER_PATIENCE.checked_sub(waited) {
                Some(left) if starting > 0 && !left.is_zero() => Readiness::Wait(Some(left)),
                _ => Readiness::Ready(running),
            };
        }
        if !self.had_executors {
            // The application is queued: the master says why, and the user decides how long that is acceptable.
            return Readiness::Wait(None);
        }
        match self.patience.checked_sub(waited) {
            Some(left) if !left.is_zero() => Readiness::Wait(Some(left)),
            _ => Readiness::GaveUp(self.obituary()),
        }
    }

    fn obituary(&self) -> String {
        let last = self.executors.iter().rev().find(|e| e.state.is_final());
        let mut text =
            format!("all executors are gone and none came back within {} s", self.patience.as_secs());
        if let Some(executor) = last {
            text.push_str(&format!("; the last: executor {} {}", executor.number, executor.message));
        }
        if !self.waiting_reason.is_empty() {
            text.push_str(&format!("; {}", self.waiting_reason));
        }
        text
    }
}
