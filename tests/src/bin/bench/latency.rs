//! From the command's start to its end, for one small SELECT on a warm cluster whose executors do not run yet.

use crate::{median, status};
use firesteel_tests::cluster::Cluster;
use std::io::Read;
use std::process::Stdio;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const PARTS: [&str; 5] = ["accepted", "driver up", "executors up", "first row", "done"];

pub fn run(workers: usize, cores: u32, rounds: usize) {
    println!(
        "== latency: submit -o csv one-select.sql, {workers} workers of {cores} cores, {rounds} rounds (ms since the command's start)"
    );
    for mode in ["cluster", "client"] {
        let cluster = Cluster::start(workers, cores);
        let script = cluster.script("one-select.sql", "SELECT 1 + 1 AS two");
        let mut parts: [Vec<f64>; 5] = Default::default();
        // The first round pays for reading the binaries from disk.
        for round in 0..=rounds {
            let measured = one(&cluster, mode, &script);
            if round > 0 {
                for (all, value) in parts.iter_mut().zip(measured) {
                    all.push(value);
                }
            }
            cluster.assert_clean();
        }
        let worst = parts[4].iter().copied().fold(0.0, f64::max);
        let text: Vec<String> = PARTS
            .iter()
            .zip(&mut parts)
            .map(|(name, values)| format!("{name} {:.0}", median(values)))
            .collect();
        println!("  {mode:<8} median: {}   (worst {worst:.0})", text.join(" → "));
    }
}

fn one(cluster: &Cluster, mode: &str, script: &std::path::Path) -> [f64; 5] {
    let begin = Instant::now();
    let begin_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64() * 1e3;
    let mut child = cluster
        .submit(["--deploy-mode", mode, "-q", "-o", "csv"])
        .arg(script)
        .stdout(Stdio::piped())
        .spawn()
        .expect("submit runs");
    let mut out = child.stdout.take().expect("piped");
    let mut first = [0; 1];
    out.read_exact(&mut first).expect("a result");
    let first_row = begin.elapsed().as_secs_f64() * 1e3;
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("a result");
    assert!(child.wait().expect("wait").success());
    let done = begin.elapsed().as_secs_f64() * 1e3;
    assert_eq!(rest, "wo\n2\n");

    let status = status::newest(&cluster.url);
    let progress = status.progress.unwrap_or_default();
    let since = |ms: u64| if ms == 0 { 0.0 } else { (ms as f64 - begin_ms).max(0.0) };
    let driver_up = progress.jobs.first().map_or(0, |job| job.started_ms);
    let task_started = progress
        .jobs
        .iter()
        .flat_map(|job| &job.stages)
        .flat_map(|stage| &stage.tasks)
        .map(|task| task.started_ms)
        .min()
        .unwrap_or(0);
    [since(status.submitted_ms), since(driver_up), since(task_started), first_row, done]
}
