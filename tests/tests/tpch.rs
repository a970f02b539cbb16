//! `results_equal_single_process_datafusion`: all 22 TPC-H queries, in client and in cluster mode, over two executors.

use firesteel_tests::cluster::{Cluster, binary};
use firesteel_tests::{csv, tpch};
use std::process::Command;

const SCALE: f64 = 0.01;
/// So that tables as small as these are scanned by several tasks.
const SPREAD: &[&str] = &["--conf", "firesteel.scan.bytesPerPartition=32k"];

/// Each query's result in one DataFusion process.
fn reference(number: u32, script: &std::path::Path) -> csv::Table {
    let output = Command::new(binary("firesteel-engine"))
        .args(["local", "--cores", "2", "--output", "csv"])
        .arg(script)
        .output()
        .expect("firesteel-engine runs");
    assert!(output.status.success(), "q{number}: {}", String::from_utf8_lossy(&output.stderr));
    csv::parse(&String::from_utf8_lossy(&output.stdout))
}

fn all_queries_equal(mode: &str) {
    let cluster = Cluster::start(2, 2);
    let data = tpch::data(&binary("firesteel-engine"), SCALE);
    let queries = tpch::query_dir();
    for number in tpch::QUERIES {
        let sql = format!("{}{};\n", tpch::tables(&data), tpch::query(&queries, number));
        let script = cluster.script(&format!("q{number}.sql"), &sql);
        let expected = reference(number, &script);
        let found = csv::parse(&cluster.csv(mode, &script, SPREAD));
        if let Some(difference) = csv::difference(&found, &expected) {
            panic!("q{number} in {mode} mode: {difference}");
        }
    }
    cluster.assert_clean();
}

#[test]
fn results_equal_single_process_datafusion_in_client_mode() {
    all_queries_equal("client");
}

#[test]
fn results_equal_single_process_datafusion_in_cluster_mode() {
    all_queries_equal("cluster");
}

/// The distributed planner returns wrong rows for q11 and q15 when it plans with one partition (and then each executor
/// has one core): the engine must not let that happen, whatever it is asked for.
#[test]
fn one_core_executors_still_plan_with_two_partitions() {
    let cluster = Cluster::start(2, 1);
    let data = tpch::data(&binary("firesteel-engine"), SCALE);
    let queries = tpch::query_dir();
    for number in [11, 15] {
        let sql = format!("{}{};\n", tpch::tables(&data), tpch::query(&queries, number));
        let script = cluster.script(&format!("q{number}.sql"), &sql);
        let expected = reference(number, &script);
        let found = csv::parse(&cluster.csv("cluster", &script, SPREAD));
        assert_eq!(csv::difference(&found, &expected), None, "q{number}");
    }
    let script = cluster.script("one.sql", "SET datafusion.execution.target_partitions = 1; SELECT 1");
    let run = cluster.run([script.as_os_str()]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("at least 2 partitions"), "{}", run.stderr);
}
