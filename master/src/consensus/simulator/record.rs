//! What the whole group has agreed on, as an outsider writes it down; anything that contradicts it is a fault.

use super::super::log_store::LogStore;
use super::super::state_machine::{Fnv1a, StateMachine};
use firesteel_common::{ApplicationId, ProcessId};
use firesteel_master_core::{ClusterState, Command, Outcome, invariants};
use raft::eraftpb::Entry;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;

/// The state is hashed and its invariants are checked at the indexes that this divides.
const LOOK_EVERY: u64 = 32;

/// The cluster's state, which tells the simulator what it has become.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Observed(pub ClusterState);

struct Look {
    index: u64,
    hash: u64,
    broken: Option<String>,
}

thread_local! {
    /// A simulation has one thread, and a state machine no way out but its outcome.
    static LOOKS: RefCell<Vec<Look>> = const { RefCell::new(Vec::new()) };
}

impl StateMachine for Observed {
    type Command = Command;
    type Outcome = Outcome;

    fn apply(&mut self, index: u64, command: Command) -> Outcome {
        let outcome = firesteel_master_core::apply(&mut self.0, index, command);
        if index.is_multiple_of(LOOK_EVERY) {
            let look = Look { index, hash: self.hash(), broken: invariants::check(&self.0).err() };
            LOOKS.with_borrow_mut(|looks| looks.push(look));
        }
        outcome
    }

    fn hash(&self) -> u64 {
        self.0.hash()
    }
}

#[derive(Default)]
pub struct Record {
    /// (term, hash of the content) of every entry that some member has applied.
    entries: BTreeMap<u64, (u64, u64)>,
    /// Of the state after the entry.
    hashes: BTreeMap<u64, u64>,
    pub leaders: BTreeMap<u64, u64>,
    /// What a client has been promised, by the name that it gave.
    pub acknowledged: BTreeMap<String, ApplicationId>,
    pub launched: BTreeMap<ProcessId, String>,
}

impl Record {
    /// Forgets what an earlier simulation on this thread left.
    pub fn new() -> Self {
        LOOKS.with_borrow_mut(Vec::clear);
        Self::default()
    }

    /// What the state machines have reported since the last call.
    pub fn states(&mut self, member: u64) -> Result<(), String> {
        LOOKS.with_borrow_mut(|looks| {
            looks.drain(..).try_for_each(|Look { index, hash, broken }| {
                if let Some(broken) = broken {
                    return Err(format!("member {member} after entry {index}: {broken}"));
                }
                match *self.hashes.entry(index).or_insert(hash) {
                    known if known == hash => Ok(()),
                    known => Err(format!(
                        "after entry {index} member {member} has the state {hash:x}, another had {known:x}"
                    )),
                }
            })
        })
    }

    /// Entries that `member` has applied, as its log has them.
    pub fn applied(&mut self, member: u64, entries: &[Entry]) -> Result<(), String> {
        for entry in entries {
            let mut hash = Fnv1a::default();
            // Writing into a hash cannot fail.
            let _ = hash.write_all(&entry.data).and_then(|()| hash.write_all(&entry.context));
            let new = (entry.term, hash.0);
            let known = *self.entries.entry(entry.index).or_insert(new);
            if known != new {
                return Err(format!(
                    "member {member} applied entry {} of term {}, but another applied one of term {} there",
                    entry.index, new.0, known.0
                ));
            }
        }
        Ok(())
    }

    pub fn last_applied(&self) -> u64 {
        self.entries.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// A member that leads must be the only one of its term, and have everything that was committed before.
    pub fn leads(&mut self, member: u64, term: u64, log: &impl LogStore) -> Result<bool, String> {
        match self.leaders.get(&term) {
            Some(known) if *known == member => return Ok(false),
            Some(known) => return Err(format!("members {known} and {member} both lead in term {term}")),
            None => {}
        }
        self.leaders.insert(term, member);
        // Votes may be so late that others are terms ahead: what they have committed it need not have.
        let newest = self.leaders.last_key_value().is_none_or(|(last, _)| *last == term);
        if let Some((index, (entry_term, _))) = self.entries.last_key_value().filter(|_| newest) {
            let own = log.term(*index);
            if !own.as_ref().is_ok_and(|own| own == entry_term) {
                return Err(format!(
                    "member {member} leads in term {term} without entry {index} of term {entry_term}, which was \
                     committed (it has {own:?})"
                ));
            }
        }
        Ok(true)
    }

    /// Says whether it is the first time.
    pub fn acknowledge(&mut self, name: &str, id: &ApplicationId) -> Result<bool, String> {
        match self.acknowledged.insert(name.to_owned(), id.clone()) {
            Some(known) if known != *id => {
                Err(format!("the submission {name} was acknowledged as {known} and as {id}"))
            }
            known => Ok(known.is_none()),
        }
    }

    pub fn launch(&mut self, process: &ProcessId, by: String) -> Result<(), String> {
        match self.launched.insert(process.clone(), by.clone()) {
            Some(earlier) => Err(format!("{process} was launched by {earlier} and by {by}")),
            None => Ok(()),
        }
    }

    /// Whether everything that was acknowledged is there, and once.
    pub fn kept(&self, state: &ClusterState) -> Result<(), String> {
        let mut by_name: BTreeMap<&str, &ApplicationId> = BTreeMap::new();
        for app in state.applications() {
            if let Some(other) = by_name.insert(&app.spec.name, &app.id) {
                return Err(format!("the submission {} became {other} and {}", app.spec.name, app.id));
            }
        }
        for (name, id) in &self.acknowledged {
            if by_name.get(name.as_str()) != Some(&id) {
                return Err(format!("the submission {name}, acknowledged as {id}, is not there"));
            }
        }
        Ok(())
    }
}
