//! How the top of a fragment partitions its output.
//!
//! The planner puts a repartitioning or a broadcast on top, which push batches to consumers. Here they are taken off: rows
//! go into the partitions of a map output, and a broadcast is stored once, whatever the number of its readers.

use crate::shuffle::OutputWriter;
use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::metrics::Time;
use datafusion::physical_plan::repartition::{BatchPartitioner, RepartitionExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_distributed::BroadcastExec;
use futures::StreamExt;
use std::sync::Arc;

/// What waits in all partitions of an output together before it is encoded, so that ten thousand partitions do not take ten
/// thousand times a batch of memory.
const WAITING_ROWS_MAX: usize = 512 << 10;
const WAITING_BYTES_MAX: usize = 32 << 20;

/// A fragment without its head, and what the head was.
pub struct Head {
    pub plan: Arc<dyn ExecutionPlan>,
    hash: Option<(Vec<Arc<dyn PhysicalExpr>>, usize)>,
}

impl Head {
    pub fn take(plan: Arc<dyn ExecutionPlan>) -> Self {
        if let Some(repartition) = plan.downcast_ref::<RepartitionExec>()
            && let Partitioning::Hash(expressions, partitions) = repartition.partitioning()
        {
            let hash = Some((expressions.clone(), *partitions));
            return Self { plan: Arc::clone(repartition.input()), hash };
        }
        match plan.downcast_ref::<BroadcastExec>() {
            Some(broadcast) => Self { plan: Arc::clone(broadcast.input()), hash: None },
            None => Self { plan, hash: None },
        }
    }

    /// Partitions of the output.
    pub fn partitions(&self) -> usize {
        match &self.hash {
            Some((_, partitions)) => *partitions,
            None => self.plan.output_partitioning().partition_count(),
        }
    }

    /// Runs the fragment to its end.
    pub async fn run(&self, context: &Arc<TaskContext>, writer: &mut OutputWriter) -> Result<()> {
        let inputs = self.plan.output_partitioning().partition_count();
        let streams = (0..inputs)
            .map(|i| Ok(self.plan.execute(i, Arc::clone(context))?.map(move |batch| (i, batch))))
            .collect::<Result<Vec<_>>>()?;
        let mut batches = futures::stream::select_all(streams);
        let mut sorter = match &self.hash {
            Some((expressions, partitions)) => {
                Some(BatchPartitioner::new_hash_partitioner(expressions.clone(), *partitions, Time::new())?)
            }
            None => None,
        };
        let rows = context.session_config().batch_size();
        let mut waiting = Waiting::new(self.partitions(), rows);
        while let Some((input, batch)) = batches.next().await {
            let batch = batch?;
            match &mut sorter {
                Some(sorter) => {
                    let mut parts = Vec::new();
                    sorter.partition(batch, |partition, part| {
                        parts.push((partition, part));
                        Ok(())
                    })?;
                    for (partition, part) in parts {
                        waiting.add(partition, part, writer).await?;
                    }
                }
                None => waiting.add(input, batch, writer).await?,
            }
        }
        waiting.flush(writer).await
    }
}

/// Small batches become full ones before they are encoded.
struct Waiting {
    partitions: Vec<Option<BatchCoalescer>>,
    batch_rows: usize,
    /// Taken in since everything was encoded.
    bytes: usize,
}

impl Waiting {
    fn new(partitions: usize, batch_rows: usize) -> Self {
        let batch_rows = (WAITING_ROWS_MAX / partitions.max(1)).clamp(64.min(batch_rows), batch_rows);
        Self { partitions: (0..partitions).map(|_| None).collect(), batch_rows, bytes: 0 }
    }

    async fn add(&mut self, partition: usize, batch: RecordBatch, writer: &mut OutputWriter) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let Some(slot) = self.partitions.get_mut(partition) else {
            return datafusion::common::internal_err!("partition {partition} of {}", self.partitions.len());
        };
        let coalescer = slot.get_or_insert_with(|| BatchCoalescer::new(batch.schema(), self.batch_rows));
        self.bytes += batch.get_array_memory_size();
        coalescer.push_batch(batch)?;
        while let Some(full) = coalescer.next_completed_batch() {
            writer.write(partition, &full).await?;
        }
        if self.bytes > WAITING_BYTES_MAX {
            self.flush(writer).await?;
        }
        Ok(())
    }

    async fn flush(&mut self, writer: &mut OutputWriter) -> Result<()> {
        for (partition, slot) in self.partitions.iter_mut().enumerate() {
            let Some(coalescer) = slot else { continue };
            coalescer.finish_buffered_batch()?;
            while let Some(batch) = coalescer.next_completed_batch() {
                writer.write(partition, &batch).await?;
            }
            *slot = None;
        }
        self.bytes = 0;
        Ok(())
    }
}
