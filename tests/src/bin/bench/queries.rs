//! TPC-H and TPC-DS on the cluster, in one mode or several, beside one DataFusion process on as many cores; all take turns.

use crate::{Args, median, status};
use firesteel_proto::v1::JobProgress;
use firesteel_tests::cluster::{Cluster, binary};
use firesteel_tests::csv;
use firesteel_tests::suite::Suite;
use std::path::Path;
use std::process::Command;

/// One statement before the queries, so that no query pays for the start of the executors.
const WARM_UP: &str = "SELECT 1 AS warm_up;\n";

/// One who runs the queries.
#[derive(Default)]
struct Side {
    /// Milliseconds per query of each round.
    millis: Vec<Vec<f64>>,
    results: Vec<csv::Table>,
}

impl Side {
    fn median(&self, query: usize) -> f64 {
        median(&mut self.millis.iter().map(|round| round[query]).collect::<Vec<_>>())
    }
}

pub fn run(suite: Suite, args: &Args) {
    let data = args.data.clone().unwrap_or_else(|| suite.data(args.scale));
    let texts = suite.queries();
    let numbers: Vec<u32> =
        if args.queries.is_empty() { suite.numbers().collect() } else { args.queries.clone() };
    let mut sql = suite.tables(&data);
    sql.push_str(WARM_UP);
    let setup = sql.matches(';').count();
    // A text may hold more than one statement (a view made, used and dropped): their times are added.
    let mut statements = Vec::new();
    for number in &numbers {
        let Some(text) = texts.get(*number as usize - 1) else {
            panic!("there is no q{number} in {}", suite.name)
        };
        statements.push(text.split(';').filter(|s| !s.trim().is_empty()).count());
        sql.push_str(text);
        sql.push_str(";\n");
    }
    let cores = args.workers * args.cores as usize;
    println!(
        "== {}: scale {}, {} mode, {} executors of {} cores beside one process of {cores} cores, {} rounds, medians in ms",
        suite.name, args.scale, args.deploy_mode, args.workers, args.cores, args.rounds
    );
    let cluster = Cluster::start_with(args.workers, args.cores, "16g");
    let script = cluster.script("queries.sql", &sql);
    let mut modes: Vec<Side> = args.mode.iter().map(|_| Side::default()).collect();
    let mut single = Side::default();
    let expected = setup + statements.iter().sum::<usize>();
    // The first round warms the page cache and is not counted.
    for round in 0..=args.rounds {
        let note = |side: &mut Side, (millis, out): (Vec<f64>, String)| {
            assert_eq!(millis.len(), expected, "one job per statement");
            side.results = out.split("\n\n").skip(1).map(csv::parse).collect();
            if round > 0 {
                side.millis.push(per_query(&millis[setup..], &statements));
            }
        };
        for (mode, side) in args.mode.iter().zip(&mut modes) {
            note(side, on_cluster(&cluster, args, mode, &script));
        }
        note(&mut single, in_one_process(cores, &script));
    }
    let heads: String = args.mode.iter().map(|mode| format!(" {mode:>9}   ratio")).collect();
    println!("  query    single{heads}   result");
    let mut unequal = 0;
    for (i, number) in numbers.iter().enumerate() {
        let verdict = verdict(args, &modes, &single, i);
        unequal += usize::from(verdict.is_some());
        print_line(&format!("q{number}"), &modes, &single, |side| side.median(i));
        println!("   {}", verdict.as_deref().unwrap_or("equal"));
    }
    print_line("sum", &modes, &single, |side| (0..numbers.len()).map(|i| side.median(i)).sum());
    println!("   {} of {} equal", numbers.len() - unequal, numbers.len());
    if unequal > 0 {
        std::process::exit(1);
    }
}

fn print_line(name: &str, modes: &[Side], single: &Side, millis: impl Fn(&Side) -> f64) {
    let b = millis(single);
    print!("  {name:<6} {b:9.1}");
    for mode in modes {
        let a = millis(mode);
        print!(" {a:9.1} {:7.2}", a / b);
    }
}

/// In which mode the result of a query is not that of the single process.
fn verdict(args: &Args, modes: &[Side], single: &Side, query: usize) -> Option<String> {
    let difference = |(mode, side): (&String, &Side)| {
        let difference = match (side.results.get(query), single.results.get(query)) {
            (Some(x), Some(y)) => csv::difference(x, y),
            _ => Some("no result".to_owned()),
        };
        difference.map(|d| format!("DIFFERENT {mode}: {d}"))
    };
    let all: Vec<String> = args.mode.iter().zip(modes).filter_map(difference).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn on_cluster(cluster: &Cluster, args: &Args, mode: &str, script: &Path) -> (Vec<f64>, String) {
    let mut command = cluster.submit(["--deploy-mode", &args.deploy_mode, "-q", "-o", "csv"]);
    command.args(["--num-executors", &args.workers.to_string()]);
    command.args(["--executor-cores", &args.cores.to_string(), "--executor-memory", &args.executor_memory]);
    command.args(["--conf", &format!("firesteel.execution.mode={mode}")]);
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

fn in_one_process(cores: usize, script: &Path) -> (Vec<f64>, String) {
    let output = Command::new(binary("firesteel-engine"))
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
