//! The queries of a suite through a cluster, compared one by one with one DataFusion process.
//!
//! All queries are one application, because a start per query would cost more than the queries. A statement that fails
//! ends its script, so the rest goes on in another one: every query has an outcome, whatever happens to the others.

use crate::cluster::{Cluster, Run, binary};
use crate::csv::{self, Table};
use crate::suite::{self, Suite};
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// The values of `firesteel.execution.mode`.
pub const MODES: [&str; 3] = ["pipelined", "staged", "auto"];

/// So that tables as small as the tests' are scanned by several tasks, and more than there are slots, but not by hundreds.
pub const SPREAD: [&str; 4] =
    ["--conf", "firesteel.scan.bytesPerPartition=32k", "--conf", "firesteel.staged.maxTasks=5"];

/// A query's result, or the error that it ended with.
pub type Outcome = Result<Table, String>;

/// One query as it is run.
struct Query {
    number: u32,
    sql: String,
    /// Whether its rows have one right order.
    ordered: bool,
}

/// A suite's queries with the results that they must have.
pub struct Matrix {
    suite: Suite,
    tables: String,
    queries: Vec<Query>,
    expected: Vec<Outcome>,
}

impl Matrix {
    /// Makes the data of `scale` where there is none and runs all queries in one process, which takes a while.
    pub fn new(suite: Suite, scale: f64) -> Self {
        let tables = suite.tables(&suite.data(scale));
        let dir = tempfile::tempdir().expect("temporary directory");
        let local = |script: &Path| {
            let mut command = Command::new(binary("firesteel-engine"));
            Run::of(
                command.args(["local", "--cores", "2", "-o", "csv"]).arg(script).output().expect("it runs"),
            )
        };
        let texts: Vec<String> = suite
            .numbers()
            .zip(suite.queries())
            .map(|(number, text)| suite::with_small_parameters(suite, number, &text))
            .collect();
        // How many columns a query has says its header; nothing runs for it.
        let headers: Vec<String> = texts.iter().map(|text| suite::limited(text, 0)).collect();
        let headers = run_all(dir.path(), &tables, &headers, local);
        let query = |((number, text), header): ((u32, &String), Outcome)| {
            let total = header.ok().and_then(|header| suite::in_total_order(text, header.header.len()));
            Query { number, ordered: total.is_some(), sql: total.unwrap_or_else(|| text.clone()) }
        };
        let mut queries: Vec<Query> = suite.numbers().zip(&texts).zip(headers).map(query).collect();
        let mut expected = run_all(dir.path(), &tables, &texts_of(&queries), local);
        // One that orders by an expression of a grouped column cannot be planned with further columns: it stays as it is.
        for ((query, expected), text) in queries.iter_mut().zip(&mut expected).zip(texts) {
            if query.ordered && expected.is_err() {
                *expected = run_all(dir.path(), &tables, std::slice::from_ref(&text), local).remove(0);
                (query.sql, query.ordered) = (text, false);
            }
        }
        Self { suite, tables, queries, expected }
    }

    /// What every query has that one process cannot run, by its number.
    pub fn impossible(&self) -> Vec<(u32, &str)> {
        let numbers = self.queries.iter().zip(&self.expected);
        numbers
            .filter_map(|(query, outcome)| Some((query.number, outcome.as_ref().err()?.as_str())))
            .collect()
    }

    /// The queries whose right result has no rows: less is proven by them.
    pub fn without_rows(&self) -> Vec<u32> {
        let empty = |outcome: &Outcome| outcome.as_ref().is_ok_and(|table| table.rows.is_empty());
        let numbers = self.queries.iter().zip(&self.expected);
        numbers.filter(|(_, outcome)| empty(outcome)).map(|(query, _)| query.number).collect()
    }

    /// Runs all queries on the cluster with further flags of `submit` and says what is not as it must be.
    pub fn differences(&self, cluster: &Cluster, flags: &[&str]) -> Vec<(u32, String)> {
        let submit = |script: &Path| {
            let mut args = vec![OsStr::new("-q"), OsStr::new("-o"), OsStr::new("csv")];
            args.extend(flags.iter().map(OsStr::new));
            args.push(script.as_os_str());
            cluster.run(args)
        };
        let found = run_all(cluster.dir(), &self.tables, &texts_of(&self.queries), submit);
        let mut differences = Vec::new();
        for ((query, expected), found) in self.queries.iter().zip(&self.expected).zip(&found) {
            let compare = if query.ordered { csv::difference_in_order } else { csv::difference };
            let difference = match (found, expected) {
                (Ok(found), Ok(expected)) => compare(found, expected),
                (Err(found), Ok(_)) => Some(format!("failed: {found}")),
                // What one process cannot run need not run here either.
                (_, Err(_)) => None,
            };
            differences.extend(difference.map(|d| (query.number, d)));
        }
        differences
    }

    /// Panics with every difference between the cluster and one process.
    pub fn assert_equal(&self, cluster: &Cluster, flags: &[&str]) {
        let differences = self.differences(cluster, flags);
        let mut text = String::new();
        for (number, difference) in &differences {
            let _ = writeln!(text, "q{number}: {difference}");
        }
        let (name, count) = (self.suite.name, differences.len());
        assert!(
            differences.is_empty(),
            "{count} queries of {name} differ with {flags:?} (found, expected):\n{text}"
        );
    }
}

fn texts_of(queries: &[Query]) -> Vec<String> {
    queries.iter().map(|query| query.sql.clone()).collect()
}

/// Runs the queries in as few scripts as their failures allow.
fn run_all(dir: &Path, tables: &str, queries: &[String], run: impl Fn(&Path) -> Run) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    while outcomes.len() < queries.len() {
        let rest = &queries[outcomes.len()..];
        let mut script = tables.to_owned();
        // The line on which each query begins: an error names its line.
        let mut begins = Vec::new();
        for sql in rest {
            begins.push(script.matches('\n').count() + 1);
            let _ = writeln!(script, "{sql};");
        }
        let path = dir.join("queries.sql");
        std::fs::write(&path, script).expect("script");
        let ended = run(&path);
        // Every query has one result; results are separated by an empty line.
        let mut results = ended.stdout.split("\n\n").filter(|text| !text.is_empty()).map(csv::parse);
        assert!(
            RUN_CODES.contains(&ended.code),
            "it did not run: exit code {}: {}",
            ended.code,
            ended.stderr
        );
        if ended.code == 0 {
            outcomes.extend(results.map(Ok));
            assert_eq!(outcomes.len(), queries.len(), "a result per query; standard error: {}", ended.stderr);
            break;
        }
        let failed = match error_line(&ended.stderr) {
            Some(line) => begins.iter().rposition(|begin| *begin <= line),
            // It was killed at its time limit, or the driver died: in the first query that has no result.
            None => Some(ended.stdout.split("\n\n").filter(|text| !text.is_empty()).count()),
        };
        let Some(failed) = failed.filter(|failed| *failed < rest.len()) else {
            panic!("no query of the script failed, yet it ended with {}: {}", ended.code, ended.stderr)
        };
        outcomes.extend(results.by_ref().take(failed).map(Ok));
        outcomes.push(Err(format!("exit code {}: {}", ended.code, ended.stderr.trim())));
    }
    outcomes
}

/// Exit codes of what has run: well, with a failing statement, to its time limit.
const RUN_CODES: [i32; 3] = [0, 1, 124];

/// `error: …/queries.sql:LINE: …`
fn error_line(stderr: &str) -> Option<usize> {
    let (_, rest) = stderr.split_once("queries.sql:")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
