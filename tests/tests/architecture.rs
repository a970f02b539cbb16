//! The invariants of ARCHITECTURE.md that can be read off the dependency graph.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The names of everything that `package` depends on in a normal build.
fn dependencies(package: &str) -> Vec<String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}", "-p", package])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo tree runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn master_and_worker_never_link_datafusion() {
    for package in ["firesteel-master", "firesteel-worker", "firesteel-submit"] {
        let found: Vec<String> =
            dependencies(package).into_iter().filter(|name| name.starts_with("datafusion")).collect();
        assert!(found.is_empty(), "{package} links {found:?}");
    }
    assert!(
        dependencies("firesteel-engine").iter().any(|name| name == "datafusion"),
        "the test looks for the right name"
    );
}

/// The sources below a directory.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("sources") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// What decides, in the master and in the driver.
#[test]
fn core_has_no_clock_no_random_no_io() {
    for (package, dir) in [("firesteel-master-core", "master/core"), ("firesteel-engine-core", "engine/core")]
    {
        core_is_pure(package, dir);
    }
}

fn core_is_pure(package: &str, dir: &str) {
    let allowed = [
        package,
        "firesteel-common",
        "serde",
        "serde_core",
        "serde_derive",
        "thiserror",
        "thiserror-impl",
        "proc-macro2",
        "quote",
        "syn",
        "unicode-ident",
    ];
    let extra: Vec<String> =
        dependencies(package).into_iter().filter(|name| !allowed.contains(&name.as_str())).collect();
    assert!(extra.is_empty(), "{dir} depends on {extra:?}");

    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(dir).join("src")) {
        let text = std::fs::read_to_string(&path).expect("source");
        for forbidden in [
            "SystemTime::now",
            "Instant::now",
            "std::fs",
            "std::net",
            "HashMap",
            "HashSet",
            "rand::",
            "tokio::",
        ] {
            let used = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .any(|line| line.contains(forbidden));
            assert!(!used, "{} uses {forbidden}", path.display());
        }
    }
}

#[test]
fn one_version_each_of_arrow_tonic_and_prost() {
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");
    let lock = std::fs::read_to_string(lock).expect("Cargo.lock");
    for name in ["arrow", "tonic", "prost", "datafusion"] {
        let versions = lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
        assert_eq!(versions, 1, "{name}");
    }
}
