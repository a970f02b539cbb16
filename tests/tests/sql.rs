//! What an SQL script may hold, and what its user sees.

use firesteel_tests::cluster::{Cluster, Run};
use firesteel_tests::suite::TPCH;
use std::ffi::OsString;
use std::path::Path;

fn submit(cluster: &Cluster, args: &[&str], script: &Path) -> Run {
    let args: Vec<OsString> =
        args.iter().map(OsString::from).chain([script.as_os_str().to_owned()]).collect();
    cluster.run(args)
}

#[test]
fn a_script_of_every_statement_runs_in_both_modes() {
    let cluster = Cluster::start(2, 2);
    for mode in ["client", "cluster"] {
        let out = cluster.dir().join(format!("out-{mode}"));
        std::fs::create_dir(&out).unwrap();
        let dir = out.display();
        std::fs::write(out.join("in.csv"), "id,name\n1,ana\n2,\"b, c\"\n3,\n").unwrap();
        std::fs::create_dir(out.join("json")).unwrap();
        std::fs::write(out.join("json/a.json"), "{\"id\":1,\"x\":0.5}\n{\"id\":3,\"x\":1.5}\n").unwrap();
        let script = cluster.script(
            &format!("all-{mode}.sql"),
            &format!(
                "-- every kind of statement
                 SET datafusion.execution.batch_size = 1000;
                 CREATE EXTERNAL TABLE people STORED AS CSV LOCATION '{dir}/in.csv' OPTIONS ('format.has_header' 'true');
                 CREATE EXTERNAL TABLE xs STORED AS JSON LOCATION '{dir}/json/';
                 CREATE VIEW joined AS SELECT p.id, p.name, x.x FROM people p JOIN xs x ON p.id = x.id;
                 SELECT count(*) AS n, sum(x) AS s FROM joined;
                 COPY (SELECT * FROM joined) TO '{dir}/copied/' STORED AS PARQUET;
                 CREATE EXTERNAL TABLE copied STORED AS PARQUET LOCATION '{dir}/copied/';
                 INSERT INTO copied VALUES (9, 'z', 9.5);
                 SELECT id FROM copied ORDER BY id;
                 EXPLAIN SELECT count(*) FROM joined;
                 EXPLAIN ANALYZE SELECT count(*) FROM joined;
                 SHOW TABLES;
                 SELECT 1 + 1 AS two;
                 COPY (SELECT 7 AS seven) TO '{dir}/single.csv'"
            ),
        );
        let run = submit(&cluster, &["--deploy-mode", mode, "-o", "csv"], &script);
        assert_eq!(run.code, 0, "{mode}: {}\n{}", run.stderr, cluster.logs());
        assert!(run.stdout.starts_with("n,s\n2,2.0\n\nid\n1\n3\n9\n\nplan_type,plan\n"), "{}", run.stdout);
        assert!(run.stdout.contains("DistributedExec"), "EXPLAIN shows the stages: {}", run.stdout);
        assert!(
            run.stdout.contains("output_rows"),
            "EXPLAIN ANALYZE shows what was measured: {}",
            run.stdout
        );
        assert!(run.stdout.contains("joined"), "SHOW TABLES");
        assert!(run.stdout.ends_with("\n\ntwo\n2\n"), "{}", run.stdout);
        assert_eq!(std::fs::read_to_string(out.join("single.csv")).unwrap(), "seven\n7\n");
        let hidden: Vec<_> = std::fs::read_dir(&out)
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with('.'))
            .collect();
        assert!(hidden.is_empty(), "staging directories are gone: {hidden:?}");
    }
    cluster.assert_clean();
}

#[test]
fn relative_paths_start_where_submit_was_run() {
    let cluster = Cluster::start(1, 2);
    let home = cluster.dir().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("in.csv"), "a\n4\n").unwrap();
    let script = cluster.script(
        "relative.sql",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'in.csv' OPTIONS ('format.has_header' 'true');
         COPY (SELECT a * 2 AS b FROM t) TO 'out.csv'; SELECT * FROM t",
    );
    for mode in ["client", "cluster"] {
        let run = Run::of(
            cluster
                .submit(["--deploy-mode", mode, "-o", "json"])
                .arg(&script)
                .current_dir(&home)
                .output()
                .unwrap(),
        );
        assert_eq!((run.code, run.stdout.as_str()), (0, "{\"a\":4}\n"), "{mode}: {}", run.stderr);
        assert_eq!(std::fs::read_to_string(home.join("out.csv")).unwrap(), "b\n8\n", "{mode}");
        std::fs::remove_file(home.join("out.csv")).unwrap();
    }
}

#[test]
fn tables_are_for_people() {
    let cluster = Cluster::start(1, 2);
    let script = cluster.script("t.sql", "SELECT 1 AS a, 'x' AS b UNION ALL SELECT 22, 'yy' ORDER BY a");
    let run = submit(&cluster, &["--deploy-mode", "cluster"], &script);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(
        run.stdout,
        "+----+----+\n| a  | b  |\n+----+----+\n|  1 | x  |\n| 22 | yy |\n+----+----+\n(2 rows)\n"
    );
}

#[test]
fn errors_name_the_place_and_the_cause() {
    let cluster = Cluster::start(1, 2);
    for (name, sql, expected) in [
        ("syntax.sql", "SELECT 1;\nSELEC 2", "syntax.sql:2:1"),
        ("column.sql", "SELECT 1;\nSELECT\n  nope FROM (VALUES (1)) t(a)", "column.sql:3: "),
        ("table.sql", "SELECT * FROM missing", "table.sql:1: "),
        (
            "path.sql",
            "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/no/such/place/'",
            "/no/such/place/",
        ),
        ("memory.sql", "CREATE TABLE t AS SELECT 1", "hint: use CREATE VIEW"),
        ("divide.sql", "SELECT 1;\n\nSELECT 1 / (a - a) FROM (VALUES (1)) t(a)", "divide.sql:3: "),
    ] {
        let script = cluster.script(name, sql);
        for mode in ["client", "cluster"] {
            let run = submit(&cluster, &["--deploy-mode", mode, "-o", "csv"], &script);
            assert_eq!(run.code, 1, "{name} in {mode} mode: {}", run.stderr);
            assert!(run.stderr.contains(expected), "{name} in {mode} mode: {}", run.stderr);
            assert!(run.stderr.contains("error: "), "{name} in {mode} mode: {}", run.stderr);
            assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
        }
    }
    // What ran before the failing statement has been shown.
    let script = cluster.script("half.sql", "SELECT 1 AS a; SELECT * FROM missing; SELECT 2 AS b");
    let run = submit(&cluster, &["--deploy-mode", "cluster", "-o", "csv"], &script);
    assert_eq!((run.code, run.stdout.as_str()), (1, "a\n1\n"), "{}", run.stderr);
    cluster.assert_clean();
}

#[test]
fn settings_are_checked_before_anything_runs() {
    let cluster = Cluster::start(1, 2);
    let script = cluster.script("one.sql", "SELECT 1");
    let run = submit(&cluster, &["--conf", "firesteel.result.bufferSiz=1m"], &script);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("did you mean firesteel.result.bufferSize"), "{}", run.stderr);
}

#[test]
fn results_larger_than_the_buffer_stream_through() {
    let cluster = Cluster::start(2, 1);
    let data = TPCH.data(0.01);
    let sql = format!("{}SELECT l_orderkey, l_linenumber, l_comment FROM lineitem", TPCH.tables(&data));
    let script = cluster.script("large.sql", &sql);
    for mode in ["client", "cluster"] {
        let run = submit(
            &cluster,
            &["--deploy-mode", mode, "-o", "csv", "--conf", "firesteel.result.bufferSize=1m"],
            &script,
        );
        assert_eq!(run.code, 0, "{mode}: {}", run.stderr);
        assert_eq!(run.stdout.lines().count(), 60_175 + 1, "{mode}");
    }
}
