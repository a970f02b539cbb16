#!/usr/bin/env bash
# Stops workers that scripts/start-worker.sh started, and what runs under them.
#
# usage: scripts/stop-worker.sh [--name NAME]     one worker; all of this machine without a name
set -eu
. "$(dirname "$0")/common.sh"

case "${1:-}" in
    -h | --help) print_help && exit 0 ;;
    --name) name=${2:?--name needs a value} ;;
    --name=*) name=${1#*=} ;;
    "") name="" ;;
    *) fail "unexpected argument $1" "" 2 ;;
esac
if [ -n "$name" ]; then
    stop_daemon "worker-$name" || echo "worker $name is not running"
    exit 0
fi
stopped=0
for worker in $(worker_names); do
    if stop_daemon "$worker"; then stopped=1; fi
done
[ "$stopped" = 1 ] || echo "no worker is running"
