//! `results_equal_single_process_datafusion`: all 99 TPC-DS queries, in every mode of execution, over one to three
//! executors.

use firesteel_tests::cluster::Cluster;
use firesteel_tests::matrix::{MODES, Matrix, SPREAD};
use firesteel_tests::suite::TPCDS;
use std::sync::LazyLock;

static MATRIX: LazyLock<Matrix> = LazyLock::new(|| Matrix::new(TPCDS, 0.01));

fn equal(executors: &str) {
    let cluster = Cluster::start(3, 1);
    for mode in MODES {
        let mode = format!("firesteel.execution.mode={mode}");
        let flags = ["--num-executors", executors, "--conf", &mode];
        MATRIX.assert_equal(&cluster, &[&flags, &SPREAD[..]].concat());
    }
    cluster.assert_clean();
}

#[test]
fn results_equal_single_process_datafusion_on_one_executor() {
    equal("1");
}

#[test]
fn results_equal_single_process_datafusion_on_two_executors() {
    equal("2");
}

#[test]
fn results_equal_single_process_datafusion_on_three_executors() {
    equal("3");
}

/// What one process cannot run, with a part of its error: a query that runs one day must leave the list. (DataFusion 55
/// runs them all.)
const IMPOSSIBLE: [(u32, &str); 0] = [];

#[test]
fn every_query_runs_and_has_rows_in_one_process() {
    let impossible = MATRIX.impossible();
    let listed = |(number, error): &(u32, &str)| {
        IMPOSSIBLE.iter().any(|(listed, part)| listed == number && error.contains(part))
    };
    assert!(impossible.len() == IMPOSSIBLE.len() && impossible.iter().all(listed), "{impossible:#?}");
    // Two results without rows prove little: see `SMALL_PARAMETERS` in tests/src/suite.rs.
    assert_eq!(MATRIX.without_rows(), [0; 0]);
}
