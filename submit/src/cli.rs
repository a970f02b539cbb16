//! The command line: names and shapes only. What the values mean together is decided in `settings`.

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use firesteel_common::MemorySize;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "\
Exit codes: 0 success, 1 application failed, 2 usage, 3 master unreachable or unauthorised, 4 unschedulable, 5 killed, \
124 timeout, 130 interrupted.

Options must stand before the script. A script that is named like a command needs a path: submit ./list";

const MASTERS_HELP: &str = "\
A new master joins by itself: scripts/start-master.sh --join HOST:7078 (any member's port for masters); it votes as soon \
as it has caught up, unless it was started with --non-voter.

Changes need a leader, so more than half of the voters. When those are lost for good, start one of the rest with \
firesteel-master --force-new-cluster: it goes on alone with what it has, and the others join it anew. Its --help says \
what may be lost.";

/// Submits SQL scripts to a Firesteel cluster and looks after them.
#[derive(Debug, Parser)]
#[command(
    name = "submit",
    version,
    after_help = EXIT_CODES,
    override_usage = "submit [OPTIONS] SCRIPT.sql\n       submit [OPTIONS] list | status ID | logs ID | kill ID… | masters",
    subcommand_help_heading = "Commands",
    disable_help_subcommand = true,
    max_term_width = 110
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub submission: Submission,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Common {
    /// Master URL: firesteel://HOST:PORT[,HOST:PORT…] [env: FIRESTEEL_MASTER]
    #[arg(long, global = true, value_name = "URL")]
    pub master: Option<String>,
    /// key=value (or key value) lines with settings
    #[arg(long, global = true, value_name = "FILE")]
    pub properties_file: Option<PathBuf>,
    /// Say nothing but the result and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show the settings used, and what the driver writes to its standard error
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// When to use colour; NO_COLOR is respected, too
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorWhen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeployModeArg {
    /// The driver runs here, as a child of submit
    Client,
    /// The driver runs under a worker and survives this terminal
    Cluster,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResultFormat {
    Table,
    Csv,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ListFormat {
    #[default]
    Table,
    /// One JSON document
    Json,
    /// One JSON object per line
    Jsonl,
}

/// What only a submission takes.
#[derive(Debug, Args)]
pub struct Submission {
    /// The SQL script to run
    #[arg(value_name = "SCRIPT.sql", trailing_var_arg = true, num_args = 0..)]
    pub words: Vec<OsString>,
    /// Where the driver runs [default: client]
    #[arg(long, value_name = "MODE", hide_possible_values = true)]
    pub deploy_mode: Option<DeployModeArg>,
    /// A name for people [default: the script's file name]
    #[arg(long)]
    pub name: Option<String>,
    /// A setting: firesteel.*, datafusion.*, or a spark.* key that has a flag here; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub conf: Vec<String>,
    /// Memory of the driver: 512m, 2g [default: 512m]
    #[arg(long, value_name = "SIZE")]
    pub driver_memory: Option<MemorySize>,
    /// Cores a cluster-mode driver takes from its worker [default: 0, as a driver coordinates and does no data work]
    #[arg(long, value_name = "N")]
    pub driver_cores: Option<u32>,
    /// Memory of each executor [default: 1g]
    #[arg(long, value_name = "SIZE")]
    pub executor_memory: Option<MemorySize>,
    /// Cores of each executor [default: 1]
    #[arg(long, value_name = "N")]
    pub executor_cores: Option<u32>,
    /// How many executors [default: 2, deliberately not every core of the cluster]
    #[arg(long, value_name = "N", conflicts_with = "total_executor_cores")]
    pub num_executors: Option<u32>,
    /// As many executors as fit in so many cores
    #[arg(long, value_name = "N")]
    pub total_executor_cores: Option<u32>,
    /// Start the driver again when its process dies (cluster mode); as an attempt may be repeated, the result is copied here
    /// only once the application has ended
    #[arg(long)]
    pub supervise: bool,
    /// A name for this submission: given again with the same one, it is the same application and does not run twice
    /// [default: a random one]
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    pub idempotency_key: Option<String>,
    /// Print the application's id and return (cluster mode)
    #[arg(long)]
    pub detach: bool,
    /// Kill the application when it has not ended in this time: 90s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// How results are written to standard output; csv and json are the data alone [default: table]
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ResultFormat>,
    /// Same as `submit kill ID`
    #[arg(long, value_name = "ID", conflicts_with_all = ["status", "words"])]
    pub kill: Option<String>,
    /// Same as `submit status ID`
    #[arg(long, value_name = "ID", conflicts_with = "words")]
    pub status: Option<String>,
    #[arg(long, hide = true)]
    pub class: Option<OsString>,
    #[arg(long, hide = true)]
    pub jars: Option<OsString>,
    #[arg(long, hide = true)]
    pub packages: Option<OsString>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Applications, newest first
    List {
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: ListFormat,
    },
    /// One application: state, executors, jobs
    Status {
        /// The id, or an unambiguous start or end of it
        id: String,
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: ListFormat,
    },
    /// What the driver (or an executor) wrote to its standard output and standard error
    Logs {
        /// The id, or an unambiguous start or end of it
        id: String,
        /// Go on until the process has ended
        #[arg(short, long)]
        follow: bool,
        /// Only the last N lines
        #[arg(long, value_name = "N")]
        tail: Option<u32>,
        /// An executor's log instead of the driver's: its number
        #[arg(long, value_name = "E", value_parser = parse_executor)]
        executor: Option<u32>,
        /// Standard error alone
        #[arg(long, conflicts_with = "stdout")]
        stderr: bool,
        /// Standard output alone
        #[arg(long)]
        stdout: bool,
    },
    /// Kill applications
    Kill {
        /// Ids, or unambiguous starts or ends of them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// The masters of the cluster: who leads, who follows, how far each is
    #[command(after_help = MASTERS_HELP, disable_help_subcommand = true)]
    Masters {
        /// [default: table]
        #[arg(short, long, value_name = "FORMAT")]
        output: Option<ListFormat>,
        #[command(subcommand)]
        action: Option<MastersCommand>,
    },
}

/// What an operator does to the group of masters. Ids may be abbreviated.
#[derive(Debug, Clone, Subcommand)]
pub enum MastersCommand {
    /// Let a non-voter vote
    Add {
        /// The master's id, or an unambiguous start of it
        id: String,
    },
    /// Take a master out of the cluster for good
    Remove {
        /// The master's id, or an unambiguous start of it
        id: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Let another master lead
    Transfer {
        /// The master's id, or an unambiguous start of it [default: whichever is furthest]
        id: Option<String>,
    },
    /// Have the leader write a snapshot now
    Snapshot,
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::List { .. } => "list",
            Self::Status { .. } => "status",
            Self::Logs { .. } => "logs",
            Self::Kill { .. } => "kill",
            Self::Masters { .. } => "masters",
        }
    }
}

/// The names of the commands, for suggestions.
pub const COMMANDS: [&str; 5] = ["list", "status", "logs", "kill", "masters"];

/// Parses the command line; `--kill` and `--status` come back as the commands they stand for.
///
/// # Errors
/// clap's own, which print themselves (help and version are among them).
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let command = Cli::command().color(clap_color(&args));
    let matches = command.clone().try_get_matches_from(args)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Some(sub) = &cli.command {
        // clap lets an option of the submission stand before a command; it would do nothing there.
        let common = ["master", "properties_file", "quiet", "verbose", "color"];
        let stray = matches.ids().map(clap::Id::as_str).find(|id| {
            !common.contains(id)
                && command.get_arguments().any(|arg| arg.get_id() == id)
                && matches.value_source(id) == Some(ValueSource::CommandLine)
        });
        if let Some(id) = stray {
            let message = format!(
                "--{} is an option of a submission; `submit {}` does not take it there",
                id.replace('_', "-"),
                sub.name()
            );
            return Err(command.clone().error(clap::error::ErrorKind::ArgumentConflict, message));
        }
    }
    // Not said to clap as a conflict: that would include the options that every command takes.
    if let Some(Command::Masters { output: Some(_), action: Some(_) }) = &cli.command {
        let message = "--output is for the list of the masters; a change of them has no format";
        return Err(command.clone().error(clap::error::ErrorKind::ArgumentConflict, message));
    }
    if let Some(id) = cli.submission.kill.take() {
        cli.command = Some(Command::Kill { ids: vec![id] });
    } else if let Some(id) = cli.submission.status.take() {
        cli.command = Some(Command::Status { id, output: ListFormat::Table });
    }
    Ok(cli)
}

/// clap colours its own errors before `--color` has been parsed, so the option is looked for by hand.
fn clap_color(args: &[OsString]) -> clap::ColorChoice {
    let mut words = args.iter().map(|word| word.to_string_lossy());
    let mut when = None;
    while let Some(word) = words.next() {
        if let Some(value) = word.strip_prefix("--color=") {
            when = Some(value.to_owned());
        } else if word == "--color" {
            when = words.next().map(|value| value.into_owned());
        }
    }
    match when.as_deref() {
        Some("never") => clap::ColorChoice::Never,
        Some("always") => clap::ColorChoice::Always,
        _ => clap::ColorChoice::Auto,
    }
}

/// `90s`, `10m`, `1h30m`, `500ms`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || "expected a time like 90s, 10m or 1h30m, greater than zero".to_owned();
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let part = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "" | "s" => Some(Duration::from_secs(number)),
            "m" | "min" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            "d" => number.checked_mul(86_400).map(Duration::from_secs),
            _ => None,
        };
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
        rest = after;
    }
    // A hundred years: beyond it, adding to a clock could overflow.
    if total.is_zero() || total > Duration::from_secs(100 * 365 * 86_400) {
        Err(invalid())
    } else {
        Ok(total)
    }
}

/// The bound is the master's.
fn parse_key(text: &str) -> Result<String, String> {
    match text.len() {
        1..=256 => Ok(text.to_owned()),
        _ => Err("expected 1 to 256 bytes".into()),
    }
}

fn parse_executor(text: &str) -> Result<u32, String> {
    text.strip_prefix("executor-")
        .unwrap_or(text)
        .parse()
        .map_err(|_| "expected the number of an executor, like 1".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(line: &str) -> Result<Cli, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_after_the_script_belong_to_the_application() {
        let cli = cli("submit --master m -q x.sql --master other list").unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.common.master.as_deref(), Some("m"));
        assert_eq!(cli.submission.words, ["x.sql", "--master", "other", "list"]);
    }

    #[test]
    fn a_script_named_like_a_command_needs_a_path() {
        assert!(matches!(cli("submit list").unwrap().command, Some(Command::List { .. })));
        assert_eq!(cli("submit ./list").unwrap().submission.words, ["./list"]);
    }

    #[test]
    fn common_options_stand_before_or_after_a_command() {
        for line in ["submit --master m status x", "submit status x --master m"] {
            let cli = cli(line).unwrap();
            assert_eq!(cli.common.master.as_deref(), Some("m"), "{line}");
            assert!(matches!(cli.command, Some(Command::Status { .. })), "{line}");
        }
    }

    #[test]
    fn options_that_would_do_nothing_are_refused() {
        let error = cli("submit --num-executors 3 list").unwrap_err();
        assert!(error.contains("--num-executors is an option of a submission"), "{error}");
        assert!(cli("submit --num-executors 3 --total-executor-cores 3 x.sql").is_err());
        assert!(cli("submit kill").is_err());
        assert!(cli("submit -q -v x.sql").is_err());
    }

    #[test]
    fn spark_spellings_of_kill_and_status_work() {
        assert!(
            matches!(cli("submit --kill a").unwrap().command, Some(Command::Kill { ids }) if ids == ["a"])
        );
        assert!(
            matches!(cli("submit --status a").unwrap().command, Some(Command::Status { id, .. }) if id == "a")
        );
        assert!(cli("submit --status a x.sql").is_err());
    }

    #[test]
    fn masters_are_listed_or_changed() {
        let action = |line: &str| match cli(line).unwrap().command {
            Some(Command::Masters { action, .. }) => action,
            other => panic!("{other:?}"),
        };
        assert!(action("submit masters -o json").is_none());
        assert!(
            matches!(action("submit masters remove ab --yes"), Some(MastersCommand::Remove { id, yes: true }) if id == "ab")
        );
        assert!(matches!(action("submit masters transfer"), Some(MastersCommand::Transfer { id: None })));
        assert!(matches!(action("submit masters --master m -q snapshot"), Some(MastersCommand::Snapshot)));
        assert!(matches!(action("submit --master m masters add a"), Some(MastersCommand::Add { .. })));
        assert!(cli("submit masters -o json snapshot").unwrap_err().contains("--output is for the list"));
        assert!(cli("submit masters add").is_err());
    }

    #[test]
    fn a_key_is_neither_empty_nor_a_novel() {
        let key = |text: &str| parse_key(text).is_ok();
        assert!(key("k") && key(&"k".repeat(256)));
        assert!(!key("") && !key(&"k".repeat(257)));
    }

    #[test]
    fn a_misspelt_option_is_answered_with_the_right_one() {
        let error = cli("submit --excutor-memory 2g x.sql").unwrap_err();
        assert!(error.contains("--executor-memory"), "{error}");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, ms) in
            [("10m", 600_000), ("90s", 90_000), ("5", 5_000), ("1h30m", 5_400_000), ("250ms", 250)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in
            ["", "0", "m", "-1s", "1.5h", "10 m", "3 weeks", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
