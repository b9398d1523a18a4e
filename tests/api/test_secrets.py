"""Outside `lethe up` no part starts with a secret that is missing or copied from an example, and none makes its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from api.app import create_app
from api.settings import KeySettings, Settings
from api.store.errors import InvalidSetting
from api.store.settings import load
from core.report.keys import new_key
from tests.api.parts import MASTER, ROOT, SECRET
from worker.settings import WorkerSettings

GOOD = {"LETHE_KEY_SECRET": SECRET, "LETHE_MASTER_KEY": MASTER}
NONE = {
    "LETHE_KEY_SECRET": [
        "change-me-change-me-change-me-change-me",
        "ThisIsASECRETof40charactersThisIsASECRET",
        "an example, which is long enough to pass",
        "0123401234012340123401234012340123401234",
        MASTER,
    ],
    "LETHE_MASTER_KEY": ["a default that nobody has filled in yet.", "passwordpasswordpasswordpassword1234567"],
}
CASES = [(name, value) for name, values in NONE.items() for value in values]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """All that a worker and an API need, but for the signing key."""
    return {
        **GOOD,
        "LETHE_DATABASE_URL": f"sqlite:///{tmp_path}/lethe.db",
        "LETHE_BROKER_URL": "redis://127.0.0.1:1/0",
        "LETHE_ARTIFACTS_URL": f"file://{tmp_path}/artifacts",
        "LETHE_WORK_DIR": f"{tmp_path}/work",
        "LETHE_SIGNING_KEY_FILE": f"{tmp_path}/signing.pem",
    }


def put(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_placeholder_starts_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    environment: dict[str, str],
    name: str,
    value: str,
) -> None:
    put(monkeypatch, environment | {name: value})
    with pytest.raises(SystemExit) as ended:
        create_app()
    told = capfd.readouterr().err
    assert ended.value.code == 2
    assert re.fullmatch(rf"lethe: {name}: .*\n", told), told
    assert value not in told
    if name == "LETHE_MASTER_KEY":
        with pytest.raises(InvalidSetting, match=name):
            load(WorkerSettings)
    # The roof over all parts made them itself.
    put(monkeypatch, {"LETHE_EMBEDDED": "true"})
    if value != MASTER:
        load(Settings)


def test_good_secrets_are_taken(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    put(monkeypatch, environment)
    assert load(Settings).key_secret == SECRET
    assert load(WorkerSettings).master_key == MASTER
    assert load(KeySettings).embedded is False


def test_the_command_line_takes_no_placeholder_either(environment: dict[str, str]) -> None:
    ended = run(environment | {"LETHE_KEY_SECRET": "change-me" * 5}, "-m", "api.cli", "keys", "list")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("lethe: LETHE_KEY_SECRET: This is no secret: it holds the word change.")


def test_a_worker_makes_no_signing_key_of_its_own(environment: dict[str, str], tmp_path: Path) -> None:
    command = ("-m", "celery", "-A", "worker.app", "--quiet", "worker", "--pool=threads", "--concurrency=1")
    ended = run(environment, *command)
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("lethe: ")]
    assert "LETHE_SIGNING_KEY_FILE: The signing key" in line
    assert "No such file" in line
    assert list(tmp_path.glob("*.pem")) == []
    (tmp_path / "signing.pem").write_bytes(b"no key")
    assert "not an unencrypted PEM file" in run(environment, *command).stderr
    (tmp_path / "signing.pem").write_bytes(new_key())
    start = "from worker.app import settings; from worker.shift import Shift; Shift(settings, slots=1, ring=print)"
    assert run(environment, "-c", start).returncode == 0


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
