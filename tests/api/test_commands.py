"""The commands that speak to a service, against one that runs: what they print, their exit codes, their errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.store import attempts, claims
from api.store.session import Database
from core.errors import LetheError
from tests.api.parts import RECORDS, ApiProcess, key_for, model_folder, request_for, settings_for
from tests.vault import VAULT

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Lethe:
    """The command line, told by environment where the service is."""

    def __init__(self, url: str, key: str) -> None:
        self._told = {"LETHE_URL": url, "LETHE_API_KEY": key, "COLUMNS": "200"}

    def __call__(self, *arguments: str, stdin: str | None = None, exit_code: int = 0) -> str:
        result = CliRunner().invoke(app, arguments, input=stdin, env=self._told)
        if isinstance(result.exception, LetheError):
            raise result.exception
        assert result.exit_code == exit_code, (result.output, result.exception)
        return result.stdout

    def json(self, *arguments: str, **more: Any) -> Any:
        return json.loads(self(*arguments, "--json", **more))


@pytest.fixture
def lethe(database: Database, database_url: str, tmp_path: Path) -> Iterator[Lethe]:
    with ApiProcess(settings_for(database_url, tmp_path), tmp_path) as api:
        yield Lethe(api.url, key_for(database))


def test_a_request_from_upload_to_the_end_of_its_job(lethe: Lethe, database: Database, tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").write_bytes(RECORDS)
    dataset = lethe.json("datasets", "upload", str(tmp_path / "forget.jsonl"))
    assert (dataset["rows"], dataset["name"]) == (4, "forget.jsonl")
    assert dataset["id"] in lethe("datasets", "list")
    assert lethe.json("datasets", "show", dataset["id"])["rows"] == 4
    model = lethe.json("models", "register", str(model_folder(tmp_path / "models")))
    assert model["id"] in lethe("models", "list")
    assert "LlamaForCausalLM" in lethe("models", "show", model["id"])

    body = json.dumps(request_for(model["id"], dataset["id"], reference="case 7"))
    job = lethe.json("submit", "-", "--idempotency-key", "once", stdin=body)
    assert lethe.json("submit", "-", "--idempotency-key", "once", stdin=body)["id"] == job["id"]
    assert [json.loads(line)["id"] for line in lethe("jobs", "--reference", "case 7", "--json").splitlines()] == [
        job["id"]
    ]
    assert lethe("jobs", "--status", "running") == ""
    assert "queued" in lethe("show", job["id"])
    assert lethe.json("cancel", job["id"])["status"] == "cancelled"
    assert lethe.json("retry", job["id"])["status"] == "queued"
    with database.transaction() as session:
        claim = claims.claim(session, job["id"], worker="w", lease=60, vault=VAULT)
        assert claim is not None
        attempts.fail(session, claim, {"code": "diverged", "message": "It was nan.", "param": None, "retryable": False})
    told = lethe("watch", job["id"], exit_code=1)
    assert "from=queued to=running" in told
    assert "diverged" in told
    lines = lethe("watch", job["id"], "--json", exit_code=1).splitlines()
    assert json.loads(lines[0])["event"] == "status"


def test_files_given_with_a_request_are_uploaded(lethe: Lethe, tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").write_bytes(RECORDS)
    model = lethe.json("models", "register", str(model_folder(tmp_path / "models")))
    (tmp_path / "request.json").write_text(json.dumps({"model": model["id"], "method": "GA"}))
    job = lethe.json("submit", str(tmp_path / "request.json"), "--forget", str(tmp_path / "forget.jsonl"))
    assert job["spec"]["data"]["forget"]["dataset"] == lethe.json("datasets", "list")["id"]


def test_each_line_that_is_no_record_is_named(lethe: Lethe, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(RECORDS + b'{"question": "Q?"}\nno json\n')
    with pytest.raises(LetheError, match=r"2 lines are no.*\n  line 5: .*answer.*\n  line 6: ") as raised:
        lethe("datasets", "upload", str(tmp_path / "bad.jsonl"))
    assert len(raised.value.message.splitlines()) == 3


WRONG = [
    (("show", "job_00000000"), "There is no job 'job_00000000'. (404 not_found, req_"),
    (("jobs", "--status", "asleep"), "status"),
    (("jobs", "--model", "production"), "There is no model 'production'."),
    (("jobs", "--url", "127.0.0.1:8000"), "'127.0.0.1:8000' does not begin with http:// or https://."),
    (("report", "job_00000000"), "no job"),
    (("report", "job_00000000", "--model"), "needs --out"),
    (("submit", "/nowhere/at/all.json"), "cannot be read"),
    (("datasets", "upload", "/nowhere/at/all.jsonl"), "cannot be read"),
    (("show", "job_00000000", "--api-key", "lethe_wrong"), "401 unauthorized"),
    (("show", "job_00000000", "--url", "http://127.0.0.1:1"), "does not answer"),
    (("show", "job_00000000", "--api-key", ""), "LETHE_API_KEY"),
]


def test_what_is_wrong_is_said_in_one_line(lethe: Lethe) -> None:
    for arguments, said in WRONG:
        with pytest.raises(LetheError) as raised:
            lethe(*arguments)
        assert said in raised.value.message
        assert "Traceback" not in raised.value.message
        assert raised.value.exit_code in (1, 2)
