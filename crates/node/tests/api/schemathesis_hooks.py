"""What is asked, made such as programs ask it."""

import re
import uuid

import schemathesis


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
    return whole(body)


@schemathesis.hook
def map_headers(context, headers):
    """Gives each request a key of its own: under one key, one thing is made once."""
    for name, value in list((headers or {}).items()):
        if name.lower() == "idempotency-key" and isinstance(value, str) and re.fullmatch("[!-~]{1,255}", value):
            headers[name] = str(uuid.uuid4())
    return headers
