//! What a task costs besides its work: a staged query of very many tasks that have next to nothing to do.

use firesteel_tests::cluster::Cluster;
use firesteel_tests::status::{items, status};
use serde_json::Value;

/// Tasks of the measured stage.
const TASKS: u64 = 4000;
const ROWS: u64 = 40_000;

pub fn run(workers: usize, cores: u32) {
    println!(
        "== tasks: a staged query of {TASKS} tasks with {} rows each, {workers} executors of {cores} cores",
        ROWS / TASKS
    );
    let cluster = Cluster::start(workers, cores);
    let file = cluster.dir().join("rows.csv");
    let lines: String = (0..ROWS).map(|n| format!("{},{n:06}\n", n % 7)).collect();
    let bytes = lines.len() as u64;
    std::fs::write(&file, format!("k,v\n{lines}")).expect("temporary directory");
    let query = "SELECT k, count(*) AS n FROM many GROUP BY k;\n";
    let sql = format!(
        "CREATE EXTERNAL TABLE many STORED AS CSV LOCATION '{}' OPTIONS ('format.has_header' 'true');\n{}",
        file.display(),
        query.repeat(3)
    );
    let script = cluster.script("tasks.sql", &sql);
    let spread = format!("firesteel.scan.bytesPerPartition={}", bytes / TASKS / 2);
    let most = format!("firesteel.staged.maxTasks={TASKS}");
    let conf = [
        "firesteel.execution.mode=staged",
        "firesteel.staged.maxShuffleTasks=2",
        "firesteel.speculation=false",
        &spread,
        &most,
    ];
    let mut args = vec!["--deploy-mode", "cluster", "-q", "-o", "csv"];
    for setting in &conf {
        args.extend(["--conf", setting]);
    }
    let script = script.display().to_string();
    args.push(&script);
    let run = cluster.run(&args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let list: Value = serde_json::from_str(&cluster.run(["list", "-o", "json"]).stdout).expect("json");
    let status = status(&cluster, list[0]["id"].as_str().expect("an application"));
    let mut took: Vec<f64> = items(&status, "jobs")
        .filter(|job| items(job, "stages").next().is_some())
        .filter_map(|job| Some((job["ended_ms"].as_f64()? - job["started_ms"].as_f64()?) / 1e3))
        .collect();
    let tasks: u64 = items(&status, "jobs")
        .filter_map(|job| items(job, "stages").map(|stage| stage["task_count"].as_u64()).sum::<Option<u64>>())
        .max()
        .unwrap_or(0);
    let seconds = super::median(&mut took);
    let slots = (workers * cores as usize) as f64;
    println!(
        "  {tasks} tasks in {:.0} ms, planning included: {:.0} tasks/s",
        seconds * 1e3,
        tasks as f64 / seconds
    );
    println!("  an empty task's round trip: {:.2} ms on its slot", seconds * 1e3 * slots / tasks as f64);
    println!("  the scheduler alone: cargo run --release -p firesteel-engine-core --example throughput");
}
