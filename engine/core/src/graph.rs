//! From a specification to a graph in which every stage knows its neighbours and its region.

use crate::spec::MAX_TASKS;
use crate::{InputKind, JobSpec, StageId};
use std::collections::BTreeMap;
use std::ops::Range;

/// One end of an edge, seen from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    /// Index of the stage at the far end.
    pub stage: usize,
    pub kind: InputKind,
    pub streamed: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub id: StageId,
    pub tasks: u32,
    pub repeatable: bool,
    pub result: bool,
    pub inputs: Vec<Edge>,
    pub consumers: Vec<Edge>,
    pub region: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Graph {
    /// Producers before consumers.
    pub nodes: Vec<Node>,
    /// Indices of the stages of each region.
    pub regions: Vec<Vec<usize>>,
}

impl Graph {
    /// Says in words what is wrong with a specification that cannot be run to its end.
    pub fn of(spec: &JobSpec) -> Result<Self, String> {
        let mut place = BTreeMap::new();
        for (n, stage) in spec.stages.iter().enumerate() {
            if place.insert(stage.id, n).is_some() {
                return Err(format!("{} is there twice", stage.id));
            }
            if stage.tasks == 0 {
                return Err(format!("{} has no tasks", stage.id));
            }
            if stage.tasks > MAX_TASKS {
                return Err(format!("{} has {} tasks, more than {MAX_TASKS}", stage.id, stage.tasks));
            }
        }
        let find = |id: StageId, by: &str| {
            place.get(&id).copied().ok_or_else(|| format!("{by} reads {id}, which is not there"))
        };
        let mut inputs = vec![Vec::new(); spec.stages.len()];
        for (n, stage) in spec.stages.iter().enumerate() {
            for input in &stage.inputs {
                let producer = find(input.stage, &stage.id.to_string())?;
                inputs[n].push(Edge { stage: producer, kind: input.kind, streamed: input.streamed });
            }
        }
        let mut result = vec![false; spec.stages.len()];
        for &id in &spec.results {
            result[find(id, "the driver")?] = true;
        }
        if spec.results.is_empty() {
            return Err("the driver reads no stage".to_owned());
        }

        let region = join_streamed(&inputs);
        let order = order(&inputs, |n| n, |_| true)
            .map_err(|n| format!("{} depends on itself", spec.stages[n].id))?;
        self::order(&inputs, |n| region[n], |edge| !edge.streamed).map_err(|n| {
            format!(
                "{} waits for outputs of its own region: an edge must be materialised or streamed together \
                 with those around it",
                spec.stages[n].id
            )
        })?;

        let mut graph = Self::sorted(spec, &inputs, &result, &region, &order);
        graph.nodes.iter().try_for_each(|node| match node.result || !node.consumers.is_empty() {
            true => Ok(()),
            false => Err(format!("nobody reads {}", node.id)),
        })?;
        for node in &mut graph.nodes {
            node.consumers.sort_by_key(|edge| edge.stage);
        }
        Ok(graph)
    }

    fn sorted(
        spec: &JobSpec,
        inputs: &[Vec<Edge>],
        result: &[bool],
        region: &[usize],
        order: &[usize],
    ) -> Self {
        let mut new_index = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            new_index[old] = new;
        }
        let mut regions: Vec<Vec<usize>> = Vec::new();
        let mut region_number = BTreeMap::new();
        let mut nodes: Vec<Node> = Vec::new();
        for (new, &old) in order.iter().enumerate() {
            let number = *region_number.entry(region[old]).or_insert_with(|| {
                regions.push(Vec::new());
                regions.len() - 1
            });
            regions[number].push(new);
            let stage = &spec.stages[old];
            let inputs: Vec<Edge> =
                inputs[old].iter().map(|edge| Edge { stage: new_index[edge.stage], ..*edge }).collect();
            for edge in &inputs {
                nodes[edge.stage].consumers.push(Edge { stage: new, ..*edge });
            }
            nodes.push(Node {
                id: stage.id,
                tasks: stage.tasks,
                repeatable: stage.repeatable,
                result: result[old],
                inputs,
                consumers: Vec::new(),
                region: number,
            });
        }
        Self { nodes, regions }
    }
}

/// For each stage one stage that stands for its region.
fn join_streamed(inputs: &[Vec<Edge>]) -> Vec<usize> {
    fn root(region: &mut [usize], mut n: usize) -> usize {
        while region[n] != n {
            region[n] = region[region[n]];
            n = region[n];
        }
        n
    }
    let mut region: Vec<usize> = (0..inputs.len()).collect();
    for (n, edges) in inputs.iter().enumerate() {
        for edge in edges.iter().filter(|edge| edge.streamed) {
            let (a, b) = (root(&mut region, n), root(&mut region, edge.stage));
            region[a.max(b)] = a.min(b);
        }
    }
    (0..inputs.len()).map(|n| root(&mut region, n)).collect()
}

/// Stages in an order in which those that `group` together follow all that they read over edges that `counts`; the first
/// possible one first (Kahn). `Err`: a stage on a cycle.
fn order(
    inputs: &[Vec<Edge>],
    group: impl Fn(usize) -> usize,
    counts: impl Fn(&Edge) -> bool,
) -> Result<Vec<usize>, usize> {
    let mut members = vec![Vec::new(); inputs.len()];
    let mut readers = vec![Vec::new(); inputs.len()];
    let mut missing = vec![0usize; inputs.len()];
    for (n, edges) in inputs.iter().enumerate() {
        members[group(n)].push(n);
        for edge in edges.iter().filter(|edge| counts(edge)) {
            readers[group(edge.stage)].push(group(n));
            missing[group(n)] += 1;
        }
    }
    let mut ready: std::collections::BTreeSet<usize> =
        (0..inputs.len()).filter(|&g| missing[g] == 0 && !members[g].is_empty()).collect();
    let mut order = Vec::with_capacity(inputs.len());
    let mut seen = vec![false; inputs.len()];
    while let Some(g) = ready.pop_first() {
        for &n in &members[g] {
            seen[n] = true;
            order.push(n);
        }
        for &reader in &readers[g] {
            missing[reader] -= 1;
            if missing[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    match seen.iter().position(|seen| !seen) {
        Some(n) => Err(n),
        None => Ok(order),
    }
}

/// The producer tasks that consumer task `task` of `consumers` reads.
pub(crate) fn producers_of(kind: InputKind, producers: u32, consumers: u32, task: u32) -> Range<u32> {
    match kind {
        InputKind::Shuffle | InputKind::Broadcast => 0..producers,
        InputKind::Coalesce => {
            let (base, larger) = (producers / consumers, producers % consumers);
            let start = task * base + task.min(larger);
            start..start + base + u32::from(task < larger)
        }
    }
}

/// The consumer tasks that read producer task `task` of `producers`.
pub(crate) fn consumers_of(kind: InputKind, producers: u32, consumers: u32, task: u32) -> Range<u32> {
    match kind {
        InputKind::Shuffle | InputKind::Broadcast => 0..consumers,
        InputKind::Coalesce => {
            let (base, larger) = (producers / consumers, producers % consumers);
            let in_larger = larger * (base + 1);
            let consumer =
                if task < in_larger { task / (base + 1) } else { larger + (task - in_larger) / base.max(1) };
            consumer..consumer + 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Input, JobId, StageSpec};

    fn spec(edges: &[(u32, u32, bool)], stages: u32, results: &[u32]) -> JobSpec {
        let stage = |id: u32| StageSpec {
            id: StageId(id),
            tasks: 2,
            inputs: edges
                .iter()
                .filter(|edge| edge.1 == id)
                .map(|&(from, _, streamed)| Input {
                    stage: StageId(from),
                    kind: InputKind::Shuffle,
                    streamed,
                })
                .collect(),
            repeatable: true,
        };
        JobSpec {
            id: JobId(1),
            pool: String::new(),
            stages: (0..stages).map(stage).collect(),
            results: results.iter().map(|&id| StageId(id)).collect(),
        }
    }

    #[test]
    fn producers_come_first_and_streams_join_regions() {
        let graph = Graph::of(&spec(&[(2, 0, false), (1, 2, true), (3, 2, false)], 4, &[0])).unwrap();
        let ids: Vec<u32> = graph.nodes.iter().map(|node| node.id.0).collect();
        assert_eq!(ids, [1, 3, 2, 0]);
        assert_eq!(graph.regions, [vec![0, 2], vec![1], vec![3]]);
        assert_eq!(graph.nodes[2].inputs.iter().map(|edge| edge.stage).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(graph.nodes[0].consumers.iter().map(|edge| edge.stage).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_could_never_end_is_refused() {
        for (edges, stages, results, why) in [
            (vec![(0, 1, false), (1, 0, false)], 2, vec![1], "depends on itself"),
            (vec![(0, 0, true)], 1, vec![0], "depends on itself"),
            // 0 streams to 2, and 2 also waits for 1, which waits for 0.
            (vec![(0, 2, true), (0, 1, false), (1, 2, false)], 3, vec![2], "its own region"),
            (vec![(0, 1, true), (0, 1, false)], 2, vec![1], "its own region"),
            (vec![], 1, vec![], "reads no stage"),
            (vec![], 2, vec![0], "nobody reads stage 1"),
            (vec![], 1, vec![7], "which is not there"),
            (vec![(9, 0, false)], 1, vec![0], "which is not there"),
        ] {
            let error = Graph::of(&spec(&edges, stages, &results)).unwrap_err();
            assert!(error.contains(why), "{edges:?}: {error}");
        }
    }

    #[test]
    fn groups_cover_all_producers_once() {
        for (producers, consumers) in [(9, 3), (8, 3), (2, 3), (1, 5), (7, 1)] {
            let mut next = 0;
            for task in 0..consumers {
                let group = producers_of(InputKind::Coalesce, producers, consumers, task);
                assert_eq!(group.start, next);
                next = group.end;
                for producer in group {
                    let readers = consumers_of(InputKind::Coalesce, producers, consumers, producer);
                    assert_eq!(readers, task..task + 1, "{producer} of {producers} for {consumers}");
                }
            }
            assert_eq!(next, producers);
        }
    }
}
