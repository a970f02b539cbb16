use crate::fake::{Fake, ID};
use crate::program::{DEADLINE, Directory, Done, Program, command};
use firesteel_proto::v1::{ApplicationState, process_end};
use rustix::process::{Pid, Signal};
use std::path::Path;

fn start(fake: &Fake, directory: &Directory, engine: &str, flags: &[&str]) -> Program {
    let script = directory.file("q.sql", "SELECT 1");
    let engine = directory.engine(engine);
    let mut command = command(&[&"--master", &fake.url()]);
    command.env("FIRESTEEL_ENGINE", engine).env("TMPDIR", directory.path()).args(flags).arg(script);
    Program::spawn(command)
}

async fn run(fake: &Fake, directory: &Directory, engine: &str, flags: &[&str]) -> Done {
    start(fake, directory, engine, flags).done().await
}

/// No scratch directory stays behind.
fn assert_clean(directory: &Directory) {
    for base in std::fs::read_dir(directory.path()).unwrap().flatten() {
        if base.file_name().to_string_lossy().starts_with("firesteel-submit-") {
            assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0, "scratch directory left behind");
        }
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn pid_in(file: &Path) -> Option<Pid> {
    Pid::from_raw(std::fs::read_to_string(file).ok()?.trim().parse().ok()?)
}

fn is_alive(pid: Pid) -> bool {
    // A zombie that its reaper has not seen yet is dead enough.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_gets_its_launch_and_writes_the_result() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let engine = "tr '\\0' ' ' < /proc/$$/cmdline > $DIR/argv; env > $DIR/env; cat /proc/self/fd/$FD > $DIR/launch
        ls -ld \"$(sed 's/.*scratch_dir\":\"\\([^\"]*\\)\".*/\\1/' $DIR/launch)\" > $DIR/scratch; printf 'a,b\\r\\n1,\\377\\n'";
    let done = run(&fake, &directory, engine, &["-o", "csv", "--conf", "firesteel.store.secret=hush"]).await;
    done.assert(0, &["submitted ", "finished in "]);
    assert_eq!(done.stdout, b"a,b\r\n1,\xff\n");
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let launch: serde_json::Value = serde_json::from_str(&read("launch")).unwrap();
    assert_eq!(launch["application"], ID);
    assert_eq!(launch["token"], "t0ken");
    assert_eq!(launch["master"], fake.url());
    assert_eq!(launch["script"], directory.path().join("q.sql").to_str().unwrap());
    assert_eq!(launch["output"], "Csv");
    assert!(read("scratch").starts_with("drwx------"), "{}", read("scratch"));
    for public in ["argv", "env"] {
        let text = read(public);
        assert!(!text.contains("t0ken") && !text.contains("hush"), "a secret in {public}");
    }
    let seen = fake.state.seen.borrow();
    assert!(seen.uploads.is_empty() && seen.specs[0].artifact.is_empty());
    assert_clean(&directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_masters_word_about_a_failure_counts() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let program = start(&fake, &directory, "echo noise >&2; cat /proc/self/fd/$FD >/dev/null; sleep 60", &[]);
    fake.submitted().await;
    fake.end(ApplicationState::Failed, "q.sql:1:1: bad\nhint: good");
    let done = program.done().await;
    done.assert(1, &["error: q.sql:1:1: bad\nhint: good"]);
    assert!(!done.stderr.contains("noise"), "{}", done.stderr);
    assert_clean(&directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_killed_by_a_signal_is_reported() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let done =
        run(&fake, &directory, "cat /proc/self/fd/$FD >/dev/null; echo last words >&2; kill -9 $$", &[])
            .await;
    done.assert(
        1,
        &["error: the driver was killed by signal 9 (SIGKILL)", "  last words\n", "failed after "],
    );
    assert_eq!(fake.state.seen.borrow().reports, [process_end::Kind::Signal(9)]);
    assert_clean(&directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_gives_up_without_a_word_is_reported() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    run(&fake, &directory, "exit 101", &[]).await.assert(1, &["error: the driver exited with code 101"]);
    assert_eq!(fake.state.seen.borrow().reports, [process_end::Kind::ExitCode(101)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_kills_the_application_and_the_driver() {
    for signal in [Signal::INT, Signal::TERM] {
        let (fake, directory) = (Fake::start().await, Directory::new());
        let engine = "cat /proc/self/fd/$FD >/dev/null; echo $$ > $DIR/pid; exec sleep 60";
        let mut program = start(&fake, &directory, engine, &[]);
        program.hear("submitted").await;
        let pid_file = directory.path().join("pid");
        until("the driver starts", || pid_in(&pid_file).is_some()).await;
        let driver = pid_in(&pid_file).unwrap();
        program.signal(signal);
        program.done().await.assert(130, &["interrupted", "was killed"]);
        assert_eq!(fake.state.seen.borrow().kills, [ID]);
        assert!(!is_alive(driver));
        assert_clean(&directory);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_does_not_outlive_a_killed_submit() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let engine = "cat /proc/self/fd/$FD >/dev/null; echo $$ > $DIR/pid; exec sleep 60";
    let mut program = start(&fake, &directory, engine, &[]);
    program.hear("submitted").await;
    let pid_file = directory.path().join("pid");
    until("the driver starts", || pid_in(&pid_file).is_some()).await;
    let driver = pid_in(&pid_file).unwrap();
    assert!(is_alive(driver));
    program.signal(Signal::KILL);
    program.child.wait().await.unwrap();
    until("the driver lives on", || !is_alive(driver)).await;
    // Its directory is removed by the next submission.
    let fake = Fake::start().await;
    run(&fake, &directory, "cat /proc/self/fd/$FD >/dev/null", &[]).await.assert(0, &[]);
    assert_clean(&directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_ends_the_driver() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let engine = "cat /proc/self/fd/$FD >/dev/null; exec sleep 60";
    run(&fake, &directory, engine, &["--timeout", "400ms"]).await.assert(124, &["did not end within 400 ms"]);
    assert_eq!(fake.state.seen.borrow().kills, [ID]);
    assert_clean(&directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_ends_it_quietly() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let engine =
        "cat /proc/self/fd/$FD >/dev/null; trap '' PIPE; while echo line; do :; done 2>/dev/null; exit 1";
    let mut program = start(&fake, &directory, engine, &["-q"]);
    drop(program.stdout.take());
    let done = program.done().await;
    done.assert(141, &[]);
    assert_eq!(done.stderr, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_restarts_does_not_disturb_the_driver() {
    let (mut fake, directory) = (Fake::start().await, Directory::new());
    let engine = "cat /proc/self/fd/$FD >/dev/null; while [ ! -e $DIR/go ]; do sleep 0.05; done; echo done";
    let mut program = start(&fake, &directory, engine, &[]);
    program.hear("submitted").await;
    fake.die().await;
    program.hear("lost the master").await;
    fake.listen().await;
    program.hear("connected to the master again").await;
    directory.file("go", "");
    let done = program.done().await;
    done.assert(0, &["finished in"]);
    assert_eq!(done.text(), "done\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_port_leaves_no_driver_behind() {
    let directory = Directory::new();
    let script = directory.file("q.sql", "SELECT 1");
    let engine =
        directory.engine("echo $$ > $DIR/pid; cat /proc/self/fd/$FD >/dev/null; echo garbage; exec sleep 60");
    let mut command = command(&[&"--master", &"firesteel://127.0.0.1:1", &script]);
    command.env("FIRESTEEL_ENGINE", engine).env("TMPDIR", directory.path());
    let done = Program::spawn(command).done().await;
    done.assert(3, &["error: cannot reach 127.0.0.1:1: connection refused\nhint: "]);
    assert!(done.stdout.is_empty());
    if let Some(driver) = pid_in(&directory.path().join("pid")) {
        until("the driver lives on", || !is_alive(driver)).await;
    }
    assert_clean(&directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_engine_is_explained() {
    let directory = Directory::new();
    let script = directory.file("q.sql", "SELECT 1");
    let mut command = command(&[&"--master", &"firesteel://127.0.0.1:1", &script]);
    command.env("FIRESTEEL_ENGINE", "/no/such/engine");
    Program::spawn(command)
        .done()
        .await
        .assert(2, &["/no/such/engine", "hint: install firesteel-engine beside submit"]);
}
