//! `results_equal_single_process_datafusion`: all 99 TPC-DS queries, in every mode, over one to three executors.

use firesteel_tests::cluster::Cluster;
use firesteel_tests::matrix::{MODES, Matrix, SPREAD};
use firesteel_tests::suite::TPCDS;
use std::sync::LazyLock;

static MATRIX: LazyLock<Matrix> = LazyLock::new(|| Matrix::new(TPCDS, 0.01));

fn equal_on(executors: &str) {
    let cluster = Cluster::start(3, 1);
    for mode in MODES {
        let mode = format!("firesteel.execution.mode={mode}");
        MATRIX.assert_equal(&cluster, &["--num-executors", executors, "--conf", &mode, "--conf", SPREAD]);
    }
    cluster.assert_clean();
}

#[test]
fn results_equal_single_process_datafusion_on_one_executor() {
    equal_on("1");
}

#[test]
fn results_equal_single_process_datafusion_on_two_executors() {
    equal_on("2");
}

#[test]
fn results_equal_single_process_datafusion_on_three_executors() {
    equal_on("3");
}
