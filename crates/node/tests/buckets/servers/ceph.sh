#!/usr/bin/env bash
# Starts Ceph's gateway for S3 over a store of one disk, which is a sparse file of 10 GiB; see server.sh. Packages of Debian
# that are missing are installed; none of their services starts.
set -euo pipefail
. "$(dirname "$0")/server.sh"

PATH=$PATH:/usr/sbin:/sbin
missing=()
for package in ceph-mon ceph-osd ceph-mgr radosgw ceph-common; do
    dpkg-query -W "$package" >/dev/null 2>&1 || missing+=("$package")
done
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
[ ${#missing[@]} = 0 ] || {
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
} >&2

monitor_port=$(free_port)
gateway_port=$(free_port)
fsid=$(cat /proc/sys/kernel/random/uuid)
disk=$(cat /proc/sys/kernel/random/uuid)
export CEPH_CONF=$place/ceph.conf
cat >"$CEPH_CONF" <<END
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$monitor_port]
ms_bind_msgr1 = false
public_network = 127.0.0.0/8
keyring = $place/keyring
run_dir = $place
log_file = $place/\$name.log
admin_socket =
mon_data = $place/mon
mgr_data = $place/mgr
osd_data = $place/osd
bluestore_block_size = $((10 << 30))
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_max_pg_per_osd = 1000
[client.rgw]
rgw_data = $place/rgw
rgw_frontends = beast endpoint=127.0.0.1:$gateway_port tcp_nodelay=1
END
mkdir "$place"/{mon,mgr,osd,rgw}

key() {
    local name=$1 options=()
    shift
    while [ $# -gt 0 ]; do options+=(--cap "$1" "$2"); shift 2; done
    ceph-authtool "$place/keyring" --gen-key -n "$name" "${options[@]}" >/dev/null
}
ceph-authtool --create-keyring "$place/keyring" >/dev/null
key mon. mon 'allow *'
key client.admin mon 'allow *' osd 'allow *' mgr 'allow *'
key mgr.x mon 'allow profile mgr' osd 'allow *'
key osd.0 mon 'allow profile osd' mgr 'allow profile osd' osd 'allow *'
key client.rgw mon 'allow rw' osd 'allow rwx'

{
    monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$monitor_port]" "$place/monmap"
    ceph-mon --mkfs -i a --monmap "$place/monmap" --keyring "$place/keyring"
} >&2
start ceph-mon -f -i a
until_succeeds timeout 5 ceph status
start ceph-mgr -f -i x
ceph osd new "$disk" 0 >&2
ceph-osd --mkfs -i 0 --osd-uuid "$disk" >>"$place/log" 2>&1
start ceph-osd -f -i 0
start radosgw -f -n client.rgw

url=http://127.0.0.1:$gateway_port
until_succeeds curl -s "$url"
radosgw-admin user create --uid tests --display-name tests --access-key key --secret-key secret >>"$place/log" 2>&1
curl -sS --fail-with-body -X PUT --aws-sigv4 aws:amz:us-east-1:s3 --user key:secret \
    -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "$url/$BUCKET" >&2
serve "REKINDLE_STORE=s3://$BUCKET" "REKINDLE_BUCKET_ENDPOINT=$url" REKINDLE_BUCKET_ALLOW_HTTP=true \
    AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret
