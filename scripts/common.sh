# Shared by the scripts beside it; sourced, not run.
# Settings come from the environment and from conf/firesteel-env.sh:
#   FIRESTEEL_BIN_DIR      where the programs are                  [target/release, built when absent]
#   FIRESTEEL_RUN_DIR      pid files of what the scripts started   [~/.firesteel/run]
#   FIRESTEEL_LOG_DIR      logs                                    [~/.firesteel/logs]
#   FIRESTEEL_WORKER_DIR   one directory per worker is made here   [~/.firesteel/work]
#   FIRESTEEL_CONF_DIR     where firesteel-env.sh is               [conf]
#   FIRESTEEL_START_TIMEOUT, FIRESTEEL_STOP_TIMEOUT  seconds       [30, 20]
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
conf_dir=${FIRESTEEL_CONF_DIR:-$root/conf}
if [ -f "$conf_dir/firesteel-env.sh" ]; then
    set -a
    # shellcheck source=/dev/null
    . "$conf_dir/firesteel-env.sh"
    set +a
fi

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit "${3:-1}"
}

# The comment at the top of a script is its help.
print_help() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
}

[ -n "${HOME:-}" ] || fail "HOME is not set" "set it, or FIRESTEEL_RUN_DIR, FIRESTEEL_LOG_DIR and FIRESTEEL_WORKER_DIR and HOME=/nonexistent"
state_dir=$HOME/.firesteel
run_dir=${FIRESTEEL_RUN_DIR:-$state_dir/run}
log_dir=${FIRESTEEL_LOG_DIR:-$state_dir/logs}
worker_dir=${FIRESTEEL_WORKER_DIR:-$state_dir/work}
start_timeout=${FIRESTEEL_START_TIMEOUT:-30}
stop_timeout=${FIRESTEEL_STOP_TIMEOUT:-20}
target_dir=${CARGO_TARGET_DIR:-$root/target}
bin_dir=${FIRESTEEL_BIN_DIR:-$target_dir/release}

make_private_dir() {
    (umask 077 && mkdir -p "$1") || fail "cannot create the directory $1"
    [ -w "$1" ] || fail "cannot write to the directory $1"
}

require_toolchain() {
    command -v cargo >/dev/null || fail "cargo is not installed" "https://rustup.rs installs Rust"
    command -v cc >/dev/null || fail "there is no C compiler (cc)" "install one, for instance: apt-get install build-essential"
}

# Builds all programs unless the named one is there.
ensure_built() {
    [ ! -x "$bin_dir/$1" ] || return 0
    [ -z "${FIRESTEEL_BIN_DIR:-}" ] || fail "there is no $1 in $bin_dir" "FIRESTEEL_BIN_DIR names the directory of the programs"
    require_toolchain
    echo "building (about 25 minutes the first time on two cores) ..." >&2
    (cd "$root" && cargo build --release --workspace --locked) || fail "the build failed"
    [ -x "$bin_dir/$1" ] || fail "the build made no $bin_dir/$1"
}

# When the process started, in clock ticks since boot: with the pid it names one process for ever.
start_time() {
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The name in parentheses may hold anything; the fields after it are counted.
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    # A zombie has ended.
    [ "$1" != Z ] && echo "${20}"
}

# Prints the pid when the process of this pid file lives. A pid that was given to another process does not count.
live_pid() {
    local pid started
    { read -r pid started <"$run_dir/$1.pid"; } 2>/dev/null || return 1
    [ -n "$pid" ] && [ "$(start_time "$pid")" = "$started" ] && echo "$pid"
}

# A field of the small JSON document that a daemon writes when it is ready.
ready_field() {
    sed -n 's/.*"'"$2"'": *"\{0,1\}\([^",}]*\).*/\1/p' "$run_dir/$1.ready" 2>/dev/null
}

# Keeps the last logs: NAME.log, NAME.log.1 ... NAME.log.5
rotate_log() {
    local n
    [ -s "$1" ] || return 0
    for n in 4 3 2 1; do
        [ ! -f "$1.$n" ] || mv -f "$1.$n" "$1.$((n + 1))"
    done
    mv -f "$1" "$1.1"
}

give_up() {
    kill -KILL "$1" 2>/dev/null || true
    # Collected here, or bash would tell about it.
    wait "$1" 2>/dev/null || true
    rm -f "$run_dir/$2.pid" "$run_dir/$2.ready"
}

# start_daemon NAME PROGRAM ARGUMENT...: starts it detached from this terminal and waits until it says that it is ready.
start_daemon() {
    local name=$1 program=$2 pid code log pid_file ready_file deadline
    shift 2
    make_private_dir "$run_dir"
    make_private_dir "$log_dir"
    log=$log_dir/$name.log
    pid_file=$run_dir/$name.pid
    ready_file=$run_dir/$name.ready
    if [ -e "$pid_file" ] && ! live_pid "$name" >/dev/null; then
        rm -f "$pid_file"
    fi
    # Only one of two scripts can create the file; it names this script until the daemon has a pid.
    if ! (set -C && echo "$$ $(start_time $$)" >"$pid_file") 2>/dev/null; then
        fail "$name is already running or starting (pid $(live_pid "$name" || echo '?'))"
    fi
    rm -f "$ready_file"
    rotate_log "$log"
    if ! echo "$(date '+%Y-%m-%d %H:%M:%S') $program $*" >"$log"; then
        rm -f "$pid_file"
        fail "cannot write the log $log" "is the disk full?"
    fi
    # In a process group of its own: Ctrl-C here is not for the daemon.
    set -m
    nohup "$bin_dir/$program" "$@" --ready-file "$ready_file" </dev/null >>"$log" 2>&1 &
    pid=$!
    set +m
    echo "$pid $(start_time "$pid" || true)" >"$pid_file.new" && mv -f "$pid_file.new" "$pid_file"
    deadline=$((SECONDS + start_timeout))
    while [ ! -s "$ready_file" ]; do
        if ! start_time "$pid" >/dev/null; then
            code=0
            wait "$pid" || code=$?
            rm -f "$pid_file"
            echo "$name ended with code $code; the end of $log:" >&2
            tail -n 15 "$log" | sed 's/^/  /' >&2
            exit 1
        fi
        if [ "$SECONDS" -ge "$deadline" ]; then
            give_up "$pid" "$name"
            echo "the end of $log:" >&2
            tail -n 15 "$log" | sed 's/^/  /' >&2
            fail "$name was not ready after $start_timeout s and was stopped" "FIRESTEEL_START_TIMEOUT sets another limit"
        fi
        sleep 0.02
    done
    # The end of the job is nobody's business here any more.
    disown "$pid" 2>/dev/null || true
}

# Asks the process to end, waits, and insists. Says nothing and returns 1 when it does not run.
stop_daemon() {
    local name=$1 pid deadline
    if ! pid=$(live_pid "$name"); then
        rm -f "$run_dir/$name.pid" "$run_dir/$name.ready"
        return 1
    fi
    kill -TERM "$pid" 2>/dev/null || true
    deadline=$((SECONDS + stop_timeout))
    while live_pid "$name" >/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "$name (pid $pid) does not end within $stop_timeout s: killing it" >&2
            kill -KILL "$pid" 2>/dev/null || true
            deadline=$((SECONDS + stop_timeout))
        fi
        sleep 0.02
    done
    rm -f "$run_dir/$name.pid" "$run_dir/$name.ready"
    echo "stopped $name (pid $pid)"
}

# The names of the masters that were started here.
master_names() {
    local file
    for file in "$run_dir"/master.pid "$run_dir"/master-*.pid; do
        [ -e "$file" ] || continue
        file=${file##*/}
        echo "${file%.pid}"
    done
}

# The names of the workers that were started here.
worker_names() {
    local file
    for file in "$run_dir"/worker-*.pid; do
        [ -e "$file" ] || continue
        file=${file##*/}
        echo "${file%.pid}"
    done
}
