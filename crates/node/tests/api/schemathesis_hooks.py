"""What is asked, made such as programs ask it."""

import re
import uuid

import schemathesis

# Memory of one sandbox, so that a machine has room for hundreds.
MEMORY_BYTES_MAX = 64 << 20


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
    """Asks for little memory where it asks for memory that could be."""
    body = whole(body)
    wanted = body.get("memory_bytes") if isinstance(body, dict) else None
    if isinstance(wanted, int) and MEMORY_BYTES_MAX < wanted <= 1 << 40 and wanted % 4096 == 0:
        body["memory_bytes"] = wanted % MEMORY_BYTES_MAX or MEMORY_BYTES_MAX
    return body


@schemathesis.hook
def map_headers(context, headers):
    """Gives each request a key of its own: under one key, one thing is made once."""
    for name, value in list((headers or {}).items()):
        if name.lower() == "idempotency-key" and isinstance(value, str) and re.fullmatch("[!-~]{1,255}", value):
            headers[name] = str(uuid.uuid4())
    return headers
