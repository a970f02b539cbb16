//! Map outputs: what a task leaves for the tasks of later stages. Written beside the worker, which serves them, so that they
//! outlive their executor. The format is `common::shuffle`.

mod decode;
mod error;
mod reader;
mod writer;

pub use error::{ShuffleError, find_shuffle_error};
pub use reader::{OutputReader, Source};
pub use writer::{OutputDirectory, OutputWriter, Written};
