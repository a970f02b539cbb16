//! What a task reads: the outputs that its description names, found by stage and task. The fragment's network boundaries
//! reach them as they would reach live producers.

use crate::shuffle::{OutputReader, ShuffleError, Source};
use arrow::array::RecordBatch;
use bytes::Bytes;
use datafusion::common::{internal_err, not_impl_err};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest, GetWorkerInfoResponse,
    SetPlanRequest, WorkerChannel, WorkerToCoordinatorMsg,
};
use firesteel_common::shuffle::OutputId;
use firesteel_proto::v1;
use futures::stream::BoxStream;
use http::HeaderMap;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use url::Url;

/// The outputs that one task may read.
#[derive(Clone)]
pub struct TaskInputs {
    reader: OutputReader,
    query: u128,
    stages: Arc<HashMap<usize, Stage>>,
}

struct Stage {
    outputs: Vec<Output>,
    /// Partitions of a broadcast: every consumer reads the same ones under numbers of its own.
    broadcast: Option<usize>,
}

struct Output {
    attempt: u32,
    place: Place,
}

enum Place {
    Inline(HashMap<usize, Bytes>),
    Worker(Arc<Host>),
}

/// Who serves map outputs.
#[derive(Default)]
struct Host {
    worker: String,
    address: String,
    /// Set when it is this machine.
    dir: Option<PathBuf>,
}

impl TaskInputs {
    /// `machine` is the boot id of this one.
    pub fn new(
        reader: OutputReader,
        query: u128,
        inputs: Vec<v1::StageInput>,
        locations: Vec<v1::Location>,
        machine: &str,
    ) -> Self {
        let host = |location: v1::Location| {
            let here = !location.dir.is_empty() && !machine.is_empty() && location.machine == machine;
            let dir = here.then(|| PathBuf::from(location.dir));
            Arc::new(Host { worker: location.worker_id, address: location.address, dir })
        };
        let hosts: Vec<Arc<Host>> = locations.into_iter().map(host).collect();
        let nowhere = Arc::new(Host::default());
        let mut stages = HashMap::new();
        for input in inputs {
            let mut outputs = Vec::with_capacity(input.outputs.len());
            for output in input.outputs {
                let place = match output.is_inline {
                    true => Place::Inline(
                        output.inline.into_iter().map(|p| (p.partition as usize, p.bytes.into())).collect(),
                    ),
                    false => {
                        // Without a location it is lost, which is found out when it is read.
                        Place::Worker(Arc::clone(hosts.get(output.location as usize).unwrap_or(&nowhere)))
                    }
                };
                outputs.push(Output { attempt: output.attempt, place });
            }
            let broadcast = (input.broadcast_partitions > 0).then_some(input.broadcast_partitions as usize);
            stages.insert(input.stage as usize, Stage { outputs, broadcast });
        }
        Self { reader, query, stages: Arc::new(stages) }
    }

    /// The batches of one partition of one task's output.
    fn read(
        &self,
        stage: usize,
        task: usize,
        partition: usize,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let found = self.stages.get(&stage).and_then(|s| Some((s, s.outputs.get(task)?)));
        let Some((input, output)) = found else {
            return Err(ShuffleError::NotAnInput { stage, task }.into());
        };
        let partition = input.broadcast.map_or(partition, |partitions| partition % partitions);
        let source = match &output.place {
            Place::Inline(partitions) => {
                Source::Inline(partitions.get(&partition).cloned().unwrap_or_default())
            }
            Place::Worker(host) => Source::Worker {
                worker: host.worker.clone(),
                address: host.address.clone(),
                dir: host.dir.clone(),
            },
        };
        let id =
            OutputId { query: self.query, stage: stage as u32, task: task as u32, attempt: output.attempt };
        Ok(self.reader.read(id, source, partition, input.outputs.len()))
    }
}

#[async_trait::async_trait]
impl ChannelResolver for TaskInputs {
    async fn get_worker_client_for_url(&self, _virtual_url: &Url) -> Result<Box<dyn WorkerChannel>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl WorkerChannel for TaskInputs {
    async fn coordinator_channel(
        &mut self,
        _headers: HeaderMap,
        _request: SetPlanRequest,
        _messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        _metrics: ExecutionPlanMetricsSet,
        _context: &Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        internal_err!("a task hands out no fragments")
    }

    async fn execute_task(
        &mut self,
        _headers: HeaderMap,
        request: ExecuteTaskRequest,
        _metrics: ExecutionPlanMetricsSet,
        _context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let key = request.task_key;
        (request.target_partition_start..request.target_partition_end)
            .map(|partition| self.read(key.stage_id, key.task_number, partition))
            .collect()
    }

    async fn get_worker_info(&mut self, _request: GetWorkerInfoRequest) -> Result<GetWorkerInfoResponse> {
        not_impl_err!("map outputs have no worker information")
    }
}
