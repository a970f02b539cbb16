//! Who waits for what, and how they are told.

use super::ProposeError;
use super::log_store::Position;
use super::state_machine::StateMachine;
use std::collections::BTreeMap;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub type Answer<T> = oneshot::Sender<Result<T, ProposeError>>;

/// Each command's place in the log and what it did.
pub type Outcomes<S> = Vec<(u64, <S as StateMachine>::Outcome)>;

pub enum Reply<S: StateMachine> {
    Commands {
        outcomes: Outcomes<S>,
        answer: Answer<Outcomes<S>>,
        /// Bounds what is queued; given back with the answer.
        _permit: Option<OwnedSemaphorePermit>,
    },
    Membership(Answer<()>),
}

impl<S: StateMachine> Reply<S> {
    // A caller that has gone away does not need the answer: failing to send is no error.
    pub fn succeed(self) {
        match self {
            Self::Commands { outcomes, answer, .. } => drop(answer.send(Ok(outcomes))),
            Self::Membership(answer) => drop(answer.send(Ok(()))),
        }
    }
    pub fn fail(self, error: ProposeError) {
        match self {
            Self::Commands { answer, .. } => drop(answer.send(Err(error))),
            Self::Membership(answer) => drop(answer.send(Err(error))),
        }
    }
}

/// Proposed entries `first..=last` whose proposer waits.
pub struct Waiter<S: StateMachine> {
    pub first: u64,
    pub last: u64,
    pub term: u64,
    pub reply: Reply<S>,
}

/// Reads that wait until this member is known to have led when they came, and to have applied all that was committed then.
#[derive(Default)]
pub struct Reads {
    /// Not yet asked for: Raft drops the question silently while the term has nothing committed.
    queued: Vec<Answer<()>>,
    asked: BTreeMap<u64, Vec<Answer<()>>>,
    /// By the index that must be applied.
    confirmed: BTreeMap<u64, Vec<Answer<()>>>,
    /// Contexts are unique within a leadership, and Raft forgets them with it.
    next_context: u64,
}

impl Reads {
    pub fn add(&mut self, answer: Answer<()>) {
        self.queued.push(answer);
    }

    pub fn is_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// One question for all that wait for one.
    pub fn ask(&mut self) -> Vec<u8> {
        self.next_context += 1;
        self.asked.insert(self.next_context, std::mem::take(&mut self.queued));
        self.next_context.to_le_bytes().to_vec()
    }

    /// The newest question was dropped; its askers go back into the queue.
    pub fn dropped(&mut self) {
        if let Some((_, answers)) = self.asked.pop_last() {
            self.queued.extend(answers);
        }
    }

    pub fn confirm(&mut self, context: &[u8], index: u64) {
        let context = context.try_into().map(u64::from_le_bytes);
        if let Some(answers) = context.ok().and_then(|context| self.asked.remove(&context)) {
            self.confirmed.entry(index).or_default().extend(answers);
        }
    }

    /// Call after the state is published.
    pub fn answer(&mut self, applied: u64) {
        while let Some(entry) = self.confirmed.first_entry().filter(|entry| *entry.key() <= applied) {
            for answer in entry.remove() {
                // The caller may have gone away.
                let _ = answer.send(Ok(()));
            }
        }
    }

    pub fn fail(&mut self, error: &ProposeError) {
        let asked = std::mem::take(&mut self.asked).into_values().flatten();
        let confirmed = std::mem::take(&mut self.confirmed).into_values().flatten();
        for answer in self.queued.drain(..).chain(asked).chain(confirmed) {
            let _ = answer.send(Err(error.clone()));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.queued.is_empty() && self.asked.is_empty() && self.confirmed.is_empty()
    }
}

/// Callers of `snapshot_now`, with the index that their snapshot must cover.
#[derive(Default)]
pub struct SnapshotWaiters(Vec<(u64, Answer<Position>)>);

impl SnapshotWaiters {
    pub fn add(&mut self, index: u64, answer: Answer<Position>) {
        self.0.push((index, answer));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn written(&mut self, position: Position) {
        for (index, answer) in std::mem::take(&mut self.0) {
            if index <= position.index {
                let _ = answer.send(Ok(position));
            } else {
                self.0.push((index, answer));
            }
        }
    }

    pub fn fail(&mut self, error: &ProposeError) {
        for (_, answer) in self.0.drain(..) {
            let _ = answer.send(Err(error.clone()));
        }
    }
}
