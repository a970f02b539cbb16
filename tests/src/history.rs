//! What clients asked and were answered, and whether one order of events explains it all (linearizability).
//!
//! An application is an object with three states; every application is checked by itself, because operations on different
//! ones do not touch each other. An operation without an answer may have happened at any time after it was asked, or never.

use std::collections::{BTreeMap, HashSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Absent,
    Active,
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// With the application's key: repeating it changes nothing.
    Submit,
    Kill,
    Read,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Submitted,
    Killed,
    AlreadyEnded,
    NotFound,
    Seen(State),
}

/// One operation on one object; times are of one monotonic clock.
#[derive(Debug, Clone)]
pub struct Event {
    pub object: String,
    pub operation: Operation,
    pub asked: u64,
    /// When the answer was there, and which; `None` when none came or it says nothing.
    pub answered: Option<(u64, Answer)>,
}

/// What an operation does to the state, if the answer is possible there.
fn step(state: State, event: &Event) -> Option<State> {
    let (next, answer) = match (event.operation, state) {
        (Operation::Submit, State::Absent) => (State::Active, Answer::Submitted),
        (Operation::Submit, other) => (other, Answer::Submitted),
        (Operation::Kill, State::Active) => (State::Killed, Answer::Killed),
        (Operation::Kill, State::Killed) => (State::Killed, Answer::AlreadyEnded),
        (Operation::Kill, State::Absent) => (State::Absent, Answer::NotFound),
        (Operation::Read, state) => (state, Answer::Seen(state)),
    };
    match event.answered {
        Some((_, given)) if given != answer => None,
        _ => Some(next),
    }
}

/// Checks every object; the error shows the first history that nothing explains.
pub fn check(events: &[Event]) -> Result<usize, String> {
    let mut by_object: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in events {
        by_object.entry(&event.object).or_default().push(event);
    }
    for (object, mut events) in by_object.iter().map(|(o, e)| (o, e.clone())) {
        // A read without an answer says and does nothing.
        events.retain(|e| e.operation != Operation::Read || e.answered.is_some());
        events.sort_by_key(|e| e.asked);
        assert!(events.len() <= 128, "{object}: too long a history to check: {}", events.len());
        if !explain(State::Absent, 0, &events, &mut HashSet::new()) {
            return Err(format!("no order explains the history of {object}:\n{events:#?}"));
        }
    }
    Ok(by_object.len())
}

/// Whether the operations not in `done` can follow in some order that respects who was answered before whom was asked.
fn explain(state: State, done: u128, events: &[&Event], dead_ends: &mut HashSet<(State, u128)>) -> bool {
    let open = |n: usize| done & (1 << n) == 0;
    if (0..events.len()).all(|n| !open(n) || events[n].answered.is_none()) {
        return true;
    }
    if !dead_ends.insert((state, done)) {
        return false;
    }
    // Whatever comes next must have been asked before the first of the open answers was there.
    let first_answer =
        (0..events.len()).filter(|n| open(*n)).filter_map(|n| events[n].answered).map(|(at, _)| at).min();
    (0..events.len())
        .filter(|n| open(*n) && first_answer.is_none_or(|at| events[*n].asked <= at))
        .any(|n| step(state, events[n]).is_some_and(|next| explain(next, done | 1 << n, events, dead_ends)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(operation: Operation, asked: u64, answered: Option<(u64, Answer)>) -> Event {
        Event { object: "a".into(), operation, asked, answered }
    }

    #[test]
    fn honest_histories_pass() {
        use {Answer::*, Operation::*, State::*};
        let events = [
            event(Submit, 0, Some((10, Submitted))),
            event(Read, 5, Some((7, Seen(Absent)))),
            event(Read, 5, Some((8, Seen(Active)))),
            event(Kill, 11, None),
            event(Read, 20, Some((21, Seen(Active)))),
            event(Read, 22, Some((23, Seen(State::Killed)))),
            event(Kill, 24, Some((25, AlreadyEnded))),
        ];
        assert_eq!(check(&events), Ok(1));
    }

    #[test]
    fn a_lost_submission_a_stale_read_and_a_second_kill_are_found() {
        use {Answer::*, Operation::*, State::*};
        let lost = [event(Submit, 0, Some((1, Submitted))), event(Read, 2, Some((3, Seen(Absent))))];
        assert!(check(&lost).is_err());
        let stale = [
            event(Submit, 0, Some((1, Submitted))),
            event(Kill, 2, Some((3, Answer::Killed))),
            event(Read, 4, Some((5, Seen(Active)))),
        ];
        assert!(check(&stale).is_err());
        let twice = [
            event(Submit, 0, Some((1, Submitted))),
            event(Kill, 2, Some((3, Answer::Killed))),
            event(Kill, 4, Some((5, Answer::Killed))),
        ];
        assert!(check(&twice).is_err());
        let back = [
            event(Submit, 0, Some((1, Submitted))),
            event(Kill, 2, None),
            event(Read, 3, Some((4, Seen(State::Killed)))),
            event(Read, 5, Some((6, Seen(Active)))),
        ];
        assert!(check(&back).is_err(), "what has been seen does not go back");
    }
}
