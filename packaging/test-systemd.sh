#!/usr/bin/env bash
# Boots a systemd of its own over this machine's files, none of which it changes, installs the Debian package there, and
# stops the units beside 50 running sandboxes: no sandbox is lost, neither over the next start nor on another node.
# It wants root and systemd-nspawn, which is in Debian's package systemd-container.
set -euo pipefail
cd "$(dirname "$0")/.."

package=$(realpath "${1:-$(ls -t "${CARGO_TARGET_DIR:-target}"/debian/rekindle_*.deb | head -n1)}")
fail() {
    echo "test-systemd: $*" >&2
    exit 1
}
command -v systemd-nspawn >/dev/null || fail "systemd-nspawn is not here (package systemd-container)"
work=$(mktemp -d)

clean_up() {
    umount "$work/root" 2>/dev/null || true
    umount "$work/changes" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT

mkdir "$work"/{root,changes,given}
mount -t tmpfs -o size=3g changes "$work/changes"
mkdir "$work"/changes/{upper,work}
mount -t overlay -o "lowerdir=/,upperdir=$work/changes/upper,workdir=$work/changes/work" overlay "$work/root"
rm -f "$work/root/etc/machine-id"
# Images for containers have one that keeps packages from starting their units.
rm -f "$work/root/usr/sbin/policy-rc.d"
rm -rf "$work/root/var/lib/rekindle" "$work/root/etc/rekindle"
cp "$package" "$work/given/rekindle.deb"
cp packaging/stopped-with-sandboxes.sh "$work/given/"
mkdir -p "$work/root/etc/systemd/system/"{rekindle.service.d,multi-user.target.wants}
printf '[Service]\nReadWritePaths=/srv/store\n' >"$work/root/etc/systemd/system/rekindle.service.d/store.conf"
mkdir -p "$work/root/srv/store" "$work/root/etc/rekindle"
cat >"$work/root/etc/systemd/system/given.service" <<'UNIT'
[Service]
Type=oneshot
ExecStart=/bin/bash /given/stopped-with-sandboxes.sh
StandardOutput=append:/given/log
StandardError=append:/given/log
ExecStopPost=/bin/sh -c 'echo "$EXIT_STATUS" >/given/status; systemctl poweroff --no-block'
UNIT
ln -s ../given.service "$work/root/etc/systemd/system/multi-user.target.wants/given.service"

timeout 900 systemd-nspawn --quiet --directory="$work/root" --boot --machine="rekindle-test-$$" --bind="$work/given:/given" \
    --bind=/dev/userfaultfd --capability=all --private-network --register=no --keep-unit --link-journal=no \
    --console=pipe </dev/null >"$work/boot.log" 2>&1 || cat "$work/boot.log" >&2
cat "$work/given/log" || true
[ "$(cat "$work/given/status" 2>/dev/null)" = 0 ] || fail "it failed"
echo "== a stop of the units loses no sandbox"
