"""What is asked, made such as programs ask it."""

import re
import uuid

import schemathesis

# Memory of one sandbox, so that a machine has room for hundreds.
MEMORY_BYTES_MAX = 64 << 20

# Sandboxes that one request makes.
COUNT_MAX = 3

# What the answer of a route names, and the routes of such a thing.
MADE = {
    "/v1/sandboxes": ("#/id", "/v1/sandboxes/{reference}"),
    "/v1/sandboxes/{reference}/pause": ("#/id", "/v1/snapshots/{reference}"),
    "/v1/sandboxes/{reference}/fork": ("#/sandboxes/0/id", "/v1/sandboxes/{reference}"),
    "/v1/snapshots/{reference}/resume": ("#/sandboxes/0/id", "/v1/sandboxes/{reference}"),
    "/v1/captures": ("#/id", "/v1/snapshots/{reference}"),
    "/v1/fault-sockets": ("#/id", "/v1/fault-sockets/{id}"),
}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Says which routes go on with what another made."""
    paths = raw_schema["paths"]
    for path, (id, things) in MADE.items():
        links = paths[path]["post"]["responses"]["201"].setdefault("links", {})
        parameter = things[things.index("{") + 1 : -1]
        for other, operations in paths.items():
            if not other.startswith(things):
                continue
            for operation in operations.values():
                name = operation["operationId"]
                links[name] = {"operationId": name, "parameters": {parameter: f"$response.body{id}"}}
    of_snapshot = {"operationId": "open_fault_socket", "requestBody": {"snapshot": "$response.body#/id"}}
    paths["/v1/sandboxes/{reference}/pause"]["post"]["responses"]["201"]["links"]["open_fault_socket"] = of_snapshot


def whole(value):
    """Writes 14, never 14.0, which JSON Schema also calls an integer."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 63:
        return int(value)
    if isinstance(value, list):
        return [whole(one) for one in value]
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    return value


@schemathesis.hook
def map_body(context, body):
    """Asks for little and few where it asks for what could be."""
    body = whole(body)
    if not isinstance(body, dict):
        return body
    memory = body.get("memory_bytes")
    if type(memory) is int and MEMORY_BYTES_MAX < memory <= 1 << 40 and memory % 4096 == 0:
        body["memory_bytes"] = memory % MEMORY_BYTES_MAX or MEMORY_BYTES_MAX
    count = body.get("count")
    if type(count) is int and 1 <= count <= 256:
        body["count"] = count % COUNT_MAX + 1
    return body


@schemathesis.hook
def map_query(context, query):
    """Waits for states that can be waited for: the others are ends of another kind."""
    if query and query.get("state") in ("discarded", "lost"):
        query["state"] = "published"
    return query


@schemathesis.hook
def map_headers(context, headers):
    """Gives each request a key of its own: under one key, one thing is made once."""
    for name, value in list((headers or {}).items()):
        if name.lower() == "idempotency-key" and isinstance(value, str) and re.fullmatch("[!-~]{1,255}", value):
            headers[name] = str(uuid.uuid4())
    return headers
