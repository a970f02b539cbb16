//! The stages of a distributed plan, as the scheduler needs them.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, Partitioning};
use datafusion_distributed::{BroadcastExec, NetworkBoundaryExt, NetworkBroadcastExec, Stage};
use firesteel_engine_core::{Input, InputKind, JobId, JobSpec, StageId, StageSpec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The stages of one query and which of them the driver reads.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub stages: BTreeMap<u32, GraphStage>,
    pub results: Vec<u32>,
    /// The planner's name for the query.
    pub query: u128,
}

#[derive(Debug, Clone)]
pub struct GraphStage {
    pub tasks: u32,
    pub inputs: Vec<u32>,
    /// Partitions of each output, if every task of the consumer reads all of them.
    pub broadcast_partitions: Option<u32>,
    /// Running a task again puts the same rows into the same partitions.
    pub repeatable: bool,
}

/// Reads the graph from a plan whose stages have not been sent anywhere yet.
pub fn graph(plan: &Arc<dyn ExecutionPlan>) -> Result<Graph> {
    let mut graph = Graph::default();
    let mut results = Vec::new();
    collect(plan, &mut results, &mut graph)?;
    graph.results = results;
    Ok(graph)
}

/// Adds the stages below `plan`, a part of one stage, and notes in `inputs` which of them it reads itself.
fn collect(plan: &Arc<dyn ExecutionPlan>, inputs: &mut Vec<u32>, graph: &mut Graph) -> Result<()> {
    let Some(boundary) = plan.as_network_boundary() else {
        return plan.children().into_iter().try_for_each(|child| collect(child, inputs, graph));
    };
    let Stage::Local(stage) = boundary.input_stage() else {
        return datafusion::common::internal_err!("a stage has been sent before it was scheduled");
    };
    let id = stage.num as u32;
    graph.query = stage.query_id.as_u128();
    if !inputs.contains(&id) {
        inputs.push(id);
    }
    if graph.stages.contains_key(&id) {
        return Ok(());
    }
    let mut own = Vec::new();
    collect(&stage.plan, &mut own, graph)?;
    let broadcast_partitions = match plan.is::<NetworkBroadcastExec>() {
        true => stage.plan.downcast_ref::<BroadcastExec>().map(|b| b.input_partition_count() as u32),
        false => None,
    };
    let repeatable = is_repeatable(&stage.plan)?;
    let tasks = stage.tasks as u32;
    graph.stages.insert(id, GraphStage { tasks, inputs: own, broadcast_partitions, repeatable });
    Ok(())
}

/// A reader that takes part of an output, or one of several that take all of it, may see another run of the task than the
/// readers before it. Then the rows must not depend on which came first, nor on chance, nor a key on the order of a sum. What
/// one reader takes as a whole may.
fn is_repeatable(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let body = if let Some(head) = plan.downcast_ref::<RepartitionExec>() {
        if let Partitioning::Hash(keys, _) = head.partitioning() {
            let schema = head.input().schema();
            for key in keys {
                if key.data_type(&schema)?.is_floating() {
                    return Ok(false);
                }
            }
        }
        head.input()
    } else if let Some(head) = plan.downcast_ref::<BroadcastExec>() {
        head.input()
    } else {
        return Ok(true);
    };
    let mut repeatable = true;
    body.apply(|node| {
        if node.is_network_boundary() {
            return Ok(TreeNodeRecursion::Jump);
        }
        let depends_on_order = node.fetch().is_some()
            || node.is::<GlobalLimitExec>()
            || node.is::<LocalLimitExec>()
            || node.is::<WindowAggExec>()
            || node.is::<BoundedWindowAggExec>()
            || node.downcast_ref::<AggregateExec>().is_some_and(aggregates_by_order);
        let mut volatile = false;
        node.apply_expressions(&mut |expression| {
            expression.apply(|part| {
                volatile |= part.is_volatile_node();
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        if depends_on_order || volatile {
            repeatable = false;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(repeatable)
}

/// Whether the order of the input may show in the result: the first of something, a list, a sum of floats.
fn aggregates_by_order(aggregate: &AggregateExec) -> bool {
    aggregate.limit_options().is_some()
        || aggregate.aggr_expr().iter().any(|function| {
            let floating = function.field().data_type().is_floating();
            !matches!(function.fun().name(), "count" | "min" | "max" | "bool_and" | "bool_or" | "sum" | "avg")
                || floating
        })
}

impl Graph {
    /// Every stage is a region of its own.
    pub fn staged_job(&self, id: JobId, pool: &str) -> JobSpec {
        let stages = self.stages.iter().map(|(&stage, shape)| StageSpec {
            id: StageId(stage),
            tasks: shape.tasks,
            inputs: shape
                .inputs
                .iter()
                .map(|&input| {
                    let broadcast = self.stages.get(&input).is_some_and(|s| s.broadcast_partitions.is_some());
                    // A coalescing reader takes a group of the producers, but which depends on the unions around it.
                    let kind = if broadcast { InputKind::Broadcast } else { InputKind::Shuffle };
                    Input { stage: StageId(input), kind, streamed: false }
                })
                .collect(),
            repeatable: shape.repeatable,
        });
        JobSpec {
            id,
            pool: pool.to_owned(),
            stages: stages.collect(),
            results: self.results.iter().map(|&stage| StageId(stage)).collect(),
        }
    }

    pub fn tasks(&self) -> usize {
        self.stages.values().map(|stage| stage.tasks as usize).sum()
    }
}
