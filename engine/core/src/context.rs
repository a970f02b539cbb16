//! What all jobs share.

use crate::fleet::{ExecutorIndex, Fleet};
use crate::pools::{Pools, Turn};
use crate::{Action, Counters, JobId, Policy};
use std::collections::BTreeSet;
use std::time::Duration;

/// What to look at when a time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// A stage may have stragglers, or has waited long enough for local slots.
    Stage { job: JobId, stage: usize },
    /// An executor that could not be reached gets another chance.
    Suspicion(ExecutorIndex),
}

#[derive(Debug)]
pub(crate) struct Context {
    pub policy: Policy,
    /// The time of the event at hand.
    pub now: Duration,
    pub fleet: Fleet,
    pub pools: Pools,
    /// Gangs whose inputs are there; `stage` is the index of the region.
    pub gangs: BTreeSet<Turn>,
    pub alarms: BTreeSet<(Duration, Alarm)>,
    pub totals: Counters,
    pub actions: Vec<Action>,
}

impl Context {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            now: Duration::ZERO,
            fleet: Fleet::default(),
            pools: Pools::default(),
            gangs: BTreeSet::new(),
            alarms: BTreeSet::new(),
            totals: Counters::default(),
            actions: Vec::new(),
        }
    }

    /// Moves an alarm; `None` is none.
    pub fn move_alarm(&mut self, alarm: Alarm, from: Option<Duration>, to: Option<Duration>) {
        if from != to {
            from.map(|at| self.alarms.remove(&(at, alarm)));
            to.map(|at| self.alarms.insert((at, alarm)));
        }
    }

    pub fn suspect(&mut self, executor: ExecutorIndex) {
        let until = self.now.saturating_add(self.policy.suspicion);
        let before = self.fleet.suspect_until(executor);
        self.move_alarm(Alarm::Suspicion(executor), before, Some(until));
        self.fleet.suspect(executor, until);
    }

    pub fn trust(&mut self, executor: ExecutorIndex) {
        let before = self.fleet.suspect_until(executor);
        self.move_alarm(Alarm::Suspicion(executor), before, None);
        self.fleet.trust(executor);
    }
}
