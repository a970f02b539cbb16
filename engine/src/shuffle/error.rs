//! What can go wrong with map outputs. These errors keep their type on the way up through DataFusion, because what happens
//! next depends on it: a lost output is computed again, a full disk is not.

use datafusion::error::DataFusionError;
use firesteel_common::shuffle::OutputId;
use std::error::Error;
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum ShuffleError {
    /// The output is gone or damaged, or its worker cannot be reached.
    #[error("map output {output} is lost: {reason}")]
    Lost { output: OutputId, reason: String },
    #[error("no space for map output {output}: {reason}")]
    NoSpace { output: OutputId, reason: String },
    #[error("cannot write map output {output}: {source}")]
    Write { output: OutputId, source: io::Error },
    /// The driver sent a task that reads what it was told nothing about.
    #[error("task {task} of stage {stage} is not among the task's inputs")]
    NotAnInput { stage: usize, task: usize },
}

impl From<ShuffleError> for DataFusionError {
    fn from(error: ShuffleError) -> Self {
        Self::External(Box::new(error))
    }
}

/// The shuffle error under DataFusion's layers, if there is one.
pub fn find_shuffle_error(error: &DataFusionError) -> Option<&ShuffleError> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<ShuffleError>() {
            return Some(found);
        }
        // `source` of a shared or boxed error skips the error itself.
        cause = match error.downcast_ref::<DataFusionError>() {
            Some(DataFusionError::Shared(inner)) => Some(inner.as_ref()),
            Some(DataFusionError::External(inner)) => Some(inner.as_ref()),
            _ => error.source(),
        };
    }
    None
}
