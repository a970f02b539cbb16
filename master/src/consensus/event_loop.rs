//! The thread that drives a node: its queue and its clock.

use super::log_store::LogStore;
use super::node::{FatalError, GROUP_BYTES, Input, Node};
use super::snapshots::SnapshotStore;
use super::state_machine::StateMachine;
use super::transport::Transport;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Runs until told to stop or nobody is left to tell. While a round is being written new proposals gather; together they
/// are the next batch.
pub fn run<S: StateMachine, L: LogStore, P: SnapshotStore, T: Transport>(
    mut node: Node<S, L, P, T>,
    inbox: &Receiver<Input<S>>,
    tick: Duration,
) -> Result<(), FatalError> {
    node.round(Instant::now(), [], false)?;
    let mut next_tick = Instant::now() + tick;
    let mut inputs = Vec::new();
    loop {
        let compacting = node.compact_step()?;
        let wait =
            if compacting { Duration::ZERO } else { next_tick.saturating_duration_since(Instant::now()) };
        let mut input = match inbox.recv_timeout(wait) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return node.finish(),
        };
        let mut bytes = 0;
        let mut stop = false;
        while let Some(next) = input {
            if matches!(next, Input::Stop) {
                stop = true;
                break;
            }
            bytes += next.bytes();
            inputs.push(next);
            input = if bytes < GROUP_BYTES { inbox.try_recv().ok() } else { None };
        }
        if stop {
            return node.finish();
        }
        // One tick however long the round took: a stalled thread must not believe that an election is overdue.
        let now = Instant::now();
        let tick_due = now >= next_tick;
        if tick_due {
            next_tick = now + tick;
        }
        node.round(now, inputs.drain(..), tick_due)?;
    }
}
