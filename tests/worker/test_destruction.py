"""What is destroyed, by time or on request, is told of by a signed record that belongs to one report only."""

from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from api.store import artifacts, datasets, jobs, keys, retention, sealed
from api.store.blobs import Blobs
from api.store.errors import BlobMissing
from api.store.session import Database, now
from core.report.destruction import Destruction, sign_destruction
from core.report.schema import NO_SERVICE, Absent, DataUsed, Report
from core.report.sign import new_key, public_pem
from core.report.verify import verify
from core.spec.job import parse
from tests.report.conftest import model, report  # noqa: F401 -- fixtures: a model folder and the report on it
from tests.vault import VAULT
from tests.worker.test_attempt import DONE, ROWS, bench  # noqa: F401 -- a fixture: a worker with scripted engines
from worker.attempt import Bench, run_next
from worker.destruction import destroy_due, record_destroyed

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

PLAIN = b'{"text": "whom to forget"}\n'


@pytest.fixture
def report_of_upload(report: Report) -> Report:  # noqa: F811
    """The fixtures' report, of a set with a commitment."""
    forget = DataUsed(rows=1, answer_tokens=3, taken=[(0, 0)], too_long=[], commitment="c" * 64, committed=NO_SERVICE)
    return report.model_copy(update={"forget": forget})


@pytest.mark.parametrize("why", ["retention", "request"])
def test_a_record_of_the_destruction_belongs_to_the_jobs_report(
    bench: Callable[..., Bench],  # noqa: F811
    database: Database,
    report_of_upload: Report,
    tmp_path: Path,
    why: Any,
) -> None:
    signing_key = new_key()
    worker = bench(DONE | {"rows": list(ROWS)}, signing_key, ROWS)
    (tmp_path / "prepared" / "out" / "report.json").write_text(report_of_upload.model_dump_json())
    secret = sealed.new_key()
    blob = worker.blobs.put(BytesIO(PLAIN), secret)
    with database.transaction() as session:
        key = keys.create(session, b"secret", name="one", actor="test")[0]
        dataset = datasets.register(
            session, VAULT, rows=1, size=len(PLAIN), blob=blob.digest, key=secret, commitment="c" * 64, warnings=[],
            key_id=key.id,
        )  # fmt: skip
        source = {"source": "upload", "dataset": dataset.id}
        spec = parse({"model": "a/model", "data": {"forget": source}, "method": "GA"})
        job_id = jobs.create(session, spec, key_id=key.id)[0].id
    assert run_next(worker)
    with database.reading() as session:
        assert jobs.get(session, job_id).status == "succeeded"
        files = {file.name: file for file in artifacts.of(session, job_id)}
    made = {name: _content(worker, files[name].digest) for name in ("report.json", "report.dsse.json")}
    kept = Report.model_validate_json(made["report.json"])
    assert not isinstance(kept.request, Absent)
    assert kept.forget.committed == 1, "the books say of how many records the set is"
    assert "another request that names the set" in str(kept.request.data_destroyed_unless)
    assert str(kept.request.data_destroyed_unless).endswith("less than 30 days before")
    deadline = kept.request.data_destroyed_by
    assert isinstance(deadline, str)
    with database.reading() as session:
        assert deadline[:10] == (now(session) + timedelta(days=30)).isoformat()[:10]

    assert destroy_due(database, worker.blobs, 30, "worker:here") == 0
    if why == "retention":
        assert destroy_due(database, worker.blobs, 0, "worker:here") == 1
        assert destroy_due(database, worker.blobs, 0, "worker:here") == 0
    else:
        with database.transaction() as session:
            gone = retention.destroy(session, dataset.id, actor="prn_someone", why="request")
        worker.blobs.delete(gone)
    for digest in (blob.digest, *(files[name].digest for name in ROWS)):
        with pytest.raises(BlobMissing):
            worker.blobs.open(digest)
    assert record_destroyed(database, worker.blobs, signing_key) == 1
    assert record_destroyed(database, worker.blobs, signing_key) == 0

    with database.reading() as session:
        (found,) = artifacts.of(session, job_id, "destruction")
    record = _content(worker, found.digest)

    def checked(record: bytes, **changes: bytes) -> Any:
        given = {"envelope": made["report.dsse.json"], "report": made["report.json"], **changes}
        envelope = given.pop("envelope")
        return verify(envelope, public_pem(signing_key), destruction=record, **given)

    result = checked(record)
    assert result.ok, result.failures
    assert any("destruction: the key of forget" in line for line in result.checked)
    by = "worker:here" if why == "retention" else "prn_someone"
    digests = {name: files[name].digest for name in made}
    said = {"name": "forget", "commitment": "c" * 64, "destroyed_at": "2026-01-31T12:00:00Z"}
    honest: dict[str, Any] = {"job": job_id, "why": why, "by": by, "sets": [said], "own_key": False, "kept": []}
    honest["recorded_at"] = "2026-01-31T12:00:00Z"

    def forged(digests: dict[str, str] = digests, key: bytes = signing_key, **changes: Any) -> bytes:
        return sign_destruction(Destruction.model_validate(honest | changes), digests, key)

    assert checked(forged()).ok
    for wrong in (
        forged(key=new_key()),
        forged(job="job_00000000"),
        forged(sets=[said | {"commitment": "d" * 64}]),
        forged(sets=[said | {"name": "retain"}]),
        forged(digests | {"report.json": "0" * 64}),
        forged({}),
        record.replace(b'"sig": "M', b'"sig": "N'),
    ):
        result = checked(wrong)
        assert not result.ok
        assert all(line.startswith("destruction: ") for line in result.failures)


def _content(worker: Bench, digest: str) -> bytes:
    with worker.blobs.open(digest) as stream:
        return stream.read()


def test_keys_go_also_while_the_files_cannot(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = Blobs(f"file://{tmp_path / 'artifacts'}")
    with database.transaction() as session:
        key = keys.create(session, b"secret", name="one", actor="test")[0]
        for _ in range(3):
            secret = sealed.new_key()
            blob = blobs.put(BytesIO(PLAIN), secret)
            datasets.register(
                session, VAULT, rows=1, size=len(PLAIN), blob=blob.digest, key=secret, commitment="c" * 64, warnings=[],
                key_id=key.id,
            )  # fmt: skip

    def away(_self: Blobs, _digests: object) -> None:
        raise OSError("the artifact store is away")

    monkeypatch.setattr(Blobs, "delete", away)
    with pytest.raises(OSError, match="away"):
        destroy_due(database, blobs, 0, "worker:here")
    with database.reading() as session:
        found = datasets.page(session)[0]
        assert len(found) == 3
        assert [(dataset.destroyed_at is None, dataset.key) for dataset in found] == [(False, b"")] * 3
