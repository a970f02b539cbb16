use crate::fake::{Fake, ID};
use crate::program::{Program, command, submit};
use firesteel_proto::v1::{ApplicationSpec, ApplicationState, DeployMode, ExecutorInfo};

async fn running() -> Fake {
    let fake = Fake::start().await;
    fake.run_driver();
    fake.update(|status| {
        status.spec = Some(ApplicationSpec {
            name: "report".into(),
            user: "ana".into(),
            deploy_mode: DeployMode::Cluster.into(),
            ..Default::default()
        });
        status.executors = vec![ExecutorInfo { number: 4, host: "h4".into(), ..Default::default() }];
    });
    fake
}

#[tokio::test(flavor = "multi_thread")]
async fn list_and_status_show_the_application() {
    let fake = running().await;
    let done = submit(&[&"list", &"--master", &fake.url()]).await;
    done.assert(0, &[]);
    assert!(done.text().contains(ID) && done.text().contains("RUNNING") && done.text().contains("report"));
    let done = submit(&[&"--master", &fake.url(), &"status", &"0001"]).await;
    done.assert(0, &[]);
    assert!(done.text().contains("driver-0 on worker-1") && done.text().contains("h4"), "{}", done.text());
    for args in [["list", "-o", "json"], ["list", "-o", "jsonl"]] {
        let done = submit(&[&args[0], &args[1], &args[2], &"--master", &fake.url()]).await;
        let value: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let value = if value.is_array() { &value[0] } else { &value };
        assert_eq!((&value["id"], &value["deploy_mode"]), (&ID.into(), &"cluster".into()));
    }
    submit(&[&"--status", &ID, &"--master", &fake.url()]).await.assert(0, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_names_the_master() {
    let fake = running().await;
    let mut command = command(&[&"list"]);
    command.env("FIRESTEEL_MASTER", fake.url());
    Program::spawn(command).done().await.assert(0, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_application_is_a_usage_error() {
    let fake = running().await;
    for command in ["status", "logs", "kill"] {
        let done = submit(&[&command, &"app-9", &"--master", &fake.url()]).await;
        done.assert(2, &["no application matches \"app-9\"", "hint: `submit list`"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_goes_on_after_one_that_cannot_be_killed() {
    let fake = running().await;
    let done = submit(&[&"kill", &"app-9", &"0001", &"--master", &fake.url()]).await;
    done.assert(2, &["error: cannot kill app-9"]);
    assert_eq!(done.text(), format!("{ID} killed\n"));
    let done = submit(&[&"--kill", &ID, &"--master", &fake.url()]).await;
    done.assert(1, &["has already ended"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_keep_the_two_streams_apart() {
    let fake = running().await;
    fake.print("out\n");
    fake.state.stderr.send_modify(|log| log.data = b"err\n".to_vec());
    for (flag, out, err) in
        [(None, "out\n", "err\n"), (Some("--stdout"), "out\n", ""), (Some("--stderr"), "", "err\n")]
    {
        let mut command = command(&[&"logs", &ID, &"--master", &fake.url()]);
        command.args(flag);
        let done = Program::spawn(command).done().await;
        done.assert(0, &[]);
        assert_eq!((done.text(), done.stderr.as_str()), (out, err), "{flag:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_is_counted_in_lines_however_long_they_are() {
    let fake = running().await;
    let long = "y".repeat(100_000);
    fake.print(format!("first\n{long}\nlast"));
    let tail = async |n: &str| {
        submit(&[&"logs", &ID, &"--stdout", &"--tail", &n, &"--master", &fake.url()]).await.text().to_owned()
    };
    assert_eq!(tail("1").await, "last");
    assert!(tail("2").await == format!("{long}\nlast"));
    assert!(tail("9").await == format!("first\n{long}\nlast"));
}

#[tokio::test(flavor = "multi_thread")]
async fn following_ends_with_the_process_and_survives_a_restart() {
    let mut fake = running().await;
    fake.print("one\ntwo\n");
    let mut program = Program::spawn(command(&[
        &"logs",
        &ID,
        &"-f",
        &"--tail",
        &"1",
        &"--stdout",
        &"--master",
        &fake.url(),
    ]));
    fake.log_readers(2).await;
    fake.die().await;
    program.hear("lost the log").await;
    fake.listen().await;
    fake.print("three\n");
    fake.end(ApplicationState::Finished, "");
    let done = program.done().await;
    done.assert(0, &[]);
    assert_eq!(done.text(), "two\nthree\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn following_waits_for_the_driver_and_not_following_says_so() {
    let fake = Fake::start().await;
    fake.update(|status| status.message = "no worker".into());
    let done = submit(&[&"logs", &ID, &"--master", &fake.url()]).await;
    done.assert(1, &["has no driver yet: no worker", "hint: submit logs"]);
    let program = Program::spawn(command(&[&"logs", &ID, &"-f", &"--stdout", &"--master", &fake.url()]));
    fake.run_driver();
    fake.print("hello\n");
    fake.end(ApplicationState::Finished, "");
    assert_eq!(program.done().await.text(), "hello\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_is_chosen_by_its_number() {
    let fake = running().await;
    fake.print("x\n");
    submit(&[&"logs", &ID, &"--executor", &"4", &"--master", &fake.url()]).await.assert(0, &[]);
    let done = submit(&[&"logs", &ID, &"--executor", &"5", &"--master", &fake.url()]).await;
    done.assert(2, &["has no executor 5", "hint: it has 4"]);
}
