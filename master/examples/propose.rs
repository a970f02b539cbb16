//! Prints how many durable proposals per second a lone master makes on this disk, beside bare fdatasync.
//!
//! `cargo run --release -p firesteel-master --example propose -- [DIRECTORY]`

use firesteel_common::{Resources, WorkerId};
use firesteel_master::consensus::Consensus;
use firesteel_master_core::Command;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

const SPAN: Duration = Duration::from_secs(2);

fn command(n: u64) -> Command {
    Command::RegisterWorker {
        id: WorkerId::new(0, &format!("10.0.0.{}-7079", n % 100)),
        incarnation: n,
        host: "10.0.0.1".to_owned(),
        port: 7079,
        capacity: Resources::new(8, 16_384),
        version: "0.1.0".to_owned(),
        ui_url: String::new(),
        at_ms: n,
    }
}

/// Milliseconds at the given part of the sorted times.
fn quantile(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() as f64 - 1.0) * part) as usize;
    times.get(at).map_or(0.0, |t| t.as_secs_f64() * 1e3)
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn bare_fdatasync(dir: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::create(dir.join("bare"))?;
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < SPAN {
        let begin = Instant::now();
        file.write_all(&[7; 300])?;
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    println!(
        "bare fdatasync of 300 appended bytes: {rate:.0}/s, median {:.3} ms, p99 {:.3} ms",
        quantile(&mut times, 0.5),
        quantile(&mut times, 0.99)
    );
    Ok(())
}

async fn proposals(consensus: &Consensus, callers: u64) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let consensus = consensus.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < SPAN {
                    let begin = Instant::now();
                    consensus.propose(vec![command(caller)]).await?;
                    times.push(begin.elapsed());
                }
                Ok::<_, firesteel_master::consensus::ProposeError>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    println!(
        "{callers} callers: {rate:.0} proposals/s, median {:.3} ms, p99 {:.3} ms, RSS {} KiB",
        quantile(&mut times, 0.5),
        quantile(&mut times, 0.99),
        rss_kib()
    );
    Ok(())
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let base = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = base.join(format!("firesteel-propose-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    println!("in {}, RSS before {} KiB", dir.display(), rss_kib());
    bare_fdatasync(&dir)?;
    for round in ["new", "reopened"] {
        let begin = Instant::now();
        let (consensus, thread) = Consensus::open(&dir.join("data"))?;
        let opened = begin.elapsed();
        consensus.state().wait_for(|p| p.leader).await?;
        println!(
            "{round}: opened in {:.1} ms, led after {:.1} ms at entry {}, RSS {} KiB",
            opened.as_secs_f64() * 1e3,
            begin.elapsed().as_secs_f64() * 1e3,
            consensus.state().borrow().applied,
            rss_kib()
        );
        for callers in [1, 16, 256, 1024] {
            proposals(&consensus, callers).await?;
        }
        consensus.stop().await;
        thread.ended().await?;
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
