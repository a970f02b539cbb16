//! The invariants of ARCHITECTURE.md that can be read off the dependency graph.

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

#[test]
fn core_has_no_clock_no_random_no_io() {
    let allowed = [
        "firesteel-master-core",
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
    let extra: Vec<String> = dependencies("firesteel-master-core")
        .into_iter()
        .filter(|name| !allowed.contains(&name.as_str()))
        .collect();
    assert!(extra.is_empty(), "master/core depends on {extra:?}");

    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../master/core/src");
    for entry in std::fs::read_dir(sources).expect("sources") {
        let path = entry.expect("entry").path();
        let text = std::fs::read_to_string(&path).expect("source");
        for forbidden in
            ["SystemTime::now", "Instant::now", "std::fs", "std::net", "HashMap", "HashSet", "rand::"]
        {
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
