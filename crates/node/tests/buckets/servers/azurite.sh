#!/usr/bin/env bash
# Starts Azurite, a server of Azure's blobs that keeps all in memory; see server.sh.
set -euo pipefail
. "$(dirname "$0")/server.sh"

VERSION=3.37.0
azurite=$(folder "azurite-$VERSION")
[ -x "$azurite/node_modules/.bin/azurite-blob" ] ||
    npm install --silent --no-audit --no-fund --prefix "$azurite" "azurite@$VERSION" >&2

# The account and the key that every Azurite has; they are published with it.
account=devstoreaccount1
key=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==

# Makes the container, by a request that is signed with the key.
make_container() {
    python3 - "$1" "$account" "$key" <<'END'
import base64, hashlib, hmac, sys, urllib.request
from email.utils import formatdate

url, account, key = sys.argv[1:]
path = "/" + url.split("/", 3)[3]
sent = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
lines = "".join(f"{name}:{value}\n" for name, value in sorted(sent.items()))
text = "PUT" + "\n" * 12 + f"{lines}/{account}{path}\nrestype:container"
signature = base64.b64encode(hmac.digest(base64.b64decode(key), text.encode(), hashlib.sha256)).decode()
sent["Authorization"] = f"SharedKey {account}:{signature}"
urllib.request.urlopen(urllib.request.Request(f"{url}?restype=container", method="PUT", headers=sent))
END
}

url=http://127.0.0.1:$(free_port)
start "$azurite/node_modules/.bin/azurite-blob" --inMemoryPersistence --skipApiVersionCheck --disableTelemetry \
    --silent --blobHost 127.0.0.1 --blobPort "${url##*:}"
until_succeeds curl -s "$url"
make_container "$url/$account/$BUCKET"
serve "REKINDLE_STORE=az://$BUCKET" "REKINDLE_BUCKET_ENDPOINT=$url/$account" REKINDLE_BUCKET_ALLOW_HTTP=true \
    "REKINDLE_BUCKET_ACCOUNT=$account" "AZURE_STORAGE_ACCOUNT_KEY=$key"
