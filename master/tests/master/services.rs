//! The services of a master in this process, on any free port, with a state of its own.

use crate::harness::{self, FakeWorker, Master, client_spec, cluster_spec};
use firesteel_proto::v1;
use std::time::Duration;
use tonic::Code;
use v1::{ApplicationState, ExecutorState};

#[tokio::test]
async fn an_application_is_placed_launched_reported_and_finished() {
    let master = Master::start().await;
    let mut worker = FakeWorker::attach(&master, "worker-1", 1).await.unwrap();
    assert_eq!(worker.next().await.processes, [], "the first assignment comes at once");

    let mut spec = client_spec(2);
    spec.conf.insert("aws.secret_access_key".into(), "hunter2".into());
    let submitted = master.submit(spec).await.unwrap();
    let id = submitted.application_id.clone();
    assert!(submitted.ui_url.starts_with("http://127.0.0.1:") && submitted.ui_url.ends_with(&id));
    assert_eq!(submitted.token.len(), 64);
    let mut driver = master.driver(&submitted).await.unwrap();

    let assignment = worker.until(|a| a.processes.len() == 2).await;
    assert!(assignment.epoch > 0 && assignment.heartbeat_ms > 0);
    let launch = &assignment.processes[0];
    assert_eq!(launch.token, submitted.token);
    assert_eq!(launch.spec, None, "an executor needs no specification");
    assert!(launch.grant_index > 0);
    assert_eq!(launch.conf["aws.secret_access_key"], "hunter2", "the application itself needs it");

    let mut watch = master.watch(&id).await.unwrap();
    let running = master.next(&mut watch).await;
    assert_eq!(running.state(), ApplicationState::Running);
    assert_eq!(running.executors.len(), 2);
    assert_eq!(running.spec.as_ref().unwrap().conf["aws.secret_access_key"], "***", "others do not");

    worker
        .report(&[(&id, "executor-0", ExecutorState::Running), (&id, "executor-1", ExecutorState::Running)])
        .await;
    let update = driver
        .until(|u| u.executors.len() == 2 && u.executors.iter().all(|e| e.state() == ExecutorState::Running))
        .await;
    assert_eq!((update.executors.len(), update.executor_target), (2, 2));
    assert_eq!(update.executors[0].address, "127.0.0.1:4000");
    assert_eq!(update.executors[0].host, "127.0.0.1");
    assert_eq!(update.waiting_reason, "");

    driver.progress(v1::Progress { at_ms: 42, ..Default::default() }).await;
    let status = master.until(&mut watch, |s| s.progress.is_some()).await;
    assert_eq!(status.progress.unwrap().at_ms, 42);

    // One executor crashes: another takes its place, under a new number.
    worker.report_end(&id, "executor-0", v1::process_end::Kind::Signal(9)).await;
    let update = driver.until(|u| u.executors.len() == 3).await;
    assert_eq!(update.executors[0].message, "was killed by signal 9 (SIGKILL)");
    assert_eq!(update.executors[2].number, 2);
    worker.until(|a| a.processes.iter().any(|p| p.process.as_ref().unwrap().name == "executor-2")).await;

    master.finish(&submitted, true).await.unwrap();
    master.finish(&submitted, true).await.expect("saying it twice is harmless");
    let end = master.until(&mut watch, |s| s.state() == ApplicationState::Finished).await;
    assert!(end.ended_ms >= end.started_ms && end.started_ms >= end.submitted_ms);
    assert_eq!(end.progress.unwrap().at_ms, 42, "the last picture stays");
    assert!(watch.message().await.unwrap().is_none(), "a watch ends after the final state");
    assert!(driver.until(|u| u.stop).await.stop_reason.contains("FINISHED"));
    worker.until(|a| a.processes.is_empty()).await;
    let listed = master.list().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].progress, None);
    master.stop().await;
}

#[tokio::test]
async fn a_running_application_goes_on_across_a_restart_of_the_master() {
    let master = Master::start().await;
    let mut worker = FakeWorker::attach(&master, "worker-1", 7).await.unwrap();
    let submitted = master.submit(client_spec(1)).await.unwrap();
    let id = submitted.application_id.clone();
    let _driver = master.driver(&submitted).await.unwrap();
    let before = worker.until(|a| a.processes.len() == 1).await;
    worker.report(&[(&id, "executor-0", ExecutorState::Running)]).await;
    let mut watch = master.watch(&id).await.unwrap();
    master.until(&mut watch, |s| s.executors[0].state() == ExecutorState::Running).await;

    let master = master.restart().await;
    worker.ended().await;
    assert_eq!(watch.message().await.unwrap_err().code(), Code::Unavailable, "streams end with the master");
    let mut watch = master.watch(&id).await.unwrap();
    let status = master.next(&mut watch).await;
    assert_eq!(status.state(), ApplicationState::Running);
    assert_eq!(status.executors[0].state(), ExecutorState::Running);

    let mut worker = FakeWorker::attach(&master, "worker-1", 7).await.unwrap();
    let after = worker.until(|a| a.processes.len() == 1).await;
    assert_eq!(after.processes, before.processes, "the same launch: nothing is started again");
    assert!(after.epoch > before.epoch, "a new leader has a new epoch");
    worker.report(&[(&id, "executor-0", ExecutorState::Running)]).await;
    let mut driver = master.driver(&submitted).await.unwrap();
    let update = driver.until(|u| !u.executors.is_empty()).await;
    assert_eq!(update.executors[0].number, 0);
    master.finish(&submitted, true).await.unwrap();
    worker.until(|a| a.processes.is_empty()).await;
    master.stop().await;
}

#[tokio::test]
async fn a_restarted_worker_has_lost_what_it_ran() {
    let master = Master::start().await;
    let mut worker = FakeWorker::attach(&master, "worker-1", 1).await.unwrap();
    let submitted = master.submit(client_spec(1)).await.unwrap();
    let _driver = master.driver(&submitted).await.unwrap();
    worker.until(|a| a.processes.len() == 1).await;
    drop(worker);
    let mut worker = FakeWorker::attach(&master, "worker-1", 2).await.unwrap();
    let assignment = worker.until(|a| !a.processes.is_empty()).await;
    assert_eq!(assignment.processes[0].process.as_ref().unwrap().name, "executor-1");
    let status = master.status(&submitted.application_id).await;
    assert_eq!(status.executors[0].message, "its worker worker-1 was restarted");
    master.stop().await;
}

#[tokio::test]
async fn a_second_worker_with_the_same_id_is_refused_while_the_first_lives() {
    let master = Master::start().await;
    let mut first = FakeWorker::attach(&master, "worker-1", 1).await.unwrap();
    let beats = tokio::spawn({
        let reports = first.reports();
        async move { while reports.report(&[]).await {} }
    });
    let error = FakeWorker::attach(&master, "worker-1", 2).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains("duplicate worker") && error.message().contains("hint: "), "{error}");
    first.next().await;
    // The same life reconnects: the new stream takes the old one's place.
    let _again = FakeWorker::attach(&master, "worker-1", 1).await.unwrap();
    first.ended().await;
    beats.abort();
    master.stop().await;
}

#[tokio::test]
async fn a_silent_worker_is_dead_and_its_next_heartbeat_brings_it_back() {
    let master = Master::start_with(&["--worker-timeout-ms", "300"]).await;
    let mut worker = FakeWorker::attach(&master, "worker-1", 1).await.unwrap();
    let submitted = master.submit(client_spec(1)).await.unwrap();
    let _driver = master.driver(&submitted).await.unwrap();
    worker.until(|a| a.processes.len() == 1).await;
    let mut watch = master.watch(&submitted.application_id).await.unwrap();
    let lost = master.until(&mut watch, |s| s.executors[0].state() == ExecutorState::Lost).await;
    assert_eq!(lost.executors[0].message, "its worker worker-1 was lost");
    worker.until(|a| a.processes.is_empty()).await;
    // Its report of the lost process changes nothing; that it speaks does.
    worker.report(&[(&submitted.application_id, "executor-0", ExecutorState::Running)]).await;
    let assignment = worker.until(|a| !a.processes.is_empty()).await;
    assert_eq!(assignment.processes[0].process.as_ref().unwrap().name, "executor-1");
    master.stop().await;
}

#[tokio::test]
async fn a_worker_that_leaves_is_gone_at_once() {
    let master = Master::start().await;
    let mut worker = FakeWorker::attach(&master, "worker-1", 1).await.unwrap();
    let submitted = master.submit(client_spec(1)).await.unwrap();
    worker.until(|a| a.processes.len() == 1).await;
    worker.leave().await;
    let mut watch = master.watch(&submitted.application_id).await.unwrap();
    let lost = master.until(&mut watch, |s| s.executors[0].state() == ExecutorState::Lost).await;
    assert_eq!(lost.executors[0].message, "its worker worker-1 was stopped");
    master.stop().await;
}

#[tokio::test]
async fn a_client_mode_application_fails_when_its_driver_stays_away() {
    let master = Master::start_with(&["--driver-timeout-ms", "200"]).await;
    let submitted = master.submit(client_spec(1)).await.unwrap();
    let mut watch = master.watch(&submitted.application_id).await.unwrap();
    let waiting = master.next(&mut watch).await;
    assert_eq!(waiting.state(), ApplicationState::Waiting);
    assert_eq!(waiting.queue_position, 1);
    assert!(waiting.message.contains("No worker has registered"), "{}", waiting.message);
    let mut driver = master.driver(&submitted).await.unwrap();
    assert!(driver.until(|_| true).await.waiting_reason.contains("start-worker.sh"));
    drop(driver);
    let end = master.until(&mut watch, |s| s.state() == ApplicationState::Failed).await;
    assert!(end.message.contains("the driver has not been heard of"), "{}", end.message);
    master.stop().await;
}

#[tokio::test]
async fn submit_says_how_its_driver_ended() {
    let master = Master::start().await;
    let submitted = master.submit(client_spec(1)).await.unwrap();
    let report = |token: &str| v1::ReportDriverEndRequest {
        application_id: submitted.application_id.clone(),
        token: token.into(),
        end: Some(v1::ProcessEnd { kind: Some(v1::process_end::Kind::Signal(9)) }),
    };
    let mut client = master.client().await;
    let error = client.report_driver_end(report("guess")).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    client.report_driver_end(report(&submitted.token)).await.unwrap();
    client.report_driver_end(report(&submitted.token)).await.expect("twice is harmless");
    let status = master.status(&submitted.application_id).await;
    assert_eq!(status.state(), ApplicationState::Failed);
    assert_eq!(status.message, "the driver was killed by signal 9 (SIGKILL)");
    master.stop().await;
}

#[tokio::test]
async fn a_driver_proves_itself_with_its_token() {
    let master = Master::start().await;
    let mut submitted = master.submit(client_spec(1)).await.unwrap();
    let right = std::mem::replace(&mut submitted.token, "0".repeat(64));
    assert_eq!(master.driver(&submitted).await.unwrap_err().code(), Code::PermissionDenied);
    let error = master.finish(&submitted, true).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(!error.message().contains(&right));
    submitted.token = right;
    assert!(master.driver(&submitted).await.is_ok());
    master.stop().await;
}

#[tokio::test]
async fn a_kill_stops_driver_and_executors_and_is_final() {
    let master = Master::start().await;
    let mut worker = FakeWorker::attach(&master, "worker-1", 1).await.unwrap();
    let submitted = master.submit(client_spec(1)).await.unwrap();
    let mut driver = master.driver(&submitted).await.unwrap();
    worker.until(|a| a.processes.len() == 1).await;
    let suffix = submitted.application_id.rsplit('-').next().unwrap();
    assert_eq!(master.kill(suffix).await.unwrap(), submitted.application_id);
    assert_eq!(driver.until(|u| u.stop).await.stop_reason, "killed by ana");
    worker.until(|a| a.processes.is_empty()).await;
    let error = master.kill(suffix).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("already ended (KILLED)"), "{error}");
    let error = master.finish(&submitted, true).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "a killed application has not finished");
    master.stop().await;
}

#[tokio::test]
async fn ids_may_be_shortened_but_not_too_much() {
    let master = Master::start().await;
    let one = master.submit(client_spec(1)).await.unwrap().application_id;
    master.submit(client_spec(1)).await.unwrap();
    assert_eq!(master.status("0001").await.application_id, one);
    let unknown = master.watch("app-1999").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("\nhint: submit list"), "{unknown}");
    let ambiguous = master.watch("app-2").await.unwrap_err();
    assert_eq!(ambiguous.code(), Code::InvalidArgument);
    assert!(ambiguous.message().contains(" or "), "{ambiguous}");
    master.stop().await;
}

#[tokio::test]
async fn a_script_is_uploaded_submitted_and_fetched() {
    let master = Master::start().await;
    let script = b"SELECT 1;\n".repeat(60_000);
    let absent = master.submit(cluster_spec(&"a".repeat(64))).await.unwrap_err();
    assert_eq!(absent.code(), Code::FailedPrecondition);
    let sha256 = master.upload(&script).await.unwrap();
    let submitted = master.submit(cluster_spec(&sha256)).await.unwrap();
    assert_eq!(master.artifact(&sha256).await.unwrap(), script);
    assert_eq!(master.artifact(&"b".repeat(64)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(master.artifact("../../etc/passwd").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(master.upload(b"").await.unwrap_err().code(), Code::InvalidArgument);

    let mut worker = FakeWorker::attach(&master, "worker-1", 1).await.unwrap();
    let assignment = worker.until(|a| a.processes.len() == 2).await;
    let driver = &assignment.processes[0];
    assert_eq!(driver.process.as_ref().unwrap().name, "driver-0");
    assert_eq!(driver.spec.as_ref().unwrap().artifact, sha256);
    worker.report_end(&submitted.application_id, "driver-0", v1::process_end::Kind::ExitCode(3)).await;
    worker.until(|a| a.processes.is_empty()).await;
    let status = master.status(&submitted.application_id).await;
    assert_eq!(
        (status.state(), status.message.as_str()),
        (ApplicationState::Failed, "the driver exited with code 3")
    );
    assert_eq!((status.driver.as_str(), status.driver_worker_id.as_str()), ("driver-0", "worker-1"));
    master.stop().await;
}

#[tokio::test]
async fn a_specification_that_makes_no_sense_is_refused() {
    let master = Master::start().await;
    let mut spec = client_spec(1);
    spec.executor = Some(v1::Resources { cores: 0, memory_mib: 1024 });
    let error = master.submit(spec).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("at least one core"), "{error}");
    assert_eq!(master.list().await.len(), 0);
    master.stop().await;
}

#[tokio::test]
async fn a_log_is_relayed_from_the_worker_once_its_process_is_placed() {
    let master = Master::start().await;
    let logs = harness::FakeLogs::serve().await;
    let submitted = master.submit(client_spec(1)).await.unwrap();
    let id = &submitted.application_id;
    let _driver = master.driver(&submitted).await.unwrap();

    let error = master.read_log(id, "executor-0", false).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let error = master.read_log(id, "driver-0", true).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("runs with its submit"), "{error}");

    let following = {
        let (id, mut client) = (id.clone(), master.client().await);
        tokio::spawn(async move { harness::read_log(&mut client, &id, "executor-0", true).await })
    };
    let mut worker = FakeWorker::attach_at(&master, "worker-1", 1, logs.port).await.unwrap();
    worker.until(|a| a.processes.len() == 1).await;
    // The worker has not begun with it; then it has.
    logs.asked().await;
    logs.put("hello from executor-0\n");
    worker.report(&[(id, "executor-0", ExecutorState::Running)]).await;
    let text = tokio::time::timeout(Duration::from_secs(20), following).await.unwrap().unwrap().unwrap();
    assert_eq!(text, "hello from executor-0\n");

    logs.stop().await;
    let error = master.read_log(id, "executor-0", false).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("the log is on worker worker-1"), "{error}");
    master.stop().await;
}

#[tokio::test]
async fn a_stream_must_begin_as_the_protocol_says() {
    let master = Master::start().await;
    let error = harness::attach_without_register(&master).await;
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("must be register"), "{error}");
    master.stop().await;
}

#[tokio::test]
async fn a_port_in_use_and_a_directory_in_use_are_called_that() {
    let master = Master::start().await;
    let error = harness::start_error(&["--port", &master.port().to_string()], None).await;
    assert!(error.contains("the port is in use") && error.contains("--port"), "{error}");
    let error = harness::start_error(&[], Some(master.data_dir())).await;
    assert!(error.contains("another master"), "{error}");
    master.stop().await;
}

/// Workers and addresses of a driver's shuffle hosts.
fn hosts(update: &v1::DriverUpdate) -> Vec<(&str, &str)> {
    update.shuffle_hosts.iter().map(|host| (host.worker_id.as_str(), host.address.as_str())).collect()
}

const ONE: (&str, &str) = ("worker-1", "127.0.0.1:4001");
const TWO: (&str, &str) = ("worker-2", "127.0.0.1:4002");

#[tokio::test]
async fn map_outputs_are_kept_and_found_where_executors_were() {
    let master = Master::start().await;
    let mut one = FakeWorker::attach_at(&master, "worker-1", 1, 4001).await.unwrap();
    let mut two = FakeWorker::attach_at(&master, "worker-2", 1, 4002).await.unwrap();
    assert_eq!(one.next().await.shuffle_tenants, []);
    let submitted = master.submit(client_spec(2)).await.unwrap();
    let mut driver = master.driver(&submitted).await.unwrap();
    let tenant = v1::ShuffleTenant {
        application_id: submitted.application_id.clone(),
        token: submitted.token.clone(),
    };
    for worker in [&mut one, &mut two] {
        let assignment = worker.until(|a| !a.processes.is_empty()).await;
        assert_eq!(assignment.shuffle_tenants, std::slice::from_ref(&tenant), "with the first launch");
    }
    driver.until(|u| hosts(u) == [ONE, TWO]).await;

    // One leaves: its outputs cannot be had; the other runs both executors now.
    two.leave().await;
    driver.until(|u| hosts(u) == [ONE]).await;
    one.until(|a| a.processes.len() == 2).await;
    // It comes back in another life, with its directory.
    let mut two = FakeWorker::attach_at(&master, "worker-2", 2, 4002).await.unwrap();
    let assignment = two.next().await;
    assert_eq!(
        (assignment.processes.len(), assignment.shuffle_tenants.as_slice()),
        (0, std::slice::from_ref(&tenant))
    );
    driver.until(|u| hosts(u) == [ONE, TWO]).await;

    // The next leader knows all this, too.
    let master = master.restart().await;
    let mut two = FakeWorker::attach_at(&master, "worker-2", 2, 4002).await.unwrap();
    assert_eq!(two.next().await.shuffle_tenants, std::slice::from_ref(&tenant));
    let mut driver = master.driver(&submitted).await.unwrap();
    driver.until(|u| hosts(u) == [ONE, TWO]).await;
    // A worker may be found elsewhere after a restart of its own.
    drop(two);
    let mut two = FakeWorker::attach_at(&master, "worker-2", 3, 4003).await.unwrap();
    driver.until(|u| hosts(u) == [ONE, ("worker-2", "127.0.0.1:4003")]).await;
    assert_eq!(two.next().await.shuffle_tenants, [tenant]);

    master.finish(&submitted, true).await.unwrap();
    two.until(|a| a.shuffle_tenants.is_empty()).await;
    assert_eq!(hosts(&driver.until(|u| u.stop).await), []);
    master.stop().await;
}

#[tokio::test]
async fn a_worker_that_was_taken_for_dead_is_a_shuffle_host_again_once_it_speaks() {
    let master = Master::start_with(&["--worker-timeout-ms", "300"]).await;
    let mut one = FakeWorker::attach_at(&master, "worker-1", 1, 4001).await.unwrap();
    let submitted = master.submit(client_spec(1)).await.unwrap();
    let mut driver = master.driver(&submitted).await.unwrap();
    one.until(|a| a.processes.len() == 1).await;
    driver.until(|u| hosts(u) == [ONE]).await;
    driver.until(|u| hosts(u).is_empty()).await;
    let assignment = one.until(|a| a.processes.is_empty()).await;
    assert_eq!(assignment.shuffle_tenants.len(), 1, "it shall keep what it has");
    one.report(&[]).await;
    driver.until(|u| hosts(u) == [ONE]).await;
    master.stop().await;
}
