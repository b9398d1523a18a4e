"""How the bodies are written that are no JSON document (read by schemathesis, which tests/api/test_fuzz.py starts)."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/jsonl", "application/x-ndjson")
def lines(_context: Any, value: Any) -> bytes:
    """Whatever was generated, as the lines of an upload."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()
