//! Which mode a query runs in, and why.

use crate::settings::{Mode, Settings};
use crate::shuffle::find_shuffle_error;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::ExecutionPlan;
use datafusion_distributed::DistributedLeafExec;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// Rows in memory take so many times the bytes of the (compressed, columnar) files that they come from.
const EXPANSION: u64 = 3;
/// Bytes of files that a core scans and works on in a second: what decides is the order of magnitude.
const BYTES_PER_CORE_SECOND: u64 = 50 << 20;
/// A query that runs longer than this is worth writing its exchanges to disk: losing an executor would cost more.
const LONG_SECONDS: u64 = 60;

/// How a query will run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub mode: Mode,
    reason: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Staged => "staged",
            Mode::Auto | Mode::Pipelined => "pipelined",
        };
        write!(f, "{mode} ({})", self.reason)
    }
}

impl Choice {
    /// `EXPLAIN ANALYZE` of a statement that writes.
    pub fn for_measured_write() -> Self {
        Self { mode: Mode::Pipelined, reason: "a write that is measured".to_owned() }
    }

    /// `cores` is how many work at once, `memory` what their operators may use together, if that is known yet.
    pub fn of(
        settings: &Settings,
        plan: &Arc<dyn ExecutionPlan>,
        cores: usize,
        memory: Option<u64>,
    ) -> Result<Self> {
        if settings.mode != Mode::Auto {
            let reason = "firesteel.execution.mode says so".to_owned();
            return Ok(Self { mode: settings.mode, reason });
        }
        let bytes = scanned_bytes(plan)?;
        let seconds = bytes / (BYTES_PER_CORE_SECOND * cores.max(1) as u64);
        let mib = bytes >> 20;
        let choice = match memory {
            Some(memory) if bytes.saturating_mul(EXPANSION) > memory => Self {
                mode: Mode::Staged,
                reason: format!(
                    "auto: {mib} MiB of files may need more than the {} MiB of memory for operators",
                    memory >> 20
                ),
            },
            _ if seconds > LONG_SECONDS => Self {
                mode: Mode::Staged,
                reason: format!("auto: {mib} MiB of files will take long, about {seconds} s"),
            },
            _ => Self {
                mode: Mode::Pipelined,
                reason: format!("auto: {mib} MiB of files, short and small enough to start again if need be"),
            },
        };
        Ok(choice)
    }
}

/// Bytes of the files that the plan scans, all of each.
pub fn scanned_bytes(plan: &Arc<dyn ExecutionPlan>) -> Result<u64> {
    let mut bytes = 0;
    plan.apply(|node| {
        let mut scans: Vec<&DataSourceExec> = node.downcast_ref::<DataSourceExec>().into_iter().collect();
        if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>() {
            scans.extend(leaf.original().downcast_ref::<DataSourceExec>());
        }
        for scan in scans {
            let Some(files) = scan.data_source().downcast_ref::<FileScanConfig>() else { continue };
            let mut seen = BTreeSet::new();
            for file in files.file_groups.iter().flat_map(|group| group.files()) {
                if seen.insert(file.object_meta.location.as_ref().to_owned()) {
                    bytes += file.object_meta.size;
                }
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(bytes)
}

/// Whether an operator that cannot spill needed more memory than there is.
pub fn is_out_of_memory(error: &DataFusionError) -> bool {
    find_shuffle_error(error).is_none() && matches!(error.find_root(), DataFusionError::ResourcesExhausted(_))
}
