"""A job is given the forget sets of earlier ones while they are held, in its own folder, and the reason where not."""

import errno
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from api.store import datasets, keys, sealed
from api.store.blobs import Blobs
from api.store.lineage import Removed
from api.store.session import Database, now
from api.store.tables import Dataset
from tests.vault import VAULT
from worker.recheck import listed

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

PLAIN = b'{"question": "Q?", "answer": "A."}\n'


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path}/blobs")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "attempt"
    (made / "data").mkdir(parents=True)
    return made


@pytest.fixture
def forget(database: Database, blobs: Blobs) -> Dataset:
    key = sealed.new_key()
    blob = blobs.put(BytesIO(PLAIN), key)
    with database.transaction() as session:
        owner = keys.create(session, b"secret", name="worker", actor="test")[0]
        facts: dict[str, Any] = {"rows": 1, "size": len(PLAIN), "warnings": [], "key_id": owner.id}
        return datasets.register(session, VAULT, blob=blob.digest, key=key, commitment="4" * 64, **facts)


def given(folder: Path, blobs: Blobs, *removed: Removed) -> list[dict[str, Any]]:
    known = json.loads(listed(folder, removed, 7, blobs, VAULT).read_text())
    assert known["of"] == 7
    jobs: list[dict[str, Any]] = known["jobs"]
    return jobs


def test_a_set_that_is_held_is_there_in_plain_with_its_report(folder: Path, blobs: Blobs, forget: Dataset) -> None:
    report = blobs.put(BytesIO(b"{}"))
    one, two = given(folder, blobs, Removed("job_a", forget, report.digest), Removed("job_b", forget, "0" * 64))
    for job in (one, two):
        file = Path(job["records"])
        assert (job["dataset"], job["absent"], file.read_bytes()) == (forget.id, None, PLAIN)
        # Where a removal that is broken off begins.
        assert file.parent == folder / "data"
        assert file.stat().st_mode & 0o077 == 0
    assert Path(one["report"]).read_bytes() == b"{}"
    assert not Path(two["report"]).exists()


def test_what_cannot_be_looked_at_any_more_has_its_reason(
    database: Database, folder: Path, blobs: Blobs, forget: Dataset
) -> None:
    jobs = [Removed("job_a", None, None)]
    assert "was no upload" in given(folder, blobs, *jobs)[0]["absent"]
    (folder / "earlier").rmdir()
    blobs.delete([forget.blob])
    assert "artifact_missing" in given(folder, blobs, Removed("job_b", forget, None))[0]["absent"]
    (folder / "earlier").rmdir()
    with database.reading() as session:
        forget.destroyed_at = now(session)
    (gone,) = given(folder, blobs, Removed("job_c", forget, None))
    assert (gone["records"], gone["absent"][:23]) == (None, "its data was destroyed ")
    assert list((folder / "data").iterdir()) == []


def test_a_full_disk_is_the_earlier_set_s_loss_not_the_job_s(
    folder: Path, blobs: Blobs, forget: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = blobs.put(BytesIO(b"{}"))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "and a path")

    monkeypatch.setattr(blobs, "get", full)
    (found,) = given(folder, blobs, Removed("job_a", forget, report.digest))
    assert (found["records"], Path(found["report"]).exists()) == (None, False)
    assert found["absent"] == "its data could not be written out (No space left on device)"
