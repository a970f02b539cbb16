//! TPC-H on the cluster beside one DataFusion process on as many cores; the two take turns.

use crate::{Args, median, status};
use firesteel_proto::v1::JobProgress;
use firesteel_tests::cluster::{Cluster, binary};
use firesteel_tests::{csv, tpch};
use std::path::Path;
use std::process::Command;

/// One statement before the queries, so that no query pays for the start of the executors.
const WARM_UP: &str = "SELECT count(*) AS warm_up FROM region;\n";

struct Side {
    /// Milliseconds per query of each round.
    millis: Vec<Vec<f64>>,
    results: Vec<csv::Table>,
}

pub fn run(args: &Args) {
    let engine = binary("firesteel-engine");
    let data = args.data.clone().unwrap_or_else(|| tpch::data(&engine, args.scale));
    let texts = tpch::query_dir();
    let numbers: Vec<u32> =
        if args.queries.is_empty() { tpch::QUERIES.collect() } else { args.queries.clone() };
    let mut sql = tpch::tables(&data);
    sql.push_str(WARM_UP);
    let setup = sql.matches(';').count();
    // A text may hold more than one statement (a view made, used and dropped): their times are added.
    let mut statements = Vec::new();
    for number in &numbers {
        let text = tpch::query(&texts, *number);
        statements.push(text.split(';').filter(|s| !s.trim().is_empty()).count());
        sql.push_str(&text);
        sql.push_str(";\n");
    }
    let cores = args.workers * args.cores as usize;
    println!(
        "== tpch: scale {}, {} mode, {} executors of {} cores beside one process of {cores} cores, {} rounds, medians in ms",
        args.scale, args.deploy_mode, args.workers, args.cores, args.rounds
    );
    let cluster = Cluster::start_with(args.workers, args.cores, "16g");
    let script = cluster.script("tpch.sql", &sql);
    let mut ours = Side { millis: Vec::new(), results: Vec::new() };
    let mut single = Side { millis: Vec::new(), results: Vec::new() };
    // The first round warms the page cache and is not counted.
    for round in 0..=args.rounds {
        let (a, a_out) = on_cluster(&cluster, args, &script);
        let (b, b_out) = in_one_process(&engine, cores, &script);
        let expected = setup + statements.iter().sum::<usize>();
        assert_eq!((a.len(), b.len()), (expected, expected), "one job per statement");
        ours.results = split_results(&a_out);
        single.results = split_results(&b_out);
        if round > 0 {
            ours.millis.push(per_query(&a[setup..], &statements));
            single.millis.push(per_query(&b[setup..], &statements));
        }
    }
    let (mut sum_ours, mut sum_single, mut unequal) = (0.0, 0.0, 0);
    println!("  query   cluster    single   ratio   result");
    for (i, number) in numbers.iter().enumerate() {
        let a = median(&mut ours.millis.iter().map(|round| round[i]).collect::<Vec<_>>());
        let b = median(&mut single.millis.iter().map(|round| round[i]).collect::<Vec<_>>());
        let equal = match (ours.results.get(i + 1), single.results.get(i + 1)) {
            (Some(x), Some(y)) => csv::difference(x, y),
            _ => Some("no result".to_owned()),
        };
        unequal += usize::from(equal.is_some());
        let verdict = equal.map_or("equal".to_owned(), |d| format!("DIFFERENT: {d}"));
        println!("  q{number:<5} {a:9.1} {b:9.1} {:7.2}   {verdict}", a / b);
        sum_ours += a;
        sum_single += b;
    }
    println!(
        "  sum    {sum_ours:9.1} {sum_single:9.1} {:7.2}   {} of {} equal",
        sum_ours / sum_single,
        numbers.len() - unequal,
        numbers.len()
    );
    if unequal > 0 {
        std::process::exit(1);
    }
}

fn on_cluster(cluster: &Cluster, args: &Args, script: &Path) -> (Vec<f64>, String) {
    let mut command = cluster.submit(["--deploy-mode", &args.deploy_mode, "-q", "-o", "csv"]);
    command.args(["--num-executors", &args.workers.to_string()]);
    command.args(["--executor-cores", &args.cores.to_string(), "--executor-memory", &args.executor_memory]);
    for conf in &args.conf {
        command.args(["--conf", conf]);
    }
    let output = command.arg(script).output().expect("submit runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status = status::newest(&cluster.url);
    let jobs = status.progress.unwrap_or_default().jobs;
    let millis = |job: &JobProgress| job.ended_ms.saturating_sub(job.started_ms) as f64;
    (jobs.iter().map(millis).collect(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn in_one_process(engine: &Path, cores: usize, script: &Path) -> (Vec<f64>, String) {
    let output = Command::new(engine)
        .args(["local", "--timings", "-o", "csv", "--cores", &cores.to_string()])
        .arg(script)
        .output()
        .expect("firesteel-engine runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let line = stderr.lines().last().unwrap_or_default();
    (serde_json::from_str(line).expect("timings"), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn per_query(mut millis: &[f64], statements: &[usize]) -> Vec<f64> {
    statements
        .iter()
        .map(|count| {
            let (own, rest) = millis.split_at(*count);
            millis = rest;
            own.iter().sum()
        })
        .collect()
}

fn split_results(text: &str) -> Vec<csv::Table> {
    text.split("\n\n").map(csv::parse).collect()
}
