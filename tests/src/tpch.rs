//! TPC-H: data made by the engine, query texts read from the sources of `datafusion-distributed`.

use std::path::{Path, PathBuf};
use std::process::Command;

pub const QUERIES: std::ops::RangeInclusive<u32> = 1..=22;
const TABLES: [&str; 8] =
    ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"];

/// The directory of the crate's query texts, as `cargo metadata` tells.
pub fn query_dir() -> PathBuf {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let manifest = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|p| p["name"] == "datafusion-distributed"))
        .and_then(|package| package["manifest_path"].as_str())
        .expect("datafusion-distributed is a dependency");
    Path::new(manifest).with_file_name("testdata").join("tpch/queries")
}

/// The text of query `number`, without a closing semicolon.
pub fn query(dir: &Path, number: u32) -> String {
    let path = dir.join(format!("q{number}.sql"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().trim_end_matches(';').to_owned()
}

/// `CREATE EXTERNAL TABLE` for every table under `data`.
pub fn tables(data: &Path) -> String {
    TABLES
        .iter()
        .map(|table| {
            format!(
                "CREATE EXTERNAL TABLE {table} STORED AS PARQUET LOCATION '{}/{table}/';\n",
                data.display()
            )
        })
        .collect()
}

/// Makes the data of a scale once per target directory and returns its place.
pub fn data(engine: &Path, scale: f64) -> PathBuf {
    let base =
        engine.parent().and_then(Path::parent).expect("binaries lie in target/release").join("test-data");
    let dir = base.join(format!("tpch-{scale}"));
    std::fs::create_dir_all(&base).expect("the target directory is writable");
    // Tests run side by side: the first one makes the data, the others wait for it.
    let lock = std::fs::File::create(base.join("lock")).expect("lock file");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("flock");
    let status = Command::new(engine)
        .args(["sample-data", "--parts", "2", "--scale", &scale.to_string()])
        .arg(&dir)
        .stdout(std::process::Stdio::null())
        .status()
        .expect("firesteel-engine runs");
    assert!(status.success(), "sample-data failed");
    dir
}
