"""Plaintext lies in an attempt's folder only while its worker lives, and all that the engine needs lies there."""

import dataclasses
import errno
import hmac
import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from api.store import attempts, claims, datasets, jobs, keys, models, sealed
from api.store.blobs import Blobs
from api.store.claims import Claim
from api.store.errors import BlobDamaged
from api.store.session import Database
from core.errors import SpecError
from core.spec.job import parse
from core.spec.metrics import SETS
from tests.vault import VAULT
from worker.checkpoints import CheckpointStore
from worker.folder import attempt_folder, fill, remove_abandoned, restore_checkpoint

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


@pytest.fixture
def asked(database: Database, tmp_path: Path) -> tuple[Claim, Blobs]:
    """A claimed job that names four models, and an upload as each of its sets, whose rows are the set's name."""
    blobs = Blobs(f"file://{tmp_path}/blobs")
    named, sets = {}, {}
    with database.transaction() as session:
        key = keys.create(session, b"secret", name="worker", actor="test")[0]
        facts: dict[str, Any] = {"digest": "0" * 64, "files": {}, "architecture": "L", "key_id": key.id}
        for name in ("model", "base", "retrained", "reference"):
            named[name] = models.register(session, path=f"/models/{name}", **facts)[0].id
        for name in SETS:
            plain, secret = name.encode(), sealed.new_key()
            blob = blobs.put(BytesIO(plain), secret)
            code = hmac.digest(secret, plain, "sha256").hex()
            known: dict[str, Any] = {"rows": 1, "size": len(plain), "warnings": [], "key_id": key.id}
            upload = datasets.register(session, VAULT, blob=blob.digest, key=secret, commitment=code, **known)
            sets[name] = {"source": "upload", "dataset": upload.id}
        spec = parse(
            {
                "model": named["model"],
                "data": sets,
                "method": {"name": "retrain", "base": named["base"]},
                "evaluation": {name: named[name] for name in ("retrained", "reference")},
            }
        )
        job_id = jobs.create(session, spec, key_id=key.id)[0].id
    with database.transaction() as session:
        claim = claims.claim(session, job_id, worker="here", lease=60, vault=VAULT)
    assert claim is not None
    return claim, blobs


def test_every_model_and_upload_of_a_spec_is_an_input(asked: tuple[Claim, Blobs], tmp_path: Path) -> None:
    claim, blobs = asked
    command = fill(tmp_path, claim, blobs, 1.0)
    inputs = json.loads((tmp_path / "inputs.json").read_text())
    spec = parse(json.loads(Path(command["spec"]).read_text()))
    assert spec.digest() == claim.spec_digest
    assert sorted(inputs["models"].values()) == [
        f"/models/{name}" for name in ("base", "model", "reference", "retrained")
    ]
    sources = spec.data.sources()
    assert sources.keys() == SETS.keys() == command["commitments"].keys()
    for name, source in sources.items():
        assert source.source == "upload"
        file = Path(inputs["datasets"][source.dataset])
        assert file.read_text() == name
        assert file.stat().st_mode & 0o077 == 0
        assert command["commitments"][name] == claim.datasets[source.dataset].commitment


def test_what_is_gone_is_named_and_nothing_is_written_in_plain(asked: tuple[Claim, Blobs], tmp_path: Path) -> None:
    claim, blobs = asked
    reference, holdout = claim.spec["evaluation"]["reference"]["id"], claim.spec["data"]["holdout"]["dataset"]
    left: dict[str, Any] = {
        "models": {name: found for name, found in claim.models.items() if name != reference},
        "datasets": {name: found for name, found in claim.datasets.items() if name != holdout},
    }
    with pytest.raises(SpecError) as raised:
        fill(tmp_path, dataclasses.replace(claim, **left), blobs, 1.0)
    assert {p.param: p.value for p in raised.value.problems} == {
        "evaluation.reference.id": reference,
        "data.holdout.dataset": holdout,
    }
    assert not (tmp_path / "data").exists()


def test_a_checkpoint_comes_back_with_every_file_of_its_manifest(
    database: Database, claim: Claim, tmp_path: Path
) -> None:
    blobs = Blobs(f"file://{tmp_path}/blobs")
    written = tmp_path / "step-00000007"
    written.mkdir()
    names = ["weights.safetensors", "best.safetensors", "before-forget.parquet", "before-real_authors.parquet"]
    content = {name: f"content of {name}".encode() for name in names}
    content["manifest.json"] = json.dumps({"step": 7, "files": dict.fromkeys(names)}).encode()
    for name, bytes_ in content.items():
        (written / name).write_bytes(bytes_)
    CheckpointStore(database, blobs, claim).keep(written, 7)
    assert not written.exists()
    with database.transaction() as session:
        attempts.release(session, claim, reason="the worker left", counts=False)
    with database.transaction() as session:
        again = claims.claim(session, claim.job_id, worker="there", lease=60, vault=VAULT)
    assert again is not None
    restored = restore_checkpoint(tmp_path, again, blobs)
    assert restored is not None
    assert {file.name: file.read_bytes() for file in restored.iterdir()} == content
    stored = [file.read_bytes() for file in (tmp_path / "blobs").rglob("*") if file.is_file()]
    assert len(stored) == len(content)
    assert not any(plain in blob for blob in stored for plain in content.values())


@pytest.mark.parametrize("apart", [False, True])
def test_a_model_that_a_job_left_is_put_there_from_its_artifacts(
    asked: tuple[Claim, Blobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    claim, blobs = asked
    assert claim.model is not None
    content = {"config.json": b"{}", "deep/model.safetensors": b"weights"}
    stored = {name: blobs.put(BytesIO(plain)) for name, plain in content.items()}
    claim.model.job_id = "job_that_made_it"
    claim.model.files = {name: {"sha256": blob.digest, "size": blob.size} for name, blob in stored.items()}
    if apart:

        def refused(*_: object) -> None:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "link", refused)
    fill(tmp_path, claim, blobs, 1.0)
    inputs = json.loads((tmp_path / "inputs.json").read_text())
    folder = Path(inputs["models"][claim.model.id])
    assert {name: (folder / name).read_bytes() for name in content} == content
    # Of gigabytes there is no second copy where there need be none.
    links = {(folder / name).stat().st_nlink for name in content}
    assert links == ({1} if apart else {2})


def test_a_model_whose_blob_was_changed_is_not_begun_with(asked: tuple[Claim, Blobs], tmp_path: Path) -> None:
    claim, blobs = asked
    assert claim.model is not None
    blob = blobs.put(BytesIO(b"{}"))
    claim.model.job_id, claim.model.files = "job_that_made_it", {"config.json": {"sha256": blob.digest, "size": 2}}
    (file,) = (tmp_path / "blobs").rglob(blob.digest)
    file.chmod(0o600)
    file.write_bytes(b"[]")
    with pytest.raises(BlobDamaged):
        fill(tmp_path, claim, blobs, 1.0)
