//! What a task's error means to the scheduler.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use firesteel_common::shuffle::OutputId;
use firesteel_engine::shuffle::ShuffleError;
use firesteel_engine::tasks::classify;
use firesteel_proto::v1::task_failure::Kind;
use std::io;
use std::sync::Arc;

fn kind(error: DataFusionError) -> Kind {
    // As it arrives: shared by the consumers of one stream, with context.
    classify(&DataFusionError::Shared(Arc::new(error.context("somewhere")))).kind()
}

#[test]
fn types_decide_what_is_tried_again() {
    assert_eq!(kind(DataFusionError::Plan("no such column".into())), Kind::Fatal);
    assert_eq!(kind(ArrowError::DivideByZero.into()), Kind::Fatal);
    assert_eq!(kind(DataFusionError::ResourcesExhausted("too much".into())), Kind::OutOfMemory);
    assert_eq!(kind(io::Error::from(io::ErrorKind::ConnectionReset).into()), Kind::Retryable);
    assert_eq!(kind(io::Error::from(io::ErrorKind::StorageFull).into()), Kind::NoSpace);
    let nested = ArrowError::ExternalError(Box::new(DataFusionError::ResourcesExhausted("too much".into())));
    assert_eq!(kind(nested.into()), Kind::OutOfMemory);
    assert_eq!(kind(DataFusionError::Execution("something".into())), Kind::Retryable);
}

#[test]
fn a_lost_output_is_named() {
    let output = OutputId { query: 1, stage: 2, task: 3, attempt: 4 };
    let error = ShuffleError::Lost { output: output.clone(), reason: "gone".into() };
    let failure = classify(&DataFusionError::from(error).context("while joining"));
    assert_eq!(failure.kind(), Kind::FetchFailed);
    assert_eq!(failure.lost_output, output.to_string());
}
