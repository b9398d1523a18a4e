"""The API's description: complete, true to what the API answers, and shown by a page that may run one script only."""

import base64
import difflib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from core.spec.job import JobSpec, parse
from tests.api.parts import settings_for

SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return create_app(settings_for(f"sqlite:///{tmp_path}/unused.db", tmp_path))


@pytest.fixture
def described(app: FastAPI) -> dict[str, Any]:
    document: dict[str, Any] = TestClient(app).get("/openapi.json").json()
    return document


def operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_everything_that_can_be_called_is_described(described: dict[str, Any]) -> None:
    assert {name for name, _ in operations(described)} == {
        "POST /jobs",
        "GET /jobs",
        "POST /jobs/validate",
        "GET /jobs/counts",
        "GET /jobs/{job_id}",
        "POST /jobs/{job_id}/approve",
        "POST /jobs/{job_id}/cancel",
        "POST /jobs/{job_id}/extend",
        "POST /jobs/{job_id}/hold",
        "POST /jobs/{job_id}/reject",
        "POST /jobs/{job_id}/release",
        "POST /jobs/{job_id}/retry",
        "GET /jobs/{job_id}/metrics",
        "GET /jobs/{job_id}/events",
        "GET /jobs/{job_id}/checkpoints",
        "GET /jobs/{job_id}/artifacts",
        "GET /jobs/{job_id}/artifacts/{name}",
        "GET /jobs/{job_id}/report",
        "POST /datasets",
        "GET /datasets",
        "GET /datasets/{dataset_id}",
        "GET /datasets/{dataset_id}/proof",
        "DELETE /datasets/{dataset_id}",
        "GET /jobs/{job_id}/destruction",
        "POST /models",
        "GET /models",
        "GET /models/{model_id}",
        "GET /models/{model_id}/lineage",
        "DELETE /models/{model_id}",
        "GET /aliases",
        "GET /aliases/{name}",
        "PUT /aliases/{name}",
        "POST /aliases/{name}/rollback",
        "POST /webhooks",
        "GET /webhooks",
        "GET /webhooks/{webhook_id}",
        "DELETE /webhooks/{webhook_id}",
        "POST /webhooks/{webhook_id}/ping",
        "GET /webhooks/{webhook_id}/deliveries",
        "POST /deliveries/{delivery_id}/replay",
        "GET /catalogue",
        "POST /principals",
        "GET /principals",
        "GET /principals/{principal_id}",
        "POST /principals/{principal_id}/disable",
        "POST /api-keys",
        "GET /api-keys",
        "GET /api-keys/{key_id}",
        "DELETE /api-keys/{key_id}",
        "GET /audit",
        "GET /audit/verify",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }


def test_every_call_says_what_it_needs_and_how_it_fails(described: dict[str, Any]) -> None:
    for name, operation in operations(described):
        problem = operation["responses"]["default"]["content"]["application/problem+json"]["schema"]
        assert problem == {"$ref": "#/components/schemas/Problem"}
        for status, answer in operation["responses"].items():
            if status.isdecimal() and int(status) >= 400:
                assert answer["content"].keys() == {"application/problem+json"}, "FastAPI's own form is never sent"
        assert ("security" in operation) == (name not in ("GET /healthz", "GET /readyz")), name
        assert operation["description"], name


def test_every_call_has_an_example_of_what_is_sent_and_answered(described: dict[str, Any]) -> None:
    def valid(media: dict[str, Any], where: str) -> None:
        assert "example" in media or "examples" in media, where
        if isinstance(media.get("example"), dict):
            jsonschema.validate(media["example"], {**media["schema"], "components": described["components"]})

    for name, operation in operations(described):
        for parameter in operation.get("parameters", ()):
            if parameter.get("required"):
                assert parameter["example"], name
        sent = operation.get("requestBody", {}).get("content", {})
        for kind, media in sent.items():
            if kind != "application/octet-stream":
                valid(media, f"{name} sent as {kind}")
        for status, answer in operation["responses"].items():
            for kind, media in answer.get("content", {}).items():
                if kind.endswith("json") and status != "default" and "dsse" not in kind and "in-toto" not in kind:
                    valid(media, f"{name} answered {status} as {kind}")


def test_the_description_is_as_it_was(described: dict[str, Any]) -> None:
    """Whoever changes what callers see, sees it here: LETHE_WRITE_SNAPSHOT=1 writes the file anew."""
    now = json.dumps(described, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("LETHE_WRITE_SNAPSHOT"):
        SNAPSHOT.write_text(now, "utf-8")
    changed = difflib.unified_diff(SNAPSHOT.read_text("utf-8").splitlines(), now.splitlines(), "before", "now", n=1)
    assert "\n".join(itertools.islice(changed, 60)) == ""


def test_every_reference_leads_somewhere_and_every_schema_is_one(described: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(described)))
    schemas = described["components"]["schemas"]
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_body_of_a_job_is_the_spec(described: dict[str, Any]) -> None:
    (call,) = (operation for name, operation in operations(described) if name == "POST /jobs")
    content = call["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/JobSpec"}
    assert described["components"]["schemas"]["JobSpec"]["properties"].keys() == JobSpec.model_fields.keys()
    parse(content["example"])


def test_examples_are_what_the_schemas_say(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    with_examples = [name for name, schema in schemas.items() if schema.get("examples")]
    assert {"Metrics", "Dataset", "Model", "Problem", "Event"} <= set(with_examples)
    for name in with_examples:
        whole = {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
        for example in schemas[name]["examples"]:
            jsonschema.validate(example, whole)


def test_the_page_may_run_its_own_script_and_no_other(app: FastAPI) -> None:
    page = TestClient(app).get("/docs")
    policy = page.headers["content-security-policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    script_sources = next(part for part in policy.split(";") if "script-src" in part)
    assert "unsafe" not in script_sources


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    assert "key_secret" not in repr(Settings.model_construct(key_secret="s3cret", database_url="u", broker_url="b"))
