//! The real worker among several masters: who leads changes, and leases run out.

use crate::support::master::{Heard, Master, bound, cluster_url, driver, executor, supervised};
use crate::support::worker::{Bench, Worker, exists, get};
use crate::support::{eventually, is_alive, kill};
use firesteel_proto::masters::not_leader_status;
use firesteel_proto::v1;
use firesteel_proto::v1::ExecutorState::{Killed, Launching, Running};
use firesteel_proto::v1::process_end::Kind;
use rustix::process::Signal;

const SCRIPT: &[u8] = b"SELECT 1;";
/// Of [`SCRIPT`].
const SHA256: &str = "17db4fd369edb9244b9f91d9aeed145c3d04ad8ba6e95d06247f07a63527d11a";
/// Long enough for a loaded machine to renew it, and no longer: tests wait for its end.
const SHORT_MS: u32 = 1500;
/// Not to end within a test.
const LONG_MS: u32 = 60_000;

/// Two masters of which the first leads, and the URL of both.
async fn pair() -> (Master, Master, String) {
    let (first, second) = (Master::start().await, Master::start().await);
    second.follow(&first.address());
    let url = cluster_url(&[&first, &second]);
    (first, second, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_goes_on_under_the_next_leader_and_an_old_one_is_refused() {
    let (mut first, mut second, url) = pair().await;
    let bench = Bench::new();
    let worker = bench.start(&url);
    let launches = vec![bound(executor(1, "")), executor(2, "")];
    first.lend(LONG_MS);
    first.assign(launches.clone());
    let pids = [first.state("executor-1", Running).await.pid, first.state("executor-2", Running).await.pid];
    assert!(second.heard().registrations.is_empty());

    first.stop();
    second.follow("");
    second.lend(LONG_MS);
    second.assign_in_epoch(2, launches.clone());
    worker.logs("no master leads now");
    second.lead();
    for (name, pid) in ["executor-1", "executor-2"].into_iter().zip(pids) {
        assert_eq!(second.state(name, Running).await.pid, pid);
    }
    let incarnation = |heard: Heard| heard.registrations[0].incarnation;
    assert_eq!(incarnation(second.heard()), incarnation(first.heard()));

    // The first comes back as what it was, and wants nothing to run.
    second.stop();
    first.assign(vec![]);
    first.listen().await;
    worker.logs("its epoch 1 is older than epoch 2");
    assert!(pids.into_iter().all(is_alive));
    first.assign_in_epoch(3, vec![executor(2, "")]);
    first.hears("executor-1 gone", |h| h.report.is_some() && h.process("executor-1").is_none()).await;
    assert_eq!(first.state("executor-2", Running).await.pid, pids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_found_through_one_that_follows() {
    let (leader, follower) = (Master::start().await, Master::start().await);
    follower.follow(&leader.address());
    let bench = Bench::new();
    let worker = bench.start(&follower.url());
    worker.ready();
    assert_eq!(leader.heard().registrations.len(), 1);
    assert!(follower.heard().registrations.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_gives_up_only_if_every_address_is_wrong() {
    let bench = Bench::new();
    let mut worker = bench.start("firesteel://no-such-host.invalid:7077,nor-this.invalid:7077");
    let (status, log) = worker.wait();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("unknown host") && log.contains("hint: check the host name"), "{log}");

    let mut late = Master::start().await;
    late.stop();
    let worker = bench.start(&format!("firesteel://no-such-host.invalid:7077,{}", late.address()));
    worker.logs("unknown host; cannot reach");
    worker.logs("connection refused; retrying");
    late.listen().await;
    worker.ready();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_with_a_refusal_is_followed() {
    let (leader, mut deposed) = (Master::start().await, Master::start().await);
    // It says that it leads, and knows better only when it is asked to do something.
    let details = v1::NotLeader { masters: vec![leader.address()], ..Default::default() };
    deposed.refuse(not_leader_status("leads no more", &details));
    let bench = Bench::new();
    let worker = bench.start(&deposed.url());
    worker.logs("leads no more");
    deposed.stop();
    worker.ready();
    assert_eq!(leader.heard().registrations.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_steps_down_is_left_for_the_one_that_it_names() {
    let (first, second, url) = pair().await;
    let bench = Bench::new();
    let _worker = bench.start(&url);
    first.assign(vec![executor(1, "")]);
    let pid = first.state("executor-1", Running).await.pid;
    second.assign_in_epoch(2, vec![executor(1, "")]);
    second.lead();
    first.follow(&second.address());
    assert_eq!(second.state("executor-1", Running).await.pid, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_falls_silent_is_left_while_the_lease_lasts() {
    let (first, second, url) = pair().await;
    let bench = Bench::new();
    let worker = bench.start(&url);
    first.lend(6000);
    first.assign(vec![bound(executor(1, ""))]);
    let pid = first.state("executor-1", Running).await.pid;
    second.lend(LONG_MS);
    second.assign_in_epoch(2, vec![bound(executor(1, ""))]);
    second.lead();
    first.be_silent(true);
    assert_eq!(second.state("executor-1", Running).await.pid, pid);
    assert!(worker.log().contains("has taken no report for 3.0 s; retrying"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_bound_to_the_lease_ends_with_it_and_nothing_else_does() {
    let (master, bench) = (Master::start().await, Bench::new());
    master.put(SHA256, SCRIPT);
    master.lend(SHORT_MS);
    let worker = bench.start(&master.url());
    let ui = worker.ready()["ui"].as_str().unwrap().to_owned();
    master.assign(vec![
        bound(executor(1, "runaway")),
        bound(executor(2, "stubborn")),
        executor(3, ""),
        bound(driver(0, "", SHA256)),
    ]);
    let mut pids = Vec::new();
    for name in ["executor-1", "executor-2", "executor-3", "driver-0"] {
        pids.push(master.state(name, Running).await.pid);
    }
    let page = get(&ui, "/", None).1;
    let lease = page.split_once("<dt>Lease</dt><dd>").unwrap().1.split_once("</dd>").unwrap().0;
    assert!(lease.ends_with(" s left"), "{lease}");

    let silent_since = std::time::Instant::now();
    master.be_silent(true);
    for pid in [pids[0], pids[1], pids[3]] {
        eventually("the end of the lease", || (!is_alive(pid)).then_some(()));
    }
    // The grace of a graceful stop is ten seconds at least, and two of them would use it.
    assert!(silent_since.elapsed().as_secs() < 9, "{:?}", silent_since.elapsed());
    assert!(is_alive(pids[2]));
    worker.logs("the worker's lease ran out: no master could be reached for 1.5 s");

    // The masters learn why, and that they still want them does not bring them back.
    master.be_silent(false);
    for name in ["executor-1", "executor-2", "driver-0"] {
        let end = master.state(name, Killed).await.end.unwrap().kind.unwrap();
        let Kind::Killed(reason) = end else { panic!("{end:?}") };
        assert!(reason.starts_with("the worker's lease ran out: no master could be reached"), "{reason}");
    }
    let reports = master.heard().reports;
    let heard = master.hears("more beats", |h| h.reports > reports + 5).await;
    assert_eq!(heard.state("executor-1"), Some(Killed));
    assert_eq!(heard.process("executor-3").unwrap().pid, pids[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_keep_only_a_supervised_driver_ends_with_the_lease() {
    let (master, bench) = (Master::start().await, Bench::new());
    master.put(SHA256, SCRIPT);
    master.lend(SHORT_MS);
    let mut command = bench.command(&master.url());
    command.args(["--on-lease-end", "keep"]);
    let worker = Worker::start(command, bench.path("ready"));
    master.assign(vec![
        bound(executor(1, "")),
        bound(driver(0, "", SHA256)),
        supervised(driver(1, "", SHA256)),
    ]);
    let mut pids = Vec::new();
    for name in ["executor-1", "driver-0", "driver-1"] {
        pids.push(master.state(name, Running).await.pid);
    }
    master.be_silent(true);
    eventually("the end of the supervised driver", || (!is_alive(pids[2])).then_some(()));
    worker.logs("the worker's lease ran out");
    master.be_silent(false);
    master.state("driver-1", Killed).await;
    assert_eq!(master.state("executor-1", Running).await.pid, pids[0]);
    assert_eq!(master.state("driver-0", Running).await.pid, pids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_sees_its_lease_as_over() {
    let (master, bench) = (Master::start().await, Bench::new());
    master.lend(SHORT_MS);
    let worker = bench.start(&master.url());
    master.assign(vec![bound(executor(1, ""))]);
    let pid = master.state("executor-1", Running).await.pid;
    kill(worker.pid(), Signal::STOP);
    // Nothing happens that could be waited for: the time itself has to pass.
    std::thread::sleep(std::time::Duration::from_millis(u64::from(SHORT_MS) * 2));
    assert!(is_alive(pid), "nobody is there to end it");
    kill(worker.pid(), Signal::CONT);
    eventually("the end of the lease", || (!is_alive(pid)).then_some(()));
    let end = master.state("executor-1", Killed).await.end.unwrap().kind.unwrap();
    assert!(matches!(end, Kind::Killed(_)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_bound_to_a_lease_starts_without_one() {
    let (master, bench) = (Master::start().await, Bench::new());
    let _worker = bench.start(&master.url());
    master.assign(vec![bound(executor(1, "")), executor(2, "")]);
    master.state("executor-2", Running).await;
    let reports = master.heard().reports;
    let heard = master.hears("more beats", |h| h.reports > reports + 5).await;
    assert_eq!(heard.state("executor-1"), Some(Launching));
    assert!(!exists(&bench.scratch().join("app-1/executor-1")));
    master.lend(LONG_MS);
    master.state("executor-1", Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_for_another_life_of_the_worker_is_not_done() {
    let (master, bench) = (Master::start().await, Bench::new());
    let worker = bench.start(&master.url());
    worker.ready();
    let own = master.heard().registrations[0].incarnation;
    let granted_to = |incarnation, number| v1::Launch { incarnation, ..executor(number, "") };
    master.assign(vec![granted_to(own ^ 1, 1), granted_to(own, 2)]);
    let heard = master.hears("executor-2", |h| h.state("executor-2") == Some(Running)).await;
    assert_eq!(heard.process("executor-1"), None);
    worker.logs("a launch is ignored: it was granted to incarnation");
    assert!(!exists(&bench.scratch().join("app-1/executor-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_is_fetched_from_the_next_leader_when_the_first_is_lost() {
    let (mut first, second, url) = pair().await;
    let bench = Bench::new();
    let _worker = bench.start(&url);
    for master in [&first, &second] {
        master.put(SHA256, SCRIPT);
    }
    first.keep_scripts();
    first.assign(vec![driver(0, "", SHA256)]);
    first.hears("a fetch", |h| h.fetches == 1).await;
    second.assign_in_epoch(2, vec![driver(0, "", SHA256)]);
    first.stop();
    second.lead();
    second.state("driver-0", Running).await;
    assert_eq!(second.heard().fetches, 1);
}
