//! A master that cannot be lost: real processes that are killed, stopped, cut off, filled up, and brought back.

use firesteel_proto::masters::Masters;
use firesteel_proto::v1;
use firesteel_proto::v1::client_client::ClientClient;
use firesteel_tests::chaos::{self, Audit, Fault, Submitters};
use firesteel_tests::cluster::{Cluster, Run, Started, binary};
use firesteel_tests::history::{self, Answer, Event, Operation, State};
use firesteel_tests::netns::Lab;
use firesteel_tests::procs::{self, wait_for};
use firesteel_tests::suite::TPCH;
use rustix::process::Signal;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(90);

fn under_load(mut cluster: Cluster, faults: &[Fault]) {
    let mut submitters = Submitters::start(&cluster, 2, Duration::from_millis(200));
    let mut audit = Audit::default();
    for fault in faults {
        let before = submitters.acknowledged().len();
        chaos::round(&mut cluster, *fault);
        wait_for("submissions to go on", LIMIT, || {
            if submitters.acknowledged().len() > before {
                Ok(())
            } else {
                Err(format!("{:?}", submitters.refused()))
            }
        });
        wait_for("a list", LIMIT, || audit.look(&cluster));
    }
    submitters.stop();
    assert_eq!(submitters.refused(), Vec::<String>::new(), "{}", cluster.logs());
    audit.conclude(&cluster, &submitters.acknowledged());
    cluster.assert_clean();
}

#[test]
fn leaders_that_are_killed_stopped_and_replaced_lose_nothing_and_run_nothing_twice() {
    let cluster = Cluster::start_replicated(3, 2, 2);
    under_load(cluster, &[Fault::Kill, Fault::Stop, Fault::Transfer, Fault::Kill]);
}

#[test]
fn leaders_that_are_cut_off_lose_nothing_and_run_nothing_twice() {
    let lab = match Lab::new(3) {
        Ok(lab) => lab,
        Err(why) => {
            println!("SKIPPED: network partitions: {why}");
            eprintln!("SKIPPED: network partitions: {why}");
            return;
        }
    };
    under_load(Cluster::start_in_lab(lab, 2, 2), &[Fault::Isolate, Fault::OneWay, Fault::Bridge]);
}

#[test]
fn three_founders_make_one_cluster_in_any_order_and_survive_a_restart_of_all() {
    let dir = tempfile::tempdir().unwrap();
    // Founders must know each other's ports before they start.
    let free: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let raft: Vec<u16> = free.iter().map(|l| l.local_addr().unwrap().port()).collect();
    drop(free);
    let join = raft.iter().map(|p| format!("127.0.0.1:{p}")).collect::<Vec<_>>().join(",");
    let start = |n: usize| {
        let ready = dir.path().join(format!("{n}.ready"));
        let _ = std::fs::remove_file(&ready);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.path().join(format!("{n}.log")))
            .unwrap();
        let mut command = Command::new(binary("firesteel-master"));
        command
            .args(["--port", "0", "--webui-port", "0", "--raft-port", &raft[n].to_string()])
            .args(["--bootstrap-expect", "3", "--join", &join, "--data-dir"])
            .arg(dir.path().join(n.to_string()))
            .arg("--ready-file")
            .arg(&ready)
            .stdout(Stdio::null())
            .stderr(log);
        Started::as_it_is(&mut command)
    };
    let ready = |n: usize| -> Result<serde_json::Value, String> {
        let text = std::fs::read(dir.path().join(format!("{n}.ready"))).map_err(|e| e.to_string())?;
        serde_json::from_slice(&text).map_err(|e| e.to_string())
    };
    let url_when_ready = || {
        let addresses: Vec<String> = (0..3)
            .map(|n| {
                let document = wait_for("a founder to be ready", LIMIT, || {
                    let log =
                        || std::fs::read_to_string(dir.path().join(format!("{n}.log"))).unwrap_or_default();
                    ready(n).and_then(|r| if r["forming"] == false { Ok(r) } else { Err(log()) })
                });
                document["master"].as_str().unwrap().trim_start_matches("firesteel://").to_owned()
            })
            .collect();
        format!("firesteel://{}", addresses.join(","))
    };
    let masters = |url: &str| {
        wait_for("three voters", LIMIT, || {
            let run = Run::of(
                Command::new(binary("submit"))
                    .args(["--master", url, "masters", "-o", "json"])
                    .output()
                    .unwrap(),
            );
            let list: serde_json::Value =
                serde_json::from_str(&run.stdout).map_err(|_| run.stderr.clone())?;
            let roles: Vec<_> =
                list["members"].as_array().into_iter().flatten().filter_map(|m| m["role"].as_str()).collect();
            let voters =
                roles.iter().filter(|r| ["leader", "follower"].contains(&r.to_lowercase().as_str())).count();
            if voters == 3 { Ok(run.stdout.clone()) } else { Err(run.stdout.clone()) }
        })
    };

    let first = start(2);
    wait_for("a founder alone to wait", LIMIT, || match ready(2)? {
        r if r["forming"] == true => Ok(()),
        r => Err(r.to_string()),
    });
    let founders = [first, start(0), start(1)];
    masters(&url_when_ready());
    drop(founders);
    let again = [start(0), start(1), start(2)];
    masters(&url_when_ready());
    drop(again);
}

#[test]
fn a_query_that_spans_two_leader_kills_ends_right_and_without_a_restart() {
    let mut cluster = Cluster::start_replicated(3, 2, 2);
    let data = TPCH.data(0.01);
    let join = "SELECT count(*) AS n, sum(a.l_quantity) AS q FROM lineitem a JOIN lineitem b
           ON a.l_suppkey = b.l_suppkey AND a.l_linenumber = b.l_linenumber AND a.l_shipmode = b.l_shipmode;\n";
    let once = cluster.script("once.sql", &format!("{}{join}", TPCH.tables(&data)));
    let expected = cluster.csv("cluster", &once, &[]);
    let script = cluster.script("many.sql", &format!("{}{}", TPCH.tables(&data), join.repeat(150)));
    for mode in ["cluster", "client"] {
        let flags = ["--deploy-mode", mode, "--name", mode, "-o", "csv"];
        let child = Started::of(cluster.submit(flags).arg(&script));
        for _ in 0..2 {
            wait_for("the query to run", LIMIT, || {
                let apps = cluster.run(["list", "-o", "json"]);
                let list: serde_json::Value =
                    serde_json::from_str(&apps.stdout).map_err(|_| apps.stderr.clone())?;
                let ours = list.as_array().into_iter().flatten().find(|a| a["name"] == mode).cloned();
                match ours {
                    Some(app) if app["state"] == "RUNNING" && !cluster.engines("executor").is_empty() => {
                        Ok(())
                    }
                    other => Err(format!("{other:?}")),
                }
            });
            chaos::round(&mut cluster, Fault::Kill);
        }
        let run = child.finish();
        assert_eq!(run.code, 0, "{mode}: {}\n{}", run.stderr, cluster.logs());
        assert_eq!(run.stdout, vec![expected.as_str(); 150].join("\n"), "{mode}");
        let apps = cluster.run(["list", "-o", "json"]);
        let list: serde_json::Value = serde_json::from_str(&apps.stdout).unwrap();
        let app = list.as_array().unwrap().iter().find(|a| a["name"] == mode).unwrap();
        let status = cluster.run(["status", app["id"].as_str().unwrap(), "-o", "json"]).stdout;
        assert!(!status.contains("\"restarts\":1"), "{status}");
        let executors = serde_json::from_str::<serde_json::Value>(&status).unwrap();
        assert_eq!(executors["executors"].as_array().unwrap().len(), 2, "none was replaced: {status}");
    }
}

#[test]
fn a_lost_majority_takes_no_work_and_goes_on_when_it_is_back() {
    let mut cluster = Cluster::start_replicated(3, 1, 2);
    let script = cluster.script("one.sql", "SELECT 1 AS one");
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    for other in &others {
        cluster.masters[*other].kill();
    }
    // The survivor says so on its page, and takes nothing.
    let page = wait_for("the page to say that there is no leader", LIMIT, || {
        let page = get(&cluster.masters[leader].ready_text("ui"));
        if page.contains("no leader") { Ok(page) } else { Err(page) }
    });
    assert!(page.contains("nothing can be submitted"), "{page}");
    let waiting = Started::of(cluster.submit(["--deploy-mode", "cluster", "-o", "csv"]).arg(&script));
    for other in others {
        cluster.start_master_again(other, &[]);
    }
    cluster.wait_for_voters(3);
    let run = waiting.finish();
    assert_eq!((run.code, run.stdout.as_str()), (0, "one\n1\n"), "{}\n{}", run.stderr, cluster.logs());
    chaos::hashes_agree(&cluster);
}

fn get(url: &str) -> String {
    get_path(url, "/")
}

fn get_path(url: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return String::new() };
    let _ = write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn masters_come_and_go_and_the_last_majority_is_kept() {
    let mut cluster = Cluster::start_replicated(3, 1, 2);
    let fourth = cluster.add_master();
    cluster.wait_for_voters(4);
    // The leader may leave, too: it hands over first.
    let leader = cluster.leader();
    let id = cluster.masters[leader].ready_text("member");
    let run = cluster.run(["masters", "remove", &id, "--yes"]);
    assert_eq!(run.code, 0, "{}\n{}", run.stderr, cluster.logs());
    let status = cluster.masters[leader].wait();
    assert!(!status.success(), "a removed master ends");
    let log = std::fs::read_to_string(&cluster.masters[leader].log).unwrap();
    assert!(log.contains("removed from the cluster"), "{log}");
    cluster.wait_for_voters(3);
    // It does not come back with its old data.
    let second = cluster.dir().join(format!("master-{leader}"));
    let joined = cluster.masters[if fourth == leader { 0 } else { fourth }].ready_text("raft");
    let run = Run::of(
        Command::new(binary("firesteel-master"))
            .args(["--port", "0", "--webui-port", "0", "--raft-port", "0", "--join", &joined, "--data-dir"])
            .arg(&second)
            .output()
            .unwrap(),
    );
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("removed from the cluster"), "{}", run.stderr);

    // Of three, one is dead: none of the others may be removed.
    let alive: Vec<usize> = (0..4).filter(|n| *n != leader).collect();
    let now = cluster.leader();
    let victim = *alive.iter().find(|n| **n != now).unwrap();
    let dead = *alive.iter().rfind(|n| **n != now && **n != victim).unwrap();
    cluster.masters[dead].kill();
    let victim_id = cluster.masters[victim].ready_text("member");
    wait_for("the removal to be refused", LIMIT, || {
        let run = cluster.run(["masters", "remove", &victim_id, "--yes"]);
        match run.code {
            0 => panic!("removed: {}", run.stdout),
            _ if run.stderr.contains("cannot be removed") => Ok(()),
            _ => Err(run.stderr),
        }
    });
    let dead_id = cluster.masters[dead].ready_text("member");
    let run = cluster.run(["masters", "remove", &dead_id, "--yes"]);
    assert_eq!(run.code, 0, "the dead one may go: {}", run.stderr);
}

#[test]
fn a_wiped_master_is_a_new_one_and_its_address_is_free_only_after_removal() {
    let mut cluster = Cluster::start_replicated(3, 0, 1);
    let leader = cluster.leader();
    let wiped = (0..3).find(|n| *n != leader).unwrap();
    let old = cluster.masters[wiped].ready_text("member");
    let raft = cluster.masters[wiped].ready_text("raft");
    cluster.masters[wiped].kill();
    std::fs::remove_dir_all(cluster.master_dir(wiped)).unwrap();
    let join = cluster.masters[leader].ready_text("raft");
    let port = raft.rsplit(':').next().unwrap().to_owned();
    let start = || {
        let mut command = Command::new(binary("firesteel-master"));
        command
            .args(["--port", "0", "--webui-port", "0", "--raft-port", &port, "--join", &join, "--data-dir"])
            .arg(cluster.master_dir(wiped))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Started::as_it_is(&mut command)
    };
    let run = start().finish();
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("submit masters remove"), "{}", run.stderr);
    let removed = cluster.run(["masters", "remove", &old, "--yes"]);
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    let _again = start();
    wait_for("the new member to vote", LIMIT, || {
        let members = cluster.members()?;
        let new = members.members.iter().find(|m| m.raft_address == raft);
        match new {
            Some(m) if m.id != old && m.role() == v1::MemberRole::Follower => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn all_masters_restarted_under_load_and_one_after_the_other() {
    let mut cluster = Cluster::start_replicated(3, 1, 2);
    let mut submitters = Submitters::start(&cluster, 1, Duration::from_millis(100));
    // Rolling, politely, as in an upgrade.
    for index in 0..3 {
        cluster.masters[index].stop();
        cluster.start_master_again(index, &[]);
        cluster.wait_for_voters(3);
    }
    // All at once.
    for index in 0..3 {
        cluster.masters[index].kill();
    }
    for index in 0..3 {
        cluster.start_master_again(index, &[]);
    }
    cluster.wait_for_voters(3);
    let before = submitters.acknowledged().len();
    wait_for("submissions to go on", LIMIT, || {
        if submitters.acknowledged().len() > before {
            Ok(())
        } else {
            Err(format!("{:?}", submitters.refused()))
        }
    });
    submitters.stop();
    Audit::default().conclude(&cluster, &submitters.acknowledged());
}

/// The voters' log no longer has what the member lacks: only a snapshot can bring it up.
#[test]
fn a_follower_that_was_away_for_long_catches_up_by_a_snapshot() {
    let mut cluster = Cluster::start_replicated(3, 0, 1);
    let away = (0..3).find(|n| *n != cluster.leader()).unwrap();
    cluster.masters[away].kill();
    let before = cluster.members().unwrap().committed;
    // More than the margin of entries that a snapshot leaves in the log.
    let submitted = cluster.with_leader(|leader| async move {
        for batch in 0..50 {
            let requests = (0..32).map(|n| {
                let mut client = ClientClient::new(leader.channel.clone());
                async move {
                    let name = format!("many-{batch}-{n}");
                    let request =
                        v1::SubmitApplicationRequest { spec: Some(spec(&name)), key: name, ticket: u64::MAX };
                    client.submit_application(request).await
                }
            });
            let answers: Vec<_> = requests.map(tokio::spawn).collect();
            for answer in answers {
                answer.await.expect("no panic")?;
            }
        }
        Ok(50 * 32)
    });
    assert_eq!(submitted, Ok(1600));
    let leader = cluster.leader();
    // The leader spares what a member lacks that was there a moment ago.
    let mut more = 0;
    let first = wait_for("the log to be shortened", LIMIT, || {
        more += 1;
        let name = format!("one-more-{more}");
        cluster.with_leader(|leader| async move {
            let request =
                v1::SubmitApplicationRequest { spec: Some(spec(&name)), key: name, ticket: u64::MAX };
            ClientClient::new(leader.channel).submit_application(request).await
        })?;
        let run = cluster.run(["masters", "snapshot"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let first = metric(&cluster, leader, "firesteel_raft_first_index").ok_or("no metric")?;
        let gone = first > before + 100;
        if gone { Ok(first) } else { Err(format!("the log begins at {first}, {before} were committed")) }
    });
    cluster.start_master_again(away, &[]);
    cluster.wait_for_voters(3);
    wait_for("the snapshot to show", LIMIT, || {
        let theirs = metric(&cluster, away, "firesteel_raft_snapshot_index").ok_or("none")?;
        let came = theirs + 1 >= first;
        if came {
            Ok(())
        } else {
            Err(format!("its snapshot is of {theirs}, the leader's log begins at {first}"))
        }
    });
    chaos::hashes_agree(&cluster);
}

fn metric(cluster: &Cluster, master: usize, name: &str) -> Option<u64> {
    let page = get_path(&cluster.masters[master].ready_text("ui"), "/metrics");
    let line = page.lines().find(|line| line.starts_with(&format!("{name} ")))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_majority_that_is_lost_for_good_is_replaced_by_force() {
    let mut cluster = Cluster::start_replicated(3, 1, 2);
    let script = cluster.script("one.sql", "SELECT 1 AS one");
    let run = cluster.run(
        ["--deploy-mode", "cluster", "--name", "before"]
            .map(std::ffi::OsStr::new)
            .into_iter()
            .chain([script.as_os_str()]),
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    chaos::hashes_agree(&cluster);
    for index in 0..3 {
        cluster.masters[index].kill();
    }
    std::fs::remove_dir_all(cluster.master_dir(1)).unwrap();
    std::fs::remove_dir_all(cluster.master_dir(2)).unwrap();
    cluster.start_master_again(0, &["--force-new-cluster"]);
    cluster.wait_for_voters(1);
    let list = cluster.run(["list", "-o", "json"]);
    assert!(list.stdout.contains("before"), "its history is there: {} {}", list.stdout, list.stderr);
    // New masters join it, also at the old addresses.
    for index in 1..3 {
        let join = cluster.masters[0].ready_text("raft");
        cluster.start_master_again(index, &["--join", &join]);
    }
    cluster.wait_for_voters(3);
    let run = cluster.run(
        ["--deploy-mode", "cluster", "-o", "csv"]
            .map(std::ffi::OsStr::new)
            .into_iter()
            .chain([script.as_os_str()]),
    );
    assert_eq!((run.code, run.stdout.as_str()), (0, "one\n1\n"), "{}", run.stderr);
    chaos::hashes_agree(&cluster);
}

#[test]
fn a_master_whose_disk_is_full_stops_and_the_others_go_on() {
    let Some(disk) = SmallDisk::mount(24) else {
        println!("SKIPPED: a full disk: cannot mount a tmpfs here");
        eprintln!("SKIPPED: a full disk: cannot mount a tmpfs here");
        return;
    };
    let cluster = Cluster::start_replicated(2, 1, 2);
    let join = cluster.masters[0].ready_text("raft");
    let mut third = Started::as_it_is(
        Command::new(binary("firesteel-master"))
            .args(["--port", "0", "--webui-port", "0", "--raft-port", "0", "--join", &join, "--data-dir"])
            .arg(disk.0.path().join("data"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(cluster.dir().join("third.log")).unwrap()),
    );
    cluster.wait_for_voters(3);
    // Fill it up, then make the masters write.
    let mut filler = std::fs::File::create(disk.0.path().join("filler")).unwrap();
    let block = vec![7u8; 64 << 10];
    while std::io::Write::write_all(&mut filler, &block).is_ok() {}
    let script = cluster.script("one.sql", "SELECT 1 AS one");
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        let run = cluster.run(
            ["--deploy-mode", "cluster", "-o", "csv"]
                .map(std::ffi::OsStr::new)
                .into_iter()
                .chain([script.as_os_str()]),
        );
        assert_eq!((run.code, run.stdout.as_str()), (0, "one\n1\n"), "the others go on: {}", run.stderr);
        if let Some(status) = third.ended() {
            break status;
        }
        assert!(Instant::now() < deadline, "a master with a full disk must not go on");
    };
    assert!(!status.success());
    let log = std::fs::read_to_string(cluster.dir().join("third.log")).unwrap();
    assert!(log.to_lowercase().contains("no space"), "{log}");
    // With room again it comes back and catches up.
    drop(filler);
    std::fs::remove_file(disk.0.path().join("filler")).unwrap();
    let second_log = cluster.dir().join("third-again.log");
    let mut again = Started::as_it_is(
        Command::new(binary("firesteel-master"))
            .args(["--port", "0", "--webui-port", "0", "--raft-port", "0", "--data-dir"])
            .arg(disk.0.path().join("data"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&second_log).unwrap()),
    );
    wait_for("the third to have everything", LIMIT, || {
        let log = || std::fs::read_to_string(&second_log).unwrap_or_default();
        assert!(
            again.ended().is_none(),
            "it ended again: {}\nbefore: {}",
            log(),
            std::fs::read_to_string(cluster.dir().join("third.log")).unwrap()
        );
        let members = cluster.members()?;
        let all = members.members.iter().all(|m| m.alive && m.matched >= members.committed);
        if all { Ok(()) } else { Err(format!("{members:?}\n{}", log())) }
    });
}

/// A tmpfs of some MiB; goes with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
        mounted.then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Clients that submit, kill and read at random while leaders are killed and stopped; every answer must fit one order.
#[test]
fn the_answers_that_clients_get_are_linearizable() {
    // No worker: an application stays as it is until somebody kills it.
    let mut cluster = Cluster::start_replicated(3, 0, 1);
    let url: firesteel_common::MasterUrl = cluster.url.parse().unwrap();
    let begin = Instant::now();
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let newest = Arc::new(AtomicUsize::new(0));
    let ids: Arc<Mutex<std::collections::BTreeMap<String, String>>> = Arc::default();
    let clients: Vec<_> = (0..4u64)
        .map(|client| {
            let (url, events, stop, newest, ids) =
                (url.clone(), events.clone(), stop.clone(), newest.clone(), ids.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let masters = Masters::new(&url);
                let mut random = client.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut below = move |n: u64| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % n
                };
                let mut operations = 0;
                while !stop.load(Ordering::Relaxed) {
                    operations += 1;
                    // Each object is touched for a while, then the clients move on together.
                    if operations % 12 == 0 && client == 0 {
                        newest.fetch_add(1, Ordering::Relaxed);
                    }
                    let object = format!("object-{}", newest.load(Ordering::Relaxed) + below(2) as usize);
                    let operation = match below(4) {
                        0 | 1 => Operation::Submit,
                        2 => Operation::Kill,
                        _ => Operation::Read,
                    };
                    let id = ids.lock().unwrap().get(&object).cloned();
                    if operation == Operation::Kill && id.is_none() {
                        continue;
                    }
                    let asked = begin.elapsed().as_nanos() as u64;
                    let answer = runtime.block_on(ask(&masters, &object, operation, id));
                    let now = begin.elapsed().as_nanos() as u64;
                    let answered = match answer {
                        Asked::Answered(answer, id) => {
                            if let Some(id) = id {
                                ids.lock().unwrap().insert(object.clone(), id);
                            }
                            Some((now, answer))
                        }
                        Asked::Unknown => None,
                        Asked::NotDone => continue,
                    };
                    events.lock().unwrap().push(Event { object, operation, asked, answered });
                }
            })
        })
        .collect();
    for fault in [Fault::Kill, Fault::Stop, Fault::Transfer, Fault::Kill, Fault::Stop] {
        chaos::round(&mut cluster, fault);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    let events = events.lock().unwrap();
    let answered = events.iter().filter(|e| e.answered.is_some()).count();
    assert!(answered > 100, "only {answered} operations were answered");
    let objects = history::check(&events).unwrap_or_else(|e| panic!("{e}"));
    println!("{} operations on {objects} applications, {answered} answered", events.len());
}

enum Asked {
    Answered(Answer, Option<String>),
    /// It may or may not have happened.
    Unknown,
    /// It did not reach a master that could do it.
    NotDone,
}

async fn ask(masters: &Masters, object: &str, operation: Operation, id: Option<String>) -> Asked {
    let Ok(leader) = masters.leader().await else { return Asked::NotDone };
    let mut client = ClientClient::new(leader.channel.clone()).max_decoding_message_size(64 << 20);
    let asking = async {
        match operation {
            Operation::Submit => {
                let request = v1::SubmitApplicationRequest {
                    spec: Some(spec(object)),
                    key: object.to_owned(),
                    ticket: u64::MAX,
                };
                let answer = client.submit_application(request).await?.into_inner();
                Ok((Answer::Submitted, Some(answer.application_id)))
            }
            Operation::Kill => {
                let request = v1::KillApplicationRequest {
                    application_id: id.unwrap_or_default(),
                    user: "test".into(),
                };
                match client.kill_application(request).await {
                    Ok(_) => Ok((Answer::Killed, None)),
                    Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                        Ok((Answer::AlreadyEnded, None))
                    }
                    Err(status) if status.code() == tonic::Code::NotFound => Ok((Answer::NotFound, None)),
                    Err(status) => Err(status),
                }
            }
            Operation::Read => {
                let list = client.list_applications(v1::ListApplicationsRequest {}).await?.into_inner();
                let found =
                    list.applications.iter().find(|a| a.spec.as_ref().is_some_and(|s| s.name == object));
                let state = match found.map(|a| a.state()) {
                    None => State::Absent,
                    Some(v1::ApplicationState::Killed) => State::Killed,
                    Some(_) => State::Active,
                };
                Ok((Answer::Seen(state), None))
            }
        }
    };
    match tokio::time::timeout(Duration::from_secs(2), asking).await {
        Ok(Ok((answer, id))) => Asked::Answered(answer, id),
        Ok(Err(status)) => {
            masters.failed(&leader, Some(&status));
            match firesteel_proto::masters::not_leader(&status) {
                // Refused before anything was done.
                Some(_) => Asked::NotDone,
                None => Asked::Unknown,
            }
        }
        Err(_) => {
            masters.failed(&leader, None);
            Asked::Unknown
        }
    }
}

fn spec(name: &str) -> v1::ApplicationSpec {
    v1::ApplicationSpec {
        name: name.to_owned(),
        user: "test".into(),
        // In cluster mode a script would be needed; a client-mode driver that never comes is given a minute.
        deploy_mode: v1::DeployMode::Client.into(),
        resource: "q.sql".into(),
        output: v1::OutputFormat::Csv.into(),
        driver: Some(v1::Resources { cores: 0, memory_mib: 512 }),
        executor: Some(v1::Resources { cores: 1, memory_mib: 1024 }),
        executors: Some(v1::application_spec::Executors::ExecutorCount(1)),
        ..Default::default()
    }
}

#[test]
fn a_supervised_driver_is_started_again_and_never_twice_at_once() {
    let cluster = Cluster::start_replicated(1, 2, 2);
    let data = TPCH.data(0.01);
    let sql = format!(
        "{}SELECT sum(a.l_orderkey % 7 + b.l_partkey % 5 + c.l_suppkey % 3)
           FROM lineitem a JOIN lineitem b ON a.l_linenumber = b.l_linenumber
           JOIN lineitem c ON b.l_linenumber = c.l_linenumber;\n",
        TPCH.tables(&data)
    );
    let script = cluster.script("endless.sql", &sql);
    let flags = ["--deploy-mode", "cluster", "--detach", "--supervise", "-q"].map(std::ffi::OsStr::new);
    let run = cluster.run(flags.into_iter().chain([script.as_os_str()]));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let id = run.stdout.trim().to_owned();
    for attempt in 0..2 {
        let driver = wait_for("the driver", LIMIT, || match cluster.engines("driver").as_slice() {
            [one] => Ok(one.clone()),
            other => Err(format!("{other:?}\n{}", cluster.logs())),
        });
        procs::kill(driver.pid, Signal::KILL);
        wait_for("the driver to be another one", LIMIT, || {
            let drivers = cluster.engines("driver");
            assert!(drivers.len() <= 1, "attempt {attempt}: two at once: {drivers:?}");
            if drivers.iter().any(|d| d.pid != driver.pid) {
                Ok(())
            } else {
                Err(format!("{drivers:?}\n{}", cluster.logs()))
            }
        });
    }
    assert_eq!(cluster.run(["kill", &id]).code, 0);
    cluster.assert_clean();
}
