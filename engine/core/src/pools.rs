//! Whose turn it is: jobs in pools, slots by weight.
//!
//! Problem: several jobs have tasks waiting, and one slot is free. With [`JobOrder::Fifo`] all jobs are in one pool. With
//! [`JobOrder::Fair`] the pool with the fewest running attempts for its weight is next (Spark's fair scheduler without
//! minimum shares). Within a pool the job that was submitted first is next, and within a job the stage that others wait
//! for. Long tasks are not interrupted: a pool that comes late gets the slots that become free.

use crate::{JobId, JobOrder, Policy};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// A stage that has tasks to launch, in the order in which stages are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// Of the job's submission.
    pub sequence: u64,
    pub job: JobId,
    /// Index of the stage.
    pub stage: usize,
}

#[derive(Debug)]
struct State {
    weight: u64,
    jobs: usize,
    running: u64,
    waiting: BTreeSet<Turn>,
    /// Up to here nothing could be placed in this pass.
    passed: Option<Turn>,
}

#[derive(Debug, Default)]
pub(crate) struct Pools(BTreeMap<Arc<str>, State>);

impl Pools {
    /// Enters a job. Returns the pool's name for all other calls.
    pub fn join(&mut self, name: &str, policy: &Policy) -> Arc<str> {
        let name: Arc<str> = match policy.order {
            JobOrder::Fifo => "".into(),
            JobOrder::Fair => name.into(),
        };
        let weight = policy.pools.get(&*name).map_or(1, |pool| u64::from(pool.weight.max(1)));
        let state = self.0.entry(Arc::clone(&name)).or_insert_with(|| State {
            weight,
            jobs: 0,
            running: 0,
            waiting: BTreeSet::new(),
            passed: None,
        });
        state.jobs += 1;
        name
    }

    /// A job is forgotten.
    pub fn leave(&mut self, name: &Arc<str>) {
        if let Some(state) = self.0.get_mut(name) {
            state.jobs -= 1;
            if state.jobs == 0 {
                self.0.remove(name);
            }
        }
    }

    pub fn started(&mut self, name: &Arc<str>) {
        if let Some(state) = self.0.get_mut(name) {
            state.running += 1;
        }
    }

    pub fn ended(&mut self, name: &Arc<str>) {
        if let Some(state) = self.0.get_mut(name) {
            state.running -= 1;
        }
    }

    pub fn set_waiting(&mut self, name: &Arc<str>, turn: Turn, waiting: bool) {
        if let Some(state) = self.0.get_mut(name) {
            if waiting {
                state.waiting.insert(turn);
            } else {
                state.waiting.remove(&turn);
            }
        }
    }

    /// Begins a pass over all that wait.
    pub fn begin(&mut self) {
        self.0.values_mut().for_each(|state| state.passed = None);
    }

    /// The next turn of the pass.
    pub fn next(&self) -> Option<(&Arc<str>, Turn)> {
        let mut best: Option<(&Arc<str>, &State, Turn)> = None;
        for (name, state) in &self.0 {
            let from = state.passed.map_or(Bound::Unbounded, Bound::Excluded);
            let Some(&turn) = state.waiting.range((from, Bound::Unbounded)).next() else { continue };
            if best.is_none_or(|(_, other, _)| state.running * other.weight < other.running * state.weight) {
                best = Some((name, state, turn));
            }
        }
        best.map(|(name, _, turn)| (name, turn))
    }

    /// Nothing of this turn can be placed now: leave it out for the rest of the pass.
    pub fn pass(&mut self, name: &Arc<str>, turn: Turn) {
        if let Some(state) = self.0.get_mut(name) {
            state.passed = Some(turn);
        }
    }

    /// Attempts that run, and turns that wait, of all pools.
    pub fn sums(&self) -> (u64, usize) {
        self.0.values().fold((0, 0), |sum, state| (sum.0 + state.running, sum.1 + state.waiting.len()))
    }
}
