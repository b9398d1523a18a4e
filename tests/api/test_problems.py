"""Every way in which a request can fail is a problem document with a stable code, and none says more than it should."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.store import keys, migrate
from api.store.session import Database
from tests.api.parts import JSONL, MASTER, ROOT, SECRET, bearer, key_for, problem, settings_for

JSON = {"Content-Type": "application/json"}
CANARY = "Adelheid-Quintessenz"


class Case(NamedTuple):
    status: int
    code: str
    param: str | None
    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012


NO_JOB = "/jobs/job_00000000000000000000000000"
CASES = {
    "no such route": Case(404, "not_found", None, "GET", "/nix"),
    "no such job": Case(404, "not_found", None, "GET", NO_JOB),
    "an id that is none": Case(404, "not_found", None, "GET", "/jobs/%00%ff"),
    "wrong method": Case(405, "method_not_allowed", None, "PUT", "/jobs"),
    "page too large": Case(422, "invalid_request", "limit", "GET", "/jobs?limit=100000"),
    "unknown status": Case(422, "invalid_request", "status", "GET", "/jobs?status=quued"),
    "unknown parameter": Case(422, "invalid_request", "stauts", "GET", "/jobs?stauts=queued"),
    "impossible cursor": Case(422, "invalid_spec", "after", "GET", "/jobs?after=%00"),
    "cursor too large": Case(422, "invalid_request", "after", "GET", f"{NO_JOB}/events?after={2**63}"),
    "bad Last-Event-ID": Case(
        422, "invalid_request", "last-event-id", "GET", f"{NO_JOB}/events", headers={"Last-Event-ID": "x"}
    ),
    "not acceptable": Case(406, "not_acceptable", "Accept", "GET", f"{NO_JOB}/events", headers={"Accept": "image/png"}),
    "a form": Case(
        415, "unsupported_media_type", "Content-Type", "POST", "/jobs", b"a=1", {"Content-Type": "multipart/form-data"}
    ),
    "no JSON": Case(400, "invalid_json", None, "POST", "/jobs", b"{", JSON),
    "nothing": Case(400, "invalid_json", None, "POST", "/jobs", b"", JSON),
    "NaN": Case(400, "invalid_json", None, "POST", "/jobs", b'{"seed": NaN}', JSON),
    "not UTF-8": Case(400, "invalid_json", None, "POST", "/jobs", b'{"seed": "\xff"}', JSON),
    "huge number": Case(400, "invalid_json", None, "POST", "/jobs", b'{"seed": ' + b"1" * 5000 + b"}", JSON),
    "deep": Case(400, "invalid_json", None, "POST", "/jobs", b'{"a":' * 40 + b"1" + b"}" * 40, JSON),
    "a field twice": Case(400, "invalid_json", None, "POST", "/jobs", b'{"a": {"seed": 1, "seed": 2}}', JSON),
    "abyssal": Case(400, "invalid_json", None, "POST", "/jobs", b"[" * 500_000, JSON),
    "large": Case(413, "too_large", None, "POST", "/jobs", b" " * (1 << 20) + b" {}", JSON),
    "no spec": Case(422, "invalid_spec", "", "POST", "/jobs", b"[]", JSON),
    "unknown field": Case(422, "invalid_spec", "metod", "POST", "/jobs", b'{"metod": "npo"}', JSON),
    "half a surrogate pair": Case(422, "invalid_spec", "model", "POST", "/jobs", b'{"reference": "\\ud800"}', JSON),
    "half a key": Case(422, "invalid_spec", "\\ud800", "POST", "/jobs", b'{"\\ud800": 1}', JSON),
    "model without path": Case(422, "invalid_request", "path", "POST", "/models", b"{}", JSON),
    "model, unknown field": Case(422, "invalid_request", "pth", "POST", "/models", b'{"pth": "/x"}', JSON),
    "upload of a form": Case(
        415, "unsupported_media_type", "Content-Type", "POST", "/datasets", b"", {"Content-Type": "multipart/form-data"}
    ),
    "empty upload": Case(422, "invalid_data", None, "POST", "/datasets", b"\n\n", JSONL),
    "name with NUL": Case(422, "invalid_request", "name", "POST", "/datasets?name=%00", b'{"text": "t"}', JSONL),
    "empty Idempotency-Key": Case(
        422, "invalid_request", "idempotency-key", "POST", "/jobs", b"{}", {**JSON, "Idempotency-Key": ""}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_is_answered_with_a_problem(client: TestClient, name: str) -> None:
    case = CASES[name]
    response = client.request(case.method, case.path, content=case.content, headers=case.headers)
    body = problem(response, case.status, case.code)
    assert body["param"] == case.param
    if case.status == 422:
        assert all(fault["message"] for fault in body.get("errors", []))


def test_several_faults_are_named_at_once_and_with_what_was_meant(client: TestClient) -> None:
    spec = {"metod": "npo", "data": {"forget": {"source": "uplod"}}, "optimizer": {"name": "adamw", "lr": -1}}
    body = problem(client.post("/jobs", json=spec), 422, "invalid_spec")
    faults = {fault["param"]: fault["message"] for fault in body["errors"]}
    assert "Did you mean 'method'?" in faults["metod"]
    assert "Did you mean 'upload'?" in faults["data.forget.source"]
    assert "-1" in faults["optimizer.lr"]
    assert faults.keys() >= {"model", "method"}
    query = problem(client.get("/jobs?stauts=queued"), 422, "invalid_request")
    assert "Did you mean 'status'?" in query["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("GET", "/jobs?status=runing", None, "status: Unknown value \"runing\". Did you mean 'running'? Allowed: "),
        ("GET", "/jobs?due=later", None, "due: Unknown value \"later\". Did you mean 'late'? Allowed: late, soon."),
        ("GET", "/jobs?limit=0", None, 'limit: Input should be greater than or equal to 1 (got "0").'),
        ("POST", f"{NO_JOB}/hold", {"reason": ""}, 'reason: String should have at least 1 character (got "").'),
        ("POST", f"{NO_JOB}/hold", {"reason": f"{CANARY} " * 99}, "at most 1000 characters (got a text)."),
        ("POST", f"{NO_JOB}/hold", ["why"], "Input should be a JSON object (got a JSON list)."),
        ("POST", "/webhooks", {"url": "https://x", "kinds": ["job.suceeded"]}, "Did you mean 'job.succeeded'?"),
        (
            "POST", "/api-keys", {"principal": "prn_1", "name": "n", "scopes": ["jobs:red"]},
            "scopes.0: Unknown value \"jobs:red\". Did you mean 'jobs:read'?",
        ),
        (
            "PUT", "/aliases/Bad Name!", {"model": "mdl_1", "reason": "r"},
            "name: Input should be an alias such as production: at most 63 of a-z, 0-9 and -, beginning with a letter "
            "(got a text).",
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_what_is_allowed(
    client: TestClient, method: str, path: str, body: Any, said: str
) -> None:
    told = problem(client.request(method, path, json=body), 422, "invalid_request")
    assert said in told["detail"]
    assert CANARY not in str(told)


@pytest.mark.parametrize("action", ["hold", "release", "extend", "reject"])
def test_an_action_without_a_body_says_that_a_reason_is_needed(client: TestClient, action: str) -> None:
    told = problem(client.post(f"{NO_JOB}/{action}"), 400, "invalid_json")
    assert told["detail"] == 'The body is empty. Allowed: {"reason": "why"}.'


def test_only_a_valid_key_opens(app: FastAPI, client: TestClient, database: Database, key: str) -> None:
    revoked, expired = key_for(database, "revoked"), key_for(database, "expired", expires_at=datetime.now(UTC))
    with database.transaction() as session:
        (row,) = [row for row in keys.every(session) if row.name == "revoked"]
        keys.revoke(session, row.id, actor="test")
    presented: dict[str, dict[str, str]] = {
        "none": {},
        "no scheme": {"Authorization": key},
        "another scheme": {"Authorization": f"Basic {key}"},
        "nonsense": bearer("lethe_x"),
        "not ASCII": {"Authorization": "Bearer lethe_\u00e9"},
        "one letter off": bearer(key[:-1] + ("0" if key[-1] != "0" else "1")),
        "revoked": bearer(revoked),
        "expired": bearer(expired),
        "of another deployment": bearer(key_for(database, secret="another deployment's secret, as long")),
    }
    with TestClient(app) as stranger:
        for case, headers in presented.items():
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            for method, path in (("GET", "/jobs"), ("POST", "/datasets"), ("GET", "/catalogue"), ("POST", "/models")):
                body = problem(stranger.request(method, path, headers=raw), 401, "unauthorized")
                assert body["param"] == "Authorization", case
        assert stranger.get("/jobs").headers["www-authenticate"] == "Bearer"
        for path in ("/healthz", "/docs", "/openapi.json"):
            assert stranger.get(path).status_code == 200
        # A stranger's body is not even read.
        assert stranger.post("/jobs", content=b"{", headers=JSON).status_code == 401
    assert client.get("/jobs").status_code == 200


def test_an_unexpected_error_tells_nothing(capfd: pytest.CaptureFixture[str], sqlite_url: str, tmp_path: Path) -> None:
    def broken() -> None:
        raise KeyError(f"{CANARY} is the content of a record")

    app = create_app(settings_for(sqlite_url, tmp_path))
    app.add_api_route("/broken", broken)
    with TestClient(app) as client:
        body = problem(client.get("/broken", headers={"X-Request-Id": "mine-1"}), 500, "internal")
    assert body["request_id"] == "mine-1"
    log = capfd.readouterr().err
    assert CANARY not in str(body) + log
    assert '"error": "KeyError"' in log
    assert "test_problems.py" in log
    assert '"request_id": "mine-1"' in log


def test_a_database_that_is_away_is_503(tmp_path: Path, key: str) -> None:
    settings = settings_for(f"sqlite:///{tmp_path}/nowhere/lethe.db", tmp_path)
    with TestClient(create_app(settings), headers=bearer(key)) as client:
        problem(client.get("/jobs"), 503, "database_unavailable")
        body = problem(client.get("/readyz"), 503, "not_ready")
        assert [fault["param"] for fault in body["errors"]] == ["database", "migrations", "broker"]
        assert str(tmp_path) not in str(body)
        assert client.get("/healthz").json() == {"status": "ok"}


def test_ready_says_what_is_missing(tmp_path: Path, database_url: str, broker_url: str) -> None:
    ready = settings_for(database_url, tmp_path, broker_url=broker_url)
    with TestClient(create_app(ready)) as client:
        assert client.get("/readyz").json() == {
            "status": "ready",
            "checks": {"database": "ok", "migrations": "ok", "broker": "ok"},
        }
    no_tables = settings_for(f"sqlite:///{tmp_path}/empty.db", tmp_path, broker_url=broker_url)
    with TestClient(create_app(no_tables)) as client:
        assert problem(client.get("/readyz"), 503, "not_ready")["param"] == "migrations"


@pytest.mark.parametrize("given", ["", "a" * 65, "line\nbreak", "<script>", "é"])
def test_a_request_id_from_outside_must_look_like_one(client: TestClient, given: str) -> None:
    response = client.get("/healthz", headers={"X-Request-Id": given.encode()})
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"LETHE_KEY_SECRET": "too short"}, "LETHE_KEY_SECRET"),
        ({"LETHE_KEY_SECRET": None}, "LETHE_KEY_SECRET"),
        (
            {"LETHE_MODEL_ROOTS": "/models"},
            'LETHE_MODEL_ROOTS: This is no JSON list. Allowed: such as ["one", "another"], or [] (got "/models")',
        ),
        ({"LETHE_EVENTS_POLL": "-1"}, 'LETHE_EVENTS_POLL: Input should be greater than 0 (got "-1")'),
        ({"LETHE_BROKER_URL": "amqp://user:pass@host"}, "LETHE_BROKER_URL must begin with one of: redis://"),
        (
            {"LETHE_DATABASE_URL": "mysql://user:pass@host/db"},
            "LETHE_DATABASE_URL begins with 'mysql'. Allowed: sqlite:",
        ),
        ({"LETHE_ARTIFACTS_URL": "ftp://user:pass@host/db"}, "LETHE_ARTIFACTS_URL cannot be used"),
    ],
)
def test_a_bad_setting_ends_the_process_with_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    named: str,
) -> None:
    environment = {
        "LETHE_KEY_SECRET": SECRET,
        "LETHE_MASTER_KEY": MASTER,
        "LETHE_DATABASE_URL": f"sqlite:///{tmp_path}/lethe.db",
        "LETHE_BROKER_URL": "redis://localhost",
        "LETHE_ARTIFACTS_URL": f"file://{tmp_path}",
        **changes,
    }
    for name, value in environment.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        create_app()
    assert ended.value.code == 2
    told = capfd.readouterr().err
    assert re.fullmatch(r"lethe: .*\n", told)
    assert named in told
    assert "pass@" not in told
    assert "too short" not in told


PROCESSES = {
    "worker": ["-c", "import worker.app"],
    "migrations": ["-m", "alembic", "-c", "migrations/alembic.ini", "upgrade", "head"],
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("url", [None, "mysql://user:geheim@host/db"])
def test_a_bad_setting_of_another_process_is_one_line_too(process: str, url: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    # The worker lacks others; what is set must not be told with what is missing.
    environment |= {"LETHE_DATABASE_URL": url} if url else {"LETHE_BROKER_URL": "redis://:geheim@host"}
    ended = subprocess.run(
        [sys.executable, *PROCESSES[process]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert re.fullmatch(r"lethe: .*LETHE_\w+:? .*\n", ended.stderr)
    assert "geheim" not in ended.stderr + ended.stdout


def test_head_is_get_without_the_body_and_allow_names_every_method(client: TestClient) -> None:
    for path in ("/jobs", "/catalogue", "/healthz", "/openapi.json", "/docs", "/docs/static/swagger-ui.css"):
        got, headed = client.get(path), client.head(path)
        assert (headed.status_code, headed.content) == (200, b"")
        assert headed.headers["content-length"] == got.headers["content-length"]
    assert client.head(NO_JOB).status_code == 404
    for path, allowed in {
        "/jobs": "GET, HEAD, POST",
        "/models": "GET, HEAD, POST",
        "/datasets": "GET, HEAD, POST",
        NO_JOB: "GET, HEAD",
        f"{NO_JOB}/cancel": "POST",
        "/healthz": "GET, HEAD",
        "/docs": "GET, HEAD",
        "/openapi.json": "GET, HEAD",
        "/docs/static/swagger-ui.css": "GET, HEAD",
    }.items():
        response = client.put(path)
        problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed, path
        assert response.json()["detail"] == f"PUT is not possible here. Allowed: {allowed}."
    assert client.head(f"{NO_JOB}/cancel").headers["allow"] == "POST"


def test_no_answer_leads_to_the_host_that_a_caller_names(client: TestClient) -> None:
    problem(client.get("/jobs/", headers={"Host": "evil.example"}, follow_redirects=False), 404, "not_found")


def test_a_database_without_tables_says_so_and_its_errors_are_logged_without_their_text(
    capfd: pytest.CaptureFixture[str], database_url: str, tmp_path: Path, key: str
) -> None:
    with TestClient(create_app(settings_for(database_url, tmp_path)), headers=bearer(key)) as client:
        migrate.downgrade(database_url, "base")
        try:
            body = problem(client.get("/jobs"), 503, "database_not_migrated")
        finally:
            migrate.upgrade(database_url)
    assert "upgrade head" in body["detail"]
    # One of the request; and where the API was still looking after its rows when they went, one of that.
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"database error"' in line]
    kind = ("OperationalError", "SQLITE_ERROR") if database_url.startswith("sqlite") else ("UndefinedTable", "42P01")
    assert {(line["error"], line["sqlstate"]) for line in lines} == {kind}
    assert "api_keys" not in str(lines)
