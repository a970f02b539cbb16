//! Flags and environment, parsed into types before anything is opened.

use crate::lease::OnLeaseEnd;
use crate::usage;
use clap::builder::styling::{AnsiColor, Styles};
use clap::parser::ValueSource;
use clap::{CommandFactory, Parser};
use firesteel_common::{MasterUrl, MemorySize, Resources};
use firesteel_proto::channel;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub const DEFAULT_WEBUI_PORT: u16 = 8081;
const ENGINE: &str = "firesteel-engine";
const SUPERVISOR: &str = "firesteel-supervisor";
/// Lines with other names in a properties file are for other programs.
const PROPERTY_PREFIX: &str = "firesteel.worker.";
const PROPERTIES: [&str; 11] = [
    "host",
    "port",
    "webui-port",
    "cores",
    "memory",
    "work-dir",
    "shuffle-quota",
    "shuffle-free-floor",
    "engine",
    "on-lease-end",
    "log-level",
];
const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold());

/// The worker daemon of a Firesteel cluster: offers this machine's cores and memory to the masters and runs the
/// drivers and executors that they place here.
///
/// Precedence: flags, then --properties-file, then the environment, then the defaults.
#[derive(Debug, Parser)]
#[command(name = "firesteel-worker", version, styles = STYLES, max_term_width = 100)]
#[command(after_help = "Example:\n  firesteel-worker firesteel://127.0.0.1:7077 --cores 4 --memory 8g\n\n\
    Exit codes: 0 stopped by a signal, 1 failed, 2 usage, 3 the URL leads to no master.")]
pub struct Args {
    /// The masters: firesteel://HOST:PORT[,HOST:PORT…]
    #[arg(value_name = "MASTER_URL", env = "FIRESTEEL_MASTER")]
    pub master: MasterUrl,

    /// Address to listen on, and for others to reach this worker at
    #[arg(long, env = "FIRESTEEL_WORKER_HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// Port of the worker's own service; 0 takes any free one
    #[arg(long, env = "FIRESTEEL_WORKER_PORT", default_value_t = 0)]
    pub port: u16,

    /// Port of the worker's web page; 0 takes any free one [default: 8081, or any free one if that is taken]
    #[arg(long, env = "FIRESTEEL_WORKER_WEBUI_PORT", value_name = "PORT")]
    pub webui_port: Option<u16>,

    /// Cores to offer [default: all]
    #[arg(short, long, env = "FIRESTEEL_WORKER_CORES", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub cores: Option<u32>,

    /// Memory to offer, like 512m or 8g [default: what the machine has, less 1 GiB]
    #[arg(short, long, env = "FIRESTEEL_WORKER_MEMORY", value_name = "SIZE")]
    pub memory: Option<MemorySize>,

    /// Directory for scratch files, map outputs (shuffle files) and logs; one worker per directory
    #[arg(short = 'd', long, env = "FIRESTEEL_WORKER_DIR", value_name = "DIR", default_value = "./work")]
    pub work_dir: PathBuf,

    /// How much disk the map outputs of one application may take here, like 500g; a task that needs more fails with that
    /// reason [default: 80 % of the disk that --work-dir is on]
    #[arg(long, env = "FIRESTEEL_WORKER_SHUFFLE_QUOTA", value_name = "SIZE")]
    pub shuffle_quota: Option<MemorySize>,

    /// How much of that disk must stay free: map outputs are not written beyond it, so that logs, scratch files and whatever
    /// else is on the disk go on working [default: 1g, or 5 % of the disk if that is less]
    #[arg(long, env = "FIRESTEEL_WORKER_SHUFFLE_FREE_FLOOR", value_name = "SIZE")]
    pub shuffle_free_floor: Option<MemorySize>,

    /// The program that drivers and executors run [default: firesteel-engine beside this program]
    #[arg(long, env = "FIRESTEEL_ENGINE", value_name = "PATH")]
    pub engine: Option<PathBuf>,

    /// What to do when no master has been reached for so long that the masters may start elsewhere what runs here
    #[arg(long, env = "FIRESTEEL_WORKER_ON_LEASE_END", value_name = "POLICY", value_enum, default_value_t)]
    pub on_lease_end: OnLeaseEnd,

    /// A file of `firesteel.worker.NAME value` lines, NAME being the name of a flag
    #[arg(long, env = "FIRESTEEL_WORKER_PROPERTIES_FILE", value_name = "FILE")]
    pub properties_file: Option<PathBuf>,

    /// Write {"worker_id","host","port","ui","pid"} to this file once registered
    #[arg(long, env = "FIRESTEEL_WORKER_READY_FILE", value_name = "PATH")]
    pub ready_file: Option<PathBuf>,

    /// What to log to standard error: error, warn, info, debug, trace, or a filter like info,firesteel_worker=debug
    #[arg(long, env = "FIRESTEEL_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// Allow --host to be an address that other machines can reach, although nothing authenticates them yet
    #[arg(long, env = "FIRESTEEL_INSECURE_BIND", value_parser = clap::builder::FalseyValueParser::new())]
    pub insecure_bind: bool,
}

/// Why the command line, with its properties file, cannot be parsed.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Clap's own message; also how `--help` and `--version` come out.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    #[error("cannot read the properties file {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
}

impl Args {
    /// Parses `argv` (with the program's name), the properties file that it names, and the environment.
    pub fn parse_with_properties(argv: Vec<OsString>) -> Result<Self, ArgsError> {
        let matches = Self::command().try_get_matches_from(&argv)?;
        let Some(path) = matches.get_one::<PathBuf>("properties_file") else {
            return Ok(Self::try_parse_from(argv)?);
        };
        let text =
            std::fs::read_to_string(path).map_err(|source| ArgsError::File { path: path.clone(), source })?;
        let properties = parse_properties(&text).map_err(|(line, reason)| ArgsError::Line {
            path: path.clone(),
            line,
            reason,
        })?;
        // As flags, but only where there is none: above the environment, below the command line.
        let added = properties
            .into_iter()
            .filter(|(name, _)| {
                matches.value_source(&name.replace('-', "_")) != Some(ValueSource::CommandLine)
            })
            .map(|(name, value)| OsString::from(format!("--{name}={value}")));
        let mut argv = argv.into_iter();
        let program = argv.next();
        Ok(Self::try_parse_from(program.into_iter().chain(added).chain(argv))?)
    }
}

/// `NAME VALUE` or `NAME=VALUE` per line, `#` comments. The error is the line's number and what is wrong.
fn parse_properties(text: &str) -> Result<BTreeMap<String, String>, (usize, String)> {
    let mut properties = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let invalid = |reason: String| (index + 1, reason);
        let (name, value) = line
            .split_once(|c: char| c == '=' || c.is_whitespace())
            .ok_or_else(|| invalid("expected NAME VALUE or NAME=VALUE".into()))?;
        let Some(name) = name.strip_prefix(PROPERTY_PREFIX) else { continue };
        if !PROPERTIES.contains(&name) {
            let known = PROPERTIES.join(", ");
            return Err(invalid(format!("{PROPERTY_PREFIX}{name} is not known; known are {known}")));
        }
        let value = value.trim_start_matches(|c: char| c == '=' || c.is_whitespace());
        properties.insert(name.to_owned(), value.to_owned());
    }
    Ok(properties)
}

/// What the daemon runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub masters: MasterUrl,
    pub host: String,
    pub port: u16,
    pub webui_port: WebuiPort,
    pub capacity: Resources,
    pub work_dir: PathBuf,
    /// In bytes; `None`: by the size of the disk.
    pub shuffle_quota: Option<u64>,
    pub shuffle_free_floor: Option<u64>,
    pub engine: PathBuf,
    pub supervisor: PathBuf,
    pub on_lease_end: OnLeaseEnd,
    pub ready_file: Option<PathBuf>,
}

/// Which port the web page takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebuiPort {
    /// Exactly this one (0: any).
    Given(u16),
    /// [`DEFAULT_WEBUI_PORT`], or any free one.
    Default,
}

/// Settings that do not go together or name what is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("--host {0} can be reached from other machines, and nothing authenticates them yet")]
    InsecureBind(String),
    #[error("--host {0} is no address that others could reach this worker at")]
    Unspecified(String),
    #[error("--host {0:?} is not a host name or address")]
    Host(String),
    #[error("there is no {} at {}", .program, .path.display())]
    NoProgram { program: &'static str, path: PathBuf },
    #[error("{} is not a path in UTF-8", .0.display())]
    NotUtf8(PathBuf),
    #[error("--log-level {value:?} is not a log filter: {reason}")]
    LogLevel { value: String, reason: String },
}

impl ConfigError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::InsecureBind(_) => {
                "leave --host at 127.0.0.1, or accept with --insecure-bind that whoever reaches the port can read logs"
            }
            Self::Unspecified(_) | Self::Host(_) => "name one address of this machine",
            Self::NoProgram { .. } => "build the workspace: cargo build --release",
            Self::NotUtf8(_) => "choose another path",
            Self::LogLevel { .. } => "use error, warn, info, debug or trace",
        }
    }
}

impl Config {
    /// `own_directory`: where this program is, and so its siblings.
    pub fn new(args: &Args, own_directory: &Path) -> Result<Self, ConfigError> {
        let host = args.host.trim_matches(['[', ']']).to_owned();
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/@?#,".contains(c)) {
            return Err(ConfigError::Host(host));
        }
        if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
            return Err(ConfigError::Unspecified(host));
        }
        if !channel::is_loopback(&host) && !args.insecure_bind {
            return Err(ConfigError::InsecureBind(host));
        }
        let absolute = |path: PathBuf| {
            let path = std::path::absolute(&path).unwrap_or(path);
            if path.to_str().is_some() { Ok(path) } else { Err(ConfigError::NotUtf8(path)) }
        };
        let supervisor = own_directory.join(SUPERVISOR);
        if !supervisor.is_file() {
            return Err(ConfigError::NoProgram { program: SUPERVISOR, path: supervisor });
        }
        let default = if args.cores.is_some() && args.memory.is_some() {
            Resources::default()
        } else {
            usage::default_capacity()
        };
        Ok(Self {
            masters: args.master.clone(),
            host,
            port: args.port,
            webui_port: args.webui_port.map_or(WebuiPort::Default, WebuiPort::Given),
            capacity: Resources::new(
                args.cores.unwrap_or(default.cores),
                args.memory.map_or(default.memory_mib, MemorySize::mib),
            ),
            work_dir: absolute(args.work_dir.clone())?,
            shuffle_quota: args.shuffle_quota.map(MemorySize::bytes),
            shuffle_free_floor: args.shuffle_free_floor.map(MemorySize::bytes),
            engine: absolute(args.engine.clone().unwrap_or_else(|| own_directory.join(ENGINE)))?,
            supervisor,
            on_lease_end: args.on_lease_end,
            ready_file: args.ready_file.clone().map(absolute).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(more: &[&str]) -> Args {
        let all = ["firesteel-worker", "firesteel://h:1"].iter().chain(more).copied();
        Args::try_parse_from(all).unwrap()
    }
    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(SUPERVISOR), "").unwrap();
        dir
    }

    #[test]
    fn defaults_and_flags() {
        let dir = directory();
        let config = Config::new(&args(&[]), dir.path()).unwrap();
        assert_eq!((config.webui_port, config.port), (WebuiPort::Default, 0));
        assert!(config.capacity.cores > 0 && config.capacity.memory_mib >= 512);
        assert_eq!(config.engine, dir.path().join(ENGINE));
        let more = args(&["-c", "3", "-m", "2g", "--webui-port", "0", "-d", "/w", "--engine", "/e"]);
        let config = Config::new(&more, dir.path()).unwrap();
        assert_eq!(config.capacity, Resources::new(3, 2048));
        assert_eq!(config.webui_port, WebuiPort::Given(0));
        assert_eq!((config.work_dir, config.engine), ("/w".into(), "/e".into()));
        assert_eq!(config.on_lease_end, OnLeaseEnd::Stop);
        assert_eq!((config.shuffle_quota, config.shuffle_free_floor), (None, None));
        let config =
            Config::new(&args(&["--shuffle-quota", "2g", "--shuffle-free-floor", "3m"]), dir.path()).unwrap();
        assert_eq!((config.shuffle_quota, config.shuffle_free_floor), (Some(2 << 30), Some(3 << 20)));
        let config = Config::new(&args(&["--on-lease-end", "keep"]), dir.path()).unwrap();
        assert_eq!(config.on_lease_end, OnLeaseEnd::Keep);
    }

    #[test]
    fn help_says_what_policies_and_defaults_mean() {
        let help = Args::command().render_long_help().to_string();
        for words in [
            "- stop:",
            "- keep:",
            "a supervised driver is killed all the same",
            "[default: 80 % of the disk that --work-dir is on]",
            "[default: 1g, or 5 % of the disk if that is less]",
        ] {
            assert!(help.split_whitespace().collect::<Vec<_>>().join(" ").contains(words), "{help}");
        }
    }

    #[test]
    fn what_does_not_parse_is_a_usage_error() {
        for bad in
            [&["-c", "0"][..], &["-m", "lots"], &["--port", "70000"], &["--bogus"], &["--on-lease-end", "x"]]
        {
            let all = ["w", "firesteel://h:1"].iter().chain(bad).copied();
            assert_eq!(Args::try_parse_from(all).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        assert_eq!(Args::try_parse_from(["w", "http://h:1"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn properties_stand_between_flags_and_defaults() {
        let dir = directory();
        let file = dir.path().join("firesteel.conf");
        std::fs::write(
            &file,
            "# a comment\n\nfiresteel.master.port 1\nfiresteel.worker.cores=3\nfiresteel.worker.memory = 2g\n\
             firesteel.worker.on-lease-end keep\nfiresteel.worker.shuffle-quota 4g\n",
        )
        .unwrap();
        let parse = |more: &[&str]| {
            let argv = ["w", "firesteel://h:1", "--properties-file", file.to_str().unwrap()];
            Args::parse_with_properties(argv.iter().chain(more).map(OsString::from).collect())
        };
        let config = Config::new(&parse(&["-c", "5"]).unwrap(), dir.path()).unwrap();
        assert_eq!(config.capacity, Resources::new(5, 2048));
        assert_eq!(config.shuffle_quota, Some(4 << 30));
        assert_eq!(config.on_lease_end, OnLeaseEnd::Keep);
        for (text, expected) in [
            ("firesteel.worker.cores lots", "--cores"),
            ("firesteel.worker.core 1", "firesteel.conf:1: firesteel.worker.core is not known"),
            ("\nwhat", "firesteel.conf:2: expected NAME VALUE"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = parse(&[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(parse(&[]).unwrap_err().to_string().contains("cannot read the properties file"));
    }

    #[test]
    fn an_open_address_needs_consent() {
        let dir = directory();
        let error = Config::new(&args(&["--host", "10.0.0.1"]), dir.path()).unwrap_err();
        assert!(error.hint().contains("--insecure-bind"), "{error}");
        assert!(Config::new(&args(&["--host", "10.0.0.1", "--insecure-bind"]), dir.path()).is_ok());
        let error = Config::new(&args(&["--host", "0.0.0.0", "--insecure-bind"]), dir.path()).unwrap_err();
        assert_eq!(error, ConfigError::Unspecified("0.0.0.0".into()));
        assert_eq!(Config::new(&args(&["--host", "[::1]"]), dir.path()).unwrap().host, "::1");
        assert!(matches!(Config::new(&args(&["--host", "a b"]), dir.path()), Err(ConfigError::Host(_))));
        std::fs::remove_file(dir.path().join(SUPERVISOR)).unwrap();
        assert!(matches!(Config::new(&args(&[]), dir.path()), Err(ConfigError::NoProgram { .. })));
    }
}
