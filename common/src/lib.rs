//! The vocabulary of Firesteel: identifiers, resources, application specifications and states.
//!
//! No async, no I/O. A type enters this crate only when the public APIs of two other crates need it.

mod application;
mod ids;
mod launch;
mod master_url;
mod memory;
mod resources;
mod secret;
pub mod shuffle;

pub use application::{
    ApplicationSpec, ApplicationState, DeployMode, ExecutorCount, ExecutorState, InvalidSpec, OutputFormat,
    ProcessEnd, WorkerStatus,
};
pub use ids::{ApplicationId, Epoch, ExecutorId, InvalidId, ProcessId, WorkerId};
pub use launch::{DriverLaunch, ExecutorLaunch, ShuffleLaunch};
pub use master_url::{DEFAULT_MASTER_PORT, InvalidMasterUrl, MasterUrl};
pub use memory::{InvalidMemorySize, MemorySize};
pub use resources::Resources;
pub use secret::Secret;
