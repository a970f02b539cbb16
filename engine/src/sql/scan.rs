//! How the files of a scan are spread over the tasks of its stage.
//!
//! The planner's library cuts files itself, also those that cannot be cut (compressed ones), and fails when the pieces do not
//! come out even. Here the file format says how it may be cut, and what is missing is made up with empty groups.

use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::error::Result;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_distributed::{DistributedLeafExec, ScaleUpLeafNodeEvent, ScaleUpLeafNodeEventResponse};
use std::sync::Arc;

/// The planner's question; `None` leaves it to the library.
pub fn spread(event: ScaleUpLeafNodeEvent) -> Option<Result<ScaleUpLeafNodeEventResponse>> {
    let scan = event.plan.downcast_ref::<DataSourceExec>()?;
    let files = scan.data_source().downcast_ref::<FileScanConfig>()?;
    if files.output_partitioning.is_some() {
        // The groups mean something: they are moved, not cut.
        return None;
    }
    Some(over_tasks(event.plan, files, event.task_count).map(ScaleUpLeafNodeEventResponse::new))
}

fn over_tasks(
    plan: &Arc<dyn ExecutionPlan>,
    files: &FileScanConfig,
    tasks: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let partitions = plan.output_partitioning().partition_count();
    let groups = match files.limit.is_some() && partitions == 1 {
        // Nothing above the scan repeats its limit: one task has it all.
        true => {
            let mut groups = vec![FileGroup::new(Vec::new()); tasks];
            if let (Some(first), Some(whole)) = (groups.first_mut(), files.file_groups.first()) {
                *first = whole.clone();
            }
            groups
        }
        false => cut(plan, files, partitions * tasks)?,
    };
    let mut template = files.clone();
    template.file_groups.clear();
    let mut variants = vec![template; tasks];
    for (at, group) in groups.into_iter().enumerate() {
        variants[at % tasks].file_groups.push(group);
    }
    let variants =
        variants.into_iter().map(|v| DataSourceExec::from_data_source(v) as Arc<dyn ExecutionPlan>);
    Ok(Arc::new(DistributedLeafExec::try_new(Arc::clone(plan), variants)?))
}

/// Exactly `wanted` groups, which together are the files of the scan.
fn cut(plan: &Arc<dyn ExecutionPlan>, files: &FileScanConfig, wanted: usize) -> Result<Vec<FileGroup>> {
    let ordering = plan.output_ordering().cloned();
    let ordered = ordering.is_some() || !files.output_ordering.is_empty();
    let cut = files.repartitioned(wanted, 0, ordering)?;
    let mut groups = match cut.as_ref().and_then(|source| source.downcast_ref::<FileScanConfig>()) {
        Some(cut) => cut.file_groups.clone(),
        // Files that cannot be cut stay in their order, or go alone.
        None if ordered => files.file_groups.clone(),
        None => files
            .file_groups
            .iter()
            .flat_map(|group| group.iter().cloned())
            .map(|file| FileGroup::new(vec![file]))
            .collect(),
    };
    // More than wanted become longer groups; ordered ones are never more, because the planner asked for fewer to begin with.
    while groups.len() > wanted {
        let Some(last) = groups.pop() else { break };
        let at = groups.len() % wanted;
        for file in last.iter().cloned() {
            groups[at].push(file);
        }
    }
    groups.resize_with(wanted, || FileGroup::new(Vec::new()));
    Ok(groups)
}
