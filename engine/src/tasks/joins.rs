//! Joins for a fragment that ran out of memory: by sorting, which spills, instead of by a hash table, which does not.

use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode, SortMergeJoinExec};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::sorts::sort::SortExec;
use std::sync::Arc;

/// Replaces the hash joins that can be replaced: those whose sides are partitioned alike. One that collects a side has been
/// planned for a small side, and a null-aware one has no counterpart.
pub fn joins_by_sorting(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = plan.transform_up(|node| {
        let Some(join) = node.downcast_ref::<HashJoinExec>() else { return Ok(Transformed::no(node)) };
        let replaceable = *join.partition_mode() == PartitionMode::Partitioned
            && !join.null_aware
            && join.fetch().is_none()
            && keys_compare(join)?;
        match replaceable.then(|| by_sorting(join)).transpose()?.flatten() {
            Some(replaced) => Ok(Transformed::yes(replaced)),
            None => Ok(Transformed::no(node)),
        }
    })?;
    Ok(plan.data)
}

fn by_sorting(join: &HashJoinExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let (left_keys, right_keys): (Vec<_>, Vec<_>) = join.on().iter().cloned().unzip();
    let (Some(left), Some(right)) = (sorted(join.left(), left_keys), sorted(join.right(), right_keys)) else {
        return Ok(None);
    };
    let merged = SortMergeJoinExec::try_new(
        left,
        right,
        join.on().to_vec(),
        join.filter().cloned(),
        *join.join_type(),
        vec![SortOptions::default(); join.on().len()],
        join.null_equality(),
    )?;
    let merged: Arc<dyn ExecutionPlan> = Arc::new(merged);
    let merged = with_columns_of(join, merged)?;
    // What stands above may rely on the order that the hash join keeps.
    Ok(Some(match join.properties().output_ordering() {
        Some(order) => Arc::new(SortExec::new(order.clone(), merged).with_preserve_partitioning(true)),
        None => merged,
    }))
}

/// Whether a merge can compare the keys, also across batches, where it knows fewer types; the order of floats is partial.
fn keys_compare(join: &HashJoinExec) -> Result<bool> {
    let schema = join.left().schema();
    for (key, _) in join.on() {
        let known = match key.data_type(&schema)? {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean => true,
            DataType::Binary | DataType::LargeBinary | DataType::Date32 | DataType::Date64 => true,
            DataType::Decimal128(..) => true,
            integer => integer.is_integer(),
        };
        if !known {
            return Ok(false);
        }
    }
    Ok(true)
}

fn with_columns_of(join: &HashJoinExec, merged: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(columns) = &join.projection else { return Ok(merged) };
    // A hash join may leave columns out by itself.
    let schema = merged.schema();
    let kept = columns.iter().map(|&at| {
        let name = schema.field(at).name();
        ProjectionExpr { expr: Arc::new(Column::new(name, at)) as Arc<dyn PhysicalExpr>, alias: name.clone() }
    });
    Ok(Arc::new(ProjectionExec::try_new(kept.collect::<Vec<_>>(), merged)?))
}

/// Each partition sorted by the keys, in the order that the merge expects.
fn sorted(
    input: &Arc<dyn ExecutionPlan>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
) -> Option<Arc<dyn ExecutionPlan>> {
    let keys = keys.into_iter().map(|expr| PhysicalSortExpr { expr, options: SortOptions::default() });
    let sort = SortExec::new(LexOrdering::new(keys)?, Arc::clone(input)).with_preserve_partitioning(true);
    Some(Arc::new(sort))
}
