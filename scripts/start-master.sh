#!/usr/bin/env bash
# Starts a Firesteel master on this machine, waits until it answers, and prints its URL.
#
# usage: scripts/start-master.sh [--name NAME] [--host HOST] [--port PORT] [--webui-port PORT] [--raft-port PORT]
#                                [--data-dir DIR] [--join HOST:RAFT_PORT,...] [--bootstrap-expect N] ...
#
# Without more it is a cluster's only master. Three masters survive the loss of one; on each of three machines:
#   scripts/start-master.sh --host H1 --join H1,H2,H3 --bootstrap-expect 3        (and --host H2 and H3)
# One more joins a cluster that runs:  scripts/start-master.sh --host H4 --join H1,H2,H3
#
# --name NAME tells several masters on one machine apart. The other options are those of firesteel-master
# (target/release/firesteel-master --help); port 0 takes any free port.
# conf/firesteel-env.sh, if there is one, may set FIRESTEEL_* variables.
set -eu
. "$(dirname "$0")/common.sh"

name=""
has_directory=""
arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) print_help && exit 0 ;;
        --name)
            [ $# -ge 2 ] || fail "--name needs a value" "" 2
            name=$2
            shift
            ;;
        --name=*) name=${1#*=} ;;
        --ready-file | --ready-file=*) fail "$1 is set by this script" "start firesteel-master itself to choose the file" 2 ;;
        *)
            case "$1" in --data-dir | --data-dir=*) has_directory=yes ;; esac
            arguments+=("$1")
            ;;
    esac
    shift
done
case "$name" in
    *[!A-Za-z0-9._-]* | .*) fail "--name $name: use letters, digits, '.', '_' and '-'" "" 2 ;;
esac
daemon=master${name:+-$name}
if [ -n "$name" ] && [ -z "$has_directory" ]; then
    arguments+=(--data-dir "$state_dir/$daemon")
fi

if pid=$(live_pid "$daemon"); then
    fail "a master is already running: $(ready_field "$daemon" master) (pid $pid)" \
        "scripts/stop-master.sh${name:+ --name $name} stops it; --name OTHER starts another one on this machine" 1
fi
ensure_built firesteel-master
start_daemon "$daemon" firesteel-master ${arguments[@]+"${arguments[@]}"}

url=$(ready_field "$daemon" master)
echo "master   $url"
echo "web page $(ready_field "$daemon" ui)"
echo "logs     $log_dir/$daemon.log"
if [ "$(ready_field "$daemon" forming)" = true ]; then
    echo "waits    for the other masters; its log says for which"
else
    echo "next     scripts/start-worker.sh $url"
fi
echo "stop     scripts/stop-master.sh${name:+ --name $name}"
