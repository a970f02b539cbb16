#!/usr/bin/env bash
# Starts a Firesteel master on this machine, waits until it answers, and prints its URL.
#
# usage: scripts/start-master.sh [--host HOST] [--port PORT] [--webui-port PORT] [--data-dir DIR] [--log-level LEVEL] ...
#
# The options are those of firesteel-master (target/release/firesteel-master --help); port 0 takes any free port.
# conf/firesteel-env.sh, if there is one, may set FIRESTEEL_* variables.
set -eu
. "$(dirname "$0")/common.sh"

case "${1:-}" in -h | --help) print_help && exit 0 ;; esac
for argument in "$@"; do
    case "$argument" in
        --ready-file | --ready-file=*) fail "$argument is set by this script" "start firesteel-master itself to choose the file" 2 ;;
    esac
done

if pid=$(live_pid master); then
    fail "a master is already running: $(ready_field master master) (pid $pid)" "scripts/stop-master.sh stops it" 1
fi
ensure_built firesteel-master
start_daemon master firesteel-master "$@"

url=$(ready_field master master)
echo "master   $url"
echo "web page $(ready_field master ui)"
echo "logs     $log_dir/master.log"
echo "next     scripts/start-worker.sh $url"
echo "stop     scripts/stop-master.sh"
