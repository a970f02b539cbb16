//! Staged execution when something dies: what is lost runs again, nothing else does, and the rows are right.
//!
//! `test_hold` and `test_fail` (engine/src/test_functions.rs) say when a task stands still or fails, so that each kill hits
//! what it is meant to hit.

use firesteel_tests::cluster::{Cluster, Run, Started, binary};
use firesteel_tests::procs::{self, wait_for};
use firesteel_tests::status::{items, only_application, stages, status};
use firesteel_tests::suite::TPCH;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// Map stage: scan and partial aggregation of lineitem. Reduce stage: the rest. Outputs are files, however small.
const STAGED: &[&str] = &[
    "--deploy-mode",
    "cluster",
    "-o",
    "csv",
    "--conf",
    "firesteel.execution.mode=staged",
    "--conf",
    "firesteel.test.functions=true",
    "--conf",
    "firesteel.shuffle.inlineSize=0",
    "--conf",
    "firesteel.scan.bytesPerPartition=200k",
];
const EXPECTED: &str =
    "SELECT l_linenumber AS k, count(*) AS n, sum(l_quantity) AS q FROM lineitem GROUP BY k ORDER BY k;";

/// A cluster, and the directory through which its test functions talk to the test.
struct Lab {
    cluster: Cluster,
    signals: PathBuf,
}

impl Lab {
    fn start(workers: usize, cores: u32) -> Self {
        let cluster = Cluster::start(workers, cores);
        let signals = cluster.dir().join("signals");
        std::fs::create_dir(&signals).unwrap();
        Self { cluster, signals }
    }

    fn tables(&self) -> String {
        TPCH.tables(&TPCH.data(0.01))
    }

    fn submit(&self, sql: &str, more: &[&str]) -> Started {
        let script = self.cluster.script("staged.sql", &format!("{}{sql}\n", self.tables()));
        Started::of(self.cluster.submit(STAGED.iter().chain(more)).arg(&script))
    }

    /// A table of numbered rows, in one file that can be cut into very many pieces.
    fn many(&self, rows: u64) -> String {
        let file = self.cluster.dir().join("many.csv");
        let lines: String = (0..rows).map(|n| format!("{},{n:06}\n", n % 7)).collect();
        std::fs::write(&file, format!("k,v\n{lines}")).unwrap();
        format!(
            "CREATE EXTERNAL TABLE many STORED AS CSV LOCATION '{}' OPTIONS ('format.has_header' 'true');\n",
            file.display()
        )
    }

    /// The right rows, from the same cluster without any fault.
    fn expected(&self) -> String {
        let script = self.cluster.script("expected.sql", &format!("{}{EXPECTED}\n", self.tables()));
        self.cluster.csv("client", &script, &["--conf", "firesteel.execution.mode=pipelined"])
    }

    /// Tasks that stand still, by their executors' process ids.
    fn held(&self, at_least: usize) -> BTreeSet<i32> {
        wait_for("tasks that stand still", LIMIT, || {
            let held = held(&self.signals);
            if held.len() >= at_least { Ok(held) } else { Err(format!("{held:?}\n{}", self.cluster.logs())) }
        })
    }

    fn go(&self) {
        std::fs::write(self.signals.join("go"), []).unwrap();
    }

    fn finish(&self, child: Started) -> Run {
        let run = child.finish();
        assert_eq!(run.code, 0, "{}\n{}", run.stderr, self.cluster.logs());
        run
    }

    /// The application that reads `staged.sql`.
    fn status(&self) -> Value {
        let run = self.cluster.run(["list", "-o", "json"]);
        let list: Value = serde_json::from_str(&run.stdout).unwrap();
        let ours = list.as_array().into_iter().flatten().find(|app| app["name"] == "staged.sql");
        let id = ours.and_then(|app| app["id"].as_str()).unwrap_or_else(|| panic!("{list}"));
        status(&self.cluster, id)
    }
}

fn held(signals: &Path) -> BTreeSet<i32> {
    let names = std::fs::read_dir(signals).into_iter().flatten().flatten();
    names.filter_map(|e| e.file_name().to_str()?.strip_prefix("held-")?.parse().ok()).collect()
}

/// A query whose map tasks stand still at a row that one of them has.
fn hold_in_map(signals: &Path) -> String {
    format!(
        "SELECT l_linenumber AS k, count(*) AS n, sum(q) AS q FROM
           (SELECT l_linenumber, CASE WHEN test_hold(l_orderkey, 1, '{}') > 0 THEN l_quantity END AS q FROM lineitem)
         GROUP BY k ORDER BY k;",
        signals.display()
    )
}

/// A query whose reduce tasks stand still at one group each: the map stage is complete then.
fn hold_in_reduce(signals: &Path) -> String {
    format!(
        "SELECT test_hold(k, 3, '{}') AS k, n, q FROM
           (SELECT l_linenumber AS k, count(*) AS n, sum(l_quantity) AS q FROM lineitem GROUP BY k) ORDER BY k;",
        signals.display()
    )
}

/// Attempts of the map stage that were not the first of their task.
fn map_tasks_again(status: &Value) -> u64 {
    map_stage(status)["again"].as_u64().unwrap_or_else(|| panic!("{status}"))
}

fn map_stage(status: &Value) -> &Value {
    stages(status).min_by_key(|stage| stage["id"].as_u64()).unwrap_or_else(|| panic!("{status}"))
}

#[test]
fn an_executor_that_dies_in_the_map_stage_costs_the_tasks_it_ran() {
    let lab = Lab::start(2, 1);
    let expected = lab.expected();
    let child = lab.submit(&hold_in_map(&lab.signals), &[]);
    let held = lab.held(1);
    procs::kill(*held.first().unwrap(), Signal::KILL);
    lab.go();
    assert_eq!(lab.finish(child).stdout, expected);
    let status = lab.status();
    assert_eq!(map_tasks_again(&status), 1, "{status:#}");
    lab.cluster.assert_clean();
}

#[test]
fn an_executor_that_dies_after_the_map_stage_costs_no_map_task() {
    let lab = Lab::start(2, 1);
    let expected = lab.expected();
    let child = lab.submit(&hold_in_reduce(&lab.signals), &[]);
    let held = lab.held(1);
    // All of them, one after the other: whoever ran map tasks is among them.
    for executor in lab.cluster.engines("executor") {
        procs::kill(executor.pid, Signal::KILL);
    }
    assert!(!held.is_empty());
    lab.go();
    assert_eq!(lab.finish(child).stdout, expected);
    let status = lab.status();
    assert_eq!(map_tasks_again(&status), 0, "{status:#}");
    assert!(stages(&status).any(|stage| stage["again"].as_u64() > Some(0)), "{status:#}");
}

#[test]
fn a_worker_that_dies_costs_exactly_its_map_outputs() {
    let mut lab = Lab::start(3, 1);
    let expected = lab.expected();
    let child = lab.submit(&hold_in_reduce(&lab.signals), &["--num-executors", "2"]);
    let held = lab.held(1);
    // The worker whose executor does not stand still.
    let other = lab.cluster.engines("executor").into_iter().find(|e| !held.contains(&e.pid)).unwrap();
    let before = wait_for("the map stage's end to be told", LIMIT, || {
        let status = lab.status();
        let done = stages(&status)
            .min_by_key(|stage| stage["id"].as_u64())
            .is_some_and(|stage| items(stage, "tasks").all(|task| task["state"] == "SUCCEEDED"));
        if done { Ok(status) } else { Err(status.to_string()) }
    });
    let number = other.command.rsplit('-').next().and_then(|n| n.parse::<u32>().ok()).unwrap();
    let lost = items(map_stage(&before), "tasks").filter(|task| task["executor"] == number).count() as u64;
    let worker = (0..3).find(|&w| other.cwd.starts_with(lab.cluster.worker_dir(w))).unwrap();
    lab.cluster.workers[worker].kill();
    lab.go();
    assert_eq!(lab.finish(child).stdout, expected);
    let status = lab.status();
    let again = map_tasks_again(&status);
    // What the held task had read already need not come back.
    assert!(again <= lost, "{again} of {lost} ran again: {status:#}");
}

#[test]
fn a_worker_that_dies_in_the_map_stage() {
    let mut lab = Lab::start(3, 1);
    let expected = lab.expected();
    let child = lab.submit(&hold_in_map(&lab.signals), &["--num-executors", "2"]);
    let held = *lab.held(1).first().unwrap();
    let executor = lab.cluster.engines("executor").into_iter().find(|e| e.pid == held).unwrap();
    let worker = (0..3).find(|&w| executor.cwd.starts_with(lab.cluster.worker_dir(w))).unwrap();
    lab.cluster.workers[worker].kill();
    lab.go();
    assert_eq!(lab.finish(child).stdout, expected);
    assert!(map_tasks_again(&lab.status()) > 0);
}

/// Nothing ever lets the first attempt go on: only a copy can end the query.
#[test]
fn a_task_that_stands_still_gets_a_copy_elsewhere() {
    let lab = Lab::start(2, 1);
    let expected = lab.expected();
    let sql = hold_in_map(&lab.signals).replace("test_hold", "test_hold_once");
    assert_eq!(lab.finish(lab.submit(&sql, &[])).stdout, expected);
    assert_eq!(held(&lab.signals).len(), 1);
    let status = lab.status();
    assert_eq!(map_tasks_again(&status), 0, "{status:#}");
    let map = map_stage(&status);
    assert_eq!(map["attempts"].as_u64(), map["task_count"].as_u64().map(|n| n + 1), "{status:#}");
}

#[test]
fn every_executor_at_once_three_times() {
    let lab = Lab::start(2, 1);
    let expected = lab.expected();
    let child = lab.submit(&hold_in_reduce(&lab.signals), &[]);
    let mut killed = BTreeSet::new();
    for _ in 0..3 {
        wait_for("a fresh executor that stands still", LIMIT, || {
            let held = held(&lab.signals);
            if held.is_subset(&killed) { Err(format!("{held:?}\n{}", lab.cluster.logs())) } else { Ok(()) }
        });
        for executor in lab.cluster.engines("executor") {
            procs::kill(executor.pid, Signal::KILL);
            killed.insert(executor.pid);
        }
    }
    lab.go();
    assert_eq!(lab.finish(child).stdout, expected);
    assert_eq!(map_tasks_again(&lab.status()), 0);
}

#[test]
fn a_task_that_fails_is_tried_again_and_a_hopeless_one_ends_the_query() {
    let lab = Lab::start(2, 1);
    let expected = lab.expected();
    let failing = |times: u32| {
        format!(
            "SELECT l_linenumber AS k, count(*) AS n, sum(q) AS q FROM
               (SELECT l_linenumber, CASE WHEN test_fail(l_orderkey, '{}', {times}) > 0 THEN l_quantity END AS q
                FROM lineitem)
             GROUP BY k ORDER BY k;",
            lab.signals.display()
        )
    };
    let run = lab.finish(lab.submit(&failing(2), &[]));
    assert_eq!(run.stdout, expected);
    let status = lab.status();
    assert_eq!(map_tasks_again(&status), 2, "{status:#}");
    let run = lab.submit(&failing(1000), &["--name", "hopeless"]).finish();
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("failed 4 times") && run.stderr.contains("test_fail fails"),
        "{}",
        run.stderr
    );
    lab.cluster.assert_clean();
}

#[test]
fn an_error_of_the_query_itself_is_not_repeated() {
    let lab = Lab::start(1, 1);
    let run = lab.submit("SELECT sum(100 / (l_linenumber - l_linenumber)) FROM lineitem;", &[]).finish();
    assert_eq!(run.code, 1);
    assert!(run.stderr.to_lowercase().contains("divide by zero"), "{}", run.stderr);
    let status = status(&lab.cluster, &only_application(&lab.cluster));
    assert!(stages(&status).all(|stage| stage["again"] == 0), "{status:#}");
}

#[test]
fn a_directory_is_written_once_however_often_its_task_runs() {
    let lab = Lab::start(2, 1);
    let out = lab.cluster.dir().join("out");
    let sql = format!(
        "COPY (SELECT test_fail(l_orderkey, '{}', 1) AS l_orderkey, l_comment FROM lineitem ORDER BY l_comment)
           TO '{}/' STORED AS PARQUET;
         CREATE EXTERNAL TABLE copied STORED AS PARQUET LOCATION '{}/';
         SELECT count(*) AS n, count(DISTINCT l_orderkey) AS o FROM copied;",
        lab.signals.display(),
        out.display(),
        out.display()
    );
    let copied = lab.finish(lab.submit(&sql, &[])).stdout;
    let script = lab.cluster.script(
        "count.sql",
        &format!("{}SELECT count(*) AS n, count(DISTINCT l_orderkey) AS o FROM lineitem;\n", lab.tables()),
    );
    assert_eq!(copied, lab.cluster.csv("client", &script, &[]));
    let left: Vec<_> = std::fs::read_dir(lab.cluster.dir())
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(".out"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Operators of both executors together may use about 52 MiB; the join's sides and what is sorted are several times that.
#[test]
fn a_working_set_of_four_times_the_memory_finishes_staged_and_auto() {
    let cluster = Cluster::start_with(2, 1, "2g");
    let engine = binary("firesteel-engine");
    let sql = format!(
        "{}SELECT count(*) AS n, sum(a.l_quantity) AS q, min(b.l_comment) AS c, max(b.l_shipinstruct) AS i
             FROM lineitem a JOIN lineitem b ON a.l_orderkey = b.l_orderkey AND a.l_linenumber = b.l_linenumber
             WHERE a.l_comment <= b.l_comment;
           SELECT sum(r % 1000 * l_linenumber) AS s FROM
             (SELECT row_number() OVER (ORDER BY l_comment, l_orderkey, l_linenumber) AS r, * FROM lineitem)
             WHERE l_shipinstruct <> l_comment;\n",
        TPCH.tables(&TPCH.data(0.1))
    );
    let script = cluster.script("large.sql", &sql);
    let expected =
        std::process::Command::new(&engine).args(["local", "-o", "csv"]).arg(&script).output().unwrap();
    let expected = String::from_utf8(expected.stdout).unwrap();
    for mode in ["staged", "auto"] {
        let mode_setting = format!("firesteel.execution.mode={mode}");
        let rows = cluster.csv(
            "cluster",
            &script,
            &[
                "--executor-memory",
                "256m",
                "--conf",
                "firesteel.executor.memoryFraction=0.1",
                "--conf",
                "firesteel.scan.bytesPerPartition=2m",
                "--conf",
                &mode_setting,
                "--name",
                mode,
            ],
        );
        assert_eq!(rows, expected, "{mode}");
        let run = cluster.run(["list", "-o", "json"]);
        let list: Value = serde_json::from_str(&run.stdout).unwrap();
        let ours = list.as_array().into_iter().flatten().find(|app| app["name"] == mode).unwrap();
        let status = status(&cluster, ours["id"].as_str().unwrap());
        let spilled: u64 = stages(&status).filter_map(|stage| stage["spilled_bytes"].as_u64()).sum();
        assert!(spilled > 0, "{status:#}");
        assert!(
            items(&status, "jobs").all(|job| job["mode"].as_str().is_none_or(|m| m.starts_with("staged")))
        );
    }
}

#[test]
fn explain_says_the_mode_and_analyze_measures_each_stage() {
    let lab = Lab::start(2, 1);
    let explained = lab.finish(lab.submit(&format!("EXPLAIN {EXPECTED}"), &[])).stdout;
    assert!(explained.contains("mode: staged (firesteel.execution.mode says so)"), "{explained}");
    let measured =
        lab.finish(lab.submit(&format!("EXPLAIN ANALYZE {EXPECTED}"), &["--name", "measured"])).stdout;
    assert!(measured.contains("Stage 1") && measured.contains("output_rows="), "{measured}");
    let child = lab.submit(
        &format!("EXPLAIN {EXPECTED}"),
        &["--name", "auto", "--conf", "firesteel.execution.mode=auto"],
    );
    let explained = lab.finish(child).stdout;
    assert!(explained.contains("mode: pipelined (auto: "), "{explained}");
}

/// A limit inside of a query counts once, not once per task: of a collected join side, and of a scan.
#[test]
fn an_inner_limit_holds_for_all_tasks_together() {
    let lab = Lab::start(2, 2);
    let sql = format!(
        "{} SELECT count(DISTINCT d.v) AS n FROM many f JOIN (SELECT k, v FROM many LIMIT 10) d ON f.k = d.k;
         SELECT sum(n) AS n FROM (SELECT k, count(*) AS n FROM (SELECT k FROM many LIMIT 1000) GROUP BY k);",
        lab.many(60_000)
    );
    for mode in ["staged", "pipelined"] {
        let mode = format!("firesteel.execution.mode={mode}");
        let run = lab
            .finish(lab.submit(&sql, &["--conf", &mode, "--conf", "firesteel.scan.bytesPerPartition=20k"]));
        assert_eq!(run.stdout, "n\n10\n\nn\n1000\n", "{mode}");
    }
}

/// More inputs than may be read at once on both sides of a join, of which one waits for the other.
#[test]
fn a_join_of_many_inputs_does_not_wait_for_itself() {
    let lab = Lab::start(2, 1);
    let sql = format!(
        "{} SELECT count(*) AS n, sum(a.k) AS s FROM many a JOIN many b ON a.v = b.v;",
        lab.many(60_000)
    );
    let more = [
        "--conf",
        "firesteel.scan.bytesPerPartition=2k",
        "--conf",
        "firesteel.staged.maxShuffleTasks=4",
        "--conf",
        "datafusion.optimizer.hash_join_single_partition_threshold=0",
        "--conf",
        "datafusion.optimizer.hash_join_single_partition_threshold_rows=0",
    ];
    let run = lab.finish(lab.submit(&sql, &more));
    let sum: u64 = (0..60_000).map(|n| n % 7).sum();
    assert_eq!(run.stdout.lines().last(), Some(format!("60000,{sum}").as_str()));
    let tasks = stages(&lab.status()).filter_map(|s| s["task_count"].as_u64()).max();
    assert!(tasks > Some(100), "{tasks:?}");
}

/// Thousands of tasks over few slots, each with outputs for many readers: no more open files or connections than a few.
#[test]
fn ten_thousand_tasks_run_within_bounds() {
    let lab = Lab::start(2, 1);
    let sql =
        format!("{} SELECT k, count(*) AS n, sum(v) AS s FROM many GROUP BY k ORDER BY k;", lab.many(60_000));
    let run = lab.submit(
        &sql,
        &[
            "--conf",
            "firesteel.scan.bytesPerPartition=27",
            "--conf",
            "firesteel.staged.maxTasks=10000",
            "--conf",
            "firesteel.staged.maxShuffleTasks=4",
        ],
    );
    let files = || {
        let count = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        lab.cluster.engines("executor").iter().map(|p| count(p.pid)).max().unwrap_or(0)
    };
    let mut most = 0;
    let mut run = run;
    while run.ended().is_none() {
        most = most.max(files());
        std::thread::yield_now();
    }
    let run = lab.finish(run);
    let rows: Vec<String> = (0..7)
        .map(|k| {
            let values = (0..60_000u64).filter(|n| n % 7 == k);
            format!("{k},{},{}", values.clone().count(), values.sum::<u64>())
        })
        .collect();
    assert_eq!(run.stdout.lines().skip(1).collect::<Vec<_>>(), rows);
    assert!(most < 300, "{most} open files");
    let status = lab.status();
    let tasks = stages(&status).filter_map(|s| s["task_count"].as_u64()).max();
    assert_eq!(tasks, Some(10_000));
}
