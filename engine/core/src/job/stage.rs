//! A stage and its sets of tasks.

use super::distrust::Distrust;
use super::queue::Queue;
use super::task::Task;
use crate::fleet::WorkerIndex;
use crate::graph::{Edge, Node};
use crate::median::Median;
use crate::{Counters, StageId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Stage {
    pub id: StageId,
    pub inputs: Vec<Edge>,
    pub consumers: Vec<Edge>,
    pub repeatable: bool,
    pub result: bool,
    pub region: usize,
    pub tasks: Vec<Task>,
    /// Tasks that are neither `Done` nor `Gone`.
    pub open: u32,
    /// Tasks that are `Gone`.
    pub gone: BTreeSet<u32>,
    /// Tasks with a live attempt.
    pub running: u32,
    /// Materialised inputs whose stages are open.
    pub blocked_by: u32,
    /// Results that have not been delivered as a whole.
    pub undelivered: u32,
    /// How many tasks of consumers have finished, ever; of a result, how many were delivered too.
    pub consumed: u64,
    /// Tasks that wait for a slot. Unused in gangs.
    pub queue: Queue,
    /// Stragglers that shall have a copy.
    pub copies: BTreeSet<u32>,
    /// Tasks that could become stragglers, by when they began.
    pub candidates: BTreeSet<(Duration, u32)>,
    pub durations: Median,
    /// Bytes of its outputs.
    pub bytes_on: BTreeMap<WorkerIndex, u64>,
    pub distrust: Distrust,
    /// Whether the pool knows that it has something to launch.
    pub listed: bool,
    /// Until then tasks hold out for slots near their inputs.
    pub local_until: Duration,
    pub alarm: Option<Duration>,
    pub output_bytes: u64,
    pub output_rows: u64,
    pub started: Option<Duration>,
    pub ended: Option<Duration>,
    pub counters: Counters,
}

impl Stage {
    pub fn new(node: Node) -> Self {
        let materialised = node.inputs.iter().filter(|edge| !edge.streamed).count();
        Self {
            id: node.id,
            inputs: node.inputs,
            consumers: node.consumers,
            repeatable: node.repeatable,
            result: node.result,
            region: node.region,
            tasks: (0..node.tasks).map(|_| Task::new()).collect(),
            open: node.tasks,
            gone: BTreeSet::new(),
            running: 0,
            blocked_by: materialised as u32,
            undelivered: if node.result { node.tasks } else { 0 },
            consumed: 0,
            queue: Queue::all(node.tasks),
            copies: BTreeSet::new(),
            candidates: BTreeSet::new(),
            durations: Median::default(),
            bytes_on: BTreeMap::new(),
            distrust: Distrust::default(),
            listed: false,
            local_until: Duration::ZERO,
            alarm: None,
            output_bytes: 0,
            output_rows: 0,
            started: None,
            ended: None,
            counters: Counters::default(),
        }
    }

    pub fn task(&self, task: u32) -> &Task {
        &self.tasks[task as usize]
    }

    pub fn task_count(&self) -> u32 {
        self.tasks.len() as u32
    }
}
