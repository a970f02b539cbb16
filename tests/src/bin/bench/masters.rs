//! Several masters: how fast a lost leader is replaced, how fast writes are replicated, what a long run of faults leaves.

use crate::{median, percentile};
use firesteel_proto::masters::Masters;
use firesteel_proto::v1;
use firesteel_proto::v1::client_client::ClientClient;
use firesteel_tests::chaos::{self, Audit, Fault, Submitters};
use firesteel_tests::cluster::Cluster;
use firesteel_tests::netns::Lab;
use firesteel_tests::procs::wait_for;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Leader killed → next `submit` acknowledged; planned transfer → another leads.
pub fn failover(rounds: usize) {
    println!("== failover: three masters on loopback, {rounds} rounds (ms)");
    let mut cluster = Cluster::start_replicated(3, 1, 2);
    let (mut killed, mut transferred) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let leader = cluster.leader();
        cluster.masters[leader].kill();
        killed.push(chaos::time_to_next_submit(&cluster, &format!("failover-{round}")).as_secs_f64() * 1e3);
        cluster.start_master_again(leader, &[]);
        cluster.wait_for_voters(3);

        let begin = Instant::now();
        let run = cluster.run(["masters", "transfer"]);
        transferred.push(begin.elapsed().as_secs_f64() * 1e3);
        assert_eq!(run.code, 0, "{}\n{}", run.stderr, cluster.logs());
        cluster.wait_for_voters(3);
    }
    for (what, values) in [
        ("leader killed -9 → next submit acknowledged", &mut killed),
        ("submit masters transfer", &mut transferred),
    ] {
        let worst = values.iter().copied().fold(0.0, f64::max);
        println!(
            "  {what:<46} median {:5.0}   p99 {:5.0}   worst {worst:5.0}",
            median(values),
            percentile(values, 0.99)
        );
    }
}

/// Submissions per second and their latency, beside the bare fdatasync of the same disk.
pub fn writes(seconds: u64) {
    println!("== writes: replicated submissions beside bare fdatasync of the same disk");
    for masters in [1, 3] {
        let cluster = Cluster::start_replicated(masters, 0, 1);
        let (bare_median, bare_rate) = bare_fdatasync(cluster.dir(), seconds.min(3));
        if masters == 1 {
            println!("  fdatasync alone        median {bare_median:6.2} ms   {bare_rate:7.0}/s");
        }
        for clients in [1usize, 16, 64] {
            let (mut latencies, rate) = submissions(&cluster, clients, seconds);
            let middle = median(&mut latencies);
            println!(
                "  {masters} master{} {clients:>3} client{} median {middle:6.2} ms   p99 {:6.2} ms   {rate:7.0} submissions/s   \
                 latency {:4.1} x, rate {:4.1} x of fdatasync",
                if masters == 1 { " " } else { "s" },
                if clients == 1 { " " } else { "s" },
                percentile(&mut latencies, 0.99),
                middle / bare_median,
                rate / bare_rate,
            );
        }
    }
}

/// Appends of 256 bytes, each made durable.
fn bare_fdatasync(dir: &std::path::Path, seconds: u64) -> (f64, f64) {
    let path = dir.join("fdatasync");
    let mut file = std::fs::File::create(&path).expect("a file");
    // As a log of a fixed size: the length does not change with each write.
    file.write_all(&vec![0; 8 << 20]).expect("room");
    file.sync_all().expect("sync");
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < Duration::from_secs(seconds) {
        let start = Instant::now();
        let at = (times.len() as u64 * 256) % (8 << 20);
        file.write_all_at(&[7; 256], at).expect("write");
        file.sync_data().expect("sync");
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
    (median(&mut times), rate)
}

fn submissions(cluster: &Cluster, clients: usize, seconds: u64) -> (Vec<f64>, f64) {
    let url = cluster.url.parse().expect("a URL");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let leader = Masters::new(&url).leader().await.expect("a leader");
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicU64::new(0));
        let begin = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|_| {
                let (stop, next, channel) = (stop.clone(), next.clone(), leader.channel.clone());
                tokio::spawn(async move {
                    let mut client = ClientClient::new(channel);
                    let mut times = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let start = Instant::now();
                        let request = v1::SubmitApplicationRequest {
                            spec: Some(spec()),
                            key: format!("bench-{clients}-{n}"),
                            ticket: u64::MAX,
                        };
                        let answer =
                            client.submit_application(request).await.expect("acknowledged").into_inner();
                        times.push(start.elapsed().as_secs_f64() * 1e3);
                        // The queue is bounded: what was submitted is killed at once, outside of the measured time.
                        let kill = v1::KillApplicationRequest {
                            application_id: answer.application_id,
                            user: String::new(),
                        };
                        client.kill_application(kill).await.expect("killed");
                    }
                    times
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.expect("a client"));
        }
        // Each submission is followed by a kill, which is one more replicated write.
        let rate = all.len() as f64 / begin.elapsed().as_secs_f64();
        (all, rate)
    })
}

fn spec() -> v1::ApplicationSpec {
    v1::ApplicationSpec {
        name: "bench".into(),
        user: "bench".into(),
        deploy_mode: v1::DeployMode::Client.into(),
        resource: "q.sql".into(),
        output: v1::OutputFormat::Csv.into(),
        driver: Some(v1::Resources { cores: 0, memory_mib: 512 }),
        executor: Some(v1::Resources { cores: 1, memory_mib: 1024 }),
        executors: Some(v1::application_spec::Executors::ExecutorCount(1)),
        ..Default::default()
    }
}

/// Faults in turn, under load, with the audit at the end.
pub fn chaos(rounds: usize) {
    let lab = Lab::new(3);
    let faults: &[Fault] = match &lab {
        Ok(_) => &[
            Fault::Kill,
            Fault::Stop,
            Fault::Isolate,
            Fault::Transfer,
            Fault::OneWay,
            Fault::Kill,
            Fault::Bridge,
        ],
        Err(why) => {
            println!("  (no partitions: {why})");
            &[Fault::Kill, Fault::Stop, Fault::Transfer]
        }
    };
    println!("== chaos: three masters, two workers, {rounds} rounds of {faults:?} under submissions");
    let mut cluster = match lab {
        Ok(lab) => Cluster::start_in_lab(lab, 2, 2),
        Err(_) => Cluster::start_replicated(3, 2, 2),
    };
    let mut submitters = Submitters::start(&cluster, 2, Duration::from_millis(300));
    let mut audit = Audit::default();
    let begin = Instant::now();
    for round in 0..rounds {
        let before = submitters.acknowledged().len();
        chaos::round(&mut cluster, faults[round % faults.len()]);
        wait_for("submissions to go on", Duration::from_secs(60), || match submitters.acknowledged().len() {
            now if now > before + 1 => Ok(()),
            _ => Err(format!("{:?}", submitters.refused())),
        });
        wait_for("a list", Duration::from_secs(60), || audit.look(&cluster));
        if (round + 1) % 20 == 0 {
            println!(
                "  {} rounds, {} acknowledged, {:.0} s",
                round + 1,
                submitters.acknowledged().len(),
                begin.elapsed().as_secs_f64()
            );
        }
    }
    submitters.stop();
    let acknowledged = submitters.acknowledged();
    audit.conclude(&cluster, &acknowledged);
    println!(
        "  {} acknowledged, {} given up by submit: 0 lost, 0 run twice, 0 launched twice, all state hashes agree",
        acknowledged.len(),
        submitters.refused().len()
    );
    for text in submitters.refused() {
        println!("    given up: {}", text.trim());
    }
}
