//! DataFusion sessions: one way to build them for the driver, the executors and the single process.

use crate::settings::Settings;
use crate::store::Stores;
use crate::test_functions;
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool, UnboundedMemoryPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionConfig;
use std::path::Path;
use std::sync::Arc;

/// Sorts that a task has at once, several joins deep, two sides each, some partitions.
const SORTS_PER_SLOT: usize = 64;
const SORT_RESERVATION_MIN: u64 = 64 << 10;

/// A runtime whose operators share `memory_bytes` ([`operator_bytes`]) fairly and spill under `scratch`; `None` leaves memory unbounded
/// (planning in a driver).
pub fn runtime(settings: &Settings, memory_bytes: Option<u64>, scratch: &Path) -> Result<Arc<RuntimeEnv>> {
    let pool: Arc<dyn MemoryPool> = match memory_bytes {
        Some(bytes) => Arc::new(FairSpillPool::new(bytes as usize)),
        None => Arc::new(UnboundedMemoryPool::default()),
    };
    RuntimeEnvBuilder::new()
        .with_memory_pool(pool)
        .with_temp_file_path(scratch)
        .with_object_store_registry(Arc::new(Stores::new(settings.store_options.clone())))
        .build_arc()
}

/// What the operators of an executor may use.
pub fn operator_bytes(settings: &Settings, memory_mib: u64) -> u64 {
    (memory_mib.saturating_mul(1 << 20) as f64 * settings.memory_fraction) as u64
}

/// Options that depend on the memory at hand: what every sort sets aside for merging its spills must not be all there is.
pub fn fit_to_memory(options: &mut ConfigOptions, memory_bytes: u64, slots: usize) {
    let sorts = (slots.max(1) * SORTS_PER_SLOT) as u64;
    let share = (memory_bytes / sorts).max(SORT_RESERVATION_MIN) as usize;
    let reserved = &mut options.execution.sort_spill_reservation_bytes;
    *reserved = (*reserved).min(share);
}

/// The functions that drivers and executors know beyond DataFusion's own.
pub fn with_functions(mut builder: SessionStateBuilder, test_functions: bool) -> SessionStateBuilder {
    if test_functions {
        let functions = test_functions::all().into_iter().map(Arc::new);
        builder.scalar_functions().get_or_insert_default().extend(functions);
    }
    builder
}

/// The options that planning starts from: information schema on, the application's `datafusion.*` settings applied.
pub fn config(settings: &Settings, target_partitions: usize) -> Result<SessionConfig> {
    let mut config = SessionConfig::new()
        .with_target_partitions(target_partitions.max(crate::settings::MIN_TARGET_PARTITIONS))
        .with_information_schema(true);
    let options = config.options_mut();
    options.sql_parser.collect_spans = true;
    for (key, value) in &settings.datafusion {
        options.set(key, value)?;
    }
    Ok(config)
}

/// How DataFusion's run-time options travel to executors: as one gRPC header, because a task's session there starts
/// from defaults.
pub mod option_header {
    use datafusion::config::ConfigOptions;
    use datafusion::error::{DataFusionError, Result};
    use http::{HeaderMap, HeaderValue};
    use std::collections::BTreeMap;

    const NAME: &str = "x-firesteel-options";

    /// The `datafusion.*` options that differ from their defaults.
    pub fn encode(options: &ConfigOptions) -> Result<HeaderMap> {
        let defaults: BTreeMap<_, _> =
            ConfigOptions::new().entries().into_iter().map(|e| (e.key, e.value)).collect();
        let mut text = url::form_urlencoded::Serializer::new(String::new());
        for entry in options.entries() {
            let Some(value) = entry.value.as_deref() else { continue };
            if entry.key.starts_with("datafusion.")
                && defaults.get(&entry.key).and_then(Option::as_deref) != Some(value)
            {
                text.append_pair(&entry.key, value);
            }
        }
        let value = HeaderValue::from_str(&text.finish())
            .map_err(|e| DataFusionError::Configuration(format!("options do not fit a header: {e}")))?;
        let mut headers = HeaderMap::new();
        headers.insert(NAME, value);
        Ok(headers)
    }

    /// Applies what [`encode`] wrote; options unknown to this version are an error, for silence could change results.
    pub fn apply(headers: &HeaderMap, options: &mut ConfigOptions) -> Result<()> {
        let Some(value) = headers.get(NAME) else { return Ok(()) };
        for (key, value) in url::form_urlencoded::parse(value.as_bytes()) {
            options.set(&key, &value)?;
        }
        Ok(())
    }
}
