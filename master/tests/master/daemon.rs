//! The real binary: how it starts, what it says, how it ends.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn command(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firesteel-master"));
    command
        .env_clear()
        .args(["--webui-port", "0", "--raft-port", "0", "--data-dir"])
        .arg(data_dir)
        .args(arguments)
        .args(if arguments.contains(&"--port") { &[][..] } else { &["--port", "0"] })
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Ends with the test, whatever the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fails(data_dir: &Path, arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, stdout } = command(data_dir, arguments).output().unwrap();
    assert!(stdout.is_empty());
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn it_says_when_it_is_ready_and_stops_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let (data_dir, ready_file) = (dir.path().join("data"), dir.path().join("ready.json"));
    let arguments = ["--ready-file", ready_file.to_str().unwrap()];
    let mut master = Running(command(&data_dir, &arguments).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(master.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["master", url, "ready,", "web", "UI", ui] = words[..] else { panic!("{line:?}") };
    assert!(url.starts_with("firesteel://127.0.0.1:") && ui.starts_with("http://127.0.0.1:"), "{line}");

    let ready: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(ready_file).unwrap()).unwrap();
    assert_eq!((ready["master"].as_str(), ready["ui"].as_str()), (Some(url), Some(ui)));
    assert_eq!(ready["pid"], master.0.id());
    for address in [url.trim_start_matches("firesteel://"), ui.trim_start_matches("http://")] {
        std::net::TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    }

    let (code, message) = fails(&data_dir, &[]);
    assert_eq!(code, 1);
    assert!(message.contains("another master (pid") && message.contains("--data-dir"), "{message}");
    let port = url.rsplit(':').next().unwrap();
    let (code, message) = fails(&dir.path().join("other"), &["--port", port]);
    assert_eq!(code, 1);
    assert!(message.contains("the port is in use") && message.contains("hint: "), "{message}");

    let pid = rustix::process::Pid::from_child(&master.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let begun = Instant::now();
    let status = master.0.wait().unwrap();
    let mut log = String::new();
    master.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(status.success(), "{status}: {log}");
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert!(log.contains("SIGTERM: stopping"), "{log}");
}

#[test]
fn nonsense_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let (code, message) = fails(&data_dir, &["--host", "0.0.0.0"]);
    assert_eq!(code, 2);
    assert!(message.contains("--insecure-bind") && message.contains("hint: "), "{message}");
    let (code, message) = fails(&data_dir, &["--worker-timeout-ms", "soon"]);
    assert_eq!(code, 2);
    assert!(message.contains("--worker-timeout-ms"), "{message}");
    assert!(!data_dir.exists());
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, message) = fails(&file.join("data"), &[]);
    assert_eq!(code, 1);
    assert!(message.contains("file/data") && message.contains("--data-dir"), "{message}");
}
