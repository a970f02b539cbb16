//! Physical plans that keep data work off the driver.
//!
//! The distributed planner leaves a *head stage* to whoever executes the plan. Here that is the driver, which must not
//! scan, join, sort or aggregate: a head that does more than merge or limit streams becomes a stage of one task, and a
//! plan without any stage becomes one task as a whole. Only plans over the session's own metadata stay local.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::explain::ExplainExec;
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_distributed::{DistributedExec, NetworkBoundaryExt, NetworkCoalesceExec, Stage};
use std::sync::Arc;

/// One stage of a distributed plan, for progress and pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageShape {
    /// The planner's number, unique within the query.
    pub id: usize,
    pub tasks: usize,
    /// Names of the operators from the stage's top, shortened.
    pub description: String,
}

/// Rewrites a planned query so that the driver only receives results.
pub fn keep_work_off_the_driver(
    plan: Arc<dyn ExecutionPlan>,
    collect_metrics: bool,
) -> Result<Arc<dyn ExecutionPlan>> {
    if is_local(&plan)? {
        return Ok(plan);
    }
    if plan.is::<DistributedExec>() {
        let head = Arc::clone(plan.children()[0]);
        if only_forwards(&head) {
            return Ok(plan);
        }
        return ship(head, collect_metrics);
    }
    ship(plan, collect_metrics)
}

/// Whether the plan reads nothing but the driver's own catalog.
fn is_local(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    if plan.is::<ExplainExec>() {
        return Ok(true);
    }
    let (mut metadata, mut other) = (false, false);
    plan.apply(|node| {
        if node.children().is_empty() {
            match node.is::<StreamingTableExec>() {
                true => metadata = true,
                false => other = true,
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(metadata && !other)
}

/// Whether a head stage is nothing but merges and limits over network boundaries.
fn only_forwards(head: &Arc<dyn ExecutionPlan>) -> bool {
    if head.is_network_boundary() {
        return true;
    }
    let forwards = head.is::<CoalescePartitionsExec>()
        || head.is::<SortPreservingMergeExec>()
        || head.is::<GlobalLimitExec>()
        || head.is::<LocalLimitExec>();
    forwards && head.children().iter().all(|child| only_forwards(child))
}

/// Makes `head` a stage of one task, with the identity and the next number of the query it heads.
fn ship(head: Arc<dyn ExecutionPlan>, collect_metrics: bool) -> Result<Arc<dyn ExecutionPlan>> {
    let mut query_id = None;
    let mut last_stage = 0;
    head.apply(|node| {
        if let Some(boundary) = node.as_network_boundary() {
            query_id = Some(boundary.input_stage().query_id());
            last_stage = last_stage.max(boundary.input_stage().num());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let head = match head.output_partitioning().partition_count() {
        1 => head,
        _ => Arc::new(CoalescePartitionsExec::new(head)) as Arc<dyn ExecutionPlan>,
    };
    let boundary = NetworkCoalesceExec::try_new(head, 1, 1)?;
    let mut stage = datafusion_distributed::NetworkBoundary::input_stage(&boundary).clone();
    if let Stage::Local(local) = &mut stage {
        local.query_id = query_id.unwrap_or_else(uuid::Uuid::new_v4);
        local.num = last_stage + 1;
    }
    let boundary: Arc<dyn ExecutionPlan> =
        datafusion_distributed::NetworkBoundary::with_input_stage(&boundary, stage)?;
    Ok(Arc::new(DistributedExec::new(boundary).with_metrics_collection(collect_metrics)))
}

/// The stages of a plan made by [`keep_work_off_the_driver`], producers first.
pub fn stages(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<StageShape>> {
    let mut stages = Vec::new();
    plan.apply(|node| {
        if let Some(boundary) = node.as_network_boundary()
            && let Stage::Local(local) = boundary.input_stage()
        {
            stages.push(StageShape { id: local.num, tasks: local.tasks, description: describe(&local.plan) });
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    stages.sort_by_key(|stage| stage.id);
    stages.dedup_by_key(|stage| stage.id);
    Ok(stages)
}

/// The operators of one stage, without repetition, top first.
fn describe(plan: &Arc<dyn ExecutionPlan>) -> String {
    let mut names: Vec<&str> = Vec::new();
    let mut todo = vec![plan];
    while let Some(node) = todo.pop() {
        let name = node.name().trim_end_matches("Exec");
        let noise =
            matches!(name, "CoalesceBatches" | "CoalescePartitions" | "Projection" | "CooperativeExec");
        if !noise && !names.contains(&name) && names.len() < 6 {
            names.push(name);
        }
        if !node.is_network_boundary() {
            todo.extend(node.children());
        }
    }
    names.join(" ← ")
}
