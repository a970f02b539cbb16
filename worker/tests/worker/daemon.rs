//! The real worker against a master of the test's own.

use crate::support::master::{Master, driver, executor};
use crate::support::worker::{Bench, Worker, exists, get};
use crate::support::{LIMIT, eventually, is_alive, kill, pids};
use firesteel_proto::v1;
use firesteel_proto::v1::ExecutorState::{Exited, Failed, Killed, Running};
use firesteel_proto::v1::process_end::Kind;
use firesteel_proto::v1::worker_logs_client::WorkerLogsClient;
use rustix::process::Signal;
use tonic::{Code, Status};

const SCRIPT: &[u8] = b"SELECT 1;";
/// Of [`SCRIPT`].
const SHA256: &str = "17db4fd369edb9244b9f91d9aeed145c3d04ad8ba6e95d06247f07a63527d11a";

fn end(report: &v1::ProcessReport) -> Kind {
    report.end.as_ref().unwrap().kind.clone().unwrap()
}

fn launch_failure(report: &v1::ProcessReport) -> String {
    match end(report) {
        Kind::LaunchFailure(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_come_and_go_with_the_desired_set() {
    let (master, bench) = (Master::start().await, Bench::new());
    master.put(SHA256, SCRIPT);
    let mut worker = bench.start(&master.url());
    let ready = worker.ready();
    let heard = master.hears("a report", |h| h.report.is_some()).await;
    let registration = &heard.registrations[0];
    assert_eq!(registration.capacity, Some(v1::Resources { cores: 4, memory_mib: 4096 }));
    assert_eq!(ready["worker_id"], registration.worker_id);
    assert_eq!(ready["port"], registration.port);
    assert_eq!(ready["ui"], registration.ui_url);
    assert_eq!(ready["pid"], worker.pid());
    let line = worker.stdout_line();
    assert!(line.starts_with(&format!("worker {} registered with", registration.worker_id)), "{line}");
    assert!(line.contains("(4 cores, 4 GiB), web page http://127.0.0.1:"), "{line}");

    master.assign(vec![driver(0, "", SHA256), executor(1, "")]);
    let d = master.state("driver-0", Running).await;
    let e = master.state("executor-1", Running).await;
    assert_eq!((e.address.as_str(), d.address.as_str()), ("127.0.0.1:4242", ""));
    assert!(is_alive(d.pid) && is_alive(e.pid));

    // What they were told, and where.
    let told = |kind| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(bench.path(&format!("document-{kind}"))).unwrap()).unwrap()
    };
    eventually("the driver's mark", || exists(&bench.path("document-driver")).then_some(()));
    let (d_doc, e_doc) = (told("driver"), told("executor"));
    assert_eq!(d_doc["master"], master.url());
    assert_eq!(d_doc["resource"], "report.sql");
    assert_eq!(e_doc["cores"], 1);
    assert_eq!(e_doc["host"], "127.0.0.1");
    for document in [&d_doc, &e_doc] {
        assert_eq!(document["token"], "token-41d9-secret");
    }
    let script = d_doc["script"].as_str().unwrap();
    assert_eq!(std::fs::read(script).unwrap(), SCRIPT);
    for pid in [d.pid, e.pid] {
        // Empty for a moment while the shell turns into what it ends with.
        let environment = eventually("an environment", || {
            std::fs::read(format!("/proc/{pid}/environ")).ok().filter(|bytes| !bytes.is_empty())
        });
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains("leaked") && !environment.contains("token"), "{environment}");
        assert!(environment.contains("HOME=") && environment.contains("TMPDIR="), "{environment}");
    }

    master.assign(vec![driver(0, "", SHA256)]);
    master.hears("executor-1 gone", |h| h.process("executor-1").is_none()).await;
    assert!(!is_alive(e.pid) && is_alive(d.pid));
    assert!(!exists(&bench.scratch().join("app-1/executor-1")));
    master.assign(vec![]);
    master.hears("driver-0 gone", |h| h.process("driver-0").is_none()).await;
    assert!(!is_alive(d.pid));
    bench.assert_no_scratch();
    assert!(!worker.log().contains("token-41d9"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_reported_once_it_is_known_and_nothing_is_launched_again() {
    let (master, bench) = (Master::start().await, Bench::new());
    let _worker = bench.start(&master.url());
    master.assign(vec![executor(1, "exit4")]);
    let report = master.state("executor-1", Failed).await;
    assert_eq!(end(&report), Kind::ExitCode(4));
    bench.assert_no_scratch();
    // Still desired over many beats: it stays ended.
    let reports = master.heard().reports;
    let heard = master.hears("more beats", |h| h.reports > reports + 5).await;
    assert_eq!(heard.process("executor-1"), Some(&report));
}

#[tokio::test(flavor = "multi_thread")]
async fn launches_that_cannot_be_are_typed_and_the_worker_lives() {
    let (master, bench) = (Master::start().await, Bench::new());
    let other = "0".repeat(64);
    master.put(&other, SCRIPT);
    let worker = bench.start(&master.url());
    worker.ready();
    master.assign(vec![driver(0, "", &other), driver(1, "", &"1".repeat(64))]);
    let reason = launch_failure(&master.state("driver-0", Failed).await);
    assert!(reason.contains("does not have its hash") && reason.contains(SHA256), "{reason}");
    let reason = launch_failure(&master.state("driver-1", Failed).await);
    assert_eq!(reason, "cannot fetch the script from the master: there is no such artifact");
    bench.assert_no_scratch();

    // The log directory cannot be made.
    std::fs::remove_dir_all(bench.path("w/logs")).unwrap();
    std::fs::write(bench.path("w/logs"), "").unwrap();
    master.assign(vec![executor(1, "")]);
    let reason = launch_failure(&master.state("executor-1", Failed).await);
    assert!(reason.contains("w/logs/app-1/executor-1: Not a directory"), "{reason}");
    std::fs::remove_file(bench.path("w/logs")).unwrap();
    std::fs::create_dir(bench.path("w/logs")).unwrap();

    let engine = bench.path("engine");
    std::fs::rename(&engine, bench.path("gone")).unwrap();
    master.assign(vec![executor(2, "")]);
    let reason = launch_failure(&master.state("executor-2", Failed).await);
    assert_eq!(reason, format!("cannot execute {}: No such file or directory", engine.display()));
    std::fs::rename(bench.path("gone"), &engine).unwrap();
    master.assign(vec![executor(3, "")]);
    master.state("executor-3", Running).await;
}

async fn logs(worker: &Worker) -> WorkerLogsClient<tonic::transport::Channel> {
    let address = format!("127.0.0.1:{}", worker.ready()["port"]);
    WorkerLogsClient::new(firesteel_proto::channel::connect(&address).await.unwrap())
}

fn log_of(name: &str, stream: v1::LogStream) -> v1::ReadLogRequest {
    let process = Some(v1::ProcessId { application_id: "app-1".into(), name: name.into() });
    v1::ReadLogRequest { process, stream: stream.into(), ..Default::default() }
}

async fn read(stream: &mut tonic::Streaming<v1::LogChunk>) -> Option<String> {
    let chunk = tokio::time::timeout(LIMIT, stream.message()).await.unwrap().unwrap()?;
    Some(String::from_utf8(chunk.data).unwrap())
}

async fn read_until(stream: &mut tonic::Streaming<v1::LogChunk>, all: &mut String, ending: &str) {
    while !all.ends_with(ending) {
        all.push_str(&read(stream).await.unwrap_or_else(|| panic!("the log ends with {all:?}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_read_and_followed_and_outlive_the_process() {
    let (master, bench) = (Master::start().await, Bench::new());
    master.put(SHA256, SCRIPT);
    let worker = bench.start(&master.url());
    let mut client = logs(&worker).await;
    let missing = client.read_log(log_of("driver-0", v1::LogStream::Stdout)).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);

    master.assign(vec![driver(0, "talk", SHA256), executor(1, "exit4")]);
    master.state("driver-0", Running).await;
    let follow = v1::ReadLogRequest { follow: true, ..log_of("driver-0", v1::LogStream::Stdout) };
    let mut stream = client.read_log(follow).await.unwrap().into_inner();
    let mut all = String::new();
    let start = "driver --launch-fd 3 app-1/driver-0\nSELECT 1;\none\n";
    read_until(&mut stream, &mut all, "one\n").await;
    assert_eq!(all, start);
    std::fs::write(bench.path("go"), "").unwrap();
    read_until(&mut stream, &mut all, "two\n").await;
    assert_eq!(read(&mut stream).await, None);
    assert_eq!(end(&master.state("driver-0", Exited).await), Kind::ExitCode(0));

    master.state("executor-1", Failed).await;
    let mut stream = client.read_log(log_of("executor-1", v1::LogStream::Stderr)).await.unwrap().into_inner();
    assert_eq!(read(&mut stream).await.as_deref(), Some("failing\n"));
    assert_eq!(read(&mut stream).await, None);
    let mut stream = client.read_log(log_of("executor-1", v1::LogStream::Stdout)).await.unwrap().into_inner();
    let line = "executor --launch-fd 3 --ready-fd 4 app-1/executor-1\n";
    assert_eq!(read(&mut stream).await.as_deref(), Some(line));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_worker_stops_everything_then_says_goodbye() {
    let (master, bench) = (Master::start().await, Bench::new());
    let mut worker = bench.start(&master.url());
    master.assign(vec![executor(1, "runaway"), executor(2, "")]);
    let pids = [
        master.state("executor-1", Running).await.pid,
        master.state("executor-2", Running).await.pid,
        pids(&bench.path("pids"), 1)[0],
    ];
    kill(worker.pid(), Signal::TERM);
    let (status, log) = worker.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    for pid in pids {
        assert!(!is_alive(pid), "{pid} lives on");
    }
    bench.assert_no_scratch();
    let heard = master.hears("a goodbye", |h| h.left).await;
    assert!([None, Some(Killed)].contains(&heard.state("executor-2")));
    assert!(!exists(&bench.path("ready")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_nothing_and_comes_back_as_itself() {
    let (master, bench) = (Master::start().await, Bench::new());
    let mut worker = bench.start(&master.url());
    master.assign_in_epoch(5, vec![executor(1, "runaway")]);
    let leader = master.state("executor-1", Running).await.pid;
    let runaway = pids(&bench.path("pids"), 1)[0];
    worker.child.kill().unwrap();
    worker.child.wait().unwrap();
    eventually("the processes' end", || (!is_alive(leader) && !is_alive(runaway)).then_some(()));
    eventually("the scratch directory's end", || (!exists(&bench.scratch().join("app-1"))).then_some(()));

    // An old leader (epoch 4) still wants it: the restarted worker has not forgotten epoch 5.
    std::fs::create_dir_all(bench.scratch().join("app-9/executor-9/left")).unwrap();
    master.assign_in_epoch(4, vec![executor(1, "")]);
    let worker = bench.start(&master.url());
    worker.logs("epoch 4 is older than epoch 5");
    bench.assert_no_scratch();
    assert!(!exists(&bench.path("ready")), "it is not registered with an old leader");
    master.assign_in_epoch(6, vec![]);
    worker.ready();
    let registrations = master.heard().registrations;
    let (first, last) = (&registrations[0], registrations.last().unwrap());
    assert_eq!(first.worker_id, last.worker_id);
    assert_ne!(first.incarnation, last.incarnation);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_at_once_does_not_meet_the_processes_of_the_life_before() {
    let (master, bench) = (Master::start().await, Bench::new());
    let mut worker = bench.start(&master.url());
    master.assign(vec![executor(1, "runaway")]);
    let leader = master.state("executor-1", Running).await.pid;
    let runaway = pids(&bench.path("pids"), 1)[0];
    worker.child.kill().unwrap();
    worker.child.wait().unwrap();
    master.assign(vec![]);
    std::fs::remove_file(bench.path("ready")).unwrap();
    let worker = bench.start(&master.url());
    worker.ready();
    assert!(!is_alive(leader) && !is_alive(runaway));
    bench.assert_no_scratch();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_dies_takes_everything_with_it() {
    let (master, bench) = (Master::start().await, Bench::new());
    let worker = bench.start(&master.url());
    master.assign(vec![executor(1, "runaway"), executor(2, "")]);
    let leader = master.state("executor-1", Running).await.pid;
    let other = master.state("executor-2", Running).await.pid;
    let runaway = pids(&bench.path("pids"), 1)[0];
    let stat = std::fs::read_to_string(format!("/proc/{leader}/stat")).unwrap();
    let supervisor: u32 =
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_ne!(supervisor, worker.pid());
    kill(supervisor, Signal::KILL);
    let reason = launch_failure(&master.state("executor-1", Failed).await);
    assert_eq!(reason, "its supervisor died");
    assert!(!is_alive(leader) && !is_alive(runaway), "reported only when nothing is left");
    assert!(!exists(&bench.scratch().join("app-1/executor-1")));
    assert!(is_alive(other), "the sibling lives");
    master.state("executor-2", Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_goes_on_while_the_master_is_away() {
    let (mut master, bench) = (Master::start().await, Bench::new());
    let worker = bench.start(&master.url());
    master.assign(vec![executor(1, "")]);
    let pid = master.state("executor-1", Running).await.pid;
    master.stop();
    worker.logs("retrying");
    assert!(is_alive(pid));
    master.listen().await;
    let heard =
        master.hears("the second registration", |h| h.registrations.len() == 2 && h.report.is_some()).await;
    assert_eq!(heard.registrations[0].incarnation, heard.registrations[1].incarnation);
    let report = master.state("executor-1", Running).await;
    assert_eq!(report.pid, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_executor_is_reported_with_its_signal() {
    let (master, bench) = (Master::start().await, Bench::new());
    let _worker = bench.start(&master.url());
    master.assign(vec![executor(1, "runaway")]);
    let pid = master.state("executor-1", Running).await.pid;
    kill(pid, Signal::KILL);
    assert_eq!(end(&master.state("executor-1", Failed).await), Kind::Signal(9));
    assert!(!is_alive(pids(&bench.path("pids"), 1)[0]));
    bench.assert_no_scratch();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_grace() {
    let (master, bench) = (Master::start().await, Bench::new());
    let mut worker = bench.start(&master.url());
    master.assign(vec![executor(1, "stubborn")]);
    let pid = master.state("executor-1", Running).await.pid;
    kill(worker.pid(), Signal::INT);
    worker.logs("SIGINT: stopping");
    assert!(is_alive(pid));
    kill(worker.pid(), Signal::TERM);
    // Well before the ten seconds of an executor's grace.
    let started = std::time::Instant::now();
    assert_eq!(worker.wait().0.code(), Some(0));
    assert!(started.elapsed().as_secs() < 8);
    assert!(!is_alive(pid));
    bench.assert_no_scratch();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_do_not_share_a_directory() {
    let (master, bench) = (Master::start().await, Bench::new());
    let worker = bench.start(&master.url());
    worker.ready();
    let mut second = Worker::start(bench.command(&master.url()), bench.path("ready"));
    let (status, log) = second.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("in use by another worker (process {})", worker.pid())), "{log}");
    assert!(log.contains("hint: "), "{log}");
    assert!(exists(&bench.path("ready")), "the first one's ready file is untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_worker_ends_with_the_reason() {
    let (master, bench) = (Master::start().await, Bench::new());
    master.refuse(Status::already_exists("duplicate worker\nhint: each needs its own directory"));
    let mut worker = bench.start(&master.url());
    let (status, log) = worker.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("refuses this worker: duplicate worker\nhint: each needs its own directory"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_leads_nowhere_is_told_apart_from_a_master_that_is_late() {
    let bench = Bench::new();
    let mut worker = bench.start("firesteel://no-such-host.invalid:7077");
    let (status, log) = worker.wait();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("unknown host") && log.contains("hint: check the host name"), "{log}");

    // Something that answers, but not as a master does.
    for answer in [
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("firesteel://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut stream = stream;
                let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
                let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
            }
        });
        let mut worker = bench.start(&url);
        let (status, log) = worker.wait();
        assert_eq!(status.code(), Some(3), "{log}");
        assert!(log.contains("does not speak Firesteel's protocol") && log.contains("7077"), "{log}");
    }

    // A gRPC server without our service.
    let mut other = Master::start().await;
    let elsewhere = bench.start(&other.url());
    let port = elsewhere.ready()["port"].clone();
    let second = Bench::new();
    let mut worker = second.start(&format!("firesteel://127.0.0.1:{port}"));
    let (status, log) = worker.wait();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("not a Firesteel master"), "{log}");

    // Nobody listens yet: it waits.
    other.stop();
    let third = Bench::new();
    let worker = third.start(&other.url());
    worker.logs("connection refused; retrying");
    other.listen().await;
    worker.ready();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_says_so_before_anything_is_opened() {
    let bench = Bench::new();
    for (more, expected) in [
        (&["--host", "0.0.0.0"][..], "no address that others could reach"),
        (&["--host", "10.255.255.1"], "--insecure-bind"),
        (&["--log-level", "a=b=c"], "not a log filter"),
    ] {
        let mut command = bench.command("firesteel://127.0.0.1:1");
        let mut worker = Worker::start(
            {
                command.args(more);
                command
            },
            bench.path("ready"),
        );
        let (status, log) = worker.wait();
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains(expected) && log.contains("hint: "), "{log}");
    }
    assert!(!exists(&bench.path("w")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_runs_and_is_safe() {
    let (master, bench) = (Master::start().await, Bench::new());
    master.put(SHA256, SCRIPT);
    let worker = bench.start(&master.url());
    let ui = worker.ready()["ui"].as_str().unwrap().to_owned();
    master.assign(vec![driver(0, "", SHA256), executor(1, ""), executor(2, "exit4")]);
    master.state("driver-0", Running).await;
    master.state("executor-1", Running).await;
    master.state("executor-2", Failed).await;

    let (head, page) = get(&ui, "/", None);
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'; style-src 'self'"), "{head}");
    let registered = format!("registered with {}, epoch 1", master.address());
    assert!(page.contains(&registered) && page.contains("no lease"), "{page}");
    assert!(page.contains("executor-1") && page.contains("exited with code 4"), "{page}");
    assert!(page.contains("&lt;b&gt;report&lt;/b&gt;") && !page.contains("<b>report"), "{page}");
    assert!(!page.contains("token-41d9") && !page.contains("<script") && !page.contains("style=\""));
    let (head, _) = get(&ui, "/", Some("evil.example"));
    assert!(head.starts_with("http/1.1 421"), "{head}");
    assert!(get(&ui, "/healthz", None).1.contains("ok"));
    assert!(get(&ui, "/style.css", None).0.contains("text/css"));
    assert!(get(&ui, "/nothing", None).0.starts_with("http/1.1 404"));
    let metrics = get(&ui, "/metrics", None).1;
    assert!(metrics.contains("\nfiresteel_worker_cores_used 2\n"), "{metrics}");
    assert!(metrics.contains("\nfiresteel_worker_registered 1\n"), "{metrics}");

    let json: serde_json::Value = serde_json::from_str(&get(&ui, "/json/", None).1).unwrap();
    assert_eq!(json["cores"], 4);
    assert_eq!(json["coresused"], 2);
    assert_eq!(json["memoryused"], 1024);
    assert_eq!(json["executors"][0]["appid"], "app-1");
    assert_eq!(json["finishedexecutors"][0]["id"], 2);
    assert_eq!(json["drivers"][0]["appdesc"]["user"], "ana");
}
