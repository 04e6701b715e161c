#!/usr/bin/env bash
# Runs under the systemd that test-systemd.sh boots.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive HOME=/root
count=50

fail() {
    echo "test-systemd: $*" >&2
    journalctl --no-pager -u rekindle -u rekindle-keeper -u rekindle-drain | tail -n 30 >&2 || true
    exit 1
}

wait_ready() {
    for _ in $(seq 600); do
        ! rekindle list sandboxes >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    echo "test-systemd: the daemon does not answer" >&2
    return 1
}

# Waits until all sandboxes of a daemon run.
wait_running() {
    for _ in $(seq 600); do
        running=$(rekindle list sandboxes --json | grep -o '"state": *"running"' | wc -l || true)
        [ "$running" != "$count" ] || return 0
        sleep 0.1
    done
    rekindle list sandboxes >&2
    fail "$running of $count sandboxes run"
}

printf 'store = "/srv/store"\n' >/etc/rekindle/rekindle.toml
dpkg --no-triggers --install --force-confold /given/rekindle.deb >/dev/null
wait_ready || fail "it was not started"
for each in $(seq "$count"); do
    rekindle run --name "guest-$each" --memory 8MiB >/dev/null
done
wait_running
echo "== $count sandboxes run"

systemctl stop rekindle-drain rekindle rekindle-keeper
for unit in rekindle-drain rekindle rekindle-keeper; do
    ! systemctl is-active --quiet "$unit" || fail "$unit still runs"
done
echo "== the units are stopped"

(
    export REKINDLE_STATE_DIRECTORY=/root/other/state REKINDLE_RUN_DIRECTORY=/root/other/run
    install -D --mode=600 /var/lib/rekindle/key-ring.json "$REKINDLE_STATE_DIRECTORY/key-ring.json"
    rekindle serve >/root/other/log 2>&1 &
    other=$!
    wait_ready || { cat /root/other/log >&2; exit 1; }
    mapfile -t snapshots < <(rekindle list snapshots --store --quiet)
    [ "${#snapshots[@]}" = "$count" ] || fail "the store has ${#snapshots[@]} of $count snapshots"
    for snapshot in "${snapshots[@]}"; do
        rekindle verify "$snapshot" >/dev/null
        rekindle resume "$snapshot" >/dev/null
    done
    wait_running
    kill "$other"
    wait "$other"
    rekindle shutdown --yes >/dev/null
)
echo "== another node has them all"

systemctl start rekindle-keeper rekindle rekindle-drain
wait_ready || fail "it was not started"
wait_running
echo "== the next start has them all"
