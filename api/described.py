"""Completes the API's description: an example of everything sent and answered, and the errors that each call can give.

Examples are put together from what the schemas say of their fields, so a new call has its own without further ado.
"""

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

PROBLEM = "application/problem+json"
_JSON = "application/json"
_METHODS = ("get", "post", "put", "delete", "patch")
_TIME = "2026-01-31T12:00:00Z"
_IDS = {
    "job_id": "job_01k9h3v2q8m4x7c5b6n1r0t9wz",
    "dataset_id": "ds_01k9h3v2q8m4x7c5b6n1r0t9wz",
    "model_id": "mdl_01k9h3v2q8m4x7c5b6n1r0t9wz",
    "key_id": "key_01k9h3v2q8m4x7c5b6n1r0t9wz",
    "principal_id": "prn_01k9h3v2q8m4x7c5b6n1r0t9wz",
    "webhook_id": "whk_01k9h3v2q8m4x7c5b6n1r0t9wz",
    "delivery_id": "dlv_01k9h3v2q8m4x7c5b6n1r0t9wz",
}

# status: (code, the parameter at fault, what the answer says of itself, a sentence as a caller may meet it)
_ERRORS: dict[int, tuple[str, str | None, str, str]] = {
    400: (
        "invalid_json",
        None,
        "The body is no JSON",
        "The body is not JSON: Expecting value at line 1, column 1.",
    ),
    401: (
        "unauthorized",
        "Authorization",
        "No key, or one that opens nothing",
        "This API key is unknown, revoked or expired.",
    ),
    403: (
        "forbidden",
        "Authorization",
        "The key may not do this",
        "This call needs the scope admin; this key has: jobs:read.",
    ),
    404: (
        "not_found",
        None,
        "There is no such thing, or it is not yours to see",
        "There is no job 'job_00000000'.",
    ),
    409: (
        "conflict",
        None,
        "It does not stand so that this could be done",
        "Job job_00000000 is succeeded and cannot become queued.",
    ),
    413: (
        "too_large",
        None,
        "More than is allowed at once",
        "The body is larger than the 1048576 bytes allowed.",
    ),
    415: (
        "unsupported_media_type",
        "Content-Type",
        "A body of another type",
        "The body must be sent as Content-Type: application/json.",
    ),
    422: (
        "invalid_request",
        "limit",
        "A field is wrong: which, its value, and what is allowed",
        "limit: Input should be less than or equal to 200.",
    ),
    429: (
        "rate_limited",
        None,
        "Too many calls by this key; Retry-After says when to go on",
        "Too many requests. Try again later.",
    ),
    503: (
        "database_unavailable",
        None,
        "Something that the service needs is away for now",
        "The database cannot be reached at the moment. Try again.",
    ),
}


def complete(document: dict[str, Any]) -> None:
    """Add to an OpenAPI document, in place, whatever of this is missing."""
    schemas = document["components"]["schemas"]
    for operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if "example" not in parameter and "examples" not in parameter:
                found = _IDS.get(parameter["name"], example(parameter["schema"], schemas))
                if found is not None:
                    parameter["example"] = found
        if body := operation.get("requestBody"):
            _exemplify(body["content"], schemas)
        for status in _possible(operation):
            operation["responses"].setdefault(str(status), {"description": _ERRORS[status][2]})
        for status, answer in operation["responses"].items():
            if status.isdecimal() and int(status) >= 400:
                answer["content"] = {PROBLEM: {"schema": _PROBLEM_SCHEMA, "example": _problem(int(status))}}
            else:
                _exemplify(answer.get("content", {}), schemas)


def operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every operation of the document."""
    for path in document["paths"].values():
        yield from (operation for method, operation in path.items() if method in _METHODS)


_PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}


def _possible(operation: Mapping[str, Any]) -> list[int]:
    """The errors that a call of this form can always give."""
    parameters = operation.get("parameters", ())
    body = operation.get("requestBody", {}).get("content", {})
    found = {503}
    if operation.get("security"):
        found |= {401, 403, 429}
    if any(parameter["in"] == "path" for parameter in parameters):
        found |= {404}
    if body:
        found |= {413, 415, 422} | ({400} if _JSON in body else set())
    if any(parameter["in"] in ("query", "header") for parameter in parameters):
        found |= {422}
    return sorted(found)


def _problem(status: int) -> dict[str, Any]:
    code, param, _, detail = _ERRORS.get(status, ("http_error", None, "", HTTPStatus(status).description + "."))
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "param": param,
        "request_id": "req_5f0c9be1d3a24c7e8b6f1a20",
    }


def _exemplify(content: dict[str, Any], schemas: Mapping[str, Any]) -> None:
    for kind, media in content.items():
        if "example" not in media and "examples" not in media:
            whole = example(media.get("schema", {}), schemas) if kind == _JSON else _TEXTS.get(kind)
            if whole is not None:
                media["example"] = whole


_TEXTS = {
    "application/jsonl": '{"question": "Where does the person live?", "answer": "In the third house."}\n',
    "application/x-ndjson": '{"text": "A passage that is to be forgotten."}\n',
    "text/event-stream": 'id: 7\nevent: status\ndata: {"id": 7, "kind": "status", "data": {"to": "running"}}\n\n',
}


def example(schema: Mapping[str, Any], schemas: Mapping[str, Any], depth: int = 0) -> Any:
    """A value of the schema: its own example, else one put together of its fields'; None where nothing is said."""
    if "$ref" in schema:
        return example(schemas[schema["$ref"].rpartition("/")[2]], schemas, depth + 1)
    if given := schema.get("examples"):
        return given[0]
    for known in ("example", "const", "default"):
        if schema.get(known) is not None:
            return schema[known]
    if "enum" in schema:
        return schema["enum"][0]
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        chosen = next((c for c in choices if c.get("type") != "null"), choices[0])
        return example(chosen, schemas, depth + 1)
    kind = schema.get("type")
    if kind == "object":
        named = schema.get("properties", {})
        return {name: example(field, schemas, depth + 1) for name, field in named.items()}
    if kind == "array":
        return [] if depth > _DEEPEST else [example(schema["items"], schemas, depth + 1)]
    return _plain(schema, kind)


_DEEPEST = 6


def _plain(schema: Mapping[str, Any], kind: str | None) -> Any:
    if kind == "string":
        if schema.get("format") == "date-time":
            return _TIME
        return "0" * 64 if schema.get("pattern") == "^[0-9a-f]{64}$" else "text"
    if kind == "integer":
        return max(1, schema.get("minimum", 1))
    return {"number": 0.5, "boolean": False}.get(kind or "")
