//! What the group replicates, and how its commands are written into log entries.

use firesteel_master_core::{ClusterState, Command, Outcome};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;

/// State that changes only through commands, the same on every member. Cloning must be cheap: readers keep old
/// states while new commands are applied.
pub trait StateMachine: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static {
    type Command: Serialize + DeserializeOwned + Send + 'static;
    type Outcome: Send + 'static;
    /// Deterministic and total. `index` is the command's place in the log, unique and rising.
    fn apply(&mut self, index: u64, command: Self::Command) -> Self::Outcome;
    /// Of everything in it: members that have applied the same commands must agree.
    fn hash(&self) -> u64 {
        let mut hash = Fnv1a::default();
        // A state that cannot be written as JSON has no snapshot either; that is where it is reported.
        let _ = serde_json::to_writer(&mut hash, self);
        hash.0
    }
}

/// FNV-1a, 64 bits: the same on every machine and in every build.
#[derive(Debug, Clone, Copy)]
pub struct Fnv1a(pub u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl io::Write for Fnv1a {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StateMachine for ClusterState {
    type Command = Command;
    type Outcome = Outcome;
    fn apply(&mut self, index: u64, command: Command) -> Outcome {
        firesteel_master_core::apply(self, index, command)
    }
    fn hash(&self) -> u64 {
        ClusterState::hash(self)
    }
}

/// First byte of every command in the log.
const COMMAND_VERSION: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("it has version {0}, and this build reads version {COMMAND_VERSION}")]
    Version(u8),
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

pub fn encode_command<C: Serialize>(command: &C) -> Result<Vec<u8>, CommandError> {
    let mut bytes = vec![COMMAND_VERSION];
    serde_json::to_writer(&mut bytes, command)?;
    Ok(bytes)
}

pub fn decode_command<C: DeserializeOwned>(bytes: &[u8]) -> Result<C, CommandError> {
    match bytes.split_first() {
        Some((&COMMAND_VERSION, json)) => Ok(serde_json::from_slice(json)?),
        Some((version, _)) => Err(CommandError::Version(*version)),
        None => Err(CommandError::Version(0)),
    }
}
