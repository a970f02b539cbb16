//! The real `firesteel-supervisor` with small shell payloads.

use crate::support::{eventually, is_alive, kill, pids, written};
use firesteel_common::Secret;
use firesteel_worker::supervisor::spec::{End, Report, Spec, command};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const TOKEN: &str = "token-7c1f-secret";

struct Fixture {
    dir: tempfile::TempDir,
    spec: Spec,
}

impl Fixture {
    fn new(script: &str) -> Self {
        Self::with_argv(["/bin/sh", "-c", script])
    }

    fn with_argv<const N: usize>(argv: [&str; N]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let scratch_dir = dir.path().join("work/app-1/executor-1");
        std::fs::create_dir_all(&scratch_dir).unwrap();
        let env = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("OUT", dir.path().to_str().unwrap())];
        let spec = Spec {
            argv: argv.map(str::to_owned).to_vec(),
            env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect::<BTreeMap<_, _>>(),
            stdout: dir.path().join("stdout"),
            stderr: dir.path().join("stderr"),
            lock: dir.path().join("supervisors.lock"),
            scratch_dir,
            launch: Secret::new(format!("{{\"token\":\"{TOKEN}\"}}")),
            ready: false,
            open_files_max: 4096,
            grace_ms: 20_000,
        };
        Self { dir, spec }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self) -> Supervisor {
        self.start_by(Command::new(env!("CARGO_BIN_EXE_firesteel-supervisor")))
    }

    fn start_by(&self, command: Command) -> Supervisor {
        let mut supervisor = Supervisor::spawn(command);
        supervisor.write(&orders(&self.spec));
        supervisor
    }

    fn stdout(&self) -> String {
        std::fs::read_to_string(&self.spec.stdout).unwrap()
    }

    #[track_caller]
    fn assert_no_scratch(&self) {
        assert!(!self.path("work/app-1").exists(), "the scratch directory is still there");
    }
}

fn orders(spec: &Spec) -> Vec<u8> {
    let mut orders = serde_json::to_vec(spec).unwrap();
    orders.push(b'\n');
    orders
}

struct Supervisor {
    child: Child,
    control: Option<ChildStdin>,
    reports: BufReader<ChildStdout>,
}

impl Supervisor {
    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let reports = BufReader::new(child.stdout.take().unwrap());
        Self { control: child.stdin.take(), child, reports }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.control.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// `None` at the end.
    fn report(&mut self) -> Option<Report> {
        let mut line = String::new();
        (self.reports.read_line(&mut line).unwrap() > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    #[track_caller]
    fn started(&mut self) -> u32 {
        match self.report() {
            Some(Report::Started { pid }) => pid,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn ended(&mut self) -> End {
        match self.report() {
            Some(Report::Ended(end)) => end,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn launch_failure(&mut self) -> String {
        match self.report() {
            Some(Report::LaunchFailed { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn close_control(&mut self) {
        self.control = None;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.control = None;
        let _ = self.child.wait();
    }
}

#[test]
fn the_leaders_end_is_told_exactly() {
    for (script, end) in [
        ("exit 0", End::ExitCode(0)),
        ("exit 3", End::ExitCode(3)),
        ("kill -9 $$", End::Signal(9)),
        ("kill -11 $$", End::Signal(11)),
    ] {
        let fixture = Fixture::new(script);
        let mut supervisor = fixture.start();
        let pid = supervisor.started();
        assert_eq!(supervisor.ended(), end, "{script}");
        assert_eq!(supervisor.report(), None);
        assert!(!is_alive(pid));
        fixture.assert_no_scratch();
    }
}

#[test]
fn a_payload_that_cannot_start_is_a_launch_failure_with_its_cause() {
    let check = |change: &dyn Fn(&mut Fixture), expected: &str| {
        let mut fixture = Fixture::new("exit 0");
        change(&mut fixture);
        let mut supervisor = fixture.start();
        let reason = supervisor.launch_failure();
        assert!(reason.contains(expected), "{reason:?} lacks {expected:?}");
        assert_eq!(supervisor.report(), None);
        drop(supervisor);
        fixture.assert_no_scratch();
    };
    let argv0 = |f: &mut Fixture, program: &str| f.spec.argv[0] = program.to_owned();
    check(
        &|f| argv0(f, "/nonexistent/firesteel-engine"),
        "cannot execute /nonexistent/firesteel-engine: No such file or directory",
    );
    check(&|f| argv0(f, "/etc/passwd"), "cannot execute /etc/passwd: Permission denied");
    check(&|f| f.spec.argv.clear(), "command to execute is empty");
    check(
        &|f| f.spec.stdout = "/nonexistent/stdout".into(),
        "cannot open the log file /nonexistent/stdout: No such",
    );
    check(&|f| f.spec.stderr = "/dev/full/x".into(), "Not a directory");
    check(
        &|f| {
            symlink("/etc/passwd", f.path("link")).unwrap();
            f.spec.stdout = f.path("link");
        },
        "cannot open the log file",
    );
}

#[test]
fn an_executor_says_where_it_listens() {
    let mut fixture = Fixture::new("echo 127.0.0.1:4242 >&4; exec 4>&-; exec sleep 1000");
    fixture.spec.ready = true;
    let mut supervisor = fixture.start();
    supervisor.started();
    assert_eq!(supervisor.report(), Some(Report::Ready { address: "127.0.0.1:4242".into() }));
    supervisor.write(&[command::TERMINATE]);
    assert_eq!(supervisor.ended(), End::Signal(15));
    fixture.assert_no_scratch();
}

#[test]
fn commands_that_come_with_the_orders_are_obeyed() {
    let fixture = Fixture::new("exec sleep 1000");
    let mut supervisor = Supervisor::spawn(Command::new(env!("CARGO_BIN_EXE_firesteel-supervisor")));
    let mut orders = orders(&fixture.spec);
    orders.push(command::KILL);
    supervisor.write(&orders);
    supervisor.started();
    assert_eq!(supervisor.ended(), End::Signal(9));
}

/// In every way that a process can leave its parent's group: background, own session, double fork.
const RUNAWAYS: &str = "
    sleep 1000 & echo $! >>$OUT/pids
    setsid sh -c 'echo $$ >>$OUT/pids; exec sleep 1000' &
    (setsid sh -c 'trap \"\" TERM HUP INT; echo $$ >>$OUT/pids; sleep 1000; sleep 1000' &)
    (setsid sh -c '(setsid sh -c \"echo \\$\\$ >>$OUT/pids; exec sleep 1000\" &)' &)
";

#[test]
fn when_the_worker_is_gone_nothing_is_left() {
    let fixture =
        Fixture::new(&format!("{RUNAWAYS} echo $$ >>$OUT/pids; trap '' TERM; while :; do sleep 1000; done"));
    symlink("/", fixture.spec.scratch_dir.join("root")).unwrap();
    let mut supervisor = fixture.start();
    let leader = supervisor.started();
    let pids = pids(&fixture.path("pids"), 5);
    assert!(pids.contains(&leader) && pids.iter().all(|pid| is_alive(*pid)));
    supervisor.close_control();
    supervisor.child.wait().unwrap();
    for pid in pids {
        assert!(!is_alive(pid), "{pid} lives on");
    }
    fixture.assert_no_scratch();
}

#[test]
fn when_the_leader_exits_what_it_forked_is_killed() {
    let fixture =
        Fixture::new(&format!("{RUNAWAYS} while [ $(wc -l <$OUT/pids) -lt 4 ]; do :; done; exit 7"));
    let mut supervisor = fixture.start();
    supervisor.started();
    assert_eq!(supervisor.ended(), End::ExitCode(7));
    for pid in pids(&fixture.path("pids"), 4) {
        assert!(!is_alive(pid), "{pid} lives on");
    }
    fixture.assert_no_scratch();
}

#[test]
fn who_ignores_the_termination_is_killed_after_the_grace() {
    let mut fixture = Fixture::new("trap '' TERM; echo ready; while :; do sleep 1000; done");
    fixture.spec.grace_ms = 200;
    let mut supervisor = fixture.start();
    supervisor.started();
    written(&fixture.spec.stdout);
    supervisor.write(&[command::TERMINATE]);
    assert_eq!(supervisor.ended(), End::Signal(9));
}

#[test]
fn who_obeys_has_time_to_finish() {
    let fixture = Fixture::new("trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done");
    let mut supervisor = fixture.start();
    supervisor.started();
    written(&fixture.spec.stdout);
    supervisor.write(&[command::TERMINATE]);
    assert_eq!(supervisor.ended(), End::ExitCode(5));
    assert_eq!(fixture.stdout(), "ready\nbye\n");
}

#[test]
fn cleaning_up_follows_no_link() {
    let fixture =
        Fixture::new("ln -s $OUT/precious link; mkdir -p a/b; ln -s $OUT a/b/up; chmod 0 a/b a; exit 0");
    std::fs::create_dir(fixture.path("precious")).unwrap();
    std::fs::write(fixture.path("precious/file"), "x").unwrap();
    let mut supervisor = fixture.start();
    supervisor.started();
    assert_eq!(supervisor.ended(), End::ExitCode(0));
    assert_eq!(std::fs::read_to_string(fixture.path("precious/file")).unwrap(), "x");
    fixture.assert_no_scratch();
}

#[test]
fn the_environment_is_exactly_what_was_ordered() {
    let fixture = Fixture::with_argv(["/usr/bin/env"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_firesteel-supervisor"));
    command.env("AWS_SECRET_ACCESS_KEY", "leaked").env("LD_LIBRARY_PATH", "/leaked");
    let mut supervisor = fixture.start_by(command);
    supervisor.started();
    assert_eq!(supervisor.ended(), End::ExitCode(0));
    let output = fixture.stdout();
    let mut names: Vec<_> =
        output.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(names, ["OUT", "PATH"], "{output}");
}

/// A supervisor whose starter leaks descriptors and ignores signals, as shells and nohup do.
fn careless_starter() -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "trap '' TERM INT HUP QUIT; exec 3</dev/null 5</etc/passwd 9</dev/null; exec \"$0\""]);
    command.arg(env!("CARGO_BIN_EXE_firesteel-supervisor"));
    command
}

#[test]
fn no_descriptor_of_anyone_else_reaches_the_payload() {
    for (ready, expected) in
        [(false, ["0", "1", "2", "3", "4"].as_slice()), (true, &["0", "1", "2", "3", "4", "5"])]
    {
        // The last one is the directory that ls itself reads.
        let mut fixture = Fixture::with_argv(["/bin/ls", "/proc/self/fd"]);
        fixture.spec.ready = ready;
        let mut supervisor = fixture.start_by(careless_starter());
        supervisor.started();
        assert_eq!(supervisor.ended(), End::ExitCode(0));
        assert_eq!(fixture.stdout().split_whitespace().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn the_payload_gets_its_isolation() {
    let fixture = Fixture::new(
        "cat /proc/self/status; echo limits $(ulimit -c) $(ulimit -n) $(ulimit -Hn); umask;
         read -r pid name state ppid group session rest </proc/self/stat; echo ids $$ $group $session; pwd",
    );
    let mut supervisor = fixture.start_by(careless_starter());
    let pid = supervisor.started();
    assert_eq!(supervisor.ended(), End::ExitCode(0));
    let output = fixture.stdout();
    let has = |line: &str| assert!(output.lines().any(|l| l == line), "no {line:?} in:\n{output}");
    has("NoNewPrivs:\t1");
    has("SigBlk:\t0000000000000000");
    let ignored = output.lines().find_map(|l| l.strip_prefix("SigIgn:\t")).unwrap();
    // Signals 32 and 33 belong to the C library, which lets nobody set them.
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & !(0b11 << 31), 0, "{ignored}");
    has("limits 0 4096 4096");
    has("0077");
    has(&format!("ids {pid} {pid} {pid}"));
    has(fixture.spec.scratch_dir.to_str().unwrap());
}

#[test]
fn the_token_is_in_no_argument_and_no_environment() {
    let fixture = Fixture::new("cat <&3; echo; exec sleep 1000");
    let mut supervisor = fixture.start();
    let payload = supervisor.started();
    assert_eq!(written(&fixture.spec.stdout), format!("{{\"token\":\"{TOKEN}\"}}\n"));
    for pid in [payload, supervisor.child.id()] {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains(TOKEN), "{file} of {pid}");
        }
    }
    assert!(!format!("{:?}", fixture.spec).contains(TOKEN));
    supervisor.write(&[command::KILL]);
    supervisor.ended();
}

#[test]
fn a_document_larger_than_a_pipe_arrives_whole() {
    let mut fixture = Fixture::new("wc -c <&3");
    fixture.spec.launch = Secret::new("x".repeat(1 << 20));
    let mut supervisor = fixture.start();
    supervisor.started();
    supervisor.ended();
    assert_eq!(fixture.stdout().trim(), "1048576");
}

#[test]
fn the_payload_dies_with_its_supervisor() {
    let fixture = Fixture::new("echo up; exec sleep 1000");
    let mut supervisor = fixture.start();
    let payload = supervisor.started();
    written(&fixture.spec.stdout);
    kill(supervisor.child.id(), Signal::KILL);
    eventually("the payload's death", || (!is_alive(payload)).then_some(()));
}

#[test]
fn orphans_are_reaped_while_the_leader_lives() {
    let fixture = Fixture::new("for i in 1 2 3 4 5 6 7 8 9; do (true & ) ; done; echo done; exec sleep 1000");
    let mut supervisor = fixture.start();
    let leader = supervisor.started();
    written(&fixture.spec.stdout);
    let me = supervisor.child.id().to_string();
    eventually("no zombies", || (children_of(&me) == [leader]).then_some(()));
    supervisor.write(&[command::KILL]);
    supervisor.ended();
}

fn children_of(parent: &str) -> Vec<u32> {
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    processes
        .filter(|pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rfind(')').map_or("", |at| &stat[at + 1..]);
            fields.split_ascii_whitespace().nth(1) == Some(parent)
        })
        .collect()
}

#[test]
fn incomplete_or_broken_orders_start_nothing() {
    let fixture = Fixture::new("exec sleep 1000");
    let command = || Command::new(env!("CARGO_BIN_EXE_firesteel-supervisor"));
    let all = orders(&fixture.spec);
    let mut supervisor = Supervisor::spawn(command());
    supervisor.write(&all[..all.len() - 1]);
    supervisor.close_control();
    assert_eq!(supervisor.report(), None);
    let mut supervisor = Supervisor::spawn(command());
    supervisor.write(b"{\"argv\":[]}\n");
    assert!(supervisor.launch_failure().contains("not valid"));
    // Complete orders, but from a worker that is gone.
    let mut supervisor = Supervisor::spawn(command());
    supervisor.write(&all);
    supervisor.close_control();
    while supervisor.report().is_some() {}
    supervisor.child.wait().unwrap();
    fixture.assert_no_scratch();
}

#[test]
fn nothing_starts_while_a_new_worker_clears_up() {
    let fixture = Fixture::new("exit 0");
    let lock = std::fs::File::create(&fixture.spec.lock).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut supervisor = fixture.start();
    assert!(supervisor.launch_failure().starts_with("cannot lock"));
}
