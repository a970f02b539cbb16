#!/usr/bin/env bash
# Stops the master that scripts/start-master.sh started. Workers keep what they run until a master is back.
#
# usage: scripts/stop-master.sh
set -eu
. "$(dirname "$0")/common.sh"

case "${1:-}" in -h | --help) print_help && exit 0 ;; "") ;; *) fail "unexpected argument $1" "" 2 ;; esac
stop_daemon master || echo "no master is running"
