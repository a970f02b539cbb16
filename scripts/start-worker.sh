#!/usr/bin/env bash
# Starts a Firesteel worker on this machine and waits until it has registered with its master.
#
# usage: scripts/start-worker.sh [--name NAME] MASTER_URL [-c CORES] [-m MEMORY] [-d DIR] [--host HOST] [--port PORT]
#                                [--webui-port PORT] ...
#
# --name NAME tells several workers on one machine apart [default: 1]. The URL may come from FIRESTEEL_MASTER. The other
# options are those of firesteel-worker (target/release/firesteel-worker --help).
set -eu
. "$(dirname "$0")/common.sh"

name=1
directory=""
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
        --ready-file | --ready-file=*) fail "$1 is set by this script" "start firesteel-worker itself to choose the file" 2 ;;
        -d | --work-dir)
            [ $# -ge 2 ] || fail "$1 needs a value" "" 2
            directory=$2
            shift
            ;;
        --work-dir=*) directory=${1#*=} ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
case "$name" in
    "" | *[!A-Za-z0-9._-]* | .*) fail "--name $name: use letters, digits, '.', '_' and '-'" "" 2 ;;
esac

has_url=${FIRESTEEL_MASTER:-}
for argument in ${arguments[@]+"${arguments[@]}"}; do
    case "$argument" in *://*) has_url=$argument ;; esac
done
if [ -z "$has_url" ]; then
    url=$(ready_field master master)
    fail "no master given" "scripts/start-worker.sh ${url:-firesteel://HOST:7077}" 2
fi

if pid=$(live_pid "worker-$name"); then
    fail "worker $name is already running (pid $pid)" \
        "scripts/stop-worker.sh --name $name stops it; --name OTHER starts another one on this machine"
fi
ensure_built firesteel-worker
ensure_built firesteel-engine
directory=${directory:-$worker_dir/$name}
make_private_dir "$directory"
start_daemon "worker-$name" firesteel-worker ${arguments[@]+"${arguments[@]}"} --work-dir "$directory"

echo "worker   $(ready_field "worker-$name" worker_id)"
echo "web page $(ready_field "worker-$name" ui)"
echo "logs     $log_dir/worker-$name.log"
echo "stop     scripts/stop-worker.sh --name $name"
