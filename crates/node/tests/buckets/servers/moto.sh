#!/usr/bin/env bash
# Starts moto, a server of S3 that keeps all in memory; see server.sh.
set -euo pipefail
. "$(dirname "$0")/server.sh"

VERSION=5.2.5
moto=$(folder "moto-$VERSION")
[ -x "$moto/bin/moto_server" ] || {
    python3 -m venv "$moto"
    # Its extra `server` is for all services, and takes three times as long.
    "$moto/bin/pip" install -q "moto[s3]==$VERSION" flask flask-cors >&2
}

url=http://127.0.0.1:$(free_port)
start "$moto/bin/moto_server" -H 127.0.0.1 -p "${url##*:}"
until_succeeds curl -s "$url"
curl -sf -o /dev/null -X PUT "$url/$BUCKET"
serve "REKINDLE_STORE=s3://$BUCKET" "REKINDLE_BUCKET_ENDPOINT=$url" REKINDLE_BUCKET_ALLOW_HTTP=true \
    AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret
