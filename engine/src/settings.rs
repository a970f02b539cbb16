//! `--conf` settings as the engine understands them, parsed once into types.

use datafusion::config::ConfigOptions;
use firesteel_common::MemorySize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// DataFusion plans wrong results for distributed execution when it plans with one partition.
pub const MIN_TARGET_PARTITIONS: usize = 2;

/// Compression of batches on their way between executors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// None while all executors are on one machine, LZ4 otherwise.
    Auto,
    None,
    Lz4,
    Zstd,
}

/// How queries run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Whichever of the others fits the query.
    Auto,
    /// All stages at once, joined by streams.
    Pipelined,
    /// Stage after stage, joined by map outputs that survive executors.
    Staged,
}

/// What the settings of an application mean to its driver and executors.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Relative paths in a script are relative to this: the directory in which the user ran `submit`.
    pub working_directory: Option<PathBuf>,
    pub mode: Mode,
    /// How many bytes of files a task of a staged query shall scan.
    pub task_bytes: usize,
    /// The most tasks that a stage is cut into.
    pub stage_tasks_max: usize,
    /// The most tasks of a stage that reads a shuffle: each of them reads from every task before it.
    pub shuffle_tasks_max: usize,
    /// Map outputs up to so many bytes travel in messages instead of files.
    pub inline_bytes_max: u64,
    /// How often a task may fail before its query does.
    pub task_attempts_max: u32,
    /// Whether slow tasks get a second copy.
    pub speculation: bool,
    /// Result bytes held back before the first row is shown; until then a query can start again unseen.
    pub result_buffer_bytes: u64,
    /// How often a query starts again after it lost an executor.
    pub max_restarts: u32,
    /// How long a driver that had executors waits for new ones once all are gone, in seconds.
    pub executor_wait_secs: u64,
    pub compression: Compression,
    /// Part of the executor's memory that operators may use before they spill.
    pub memory_fraction: f64,
    /// How many bytes of files a partition shall scan, in any mode; `None` leaves it to the mode.
    pub scan_bytes_per_partition: Option<usize>,
    /// Whether the SQL functions for tests are there ([`crate::test_functions`]).
    pub test_functions: bool,
    /// Options for `s3://`, `gs://`, `az://`, `http(s)://` stores, by `object_store`'s names (`aws_region`, …).
    pub store_options: Vec<(String, String)>,
    /// `datafusion.*` options.
    pub datafusion: Vec<(String, String)>,
}

/// A setting that cannot be used, and what could.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    #[error("unknown setting {key:?}\nhint: {hint}")]
    Unknown { key: String, hint: String },
    #[error("{key}={value:?}: expected {expected}")]
    Value { key: String, value: String, expected: &'static str },
    #[error("{key}={value:?}: {reason}")]
    DataFusion { key: String, value: String, reason: String },
}

const KEYS: &[(&str, &str)] = &[
    (
        "firesteel.execution.mode",
        "auto, pipelined (the whole query runs at once and starts again when an executor is lost) or staged (stage after \
         stage; only what is lost runs again; larger than memory) (default auto)",
    ),
    (
        "firesteel.execution.maxRestarts",
        "how often a query starts again after losing an executor (default 4)",
    ),
    ("firesteel.executor.memoryFraction", "part of executor memory for operators, 0.1 to 0.95 (default 0.7)"),
    ("firesteel.executor.waitSeconds", "how long to wait for new executors once all are gone (default 120)"),
    (
        "firesteel.result.bufferSize",
        "result bytes held back so that a query can start again unseen (default 16m)",
    ),
    (
        "firesteel.scan.bytesPerPartition",
        "bytes of files per partition of a scan, in any mode, such as 16m (default: the mode decides)",
    ),
    (
        "firesteel.shuffle.inlineSize",
        "map outputs up to this size travel in messages instead of files, such as 0 or 32k (default 32k)",
    ),
    ("firesteel.shuffle.compression", "auto, none, lz4 or zstd (default auto)"),
    ("firesteel.staged.bytesPerTask", "bytes of files that a task of a staged query scans (default 128m)"),
    ("firesteel.staged.maxShuffleTasks", "the most tasks of a stage that reads a shuffle (default 256)"),
    ("firesteel.staged.maxTasks", "the most tasks that a stage is cut into (default 1000)"),
    (
        "firesteel.speculation",
        "true or false: start a second copy of slow tasks of a staged query (default true)",
    ),
    ("firesteel.task.maxFailures", "how often a task may fail before its query does (default 4)"),
    (
        "firesteel.submit.workingDirectory",
        "directory that relative paths in the script start from (set by submit)",
    ),
];
const STORE_PREFIX: &str = "firesteel.store.";

impl Default for Settings {
    fn default() -> Self {
        Self {
            working_directory: None,
            mode: Mode::Auto,
            task_bytes: 128 << 20,
            stage_tasks_max: 1000,
            shuffle_tasks_max: 256,
            inline_bytes_max: 32 << 10,
            task_attempts_max: 4,
            speculation: true,
            result_buffer_bytes: 16 << 20,
            max_restarts: 4,
            executor_wait_secs: 120,
            compression: Compression::Auto,
            memory_fraction: 0.7,
            scan_bytes_per_partition: None,
            test_functions: false,
            store_options: Vec::new(),
            datafusion: Vec::new(),
        }
    }
}

impl Settings {
    pub fn parse(conf: &BTreeMap<String, String>) -> Result<Self, InvalidSetting> {
        let mut settings = Self::default();
        for (key, value) in conf {
            settings.set(key, value)?;
        }
        settings.check_datafusion()?;
        Ok(settings)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), InvalidSetting> {
        let bad = |expected| InvalidSetting::Value { key: key.to_owned(), value: value.to_owned(), expected };
        match key {
            "firesteel.execution.mode" => {
                self.mode = match value {
                    "auto" => Mode::Auto,
                    "pipelined" => Mode::Pipelined,
                    "staged" => Mode::Staged,
                    _ => return Err(bad("auto, pipelined or staged")),
                };
            }
            "firesteel.execution.maxRestarts" => {
                self.max_restarts = value.parse().map_err(|_| bad("a whole number"))?;
            }
            "firesteel.executor.memoryFraction" => {
                self.memory_fraction = match value.parse() {
                    Ok(fraction) if (0.1..=0.95).contains(&fraction) => fraction,
                    _ => return Err(bad("a number from 0.1 to 0.95")),
                };
            }
            "firesteel.executor.waitSeconds" => {
                self.executor_wait_secs = value.parse().map_err(|_| bad("a whole number of seconds"))?;
            }
            "firesteel.result.bufferSize" => {
                let size: MemorySize = value.parse().map_err(|_| bad("a size like 16m"))?;
                self.result_buffer_bytes = size.bytes();
            }
            "firesteel.scan.bytesPerPartition" => {
                self.scan_bytes_per_partition =
                    Some(bytes(value).ok_or_else(|| bad("a size like 64k or 16m"))?);
            }
            "firesteel.speculation" => {
                self.speculation = value.parse().map_err(|_| bad("true or false"))?;
            }
            "firesteel.staged.bytesPerTask" => {
                self.task_bytes = bytes(value).ok_or_else(|| bad("a size like 64k or 128m"))?;
            }
            "firesteel.staged.maxShuffleTasks" => {
                self.shuffle_tasks_max = match value.parse() {
                    Ok(tasks @ 1..=100_000) => tasks,
                    _ => return Err(bad("a whole number from 1 to 100000")),
                };
            }
            "firesteel.staged.maxTasks" => {
                self.stage_tasks_max = match value.parse() {
                    Ok(tasks @ 1..=100_000) => tasks,
                    _ => return Err(bad("a whole number from 1 to 100000")),
                };
            }
            "firesteel.test.functions" => {
                self.test_functions = value.parse().map_err(|_| bad("true or false"))?;
            }
            "firesteel.task.maxFailures" => {
                self.task_attempts_max = match value.parse() {
                    Ok(attempts @ 1..) => attempts,
                    _ => return Err(bad("a whole number from 1")),
                };
            }
            "firesteel.shuffle.inlineSize" => {
                self.inline_bytes_max = match value {
                    "0" => 0,
                    _ => bytes(value).filter(|&b| b <= 4 << 20).ok_or_else(|| bad("a size from 0 to 4m"))?
                        as u64,
                };
            }
            "firesteel.shuffle.compression" => {
                self.compression = match value {
                    "auto" => Compression::Auto,
                    "none" => Compression::None,
                    "lz4" => Compression::Lz4,
                    "zstd" => Compression::Zstd,
                    _ => return Err(bad("auto, none, lz4 or zstd")),
                };
            }
            "firesteel.submit.workingDirectory" => {
                let path = PathBuf::from(value);
                if !path.is_absolute() {
                    return Err(bad("an absolute path"));
                }
                self.working_directory = Some(path);
            }
            _ => {
                if let Some(option) = key.strip_prefix(STORE_PREFIX) {
                    self.store_options.push((option.to_ascii_lowercase(), value.to_owned()));
                } else if key.starts_with("datafusion.") {
                    self.datafusion.push((key.to_owned(), value.to_owned()));
                } else if key.starts_with("spark.") {
                    // Spark properties that mean something to the cluster were taken by `submit`; the rest has no
                    // meaning here, and a shared spark-defaults.conf must not make a submission fail.
                } else {
                    return Err(unknown(key));
                }
            }
        }
        Ok(())
    }

    /// Every `datafusion.*` option must exist and take its value, and none may break distributed planning.
    fn check_datafusion(&self) -> Result<(), InvalidSetting> {
        let mut options = ConfigOptions::new();
        for (key, value) in &self.datafusion {
            let reject = |reason: String| InvalidSetting::DataFusion {
                key: key.clone(),
                value: value.clone(),
                reason,
            };
            options.set(key, value).map_err(|e| reject(e.strip_backtrace()))?;
            if options.execution.target_partitions < MIN_TARGET_PARTITIONS {
                return Err(reject(TOO_FEW_PARTITIONS.to_owned()));
            }
        }
        Ok(())
    }
}

/// `65536`, `64k`, `16m`, `1g`; at least one byte.
fn bytes(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(factor).filter(|&bytes| bytes > 0)
}

/// Said wherever somebody asks for fewer than [`MIN_TARGET_PARTITIONS`].
pub const TOO_FEW_PARTITIONS: &str =
    "a distributed plan needs at least 2 partitions: with one it would return wrong rows";

fn unknown(key: &str) -> InvalidSetting {
    let nearest = KEYS.iter().min_by_key(|(known, _)| edit_distance(known, key));
    let hint = match nearest {
        Some((known, help)) if edit_distance(known, key) <= 6 => {
            format!("did you mean {known}? ({help})")
        }
        _ => format!(
            "known are {}, firesteel.store.* and datafusion.*",
            KEYS.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ")
        ),
    };
    InvalidSetting::Unknown { key: key.to_owned(), hint }
}

/// Levenshtein distance, by bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
