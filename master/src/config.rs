//! From flags, a properties file and the environment to a checked configuration; no port is bound before it stands.

use crate::cluster::Timing;
use crate::formation::Plan;
use clap::Parser;
use firesteel_common::{DEFAULT_MASTER_PORT, MasterUrl};
use firesteel_proto::channel;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The port of the web page.
pub const DEFAULT_WEBUI_PORT: u16 = 8080;
/// The port on which masters talk to each other.
pub const DEFAULT_RAFT_PORT: u16 = 7078;
/// More masters only make every write wait for more of them.
const MAX_FOUNDERS: u32 = 7;
const PREFIX: &str = "firesteel.master.";

/// A Firesteel master: queues applications, places their drivers and executors on workers, shows them on a web page.
///
/// Precedence: flags, then --properties-file, then the environment, then the defaults.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "firesteel-master", version)]
pub struct Flags {
    /// The address to listen on [default: 127.0.0.1] [env: FIRESTEEL_MASTER_HOST]
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// The port for submit, workers and drivers; 0 = any free port [default: 7077] [env: FIRESTEEL_MASTER_PORT]
    #[arg(short, long, value_name = "PORT")]
    pub port: Option<String>,
    /// The port for other masters; 0 = any free port [default: 7078, or a free one where no other master is named] [env: FIRESTEEL_MASTER_RAFT_PORT]
    #[arg(long, value_name = "PORT")]
    pub raft_port: Option<String>,
    /// Other masters (their ports for masters): join their cluster, or with --bootstrap-expect found one with them.
    /// Only an empty data directory looks at it [env: FIRESTEEL_MASTER_JOIN]
    #[arg(long, value_name = "HOST[:PORT],…")]
    pub join: Option<String>,
    /// Found a cluster together with the masters of --join, as soon as so many (this one among them) are up: 3 survive the
    /// loss of one, 5 of two [env: FIRESTEEL_MASTER_BOOTSTRAP_EXPECT]
    #[arg(long, value_name = "N")]
    pub bootstrap_expect: Option<String>,
    /// Join as a member that receives everything and serves pages but never votes or leads
    #[arg(long, requires = "join", conflicts_with = "bootstrap_expect")]
    pub non_voter: bool,
    /// Disaster recovery, when more than half of the masters are lost for good: make this one, with what it knows, the only
    /// master of a new cluster. What only the lost ones knew is lost. Stop all other masters first and give them empty data
    /// directories before they join again
    #[arg(long, conflicts_with_all = ["join", "bootstrap_expect", "non_voter"])]
    pub force_new_cluster: bool,
    /// The port of the web page; 0 = any free port [default: 8080] [env: FIRESTEEL_MASTER_WEBUI_PORT]
    #[arg(long, value_name = "PORT")]
    pub webui_port: Option<String>,
    /// Where the master keeps its state [default: ~/.local/state/firesteel/master] [env: FIRESTEEL_MASTER_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// A file of `firesteel.master.NAME value` lines, NAME being a flag's name (conf/firesteel.conf of the scripts)
    #[arg(long, value_name = "FILE")]
    pub properties_file: Option<PathBuf>,
    /// Milliseconds of silence after which a worker is dead [default: 15000] [env: FIRESTEEL_MASTER_WORKER_TIMEOUT_MS]
    #[arg(long, value_name = "MS")]
    pub worker_timeout_ms: Option<String>,
    /// Milliseconds after which an application whose client-mode driver is gone fails [default: 30000] [env: FIRESTEEL_MASTER_DRIVER_TIMEOUT_MS]
    #[arg(long, value_name = "MS")]
    pub driver_timeout_ms: Option<String>,
    /// Listen on an address that other machines can reach, although anybody there could then run programs here
    #[arg(long)]
    pub insecure_bind: bool,
    /// Write a JSON file with the URLs and the process id once the ports answer
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// error, warn, info, debug, trace, or a filter in the form of RUST_LOG [default: info] [env: FIRESTEEL_LOG_LEVEL, RUST_LOG]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// The form of the log on standard error: text or json [default: text] [env: FIRESTEEL_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// A configuration that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub host: String,
    /// 0 = any free port.
    pub port: u16,
    /// 0 = any free port. `None`: the default one, and for a master that is alone any other if that is taken.
    pub raft_port: Option<u16>,
    /// How an empty data directory finds its cluster.
    pub plan: Plan,
    pub force_new_cluster: bool,
    /// 0 = any free port.
    pub webui_port: u16,
    pub data_dir: PathBuf,
    pub timing: Timing,
    pub ready_file: Option<PathBuf>,
    pub log_level: String,
    pub log_format: LogFormat,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{origin}: {value:?} is not {expected}")]
    Invalid { origin: String, value: String, expected: &'static str },
    #[error("cannot read the properties file {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: expected NAME VALUE or NAME=VALUE", path.display())]
    Line { path: PathBuf, line: usize },
    #[error("{}: {PREFIX}{name} is not known; known are {}", path.display(), PROPERTIES.join(", "))]
    UnknownProperty { path: PathBuf, name: String },
    #[error(
        "refused to listen on {host}: other machines can reach it, and until masters check who is calling, anybody there \
         could run programs on the workers\nhint: use --host 127.0.0.1, or --insecure-bind on a network that you trust"
    )]
    OpenToTheNetwork { host: String },
    #[error("--bootstrap-expect {expect} needs --join with the {} other masters (this one may be named, too), {given} are given", expect - 1)]
    Founders { expect: u32, given: usize },
    #[error("there is no home directory for the master's state\nhint: give --data-dir")]
    NoHome,
}

const PROPERTIES: &[&str] = &[
    "host",
    "port",
    "raft-port",
    "join",
    "bootstrap-expect",
    "webui-port",
    "data-dir",
    "worker-timeout-ms",
    "driver-timeout-ms",
    "log-level",
    "log-format",
];

/// A setting and where it comes from.
struct Setting {
    value: String,
    origin: String,
}

impl Setting {
    fn parse<T: FromStr>(self, expected: &'static str) -> Result<T, ConfigError> {
        self.value.parse().map_err(|_| ConfigError::Invalid {
            origin: self.origin,
            value: self.value,
            expected,
        })
    }
}

/// Resolves the flags; `environment` looks up a variable.
///
/// # Errors
/// Values that make no sense (with their origin), an unreadable properties file, an address open to the network.
pub fn resolve(flags: Flags, environment: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    let properties = match &flags.properties_file {
        Some(path) => read_properties(path)?,
        None => BTreeMap::new(),
    };
    let pick = |name: &str, flag: Option<String>, variables: &[&str]| -> Option<Setting> {
        if let Some(value) = flag {
            return Some(Setting { value, origin: format!("--{name}") });
        }
        if let Some(value) = properties.get(name) {
            return Some(Setting { value: value.clone(), origin: format!("{PREFIX}{name}") });
        }
        variables.iter().find_map(|variable| {
            let value = environment(variable).filter(|v| !v.is_empty())?;
            Some(Setting { value, origin: (*variable).to_owned() })
        })
    };
    let port = |name: &str, flag: Option<String>, variable: &str, default: u16| match pick(
        name,
        flag,
        &[variable],
    ) {
        Some(setting) => setting.parse("a port (0 to 65535)"),
        None => Ok(default),
    };
    let millis = |name: &str, flag: Option<String>, variable: &str, default: Duration| {
        let Some(setting) = pick(name, flag, &[variable]) else { return Ok(default) };
        let expected = "a number of milliseconds, 100 to 3600000";
        let (value, origin) = (setting.value.clone(), setting.origin.clone());
        match setting.parse::<u64>(expected)? {
            ms @ 100..=3_600_000 => Ok(Duration::from_millis(ms)),
            _ => Err(ConfigError::Invalid { origin, value, expected }),
        }
    };

    let host = match pick("host", flags.host, &["FIRESTEEL_MASTER_HOST"]) {
        None => "127.0.0.1".to_owned(),
        Some(s) if s.value.is_empty() || s.value.contains(['/', '@', ' ', ',']) => {
            return Err(ConfigError::Invalid {
                origin: s.origin,
                value: s.value,
                expected: "a host name or address",
            });
        }
        Some(s) => s.value.trim_matches(['[', ']']).to_owned(),
    };
    if !channel::is_loopback(&host) && !flags.insecure_bind {
        return Err(ConfigError::OpenToTheNetwork { host });
    }
    let defaults = Timing::default();
    let worker_timeout = millis(
        "worker-timeout-ms",
        flags.worker_timeout_ms,
        "FIRESTEEL_MASTER_WORKER_TIMEOUT_MS",
        defaults.worker_timeout,
    )?;
    let timing = Timing {
        // Some beats may be late before their absence means anything.
        heartbeat: defaults.heartbeat.min(worker_timeout / 5),
        worker_timeout,
        driver_timeout: millis(
            "driver-timeout-ms",
            flags.driver_timeout_ms,
            "FIRESTEEL_MASTER_DRIVER_TIMEOUT_MS",
            defaults.driver_timeout,
        )?,
        ..defaults
    };
    let data_dir = match pick("data-dir", flags.data_dir, &["FIRESTEEL_MASTER_DATA_DIR"]) {
        Some(setting) => PathBuf::from(setting.value),
        None => default_data_dir(&environment).ok_or(ConfigError::NoHome)?,
    };
    let log_level = match pick("log-level", flags.log_level, &["FIRESTEEL_LOG_LEVEL", "RUST_LOG"]) {
        None => "info".to_owned(),
        Some(s) if s.value.parse::<tracing_subscriber::EnvFilter>().is_err() => {
            let expected = "a log level: error, warn, info, debug or trace";
            return Err(ConfigError::Invalid { origin: s.origin, value: s.value, expected });
        }
        Some(s) => s.value,
    };
    let log_format = match pick("log-format", flags.log_format, &["FIRESTEEL_LOG_FORMAT"]) {
        None => LogFormat::Text,
        Some(s) => match s.value.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            _ => {
                let expected = "a log format: text or json";
                return Err(ConfigError::Invalid { origin: s.origin, value: s.value, expected });
            }
        },
    };
    let join = match pick("join", flags.join, &["FIRESTEEL_MASTER_JOIN"]) {
        None => Vec::new(),
        Some(setting) => {
            let addresses: Option<Vec<String>> =
                setting.value.split(',').map(|a| raft_address(a.trim())).collect();
            addresses.ok_or(ConfigError::Invalid {
                origin: setting.origin,
                value: setting.value,
                expected: "a list of HOST or HOST:PORT, separated by commas",
            })?
        }
    };
    let expect =
        match pick("bootstrap-expect", flags.bootstrap_expect, &["FIRESTEEL_MASTER_BOOTSTRAP_EXPECT"]) {
            None => 0,
            Some(setting) => {
                let (origin, value) = (setting.origin.clone(), setting.value.clone());
                let expected = "a number of masters, 1 to 7";
                match setting.parse::<u32>(expected)? {
                    // Alone, as without the flag.
                    1 => 0,
                    n if n > 1 && n <= MAX_FOUNDERS => n,
                    _ => return Err(ConfigError::Invalid { origin, value, expected }),
                }
            }
        };
    // Others than exactly the founders in the list could make two clusters of one.
    if expect > 0 && !(expect as usize - 1..=expect as usize).contains(&join.len()) {
        return Err(ConfigError::Founders { expect, given: join.len() });
    }
    let raft_port = match pick("raft-port", flags.raft_port, &["FIRESTEEL_MASTER_RAFT_PORT"]) {
        Some(setting) => Some(setting.parse("a port (0 to 65535)")?),
        None => None,
    };
    Ok(Config {
        raft_port,
        plan: Plan { join, expect, non_voter: flags.non_voter },
        force_new_cluster: flags.force_new_cluster,
        port: port("port", flags.port, "FIRESTEEL_MASTER_PORT", DEFAULT_MASTER_PORT)?,
        webui_port: port("webui-port", flags.webui_port, "FIRESTEEL_MASTER_WEBUI_PORT", DEFAULT_WEBUI_PORT)?,
        host,
        data_dir,
        timing,
        ready_file: flags.ready_file,
        log_level,
        log_format,
    })
}

/// `HOST:PORT`, with the default port for masters where none is given.
fn raft_address(text: &str) -> Option<String> {
    let url = match text.rsplit_once(':') {
        // An IPv6 address in brackets without a port ends with its bracket.
        Some((_, port)) if !port.ends_with(']') => format!("firesteel://{text}"),
        _ => format!("firesteel://{text}:{DEFAULT_RAFT_PORT}"),
    };
    let url: MasterUrl = url.parse().ok()?;
    url.authorities().next().filter(|_| url.addresses().len() == 1)
}

fn default_data_dir(environment: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let absolute = |variable: &str| environment(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("firesteel/master"))
}

/// `firesteel.master.*` of the file; settings of other programs may stand in it, too.
fn read_properties(path: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
    let mut properties = BTreeMap::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        let split = line.split_once(|c: char| c == '=' || c.is_whitespace());
        let Some((name, value)) =
            split.map(|(name, value)| (name, value.trim_matches(|c: char| c == '=' || c.is_whitespace())))
        else {
            return Err(ConfigError::Line { path: path.to_owned(), line: n + 1 });
        };
        if let Some(name) = name.strip_prefix(PREFIX) {
            if !PROPERTIES.contains(&name) {
                return Err(ConfigError::UnknownProperty { path: path.to_owned(), name: name.to_owned() });
            }
            properties.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let flags = Flags::try_parse_from(["firesteel-master"].iter().chain(arguments)).unwrap();
        resolve(flags, |name| {
            let mut all = environment.iter().chain(&[("HOME", "/home/ana")]);
            all.find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_defaults_are_those_a_spark_user_expects_on_loopback() {
        let config = parse(&[], &[]).unwrap();
        assert_eq!((config.host.as_str(), config.port, config.webui_port), ("127.0.0.1", 7077, 8080));
        assert_eq!(config.data_dir, Path::new("/home/ana/.local/state/firesteel/master"));
        assert_eq!(config.timing, Timing::default());
        let config = parse(&[], &[("XDG_STATE_HOME", "/state")]).unwrap();
        assert_eq!(config.data_dir, Path::new("/state/firesteel/master"));
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_environment() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "# shared\nfiresteel.worker.cores 4\nfiresteel.master.port 1\nfiresteel.master.webui-port = 2\n",
        )
        .unwrap();
        let path = file.path().to_str().unwrap();
        let environment = [
            ("FIRESTEEL_MASTER_PORT", "10"),
            ("FIRESTEEL_MASTER_WEBUI_PORT", "20"),
            ("FIRESTEEL_MASTER_DATA_DIR", "/d"),
        ];
        let config = parse(&["--properties-file", path, "--port", "0"], &environment).unwrap();
        assert_eq!((config.port, config.webui_port), (0, 2));
        assert_eq!(config.data_dir, Path::new("/d"));
        assert_eq!(parse(&[], &environment).unwrap().port, 10);
    }

    #[test]
    fn nonsense_is_refused_with_its_origin() {
        let error = |arguments: &[&str], environment: &[(&str, &str)]| {
            parse(arguments, environment).unwrap_err().to_string()
        };
        assert_eq!(error(&["--port", "70777"], &[]), "--port: \"70777\" is not a port (0 to 65535)");
        let message = error(&[], &[("FIRESTEEL_MASTER_WEBUI_PORT", "x")]);
        assert!(message.starts_with("FIRESTEEL_MASTER_WEBUI_PORT"), "{message}");
        assert!(error(&["--worker-timeout-ms", "5"], &[]).contains("100 to 3600000"));
        assert!(error(&["--log-format", "xml"], &[]).contains("text or json"));
        assert!(error(&["--host", "a/b"], &[]).contains("host name"));
        assert!(error(&["--properties-file", "/no/such/file"], &[]).contains("/no/such/file"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        std::fs::write(file.path(), "firesteel.master.prot 1\n").unwrap();
        assert!(error(&["--properties-file", path], &[]).contains("known are host, port"));
        std::fs::write(file.path(), "\nfiresteel.master.port\n").unwrap();
        assert!(error(&["--properties-file", path], &[]).contains(":2: expected"));
    }

    #[test]
    fn founders_are_counted_and_addresses_completed() {
        let three = ["--bootstrap-expect", "3", "--join"];
        let plan = |join: &str| parse(&[&three[..], &[join]].concat(), &[]).map(|c| c.plan);
        let joined = plan("h1, h2:9000").unwrap().join;
        assert_eq!(joined, ["h1:7078", "h2:9000"]);
        assert_eq!(plan("h1,h2,[::1]").unwrap().join[2], "[::1]:7078");
        assert!(plan("h1").unwrap_err().to_string().contains("the 2 other masters"));
        assert!(plan("h1,h2,h3,h4").is_err());
        assert!(plan("h1,/x").unwrap_err().to_string().contains("HOST:PORT"));
        assert!(parse(&["--bootstrap-expect", "9"], &[]).unwrap_err().to_string().contains("1 to 7"));
        assert_eq!(parse(&["--bootstrap-expect", "1"], &[]).unwrap().plan, Plan::default());
        let lone = parse(&["--join", "h1"], &[]).unwrap().plan;
        assert_eq!((lone.join.len(), lone.expect), (1, 0));
    }

    #[test]
    fn an_address_open_to_the_network_needs_a_word_more() {
        let message = parse(&["--host", "0.0.0.0"], &[]).unwrap_err().to_string();
        assert!(message.contains("--insecure-bind") && message.contains("run programs"), "{message}");
        assert_eq!(parse(&["--host", "0.0.0.0", "--insecure-bind"], &[]).unwrap().host, "0.0.0.0");
        assert_eq!(parse(&["--host", "[::1]"], &[]).unwrap().host, "::1");
    }

    #[test]
    fn short_timeouts_have_shorter_heartbeats() {
        let config = parse(&["--worker-timeout-ms", "1000"], &[]).unwrap();
        assert_eq!(config.timing.heartbeat, Duration::from_millis(200));
    }
}
