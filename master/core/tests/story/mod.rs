//! Runs a story and writes down what happens.

use firesteel_common::{
    ApplicationId, ApplicationSpec, DeployMode, ExecutorCount, ExecutorState, MemorySize, OutputFormat,
    ProcessEnd, ProcessId, Resources, Secret, WorkerId, WorkerStatus,
};
use firesteel_master_core::{
    Application, ClusterState, Command, Member, Outcome, Process, apply, desired, feature_level_to_set,
    invariants, schedule, waiting, wake_at_ms,
};
use std::fmt::Write;

const START_MS: u64 = 1_795_247_100_000;

struct Teller {
    state: ClusterState,
    index: u64,
    now_ms: u64,
    applications: Vec<ApplicationId>,
    out: String,
}

/// The story again, with the output of each block as it is now.
pub fn tell(text: &str) -> String {
    let mut teller = Teller {
        state: ClusterState::default(),
        index: 0,
        now_ms: START_MS,
        applications: Vec::new(),
        out: String::new(),
    };
    let mut told = String::new();
    let mut in_output = false;
    for line in text.lines().chain([""]) {
        match line {
            "---" => in_output = true,
            "" => {
                if in_output {
                    told.push_str("---\n");
                    told.push_str(&teller.take_output());
                }
                assert!(
                    teller.out.is_empty(),
                    "a block without --- would be checked for nothing: {}",
                    teller.out
                );
                told.push('\n');
                in_output = false;
            }
            _ if in_output => {}
            command => {
                told.push_str(command);
                told.push('\n');
                if !command.starts_with('#') {
                    teller.command(command);
                }
            }
        }
    }
    format!("{}\n", told.trim_end())
}

impl Teller {
    /// Ids are long; `a1` is the first application.
    fn take_output(&mut self) -> String {
        let mut out = std::mem::take(&mut self.out);
        for (n, id) in self.applications.iter().enumerate() {
            out = out.replace(id.as_str(), &format!("a{}", n + 1));
        }
        out.replace("worker-", "")
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at_ms = self.now_ms;
        match words.as_slice() {
            ["register", id, cores, memory, rest @ ..] => {
                let command = Command::RegisterWorker {
                    id: worker(id),
                    incarnation: option(rest, "inc").map_or(1, |v| v.parse().expect("a number")),
                    host: "127.0.0.1".into(),
                    port: 7079,
                    capacity: Resources::new(cores.parse().expect("cores"), mib(memory)),
                    version: "0.1.0".into(),
                    ui_url: String::new(),
                    at_ms,
                };
                self.apply(command);
            }
            [change @ ("dead" | "alive" | "left"), id] => {
                let id = worker(id);
                let status = match *change {
                    "dead" => WorkerStatus::Dead,
                    "alive" => WorkerStatus::Alive,
                    _ => WorkerStatus::Left,
                };
                let incarnation = self.state.worker(&id).map_or(1, |w| w.incarnation);
                self.apply(Command::SetWorkerStatus { id, incarnation, status, at_ms });
            }
            ["submit", name, mode, rest @ ..] => {
                let spec = spec(name, mode, rest);
                let key = option(rest, "key").unwrap_or_default().to_owned();
                let ticket = option(rest, "ticket").map_or(0, |t| t.parse().expect("an index"));
                self.apply(Command::SubmitApplication { spec, token: Secret::new("t"), key, ticket, at_ms });
            }
            ["schedule"] => loop {
                let plan = schedule(&self.state, self.now_ms);
                if plan.is_empty() {
                    if let Some(wake) = wake_at_ms(&self.state, self.now_ms) {
                        let _ = writeln!(self.out, "look again in {} ms", wake - self.now_ms);
                    }
                    break;
                }
                for command in plan {
                    self.apply(command);
                }
            },
            ["started", process, rest @ ..] => {
                let process = self.process(process);
                let address = rest.first().copied().unwrap_or_default().to_owned();
                self.apply(Command::ProcessStarted { process, address, at_ms });
            }
            ["ended", process, how, what @ ..] => {
                let process = self.process(process);
                let what = what.join(" ");
                let end = match *how {
                    "exit" => ProcessEnd::Exited { code: what.parse().expect("a code") },
                    "signal" => ProcessEnd::Signaled { signal: what.parse().expect("a signal") },
                    _ => ProcessEnd::LaunchFailed { reason: what },
                };
                let state = if end.is_success() { ExecutorState::Exited } else { ExecutorState::Failed };
                self.apply(Command::ProcessEnded { process, state, end, at_ms });
            }
            ["finish", id, how, message @ ..] => {
                let application = self.application(id);
                let message = message.join(" ");
                self.apply(Command::FinishApplication { application, success: *how == "ok", message, at_ms });
            }
            ["kill", id, by] => {
                let application = self.application(id);
                self.apply(Command::KillApplication { application, by: (*by).to_owned(), at_ms });
            }
            ["waiting"] => {
                let explanations = waiting(&self.state);
                for app in self.state.active() {
                    if let Some(explanation) = explanations.get(&app.id) {
                        let _ = writeln!(self.out, "{}: {}", app.id, explanation.text);
                        assert_eq!(explanation.workers.len(), self.state.alive_workers().count());
                    }
                }
            }
            ["state"] => self.print_state(),
            ["desired", id] => {
                for launch in desired(&self.state, &worker(id)) {
                    let _ = writeln!(
                        self.out,
                        "{}: {}, granted at {} for incarnation {}{}",
                        launch.process,
                        launch.resources,
                        launch.grant_index,
                        launch.incarnation,
                        if launch.ends_with_lease { ", ends with the lease" } else { "" }
                    );
                }
            }
            ["member", id, address, rest @ ..] => self.apply(Command::PutMember {
                id: raft_id(id),
                raft_address: (*address).to_owned(),
                client_address: address.replace("raft", "client"),
                ui_url: String::new(),
                version: option(rest, "version").unwrap_or("0.1.0").to_owned(),
                feature_level: option(rest, "level").map_or(1, |v| v.parse().expect("a level")),
                non_voter: rest.contains(&"non-voter"),
                at_ms,
            }),
            [vote @ ("voter" | "non-voter"), id] => {
                let id = raft_id(id);
                self.apply(Command::SetNonVoter { id, non_voter: *vote == "non-voter" });
            }
            ["remove", id] => {
                self.apply(Command::RemoveMember { id: raft_id(id), at_ms });
            }
            ["level", level] => {
                self.apply(Command::SetFeatureLevel { level: level.parse().expect("a level") });
            }
            ["members"] => {
                for member in self.state.members() {
                    let _ = writeln!(self.out, "{}", print_member(member, self.now_ms));
                }
                let _ = write!(self.out, "feature level {}", self.state.feature_level());
                let _ = match feature_level_to_set(&self.state) {
                    Some(next) => writeln!(self.out, ", to be set to {next}"),
                    None => writeln!(self.out),
                };
            }
            ["pass", ms] => self.now_ms += ms.parse::<u64>().expect("milliseconds"),
            _ => panic!("{line:?} is no command of a story"),
        }
    }

    fn apply(&mut self, command: Command) {
        self.index += 1;
        let text = short(&command);
        let outcome = apply(&mut self.state, self.index, command);
        let _ = match &outcome {
            Outcome::Ok => writeln!(self.out, "{text}"),
            Outcome::Submitted { id } if self.applications.contains(id) => {
                writeln!(self.out, "{text} -> {id}, known")
            }
            Outcome::Submitted { id } => {
                self.applications.push(id.clone());
                writeln!(self.out, "{text} -> {id}")
            }
            Outcome::Rejected(why) => writeln!(self.out, "{text} -> rejected: {why}"),
        };
        if let Err(broken) = invariants::check(&self.state) {
            panic!("after {text}: {broken}");
        }
    }

    fn application(&self, text: &str) -> ApplicationId {
        let n: usize = text.strip_prefix('a').and_then(|n| n.parse().ok()).expect("aN");
        self.applications
            .get(n - 1)
            .cloned()
            .unwrap_or_else(|| format!("app-unknown-{n}").parse().expect("an id"))
    }

    fn process(&self, text: &str) -> ProcessId {
        let (app, name) = text.split_once('/').expect("A/P");
        ProcessId::from_name(self.application(app), name).expect("a process name")
    }

    fn print_state(&mut self) {
        let out = &mut self.out;
        for w in self.state.workers() {
            let _ = writeln!(out, "{} {} {} of {} used", w.id, w.status, w.used, w.capacity);
        }
        let mut applications: Vec<_> = self.state.applications().collect();
        applications.sort_by_key(|app| app.sequence);
        for app in applications {
            print_application(out, app);
        }
    }
}

fn print_application(out: &mut String, app: &Application) {
    let _ = write!(out, "{} {} {}", app.id, app.spec.name, app.state);
    let _ = if app.message.is_empty() { writeln!(out) } else { writeln!(out, ": {}", app.message) };
    let drivers = app.drivers.iter().map(|(n, p)| (format!("driver-{n}"), p));
    let executors = app.executors.iter().map(|(n, p)| (format!("executor-{n}"), p));
    for (name, p) in drivers.chain(executors) {
        let Process { state, worker, .. } = &**p;
        let _ = write!(out, "  {name} {state} on {worker}");
        if !p.address.is_empty() {
            let _ = write!(out, " at {}", p.address);
        }
        let _ = if p.message.is_empty() { writeln!(out) } else { writeln!(out, ": {}", p.message) };
    }
}

fn print_member(member: &Member, now_ms: u64) -> String {
    let Member { id, raft_address, client_address, version, feature_level, non_voter, joined_ms, .. } =
        member;
    let votes = if *non_voter { "non-voter" } else { "voter" };
    let joined = now_ms - joined_ms;
    format!(
        "{id:x} {votes} at {raft_address} and {client_address}: {version}, level {feature_level}, joined {joined} ms ago"
    )
}

fn short(command: &Command) -> String {
    match command {
        Command::RegisterWorker { id, incarnation, .. } => format!("register {id} incarnation {incarnation}"),
        Command::SetWorkerStatus { id, status, .. } => format!("{id} is {status}"),
        Command::SubmitApplication { spec, .. } => format!("submit {}", spec.name),
        Command::GrantDriver { application, attempt, worker, .. } => {
            format!("grant {application}/driver-{attempt} on {worker}")
        }
        Command::GrantExecutor { application, number, worker, .. } => {
            format!("grant {application}/executor-{number} on {worker}")
        }
        Command::ProcessStarted { process, .. } => format!("{process} started"),
        Command::ProcessEnded { process, end, .. } => format!("{process} {end}"),
        Command::FinishApplication { application, success, .. } => {
            format!("{application} {}", if *success { "finished" } else { "failed" })
        }
        Command::KillApplication { application, .. } => format!("kill {application}"),
        Command::PutMember { id, raft_address, .. } => format!("member {id:x} at {raft_address}"),
        Command::SetNonVoter { id, non_voter } => {
            format!("member {id:x} is a {}", if *non_voter { "non-voter" } else { "voter" })
        }
        Command::RemoveMember { id, .. } => format!("remove member {id:x}"),
        Command::SetFeatureLevel { level } => format!("feature level {level}"),
    }
}

fn worker(text: &str) -> WorkerId {
    format!("worker-{text}").parse().expect("a worker id")
}

/// Hexadecimal, as it is printed.
fn raft_id(text: &str) -> u64 {
    u64::from_str_radix(text, 16).expect("a raft id")
}

fn mib(text: &str) -> u64 {
    text.parse::<MemorySize>().expect("a memory size").mib()
}

fn option<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn resources(text: &str) -> Resources {
    let (cores, memory) = text.split_once('/').expect("CORES/MEMORY");
    Resources::new(cores.parse().expect("cores"), mib(memory))
}

fn spec(name: &str, mode: &str, rest: &[&str]) -> ApplicationSpec {
    ApplicationSpec {
        name: name.to_owned(),
        user: "ana".into(),
        deploy_mode: if mode == "cluster" { DeployMode::Cluster } else { DeployMode::Client },
        resource: "q.sql".into(),
        artifact: String::new(),
        conf: Default::default(),
        output: OutputFormat::Table,
        driver: option(rest, "driver").map_or(Resources::new(0, 512), resources),
        executor: option(rest, "executor").map_or(Resources::new(1, 1024), resources),
        executors: match option(rest, "total") {
            Some(total) => ExecutorCount::TotalCores(total.parse().expect("cores")),
            None => ExecutorCount::Exactly(option(rest, "n").map_or(2, |n| n.parse().expect("a count"))),
        },
        supervise: rest.contains(&"supervise"),
    }
}
