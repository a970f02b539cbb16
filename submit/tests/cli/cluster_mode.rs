use crate::fake::{Fake, ID};
use crate::program::{Directory, Program, command, submit};
use firesteel_proto::v1::{ApplicationState, ExecutorInfo, ExecutorState};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;

/// A cluster-mode submission under way.
async fn start(fake: &Fake, directory: &Directory, flags: &[&str]) -> Program {
    let script = directory.file("q.sql", "SELECT 1");
    let mut command = command(&[&"--deploy-mode", &"cluster", &"--master", &fake.url()]);
    let program = Program::spawn({
        command.args(flags).arg(script);
        command
    });
    fake.submitted().await;
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn the_result_comes_out_byte_for_byte() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let program = start(&fake, &directory, &["-o", "csv", "--num-executors", "3"]).await;
    let bytes: Vec<u8> =
        (0..200_000u32).flat_map(|n| [(n % 256) as u8, b'\n']).chain(*b"no newline").collect();
    fake.run_driver();
    fake.print(&bytes);
    fake.end(ApplicationState::Finished, "");
    let done = program.done().await;
    done.assert(0, &["submitted ", ID, "http://ui/app", "finished in "]);
    assert!(done.stdout == bytes, "{} bytes of {}", done.stdout.len(), bytes.len());
    let seen = fake.state.seen.borrow();
    assert_eq!(seen.uploads, [b"SELECT 1"]);
    let spec = &seen.specs[0];
    assert_eq!((spec.artifact.len(), spec.name.as_str()), (64, "q.sql"));
    assert!(spec.conf.contains_key("firesteel.submit.workingDirectory"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_follows_the_final_state() {
    for (state, message, code, stderr) in [
        (
            ApplicationState::Failed,
            "q.sql:1:8: no column x\nhint: it has y",
            1,
            "error: q.sql:1:8: no column x\nhint: it has y",
        ),
        (ApplicationState::Killed, "killed by ana", 5, "error: killed by ana"),
    ] {
        let (fake, directory) = (Fake::start().await, Directory::new());
        let program = start(&fake, &directory, &[]).await;
        fake.run_driver();
        fake.print("part of the result\n");
        fake.end(state, message);
        let done = program.done().await;
        done.assert(code, &[stderr]);
        assert_eq!(done.text(), "part of the result\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_one_line_per_change_and_quiet_is_silent() {
    for quiet in [false, true] {
        let (fake, directory) = (Fake::start().await, Directory::new());
        let mut program = start(&fake, &directory, if quiet { &["-q"] } else { &[] }).await;
        fake.update(|status| status.message = "needs 4 cores; 2 are free".into());
        if !quiet {
            program.hear("waiting: needs 4 cores; 2 are free\n").await;
        }
        fake.run_driver();
        fake.update(|status| {
            status.message.clear();
            let running = ExecutorInfo { state: ExecutorState::Running.into(), ..Default::default() };
            status.executors = vec![running];
        });
        if !quiet {
            program.hear("running on 1 executor\n").await;
        }
        fake.end(ApplicationState::Finished, "");
        let done = program.done().await;
        done.assert(0, &[]);
        assert_eq!(done.stderr.is_empty(), quiet, "{}", done.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_died_without_a_word_is_quoted() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let program = start(&fake, &directory, &[]).await;
    fake.run_driver();
    let log: String = (1..=50).map(|n| format!("line {n}\n")).collect();
    fake.state.stderr.send_modify(|stderr| stderr.data = log.into_bytes());
    fake.end(ApplicationState::Failed, "the driver was killed by signal 9 (SIGKILL)");
    let done = program.done().await;
    done.assert(
        1,
        &["error: the driver was killed by signal 9 (SIGKILL)", "  line 31\n", "  line 50\n", "logs app-"],
    );
    assert!(!done.stderr.contains("line 30\n"), "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drivers_standard_error_is_shown_on_request() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let program = start(&fake, &directory, &["-v"]).await;
    fake.run_driver();
    fake.state.stderr.send_modify(|stderr| stderr.data = b"the driver speaks\n".to_vec());
    fake.end(ApplicationState::Finished, "");
    let done = program.done().await;
    done.assert(0, &["the driver speaks\n", "executor.memory = 1g (built-in)", "master = firesteel://"]);
    assert!(done.stdout.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn detached_it_prints_the_id_alone() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let done = start(&fake, &directory, &["--detach"]).await.done().await;
    done.assert(0, &[]);
    assert_eq!((done.text(), done.stderr.as_str()), (format!("{ID}\n").as_str(), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_detaches_and_says_how_to_come_back() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let mut program = start(&fake, &directory, &[]).await;
    program.hear("submitted").await;
    program.signal(Signal::INT);
    let done = program.done().await;
    done.assert(130, &["submit status app-", "submit logs app-", "submit kill app-"]);
    assert!(fake.state.seen.borrow().kills.is_empty(), "the application goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_works_while_nobody_reads_the_result() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let mut program = start(&fake, &directory, &[]).await;
    let held = program.stdout.take();
    fake.run_driver();
    // More than a pipe holds.
    fake.print(vec![b'x'; 4 << 20]);
    program.hear("submitted").await;
    fake.log_readers(1).await;
    program.signal(Signal::INT);
    program.done().await.assert(130, &["detached"]);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_ends_it_quietly() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let mut program = start(&fake, &directory, &["-q"]).await;
    fake.run_driver();
    fake.print(vec![b'x'; 4 << 20]);
    let mut first = [0; 10];
    let mut stdout = program.stdout.take().unwrap();
    stdout.read_exact(&mut first).await.unwrap();
    drop(stdout);
    let done = program.done().await;
    done.assert(141, &[]);
    assert_eq!(done.stderr, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_restarts_is_found_again_and_nothing_is_copied_twice() {
    let (mut fake, directory) = (Fake::start().await, Directory::new());
    let mut program = start(&fake, &directory, &[]).await;
    fake.run_driver();
    fake.print("first\n");
    let mut stdout = program.stdout.take().unwrap();
    let mut first = [0; 6];
    stdout.read_exact(&mut first).await.unwrap();
    fake.die().await;
    program.hear("lost the master").await;
    fake.listen().await;
    program.hear("connected to the master again").await;
    fake.log_readers(2).await;
    fake.print("second\n");
    fake.end(ApplicationState::Finished, "");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    program.done().await.assert(0, &["finished in"]);
    assert_eq!((&first, rest.as_str()), (b"first\n", "second\n"));
    assert_eq!(fake.state.offsets.lock().unwrap().last(), Some(&6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_kills_the_application() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let done = start(&fake, &directory, &["--timeout", "300ms"]).await.done().await;
    done.assert(124, &["did not end within 300 ms and was killed"]);
    assert_eq!(fake.state.seen.borrow().kills, [ID]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_holds_while_the_master_is_away() {
    let (mut fake, directory) = (Fake::start().await, Directory::new());
    let mut program = start(&fake, &directory, &["--timeout", "5s"]).await;
    program.hear("submitted").await;
    fake.die().await;
    program.hear("lost the master").await;
    program.done().await.assert(124, &["did not end within 5.0 s; cannot kill", "hint: submit kill"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_killed_while_it_waits_ends_without_a_log() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let program = start(&fake, &directory, &[]).await;
    fake.end(ApplicationState::Killed, "killed by ana");
    program.done().await.assert(5, &["error: killed by ana"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_passed_on() {
    let (fake, directory) = (Fake::start().await, Directory::new());
    let script = directory.file("q.sql", "SELECT 1");
    let done =
        submit(&[&"--master", &fake.url(), &"--deploy-mode=cluster", &"--name", &"refuse", &script]).await;
    done.assert(3, &["error: cannot submit ", "ana may not submit"]);
}
