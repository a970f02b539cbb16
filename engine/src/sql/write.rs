//! Writing a directory of files so that a failed attempt leaves nothing behind and a repeated one no duplicates.
//!
//! An attempt writes beside its target, into `.NAME.firesteel-<id>/`; when it has ended well, the driver moves the files
//! into place, and otherwise removes them. A single file needs none of this: object stores show it only once it is whole.

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::datasource::file_format::csv::CsvSink;
use datafusion::datasource::file_format::json::JsonSink;
use datafusion::datasource::file_format::parquet::ParquetSink;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::datasource::physical_plan::{FileSink, FileSinkConfig};
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::physical_plan::ExecutionPlan;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

/// A plan whose directory output, if it has one, goes to a staging place first.
pub struct Staged {
    pub plan: Arc<dyn ExecutionPlan>,
    moves: Vec<Move>,
}

struct Move {
    store: ObjectStoreUrl,
    staging: Path,
    target: Path,
}

/// Redirects the directory outputs of `plan`.
pub fn stage(plan: Arc<dyn ExecutionPlan>) -> Result<Staged> {
    let moves = Mutex::new(Vec::new());
    let plan = plan
        .transform_down(|node| {
            let Some(sink) = node.downcast_ref::<DataSinkExec>() else { return Ok(Transformed::no(node)) };
            let Some((redirected, planned)) = redirect(sink.sink())? else {
                return Ok(Transformed::no(node));
            };
            moves.lock().unwrap_or_else(PoisonError::into_inner).push(planned);
            let exec = DataSinkExec::new(Arc::clone(sink.input()), redirected, sink.sort_order().clone());
            Ok(Transformed::yes(Arc::new(exec) as Arc<dyn ExecutionPlan>))
        })?
        .data;
    Ok(Staged { plan, moves: moves.into_inner().unwrap_or_else(PoisonError::into_inner) })
}

/// Lets the directory outputs of one task's fragment go to a directory of this attempt, so that what an attempt leaves that
/// failed, or was not the first, can be told from the rest.
pub fn into_attempt(plan: Arc<dyn ExecutionPlan>, attempt: &str) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = plan.transform_down(|node| {
        let Some(sink) = node.downcast_ref::<DataSinkExec>() else { return Ok(Transformed::no(node)) };
        let config = |config: &FileSinkConfig| attempt_config(config, attempt);
        let Some(redirected) = with_config(sink.sink(), config)? else { return Ok(Transformed::no(node)) };
        let exec = DataSinkExec::new(Arc::clone(sink.input()), redirected, sink.sort_order().clone());
        Ok(Transformed::yes(Arc::new(exec) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(plan.data)
}

/// The directory of an attempt.
pub fn attempt_name(stage: u32, task: u32, attempt: u32) -> String {
    format!("attempt-{stage}-{task}-{attempt}")
}

fn attempt_config(config: &FileSinkConfig, attempt: &str) -> Result<Option<FileSinkConfig>> {
    let [target] = config.table_paths.as_slice() else { return Ok(None) };
    if config.file_output_mode.single_file_output(target) {
        return Ok(None);
    }
    // The original URL does not travel with a fragment.
    let store = config.object_store_url.as_str().trim_end_matches('/');
    let url = format!("{store}/{}/{attempt}/", target.prefix());
    let mut own = config.clone();
    own.table_paths = vec![ListingTableUrl::parse(&url)?];
    own.original_url = url;
    Ok(Some(own))
}

/// The same sink with another configuration; `None` if it is of a kind that has none, or `change` leaves it alone.
fn with_config(
    sink: &dyn DataSink,
    change: impl Fn(&FileSinkConfig) -> Result<Option<FileSinkConfig>>,
) -> Result<Option<Arc<dyn DataSink>>> {
    if let Some(parquet) = sink.downcast_ref::<ParquetSink>() {
        let Some(config) = change(parquet.config())? else { return Ok(None) };
        return Ok(Some(Arc::new(ParquetSink::new(config, parquet.parquet_options().clone()))));
    }
    if let Some(csv) = sink.downcast_ref::<CsvSink>() {
        let Some(config) = change(csv.config())? else { return Ok(None) };
        return Ok(Some(Arc::new(CsvSink::new(config, csv.writer_options().clone()))));
    }
    if let Some(json) = sink.downcast_ref::<JsonSink>() {
        let Some(config) = change(json.config())? else { return Ok(None) };
        return Ok(Some(Arc::new(JsonSink::new(config, json.writer_options().clone()))));
    }
    Ok(None)
}

fn redirect(sink: &dyn DataSink) -> Result<Option<(Arc<dyn DataSink>, Move)>> {
    let planned = Cell::new(None);
    let sink = with_config(sink, |config| {
        let Some((config, redirected)) = staged_config(config)? else { return Ok(None) };
        planned.set(Some(redirected));
        Ok(Some(config))
    })?;
    Ok(sink.zip(planned.into_inner()))
}

fn staged_config(config: &FileSinkConfig) -> Result<Option<(FileSinkConfig, Move)>> {
    let [target] = config.table_paths.as_slice() else { return Ok(None) };
    if config.file_output_mode.single_file_output(target) {
        return Ok(None);
    }
    let mut segments: Vec<String> = target.prefix().parts().map(|part| part.as_ref().to_owned()).collect();
    let name = segments.pop().unwrap_or_default();
    segments.push(format!(".{name}.firesteel-{}", uuid::Uuid::new_v4().simple()));
    let staging = segments.join("/");
    let store = config.object_store_url.as_str().trim_end_matches('/').to_owned();
    let url = format!("{store}/{staging}/");
    let mut staged = config.clone();
    staged.original_url = url.clone();
    staged.table_paths = vec![ListingTableUrl::parse(&url)?];
    let planned = Move {
        store: config.object_store_url.clone(),
        staging: staged.table_paths[0].prefix().clone(),
        target: target.prefix().clone(),
    };
    Ok(Some((staged, planned)))
}

impl Staged {
    /// Moves what was written into place. With `attempts`, tasks wrote into directories named by their attempts
    /// ([`into_attempt`]), and only what these have written counts.
    pub async fn commit(&self, state: &SessionState, attempts: Option<&[String]>) -> Result<()> {
        for planned in &self.moves {
            let store = state.runtime_env().object_store(&planned.store)?;
            for file in list(&store, &planned.staging).await? {
                let mut relative = file.prefix_match(&planned.staging).into_iter().flatten();
                if let Some(attempts) = attempts {
                    let attempt = relative.next();
                    if !attempt.is_some_and(|name| attempts.iter().any(|a| a.as_str() == name.as_ref())) {
                        store.delete(&file).await.map_err(object_store_error)?;
                        continue;
                    }
                }
                let target = planned.target.parts().chain(relative).collect::<Path>();
                store.rename(&file, &target).await.map_err(object_store_error)?;
            }
            remove_local_directory(planned);
        }
        Ok(())
    }

    /// Removes what was written; what cannot be removed is said in the log and does no harm.
    pub async fn abandon(&self, state: &SessionState) {
        for planned in &self.moves {
            let removed = async {
                let store = state.runtime_env().object_store(&planned.store)?;
                for file in list(&store, &planned.staging).await? {
                    store.delete(&file).await.map_err(object_store_error)?;
                }
                Ok::<(), DataFusionError>(())
            };
            if let Err(error) = removed.await {
                tracing::warn!("left-over of a failed write at {}: {error}", planned.staging);
            }
            remove_local_directory(planned);
        }
    }
}

async fn list(store: &Arc<dyn ObjectStore>, prefix: &Path) -> Result<Vec<Path>> {
    store.list(Some(prefix)).map_ok(|meta| meta.location).try_collect().await.map_err(object_store_error)
}

fn object_store_error(error: object_store::Error) -> DataFusionError {
    DataFusionError::ObjectStore(Box::new(error))
}

/// Directories are real only on a local disk. Only this attempt's own, randomly named directory is touched: the parts
/// of unfinished files and the empty directories in it.
fn remove_local_directory(planned: &Move) {
    if planned.store.as_str().starts_with("file:") {
        let path = format!("/{}", planned.staging);
        if let Err(error) = std::fs::remove_dir_all(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("left-over of a write at {path}: {error}");
        }
    }
}
