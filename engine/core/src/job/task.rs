//! A task and its attempts.

use super::Retries;
use crate::fleet::{ExecutorIndex, WorkerIndex};
use crate::{AttemptState, Cause, Output};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskState {
    /// For inputs or for a slot.
    Waiting,
    Running,
    /// Has succeeded; the rest of its gang has not yet.
    Held,
    /// Its output is there.
    Done,
    /// It has no output, and nobody needs it.
    Gone,
}

/// How much of a result the driver has passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Delivery {
    Nothing,
    Some,
    All,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub state: TaskState,
    /// By number.
    pub attempts: Vec<Attempt>,
    /// Numbers of the attempts that run: the first, and a copy.
    pub live: Live,
    /// Of a task that is `Held` or `Done`.
    pub output: Option<Made>,
    /// Why the next attempt will be launched.
    pub cause: Cause,
    pub retries: Retries,
    /// Attempts below this have read inputs that were replaced since.
    pub barrier: u32,
    /// An output of it has counted since then: others may have read it, even if it is lost by now.
    pub published: bool,
    /// Has, had or shall have a speculative copy since it last waited.
    pub copied: bool,
    pub delivery: Delivery,
}

#[derive(Debug)]
pub(crate) struct Attempt {
    pub executor: ExecutorIndex,
    /// Of the executor's worker when it began.
    pub life: u32,
    pub cause: Cause,
    pub state: AttemptState,
    pub started: Duration,
    pub ended: Option<Duration>,
}

/// An output that counts.
#[derive(Debug)]
pub(crate) struct Made {
    pub attempt: u32,
    pub output: Output,
    pub worker: Option<WorkerIndex>,
}

/// At most two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Live([Option<u32>; 2]);

impl Live {
    pub fn iter(self) -> impl Iterator<Item = u32> {
        self.0.into_iter().flatten()
    }

    pub fn len(self) -> usize {
        self.iter().count()
    }

    pub fn only(self) -> Option<u32> {
        match self.0 {
            [Some(one), None] | [None, Some(one)] => Some(one),
            _ => None,
        }
    }

    pub fn add(&mut self, attempt: u32) {
        if let Some(place) = self.0.iter_mut().find(|place| place.is_none()) {
            *place = Some(attempt);
        }
    }

    pub fn remove(&mut self, attempt: u32) {
        self.0.iter_mut().filter(|place| **place == Some(attempt)).for_each(|place| *place = None);
    }
}

impl Task {
    pub fn new() -> Self {
        Self {
            state: TaskState::Waiting,
            attempts: Vec::new(),
            live: Live::default(),
            output: None,
            cause: Cause::First,
            retries: Retries::default(),
            barrier: 0,
            published: false,
            copied: false,
            delivery: Delivery::Nothing,
        }
    }

    /// Neither there nor given up.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, TaskState::Done | TaskState::Gone)
    }
}
