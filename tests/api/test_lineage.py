"""Over HTTP: models that jobs have left, their line, the names that stand for them, and their deletion."""

from io import BytesIO
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.store import attempts, claims, keys
from api.store.artifacts import StoredFile
from api.store.session import Database
from api.store.tables import Verdict
from tests.api.parts import SECRET, bearer, problem, request_for

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def run(
    client: TestClient, database: Database, app: FastAPI, body: dict[str, Any], verdict: Verdict = "passed"
) -> dict[str, Any]:
    """Submit a job and carry it out as a worker would; returns it as it is then."""
    job_id = client.post("/jobs", json=body).json()["id"]
    service = app.state.service
    with database.transaction() as session:
        claim = claims.claim(session, job_id, worker="w1", lease=30, vault=service.vault)
    assert claim is not None
    files = {"config.json": b"{}", "model.safetensors": job_id.encode()}
    blobs = {name: service.blobs.put(BytesIO(content)) for name, content in files.items()}
    with database.transaction() as session:
        attempts.finish(
            session,
            claim,
            verdict=verdict,
            files={"model": [StoredFile(f"model/{name}", blob.digest, blob.size) for name, blob in blobs.items()]},
            sign=lambda *_: {"envelope": StoredFile("report.dsse.json", "e" * 64, 1)},
            model_digest=blobs["model.safetensors"].digest,
        )
    job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    return job


def test_a_model_from_its_job_to_production_and_back(
    client: TestClient, database: Database, app: FastAPI, model: str, dataset: str
) -> None:
    first = client.put("/aliases/production", json={"model": model, "reason": "what runs now"})
    assert (first.status_code, first.json()["model"]) == (201, model)
    asked = request_for(model, dataset) | {"model": {"alias": "production"}}
    job = run(client, database, app, asked)
    made = job["output_model"]
    assert job["model"] == model
    seen = client.get(f"/models/{made}").json()
    assert (seen["parent"], seen["job"], seen["path"]) == (model, job["id"], f"job:{job['id']}")
    assert (seen["aliases"], seen["children"]) == (["production"], [])
    assert client.get(f"/models/{model}").json()["children"] == [made]
    line = client.get(f"/models/{made}/lineage").json()["data"]
    assert [(one["id"], one["job"]) for one in line] == [(model, None), (made, job["id"])]
    alias = client.get("/aliases/production").json()
    assert [(p["model"], p["before"], p["actor"]) for p in alias["history"]][:1] == [(made, model, f"job:{job['id']}")]
    assert client.get("/aliases").json()["data"] == [{n: alias[n] for n in ("name", "model", "changed_at")}]
    back = client.post("/aliases/production/rollback", json={"reason": "too weak"}).json()
    assert (back["model"], back["history"][0]["undone_at"] is not None) == (model, True)
    problem(client.post("/aliases/production/rollback", json={"reason": "further"}), 409, "conflict")
    again = client.put("/aliases/production", json={"model": made, "reason": "as it was"})
    assert again.status_code == 200


def test_jobs_on_an_alias_say_what_they_wait_for(
    client: TestClient, database: Database, app: FastAPI, model: str, dataset: str
) -> None:
    client.put("/aliases/production", json={"model": model, "reason": "what runs now"})
    asked = request_for(model, dataset) | {"model": {"alias": "production"}}
    first, second = (client.post("/jobs", json=asked).json() for _ in range(2))
    assert (first["model"], first["waits_for"], second["waits_for"]) == (None, None, None)
    with database.transaction() as session:
        assert claims.claim(session, first["id"], worker="w1", lease=30, vault=app.state.service.vault)
    assert client.get(f"/jobs/{second['id']}").json()["waits_for"] == first["id"]
    running = client.get(f"/jobs/{first['id']}").json()
    assert (running["model"], running["waits_for"]) == (model, None)
    refused = client.post("/jobs", json=asked | {"model": {"alias": "prod"}})
    body = problem(refused, 422, "invalid_spec")
    assert (body["errors"][0]["param"], "Allowed: production." in body["detail"]) == ("model.alias", True)


def test_what_has_not_passed_is_promoted_by_force_alone(
    client: TestClient, database: Database, app: FastAPI, model: str, dataset: str
) -> None:
    weak = run(client, database, app, request_for(model, dataset), "not_passed")["output_model"]
    asked = {"model": weak, "reason": "hurry"}
    assert problem(client.put("/aliases/production", json=asked), 409, "not_passed")["param"] == "model"
    problem(client.get("/aliases/production"), 404, "not_found")
    assert client.put("/aliases/production", json=asked | {"force": True}).status_code == 201
    problem(client.put("/aliases/production", json={"model": weak}), 422, "invalid_request")
    problem(client.put("/aliases/Production", json=asked), 422, "invalid_request")
    problem(client.put("/aliases/production", json={"model": "mdl_00000000", "reason": "x"}), 422, "invalid_spec")


def test_a_deleted_model_takes_its_files_with_it_and_leaves_the_report(
    client: TestClient, database: Database, app: FastAPI, model: str, dataset: str
) -> None:
    job = run(client, database, app, request_for(model, dataset))
    made = client.get(f"/models/{job['output_model']}").json()
    there = {name: facts["sha256"] for name, facts in made["files"].items()}
    assert all(app.state.service.blobs.holds(digest) for digest in there.values())
    client.put("/aliases/production", json={"model": made["id"], "reason": "it passed"})
    assert "production" in problem(client.delete(f"/models/{made['id']}"), 409, "conflict")["detail"]
    client.put("/aliases/production", json={"model": model, "reason": "another one"})
    waiting = client.post("/jobs", json=request_for(made["id"], dataset)).json()["id"]
    assert waiting in problem(client.delete(f"/models/{made['id']}"), 409, "conflict")["detail"]
    client.post(f"/jobs/{waiting}/cancel")
    gone = client.delete(f"/models/{made['id']}").json()
    assert gone["deleted_at"] is not None
    assert not any(app.state.service.blobs.holds(digest) for digest in there.values())
    assert client.delete(f"/models/{made['id']}").json() == gone
    assert [m["id"] for m in client.get("/models").json()["data"]] == [model]
    assert client.get(f"/models/{made['id']}").json() == gone
    names = [file["name"] for file in client.get(f"/jobs/{job['id']}/artifacts").json()["data"]]
    assert names == ["report.dsse.json"]
    problem(client.post("/jobs", json=request_for(made["id"], dataset)), 422, "invalid_spec")


def test_only_keys_with_the_scope_change_models(client: TestClient, database: Database, model: str) -> None:
    with database.transaction() as session:
        text = keys.create(session, SECRET.encode(), name="reader", actor="test", scopes=["jobs:read", "jobs:write"])[1]
    reader = bearer(text)
    asked = {"model": model, "reason": "mine"}
    assert client.get(f"/models/{model}/lineage", headers=reader).status_code == 200
    for answer in (
        client.put("/aliases/production", json=asked, headers=reader),
        client.post("/aliases/production/rollback", json={"reason": "x"}, headers=reader),
        client.delete(f"/models/{model}", headers=reader),
        client.post("/models", json={"path": "/x"}, headers=reader),
    ):
        problem(answer, 403, "forbidden")
