//! How long map outputs stay: the real worker, its executors, and masters that change their minds.

use crate::support::master::{Master, TOKEN, cluster_url, executor};
use crate::support::worker::{Bench, Worker, exists, get};
use crate::support::{LIMIT, eventually, is_alive, kill};
use firesteel_common::shuffle::{OutputId, OutputIndex};
use firesteel_proto::v1;
use firesteel_proto::v1::ExecutorState::{Killed, Running};
use firesteel_proto::v1::shuffle_client::ShuffleClient;
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tonic::{Code, Request, Status};

fn output(task: u32) -> OutputId {
    OutputId { query: 7, stage: 1, task, attempt: 0 }
}

/// Leaves an output of one partition, as an executor would.
fn write(bench: &Bench, id: &OutputId, bytes: &[u8]) {
    let path = bench.shuffle("app-1").join(id.relative_path());
    let mut index = OutputIndex::new(1);
    index.push_group(0, [bytes.len() as u64]);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, [bytes, &index.encode()].concat()).unwrap();
}

async fn read(worker: &Worker, id: &OutputId, token: &str) -> Result<Vec<u8>, Status> {
    let address = format!("127.0.0.1:{}", worker.ready()["port"]);
    read_at(&address, id, token).await
}

async fn read_at(address: &str, id: &OutputId, token: &str) -> Result<Vec<u8>, Status> {
    let channel = firesteel_proto::channel::connect(address).await.unwrap();
    let message = v1::FetchRequest {
        application_id: "app-1".into(),
        output: id.to_string(),
        max_bytes: u64::MAX,
        ..Default::default()
    };
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let reading = async {
        let mut stream = ShuffleClient::new(channel).fetch(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(chunk) = stream.message().await? {
            all.extend(chunk.bytes);
        }
        Ok(all)
    };
    tokio::time::timeout(LIMIT, reading).await.unwrap()
}

/// Nothing of the application is left, not even on its way out.
fn assert_removed(bench: &Bench) {
    eventually("an empty shuffle directory", || {
        std::fs::read_dir(bench.shuffle("")).unwrap().next().is_none().then_some(())
    });
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_outlive_their_executor_and_go_with_their_application() {
    let (master, bench) = (Master::start().await, Bench::new());
    let mut worker = bench.start(&master.url());
    let id = worker.ready()["worker_id"].as_str().unwrap().to_owned();
    master.keep_shuffles(&["app-1"]);
    master.assign(vec![executor(1, ""), executor(2, "")]);
    let pid = master.state("executor-1", Running).await.pid;
    master.state("executor-2", Running).await;
    let told: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bench.path("document-executor")).unwrap()).unwrap();
    let dir = bench.shuffle("app-1").canonicalize().unwrap();
    assert_eq!(told["shuffle"]["worker"], id);
    assert_eq!(told["shuffle"]["dir"], dir.to_str().unwrap());
    let disk = firesteel_worker::shuffle::usage::disk(&dir).unwrap().total_bytes;
    assert_eq!(told["shuffle"]["quota_bytes"], disk / 10 * 8);
    assert_eq!(told["shuffle"]["free_floor_bytes"], (1 << 30).min(disk / 20));
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);

    write(&bench, &output(0), b"rows");
    let query = dir.join(format!("{:032x}", 7));
    for name in [".tmp-1-0", ".tmp-1-b", ".tmp-10-0", ".tmp-2-0"] {
        std::fs::write(query.join(name), "half").unwrap();
    }
    assert_eq!(read(&worker, &output(0), TOKEN).await.unwrap(), b"rows");
    let wrong = read(&worker, &output(0), "guess-7711").await.unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);

    // Killed: what it was writing goes, what it has written and what others write stays.
    kill(pid, Signal::KILL);
    eventually("its unfinished outputs gone", || (!exists(&query.join(".tmp-1-b"))).then_some(()));
    eventually("its unfinished outputs gone", || (!exists(&query.join(".tmp-1-0"))).then_some(()));
    assert_eq!(names(&query), [".tmp-10-0", ".tmp-2-0", "1-0-0.shuffle"]);
    master.assign(vec![]);
    master.hears("executors gone", |h| h.process("executor-2").is_none()).await;
    assert_eq!(read(&worker, &output(0), TOKEN).await.unwrap(), b"rows", "no executor is left");

    let ui = worker.ready()["ui"].as_str().unwrap().to_owned();
    let page = eventually("its bytes on the page", || {
        let page = get(&ui, "/", None).1;
        page.contains("Map outputs").then_some(page)
    });
    assert!(page.contains("app-1"), "{page}");
    eventually("its bytes in the metrics", || {
        let metrics = get(&ui, "/metrics", None).1;
        metrics.contains("firesteel_worker_shuffle_bytes{application=\"app-1\"}").then_some(())
    });

    master.keep_shuffles(&[]);
    assert_removed(&bench);
    let status = read(&worker, &output(0), TOKEN).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    kill(worker.pid(), Signal::TERM);
    let (_, log) = worker.wait();
    assert!(log.contains("removing its map outputs"), "{log}");
    assert!(!log.contains(TOKEN) && !log.contains("guess-7711"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_worker_serves_what_it_had_and_removes_nothing_unasked() {
    let (mut master, bench) = (Master::start().await, Bench::new());
    let mut worker = bench.start(&master.url());
    master.keep_shuffles(&["app-1"]);
    master.assign(vec![executor(1, "")]);
    master.state("executor-1", Running).await;
    write(&bench, &output(0), b"rows");
    let query = bench.shuffle("app-1").join(format!("{:032x}", 7));
    std::fs::write(query.join(".tmp-1-0"), "half").unwrap();
    kill(worker.pid(), Signal::KILL);
    worker.wait();

    // What its life before has left, beside outputs: removals that were under way, and another's things.
    for name in [".removed-app-9-1/x", "app-2/y", "lost+found"] {
        std::fs::create_dir_all(bench.shuffle(name)).unwrap();
    }
    master.stop();
    std::fs::remove_file(bench.path("ready")).unwrap();
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let mut command = bench.command(&master.url());
    command.args(["--port", &port.to_string()]);
    let mut worker = Worker::start(command, bench.path("ready"));
    eventually("leftovers removed", || (!exists(&bench.shuffle(".removed-app-9-1"))).then_some(()));
    worker.logs("retrying");
    assert!(!exists(&query.join(".tmp-1-0")), "its executor is gone with the worker");
    assert!(exists(&bench.shuffle("app-2")), "nobody has said that it is not needed");
    // It does not know yet whose token is right.
    let status = read_at(&format!("127.0.0.1:{port}"), &output(0), TOKEN).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);

    master.assign(vec![]);
    master.listen().await;
    worker.ready();
    assert_eq!(read(&worker, &output(0), TOKEN).await.unwrap(), b"rows");
    eventually("app-2 removed", || (!exists(&bench.shuffle("app-2"))).then_some(()));
    assert!(exists(&bench.shuffle("lost+found")), "that is no application's");
    kill(worker.pid(), Signal::TERM);
    worker.wait();
    assert!(exists(&query.join("1-0-0.shuffle")), "a worker that is stopped keeps them, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_from_before_a_reboot_are_not_served() {
    let (master, bench) = (Master::start().await, Bench::new());
    let mut worker = bench.start(&master.url());
    master.keep_shuffles(&["app-1"]);
    master.assign(vec![executor(1, "")]);
    master.state("executor-1", Running).await;
    write(&bench, &output(0), b"rows");
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(std::fs::read_to_string(bench.path("w/boot-id")).unwrap(), boot_id.trim());
    kill(worker.pid(), Signal::KILL);
    worker.wait();
    std::fs::write(bench.path("w/boot-id"), "another").unwrap();
    std::fs::remove_file(bench.path("ready")).unwrap();
    master.assign(vec![executor(2, "")]);
    let worker = bench.start(&master.url());
    master.state("executor-2", Running).await;
    assert_eq!(names(&bench.shuffle("app-1")), [""; 0]);
    assert_eq!(read(&worker, &output(0), TOKEN).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(std::fs::read_to_string(bench.path("w/boot-id")).unwrap(), boot_id.trim());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_under_a_writer() {
    let (master, bench) = (Master::start().await, Bench::new());
    let worker = bench.start(&master.url());
    master.keep_shuffles(&["app-1"]);
    master.assign(vec![executor(1, "stubborn")]);
    let pid = master.state("executor-1", Running).await.pid;
    write(&bench, &output(0), b"rows");
    // Its application has ended; it takes no notice of being terminated.
    master.keep_shuffles(&[]);
    master.assign(vec![]);
    worker.logs("stopping");
    let status = eventually_refused(&worker).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    let reports = master.heard().reports;
    master.hears("more beats", |h| h.reports > reports + 3).await;
    assert!(is_alive(pid) && exists(&bench.shuffle("app-1").join(output(0).relative_path())));
    kill(pid, Signal::KILL);
    assert_removed(&bench);

    // Ids that come again find an empty directory.
    master.keep_shuffles(&["app-1"]);
    master.assign(vec![executor(2, "")]);
    master.state("executor-2", Running).await;
    assert_eq!(names(&bench.shuffle("app-1")), [""; 0]);
    assert_eq!(read(&worker, &output(0), TOKEN).await.unwrap_err().code(), Code::NotFound);
}

async fn eventually_refused(worker: &Worker) -> Status {
    loop {
        if let Err(status) = read(worker, &output(0), TOKEN).await {
            return status;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_been_replaced_removes_nothing() {
    let (mut old, mut new) = (Master::start().await, Master::start().await);
    new.follow(&old.address());
    let bench = Bench::new();
    let mut worker = bench.start(&cluster_url(&[&old, &new]));
    old.keep_shuffles(&["app-1"]);
    old.assign(vec![executor(1, "")]);
    old.state("executor-1", Running).await;
    write(&bench, &output(0), b"rows");

    old.stop();
    new.keep_shuffles(&["app-1"]);
    new.assign_in_epoch(2, vec![]);
    new.lead();
    new.hears("executor-1 gone", |h| h.report.is_some() && h.process("executor-1").is_none()).await;
    assert_eq!(read(&worker, &output(0), TOKEN).await.unwrap(), b"rows");

    // To the old one no such application is running.
    new.stop();
    old.keep_shuffles(&[]);
    old.assign(vec![]);
    old.listen().await;
    worker.logs("its epoch 1 is older than epoch 2");
    assert_eq!(read(&worker, &output(0), TOKEN).await.unwrap(), b"rows");
    // Nor does a restart make the worker believe it.
    kill(worker.pid(), Signal::KILL);
    worker.wait();
    std::fs::remove_file(bench.path("ready")).unwrap();
    let worker = bench.start(&old.url());
    worker.logs("its epoch 1 is older than epoch 2");
    assert!(exists(&bench.shuffle("app-1").join(output(0).relative_path())));
    old.assign_in_epoch(3, vec![]);
    assert_removed(&bench);
    old.hears("a report", |h| h.process("executor-1").is_none_or(|p| p.state() == Killed)).await;
}
