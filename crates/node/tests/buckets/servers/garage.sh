#!/usr/bin/env bash
# Starts Garage, three nodes with three copies of everything, one of which is killed once the bucket is there; see server.sh.
# By hand only: `check.sh garage`. It is built from crates.io, which takes a quarter of an hour, and needs libsodium-dev.
set -euo pipefail
. "$(dirname "$0")/server.sh"

VERSION=2.5.0
garage=$(folder "garage-$VERSION")
[ -x "$garage/bin/garage" ] || cargo install garage --locked --version "$VERSION" --debug --root "$garage" \
    --no-default-features --features bundled-libs,sqlite >&2

secret=$(openssl rand -hex 32)
ports=()
for node in 1 2 3; do
    rpc_port=$(free_port) api_port=$(free_port)
    ports+=("$api_port")
    mkdir "$place/$node"
    cat >"$place/$node/garage.toml" <<END
metadata_dir = "$place/$node/meta"
data_dir = "$place/$node/data"
db_engine = "sqlite"
replication_factor = 3
rpc_secret = "$secret"
rpc_bind_addr = "127.0.0.1:$rpc_port"
rpc_public_addr = "127.0.0.1:$rpc_port"
[s3_api]
api_bind_addr = "127.0.0.1:$api_port"
s3_region = "us-east-1"
END
    start "$garage/bin/garage" -c "$place/$node/garage.toml" server
done

# A command for a node.
node() {
    "$garage/bin/garage" -c "$place/$1/garage.toml" "${@:2}" 2>>"$place/log"
}
until_succeeds node 1 status
for other in 2 3; do
    until_succeeds node "$other" node id -q
    node 1 node connect "$(node "$other" node id -q)" >&2
done
for each in 1 2 3; do node 1 layout assign -z here -c 10G "$(node "$each" node id -q | cut -d @ -f 1)" >&2; done
node 1 layout apply --version 1 >&2
until_succeeds node 1 bucket create "$BUCKET"
key=GK$(openssl rand -hex 12) key_secret=$(openssl rand -hex 32)
node 1 key import --yes -n tests "$key" "$key_secret" >&2
node 1 bucket allow --read --write --owner "$BUCKET" --key "$key" >&2

# Two of three are enough.
kill -KILL "${processes[2]}"
processes=("${processes[@]:0:2}")
serve "REKINDLE_STORE=s3://$BUCKET" "REKINDLE_BUCKET_ENDPOINT=http://127.0.0.1:${ports[0]}" \
    REKINDLE_BUCKET_ALLOW_HTTP=true CONDITIONAL_PUTS=ignored \
    "AWS_ACCESS_KEY_ID=$key" "AWS_SECRET_ACCESS_KEY=$key_secret"
