//! Runs attempts: decodes the fragment, connects its inputs, executes it, writes its output.

use crate::session::{self, option_header};
use crate::settings::Settings;
use crate::shuffle::{OutputDirectory, OutputReader, OutputWriter};
use crate::sql::write;
use crate::tasks::failure::classify;
use crate::tasks::head::Head;
use crate::tasks::inputs::TaskInputs;
use crate::tasks::joins::joins_by_sorting;
use crate::tasks::metrics;
use crate::transport::ApplicationChannels;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::IpcWriteOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{DistributedCodec, DistributedConfig, DistributedExt, DistributedTaskContext};
use datafusion_proto::bytes::physical_plan_from_bytes_with_proto_converter;
use datafusion_proto::physical_plan::DeduplicatingProtoConverter;
use firesteel_common::ExecutorLaunch;
use firesteel_common::shuffle::OutputId;
use firesteel_proto::v1;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A session and the headers that it was made from.
type Session = (BTreeMap<String, String>, Arc<TaskContext>);

/// What all tasks of an executor share.
pub struct TaskRunner {
    runtime: Arc<RuntimeEnv>,
    directory: Arc<OutputDirectory>,
    reader: OutputReader,
    /// The boot id of this machine: who has the same can reach the same files.
    machine: String,
    test_functions: bool,
    memory_bytes: u64,
    slots: usize,
    /// The session of the last task: building one costs more than a small task.
    session: Mutex<Option<Session>>,
}

impl TaskRunner {
    pub fn new(
        launch: &ExecutorLaunch,
        settings: &Settings,
        runtime: Arc<RuntimeEnv>,
        channels: ApplicationChannels,
    ) -> Result<Self> {
        let here = (launch.shuffle.worker.to_string(), launch.shuffle.dir.clone());
        // Without one no other worker's files are taken for local.
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self {
            runtime,
            directory: Arc::new(OutputDirectory::new(&launch.shuffle, &launch.executor)),
            reader: OutputReader::new(launch.executor.application.clone(), channels, Some(here)),
            machine: machine.trim().to_owned(),
            test_functions: settings.test_functions,
            memory_bytes: session::operator_bytes(settings, launch.memory_mib),
            slots: launch.cores.max(1) as usize,
            session: Mutex::new(None),
        })
    }

    /// Runs one attempt to its end, whatever that is.
    pub async fn run(self: Arc<Self>, request: v1::RunTask) -> v1::TaskEnd {
        let begun = Instant::now();
        let kind = match self.attempt(request).await {
            Ok(success) => v1::task_end::Kind::Success(v1::TaskSuccess {
                elapsed_ms: begun.elapsed().as_millis() as u64,
                ..success
            }),
            Err(error) => v1::task_end::Kind::Failure(classify(&error)),
        };
        v1::TaskEnd { kind: Some(kind) }
    }

    async fn attempt(&self, request: v1::RunTask) -> Result<v1::TaskSuccess> {
        let output: OutputId = request.output.parse().map_err(|e| DataFusionError::External(Box::new(e)))?;
        let inputs = TaskInputs::new(
            self.reader.clone(),
            output.query,
            request.inputs,
            request.locations,
            &self.machine,
        );
        let session = self.session(&request.headers)?;
        let position = DistributedTaskContext {
            task_index: output.task as usize,
            task_count: request.task_count as usize,
        };
        let context = Arc::new(task_context(&session, &output, position, inputs));
        let attempt = write::attempt_name(output.stage, output.task, output.attempt);
        let planned = write::into_attempt(decode(&request.plan, &context)?, &attempt)?;
        let plan = match request.sort_merge_joins {
            true => joins_by_sorting(Arc::clone(&planned))?,
            false => Arc::clone(&planned),
        };
        let head = Head::take(plan);
        let mut writer = OutputWriter::new(
            output,
            Arc::clone(&self.directory),
            head.plan.schema(),
            head.partitions(),
            IpcWriteOptions::default().try_with_compression(compression(&request.compression)?)?,
            request.inline_bytes_max,
            context.memory_pool(),
        );
        head.run(&context, &mut writer).await?;
        let written = writer.finish().await?;
        let spilled = spilled_bytes(&head.plan);
        let metrics = match (request.collect_metrics, request.sort_merge_joins) {
            (false, _) => Vec::new(),
            (true, false) => metrics::encode(&planned)?,
            (true, true) => metrics::encode_nothing(&planned)?,
        };
        Ok(v1::TaskSuccess {
            partition_bytes: written.partition_bytes,
            rows: written.rows,
            is_inline: written.inline.is_some(),
            inline: written
                .inline
                .into_iter()
                .flatten()
                .map(|(partition, bytes)| v1::InlinePartition { partition: partition as u32, bytes })
                .collect(),
            elapsed_ms: 0,
            metrics,
            spilled_bytes: spilled,
            dir: self.directory.path().display().to_string(),
            machine: self.machine.clone(),
        })
    }

    /// The session that the driver planned with, as far as it travels.
    fn session(&self, headers: &BTreeMap<String, String>) -> Result<Arc<TaskContext>> {
        let mut last = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, context)) = &*last
            && known == headers
        {
            return Ok(Arc::clone(context));
        }
        let map = header_map(headers)?;
        let mut config = SessionConfig::default()
            .with_distributed_option_extension_from_headers::<DistributedConfig>(&map)?;
        option_header::apply(&map, config.options_mut())?;
        session::fit_to_memory(config.options_mut(), self.memory_bytes, self.slots);
        let builder = SessionStateBuilder::new()
            .with_default_features()
            .with_config(config)
            .with_runtime_env(Arc::clone(&self.runtime));
        let context = session::with_functions(builder, self.test_functions).build().task_ctx();
        *last = Some((headers.clone(), Arc::clone(&context)));
        Ok(context)
    }
}

fn compression(name: &str) -> Result<Option<CompressionType>> {
    match name {
        "" | "none" => Ok(None),
        "lz4" => Ok(Some(CompressionType::LZ4_FRAME)),
        "zstd" => Ok(Some(CompressionType::ZSTD)),
        other => Err(DataFusionError::Configuration(format!("unknown compression {other:?}"))),
    }
}

fn header_map(headers: &BTreeMap<String, String>) -> Result<HeaderMap> {
    let invalid =
        |name: &str| DataFusionError::Configuration(format!("the task's header {name} is not valid"));
    headers
        .iter()
        .map(|(name, value)| {
            let key = HeaderName::try_from(name).map_err(|_| invalid(name))?;
            Ok((key, HeaderValue::try_from(value).map_err(|_| invalid(name))?))
        })
        .collect()
}

/// The shared session, with what belongs to this task alone.
fn task_context(
    session: &TaskContext,
    output: &OutputId,
    position: DistributedTaskContext,
    inputs: TaskInputs,
) -> TaskContext {
    let config = session
        .session_config()
        .clone()
        .with_extension(Arc::new(position))
        .with_distributed_channel_resolver(inputs);
    TaskContext::new(
        Some(output.to_string()),
        session.session_id(),
        config,
        session.scalar_functions().clone(),
        session.higher_order_functions().clone(),
        session.aggregate_functions().clone(),
        session.window_functions().clone(),
        session.runtime_env(),
    )
}

fn decode(plan: &[u8], context: &TaskContext) -> Result<Arc<dyn ExecutionPlan>> {
    let codec = DistributedCodec::new_combined_with_user(context.session_config());
    let converter = DeduplicatingProtoConverter::default();
    physical_plan_from_bytes_with_proto_converter(plan, context, &codec, &converter)
}

/// What the fragment's operators wrote to disk because memory ran short.
fn spilled_bytes(plan: &Arc<dyn ExecutionPlan>) -> u64 {
    let own = plan.metrics().and_then(|m| m.spilled_bytes()).unwrap_or(0) as u64;
    own + plan.children().into_iter().map(spilled_bytes).sum::<u64>()
}
