//! What the tests and the benchmark share: a fresh cluster of the real binaries, SQL scripts, results to compare.

pub mod cluster;
pub mod csv;
pub mod procs;
pub mod tpch;
