//! The engine: the only crate that links DataFusion. Driver, executor, and the SQL scripts they run.

pub mod cli;
pub mod driver;
pub mod executor;
pub mod launch;
pub mod local;
pub mod output;
pub mod sample_data;
pub mod session;
pub mod settings;
pub mod shuffle;
pub mod sql;
pub mod store;
pub mod tasks;
pub mod test_functions;
pub mod transport;
