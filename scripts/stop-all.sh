#!/usr/bin/env bash
# Stops every worker and every master that the scripts started on this machine.
#
# usage: scripts/stop-all.sh
set -eu
case "${1:-}" in -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0" && exit 0 ;; esac
scripts=$(dirname "$0")
# Workers first, so that they can say goodbye.
"$scripts/stop-worker.sh"
"$scripts/stop-master.sh"
