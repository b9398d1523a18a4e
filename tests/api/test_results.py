"""What a job shows while a worker is at it and after: progress, metrics, events, checkpoints, files and the report."""

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.store import attempts, claims
from api.store.artifacts import StoredFile
from api.store.attempts import Note
from api.store.blobs import Blobs
from api.store.claims import Claim
from api.store.metrics import Measurement
from api.store.records import ArtifactKind
from api.store.session import Database
from tests.api.parts import model_folder, problem, request_for
from tests.report.conftest import report_on
from tests.vault import VAULT

REPORT = json.dumps({"report": True}).encode()
ENVELOPE = json.dumps({"payload": "e30="}).encode()
WEIGHTS = bytes(range(256)) * 9000  # more than two pieces


@pytest.fixture
def job(client: TestClient, model: str, dataset: str) -> str:
    return str(client.post("/jobs", json=request_for(model, dataset)).json()["id"])


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path}/artifacts")


@pytest.fixture
def claim(database: Database, job: str) -> Claim:
    """A worker that has taken the job."""
    with database.transaction() as session:
        taken = claims.claim(session, job, worker="w", lease=60, vault=VAULT)
    assert taken is not None
    return taken


def stored(blobs: Blobs, name: str, content: bytes, key: bytes | None = None) -> StoredFile:
    blob = blobs.put(io.BytesIO(content), key)
    return StoredFile(name, blob.digest, blob.size, sealed=key is not None)


def finish(database: Database, claim: Claim, blobs: Blobs, more: Mapping[ArtifactKind, list[StoredFile]] = {}) -> None:
    with database.transaction() as session:
        attempts.finish(
            session,
            claim,
            verdict="passed",
            files={
                "report": [stored(blobs, "report.json", REPORT)],
                "model": [
                    stored(blobs, "model/config.json", b"{}"),
                    stored(blobs, "model/model.safetensors", WEIGHTS),
                ],
                **more,
            },
            sign=lambda *_: {"envelope": stored(blobs, "report.dsse.json", ENVELOPE)},
        )


def test_progress_is_seen_while_it_runs(client: TestClient, database: Database, claim: Claim) -> None:
    progress = {"phase": "train", "step": 3, "steps": 9, "loss": 0.5, "seconds_left": 12.0}
    with database.transaction() as session:
        attempts.record(session, claim, lease=60, progress=progress)
    seen = client.get(f"/jobs/{claim.job_id}").json()
    assert (seen["status"], seen["attempt"], seen["queue_position"]) == ("running", 1, None)
    assert seen["progress"] == {**progress, "done": None, "total": None}
    cancelled = client.post(f"/jobs/{claim.job_id}/cancel").json()
    assert (cancelled["status"], cancelled["cancel_requested"]) == ("running", True)


def test_a_failure_is_told(client: TestClient, database: Database, claim: Claim) -> None:
    error = {"code": "diverged", "message": "The loss was nan.", "param": "optimizer.lr", "retryable": False}
    with database.transaction() as session:
        attempts.fail(session, claim, error)
    assert client.get(f"/jobs/{claim.job_id}").json()["error"] == error
    body = problem(client.get(f"/jobs/{claim.job_id}/report"), 404, "report_missing")
    assert "failed" in body["detail"]


def test_metrics_before_after_and_on_the_way(client: TestClient, database: Database, claim: Claim) -> None:
    measured = {"value": 0.9, "rows": 4, "low": 0.8, "high": 1.0}
    absent = {"absent": "no row has it"}
    without_interval = {"value": 0.6, "rows": 4, "low": None, "high": None}
    with database.transaction() as session:
        attempts.record(
            session,
            claim,
            lease=60,
            measurements=[
                Measurement("before", 0, {"forget.probability": measured, "forget.truth_ratio": absent}),
                Measurement(
                    "after",
                    0,
                    {
                        "forget.probability": {**measured, "value": 0.1},
                        "forget.truth_ratio": absent,
                        "tofu.forget_quality": without_interval,
                    },
                ),
                *(Measurement("step", step, {"loss": step / 10}) for step in range(1, 6)),
                Measurement("watch", 3, {"forget.probability": 0.4}),
            ],
        )
    path = f"/jobs/{claim.job_id}/metrics"
    seen = client.get(path).json()
    assert seen["before"] == {"forget.probability": measured, "forget.truth_ratio": absent}
    assert seen["after"]["tofu.forget_quality"] == without_interval
    assert seen["deltas"] == {"forget.probability": pytest.approx(-0.8)}
    assert seen["watch"] == [{"step": 3, "values": {"forget.probability": 0.4}}]
    assert [point["values"]["loss"] for point in seen["curve"]] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert not seen["has_more"]
    page = client.get(path, params={"after_step": 2, "limit": 2}).json()
    assert ([point["step"] for point in page["curve"]], page["has_more"]) == ([3, 4], True)
    assert page["watch"] == [{"step": 3, "values": {"forget.probability": 0.4}}]
    pages = [client.get(path, params={"after_step": step, "limit": 2}).json() for step in (-1, 2, 4)]
    assert [len(page["watch"]) for page in pages] == [0, 1, 0]
    problem(client.get("/jobs/job_00000000/metrics"), 404, "not_found")


def test_the_history_comes_in_pages(client: TestClient, database: Database, claim: Claim) -> None:
    with database.transaction() as session:
        attempts.record(session, claim, lease=60, notes=[Note("phase", {"phase": f"p{i}"}) for i in range(5)])
    path = f"/jobs/{claim.job_id}/events"
    whole = client.get(path).json()
    assert [event["kind"] for event in whole["data"]] == ["status", "status", *["phase"] * 5]
    assert whole["data"][1]["data"]["to"] == "running"
    assert client.get(path).headers["vary"] == "Accept"
    first = client.get(path, params={"limit": 3}).json()
    rest = client.get(path, params={"after": first["after"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["data"] + rest["data"] == whole["data"]
    assert client.get(path, params={"after": whole["after"]}).json() == {
        "data": [],
        "has_more": False,
        "after": whole["after"],
    }


def test_checkpoints_are_listed_and_never_given_out(
    client: TestClient, database: Database, claim: Claim, blobs: Blobs
) -> None:
    for step in (2, 4):
        with database.transaction() as session:
            files = [stored(blobs, "manifest.json", b"{}", claim.key)]
            attempts.save_checkpoint(session, claim, step, files)
    path = f"/jobs/{claim.job_id}"
    seen = client.get(f"{path}/checkpoints").json()["data"]
    assert [(checkpoint["step"], checkpoint["files"][0]["sealed"]) for checkpoint in seen] == [(4, True), (2, True)]
    assert client.get(f"{path}/artifacts").json()["data"] == []
    body = problem(client.get(f"{path}/artifacts/checkpoints/4/manifest.json"), 409, "sealed")
    assert "kept encrypted" in body["detail"]


def test_files_come_as_they_were_with_their_digest(
    caplog: pytest.LogCaptureFixture, client: TestClient, database: Database, claim: Claim, blobs: Blobs
) -> None:
    finish(database, claim, blobs)
    path = f"/jobs/{claim.job_id}/artifacts"
    listed = {file["name"]: file for file in client.get(path).json()["data"]}
    assert listed.keys() == {"model/config.json", "model/model.safetensors", "report.json", "report.dsse.json"}
    for name, content in (("model/config.json", b"{}"), ("model/model.safetensors", WEIGHTS)):
        response = client.get(f"{path}/{name}")
        digest = hashlib.sha256(content)
        assert response.content == content
        assert (listed[name]["sha256"], listed[name]["size"]) == (digest.hexdigest(), len(content))
        assert response.headers["content-length"] == str(len(content))
        assert response.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
        assert response.headers["etag"] == f'"{digest.hexdigest()}"'
        assert response.headers["content-disposition"].endswith(name.rpartition("/")[2])
    for name in ("model", "model/../report.json", "../report.json", "model/nothing", "%00"):
        problem(client.get(f"{path}/{name.replace('..', '%2e%2e')}"), 404, "not_found")
    other = client.post("/jobs", json=client.get(f"/jobs/{claim.job_id}").json()["spec"]).json()["id"]
    problem(client.get(f"/jobs/{other}/artifacts/report.json"), 404, "not_found")
    blobs.delete([listed["model/config.json"]["sha256"]])
    problem(client.get(f"{path}/model/config.json"), 500, "artifact_missing")
    assert "'error': 'BlobMissing'" in caplog.text


def test_plots_come_as_images_that_can_do_nothing_and_scores_of_rows_not_at_all(
    client: TestClient, database: Database, claim: Claim, blobs: Blobs
) -> None:
    drawn = b'<svg xmlns="http://www.w3.org/2000/svg"><style>*{fill:none}</style></svg>'
    rows = "rows/after-forget.parquet"
    more: dict[ArtifactKind, list[StoredFile]] = {
        "plot": [stored(blobs, "plots/scores.svg", drawn)],
        "rows": [stored(blobs, rows, b"scores", claim.key)],
    }
    finish(database, claim, blobs, more)
    path = f"/jobs/{claim.job_id}/artifacts"
    listed = {file["name"]: (file["kind"], file["sealed"]) for file in client.get(path).json()["data"]}
    assert listed["plots/scores.svg"] == ("plot", False)
    assert [(name, kind) for name, (kind, sealed) in listed.items() if sealed] == [(rows, "rows")]
    plot = client.get(f"{path}/plots/scores.svg")
    assert (plot.content, plot.headers["content-type"]) == (drawn, "image/svg+xml")
    assert plot.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().partition(" ")[::2] for part in plot.headers["content-security-policy"].split(";"))
    # No script, nothing fetched, and an origin of its own: a drawing is a document where it is opened by itself.
    assert policy["default-src"] == "'none'"
    assert policy["sandbox"] == ""
    assert "script-src" not in policy
    body = problem(client.get(f"{path}/{rows}"), 409, "sealed")
    assert "kept encrypted" in body["detail"]
    assert client.get(f"{path}/model/config.json").headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("accept", "media_type", "content"),
    [
        (None, "application/json", REPORT),
        ("*/*", "application/json", REPORT),
        ("application/json", "application/json", REPORT),
        ("application/vnd.in-toto+json", "application/vnd.in-toto+json", ENVELOPE),
        ("application/vnd.dsse.envelope.v1+json, */*;q=0.1", "application/vnd.dsse.envelope.v1+json", ENVELOPE),
        ("application/json;q=0.5, application/vnd.in-toto+json", "application/vnd.in-toto+json", ENVELOPE),
        ("application/*;q=0.2, application/json;q=0", "application/vnd.dsse.envelope.v1+json", ENVELOPE),
        ("text/html", None, b""),  # this report is none that can be read
        ("text/plain", None, b""),
        ("application/json;q=0", None, b""),
    ],
)
def test_the_report_comes_as_asked(
    client: TestClient,
    database: Database,
    claim: Claim,
    blobs: Blobs,
    accept: str | None,
    media_type: str | None,
    content: bytes,
) -> None:
    finish(database, claim, blobs)
    seen = client.get(f"/jobs/{claim.job_id}").json()
    assert (seen["status"], seen["verdict"]) == ("succeeded", "passed")
    headers = {"Accept": accept} if accept else {}
    response = client.get(f"/jobs/{claim.job_id}/report", headers=headers)
    if media_type is None:
        problem(response, 406, "not_acceptable")
    else:
        assert response.headers["content-type"] == media_type
        assert response.content == content
        assert response.headers["vary"] == "Accept"


def test_lines_of_accept_count_together(client: TestClient, database: Database, claim: Claim, blobs: Blobs) -> None:
    finish(database, claim, blobs)
    lines = [("Accept", "application/json;q=0.1"), ("Accept", "application/vnd.in-toto+json")]
    response = client.get(f"/jobs/{claim.job_id}/report", headers=lines)
    assert response.headers["content-type"] == "application/vnd.in-toto+json"
    assert client.head(f"/jobs/{claim.job_id}/report").headers["content-length"] == str(len(REPORT))


def test_a_browser_gets_the_report_as_a_page(
    client: TestClient,
    database: Database,
    claim: Claim,
    blobs: Blobs,
    tmp_path: Path,
) -> None:
    report = report_on(model_folder(tmp_path))
    with database.transaction() as session:
        attempts.finish(
            session,
            claim,
            verdict="passed",
            files={"plot": [stored(blobs, "plots/scores.svg", b"<svg/>")]},
            sign=lambda *_: {
                "report": stored(blobs, "report.json", report.model_dump_json().encode()),
                "envelope": stored(blobs, "report.dsse.json", ENVELOPE),
            },
        )
    page = client.get(f"/jobs/{claim.job_id}/report", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script" not in page.headers["content-security-policy"]
    assert report.output_model in page.text
    assert "data:image/svg+xml;base64,PHN2Zy8+" in page.text
