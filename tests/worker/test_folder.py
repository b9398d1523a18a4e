"""Plaintext lies in an attempt's folder only while its worker lives."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from api.store.attempts import Claim
from api.store.blobs import Blobs
from api.store.tables import Model
from worker.folder import attempt_folder, fill, remove_abandoned

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

_HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_goes_with_its_attempt_and_not_before(claim: Claim, tmp_path: Path) -> None:
    with attempt_folder(tmp_path, claim) as folder:
        (folder / "data").mkdir()
        (folder / "data" / "ds.jsonl").write_text("plain")
        assert folder.stat().st_mode & 0o077 == 0
        assert remove_abandoned(tmp_path) == []
        assert (folder / "data" / "ds.jsonl").exists()
    assert list(tmp_path.glob("[!l]*")) == []


@pytest.mark.usefixtures("database")
def test_what_a_dead_worker_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "job_dead-1").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path / "job_dead-1" / ".in-use"], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    assert remove_abandoned(tmp_path) == []
    holder.kill()
    holder.communicate()
    assert remove_abandoned(tmp_path) == ["job_dead-1"]
    assert not (tmp_path / "job_dead-1").exists()


@pytest.mark.usefixtures("database")
def test_a_removal_that_was_broken_off_is_done_again(tmp_path: Path) -> None:
    # The lock went, and the plaintext did not.
    (tmp_path / "job_dead-1" / "data").mkdir(parents=True)
    (tmp_path / "job_dead-1" / "data" / "ds.jsonl").write_text("plain")
    assert remove_abandoned(tmp_path) == ["job_dead-1"]
    assert not (tmp_path / "job_dead-1").exists()


def test_the_base_of_a_retraining_is_an_input_as_the_model_is(claim: Claim, tmp_path: Path) -> None:
    model, base = (Model(id=f"mdl_{letter * 26}", path=f"/models/{letter}", digest="0" * 64) for letter in "ab")
    fill(tmp_path, dataclasses.replace(claim, model=model, base=base), Blobs(f"file://{tmp_path}/blobs"), 1.0)
    inputs = json.loads((tmp_path / "inputs.json").read_text())
    assert inputs["models"] == {model.id: "/models/a", base.id: "/models/b"}
