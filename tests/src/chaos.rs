//! Masters that are killed, stopped and cut off under a stream of submissions, and the audit afterwards.

use crate::cluster::{Cluster, Run};
use crate::procs::{kill, wait_for};
use firesteel_proto::v1;
use firesteel_proto::v1::client_client::ClientClient;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(90);

/// What is done to a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; started again once another leads.
    Kill,
    /// SIGSTOP, and SIGCONT once another leads.
    Stop,
    /// Asked to hand over.
    Transfer,
    /// Cut off from everybody (in a lab).
    Isolate,
    /// Cannot send to the other masters, but hears them (in a lab).
    OneWay,
    /// Cut off from one other master; the third reaches both (in a lab).
    Bridge,
}

/// What was promised to a submitter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    pub name: String,
    pub id: String,
}

/// A stream of small applications, until it is dropped.
pub struct Submitters {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    refused: Arc<Mutex<Vec<String>>>,
}

impl Submitters {
    pub fn start(cluster: &Cluster, number: usize, pause: Duration) -> Self {
        let script = cluster.script("chaos.sql", "SELECT 1 AS one");
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged: Arc<Mutex<Vec<Acknowledged>>> = Arc::default();
        let refused: Arc<Mutex<Vec<String>>> = Arc::default();
        let next = Arc::new(AtomicUsize::new(0));
        let threads = (0..number)
            .map(|_| {
                let (stop, next) = (stop.clone(), next.clone());
                let (acknowledged, refused) = (acknowledged.clone(), refused.clone());
                let command = SubmitCommand::new(cluster, script.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let name = format!("chaos-{}", next.fetch_add(1, Ordering::Relaxed));
                        let run = command.run(&name);
                        match run.code {
                            0 => {
                                let id = run.stdout.trim().to_owned();
                                acknowledged.lock().expect("no panic").push(Acknowledged { name, id });
                            }
                            code => refused
                                .lock()
                                .expect("no panic")
                                .push(format!("{name}: {code} {}", run.stderr)),
                        }
                        std::thread::sleep(pause);
                    }
                })
            })
            .collect();
        Self { stop, threads, acknowledged, refused }
    }

    /// Everything acknowledged so far.
    pub fn acknowledged(&self) -> Vec<Acknowledged> {
        self.acknowledged.lock().expect("no panic").clone()
    }

    /// Submissions that were given up: allowed, but worth telling.
    pub fn refused(&self) -> Vec<String> {
        self.refused.lock().expect("no panic").clone()
    }

    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a submitter does not panic");
        }
    }
}

impl Drop for Submitters {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// `submit --detach` from a thread that does not hold the cluster.
struct SubmitCommand {
    arguments: Vec<std::ffi::OsString>,
    program: std::ffi::OsString,
    script: PathBuf,
}

impl SubmitCommand {
    fn new(cluster: &Cluster, script: PathBuf) -> Self {
        let command = cluster.submit(["--deploy-mode", "cluster", "--detach", "-q", "--num-executors", "1"]);
        Self {
            program: command.get_program().to_owned(),
            arguments: command.get_args().map(ToOwned::to_owned).collect(),
            script,
        }
    }

    fn run(&self, name: &str) -> Run {
        let mut command = std::process::Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(["--name", name])
            .arg(&self.script)
            .stdin(std::process::Stdio::null());
        Run::of(command.output().expect("submit runs"))
    }
}

/// Does the fault to the leader, waits until another leads, takes the fault back, waits until all are there again.
pub fn round(cluster: &mut Cluster, fault: Fault) {
    let leader = cluster.leader();
    let others: Vec<usize> = (0..cluster.masters.len()).filter(|n| *n != leader).collect();
    let pid = cluster.masters[leader].pid();
    match fault {
        Fault::Kill => cluster.masters[leader].kill(),
        Fault::Stop => kill(pid, Signal::STOP),
        // A follower that has just come back may not be able to take over yet: then nothing has happened.
        Fault::Transfer => wait_for("a transfer", LIMIT, || match cluster.run(["masters", "transfer"]) {
            run if run.code == 0 || cluster.leader() != leader => Ok(()),
            run => Err(run.stderr),
        }),
        Fault::Isolate => cluster.lab().isolate(leader),
        Fault::OneWay => others.iter().for_each(|other| cluster.lab().cut(leader, *other)),
        Fault::Bridge => cluster.lab().separate(leader, others[0]),
    }
    // With the bridge the leader still has a majority and may stay; one that has handed over may be chosen again at once.
    if !matches!(fault, Fault::Bridge | Fault::Transfer) {
        wait_for("another leader", LIMIT, || match cluster.leader() {
            now if now != leader => Ok(()),
            now => Err(format!("{now} still leads\n{}", cluster.logs())),
        });
    }
    match fault {
        Fault::Kill => cluster.start_master_again(leader, &[]),
        Fault::Stop => kill(pid, Signal::CONT),
        Fault::Transfer => {}
        Fault::Isolate | Fault::OneWay | Fault::Bridge => cluster.lab().heal(),
    }
    cluster.wait_for_voters(cluster.masters.len());
}

/// Keeps book of what was promised and what became of it.
#[derive(Default)]
pub struct Audit {
    /// Ids by name, as the cluster has listed them at any time.
    seen: BTreeMap<String, String>,
    settled: BTreeMap<String, String>,
}

impl Audit {
    /// Looks at the cluster's list; nothing may be there twice.
    pub fn look(&mut self, cluster: &Cluster) -> Result<(), String> {
        let list = cluster.with_leader(|leader| async move {
            let mut client = ClientClient::new(leader.channel).max_decoding_message_size(256 << 20);
            client.list_applications(v1::ListApplicationsRequest {}).await.map(tonic::Response::into_inner)
        })?;
        for app in list.applications {
            let name = app.spec.as_ref().map(|s| s.name.clone()).unwrap_or_default();
            if let Some(other) = self.seen.insert(name.clone(), app.application_id.clone()) {
                assert_eq!(other, app.application_id, "{name} runs twice");
            }
            match app.state() {
                v1::ApplicationState::Finished => drop(self.settled.insert(app.application_id, name)),
                v1::ApplicationState::Failed | v1::ApplicationState::Killed => {
                    panic!("{name} ({}) did not end well: {}", app.application_id, app.message)
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until everything acknowledged has finished; checks that nothing was lost, run twice, or launched twice, and
    /// that the masters agree.
    pub fn conclude(&mut self, cluster: &Cluster, acknowledged: &[Acknowledged]) {
        wait_for("every acknowledged application to finish", LIMIT, || {
            self.look(cluster)?;
            let open: Vec<_> = acknowledged.iter().filter(|a| !self.settled.contains_key(&a.id)).collect();
            if open.is_empty() {
                Ok(())
            } else {
                Err(format!("{} are open: {:?}", open.len(), &open[..open.len().min(5)]))
            }
        });
        for Acknowledged { name, id } in acknowledged {
            assert_eq!(self.seen.get(name), Some(id), "{name} was acknowledged as {id}");
        }
        let launches = launches(cluster);
        for (process, times) in &launches {
            assert_eq!(*times, 1, "{process} was launched {times} times");
        }
        for Acknowledged { name, id } in acknowledged {
            let drivers = launches.keys().filter(|p| p.starts_with(&format!("{id}/driver-"))).count();
            assert_eq!(drivers, 1, "{name} ({id}) had {drivers} drivers");
        }
        hashes_agree(cluster);
    }
}

/// How often each process was launched, as the workers' logs say.
fn launches(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut launches = BTreeMap::new();
    for worker in &cluster.workers {
        let log = std::fs::read_to_string(&worker.log).expect("a worker's log");
        for line in log.lines().filter(|line| line.contains(" started process=")) {
            let process = line.split("process=").nth(1).and_then(|rest| rest.split_whitespace().next());
            *launches.entry(process.expect("a process").to_owned()).or_default() += 1;
        }
    }
    launches
}

/// Waits until every master has applied the same, and compares.
pub fn hashes_agree(cluster: &Cluster) {
    wait_for("every master to have the same state", LIMIT, || {
        let states: Vec<String> =
            cluster.masters.iter().map(|m| state_hash(cluster, m)).collect::<Result<_, _>>()?;
        if states.windows(2).all(|w| w[0] == w[1]) { Ok(()) } else { Err(format!("{states:?}")) }
    });
}

fn state_hash(cluster: &Cluster, master: &crate::cluster::Daemon) -> Result<String, String> {
    let address = master.ready_text("ui").trim_start_matches("http://").trim_end_matches('/').to_owned();
    cluster.within(|| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&address).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| e.to_string())?;
        write!(stream, "GET /state HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
            .map_err(|e| e.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.trim().to_owned()),
            _ => Err(answer),
        }
    })
}

/// From a fault to the next acknowledged `submit`.
pub fn time_to_next_submit(cluster: &Cluster, name: &str) -> Duration {
    let script = cluster.script("chaos.sql", "SELECT 1 AS one");
    let command = SubmitCommand::new(cluster, script);
    let begin = Instant::now();
    let run = command.run(name);
    assert_eq!(run.code, 0, "{}\n{}", run.stderr, cluster.logs());
    begin.elapsed()
}
