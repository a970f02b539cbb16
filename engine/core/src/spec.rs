//! What a driver asks to be run.

use crate::{JobId, StageId};

/// Tasks of one stage. More than that is a mistake, and would take the driver's memory.
pub const MAX_TASKS: u32 = 1_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    pub id: JobId,
    /// Which pool it belongs to; one that [`crate::Policy::pools`] does not know has the default weight.
    pub pool: String,
    /// A graph without cycles, in any order.
    pub stages: Vec<StageSpec>,
    /// The stages whose outputs the driver reads. At least one.
    pub results: Vec<StageId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageSpec {
    pub id: StageId,
    /// At least one, at most [`MAX_TASKS`].
    pub tasks: u32,
    pub inputs: Vec<Input>,
    /// Running a task again gives the same rows in the same partitions. When an output of a stage that cannot say so is
    /// lost, whatever has read the old outputs runs again too: half of one run and half of another are wrong rows.
    pub repeatable: bool,
}

/// An edge: what the stage that has it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// The producer.
    pub stage: StageId,
    pub kind: InputKind,
    /// Both ends run at once; otherwise the consumer starts when all outputs of the producer are there.
    pub streamed: bool,
}

/// Which producer tasks a consumer task reads, and how much of them. If in doubt, `Shuffle`: it assumes the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// Every consumer task reads its share of every producer task.
    Shuffle,
    /// Every consumer task reads all of every producer task.
    Broadcast,
    /// Consumer task `i` of `n` reads all of the `i`-th of `n` contiguous groups of producer tasks; the first groups are
    /// larger by one if they cannot be equal.
    Coalesce,
}
