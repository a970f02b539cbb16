//! Mistakes, and what they are answered with.

use crate::program::{Directory, Program, command, submit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const NOWHERE: &str = "firesteel://127.0.0.1:1";

#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_cannot_run_are_refused_before_anything_is_sent() {
    let directory = Directory::new();
    directory.file("report.sql", "SELECT 1");
    let empty = directory.file("empty.sql", " \n");
    let binary = directory.file("binary.sql", b"SELECT 1;\nSELECT '\xff'");
    let path = |name: &str| directory.path().join(name);
    for (script, message) in [
        (path("reprot.sql"), "reprot.sql does not exist\nhint: did you mean "),
        (path("zzz.sql"), "zzz.sql does not exist\n"),
        (path("no/such/dir.sql"), "does not exist\nhint: the directory"),
        (directory.path().to_owned(), "is a directory, not a SQL script"),
        ("/dev/null".into(), "is not a regular file"),
        (empty, "empty.sql is empty"),
        (binary, "binary.sql:2: not UTF-8 text"),
    ] {
        let done = submit(&[&"--master", &NOWHERE, &script]).await;
        done.assert(2, &["error: ", message]);
        assert!(done.stdout.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_is_far_too_large_is_refused() {
    let directory = Directory::new();
    let script = directory.file("huge.sql", "");
    // Sparse: it takes no space.
    std::fs::File::options().write(true).open(&script).unwrap().set_len((64 << 20) + 1).unwrap();
    submit(&[&"--master", &NOWHERE, &script]).await.assert(2, &["larger than 64 MiB"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_words_are_usage_errors() {
    let directory = Directory::new();
    let script = directory.file("q.sql", "SELECT 1");
    let file = directory.file("p.conf", "spark.executor.memory 2g\nspark.executor.cores many\n");
    submit(&[]).await.assert(2, &["error: no script given"]);
    submit(&[&script]).await.assert(2, &["error: no master given", "FIRESTEEL_MASTER"]);
    submit(&[&"--master", &"h:7077", &script]).await.assert(2, &["is not a master URL"]);
    submit(&[&"--master", &NOWHERE, &script, &"arg"]).await.assert(2, &["takes no arguments"]);
    submit(&[&"--class", &"Main", &script]).await.assert(2, &["there is no JVM"]);
    submit(&[&"--excutor-cores", &"2", &script]).await.assert(2, &["--executor-cores"]);
    submit(&[&"--executor-memory", &"lots", &script]).await.assert(2, &["is not a memory size"]);
    submit(&[&"lst"]).await.assert(2, &["hint: did you mean the command `submit list`?"]);
    let done = submit(&[&"--master", &NOWHERE, &"--properties-file", &file, &script]).await;
    done.assert(2, &["p.conf:2: \"many\""]);
    let done = submit(&[&"--properties-file", &"/no/such.conf", &script]).await;
    done.assert(2, &["cannot read the properties file /no/such.conf"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn help_goes_to_standard_output() {
    let done = submit(&[&"--help"]).await;
    done.assert(0, &[]);
    for word in ["--master", "--num-executors", "list", "kill", "Exit codes"] {
        assert!(done.text().contains(word), "{word}");
    }
    assert!(submit(&[&"--version"]).await.text().starts_with("submit "));
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_that_cannot_be_reached_are_explained() {
    for (master, message) in [
        (NOWHERE, "cannot reach 127.0.0.1:1: connection refused\nhint: is the master running there?"),
        ("firesteel://no-such-host.invalid", "cannot reach no-such-host.invalid:7077: unknown host\nhint: "),
    ] {
        submit(&[&"list", &"--master", &master]).await.assert(3, &[message]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_on_the_port_is_recognised() {
    for answer in ["HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", ""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("firesteel://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                drop(socket.read(&mut [0; 16]).await);
                drop(socket.write_all(answer.as_bytes()).await);
                drop(socket.shutdown().await);
            }
        });
        let done = submit(&[&"list", &"--master", &url]).await;
        server.abort();
        done.assert(3, &["error: ", "8080 is its web page"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn colour_appears_only_where_it_was_asked_for() {
    let has_colour = |stderr: &str| stderr.contains('\x1b');
    assert!(!has_colour(&submit(&[&"list", &"--master", &NOWHERE]).await.stderr));
    assert!(has_colour(&submit(&[&"list", &"--color", &"always", &"--master", &NOWHERE]).await.stderr));
    assert!(!has_colour(&submit(&[&"list", &"--color=never", &"--master", &NOWHERE]).await.stderr));
    // clap's own errors follow the same option.
    assert!(has_colour(&submit(&[&"--color", &"always", &"--nope"]).await.stderr));
    let mut plain = command(&[&"list", &"--master", &NOWHERE]);
    plain.env("NO_COLOR", "1");
    assert!(!has_colour(&Program::spawn(plain).done().await.stderr));
}
