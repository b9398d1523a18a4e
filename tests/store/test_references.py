"""What a spec names by id is found, whatever field or set names it."""

from collections.abc import Iterator
from typing import Any

from api.store import references
from core.spec.job import JobSpec
from core.spec.metrics import SETS


def _fields(schema: dict[str, Any], whole: dict[str, Any]) -> Iterator[str]:
    """Names of the fields of a JSON schema that hold a registered model, through every union."""
    reference = schema.get("$ref", "").removeprefix("#/$defs/")
    if reference == "RegisteredModel":
        yield ""
    elif reference:
        yield from _fields(whole["$defs"][reference], whole)
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _fields(choice, whole)
    for name, inner in schema.get("properties", {}).items():
        yield from (f"{name}.{rest}".rstrip(".") for rest in _fields(inner, whole))


def test_every_field_that_takes_a_model_is_looked_at() -> None:
    whole = JobSpec.model_json_schema()
    fields = set(_fields(whole, whole))
    assert len(fields) > 2
    spec: dict[str, Any] = {}
    for field in fields:
        *parts, last = field.split(".")
        place = spec
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = {"id": f"mdl_{field}"}
    assert references.models(spec) == {field: {"id": f"mdl_{field}"} for field in fields}


def test_every_set_that_is_an_upload_is_found_and_nothing_else() -> None:
    uploads: dict[str, Any] = {name: {"source": "upload", "dataset": f"ds_{name}", "rows": None} for name in SETS}
    settings = {"forget_ratio": 0.5, "prompt": "plain", "max_length": 64}
    assert references.uploads({"data": uploads | settings}) == {name: f"ds_{name}" for name in SETS}
    files: dict[str, Any] = {name: {"source": "jsonl", "path": "/upload"} for name in SETS}
    assert references.uploads({"data": files | settings | {"text": None, "seen": uploads["seen"]}}) == {
        "seen": "ds_seen"
    }


def test_what_an_older_spec_does_not_have_is_not_there() -> None:
    spec = {"model": {"path": "/m"}, "method": {"name": "ascent"}, "data": {"forget": {"source": "jsonl"}}}
    assert references.models(spec) == {"model": {"path": "/m"}}
    spec["evaluation"] = {"retrained": None, "reference": None}
    assert references.models(spec) == {"model": {"path": "/m"}}
