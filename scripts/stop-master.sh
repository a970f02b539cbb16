#!/usr/bin/env bash
# Stops the masters that scripts/start-master.sh started on this machine, or one of them. Workers keep what they run while
# there is another master, or until one is back.
#
# usage: scripts/stop-master.sh [--name NAME]
set -eu
. "$(dirname "$0")/common.sh"

name=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) print_help && exit 0 ;;
        --name)
            [ $# -ge 2 ] || fail "--name needs a value" "" 2
            name=$2
            shift
            ;;
        --name=*) name=${1#*=} ;;
        *) fail "unexpected argument $1" "" 2 ;;
    esac
    shift
done
if [ -n "$name" ]; then
    stop_daemon "master-$name" || echo "no master $name is running"
    exit 0
fi
stopped=""
for daemon in $(master_names); do
    if stop_daemon "$daemon"; then stopped=yes; fi
done
[ -n "$stopped" ] || echo "no master is running"
