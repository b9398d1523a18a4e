"""Submitting, finding, cancelling and retrying jobs."""

import json
import threading
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from api.store.session import Database
from tests.api.parts import bearer, key_for, problem, request_for


def submit(client: TestClient, body: dict[str, Any], idempotency_key: str | None = None) -> Any:
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    return client.post("/jobs", json=body, headers=headers)


def test_a_request_becomes_a_job(client: TestClient, model: str, dataset: str) -> None:
    body = request_for(model, dataset, reason="gdpr_art_17", reference="case 7", seed=3)
    response = submit(client, body)
    assert response.status_code == 201
    job = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert (job["status"], job["verdict"], job["queue_position"], job["attempt"]) == ("queued", None, 1, 0)
    assert (job["model"], job["reason"], job["reference"]) == (model, "gdpr_art_17", "case 7")
    assert job["spec"]["method"]["name"] == "ascent"
    assert job["spec"]["optimizer"]["lr"] == 1e-5
    assert job["created_at"].endswith("Z")
    assert client.get(response.headers["location"]).json() == job
    second = submit(client, body).json()
    assert second["queue_position"] == 2
    assert second["id"] != job["id"]


def test_the_same_key_and_body_are_one_job(client: TestClient, database: Database, model: str, dataset: str) -> None:
    body = request_for(model, dataset)
    first = submit(client, body, "k-1")
    spaced = client.post(
        "/jobs",
        content=json.dumps(dict(reversed(body.items())), indent=3),
        headers={"Content-Type": "application/json", "Idempotency-Key": "k-1"},
    )
    assert (first.status_code, spaced.status_code) == (201, 200)
    assert spaced.headers["location"] == first.headers["location"]
    assert spaced.json() == first.json()
    assert (
        problem(submit(client, {**body, "seed": 1}, "k-1"), 422, "idempotency_mismatch")["param"] == "Idempotency-Key"
    )
    assert submit(client, body, "k-2").status_code == 201
    # Another caller's keys are their own.
    other = bearer(key_for(database, "other"))
    assert client.post("/jobs", json=body, headers={**other, "Idempotency-Key": "k-1"}).status_code == 201


def test_the_same_key_and_body_are_one_job_also_when_a_file_is_gone(
    client: TestClient, model: str, dataset: str, tmp_path: Path
) -> None:
    rows = tmp_path / "data" / "rows.jsonl"
    rows.write_text('{"text": "t"}\n')
    body = request_for(model, dataset)
    body["data"]["forget"] = {"source": "jsonl", "path": str(rows)}
    first = submit(client, body, "k-1")
    rows.unlink()
    again = submit(client, body, "k-1")
    assert (first.status_code, again.status_code, again.json()) == (201, 200, first.json())
    problem(submit(client, {**body, "seed": 1}, "k-1"), 422, "idempotency_mismatch")
    assert "no file" in problem(submit(client, body, "k-2"), 422, "invalid_spec")["detail"]


def test_requests_at_once_with_one_key_are_one_job(client: TestClient, model: str, dataset: str) -> None:
    body = request_for(model, dataset)
    answers: list[tuple[int, str]] = []

    def send() -> None:
        response = submit(client, body, "at-once")
        answers.append((response.status_code, response.json()["id"]))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in answers) == [200] * 7 + [201]
    assert len({job for _, job in answers}) == 1


def test_the_service_takes_registered_models_and_open_paths_only(
    client: TestClient, model: str, dataset: str, tmp_path: Path
) -> None:
    outside = tmp_path / "secret.jsonl"
    outside.write_text('{"text": "s"}\n')
    data = tmp_path / "data"
    (data / "way-out.jsonl").symlink_to(outside)
    (data / "way-out").symlink_to(tmp_path)
    (data / "tofu").mkdir()
    (data / "tofu" / "forget01.json").symlink_to(outside)
    for path in (str(outside), f"{data}/way-out.jsonl", f"{data}/way-out/secret.jsonl", f"{data}/../secret.jsonl", "x"):
        body = request_for(model, dataset)
        body["data"]["forget"] = {"source": "jsonl", "path": path}
        body["model"] = {"path": "/models/x"}
        refused = problem(submit(client, body), 422, "invalid_spec")
        assert [fault["param"] for fault in refused["errors"]] == ["model.path", "data.forget.path"]
        assert "POST /models" in refused["errors"][0]["message"]
        assert "not open to requests" in refused["errors"][1]["message"]
    body = request_for(model, dataset)
    body["data"]["forget"] = {"source": "tofu", "path": f"{data}/tofu", "split": "forget01"}
    assert "link" in problem(submit(client, body), 422, "invalid_spec")["detail"]
    body["data"]["forget"] = {"source": "jsonl", "path": f"{data}/nothing.jsonl"}
    assert "no file" in problem(submit(client, body), 422, "invalid_spec")["detail"]
    for source in ({"source": "jsonl"}, {"source": "tofu", "split": "forget01"}):
        body["data"]["forget"] = {**source, "path": f"{data}/{'x' * 300}"}
        refused = problem(submit(client, body), 422, "invalid_spec")
        assert refused["errors"][0]["param"] == "data.forget.path"
        assert "cannot be read" in refused["detail"]


def test_a_base_model_and_a_file_of_refusals_are_no_way_around_the_roots(
    client: TestClient, model: str, dataset: str, tmp_path: Path
) -> None:
    (tmp_path / "outside.txt").write_text("No.")
    (tmp_path / "data" / "refusals.txt").write_text("No.")
    unknown = "mdl_" + "0" * 26
    for method, param in (
        ({"name": "retrain", "base": "/models/base"}, "method.base.path"),
        ({"name": "retrain", "base": unknown}, "method.base.id"),
        ({"name": "refusal", "refusals_file": str(tmp_path / "outside.txt")}, "method.refusals_file"),
        ({"name": "refusal", "refusals_file": f"{tmp_path}/data/../outside.txt"}, "method.refusals_file"),
    ):
        body = request_for(model, dataset) | {"method": method}
        body["data"]["retain"] = {"source": "upload", "dataset": dataset, "rows": 1}
        body["data"]["forget"] = {"source": "jsonl", "path": f"{tmp_path}/data/refusals.txt"}
        refused = problem(submit(client, body), 422, "invalid_spec")
        assert [fault["param"] for fault in refused["errors"]] == [param]
    for method in (
        {"name": "retrain", "base": model},
        {"name": "refusal", "refusals_file": f"{tmp_path}/data/refusals.txt"},
    ):
        assert submit(client, body | {"method": method}).status_code == 201


def test_a_published_set_is_taken_from_an_open_folder_only(
    client: TestClient, model: str, dataset: str, tmp_path: Path
) -> None:
    """Neither the hub nor a link leads out of the data roots, and no message lists what lies behind a link."""
    data, outside = (tmp_path / "data").resolve(), tmp_path / "outside"
    for folder in (data / "muse" / "raw", data / "linked", outside / "raw"):
        folder.mkdir(parents=True)
    for file in (data / "muse/raw/forget-00000-of-00001.parquet", outside / "raw" / "secret.jsonl"):
        file.write_text("")
    (data / "muse" / "raw" / "holdout-00000-of-00001.parquet").symlink_to(outside / "raw" / "secret.jsonl")
    (data / "linked" / "raw").symlink_to(outside / "raw")
    (data / "way-out").symlink_to(outside)
    hub = {"hub": "muse-bench/MUSE-News", "revision": "0" * 40}
    for source, param, message in (
        (hub, "data.forget.hub", "The service fetches nothing from the hub"),
        ({"path": str(outside)}, "data.forget.path", "not open to requests"),
        ({"path": f"{data}/way-out"}, "data.forget.path", "not open to requests"),
        ({"path": f"{data}/../outside"}, "data.forget.path", "not open to requests"),
        ({"path": f"{data}/linked"}, "data.forget.path", "a link that leads elsewhere"),
        ({"path": f"{data}/muse", "split": "holdout"}, "data.forget.path", "a link that leads elsewhere"),
        ({"path": f"{data}/none"}, "data.forget.path", "cannot be read"),
        ({"path": f"{data}/muse", "split": "retain1"}, "data.forget.split", "Allowed: forget, holdout."),
        ({"path": f"{data}/muse", "config": "train"}, "data.forget.config", "Allowed: raw."),
        ({"source": "text", "path": f"{data}/muse/raw/holdout-00000-of-00001.parquet"}, "data.forget.path", "not open"),
        ({"source": "text", "path": f"{data}/muse/none.jsonl"}, "data.forget.path", "cannot be read"),
    ):
        body = request_for(model, dataset)
        body["data"]["forget"] = {"source": "muse", "split": "forget", **source}
        if source.get("source") == "text":
            del body["data"]["forget"]["split"]
        refused = problem(submit(client, body), 422, "invalid_spec")
        assert [fault["param"] for fault in refused["errors"]] == [param]
        assert message in refused["errors"][0]["message"]
        assert "secret" not in refused["detail"]
    body["data"]["forget"] = {"source": "muse", "split": "forget", "path": f"{data}/muse/../muse"}
    response = submit(client, body)
    assert response.status_code == 201, response.text
    assert response.json()["spec"]["data"]["forget"]["path"] == f"{data}/muse"


def test_a_path_within_the_data_roots_is_taken_without_its_links(
    client: TestClient, model: str, dataset: str, tmp_path: Path
) -> None:
    data = (tmp_path / "data").resolve()
    (data / "tofu").mkdir()
    (data / "tofu" / "forget01.json").write_text('{"question": "q", "answer": "a"}\n')
    (data / "rows.jsonl").write_text('{"text": "t"}\n')
    (data / "link.jsonl").symlink_to(data / "rows.jsonl")
    body = request_for(model, dataset, method={"name": "NPO"})
    body["data"] = {
        "forget": {"source": "tofu", "path": f"{data}/tofu", "split": "forget01"},
        "retain": {"source": "jsonl", "path": f"{data}/link.jsonl"},
    }
    response = submit(client, body)
    assert response.status_code == 201, response.text
    assert response.json()["spec"]["data"]["retain"]["path"] == f"{data}/rows.jsonl"


def test_a_set_cannot_be_kept_under_another_spelling_of_its_path(
    client: TestClient, model: str, dataset: str, tmp_path: Path
) -> None:
    data = (tmp_path / "data").resolve()
    (data / "rows.jsonl").write_text('{"text": "t"}\n')
    (data / "link.jsonl").symlink_to(data / "rows.jsonl")
    body = request_for(model, dataset, method={"name": "NPO"})
    for path in (f"{data}/./rows.jsonl", f"{data}/link.jsonl"):
        body["data"] = {
            "forget": {"source": "jsonl", "path": f"{data}/rows.jsonl"},
            "retain": {"source": "jsonl", "path": path, "rows": 1},
        }
        (fault,) = problem(submit(client, body), 422, "invalid_spec")["errors"]
        assert fault["param"] == "data.retain"
        assert "the very set to forget" in fault["message"]


def test_unknown_models_and_data_are_named(client: TestClient) -> None:
    body = request_for("mdl_00000000", "ds_00000000")
    refused = problem(submit(client, body), 422, "invalid_spec")
    assert [fault["param"] for fault in refused["errors"]] == ["model.id", "data.forget.dataset"]


def test_cancel_and_retry_say_why_not(client: TestClient, model: str, dataset: str) -> None:
    job = submit(client, request_for(model, dataset)).headers["location"]
    assert "queued" in problem(client.post(f"{job}/retry"), 409, "conflict")["detail"]
    cancelled = client.post(f"{job}/cancel").json()
    assert (cancelled["status"], cancelled["queue_position"]) == ("cancelled", None)
    assert "cancelled" in problem(client.post(f"{job}/cancel"), 409, "conflict")["detail"]
    assert client.post(f"{job}/retry").json()["status"] == "queued"
    problem(client.post("/jobs/job_00000000/cancel"), 404, "not_found")


def test_pages_hold_every_job_once_while_jobs_arrive(client: TestClient, model: str, dataset: str) -> None:
    body = request_for(model, dataset)
    before = [submit(client, body).json()["id"] for _ in range(7)]
    seen: list[str] = []
    after: str | None = None
    while True:
        page = client.get("/jobs", params={"limit": 3, **({"after": after} if after else {})}).json()
        seen += [job["id"] for job in page["data"]]
        submit(client, body)
        if not page["has_more"]:
            break
        after = page["after"]
    assert seen == before[::-1]


def test_jobs_are_found_by_status_model_and_reference(client: TestClient, model: str, dataset: str) -> None:
    first = submit(client, request_for(model, dataset, reference="a")).json()["id"]
    second = submit(client, request_for(model, dataset, reference="b")).json()["id"]
    client.post(f"/jobs/{first}/cancel")

    def found(**query: str) -> list[str]:
        return [job["id"] for job in client.get("/jobs", params=query).json()["data"]]

    assert found(status="cancelled") == found(reference="a") == [first]
    assert found(status="queued", model=model) == [second]
    assert found(model="mdl_00000000") == found(reference="a", status="queued") == []
