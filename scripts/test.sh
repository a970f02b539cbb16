#!/usr/bin/env bash
# Runs every test, in the profile that the quickstart builds, so that nothing is compiled twice.
#
# usage: scripts/test.sh [ARGUMENT...]     the arguments go to cargo test, for instance: -p firesteel-master-core
set -eu
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0" && exit 0 ;; esac
cargo fmt --all --check
if [ $# -eq 0 ]; then
    # The tests start the programs, also those of crates that they do not depend on.
    cargo build --release --workspace --locked
    cargo test --release --workspace --locked
    # Whole clusters under faults, a different one for every seed; a failure prints how to replay it.
    "${CARGO_TARGET_DIR:-target}/release/simulate" --seeds 5000
else
    cargo test --release --locked "$@"
fi
