#!/usr/bin/env bash
# Asks systemd and Prometheus about the files for them, and checks the manifests for Kubernetes and Nomad with validators from
# PyPI. Says what it could not ask; with --all that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

all=${1:-}
KUBERNETES_VALIDATE_VERSION=1.37.0
HCL2_VERSION=8.1.4
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

python=${CARGO_TARGET_DIR:-target}/manifests-$KUBERNETES_VALIDATE_VERSION-$HCL2_VERSION
[ -x "$python/bin/kubernetes-validate" ] || {
    python3 -m venv "$python"
    "$python/bin/pip" install -q "kubernetes-validate==$KUBERNETES_VALIDATE_VERSION" "python-hcl2==$HCL2_VERSION"
}
"$python/bin/python" -B packaging/manifests.py
