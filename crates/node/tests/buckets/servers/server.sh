# Functions of the scripts that start servers of tests; each script reads this file.
#
# Such a script installs what is missing in a folder of its own, starts the server on free ports of the loopback
# interface with an empty bucket, and waits until it answers. Then it prints the variables by which rekindle reaches the
# bucket, one a line, and an empty line. It runs until SIGTERM ends it; the server and its data go with it.

BUCKET=snapshots
place=$(mktemp -d)
processes=()

end() {
    [ ${#processes[@]} = 0 ] || kill -KILL "${processes[@]}" || true
    wait
    rm -rf "$place"
}
trap 'end 2>/dev/null' EXIT
trap 'exit 0' TERM INT

# The folder that a server is installed in.
folder() {
    local target=${CARGO_TARGET_DIR:-$(cd "$(dirname "$0")/../../../../.." && pwd)/target}
    mkdir -p "$target/servers"
    printf '%s\n' "$target/servers/$1"
}

free_port() {
    python3 -c 'import socket; free = socket.socket(); free.bind(("127.0.0.1", 0)); print(free.getsockname()[1])'
}

# Starts a process of the server.
start() {
    "$@" >>"$place/log" 2>&1 &
    processes+=($!)
}

# Waits until a command succeeds.
until_succeeds() {
    until "$@" >/dev/null 2>&1; do
        local process
        for process in "${processes[@]}"; do
            kill -0 "$process" 2>/dev/null || { tail -n 20 "$place"/*log >&2; exit 1; }
        done
        sleep 0.1
    done
}

# Prints the variables, and waits for the server's end.
serve() {
    printf '%s\n' "$@" ""
    wait
}
