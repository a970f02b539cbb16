//! `results_equal_single_process_datafusion`: all 22 TPC-H queries, in client and in cluster mode, in every mode of
//! execution, over one to three executors, also with so little memory that operators spill.

use firesteel_tests::cluster::Cluster;
use firesteel_tests::matrix::{MODES, Matrix, SPREAD};
use firesteel_tests::suite::TPCH;
use std::sync::LazyLock;

static MATRIX: LazyLock<Matrix> = LazyLock::new(|| Matrix::new(TPCH, 0.01));

fn equal(deploy_mode: &str, executors: &str, cores: u32, more: &[&str]) {
    let cluster = Cluster::start(3, cores);
    for mode in MODES {
        let mode = format!("firesteel.execution.mode={mode}");
        let flags = ["--deploy-mode", deploy_mode, "--num-executors", executors, "--conf", &mode];
        MATRIX.assert_equal(&cluster, &[&flags, &SPREAD[..], more].concat());
    }
    cluster.assert_clean();
}

#[test]
fn results_equal_single_process_datafusion_in_client_mode() {
    equal("client", "2", 2, &[]);
}

#[test]
fn results_equal_single_process_datafusion_on_one_executor() {
    equal("cluster", "1", 1, &[]);
}

#[test]
fn results_equal_single_process_datafusion_on_two_executors_without_inline_outputs() {
    equal("cluster", "2", 1, &["--conf", "firesteel.shuffle.inlineSize=0"]);
}

#[test]
fn results_equal_single_process_datafusion_on_three_executors() {
    equal("cluster", "3", 2, &[]);
}

/// The distributed planner returns wrong rows for q11 and q15 when it plans with one partition: the engine must not let
/// that happen, whatever it is asked for. (One-core executors, above, are what would make it plan so.)
#[test]
fn one_partition_is_refused() {
    let cluster = Cluster::start(1, 1);
    let script = cluster.script("one.sql", "SET datafusion.execution.target_partitions = 1; SELECT 1");
    let run = cluster.run([script.as_os_str()]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("at least 2 partitions"), "{}", run.stderr);
}

/// A larger scale, and operators that may use 26 MiB per executor. What cannot spill runs again in a way that can.
#[test]
fn results_equal_single_process_datafusion_when_memory_is_short() {
    let matrix = Matrix::new(TPCH, 0.1);
    let cluster = Cluster::start_with(2, 1, "2g");
    for mode in ["staged", "auto"] {
        let mode = format!("firesteel.execution.mode={mode}");
        let memory = ["--executor-memory", "256m", "--conf", "firesteel.executor.memoryFraction=0.1"];
        let spread = ["--conf", "firesteel.scan.bytesPerPartition=2m", "--conf", &mode];
        matrix.assert_equal(&cluster, &[&memory[..], &spread[..]].concat());
    }
}
