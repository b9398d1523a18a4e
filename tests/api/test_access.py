"""Principals, keys and the audit log over the API: who may make them, what is shown once, and what locks nobody out."""

import json
from typing import Any

import pytest
from sqlalchemy import text as sql
from starlette.testclient import TestClient

from api.store import audit, chain, keys
from api.store.keys import SCOPES, Scope
from api.store.session import Database
from api.store.tables import ApiKey
from tests.api.parts import SECRET, bearer, problem

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

LATER = "2999-01-01T00:00:00Z"


@pytest.fixture
def ada(client: TestClient) -> str:
    """Id of a principal."""
    made = client.post("/principals", json={"name": "Ada Quill"})
    assert made.status_code == 201
    return str(made.json()["id"])


def key_of(client: TestClient, principal: str, *scopes: str, **more: Any) -> dict[str, Any]:
    made = client.post("/api-keys", json={"principal": principal, "name": "intake", "scopes": scopes, **more})
    assert made.status_code == 201, made.text
    body: dict[str, Any] = made.json()
    assert made.headers["location"] == f"/api-keys/{body['id']}"
    return body


def test_a_key_is_made_shown_once_used_and_revoked(client: TestClient, database: Database, ada: str) -> None:
    made = key_of(client, ada, "models:write", "jobs:read", "jobs:read", expires_at=LATER)
    text = made.pop("key")
    assert text.startswith(f"lethe_{made['prefix']}_")
    assert (made["principal"], made["scopes"], made["expires_at"]) == (ada, ["jobs:read", "models:write"], LATER)
    assert client.get("/jobs", headers=bearer(text)).status_code == 200
    shown = client.get(f"/api-keys/{made['id']}").json()
    assert shown.pop("last_used_at") is not None
    assert shown == {name: value for name, value in made.items() if name != "last_used_at"}
    listed = client.get("/api-keys").json()
    assert listed["data"][0]["id"] == made["id"]
    assert text not in json.dumps(listed)
    for _ in range(2):  # revoking again changes nothing
        assert client.delete(f"/api-keys/{made['id']}").json()["revoked_at"] is not None
        problem(client.get("/jobs", headers=bearer(text)), 401, "unauthorized")  # at once in this process
    with database.reading() as session:
        (own,) = [key for key in keys.every(session) if key.id != made["id"]]
        noted = [(e.action, e.actor, e.key_id) for e in audit.about(session, made["id"])]
        facts = audit.about(session, made["id"])[0].facts
    assert noted == [("key.created", own.principal_id, own.id), ("key.revoked", own.principal_id, own.id)]
    assert facts["request_id"].startswith("req_")
    assert text not in json.dumps(facts)


def test_a_disabled_principal_has_no_key_that_opens(client: TestClient, ada: str) -> None:
    first, second = (key_of(client, ada, "jobs:read")["key"] for _ in range(2))
    assert client.get("/jobs", headers=bearer(first)).status_code == 200
    assert client.post(f"/principals/{ada}/disable").json()["disabled_at"] is not None
    for text in (first, second):
        problem(client.get("/jobs", headers=bearer(text)), 401, "unauthorized")
    refused = client.post("/api-keys", json={"principal": ada, "name": "x", "scopes": ["jobs:read"]})
    problem(refused, 409, "conflict")
    problem(client.post("/principals", json={"name": "Ada Quill"}), 409, "conflict")
    assert [one["name"] for one in client.get("/principals").json()["data"]] == ["Ada Quill", "tester"]
    assert client.get(f"/principals/{ada}").json()["name"] == "Ada Quill"


def test_the_last_key_that_can_make_others_stays(client: TestClient, database: Database, ada: str) -> None:
    with database.reading() as session:
        own = keys.every(session)[0]
    key_of(client, ada, "jobs:read")
    key_of(client, ada, "admin", expires_at=LATER)
    other = client.get("/api-keys").json()["data"][0]["id"]
    assert client.delete(f"/api-keys/{other}").status_code == 200
    assert "Make another first" in problem(client.delete(f"/api-keys/{own.id}"), 409, "conflict")["detail"]
    problem(client.post(f"/principals/{own.principal_id}/disable"), 409, "conflict")
    assert client.get("/api-keys").status_code == 200
    key_of(client, ada, "admin")
    assert client.delete(f"/api-keys/{own.id}").status_code == 200


FAULTS = {
    "no scope": ({"scopes": []}, "scopes"),
    "unknown scope": ({"scopes": ["jobs:red"]}, "scopes.0"),
    "no name": ({"name": ""}, "name"),
    "a time without a zone": ({"expires_at": "2999-01-01T00:00:00"}, "expires_at"),
    "a time that has passed": ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
    "unknown field": ({"scope": "admin"}, "scope"),
    "NUL": ({"name": "\0"}, "name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_request_for_a_key_makes_none(client: TestClient, ada: str, fault: str) -> None:
    changes, param = FAULTS[fault]
    answer = client.post("/api-keys", json={"principal": ada, "name": "x", "scopes": ["jobs:read"], **changes})
    assert answer.status_code == 422, answer.text
    assert answer.json()["param"] == param
    assert len(client.get("/api-keys").json()["data"]) == 1


def test_what_is_not_there_is_404(client: TestClient) -> None:
    gone = "prn_00000000000000000000000000"
    problem(client.post("/api-keys", json={"principal": gone, "name": "x", "scopes": ["admin"]}), 404, "not_found")
    for method, path in (
        ("GET", f"/principals/{gone}"),
        ("POST", f"/principals/{gone}/disable"),
        ("GET", "/api-keys/key_00000000000000000000000000"),
        ("DELETE", "/api-keys/key_00000000000000000000000000"),
    ):
        problem(client.request(method, path), 404, "not_found")


@pytest.mark.parametrize("scope", SCOPES)
def test_nobody_without_the_scope_gets_in(client: TestClient, database: Database, scope: Scope) -> None:
    with database.transaction() as session:
        text = keys.create(session, SECRET.encode(), name="x", actor="test", scopes=[scope])[1]
    needs = {
        ("POST", "/principals"): "admin",
        ("GET", "/principals"): "admin",
        ("POST", "/api-keys"): "admin",
        ("GET", "/api-keys"): "admin",
        ("DELETE", "/api-keys/key_00000000000000000000000000"): "admin",
        ("GET", "/audit"): "audit:read",
        ("GET", "/audit/verify"): "audit:read",
        ("POST", "/datasets"): "datasets:write",
        ("POST", "/models"): "models:write",
    }
    for (method, path), needed in needs.items():
        answer = client.request(method, path, headers=bearer(text))
        assert (answer.status_code == 403) == (scope not in (needed, "admin")), (path, answer.text)
    for path in ("/catalogue", "/models", "/datasets"):
        assert client.get(path, headers=bearer(text)).status_code == 200


def test_the_log_is_read_in_pages_and_verified(client: TestClient, database: Database, ada: str) -> None:
    for _ in range(3):
        key_of(client, ada, "jobs:read")
    with database.transaction() as session:
        end = chain.seal(session)
        own = session.query(ApiKey).order_by(ApiKey.id).first()
        assert own is not None
    whole = client.get("/audit").json()
    assert [entry["action"] for entry in whole["data"]][:4] == ["key.created"] * 3 + ["principal.created"]
    assert whole["data"][0]["position"] == end.position
    page, seen = client.get("/audit?limit=2").json(), []
    while True:
        seen += page["data"]
        if not page["has_more"]:
            break
        page = client.get(f"/audit?limit=2&after={page['after']}").json()
    assert seen == whole["data"]
    assert [e["subject"] for e in client.get(f"/audit?subject={ada}").json()["data"]] == [ada]
    by = client.get(f"/audit?actor={own.principal_id}&action=key.created").json()["data"]
    assert {(entry["key"], entry["action"]) for entry in by} == {(own.id, "key.created")}
    for bad in ("after=0", "limit=0", "limit=201", "subjct=x", f"after={2**63}", "actor=%00"):
        assert client.get(f"/audit?{bad}").status_code == 422
    found = client.get("/audit/verify").json()
    assert (found["ok"], found["entries"], found["head"]["hash"]) == (True, end.position, end.hash)
    with database.transaction() as session:
        session.execute(sql("DROP TRIGGER audit_unchanged"))
        session.execute(sql("UPDATE audit SET actor = 'nobody' WHERE position = 2"))
    found = client.get("/audit/verify").json()
    assert (found["ok"], found["found"]) == (False, 1)
    assert (found["findings"][0]["kind"], found["findings"][0]["position"]) == ("changed", 2)
