#!/usr/bin/env bash
# Installs the Debian package that packaging/package.sh made into an empty root, checks what it brings, and runs the
# daemon from there: a sandbox is paused, the daemon killed and started again, the sandbox resumed.
set -euo pipefail
cd "$(dirname "$0")/.."

package=${1:-$(ls -t "${CARGO_TARGET_DIR:-target}"/debian/rekindle_*.deb | head -n1)}
root=$(mktemp -d)
processes=()

clean_up() {
    for process in "${processes[@]}"; do
        kill -KILL "$process" 2>/dev/null || true
    done
    [ ! -S "$root/run/keeper.sock" ] || keeper_stop
    rm -rf "$root"
}
trap clean_up EXIT

fail() {
    echo "test-package: $*" >&2
    exit 1
}

# The keeper ends with what it holds; its process is the one whose arguments name this socket.
keeper_stop() {
    for arguments in /proc/[0-9]*/cmdline; do
        # A process may have ended since it was listed.
        if { tr '\0' ' ' <"$arguments"; } 2>/dev/null | grep -qF "keeper --socket $root/run/keeper.sock"; then
            kill -KILL "$(basename "$(dirname "$arguments")")" 2>/dev/null || true
        fi
    done
}

echo "== $package"
dpkg-deb --info "$package" | sed -n 's/^ \(Package\|Version\|Architecture\|Depends\):/\1:/p'

# A root of its own with a database of its own; maintainer scripts want a system around them and are looked at below.
mkdir -p "$root/var/lib/dpkg/"{info,updates}
: >"$root/var/lib/dpkg/status"
dpkg --root="$root" --force-depends --force-not-root --force-script-chrootless \
    --unpack "$package" >/dev/null 2>"$root/dpkg.log" || { cat "$root/dpkg.log" >&2; fail "unpacking"; }

for path in usr/bin/rekindle \
    lib/systemd/system/rekindle.service lib/systemd/system/rekindle-keeper.service \
    lib/systemd/system/rekindle-drain.service \
    usr/share/man/man1/rekindle.1.gz usr/share/man/man1/rekindle-serve.1.gz \
    usr/share/bash-completion/completions/rekindle usr/share/zsh/vendor-completions/_rekindle \
    usr/share/fish/vendor_completions.d/rekindle.fish \
    usr/share/doc/rekindle/README.md usr/share/doc/rekindle/docs/operations.md usr/share/doc/rekindle/copyright \
    usr/share/doc/rekindle/prometheus/alerts.yml usr/share/doc/rekindle/grafana/rekindle.json; do
    [ -s "$root/$path" ] || [ -s "$root/usr/$path" ] || fail "$path is missing"
done

control=$(mktemp -d "$root/control.XXXX")
dpkg-deb --control "$package" "$control"
grep -qx /etc/rekindle/rekindle.toml "$control/conffiles" || fail "the settings are not kept over an upgrade"
grep -q "deb-systemd-invoke.*rekindle" "$control/postinst" || fail "the services are not started"
for script in "$control"/{preinst,postinst,prerm,postrm}; do
    [ ! -e "$script" ] || sh -n "$script" || fail "$script"
done

echo "== the program as it was installed"
program=$root/usr/bin/rekindle
bytes=$(stat -c %s "$program")
[ "$bytes" -lt 60000000 ] || fail "the program has $bytes bytes: it was not stripped"
"$program" --version
export REKINDLE_STATE_DIRECTORY=$root/state REKINDLE_RUN_DIRECTORY=$root/run
export REKINDLE_CONFIG=$root/etc/rekindle/rekindle.toml
[ -s "$REKINDLE_CONFIG" ] || REKINDLE_CONFIG=$root/etc/rekindle/rekindle.toml.dpkg-new
"$program" settings >/dev/null
"$program" doctor >"$root/doctor" || true

start() {
    "$program" serve 2>>"$root/daemon.log" &
    daemon=$!
    processes+=("$daemon")
    for _ in $(seq 300); do
        "$program" list sandboxes >/dev/null 2>&1 && return
        kill -0 "$daemon" 2>/dev/null || { cat "$root/daemon.log" >&2; fail "the daemon ended"; }
        sleep 0.1
    done
    cat "$root/daemon.log" >&2
    fail "the daemon does not answer"
}

start
"$program" run --name first --memory 16MiB >/dev/null
"$program" pause first --name kept >/dev/null
kill -KILL "$daemon"
wait "$daemon" 2>/dev/null || true
start
"$program" show kept >/dev/null
"$program" resume first >/dev/null
"$program" verify kept >/dev/null
"$program" delete first --yes >/dev/null
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon did not end well"
echo "== the package works"
