//! What the tests and the benchmark share: a fresh cluster of the real binaries, SQL scripts, results to compare.

pub mod chaos;
pub mod cluster;
pub mod csv;
pub mod history;
pub mod matrix;
pub mod netns;
pub mod procs;
pub mod status;
pub mod suite;
