//! The launcher with the real supervisor, where the daemon's own limits would take too long.

mod support;

use firesteel_common::{ProcessEnd, ProcessId, Resources, Secret};
use firesteel_proto::masters::Masters;
use firesteel_worker::launcher::{Context, Launcher, Stop};
use firesteel_worker::processes::{Event, Launch};
use firesteel_worker::shuffle::Limits;
use firesteel_worker::workdir::WorkDir;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::LIMIT;
use support::master::Master;
use support::worker::Bench;
use tokio::sync::mpsc;

async fn next(events: &mut mpsc::Receiver<(ProcessId, Event)>) -> Event {
    tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap().1
}

fn launch(mode: &str) -> Launch {
    Launch {
        id: ProcessId::from_name("app-1".parse().unwrap(), "executor-1").unwrap(),
        resources: Resources::new(1, 512),
        token: Secret::new("t"),
        spec: None,
        conf: [("mode".to_owned(), mode.to_owned())].into(),
        grant_index: 1,
        incarnation: 0,
        ends_with_lease: false,
    }
}

struct Fixture {
    bench: Bench,
    _master: Master,
    launcher: Launcher,
    events: mpsc::Receiver<(ProcessId, Event)>,
}

impl Fixture {
    async fn new(ready_timeout: Duration) -> Self {
        let bench = Bench::new();
        let master = Master::start().await;
        let master_url = master.url().parse().unwrap();
        let workdir = Arc::new(WorkDir::open(&bench.path("w")).unwrap());
        let context = Context {
            worker: "worker-1".parse().unwrap(),
            workdir,
            supervisor: env!("CARGO_BIN_EXE_firesteel-supervisor").into(),
            engine: bench.path("engine"),
            host: "127.0.0.1".into(),
            masters: Masters::new(&master_url),
            master_url,
            environment: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
            ready_timeout,
            orphans: Default::default(),
            shuffle: Limits { quota_bytes: 7, free_floor_bytes: 5 },
        };
        let (sender, events) = mpsc::channel(16);
        let launcher = Launcher::new(Arc::new(context), sender);
        Self { bench, _master: master, launcher, events }
    }

    fn launch(&mut self, mode: &str) {
        self.launcher.launch(launch(mode));
    }

    async fn end(&mut self) -> ProcessEnd {
        loop {
            if let Event::Ended { end } = next(&mut self.events).await {
                self.bench.assert_no_scratch();
                return end;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_that_never_listens_is_given_up() {
    let mut fixture = Fixture::new(Duration::from_millis(500)).await;
    fixture.launch("silent");
    let reason = "it was not ready within 0.5 s".to_owned();
    assert_eq!(fixture.end().await, ProcessEnd::LaunchFailed { reason });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_none_ends_the_executor() {
    let mut fixture = Fixture::new(LIMIT).await;
    fixture.launch("nonsense");
    let reason = "it announced \"<script>\", which is not HOST:PORT".to_owned();
    assert_eq!(fixture.end().await, ProcessEnd::LaunchFailed { reason });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_before_the_start_starts_nothing_that_stays() {
    let mut fixture = Fixture::new(LIMIT).await;
    fixture.launch("");
    fixture.launcher.stop(&launch("").id, Stop::Now);
    fixture.end().await;
}

/// Not a benchmark: fails only where a launch has come to wait for something.
#[tokio::test(flavor = "multi_thread")]
async fn a_launch_waits_for_nothing() {
    let mut fixture = Fixture::new(LIMIT).await;
    let mut times = Vec::new();
    for _ in 0..10 {
        let begin = Instant::now();
        fixture.launch("");
        assert!(matches!(next(&mut fixture.events).await, Event::Started { .. }));
        times.push(begin.elapsed());
        fixture.launcher.stop(&launch("").id, Stop::Now);
        fixture.end().await;
        fixture.launcher.ended(&launch("").id);
    }
    times.sort();
    println!("launch: median {:?}, all {times:?}", times[5]);
    assert!(times[5] < Duration::from_millis(250), "{times:?}");
    assert!(!Path::new(&fixture.bench.scratch().join("app-1")).exists());
}
