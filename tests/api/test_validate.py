"""POST /jobs/validate says what POST /jobs would do, and leaves no trace."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, inspect, select, table, update
from starlette.testclient import TestClient

from api import preview
from api.store import keys, runs
from api.store.session import Database
from api.store.tables import Dataset, Job
from tests.api.parts import JSONL, RECORDS, bearer, key_for, lines, model_folder, problem, uploaded
from tests.api.parts import request_for as request_without_gates
from tests.store.test_runs import COST


def request_for(model: str, forget: str, **changes: Any) -> dict[str, Any]:
    """One whose verdict may be `passed`, so that nothing is to be told of it."""
    return request_without_gates(model, forget, gates=[{"metric": "forget.probability", "at_most": 0.1}], **changes)


def rows_in(database: Database) -> dict[str, int]:
    """How many rows each table holds."""
    names = inspect(database.engine).get_table_names()
    with database.reading() as session:
        return {name: session.scalar(select(func.count()).select_from(table(name))) or 0 for name in names}


def submitted(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/jobs", json=body)
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


def test_nothing_is_written_and_the_spec_is_that_of_the_job(
    client: TestClient, database: Database, model: str, dataset: str, tmp_path: Path
) -> None:
    file = tmp_path / "data" / "retain.jsonl"
    file.write_bytes(lines(*({"text": f"t{i}"} for i in range(7))) + b"\n")
    body = request_for(model, dataset, method={"name": "NPO", "retain": "nll"})
    body["data"]["forget"]["rows"] = 3
    body["data"]["retain"] = {"source": "jsonl", "path": str(file)}
    before = rows_in(database)
    found = client.post("/jobs/validate", json=body).json()
    assert rows_in(database) == before
    assert (found["valid"], found["rows"], found["warnings"]) == (
        True,
        {"forget": 3, "retain": 7},
        [f"data.forget: {warning}" for warning in client.get(f"/datasets/{dataset}").json()["warnings"]],
    )
    assert found["estimate"]["seconds"] is None
    assert found["estimate"]["memory_bytes"] is None
    assert "No run was measured" in found["estimate"]["reason"]
    assert found["spec"] == submitted(client, body)["spec"]


def test_nobody_waits_to_write_while_a_file_is_counted(
    client: TestClient, database: Database, model: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data" / "retain.jsonl"
    file.write_bytes(RECORDS)
    body = request_for(model, dataset)
    body["data"]["retain"] = {"source": "jsonl", "path": str(file)}
    counted = preview._lines

    def counted_while_somebody_writes(path: Path) -> int | None:
        with database.transaction() as session:
            session.execute(update(Job).values(attempt=0))
        return counted(path)

    monkeypatch.setattr(preview, "_lines", counted_while_somebody_writes)
    assert client.post("/jobs/validate", json=body).json()["rows"] == {"forget": 4, "retain": 4}


def test_a_bad_spec_is_refused_as_for_a_job(client: TestClient, model: str, dataset: str) -> None:
    for body in (
        request_for("mdl_00000000", dataset),
        request_for(model, dataset, received_at="2999-01-01T00:00:00Z"),
        request_for(model, dataset, seed=-1),
        request_for(model, dataset, seeed=1),
    ):
        told = [
            problem(client.post(path, json=body), 422, "invalid_spec")["errors"] for path in ("/jobs/validate", "/jobs")
        ]
        assert told[0] == told[1]


def test_an_estimate_stands_on_measured_runs(client: TestClient, database: Database, model: str, dataset: str) -> None:
    body = request_for(model, dataset, training={"steps": 25})
    job = submitted(client, body)["id"]
    with database.transaction() as session:
        runs.note(session, job, replace(COST, parameters=64, rows_scored=8))
    # 25 steps of 4 rows and 4 rows scored twice, as in the run that was measured.
    found = client.post("/jobs/validate", json=body).json()["estimate"]
    assert found == {
        "train_seconds": 1.0,
        "score_seconds": 0.5,
        "seconds": 3.5,
        "memory_bytes": 600_000_000,
        "device": "cpu: x",
        "runs": 1,
        "reason": None,
    }
    twice = client.post("/jobs/validate", json=request_for(model, dataset, training={"steps": 50})).json()
    assert twice["estimate"]["seconds"] == 4.5


def test_a_verdict_that_cannot_be_passed_is_told_before_the_run(client: TestClient, model: str, dataset: str) -> None:
    body = request_without_gates(model, dataset)
    (told,) = submitted(client, body)["warnings"]
    assert "no gate speaks of forgetting" in told
    assert told in client.post("/jobs/validate", json=body).json()["warnings"]
    assert submitted(client, request_for(model, dataset))["warnings"] == []


def test_a_set_that_was_forgotten_before_is_told(
    client: TestClient, database: Database, model: str, dataset: str, tmp_path: Path
) -> None:
    shuffled = b"".join(reversed(RECORDS.splitlines(keepends=True)))
    again = client.post("/datasets", content=shuffled, headers=JSONL).json()["id"]
    other = client.post("/datasets", content=lines({"text": "another"}), headers=JSONL).json()["id"]
    first = submitted(client, request_for(model, dataset))
    assert first["warnings"] == []
    assert submitted(client, request_for(model, again))["warnings"] == [], "it has not been forgotten yet"
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == first["id"]).values(status="succeeded"))
    elsewhere = client.post("/models", json={"path": str(model_folder(tmp_path / "models", "other"))}).json()["id"]
    for model_id, upload, told in ((model, again, True), (model, other, False), (elsewhere, again, False)):
        body = request_for(model_id, upload)
        validated = client.post("/jobs/validate", json=body).json()["warnings"]
        warnings = submitted(client, body)["warnings"]
        assert [warning for warning in validated if not warning.startswith("data.")] == warnings
        assert [first["id"] in warning for warning in warnings] == [True] * told
    with database.transaction() as session:
        session.execute(update(Dataset).values(fingerprint=None))
    assert submitted(client, request_for(model, again))["warnings"] == []


def test_nobody_is_told_of_a_job_that_they_do_not_see(client: TestClient, database: Database, model: str) -> None:
    scopes: dict[str, list[keys.Scope]] = {
        "ann": ["jobs:write", "datasets:write"],
        "ben": ["jobs:write", "datasets:write"],
        "cleo": ["jobs:write", "datasets:write", "jobs:approve"],
    }
    who = {name: bearer(key_for(database, name, scopes=held)) for name, held in scopes.items()}
    bodies = {name: request_for(model, uploaded(client, headers)) for name, headers in who.items()}

    def made(name: str) -> dict[str, Any]:
        job: dict[str, Any] = client.post("/jobs", json=bodies[name], headers=who[name]).json()
        return job

    def told(name: str) -> list[str]:
        validated = client.post("/jobs/validate", json=bodies[name], headers=who[name]).json()["warnings"]
        warned: list[str] = made(name)["warnings"]
        assert [warning for warning in validated if not warning.startswith("data.")] == warned
        return warned

    first = made("ann")["id"]
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == first).values(status="succeeded"))
    assert told("ben") == []
    assert [first in warning for warning in told("ann")] == [True]
    assert [first in warning for warning in told("cleo")] == [True]


def test_weights_are_counted_in_the_headers(client: TestClient, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models", "counted")
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [60, 64]},
    }
    encoded = json.dumps(header).encode()
    (folder / "more.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(64))
    assert client.post("/models", json={"path": str(folder)}).json()["parameters"] == 64 + 15 + 1
    for shape in ([-1], ["3"], None, [True]):
        header["a"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 60]}
        encoded = json.dumps(header).encode()
        (folder / "more.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(64))
        assert (
            "more.safetensors"
            in problem(client.post("/models", json={"path": str(folder)}), 422, "invalid_model")["detail"]
        )
