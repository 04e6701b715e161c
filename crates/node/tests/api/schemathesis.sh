#!/usr/bin/env bash
# Asks the control API what its OpenAPI document allows and what it does not, and checks every answer against it.
#
#   schemathesis.sh                       asks a daemon without an engine, which it starts
#   schemathesis.sh PATH                  asks the daemon that listens on this socket
#   schemathesis.sh https://HOST:PORT     asks the daemon there: REKINDLE_TOKEN lets in, REKINDLE_AUTHORITIES vouches
#
# EXAMPLES (30) is how many requests are made of each kind, SEED repeats a run. It makes, pauses and deletes things:
# never point it at a daemon that somebody uses.
set -euo pipefail
cd "$(dirname "$0")"

VERSION=4.32.5
target=${CARGO_TARGET_DIR:-$(cd ../../../.. && pwd)/target}
python=$target/schemathesis-$VERSION
work=$(mktemp -d)
children=()

end() {
    # Closing their input ends them.
    exec {to_daemon}>&- {to_forwarder}>&- || true
    wait "${children[@]}" 2>/dev/null || true
    rm -rf "$work"
}

# The test binary serves as long as its input is open.
start_daemon() {
    mkfifo "$work/daemon"
    REKINDLE_TEST_SERVE_AT=$1 cargo test -q --workspace --test api -- --exact schemathesis::serves_until_its_input_ends \
        <"$work/daemon" >"$work/daemon.log" 2>&1 &
    children+=($!)
    exec {to_daemon}>"$work/daemon"
    until [ -S "$1" ]; do
        kill -0 "${children[-1]}" 2>/dev/null || { cat "$work/daemon.log" >&2; exit 1; }
        sleep 0.1
    done
}

start_forwarder() {
    mkfifo "$work/forwarder" "$work/port"
    python3 forward.py "$1" <"$work/forwarder" >"$work/port" &
    children+=($!)
    exec {to_forwarder}>"$work/forwarder"
    read -r port <"$work/port"
}

[ -x "$python/bin/schemathesis" ] || { python3 -m venv "$python" && "$python/bin/pip" install -q "schemathesis==$VERSION"; }

exec {to_daemon}>/dev/null {to_forwarder}>/dev/null
trap end EXIT
where=${1:-}
options=()
case $where in
https://*)
    options+=(--header "Authorization: Bearer ${REKINDLE_TOKEN:?is what lets in}")
    options+=(--tls-verify "${REKINDLE_AUTHORITIES:?is what vouches for the daemon}")
    ;;
*)
    if [ -z "$where" ]; then
        where=$work/api.sock
        start_daemon "$where"
    fi
    start_forwarder "$(realpath "$where")"
    where=http://127.0.0.1:$port
    ;;
esac
[ -z "${SEED:-}" ] || options+=(--seed "$SEED")

# It keeps notes where it runs.
tests=$PWD
cd "$work"
PYTHONPATH=$tests PYTHONDONTWRITEBYTECODE=1 "$python/bin/schemathesis" --config-file "$tests/schemathesis.toml" \
    run "$tests/../../../../docs/openapi.json" --url "$where" \
    --checks all --exclude-checks ignored_auth --max-examples "${EXAMPLES:-30}" --request-timeout 60 \
    --workers 1 "${options[@]}"
