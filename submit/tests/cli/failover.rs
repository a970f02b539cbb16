//! Several masters: whichever of them leads is found, and none of them is missed when it dies.

use crate::fake::{Fake, ID};
use crate::program::{Directory, Done, Program, command, submit};
use firesteel_proto::v1::{ApplicationSpec, ApplicationState, DeployMode, ExecutorInfo, ExecutorState};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;

/// A follower, and the leader that it names.
async fn two() -> (Fake, Fake) {
    let (follower, leader) = (Fake::start().await, Fake::start().await);
    follower.follow(Some(&leader));
    (follower, leader)
}

/// Both in one URL, as users write it.
fn url(a: &Fake, b: &Fake) -> String {
    format!("{},{}", a.url(), b.url().trim_start_matches("firesteel://"))
}

fn start(url: &str, directory: &Directory, flags: &[&str]) -> Program {
    let script = directory.file("q.sql", "SELECT 1");
    let mut command = command(&[&"--deploy-mode", &"cluster", &"--master", &url]);
    command.args(flags).arg(script);
    Program::spawn(command)
}

fn once(done: &Done, text: &str) {
    assert_eq!(done.stderr.matches(text).count(), 1, "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_finds_the_leader_through_a_follower() {
    let (follower, leader) = two().await;
    leader.run_driver();
    leader.print("hello\n");
    leader.update(|status| {
        let deploy_mode = DeployMode::Cluster.into();
        status.spec = Some(ApplicationSpec { deploy_mode, ..Default::default() });
    });
    for (words, expected) in [
        (&["list"][..], "RUNNING"),
        (&["status", ID], "driver-0 on worker-1"),
        (&["logs", ID, "--stdout"], "hello\n"),
        (&["logs", ID, "--stdout", "--tail", "1"], "hello\n"),
        (&["masters"], "leader*"),
        (&["kill", ID], "killed\n"),
    ] {
        let mut command = command(&[&"--master", &follower.url()]);
        command.args(words);
        let done = Program::spawn(command).done().await;
        done.assert(0, &[]);
        assert!(done.text().contains(expected), "{words:?}: {}", done.text());
        assert_eq!(done.stderr, "", "{words:?}");
    }
    let directory = Directory::new();
    start(&follower.url(), &directory, &["--detach"]).done().await.assert(0, &[]);
    assert_eq!(leader.state.seen.borrow().specs.len(), 1);
    assert!(follower.state.seen.borrow().uploads.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_master_in_the_url_does_not_matter() {
    let (mut dead, leader) = two().await;
    dead.die().await;
    submit(&[&"list", &"--master", &url(&dead, &leader)]).await.assert(0, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_is_waited_for() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    a.follow(None);
    b.follow(None);
    let mut program = Program::spawn(command(&[&"list", &"--master", &url(&a, &b)]));
    program.hear("waiting for a master that leads").await;
    b.lead(5);
    let done = program.done().await;
    done.assert(0, &["an election is under way"]);
    once(&done, "waiting for");
    assert!(done.text().contains(ID));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_a_command_gives_up() {
    let (mut a, b) = two().await;
    a.die().await;
    b.follow(None);
    let began = std::time::Instant::now();
    let done = submit(&[&"-q", &"list", &"--master", &url(&a, &b)]).await;
    done.assert(3, &["error: 127.0.0.1:", "no master leads now", "hint: try again", "connection refused"]);
    assert!(!done.stderr.contains("waiting"), "{}", done.stderr);
    // Not at once, as an election is short.
    assert!(began.elapsed() > std::time::Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_was_not_confirmed_is_said_again_with_the_same_key_and_ticket() {
    let (next, mut leader) = two().await;
    let directory = Directory::new();
    leader.swallow_answers();
    let mut program = start(&url(&next, &leader), &directory, &[]);
    leader.submitted().await;
    next.follow(None);
    leader.die().await;
    program.hear("the master was lost before it confirmed").await;
    assert!(next.state.seen.borrow().uploads.is_empty());
    next.lead(500);
    // It has not got the script, either.
    next.submitted().await;
    next.run_driver();
    next.print("1\n");
    next.end(ApplicationState::Finished, "");
    let done = program.done().await;
    done.assert(0, &["submitted ", "finished in"]);
    once(&done, "trying again …");
    assert_eq!(done.text(), "1\n");
    let (first, second) = (leader.state.seen.borrow(), next.state.seen.borrow());
    assert_eq!((first.keys.len(), second.keys.len()), (1, 1));
    let (key, ticket) = &first.keys[0];
    assert_eq!((key.len(), *ticket), (32, 41));
    assert_eq!(first.keys, second.keys);
    assert_eq!(first.specs, second.specs);
    assert_eq!((first.uploads.len(), second.uploads.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_client_mode_the_driver_starts_once() {
    let (next, mut leader) = two().await;
    let directory = Directory::new();
    leader.swallow_answers();
    let engine = directory.engine("cat /proc/self/fd/$FD >/dev/null; echo run >> $DIR/runs; echo result");
    let script = directory.file("q.sql", "SELECT 1");
    let mut command = command(&[&"--master", &url(&next, &leader), &"--idempotency-key", &"k1", &script]);
    command.env("FIRESTEEL_ENGINE", engine).env("TMPDIR", directory.path());
    let program = Program::spawn(command);
    leader.submitted().await;
    next.lead(500);
    leader.die().await;
    let done = program.done().await;
    done.assert(0, &["trying again …", "finished in"]);
    assert_eq!(done.text(), "result\n");
    assert_eq!(std::fs::read_to_string(directory.path().join("runs")).unwrap(), "run\n");
    assert_eq!(next.state.seen.borrow().keys, [("k1".to_owned(), 41)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hands_over_during_a_submission_names_the_next() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    let directory = Directory::new();
    b.lead(7);
    // It is asked who leads once, and then does not any more.
    a.lose_the_lead_to(&b);
    let program = start(&a.url(), &directory, &["--detach"]);
    b.submitted().await;
    let done = program.done().await;
    done.assert(0, &[]);
    assert_eq!(done.text(), format!("{ID}\n"));
    assert_eq!(b.state.seen.borrow().keys[0].1, 41, "the ticket of the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_submission_has_a_key_of_its_own() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    for _ in 0..2 {
        start(&fake.url(), &directory, &["--detach"]).done().await.assert(0, &[]);
    }
    let seen = fake.state.seen.borrow();
    assert_ne!(seen.keys[0].0, seen.keys[1].0);
    assert!(seen.keys.iter().all(|(key, _)| key.bytes().all(|b| b.is_ascii_hexdigit())));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_keys_are_explained() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let flags = |name: &'static str| ["--name", name, "--idempotency-key", "k1"];
    start(&fake.url(), &directory, &flags("another"))
        .done()
        .await
        .assert(2, &["the key k1 names app-", "hint: a key names one submission"]);
    start(&fake.url(), &directory, &flags("late")).done().await.assert(1, &["is forgotten"]);
    start(&fake.url(), &directory, &["--idempotency-key", ""]).done().await.assert(2, &["1 to 256 bytes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unconfirmed_submission_that_is_interrupted_names_its_key() {
    let (mut fake, directory) = (Fake::start().await, Directory::new());
    fake.swallow_answers();
    let mut program = start(&fake.url(), &directory, &["--idempotency-key", "k1"]);
    fake.submitted().await;
    fake.die().await;
    program.hear("trying again").await;
    program.signal(Signal::INT);
    program
        .done()
        .await
        .assert(130, &["before the submission was confirmed", "--idempotency-key k1 is safe"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_whose_answer_was_lost_has_succeeded() {
    let (next, mut leader) = two().await;
    leader.swallow_answers();
    let program = Program::spawn(command(&[&"kill", &"0001", &"--master", &url(&next, &leader)]));
    leader.wait_for("kill", |seen| !seen.kills.is_empty()).await;
    // What one has committed the other knows.
    next.end(ApplicationState::Killed, "killed by ana");
    next.lead(500);
    leader.die().await;
    let done = program.done().await;
    done.assert(0, &[]);
    assert_eq!(done.text(), format!("{ID} killed\n"));
    // Said for the first time it is an error, and so is it for an application that has ended by itself.
    submit(&[&"kill", &ID, &"--master", &next.url()]).await.assert(1, &["already ended (KILLED)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_that_came_to_the_wrong_master_is_no_excuse_for_a_late_one() {
    let (a, b) = (Fake::start().await, Fake::start().await);
    b.end(ApplicationState::Killed, "killed by bob");
    a.lose_the_lead_to(&b);
    submit(&[&"kill", &ID, &"--master", &a.url()]).await.assert(1, &["already ended (KILLED)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_submit_goes_on_with_the_next_leader() {
    let (next, mut leader) = two().await;
    let directory = Directory::new();
    // Only the follower is named: the other is learned, and then the other way round.
    let mut program = start(&next.url(), &directory, &[]);
    leader.submitted().await;
    for fake in [&next, &leader] {
        fake.run_driver();
        fake.print("first\n");
    }
    let mut stdout = program.stdout.take().unwrap();
    let mut first = [0; 6];
    stdout.read_exact(&mut first).await.unwrap();
    next.follow(None);
    leader.die().await;
    program.hear("lost the master").await;
    next.lead(500);
    program.hear("connected to the master again").await;
    next.log_readers(1).await;
    next.print("second\n");
    next.end(ApplicationState::Finished, "");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    let done = program.done().await;
    done.assert(0, &["finished in"]);
    once(&done, "lost the master");
    once(&done, "connected to the master again");
    assert_eq!((&first, rest.as_str()), (b"first\n", "second\n"));
    assert_eq!(next.state.offsets.lock().unwrap()[..], [6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervised_drivers_result_is_copied_when_the_application_has_ended() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let mut program = start(&fake.url(), &directory, &["--supervise"]);
    fake.submitted().await;
    assert!(fake.state.seen.borrow().specs[0].supervise);
    fake.run_driver();
    fake.print("what the first attempt wrote\n");
    fake.update(|status| {
        let running = ExecutorInfo { state: ExecutorState::Running.into(), ..Default::default() };
        status.executors = vec![running];
    });
    program.hear("running on 1 executor").await;
    fake.update(|status| status.driver = "driver-1".into());
    program.hear("driver-0 died; started again as driver-1").await;
    assert!(fake.state.offsets.lock().unwrap().is_empty(), "copied too early");
    fake.state.stdout.send_modify(|log| log.data = b"the result\n".to_vec());
    fake.end(ApplicationState::Finished, "");
    let done = program.done().await;
    done.assert(0, &["finished in"]);
    assert_eq!(done.text(), "the result\n");
    assert_eq!(fake.state.seen.borrow().logs, ["driver-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn following_goes_on_with_the_driver_that_was_started_again() {
    let fake = Fake::start().await;
    fake.run_driver();
    fake.update(|status| {
        let deploy_mode = DeployMode::Cluster.into();
        status.spec = Some(ApplicationSpec { deploy_mode, supervise: true, ..Default::default() });
    });
    fake.print("line\n");
    let mut program = Program::spawn(command(&[&"logs", &ID, &"-f", &"--stdout", &"--master", &fake.url()]));
    fake.log_readers(1).await;
    // The first one's log never ends, as its machine is gone.
    fake.update(|status| status.driver = "driver-1".into());
    program.hear("driver-0 died; started again as driver-1").await;
    fake.log_readers(2).await;
    fake.end(ApplicationState::Finished, "");
    let done = program.done().await;
    done.assert(0, &[]);
    assert_eq!(done.text(), "line\nline\n");
    assert_eq!(fake.state.seen.borrow().logs, ["driver-0", "driver-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn supervision_is_refused_in_client_mode() {
    let directory = Directory::new();
    let script = directory.file("q.sql", "SELECT 1");
    submit(&[&"--master", &"firesteel://127.0.0.1:1", &"--supervise", &script])
        .await
        .assert(2, &["--supervise needs --deploy-mode cluster"]);
}
