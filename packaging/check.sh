#!/usr/bin/env bash
# Asks systemd and Prometheus about the files for them. Says what it could not ask; `--all` makes that a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

missing() {
    echo "not checked: $1 is not here (Debian's package $2)" >&2
    [ "${ALL:-}" = "" ] || exit 1
}
[ "${1:-}" != --all ] || ALL=yes

if command -v systemd-analyze >/dev/null; then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    # The units name an installed program: verify wants it to be there.
    mkdir -p "$root/usr/bin" "$root/etc/systemd/system" "$root/bin"
    install -m 755 /bin/true "$root/usr/bin/rekindle"
    install -m 755 /bin/true "$root/bin/kill"
    cp packaging/systemd/*.service "$root/etc/systemd/system/"
    cp -a /lib/systemd/system/{multi-user,network-online,network,basic,sysinit,shutdown,system}* /dev/null 2>&1 || true
    systemd-analyze verify --root="$root" --man=no --recursive-errors=no rekindle.service rekindle-keeper.service
    echo "systemd takes the units"
else
    missing systemd-analyze systemd
fi

if command -v promtool >/dev/null; then
    promtool check rules packaging/prometheus/alerts.yml
else
    missing promtool prometheus
fi
