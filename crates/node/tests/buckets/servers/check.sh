#!/usr/bin/env bash
# Runs the tests of stores in buckets with real servers, one after the other: the checks of every store, `doctor`, and two
# nodes that share the bucket.
#
#   check.sh               with all: moto, azurite and ceph
#   check.sh SERVER...     with these
set -euo pipefail

server=
said=$(mktemp)
trap '[ -z "$server" ] || kill "$server"; rm -f "$said"' EXIT

check() {
    local from line variables=()
    printf -- '-- %s (%d s so far)\n' "$1" "$SECONDS"
    exec {from}< <(exec "$(dirname "$0")/$1.sh")
    server=$!
    while read -r line <&"$from" && [ -n "$line" ]; do variables+=("$line"); done
    [ ${#variables[@]} -gt 0 ] || { server=; echo "$1 did not start" >&2; exit 1; }
    env "${variables[@]}" cargo test -q --workspace --test buckets -- --ignored 2>&1 | tee "$said"
    # All of them, and not none.
    grep -q '^test result: ok\. [1-9][0-9]* passed; 0 failed; 0 ignored' "$said"
    kill "$server"
    exec {from}<&-
    server=
}

[ $# -gt 0 ] || set -- moto azurite ceph
for name in "$@"; do check "$name"; done
