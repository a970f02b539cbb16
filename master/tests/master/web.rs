//! Every page through the router, over a state made with real commands.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use firesteel_common::{
    ApplicationId, ApplicationSpec, DeployMode, Epoch, ExecutorCount, MasterUrl, OutputFormat, ProcessEnd,
    ProcessId, Resources, Secret, WorkerId,
};
use firesteel_master::consensus::{MembersView, PeerView, Published};
use firesteel_master::soft::{Soft, Usage};
use firesteel_master::web::{AllowedHosts, CONTENT_SECURITY_POLICY, WebContext, assets, router};
use firesteel_master_core::{ClusterState, Command, Outcome, apply, schedule};
use firesteel_proto::v1::{JobProgress, Progress, StageProgress, TaskProgress, TaskState};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tower::ServiceExt;

const HOSTILE: &str = r#"<script>alert(1)</script>"'&"#;
const TOKEN: &str = "the-token-of-the-application";

struct Cluster {
    state: ClusterState,
    soft: Soft,
    index: u64,
    now_ms: u64,
    leader_id: Option<u64>,
    leader: bool,
    lag: u64,
    members: MembersView,
}

impl Cluster {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now_ms = since.as_millis() as u64 - 60_000;
        Self {
            state: ClusterState::default(),
            soft: Soft::new(),
            index: 1,
            now_ms,
            leader_id: Some(7),
            leader: true,
            lag: 0,
            members: MembersView { quorum: true, ..MembersView::default() },
        }
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let outcome = apply(&mut self.state, self.index, command);
        assert!(!matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
        outcome
    }

    fn worker(&mut self, suffix: &str, cores: u32, memory_mib: u64) -> WorkerId {
        let id = WorkerId::new(self.now_ms, suffix);
        self.apply(Command::RegisterWorker {
            id: id.clone(),
            incarnation: 1,
            host: format!("host-{suffix}"),
            port: 7079,
            capacity: Resources::new(cores, memory_mib),
            version: "0.1.0".into(),
            ui_url: "http://host:8081".into(),
            at_ms: self.now_ms,
        });
        let session = self.soft.attach_worker(&id, 1, Instant::now());
        self.soft.heartbeat(&session, Usage::default(), Instant::now());
        id
    }

    fn submit(&mut self, name: &str, executors: u32) -> ApplicationId {
        let spec = ApplicationSpec {
            name: name.into(),
            user: "ana".into(),
            deploy_mode: DeployMode::Client,
            resource: "report.sql".into(),
            artifact: String::new(),
            conf: [("s3.secret".to_owned(), "conf-secret".to_owned())].into(),
            output: OutputFormat::Table,
            driver: Resources::new(0, 512),
            executor: Resources::new(1, 1024),
            executors: ExecutorCount::Exactly(executors),
            supervise: false,
        };
        let token = Secret::new(TOKEN);
        match self.apply(Command::SubmitApplication {
            spec,
            token,
            key: String::new(),
            ticket: 0,
            at_ms: self.now_ms,
        }) {
            Outcome::Submitted { id } => id,
            other => panic!("{other:?}"),
        }
    }

    /// Grants what the scheduler would, and says that it runs.
    fn grant(&mut self) {
        for command in schedule(&self.state, self.now_ms) {
            let process = match &command {
                Command::GrantExecutor { application, number, .. } => {
                    let application = application.clone();
                    ProcessId::Executor(firesteel_common::ExecutorId { application, number: *number })
                }
                other => panic!("{other:?}"),
            };
            self.apply(command);
            let address = "127.0.0.1:4000".into();
            self.apply(Command::ProcessStarted { process, address, at_ms: self.now_ms });
        }
    }

    fn progress(&self, id: &ApplicationId, tasks: u32) {
        let task = |index| TaskProgress {
            index,
            state: if index == 0 { TaskState::Succeeded } else { TaskState::Running }.into(),
            executor: 1,
            started_ms: self.now_ms,
            ended_ms: if index == 0 { self.now_ms + 1500 } else { 0 },
            attempts: 1,
        };
        let job = JobProgress {
            id: 3,
            description: format!("SELECT {HOSTILE}"),
            state: TaskState::Running.into(),
            started_ms: self.now_ms,
            stages: vec![StageProgress {
                id: 2,
                description: format!("Scan {HOSTILE}"),
                tasks: (0..tasks).map(task).collect(),
                task_count: tasks,
                ..Default::default()
            }],
            rows: 12_345,
            error: HOSTILE.into(),
            restarts: 1,
            ..Default::default()
        };
        self.soft.set_progress(id, Progress { jobs: vec![job], at_ms: self.now_ms });
    }

    fn router(&self) -> Router {
        let published = Published {
            state: Arc::new(self.state.clone()),
            epoch: Epoch(4),
            leader: self.leader,
            applied: self.index,
            committed: self.index + self.lag,
            leader_id: self.leader_id,
            member_id: 7,
        };
        router(WebContext {
            published: watch::channel(published).1,
            members: watch::channel(Arc::new(self.members.clone())).1,
            soft: self.soft.clone(),
            master_url: MasterUrl::new("127.0.0.1".to_owned(), 7077),
            ui_url: "http://127.0.0.1:8080".to_owned(),
            hosts: AllowedHosts::new("127.0.0.1", []),
            started_ms: self.now_ms,
        })
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.router().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(request(Method::GET, path, "127.0.0.1:8080")).await
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    #[track_caller]
    fn has(&self, texts: &[&str]) {
        for text in texts {
            assert!(self.body.contains(text), "{text:?} is missing in\n{}", self.body);
        }
    }
    #[track_caller]
    fn has_not(&self, texts: &[&str]) {
        for text in texts {
            assert!(!self.body.contains(text), "{text:?} is in\n{}", self.body);
        }
    }
}

fn request(method: Method, path: &str, host: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).header(header::HOST, host).body(Body::empty()).unwrap()
}

const REFRESH: &str = r#"http-equiv="refresh""#;

#[tokio::test]
async fn an_empty_cluster_says_how_to_begin() {
    let page = Cluster::new().get("/").await;
    assert_eq!(page.status, StatusCode::OK);
    page.has(&[
        "scripts/start-worker.sh firesteel://127.0.0.1:7077",
        "submit --master firesteel://127.0.0.1:7077",
        "No worker is alive",
        "leader",
    ]);
    page.has_not(&[REFRESH, "<table"]);
}

#[tokio::test]
async fn the_overview_shows_workers_and_applications() {
    let mut cluster = Cluster::new();
    cluster.worker("one", 4, 4096);
    let page = cluster.get("/").await;
    page.has(&["Ready", "submit --master"]);
    page.has_not(&[REFRESH, "scripts/start-worker.sh"]);

    let running = cluster.submit("daily report", 3);
    cluster.grant();
    let waiting = cluster.submit("too big", 9);
    cluster.grant();
    let waiting_too = cluster.submit("behind it", 1);
    let page = cluster.get("/").await;
    page.has(&[
        REFRESH,
        "host-one:7079",
        "just now",
        "3 / 3",
        "1 / 9",
        "ana",
        &format!(r#"href="/app/{running}""#),
        &format!(r#"href="/app/{waiting}""#),
        "daily report",
        "Waiting, 1st in queue",
        "4 / 4",
        "4 GiB",
    ]);
    page.has(&[waiting_too.as_str(), "#1"]);
    page.has_not(&["Ready", TOKEN, "conf-secret", "style=", "<script"]);
}

#[tokio::test]
async fn finished_applications_stay_and_stop_the_reloading() {
    let mut cluster = Cluster::new();
    cluster.worker("one", 4, 4096);
    let id = cluster.submit("fails", 1);
    cluster.grant();
    let message = "report.sql:3:7: no such table\nhint: check the name".to_owned();
    let at_ms = cluster.now_ms + 2500;
    cluster.apply(Command::FinishApplication { application: id.clone(), success: false, message, at_ms });
    let page = cluster.get("/").await;
    page.has(&["Finished applications", "failed", "report.sql:3:7: no such table", "2.5 s"]);
    page.has_not(&[REFRESH, "hint: check", "Active applications"]);
    let page = cluster.get(&format!("/app/{id}")).await;
    page.has(&["How it ended", "hint: check the name"]);
    page.has_not(&[REFRESH]);
}

#[tokio::test]
async fn an_application_page_shows_why_executors_jobs_and_tasks() {
    let mut cluster = Cluster::new();
    cluster.worker("one", 2, 4096);
    let id = cluster.submit("wants more", 5);
    cluster.grant();
    let executor = ProcessId::Executor(firesteel_common::ExecutorId {
        application: id.clone(),
        number: *cluster.state.application(&id).unwrap().executors.keys().next().unwrap(),
    });
    cluster.apply(Command::ProcessEnded {
        process: executor,
        state: firesteel_common::ExecutorState::Failed,
        end: ProcessEnd::Signaled { signal: 9 },
        at_ms: cluster.now_ms + 1000,
    });
    cluster.grant();
    let path = format!("/app/{id}");
    cluster.get(&path).await.has(&["The driver has not reported yet"]);
    cluster.progress(&id, 450);
    let page = cluster.get(&path).await;
    assert_eq!(page.status, StatusCode::OK);
    page.has(&[
        REFRESH,
        "Why it waits",
        "of 5",
        "SIGKILL",
        "host-one",
        "12,345 rows",
        "started again once",
        "1 done, 449 running",
        &format!("{path}?job=3&amp;stage=2#stage-3-2"),
    ]);
    page.has_not(&["hide tasks", "tasks 1 to"]);

    let open = cluster.get(&format!("{path}?job=3&stage=2")).await;
    open.has(&["hide tasks", "tasks 1 to 200 of 450", "1.5 s", "page=1"]);
    let last = cluster.get(&format!("{path}?job=3&stage=2&page=99")).await;
    last.has(&["tasks 401 to 450 of 450", "page=1"]);
    last.has_not(&["after →"]);
    let odd = cluster.get(&format!("{path}?job=x")).await;
    assert_eq!(odd.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn hostile_text_is_inert_everywhere() {
    let mut cluster = Cluster::new();
    cluster.worker("one", 2, 4096);
    let id = cluster.submit(HOSTILE, 1);
    cluster.grant();
    cluster.progress(&id, 2);
    let at_ms = cluster.now_ms;
    for path in ["/".to_owned(), format!("/app/{id}"), format!("/app/{id}?job=3&stage=2")] {
        let page = cluster.get(&path).await;
        page.has(&["&lt;script&gt;alert(1)&lt;/script&gt;&quot;"]);
        page.has_not(&["<script", "alert(1)</"]);
        let policy = page.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    }
    let message = HOSTILE.to_owned();
    cluster.apply(Command::FinishApplication { application: id.clone(), success: false, message, at_ms });
    for path in ["/".to_owned(), format!("/app/{id}")] {
        cluster.get(&path).await.has_not(&["<script"]);
    }
    for path in ["/app/%3Cscript%3Ealert(1)", "/%3Cscript%3E"] {
        let page = cluster.get(path).await;
        assert_eq!(page.status, StatusCode::NOT_FOUND);
        page.has_not(&["<script"]);
    }
}

#[tokio::test]
async fn ids_may_be_shortened_and_unknown_ones_are_not_found() {
    let mut cluster = Cluster::new();
    let id = cluster.submit("a", 1);
    let short = id.as_str().rsplit('-').next().unwrap();
    let redirect = cluster.get(&format!("/app/{short}")).await;
    assert_eq!(redirect.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(redirect.headers[header::LOCATION], format!("/app/{id}").as_str());
    for (path, text) in [("/app/app-0", "No such application"), ("/elsewhere", "No such page")] {
        let page = cluster.get(path).await;
        assert_eq!(page.status, StatusCode::NOT_FOUND, "{path}");
        page.has(&[text, r#"<a href="/">"#]);
        assert!(page.headers.contains_key(header::CONTENT_SECURITY_POLICY));
    }
}

#[tokio::test]
async fn forged_hosts_and_writes_are_refused() {
    let mut cluster = Cluster::new();
    let id = cluster.submit("private", 1);
    for path in ["/", "/json/", "/metrics", "/healthz", &format!("/app/{id}")] {
        let answer = cluster.ask(request(Method::GET, path, "evil.example:8080")).await;
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST, "{path}");
        answer.has(&["http://127.0.0.1:8080"]);
        answer.has_not(&["private"]);
        for method in [Method::POST, Method::DELETE, Method::PUT, Method::OPTIONS] {
            let answer = cluster.ask(request(method, path, "localhost:8080")).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
    let none = Request::builder().uri("/").body(Body::empty()).unwrap();
    assert_eq!(cluster.ask(none).await.status, StatusCode::BAD_REQUEST);
    let absolute = request(Method::GET, "http://evil.example/", "127.0.0.1");
    assert_eq!(cluster.ask(absolute).await.status, StatusCode::MISDIRECTED_REQUEST);
    let mut twice = request(Method::GET, "/", "127.0.0.1");
    twice.headers_mut().append(header::HOST, "evil.example".parse().unwrap());
    assert_eq!(cluster.ask(twice).await.status, StatusCode::BAD_REQUEST);
    let head = cluster.ask(request(Method::HEAD, "/", "localhost")).await;
    assert_eq!((head.status, head.body.as_str()), (StatusCode::OK, ""));
}

#[tokio::test]
async fn every_answer_is_guarded_and_assets_are_cached() {
    let cluster = Cluster::new();
    for path in ["/", "/json/", "/metrics", "/healthz", "/readyz", "/nothing"] {
        let headers = cluster.get(path).await.headers;
        assert_eq!(headers[header::CONTENT_SECURITY_POLICY], CONTENT_SECURITY_POLICY, "{path}");
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
        assert_eq!(headers[header::CACHE_CONTROL], "no-store");
    }
    cluster.get("/").await.has(&[assets::style_url(), assets::icon_url()]);
    for (url, content_type) in [(assets::style_url(), "text/css"), (assets::icon_url(), "image/svg+xml")] {
        let asset = cluster.get(url).await;
        assert_eq!(asset.status, StatusCode::OK);
        assert!(asset.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with(content_type));
        assert!(asset.headers[header::CACHE_CONTROL].to_str().unwrap().contains("immutable"));
        // A page renders without the internet.
        for outside in ["@import", "url(", "//fonts", "https:"] {
            assert!(!asset.body.contains(outside), "{outside} in {url}");
        }
    }
    let missing = cluster.get("/assets/style-00000000.css").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(missing.headers[header::CACHE_CONTROL], "no-store");
}

/// Field names and JSON types of the Spark master's document.
#[tokio::test]
async fn the_json_has_sparks_shape() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker("one", 4, 4096);
    let app = cluster.submit("t.py", 2);
    cluster.grant();
    let killed = cluster.submit("k", 1);
    let at_ms = cluster.now_ms + 10;
    cluster.apply(Command::KillApplication { application: killed.clone(), by: "ana".into(), at_ms });
    let answer = cluster.get("/json/").await;
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
    answer.has_not(&[TOKEN, "conf-secret"]);
    let json: Value = serde_json::from_str(&answer.body).unwrap();

    let reference: Value = serde_json::from_str(
        r#"{"url":"","workers":[{"id":"","host":"","port":0,"webuiaddress":"","cores":0,"coresused":0,"coresfree":0,
        "memory":0,"memoryused":0,"memoryfree":0,"resources":{},"resourcesused":{},"resourcesfree":{},"state":"",
        "lastheartbeat":0}],"aliveworkers":0,"cores":0,"coresused":0,"memory":0,"memoryused":0,"resources":[{}],
        "resourcesused":[{}],"activeapps":[{"id":"","starttime":0,"name":"","cores":0,"user":"","memoryperexecutor":0,
        "memoryperslave":0,"resourcesperexecutor":[],"resourcesperslave":[],"submitdate":"","state":"","duration":0}],
        "completedapps":[],"activedrivers":[],"completeddrivers":[],"status":""}"#,
    )
    .unwrap();
    fn same_shape(ours: &Value, theirs: &Value, at: &str) {
        match (ours, theirs) {
            (Value::Object(a), Value::Object(b)) => {
                assert!(a.keys().eq(b.keys()), "{at}: {:?} and {:?}", a.keys(), b.keys());
                a.iter().for_each(|(key, value)| same_shape(value, &b[key], &format!("{at}.{key}")));
            }
            (Value::Array(a), Value::Array(b)) => {
                let model = b.first();
                a.iter().for_each(|value| {
                    if let Some(model) = model {
                        same_shape(value, model, at);
                    }
                });
            }
            (Value::Number(a), Value::Number(_)) => assert!(a.is_u64(), "{at}"),
            (a, b) => assert_eq!(std::mem::discriminant(a), std::mem::discriminant(b), "{at}"),
        }
    }
    same_shape(&json, &reference, "");
    assert_eq!(json["url"], "firesteel://127.0.0.1:7077");
    assert_eq!(json["status"], "ALIVE");
    assert_eq!(json["workers"][0]["id"], worker.as_str());
    assert_eq!(json["workers"][0]["state"], "ALIVE");
    assert!(json["workers"][0]["lastheartbeat"].as_u64().unwrap() > cluster.now_ms);
    let totals =
        ["aliveworkers", "cores", "coresused", "memory", "memoryused"].map(|k| json[k].as_u64().unwrap());
    assert_eq!(totals, [1, 4, 2, 4096, 2048]);
    assert_eq!(json["activeapps"][0]["id"], app.as_str());
    assert_eq!(json["activeapps"][0]["state"], "RUNNING");
    assert_eq!(json["completedapps"][0]["id"], killed.as_str());
    assert_eq!(json["completedapps"][0]["duration"], 10);
}

/// Every line is a comment or `name{labels} number`, every sample has HELP and TYPE before it, none comes twice.
#[tokio::test]
async fn the_metrics_parse() {
    let mut cluster = Cluster::new();
    cluster.worker("one", 4, 4096);
    cluster.submit(HOSTILE, 2);
    cluster.grant();
    let answer = cluster.get("/metrics").await;
    assert!(answer.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let mut described = std::collections::BTreeSet::new();
    let mut samples = std::collections::BTreeMap::new();
    for line in answer.body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(!text.is_empty() && described.insert(name.to_owned()), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(described.contains(name) && matches!(kind, "gauge" | "counter"), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(described.contains(name), "{line}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{line}"
            );
            let value: f64 = value.parse().unwrap();
            assert_eq!(samples.insert(series.to_owned(), value), None, "{line}");
        }
    }
    let expect = [
        (r#"firesteel_workers{status="alive"}"#, 1.0),
        (r#"firesteel_workers{status="dead"}"#, 0.0),
        ("firesteel_cluster_cores", 4.0),
        ("firesteel_cluster_cores_used", 2.0),
        ("firesteel_cluster_memory_bytes", 4_294_967_296.0),
        ("firesteel_cluster_memory_used_bytes", 2_147_483_648.0),
        (r#"firesteel_applications{state="running"}"#, 1.0),
        (r#"firesteel_applications{state="killed"}"#, 0.0),
        (r#"firesteel_executors{state="running"}"#, 2.0),
        ("firesteel_raft_term", 4.0),
        ("firesteel_raft_is_leader", 1.0),
        ("firesteel_raft_applied_index", cluster.index as f64),
        (concat!(r#"firesteel_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#), 1.0),
    ];
    for (series, value) in expect {
        assert_eq!(samples.get(series), Some(&value), "{series}");
    }
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    assert!(samples["process_start_time_seconds"] > 1.7e9);
    answer.has_not(&["app-", "script"]);
}

#[tokio::test]
async fn readiness_needs_a_leader_and_an_up_to_date_state() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.get("/healthz").await.status, StatusCode::OK);
    assert_eq!(cluster.get("/readyz").await.status, StatusCode::OK);
    let cases: [(Option<u64>, bool, u64, bool); 5] = [
        (None, false, 0, false),
        (Some(7), false, 0, false),
        (Some(7), true, 1, false),
        (Some(8), false, 3, false),
        (Some(8), false, 0, true),
    ];
    for (leader_id, leader, lag, ready) in cases {
        (cluster.leader_id, cluster.leader, cluster.lag) = (leader_id, leader, lag);
        let expected = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        assert_eq!(cluster.get("/readyz").await.status, expected, "{leader_id:?} {leader} {lag}");
        assert_eq!(cluster.get("/healthz").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_master_that_does_not_lead_says_so() {
    let mut cluster = Cluster::new();
    (cluster.leader_id, cluster.leader) = (Some(8), false);
    cluster.get("/").await.has(&["This master follows", "follower"]);
    let status = |body: &str| serde_json::from_str::<Value>(body).unwrap()["status"].clone();
    assert_eq!(status(&cluster.get("/json").await.body), "STANDBY");
    cluster.leader_id = None;
    cluster.get("/").await.has(&["no leader", "nothing can be submitted"]);
    assert_eq!(status(&cluster.get("/json").await.body), "RECOVERING");
}

#[tokio::test]
async fn the_masters_are_shown_once_there_are_several() {
    let mut cluster = Cluster::new();
    cluster.get("/").await.has_not(&["Behind"]);
    for id in [7, 8, 9] {
        cluster.apply(Command::PutMember {
            id,
            raft_address: format!("h{id}:7078"),
            client_address: format!("h{id}:7077"),
            ui_url: format!("http://h{id}:8080"),
            version: "0.1.0".into(),
            feature_level: 1,
            non_voter: false,
            at_ms: cluster.now_ms,
        });
    }
    let heard = |matched| PeerView { matched, last_contact: Some(Instant::now()), snapshotting: false };
    cluster.members = MembersView {
        term: 4,
        leader_id: Some(7),
        member_id: 7,
        leading: true,
        voters: [7, 8, 9].into(),
        committed: 100,
        last_index: 100,
        peers: [(8, heard(90)), (9, PeerView::default())].into(),
        quorum: true,
        ..MembersView::default()
    };
    let page = cluster.get("/").await;
    page.has(&["Masters", "http://h8:8080", "silent", ">10<", "No master may be lost now"]);
    cluster
        .get("/metrics")
        .await
        .has(&["firesteel_raft_member_lag_entries{member=\"8\"} 10", "firesteel_raft_voters 3"]);

    // Seen from a follower, with a way to the leader.
    cluster.leader = false;
    cluster.leader_id = Some(8);
    cluster.members =
        MembersView { leading: false, leader_id: Some(8), peers: Default::default(), ..cluster.members };
    cluster.get("/").await.has(&["This master follows", "href=\"http://h8:8080\"", "the leader knows"]);
    cluster.members.quorum = false;
    cluster.get("/").await.has(&["nothing can be submitted"]);
}
