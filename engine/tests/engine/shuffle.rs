//! Map outputs: what is written is read again, from files and from messages, and damage is never data.

use arrow::array::{Array, DictionaryArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::IpcWriteOptions;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool, UnboundedMemoryPool};
use firesteel_common::shuffle::OutputId;
use firesteel_common::{ApplicationId, ExecutorId, Secret, ShuffleLaunch, WorkerId};
use firesteel_engine::shuffle::{
    OutputDirectory, OutputReader, OutputWriter, ShuffleError, Source, Written, find_shuffle_error,
};
use firesteel_engine::transport::ApplicationChannels;
use futures::TryStreamExt;
use std::path::Path;
use std::sync::Arc;

const WORKER: &str = "worker-20260101000000-abcd";

fn output(task: u32) -> OutputId {
    OutputId { query: 7, stage: 1, task, attempt: 0 }
}

fn schema() -> SchemaRef {
    let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("t", text, true)]))
}

/// `rows` rows that begin with `first`.
fn batch(first: i64, rows: usize) -> RecordBatch {
    let numbers = Int64Array::from_iter((first..).take(rows).map(|n| (n % 5 != 0).then_some(n)));
    let texts: DictionaryArray<Int32Type> = (first..)
        .take(rows)
        .map(|n| format!("text {}", n % 3))
        .collect::<Vec<_>>()
        .iter()
        .map(String::as_str)
        .collect();
    RecordBatch::try_new(schema(), vec![Arc::new(numbers), Arc::new(texts)]).unwrap()
}

fn launch(dir: &Path) -> ShuffleLaunch {
    ShuffleLaunch { worker: worker(), dir: dir.to_owned(), quota_bytes: 0, free_floor_bytes: 0 }
}

fn worker() -> WorkerId {
    WORKER.parse().unwrap()
}

fn application() -> ApplicationId {
    ApplicationId::new(0, 1)
}

fn writer(
    launch: &ShuffleLaunch,
    task: u32,
    partitions: usize,
    inline: u64,
    pool: &Arc<dyn MemoryPool>,
) -> OutputWriter {
    let executor = ExecutorId { application: application(), number: 3 };
    let directory = Arc::new(OutputDirectory::new(launch, &executor));
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
    OutputWriter::new(output(task), directory, schema(), partitions, options, inline, pool)
}

fn unbounded() -> Arc<dyn MemoryPool> {
    Arc::new(UnboundedMemoryPool::default())
}

fn reader(dir: &Path) -> OutputReader {
    let channels = ApplicationChannels::new(&Secret::new("token".to_owned())).unwrap();
    OutputReader::new(application(), channels, Some((WORKER.to_owned(), dir.to_owned())))
}

async fn read(dir: &Path, task: u32, partition: usize) -> Result<Vec<RecordBatch>, DataFusionError> {
    let source = Source::Worker { worker: WORKER.to_owned(), address: String::new() };
    reader(dir).read(output(task), source, partition, 1000).try_collect().await
}

/// Values and texts, whatever the batches and dictionaries.
fn rows(batches: &[RecordBatch]) -> Vec<(Option<i64>, String)> {
    let mut rows = Vec::new();
    for batch in batches {
        let numbers = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
        let texts = arrow::compute::cast(batch.column(1), &DataType::Utf8).unwrap();
        let texts = texts.as_any().downcast_ref::<StringArray>().unwrap();
        for row in 0..batch.num_rows() {
            let number = numbers.is_valid(row).then(|| numbers.value(row));
            rows.push((number, texts.value(row).to_owned()));
        }
    }
    rows
}

#[tokio::test]
async fn a_file_gives_back_each_partition() {
    let dir = tempfile::tempdir().unwrap();
    let mut out = writer(&launch(dir.path()), 0, 4, 0, &unbounded());
    out.write(2, &batch(0, 100)).await.unwrap();
    out.write(0, &batch(100, 10)).await.unwrap();
    out.write(2, &batch(200, 50)).await.unwrap();
    let Written { partition_bytes, rows: count, inline } = out.finish().await.unwrap();
    assert_eq!((count, inline.is_some(), partition_bytes[1], partition_bytes[3]), (160, false, 0, 0));
    assert_eq!(rows(&read(dir.path(), 0, 0).await.unwrap()), rows(&[batch(100, 10)]));
    assert_eq!(rows(&read(dir.path(), 0, 2).await.unwrap()), rows(&[batch(0, 100), batch(200, 50)]));
    assert_eq!(read(dir.path(), 0, 1).await.unwrap(), []);
    assert_eq!(read(dir.path(), 0, 9).await.unwrap(), []);
}

#[tokio::test]
async fn short_of_memory_an_output_has_many_groups() {
    let dir = tempfile::tempdir().unwrap();
    let tight: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(2 << 20));
    let mut out = writer(&launch(dir.path()), 0, 2, 0, &tight);
    for n in 0..40 {
        out.write(n % 2, &batch(n as i64 * 100_000, 100_000)).await.unwrap();
    }
    out.finish().await.unwrap();
    assert_eq!(tight.reserved(), 0);
    let expected: Vec<RecordBatch> =
        (0..40).filter(|n| n % 2 == 1).map(|n| batch(n * 100_000, 100_000)).collect();
    assert_eq!(rows(&read(dir.path(), 0, 1).await.unwrap()), rows(&expected));
}

#[tokio::test]
async fn a_small_output_travels_in_the_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut out = writer(&launch(dir.path()), 0, 3, 1 << 20, &unbounded());
    out.write(1, &batch(5, 20)).await.unwrap();
    let inline = out.finish().await.unwrap().inline.unwrap();
    assert_eq!(inline.iter().map(|(partition, _)| *partition).collect::<Vec<_>>(), [1]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let source = Source::Inline(inline[0].1.clone().into());
    let batches: Vec<_> = reader(dir.path()).read(output(0), source, 1, 1).try_collect().await.unwrap();
    assert_eq!(rows(&batches), rows(&[batch(5, 20)]));
}

#[tokio::test]
async fn an_attempt_that_is_dropped_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let tight: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1));
    let mut out = writer(&launch(dir.path()), 0, 1, 0, &tight);
    // Enough for a group.
    for n in 0..10 {
        out.write(0, &batch(n * 100_000, 100_000)).await.unwrap();
    }
    let files = || {
        let query = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::read_dir(query).unwrap().count()
    };
    assert_eq!(files(), 1);
    drop(out);
    assert_eq!(files(), 0);
}

#[tokio::test]
async fn what_is_missing_or_damaged_is_lost_and_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let mut out = writer(&launch(dir.path()), 0, 1, 0, &unbounded());
    out.write(0, &batch(0, 5000)).await.unwrap();
    out.finish().await.unwrap();
    let lost = |error: &DataFusionError| match find_shuffle_error(error) {
        Some(ShuffleError::Lost { output, .. }) => output.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(lost(&read(dir.path(), 1, 0).await.unwrap_err()), output(1));
    let path = dir.path().join(output(0).relative_path());
    let whole = std::fs::read(&path).unwrap();
    // Cut short, an index that lies, and a message that is none.
    for damage in [&whole[..whole.len() / 2], &whole[8..], &[&[0xff; 64], &whole[64..]].concat()[..]] {
        std::fs::write(&path, damage).unwrap();
        assert_eq!(lost(&read(dir.path(), 0, 0).await.unwrap_err()), output(0));
    }
    // The type survives the layers that DataFusion puts around it.
    let inner = DataFusionError::from(ShuffleError::NotAnInput { stage: 1, task: 2 });
    let wrapped = DataFusionError::Shared(Arc::new(inner.context("while reading")));
    assert!(matches!(find_shuffle_error(&wrapped), Some(ShuffleError::NotAnInput { .. })));
}

#[tokio::test]
async fn quota_and_floor_stop_a_task_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let limits = [
        (ShuffleLaunch { quota_bytes: 100, ..launch(dir.path()) }, "--shuffle-quota"),
        (ShuffleLaunch { free_floor_bytes: u64::MAX / 2, ..launch(dir.path()) }, "--shuffle-free-floor"),
    ];
    for (limit, flag) in limits {
        let mut out = writer(&limit, 0, 1, 0, &unbounded());
        out.write(0, &batch(0, 1000)).await.unwrap();
        let error = out.finish().await.unwrap_err();
        assert!(matches!(find_shuffle_error(&error), Some(ShuffleError::NoSpace { .. })), "{error}");
        assert!(error.to_string().contains(flag), "{error}");
    }
}
