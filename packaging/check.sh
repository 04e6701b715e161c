#!/usr/bin/env bash
# Asks systemd and Prometheus about the files for them. Says what it could not ask; with --all that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

all=${1:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

missing() {
    echo "not checked: $1 is not here (it is in Debian's package $2)" >&2
    [ "$all" != --all ] || exit 1
}

if command -v systemd-analyze >/dev/null; then
    for unit in packaging/systemd/*.service; do
        # Verified with a program that is here.
        sed 's#^\(Exec[A-Za-z]*\)=/usr/bin/rekindle.*#\1=/bin/true#' "$unit" >"$work/$(basename "$unit")"
    done
    systemd-analyze verify --man=no "$work"/*.service
    echo "systemd takes the units"
else
    missing systemd-analyze systemd
fi

if command -v promtool >/dev/null; then
    promtool check rules packaging/prometheus/alerts.yml
else
    missing promtool prometheus
fi
