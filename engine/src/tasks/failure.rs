//! What a task's error means to the scheduler.

use crate::shuffle::{ShuffleError, find_shuffle_error};
use crate::sql::run::friendly;
use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use firesteel_proto::v1::TaskFailure;
use firesteel_proto::v1::task_failure::Kind;
use std::io;

/// Types decide, never texts.
pub fn classify(error: &DataFusionError) -> TaskFailure {
    let message = friendly(error);
    if let Some(shuffle) = find_shuffle_error(error) {
        return match shuffle {
            ShuffleError::Lost { output, .. } => {
                TaskFailure { kind: Kind::FetchFailed.into(), message, lost_output: output.to_string() }
            }
            ShuffleError::NoSpace { .. } => failure(Kind::NoSpace, message),
            ShuffleError::Write { .. } => failure(Kind::Retryable, message),
            ShuffleError::NotAnInput { .. } => failure(Kind::Fatal, message),
        };
    }
    failure(kind(error), message)
}

fn failure(kind: Kind, message: String) -> TaskFailure {
    TaskFailure { kind: kind.into(), message, lost_output: String::new() }
}

fn kind(error: &DataFusionError) -> Kind {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => kind(inner),
        DataFusionError::Shared(inner) => kind(inner),
        DataFusionError::External(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => kind(inner),
            None => inner.downcast_ref::<io::Error>().map_or(Kind::Retryable, io_kind),
        },
        DataFusionError::Collection(all) => all.first().map_or(Kind::Retryable, kind),
        DataFusionError::ResourcesExhausted(_) => Kind::OutOfMemory,
        DataFusionError::IoError(error) => io_kind(error),
        DataFusionError::ArrowError(error, _) => arrow_kind(error),
        // The same everywhere and always.
        DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::Configuration(_)
        | DataFusionError::SQL(..)
        | DataFusionError::Substrait(_)
        | DataFusionError::Ffi(_) => Kind::Fatal,
        DataFusionError::ObjectStore(error) => match error.as_ref() {
            object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
                Kind::Fatal
            }
            _ => Kind::Retryable,
        },
        // A damaged file may be a damaged read; an execution or internal error may come from a panicked or cancelled part.
        _ => Kind::Retryable,
    }
}

fn io_kind(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
        io::ErrorKind::OutOfMemory => Kind::OutOfMemory,
        _ => Kind::Retryable,
    }
}

fn arrow_kind(error: &ArrowError) -> Kind {
    match error {
        ArrowError::ExternalError(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => kind(inner),
            None => inner.downcast_ref::<io::Error>().map_or(Kind::Retryable, io_kind),
        },
        ArrowError::IoError(_, error) => io_kind(error),
        ArrowError::IpcError(_) => Kind::Retryable,
        // Computations with the data, such as a cast that does not fit or a division by zero.
        _ => Kind::Fatal,
    }
}
