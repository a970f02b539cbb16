//! What operators measured, on its way from an executor to the driver: one list of numbers per operator, from the top.

use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::metrics::{Count, Gauge, Metric, MetricValue, MetricsSet, Time};
use datafusion_distributed::{NetworkBoundaryExt, TaskMetrics};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// A measurement. The rest of DataFusion's kinds are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Measured {
    OutputRows(usize),
    OutputBytes(usize),
    OutputBatches(usize),
    ElapsedNanos(usize),
    SpillCount(usize),
    SpilledBytes(usize),
    SpilledRows(usize),
    Count(String, usize),
    Gauge(String, usize),
    Nanos(String, usize),
}

/// Of a fragment that has been executed.
pub fn encode(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<u8>> {
    let mut nodes = Vec::new();
    collect(plan, &mut nodes);
    serde_json::to_vec(&nodes).map_err(|e| DataFusionError::External(Box::new(e)))
}

/// As many operators as a fragment has, without a measurement: it ran in another shape.
pub fn encode_nothing(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<u8>> {
    let mut nodes = Vec::new();
    collect(plan, &mut nodes);
    nodes.iter_mut().for_each(Vec::clear);
    serde_json::to_vec(&nodes).map_err(|e| DataFusionError::External(Box::new(e)))
}

fn collect(plan: &Arc<dyn ExecutionPlan>, nodes: &mut Vec<Vec<Measured>>) {
    nodes
        .push(plan.metrics().iter().flat_map(MetricsSet::iter).filter_map(|m| measured(m.value())).collect());
    if plan.is_network_boundary() {
        return;
    }
    // A union that runs some of its branches in this task has placeholders for the others, which the driver does not count.
    let union_of_tasks = plan.name() == "DistributedUnionExec" || plan.name() == "ChildrenIsolatorUnionExec";
    for child in plan.children() {
        if !(union_of_tasks && child.is::<EmptyExec>()) {
            collect(child, nodes);
        }
    }
}

fn measured(value: &MetricValue) -> Option<Measured> {
    Some(match value {
        MetricValue::OutputRows(count) => Measured::OutputRows(count.value()),
        MetricValue::OutputBytes(count) => Measured::OutputBytes(count.value()),
        MetricValue::OutputBatches(count) => Measured::OutputBatches(count.value()),
        MetricValue::ElapsedCompute(time) => Measured::ElapsedNanos(time.value()),
        MetricValue::SpillCount(count) => Measured::SpillCount(count.value()),
        MetricValue::SpilledBytes(count) => Measured::SpilledBytes(count.value()),
        MetricValue::SpilledRows(count) => Measured::SpilledRows(count.value()),
        MetricValue::Count { name, count } => Measured::Count(name.to_string(), count.value()),
        MetricValue::Gauge { name, gauge } => Measured::Gauge(name.to_string(), gauge.value()),
        MetricValue::Time { name, time } => Measured::Nanos(name.to_string(), time.value()),
        _ => return None,
    })
}

/// As the planner's library shows them.
pub fn decode(bytes: &[u8]) -> Result<TaskMetrics, serde_json::Error> {
    let nodes: Vec<Vec<Measured>> = serde_json::from_slice(bytes)?;
    let pre_order_plan_metrics = nodes
        .into_iter()
        .map(|node| {
            let mut set = MetricsSet::new();
            node.into_iter().for_each(|m| set.push(Arc::new(Metric::new(value(m), None))));
            set
        })
        .collect();
    Ok(TaskMetrics { pre_order_plan_metrics, task_metrics: MetricsSet::new() })
}

fn value(measured: Measured) -> MetricValue {
    let count = |n| {
        let count = Count::new();
        count.add(n);
        count
    };
    let time = |nanos| {
        let time = Time::new();
        time.add_duration(Duration::from_nanos(nanos as u64));
        time
    };
    match measured {
        Measured::OutputRows(n) => MetricValue::OutputRows(count(n)),
        Measured::OutputBytes(n) => MetricValue::OutputBytes(count(n)),
        Measured::OutputBatches(n) => MetricValue::OutputBatches(count(n)),
        Measured::ElapsedNanos(n) => MetricValue::ElapsedCompute(time(n)),
        Measured::SpillCount(n) => MetricValue::SpillCount(count(n)),
        Measured::SpilledBytes(n) => MetricValue::SpilledBytes(count(n)),
        Measured::SpilledRows(n) => MetricValue::SpilledRows(count(n)),
        Measured::Count(name, n) => MetricValue::Count { name: Cow::Owned(name), count: count(n) },
        Measured::Nanos(name, n) => MetricValue::Time { name: Cow::Owned(name), time: time(n) },
        Measured::Gauge(name, n) => {
            let gauge = Gauge::new();
            gauge.set(n);
            MetricValue::Gauge { name: Cow::Owned(name), gauge }
        }
    }
}
