#!/usr/bin/env bash
# Builds Firesteel, starts a master and two workers on this machine, makes TPC-H sample data, and runs SQL on it.
#
# usage: scripts/quickstart.sh [--scale N]   sample data of TPC-H scale N [default: 0.1, about 100 MB before compression]
#        scripts/quickstart.sh --once        stops everything at the end (FIRESTEEL_QUICKSTART_EXIT=1 does the same)
#        scripts/quickstart.sh --stop        stops what an earlier run left running
#
# It may be run again: what runs is used, what is built is not built again. Everything it writes outside the build
# directory is under ~/.firesteel/quickstart (FIRESTEEL_QUICKSTART_DIR).
set -eu -o pipefail

here=${FIRESTEEL_QUICKSTART_DIR:-${HOME:?HOME is not set}/.firesteel/quickstart}
# A cluster of its own, whatever else the scripts have started here.
# FIRESTEEL_CONF_DIR: conf/firesteel-env.sh describes another cluster.
export FIRESTEEL_CONF_DIR=$here/conf FIRESTEEL_RUN_DIR=$here/run FIRESTEEL_LOG_DIR=$here/logs FIRESTEEL_WORKER_DIR=$here/work
unset FIRESTEEL_MASTER FIRESTEEL_MASTER_PORT FIRESTEEL_MASTER_WEBUI_PORT FIRESTEEL_MASTER_HOST FIRESTEEL_MASTER_DATA_DIR
scripts=$(cd "$(dirname "$0")" && pwd)
. "$scripts/common.sh"

scale=0.1
once=${FIRESTEEL_QUICKSTART_EXIT:-}
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) print_help && exit 0 ;;
        --stop) exec "$scripts/stop-all.sh" ;;
        --once) once=1 ;;
        --scale)
            [ $# -ge 2 ] || fail "--scale needs a value" "" 2
            scale=$2
            shift
            ;;
        --scale=*) scale=${1#*=} ;;
        *) fail "unexpected argument $1" "scripts/quickstart.sh --help" 2 ;;
    esac
    shift
done
case "$scale" in
    "" | . | *[!0-9.]* | *.*.*) fail "--scale $scale: expected a number like 0.1" "" 2 ;;
esac

step() {
    printf '\n== %s\n' "$1"
}

finish() {
    if [ -n "$once" ]; then
        step "stopping"
        "$scripts/stop-all.sh" || true
    fi
}
trap finish EXIT

# port_or_any PORT: the port, or 0 (any free one) when something answers there.
port_or_any() {
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then echo 0; else echo "$1"; fi
}

step "building (about 25 minutes the first time on two cores, seconds after that)"
if [ -z "${FIRESTEEL_BIN_DIR:-}" ]; then
    require_toolchain
    (cd "$root" && cargo build --release --workspace --locked) || fail "the build failed"
fi
ensure_built submit

step "sample data: TPC-H at scale $scale"
data=$here/data/scale-$scale
make_private_dir "$here"
"$bin_dir/firesteel-engine" sample-data --scale "$scale" "$data" >/dev/null
du -sh "$data" | sed 's/\t/  /'

step "a master and two workers"
if live_pid master >/dev/null; then
    echo "the master is running already"
else
    "$scripts/start-master.sh" --host 127.0.0.1 --port "$(port_or_any 7077)" --webui-port "$(port_or_any 8080)" \
        --data-dir "$here/master" | sed -n '1,3p'
fi
url=$(ready_field master master)
cores=$(($(nproc) / 2))
[ "$cores" -ge 1 ] || cores=1
for name in 1 2; do
    if live_pid "worker-$name" >/dev/null; then
        echo "worker $name is running already"
    else
        "$scripts/start-worker.sh" --name "$name" "$url" -c "$cores" -m 2g | sed -n '1p'
    fi
done

script=$scripts/examples/pricing-summary.sql
step "submit --master $url --deploy-mode cluster ${script#"$root/"}"
(cd "$data" && "$bin_dir/submit" --master "$url" --deploy-mode cluster "$script")

if [ -z "$once" ]; then
    step "running"
    cat <<END
web page   $(ready_field master ui)
your turn  cd $data
           $bin_dir/submit --master $url my-script.sql
           $bin_dir/submit --master $url list
logs       $log_dir
stop       scripts/quickstart.sh --stop
END
fi
