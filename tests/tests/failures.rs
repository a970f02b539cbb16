//! What happens when something dies, cannot be reached, or is asked too much.

use firesteel_tests::cluster::{Cluster, Run, Started, binary};
use firesteel_tests::procs::{self, wait_for};
use firesteel_tests::status::{items, only_application, status, tasks};
use firesteel_tests::suite::TPCH;
use rustix::process::Signal;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A query that runs until it is stopped: a cross join that no machine finishes, counted so that no row comes out.
fn endless(cluster: &Cluster) -> PathBuf {
    let data = TPCH.data(0.01);
    let sql = format!(
        "{}SELECT sum(a.l_orderkey % 7 + b.l_partkey % 5 + c.l_suppkey % 3)
           FROM lineitem a JOIN lineitem b ON a.l_linenumber = b.l_linenumber
           JOIN lineitem c ON b.l_linenumber = c.l_linenumber;\n",
        TPCH.tables(&data)
    );
    cluster.script("endless.sql", &sql)
}

fn wait_for_engines(cluster: &Cluster, kind: &str, count: usize) -> Vec<procs::Process> {
    wait_for(&format!("{count} {kind} processes"), LIMIT, || {
        let found = cluster.engines(kind);
        if found.len() >= count { Ok(found) } else { Err(format!("{found:?}\n{}", cluster.logs())) }
    })
}

/// Waits until tasks of the only application run on executors.
fn wait_for_running_tasks(cluster: &Cluster) -> String {
    let id = only_application(cluster);
    wait_for("running tasks", LIMIT, || {
        let status = status(cluster, &id);
        if tasks(&status).any(|task| task["state"] == "RUNNING") { Ok(()) } else { Err(status.to_string()) }
    });
    id
}

#[test]
fn an_executor_killed_mid_query_is_replaced_and_the_query_ends_right() {
    let cluster = Cluster::start(2, 2);
    let script = endless(&cluster);
    let child = Started::of(cluster.submit(["--deploy-mode", "cluster"]).arg(&script));
    let before = wait_for_engines(&cluster, "executor", 2);
    let id = wait_for_running_tasks(&cluster);
    procs::kill(before[0].pid, Signal::KILL);
    let replacement = wait_for("a replacement executor", LIMIT, || {
        let now = cluster.engines("executor");
        let fresh = now.iter().find(|p| before.iter().all(|b| b.pid != p.pid)).cloned();
        fresh.filter(|_| now.len() == 2).ok_or(format!("{now:?}"))
    });
    assert_ne!(replacement.pid, before[0].pid);
    wait_for("the query to start again", LIMIT, || {
        let text = status(&cluster, &id).to_string();
        if text.contains("\"restarts\":1") { Ok(()) } else { Err(text) }
    });
    assert_eq!(cluster.run(["kill", &id]).code, 0);
    assert_eq!(child.finish().code, 5);
    cluster.assert_clean();
}

#[test]
fn a_query_survives_an_executor_and_returns_the_right_rows() {
    let cluster = Cluster::start(2, 2);
    let data = TPCH.data(0.01);
    // Long enough to be hit: a self join with some millions of pairs.
    let sql = format!(
        "{}SELECT count(*) AS n, sum(a.l_quantity) AS q FROM lineitem a JOIN lineitem b
           ON a.l_suppkey = b.l_suppkey AND a.l_linenumber = b.l_linenumber AND a.l_shipmode = b.l_shipmode;\n",
        TPCH.tables(&data)
    );
    let script = cluster.script("join.sql", &sql);
    let expected = cluster.csv("cluster", &script, &[]);
    let repeated = format!(
        "{}{}",
        TPCH.tables(&data),
        "SELECT count(*) AS n, sum(a.l_quantity) AS q FROM lineitem a JOIN lineitem b
           ON a.l_suppkey = b.l_suppkey AND a.l_linenumber = b.l_linenumber AND a.l_shipmode = b.l_shipmode;\n"
            .repeat(150)
    );
    let script = cluster.script("repeated.sql", &repeated);
    let child = Started::of(
        cluster.submit(["--deploy-mode", "cluster", "-o", "csv", "--name", "repeated"]).arg(&script),
    );
    let id = wait_for("the application", LIMIT, || {
        let run = cluster.run(["list", "-o", "json"]);
        let list: serde_json::Value = serde_json::from_str(&run.stdout).map_err(|e| e.to_string())?;
        let ours = list.as_array().into_iter().flatten().find(|app| app["name"] == "repeated");
        ours.and_then(|app| app["id"].as_str()).map(str::to_owned).ok_or(run.stdout)
    });
    let restarts = || {
        let status = status(&cluster, &id);
        items(&status, "jobs").filter_map(|job| job["restarts"].as_u64()).sum::<u64>()
    };
    // A kill between two queries hits none: as many as it takes.
    wait_for("two kills that hit a running query", LIMIT, || {
        let before = restarts();
        if before >= 2 {
            return Ok(());
        }
        let executors = cluster.engines("executor");
        let status = status(&cluster, &id);
        if executors.len() < 2 || !tasks(&status).any(|task| task["state"] == "RUNNING") {
            return Err(status["state"].to_string());
        }
        procs::kill(executors[0].pid, Signal::KILL);
        wait_for("the dead executor to be gone", LIMIT, || {
            let gone = cluster.engines("executor").iter().all(|p| p.pid != executors[0].pid);
            if gone { Ok(()) } else { Err(String::new()) }
        });
        Err(format!("{before} restarts, {}", status["state"]))
    });
    let run = child.finish();
    assert_eq!(run.code, 0, "{}\n{}", run.stderr, cluster.logs());
    assert_eq!(run.stdout, vec![expected.as_str(); 150].join("\n"));
    assert!(restarts() >= 2);
    cluster.assert_clean();
}

#[test]
fn a_worker_killed_leaves_no_process_and_no_directory_and_the_query_goes_on() {
    let mut cluster = Cluster::start(2, 2);
    let script = endless(&cluster);
    // Client mode: the driver is here, so any worker may die.
    let child = Started::of(cluster.submit(["--num-executors", "2"]).arg(&script));
    wait_for_engines(&cluster, "executor", 2);
    let id = wait_for_running_tasks(&cluster);
    cluster.workers[1].kill();
    let dir = cluster.worker_dir(1);
    wait_for("the dead worker's processes to end", LIMIT, || {
        let left: Vec<_> = procs::under(&dir);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    wait_for("the dead worker's directories to go", LIMIT, || {
        let left: Vec<_> =
            cluster.scratch_directories().into_iter().filter(|p| p.starts_with(&dir)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    // The master learns it from the broken heartbeat; the executor is replaced on the worker that is left.
    wait_for("a replacement on the other worker", LIMIT, || {
        let now = cluster.engines("executor");
        if now.len() == 2 { Ok(()) } else { Err(format!("{now:?}\n{}", cluster.logs())) }
    });
    assert_eq!(cluster.run(["kill", &id]).code, 0);
    assert_eq!(child.finish().code, 5);
    cluster.assert_clean();
}

#[test]
fn a_driver_killed_is_reported_in_both_modes() {
    let cluster = Cluster::start(2, 2);
    let script = endless(&cluster);
    for mode in ["client", "cluster"] {
        let mut child = Started::of(cluster.submit(["--deploy-mode", mode]).arg(&script));
        wait_for_engines(&cluster, "executor", 2);
        let driver = match mode {
            "cluster" => wait_for_engines(&cluster, "driver", 1)[0].pid,
            _ => wait_for("the driver", LIMIT, || child_of(child.pid()).ok_or("none".to_owned())),
        };
        procs::kill(driver, Signal::KILL);
        let run = child.finish();
        assert_eq!(run.code, 1, "{mode}: {}", run.stderr);
        assert!(run.stderr.contains("signal 9 (SIGKILL)"), "{mode}: {}", run.stderr);
        cluster.assert_clean();
    }
}

fn child_of(parent: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[test]
fn ctrl_c_kills_in_client_mode_and_detaches_in_cluster_mode() {
    let cluster = Cluster::start(2, 2);
    let script = endless(&cluster);

    let mut child = Started::of(cluster.submit(["--deploy-mode", "client"]).arg(&script));
    wait_for_engines(&cluster, "executor", 2);
    procs::kill(child.pid(), Signal::INT);
    let run = child.finish();
    assert_eq!(run.code, 130, "{}", run.stderr);
    cluster.assert_clean();

    let mut child = Started::of(cluster.submit(["--deploy-mode", "cluster"]).arg(&script));
    wait_for_engines(&cluster, "executor", 2);
    wait_for_engines(&cluster, "driver", 1);
    procs::kill(child.pid(), Signal::INT);
    let run = child.finish();
    assert_eq!(run.code, 130, "{}", run.stderr);
    let at = run.stderr.find("app-").unwrap_or_else(|| panic!("names the application: {}", run.stderr));
    let id: String =
        run.stderr[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    assert!(run.stderr.contains("submit status"), "says how to come back: {}", run.stderr);
    assert_eq!(cluster.engines("driver").len(), 1, "it goes on");
    assert_eq!(cluster.run(["kill", &id]).code, 0);
    cluster.assert_clean();
}

#[test]
fn a_master_that_restarts_is_not_noticed_by_a_running_query() {
    let mut cluster = Cluster::start(2, 2);
    let script = endless(&cluster);
    let child = Started::of(cluster.submit(["--deploy-mode", "cluster"]).arg(&script));
    wait_for_engines(&cluster, "executor", 2);
    let id = wait_for_running_tasks(&cluster);
    let before = cluster.engines("executor");
    cluster.restart_master();
    wait_for("the application to be known and running", LIMIT, || {
        let run = cluster.run(["status", &id, "-o", "json"]);
        let status: serde_json::Value =
            serde_json::from_str(&run.stdout).map_err(|e| format!("{e} {}", run.stderr))?;
        if status["state"] == "RUNNING" { Ok(()) } else { Err(run.stdout) }
    });
    // The restarted master takes new work, too.
    let one = cluster.script("one.sql", "SELECT 1 AS one");
    let run = cluster.run([
        std::ffi::OsStr::new("--deploy-mode"),
        "cluster".as_ref(),
        "-o".as_ref(),
        "csv".as_ref(),
        one.as_os_str(),
    ]);
    assert_eq!((run.code, run.stdout.as_str()), (0, "one\n1\n"), "{}", run.stderr);
    assert_eq!(cluster.engines("executor"), before, "the same processes still run");
    assert!(!status(&cluster, &id).to_string().contains("\"restarts\":1"));
    assert_eq!(cluster.run(["kill", &id]).code, 0);
    assert_eq!(child.finish().code, 5);
    cluster.assert_clean();
}

#[test]
fn too_large_an_application_waits_and_says_why() {
    let mut cluster = Cluster::start(1, 1);
    let script = cluster.script("one.sql", "SELECT 1 AS one");
    let mut child = Started::of(
        cluster.submit(["--deploy-mode", "cluster", "--executor-cores", "64", "-o", "csv"]).arg(&script),
    );
    let id = only_application(&cluster);
    wait_for("the reason", LIMIT, || {
        let status = status(&cluster, &id);
        let text = status["message"].as_str().unwrap_or_default().to_owned();
        if status["state"] == "WAITING" && text.contains("64 cores") {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    // It does not block the others.
    let run = cluster.run([std::ffi::OsStr::new("-o"), "csv".as_ref(), script.as_os_str()]);
    assert_eq!((run.code, run.stdout.as_str()), (0, "one\n1\n"), "{}", run.stderr);
    assert!(child.ended().is_none(), "it still waits");
    let run = cluster.run(["kill", &id]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let run = child.finish();
    assert_eq!(run.code, 5);
    assert!(run.stderr.contains("64 cores"), "the terminal said why: {}", run.stderr);
    // No worker at all is a reason, too.
    cluster.workers[0].stop();
    let child = Started::of(cluster.submit(["--deploy-mode", "cluster"]).arg(&script));
    let waiting = wait_for("the reason", LIMIT, || {
        let run = cluster.run(["list", "-o", "json"]);
        if run.stdout.contains("start-worker") { Ok(run.stdout) } else { Err(run.stdout) }
    });
    assert!(waiting.contains("WAITING"));
    cluster.add_worker();
    assert_eq!(child.finish().code, 0, "a worker came, the application ran");
}

#[test]
fn wrong_addresses_are_explained() {
    let cluster = Cluster::start(0, 1);
    let script = cluster.script("one.sql", "SELECT 1");
    let submit = |url: &str| {
        Run::of(Command::new(binary("submit")).args(["--master", url]).arg(&script).output().unwrap())
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let web = cluster.ui().replace("http://", "firesteel://");
    for (url, code, expected) in [
        (format!("firesteel://127.0.0.1:{port}"), 3, "connection refused"),
        ("firesteel://no-such-host.invalid:7077".to_owned(), 3, "unknown host"),
        (web, 3, "8080 is its web page"),
        ("http://h:1".to_owned(), 2, "not a master URL"),
    ] {
        let run = submit(&url);
        assert_eq!(run.code, code, "{url}: {}", run.stderr);
        assert!(run.stderr.contains(expected), "{url}: {}", run.stderr);
    }
    let run = cluster.run(["no-such-file.sql"]);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("no-such-file.sql"), "{}", run.stderr);
}

#[test]
fn two_masters_on_one_directory_and_a_duplicate_worker_are_refused() {
    let cluster = Cluster::start(1, 1);
    let second = Command::new(binary("firesteel-master"))
        .args(["--port", "0", "--webui-port", "0", "--raft-port", "0", "--data-dir"])
        .arg(cluster.master_dir(0))
        .output()
        .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains(&format!("pid {}", cluster.masters[0].pid())), "{text}");

    let second = Command::new(binary("firesteel-worker"))
        .args(["--port", "0", "--webui-port", "0", "--work-dir"])
        .arg(cluster.worker_dir(0))
        .arg(&cluster.url)
        .output()
        .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains(&format!("process {}", cluster.workers[0].pid())), "{text}");

    // The same identity from another directory.
    let copy = cluster.dir().join("copied-worker");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(cluster.worker_dir(0).join("worker-id"), copy.join("worker-id")).unwrap();
    let second = Command::new(binary("firesteel-worker"))
        .args(["--port", "0", "--webui-port", "0", "--work-dir"])
        .arg(&copy)
        .arg(&cluster.url)
        .output()
        .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("duplicate worker"), "{text}");
}

#[test]
fn a_reader_that_goes_away_is_no_error_to_shout_about() {
    let cluster = Cluster::start(1, 2);
    let data = TPCH.data(0.01);
    let script = cluster.script("all.sql", &format!("{}SELECT * FROM lineitem", TPCH.tables(&data)));
    for mode in ["client", "cluster"] {
        let mut child = Started::of(cluster.submit(["--deploy-mode", mode, "-o", "csv"]).arg(&script));
        let mut first = [0; 10];
        child.stdout().read_exact(&mut first).unwrap();
        assert_eq!(&first, b"l_orderkey", "{mode}");
        let run = child.finish();
        assert!(!run.stderr.contains("panicked"), "{mode}: {}", run.stderr);
        for id in running_ids(&cluster) {
            cluster.run(["kill", &id]);
        }
    }
    cluster.assert_clean();
}

fn running_ids(cluster: &Cluster) -> Vec<String> {
    let run = cluster.run(["list", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_str(&run.stdout).unwrap_or_default();
    let running = |app: &&serde_json::Value| matches!(app["state"].as_str(), Some("RUNNING" | "WAITING"));
    list.as_array()
        .map(|apps| apps.iter().filter(running).filter_map(|a| a["id"].as_str().map(str::to_owned)).collect())
        .unwrap_or_default()
}

#[test]
fn no_secret_in_argv_env_or_logs() {
    let cluster = Cluster::start(1, 2);
    let script = endless(&cluster);
    let properties = cluster.script("secret.conf", "firesteel.store.aws_secret_access_key=tops3cret\n");
    let mut command =
        cluster.submit(["--deploy-mode", "cluster", "--num-executors", "1", "--properties-file"]);
    let child = Started::of(command.arg(&properties).arg(&script));
    wait_for_engines(&cluster, "executor", 1);
    wait_for_engines(&cluster, "driver", 1);
    let id = wait_for_running_tasks(&cluster);
    for process in cluster.payloads() {
        let env = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        let env = String::from_utf8_lossy(&env).into_owned();
        for place in [&process.command, &env] {
            assert!(!place.contains("tops3cret") && !place.to_lowercase().contains("token="), "{place}");
            assert!(!has_long_hex(place), "looks like a token: {place}");
        }
    }
    cluster.run(["kill", &id]);
    child.finish();
    let logs = cluster.logs();
    assert!(!logs.contains("tops3cret"), "{logs}");
    cluster.assert_clean();
}

/// 64 hexadecimal digits in a row: an application's token has that shape.
fn has_long_hex(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_hexdigit()).any(|run| run.len() >= 64)
}
