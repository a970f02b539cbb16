//! Limits that must hold for a whole join side, not for each task that reads it.

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode};
use datafusion::physical_plan::limit::GlobalLimitExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};
use std::sync::Arc;

/// DataFusion folds the limit of a collected join side into the operator that merges its partitions. The distributed planner
/// puts a broadcast below that operator, so that every task would take rows of its own choice. As an operator by itself the
/// limit stays below the broadcast.
#[derive(Debug)]
pub struct LimitBelowBroadcast;

impl PhysicalOptimizerRule for LimitBelowBroadcast {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|node| {
            if !collects_left(&node) {
                return Ok(Transformed::no(node));
            }
            let children: Vec<Arc<dyn ExecutionPlan>> = node.children().into_iter().cloned().collect();
            let [left, right] = children.as_slice() else { return Ok(Transformed::no(node)) };
            let merge = left.downcast_ref::<CoalescePartitionsExec>();
            let Some((merge, fetch)) = merge.and_then(|merge| Some((merge, merge.fetch()?))) else {
                return Ok(Transformed::no(node));
            };
            let merged = Arc::new(CoalescePartitionsExec::new(Arc::clone(merge.input())));
            let limited = Arc::new(GlobalLimitExec::new(merged, 0, Some(fetch)));
            let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            Ok(Transformed::yes(node.replace_children(vec![limited, Arc::clone(right)], options)?))
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "limit_below_broadcast"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn collects_left(node: &Arc<dyn ExecutionPlan>) -> bool {
    match node.downcast_ref::<HashJoinExec>() {
        Some(join) => *join.partition_mode() == PartitionMode::CollectLeft,
        None => node.is::<NestedLoopJoinExec>() || node.is::<CrossJoinExec>(),
    }
}
