//! Which value counts: flags, then `--conf`, then the properties file, then the environment, then what is built in.
//!
//! Pure: files and variables have been read before, so that every rule can be tested.

use crate::cli::{Common, DeployModeArg, ResultFormat, Submission};
use crate::exit::Failure;
use firesteel_common::{
    ApplicationSpec, DeployMode, ExecutorCount, MasterUrl, MemorySize, OutputFormat, Resources,
};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

/// A setting and where it was written, in words for an error message ("spark.conf:3").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    pub key: String,
    pub value: String,
    pub origin: String,
}

/// Everything a submission needs to know apart from the script.
#[derive(Debug)]
pub struct Settings {
    pub master: MasterUrl,
    /// `resource`, `artifact` and `user` are still empty.
    pub spec: ApplicationSpec,
    pub detach: bool,
    pub timeout: Option<Duration>,
    /// `spark.*` settings that mean nothing here.
    pub ignored: Vec<String>,
    /// Name, value and origin of each resolved setting, for `--verbose`.
    pub report: Vec<(&'static str, String, String)>,
}

/// Settings that have a flag, in the order of `--verbose`. In `--conf` and files they are written `firesteel.NAME`, or
/// `spark.NAME` as in Spark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Master,
    DeployMode,
    Name,
    DriverMemory,
    DriverCores,
    ExecutorMemory,
    ExecutorCores,
    Executors,
    TotalCores,
    Supervise,
}

impl Key {
    const NAMES: [(Key, &'static str); 10] = [
        (Key::Master, "master"),
        (Key::DeployMode, "submit.deployMode"),
        (Key::Name, "app.name"),
        (Key::DriverMemory, "driver.memory"),
        (Key::DriverCores, "driver.cores"),
        (Key::ExecutorMemory, "executor.memory"),
        (Key::ExecutorCores, "executor.cores"),
        (Key::Executors, "executor.instances"),
        (Key::TotalCores, "cores.max"),
        (Key::Supervise, "driver.supervise"),
    ];

    fn from_setting(setting: &str) -> Option<Key> {
        let name = setting.strip_prefix("firesteel.").or_else(|| setting.strip_prefix("spark."))?;
        Self::NAMES.iter().find(|(_, n)| *n == name).map(|(key, _)| *key)
    }

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(key, _)| *key == self).map_or("", |(_, name)| name)
    }
}

#[derive(Debug, Clone)]
struct Sourced {
    value: String,
    origin: String,
}

type Layer = BTreeMap<Key, Sourced>;

/// One `--conf` argument.
pub fn parse_conf(argument: &str) -> Result<Property, Failure> {
    match argument.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok(Property {
            key: key.trim().to_owned(),
            value: value.trim().to_owned(),
            origin: format!("--conf {}", key.trim()),
        }),
        _ => Err(Failure::usage(format!("--conf {argument:?} is not KEY=VALUE"))),
    }
}

/// A properties file: `key=value` or `key value` per line, `#` comments. `file` names it in messages.
pub fn parse_properties(file: &str, text: &str) -> Result<Vec<Property>, Failure> {
    let mut properties = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        let origin = format!("{file}:{}", number + 1);
        let Some(end) = line.find(|c: char| c == '=' || c.is_whitespace()) else {
            return Err(Failure::usage(format!("{origin}: {line:?} has no value"))
                .hint("write one `key=value` or `key value` per line, comments after #"));
        };
        let (key, rest) = line.split_at(end);
        let rest = rest.trim_start();
        let value = rest.strip_prefix('=').unwrap_or(rest).trim();
        if key.is_empty() {
            return Err(Failure::usage(format!("{origin}: the line has no key")));
        }
        properties.push(Property { key: key.to_owned(), value: value.to_owned(), origin });
    }
    Ok(properties)
}

/// Splits properties into those that have a flag and those that travel to the driver. The last one of a key counts.
fn split(
    properties: &[Property],
    conf: &mut BTreeMap<String, String>,
    ignored: &mut Vec<String>,
) -> Result<Layer, Failure> {
    let mut layer = Layer::new();
    for Property { key, value, origin } in properties {
        if let Some(known) = Key::from_setting(key) {
            layer.insert(known, Sourced { value: value.clone(), origin: origin.clone() });
        } else if key.starts_with("firesteel.") || key.starts_with("datafusion.") {
            conf.insert(key.clone(), value.clone());
        } else if key.starts_with("spark.") {
            // Ignored and not refused: a spark-defaults.conf that is shared with Spark must not make a submission fail.
            ignored.push(key.clone());
        } else {
            return Err(Failure::usage(format!("{origin}: {key:?} is not a setting"))
                .hint("settings start with firesteel. or datafusion.; some of spark. are understood"));
        }
    }
    Ok(layer)
}

fn flag_layer(common: &Common, flags: &Submission) -> Layer {
    let mut layer = Layer::new();
    let mut put = |key, flag: &str, value: Option<String>| {
        if let Some(value) = value {
            layer.insert(key, Sourced { value, origin: flag.to_owned() });
        }
    };
    let mib = |size: Option<MemorySize>| size.map(|size| size.mib().to_string());
    let number = |n: Option<u32>| n.map(|n| n.to_string());
    put(Key::Master, "--master", common.master.clone());
    put(
        Key::DeployMode,
        "--deploy-mode",
        flags.deploy_mode.map(|mode| match mode {
            DeployModeArg::Client => "client".to_owned(),
            DeployModeArg::Cluster => "cluster".to_owned(),
        }),
    );
    put(Key::Name, "--name", flags.name.clone());
    put(Key::DriverMemory, "--driver-memory", mib(flags.driver_memory));
    put(Key::DriverCores, "--driver-cores", number(flags.driver_cores));
    put(Key::ExecutorMemory, "--executor-memory", mib(flags.executor_memory));
    put(Key::ExecutorCores, "--executor-cores", number(flags.executor_cores));
    put(Key::Executors, "--num-executors", number(flags.num_executors));
    put(Key::TotalCores, "--total-executor-cores", number(flags.total_executor_cores));
    put(Key::Supervise, "--supervise", flags.supervise.then(|| "true".to_owned()));
    layer
}

struct Resolver {
    /// Highest precedence first.
    layers: Vec<Layer>,
    report: Vec<(&'static str, String, String)>,
}

impl Resolver {
    fn find(&self, key: Key) -> Option<&Sourced> {
        self.layers.iter().find_map(|layer| layer.get(&key))
    }

    fn get<T: FromStr>(&mut self, key: Key, default: &str) -> Result<T, Failure>
    where
        T::Err: Display,
    {
        let built_in = || Sourced { value: default.to_owned(), origin: "built-in".to_owned() };
        let found = self.find(key).cloned().unwrap_or_else(built_in);
        self.accept(key, found)
    }

    fn accept<T: FromStr>(&mut self, key: Key, found: Sourced) -> Result<T, Failure>
    where
        T::Err: Display,
    {
        let parsed = found.value.parse().map_err(|error: T::Err| {
            let error = error.to_string();
            // std's number errors do not quote what they could not read.
            if error.contains(&found.value) && !found.value.is_empty() {
                Failure::usage(format!("{}: {error}", found.origin))
            } else {
                Failure::usage(format!("{}: {:?}: {error}", found.origin, found.value))
            }
        })?;
        self.report.push((key.name(), found.value, found.origin));
        Ok(parsed)
    }
}

struct ModeName(DeployMode);

impl FromStr for ModeName {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "client" => Ok(Self(DeployMode::Client)),
            "cluster" => Ok(Self(DeployMode::Cluster)),
            _ => Err("not a deploy mode: use client or cluster"),
        }
    }
}

/// The master to talk to, for commands that need nothing else.
pub fn resolve_master(
    common: &Common,
    properties: &[Property],
    environment: Option<&str>,
) -> Result<MasterUrl, Failure> {
    let in_file = properties.iter().rfind(|p| Key::from_setting(&p.key) == Some(Key::Master));
    let url = common.master.as_deref().or(in_file.map(|p| p.value.as_str())).or(environment);
    match url {
        Some(url) => url.parse().map_err(Failure::usage),
        None => Err(no_master()),
    }
}

fn no_master() -> Failure {
    Failure::usage("no master given")
        .hint("use --master firesteel://HOST:7077 or set FIRESTEEL_MASTER; scripts/start-master.sh starts a master and prints its URL")
}

/// Resolves a submission. `script_name` is the default of `--name`; `environment` the value of `FIRESTEEL_MASTER`.
pub fn resolve(
    common: &Common,
    flags: &Submission,
    properties: &[Property],
    environment: Option<&str>,
    script_name: &str,
) -> Result<Settings, Failure> {
    let mut ignored = Vec::new();
    let mut conf = BTreeMap::new();
    let conf_flags = flags.conf.iter().map(|argument| parse_conf(argument)).collect::<Result<Vec<_>, _>>()?;
    // The file first: --conf overwrites it.
    let file_layer = split(properties, &mut conf, &mut ignored)?;
    let conf_layer = split(&conf_flags, &mut conf, &mut ignored)?;
    let mut environment_layer = Layer::new();
    if let Some(url) = environment {
        let origin = "FIRESTEEL_MASTER".to_owned();
        environment_layer.insert(Key::Master, Sourced { value: url.to_owned(), origin });
    }
    let layers = vec![flag_layer(common, flags), conf_layer, file_layer, environment_layer];
    let mut resolver = Resolver { layers, report: Vec::new() };

    let master = match resolver.find(Key::Master).cloned() {
        Some(found) => resolver.accept(Key::Master, found)?,
        None => return Err(no_master()),
    };
    let ModeName(deploy_mode) = resolver.get(Key::DeployMode, "client")?;
    let name: String = resolver.get(Key::Name, script_name)?;
    let driver_memory: MemorySize = resolver.get(Key::DriverMemory, "512m")?;
    let driver_cores = resolver.get(Key::DriverCores, "0")?;
    let executor_memory: MemorySize = resolver.get(Key::ExecutorMemory, "1g")?;
    let executor_cores = resolver.get(Key::ExecutorCores, "1")?;
    let executors = executor_count(&mut resolver)?;
    let mut supervise = resolver.get(Key::Supervise, "false")?;
    if supervise && deploy_mode == DeployMode::Client && !flags.supervise {
        // As in Spark, where it is one of the settings that mean something in cluster mode only.
        supervise = false;
        ignored.push(format!("{} (client mode)", Key::Supervise.name()));
    }

    if flags.detach && deploy_mode == DeployMode::Client {
        return Err(Failure::usage("--detach needs --deploy-mode cluster")
            .hint("in client mode the driver is a child of submit and ends with it"));
    }
    if flags.detach && flags.timeout.is_some() {
        return Err(Failure::usage(
            "--timeout has no effect with --detach: nobody would be there to kill it",
        ));
    }
    let spec = ApplicationSpec {
        name,
        user: String::new(),
        deploy_mode,
        resource: String::new(),
        artifact: String::new(),
        conf,
        output: match flags.output {
            None | Some(ResultFormat::Table) => OutputFormat::Table,
            Some(ResultFormat::Csv) => OutputFormat::Csv,
            Some(ResultFormat::Json) => OutputFormat::Json,
        },
        driver: Resources::new(driver_cores, driver_memory.mib()),
        executor: Resources::new(executor_cores, executor_memory.mib()),
        executors,
        supervise,
    };
    spec.validate().map_err(Failure::usage)?;
    Ok(Settings {
        master,
        spec,
        detach: flags.detach,
        timeout: flags.timeout,
        ignored,
        report: resolver.report,
    })
}

/// The two ways to say how many exclude each other, so the highest layer that uses one of them decides.
fn executor_count(resolver: &mut Resolver) -> Result<ExecutorCount, Failure> {
    let layer =
        resolver.layers.iter().find(|l| l.contains_key(&Key::Executors) || l.contains_key(&Key::TotalCores));
    let (count, total) = match layer {
        Some(layer) => (layer.get(&Key::Executors).cloned(), layer.get(&Key::TotalCores).cloned()),
        None => (None, None),
    };
    match (count, total) {
        (Some(count), Some(total)) => {
            Err(Failure::usage(format!("{} and {} contradict each other", count.origin, total.origin))
                .hint("give the number of executors or their cores in total, not both"))
        }
        (None, Some(total)) => Ok(ExecutorCount::TotalCores(resolver.accept(Key::TotalCores, total)?)),
        (Some(count), None) => Ok(ExecutorCount::Exactly(resolver.accept(Key::Executors, count)?)),
        (None, None) => Ok(ExecutorCount::Exactly(resolver.get(Key::Executors, "2")?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn resolved(line: &str, file: &str, environment: Option<&str>) -> Result<Settings, Failure> {
        let cli = crate::cli::parse(format!("submit {line}").split_whitespace().map(OsString::from)).unwrap();
        let properties = parse_properties("p.conf", file)?;
        resolve(&cli.common, &cli.submission, &properties, environment, "x.sql")
    }

    fn message(line: &str, file: &str) -> String {
        resolved(line, file, Some("firesteel://h")).unwrap_err().message
    }

    #[test]
    fn the_built_in_values_are_modest() {
        let settings = resolved("x.sql", "", Some("firesteel://h")).unwrap();
        assert_eq!(settings.spec.executors, ExecutorCount::Exactly(2));
        assert_eq!(settings.spec.executor, Resources::new(1, 1024));
        assert_eq!(settings.spec.driver, Resources::new(0, 512));
        assert_eq!(settings.spec.deploy_mode, DeployMode::Client);
        assert_eq!(settings.spec.name, "x.sql");
    }

    #[test]
    fn flags_beat_conf_beats_file_beats_environment() {
        let file = "spark.executor.memory 3g\nspark.executor.cores=3\nfiresteel.driver.memory = 3g\nspark.master spark://file:1";
        let line = "--executor-memory 5g --conf spark.executor.memory=4g --conf spark.executor.cores=4 x.sql";
        let settings = resolved(line, file, Some("firesteel://env:1")).unwrap();
        assert_eq!(settings.spec.executor, Resources::new(4, 5 * 1024));
        assert_eq!(settings.spec.driver.memory_mib, 3 * 1024);
        assert_eq!(settings.master.to_string(), "firesteel://file:1");
        let line = "--master firesteel://flag:1 x.sql";
        assert_eq!(resolved(line, file, None).unwrap().master.to_string(), "firesteel://flag:1");
        assert_eq!(
            resolved("x.sql", "", Some("firesteel://env:1")).unwrap().master.to_string(),
            "firesteel://env:1"
        );
    }

    #[test]
    fn the_last_of_several_values_counts_whatever_its_spelling() {
        let settings = resolved(
            "--master firesteel://h --conf spark.executor.cores=4 --conf firesteel.executor.cores=2 x.sql",
            "",
            None,
        );
        assert_eq!(settings.unwrap().spec.executor.cores, 2);
    }

    #[test]
    fn only_what_has_no_flag_travels_to_the_driver() {
        let settings = resolved(
            "--conf firesteel.a=1 --conf datafusion.b=x=y --conf firesteel.executor.cores=2 --conf spark.eventLog.enabled=true x.sql",
            "firesteel.a 7\nfiresteel.c 8",
            Some("firesteel://h"),
        )
        .unwrap();
        let conf: Vec<_> = settings.spec.conf.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(conf, [("datafusion.b", "x=y"), ("firesteel.a", "1"), ("firesteel.c", "8")]);
        assert_eq!(settings.ignored, ["spark.eventLog.enabled"]);
    }

    #[test]
    fn supervision_is_for_cluster_mode() {
        let h = Some("firesteel://h");
        let supervise =
            |line: &str, file: &str| resolved(line, file, h).map(|s| (s.spec.supervise, s.ignored.len()));
        assert_eq!(supervise("--deploy-mode cluster --supervise x.sql", ""), Ok((true, 0)));
        assert_eq!(supervise("--deploy-mode cluster x.sql", "spark.driver.supervise true"), Ok((true, 0)));
        assert_eq!(supervise("--deploy-mode cluster x.sql", ""), Ok((false, 0)));
        // A file that is shared with cluster-mode submissions.
        assert_eq!(supervise("x.sql", "spark.driver.supervise true"), Ok((false, 1)));
        assert!(message("--supervise x.sql", "").contains("--supervise needs --deploy-mode cluster"));
        assert!(message("x.sql", "spark.driver.supervise perhaps").starts_with("p.conf:1: \"perhaps\""));
    }

    #[test]
    fn the_number_of_executors_comes_from_one_layer() {
        let h = Some("firesteel://h");
        let settings = resolved("--num-executors 3 x.sql", "spark.cores.max 8", h).unwrap();
        assert_eq!(settings.spec.executors, ExecutorCount::Exactly(3));
        let settings = resolved("x.sql", "spark.cores.max 8", h).unwrap();
        assert_eq!(settings.spec.executors, ExecutorCount::TotalCores(8));
        let error = message("x.sql", "spark.cores.max 8\nspark.executor.instances 2");
        assert_eq!(error, "p.conf:2 and p.conf:1 contradict each other");
    }

    #[test]
    fn errors_name_where_the_value_was_written() {
        assert!(message("x.sql", "\n# c\nspark.executor.memory lots").starts_with("p.conf:3: \"lots\""));
        assert!(
            message("--conf spark.executor.cores=x x.sql", "")
                .starts_with("--conf spark.executor.cores: \"x\"")
        );
        assert!(message("x.sql", "spark.submit.deployMode yarn").starts_with("p.conf:1: \"yarn\""));
        assert!(message("x.sql", "lonely").starts_with("p.conf:1: \"lonely\" has no value"));
        assert!(message("x.sql", "=v").starts_with("p.conf:1: the line has no key"));
        assert!(
            message("x.sql", "executor.memory 1g").contains("p.conf:1: \"executor.memory\" is not a setting")
        );
        assert!(message("--conf novalue x.sql", "").contains("is not KEY=VALUE"));
        assert!(message("--executor-cores 0 x.sql", "").contains("at least one core"));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert!(message("--detach x.sql", "").contains("--detach needs --deploy-mode cluster"));
        assert!(message("--detach --deploy-mode cluster --timeout 1s x.sql", "").contains("--timeout"));
        let error = resolved("x.sql", "", None).unwrap_err();
        assert_eq!(error.message, "no master given");
        assert!(resolved("--master h:7077 x.sql", "", None).unwrap_err().message.contains("no scheme"));
    }

    #[test]
    fn commands_find_their_master_in_the_same_places() {
        let cli = crate::cli::parse(["submit", "list"].map(OsString::from)).unwrap();
        let file = parse_properties("p", "spark.master spark://file:1").unwrap();
        let url = |file: &[Property], env| resolve_master(&cli.common, file, env).map(|url| url.to_string());
        assert_eq!(url(&file, Some("firesteel://env:1")), Ok("firesteel://file:1".into()));
        assert_eq!(url(&[], Some("firesteel://env:1")), Ok("firesteel://env:1".into()));
        assert!(url(&[], None).is_err());
    }
}
