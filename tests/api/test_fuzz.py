"""Schemathesis over the whole description, all checks, against a running API on PostgreSQL and Redis.

`make fuzz` looks longer: LETHE_FUZZ_EXAMPLES is the number of generated cases an operation.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.settings import Settings
from api.store import attempts, claims
from api.store.session import Database
from api.store.vault import Vault
from tests.api.parts import JSONL, MASTER, RECORDS, ApiProcess, key_for, model_folder, request_for, settings_for

EXAMPLES = os.environ.get("LETHE_FUZZ_EXAMPLES", "4")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
# Every boundary of every field of a job is two minutes of requests, which are for the longer look.
_JOB = ("--exclude-name", "POST /jobs", "--exclude-name", "POST /jobs/validate") if int(EXAMPLES) <= 10 else ()
PHASES = (("--phases", "examples,fuzzing,stateful"), ("--phases", "coverage", *_JOB))
pytestmark = [
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
    pytest.mark.timeout(120 + 120 * int(EXAMPLES)),
]

# What a schema cannot say (a set that does not exist, a field that needs another) is answered 422, and that is meant.
# Ids that exist let the calls reach past "not found".
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 401, 403, 404, 408, 409, 413, 415, 422, 429]

[parameters]
"path.job_id" = "{job}"
"path.dataset_id" = "{dataset}"
"path.model_id" = "{model}"
"""


@pytest.fixture
def settings(database_url: str, broker_url: str, tmp_path: Path) -> Settings:
    # An event stream ends with its job, and a job that waits for ever would keep a caller for ever.
    return settings_for(database_url, tmp_path, broker_url=broker_url, rate_limit="")


def test_nothing_that_can_be_sent_breaks_anything(settings: Settings, database: Database, tmp_path: Path) -> None:
    key = key_for(database)
    with ApiProcess(settings, tmp_path) as api, api.client(key) as client:
        made = {
            "model": client.post("/models", json={"path": str(model_folder(tmp_path / "models"))}).json()["id"],
            "dataset": client.post("/datasets", content=RECORDS, headers=JSONL).json()["id"],
        }
        made["job"] = client.post("/jobs", json=request_for(made["model"], made["dataset"])).json()["id"]
        with database.transaction() as session:
            claim = claims.claim_next(session, worker="w", lease=600, vault=Vault(MASTER.encode()))
            assert claim is not None
            attempts.fail(session, claim, {"code": "x", "message": "m", "param": None, "retryable": False})
        (tmp_path / "schemathesis.toml").write_text(CONFIG.format(**made))
        found = [schemathesis(api.url, key, tmp_path, *phases) for phases in PHASES]
        log = api.log.read_text()
    for run in found:
        assert run.returncode == 0, run.stdout[-12_000:]
    assert "unexpected error" not in log
    assert "database error" not in log


def schemathesis(url: str, key: str, folder: Path, *phases: str) -> subprocess.CompletedProcess[str]:
    """One run of its command, with all checks."""
    command = [str(Path(sys.executable).with_name("st")), "--config-file", "schemathesis.toml", "run"]
    command += [f"{url}/openapi.json", "--header", f"Authorization: Bearer {key}", "--checks", "all", *phases]
    command += ["--max-examples", EXAMPLES, "--continue-on-failure", "--seed", "1"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": HOOKS.stem, "PYTHONPATH": str(HOOKS.parent)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
