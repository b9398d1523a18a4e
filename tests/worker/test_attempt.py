"""What an engine leaves is stored once the job has succeeded, and sealed where it tells of single records."""

import base64
import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import update

from api.store import artifacts, audit, chain_check, due, jobs, keys, sealed
from api.store.blobs import Blobs
from api.store.chain import Head
from api.store.chain_check import Claim
from api.store.session import Database, now
from api.store.tables import Job, Principal
from core.report.schema import Absent, AuditHead, Person, Report, Requested
from core.report.sign import new_key, public_pem
from core.report.verify import verify
from core.spec.job import parse
from tests.api.test_cli import lethe
from tests.report.conftest import model, report  # noqa: F401 -- fixtures: a model folder and the report on it
from tests.vault import MASTER, VAULT
from tests.worker.scripted import Scripted
from worker.attempt import Bench, run_next
from worker.settings import WorkerSettings

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ROWS = {"rows/before-forget.parquet": b"what was asked of Ada Quill", "rows/after-forget.parquet": b"and what was said"}
PLOTS = {"plots/scores.svg": b"<svg/>"}
DONE = {"event": "done", "report": "OUT/report.json", "model": "OUT/model"}


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, database: Database, database_url: str, tmp_path: Path
) -> Callable[..., Bench]:
    """Makes a worker's bench whose engines leave a report, its model, and whatever else `files` names."""
    folder = tmp_path / "prepared"
    outcome = request.getfixturevalue("report")

    def make(done: dict[str, Any], signing_key: bytes, files: dict[str, bytes]) -> Bench:
        (folder / "out").mkdir(parents=True)
        (tmp_path / "model").rename(folder / "out" / "model")
        (folder / "out" / "report.json").write_text(outcome.model_dump_json())
        for name, content in files.items():
            (folder / "out" / name).parent.mkdir(exist_ok=True)
            (folder / "out" / name).write_bytes(content)
        settings = WorkerSettings(
            database_url=database_url,
            broker_url="redis://never-rung",
            master_key=MASTER,
            artifacts_url=f"file://{tmp_path / 'artifacts'}",
            work_dir=tmp_path / "work",
            signing_key_file=tmp_path / "signing.pem",
        )
        blobs, spare = Blobs(settings.artifacts_url), Scripted(folder, [done])
        return Bench(settings, database, blobs, spare, threading.Event(), signing_key, VAULT, "here")

    return make


def test_scores_of_rows_are_kept_sealed_and_plots_as_they_are(
    bench: Callable[..., Bench], database: Database, job_id: str, tmp_path: Path
) -> None:
    worker = bench(DONE | {"rows": list(ROWS), "plots": list(PLOTS)}, new_key(), ROWS | PLOTS)
    assert run_next(worker)
    with database.reading() as session:
        job = jobs.get(session, job_id)
        files = {file.name: file for file in artifacts.of(session, job_id)}
    assert (job.status, job.error) == ("succeeded", None)
    assert {file.kind for file in files.values()} == {"model", "report", "envelope", "rows", "plot"}
    assert {name for name, file in files.items() if file.sealed} == ROWS.keys()
    assert job.key is not None
    for name, content in ROWS.items():
        assert files[name].kind == "rows"
        worker.blobs.get(files[name].digest, tmp_path / "opened", VAULT.unwrap(job.key, job_id))
        assert (tmp_path / "opened").read_bytes() == content
    for name, content in PLOTS.items():
        assert files[name].kind == "plot"
        worker.blobs.get(files[name].digest, tmp_path / "plot")
        assert (tmp_path / "plot").read_bytes() == content
    stored = [file.read_bytes() for file in (tmp_path / "artifacts").rglob("*") if file.is_file()]
    assert len(stored) == len(files)
    assert not any(content in blob for blob in stored for content in ROWS.values())
    assert list((tmp_path / "work").iterdir()) == []


def test_an_engine_that_tells_of_neither_rows_nor_plots_succeeds_too(
    bench: Callable[..., Bench], database: Database, job_id: str
) -> None:
    run_next(bench(DONE, new_key(), {}))
    with database.reading() as session:
        assert jobs.get(session, job_id).status == "succeeded"
        assert {file.kind for file in artifacts.of(session, job_id)} == {"model", "report", "envelope"}


def test_the_report_says_who_asked_and_is_signed_as_it_is_handed_out(
    bench: Callable[..., Bench], database: Database, job_id: str
) -> None:
    key = new_key()
    worker = bench(DONE, key, {})
    with database.transaction() as session:
        approver = keys.create(session, b"secret", name="second", principal="Second Pair", actor="test")[0]
        session.execute(update(Job).values(approved_by=approver.principal_id, approved_at=now(session)))
    assert run_next(worker)
    with database.reading() as session:
        job = jobs.get(session, job_id)
        files = {file.kind: worker.blobs.open(file.digest).read() for file in artifacts.of(session, job_id)}
        asker = session.get_one(Principal, job.principal_id)
    said = Report.model_validate_json(files["report"]).request
    assert isinstance(said, Requested)
    assert (said.job, said.submitted_by.name) == (job_id, asker.name)
    assert isinstance(said.approved_by, Person)
    assert said.approved_by.name == "Second Pair"
    assert isinstance(said.approved_at, str)
    assert isinstance(said.reference, Absent)
    assert said.due_at == due.of(job.created_at).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert isinstance(said.audit_head, AuditHead)
    with database.snapshot() as session:
        books = chain_check.verify(
            session, claims=[Claim(said.audit_head.position, said.audit_head.hash, "the report")]
        )
        noted = [entry.action for entry in audit.about(session, job_id) if entry.position is not None]
    assert (books.ok, books.head) == (True, Head(**said.audit_head.model_dump()))
    assert noted == ["job.created", "job.running"], "the head covers all that was done until it was signed"
    checked = verify(files["envelope"], public_pem(key), report=files["report"])
    assert (checked.failures, "plain report: says what was signed" in checked.checked) == ([], True)


def test_a_job_whose_key_does_not_open_fails_and_says_so(
    bench: Callable[..., Bench], database: Database, job_id: str
) -> None:
    with database.transaction() as session:
        first = jobs.get(session, job_id)
        other = jobs.create(session, parse(first.spec), key_id=first.key_id)[0]
        first.key, other.key = b"no key" * 10, VAULT.wrap(sealed.new_key(), other.id)
    worker = bench(DONE, new_key(), {})
    assert [run_next(worker), run_next(worker), run_next(worker)] == [True, True, False]
    with database.reading() as session:
        job, behind = jobs.get(session, job_id), jobs.get(session, other.id)
    assert (job.status, behind.status, job.counted) == ("failed", "succeeded", 0)
    assert job.error is not None
    assert (job.error["code"], job_id in job.error["message"]) == ("invalid_setting", True)


def test_a_worker_that_fails_after_it_lost_its_lease_says_so_and_goes_on(
    bench: Callable[..., Bench], database: Database, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken_away(*_: Any) -> None:
        with database.transaction() as session:
            jobs.get(session, job_id).attempt += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("worker.attempt._attempt", taken_away)
    with structlog.testing.capture_logs() as logs:
        assert run_next(bench(DONE, new_key(), {}))
    assert [line["event"] for line in logs] == ["claimed", "attempt broke off", "lease lost"]


def test_the_audit_log_is_compared_with_what_the_report_has_of_it(
    bench: Callable[..., Bench], database: Database, database_url: str, job_id: str, tmp_path: Path
) -> None:
    key = new_key()
    worker = bench(DONE, key, {})
    assert run_next(worker)
    with database.reading() as session:
        files = {file.kind: worker.blobs.open(file.digest).read() for file in artifacts.of(session, job_id)}
    envelope = json.loads(files["envelope"])
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["request"]["audit_head"]["position"] = 99
    forged = envelope | {"payload": base64.b64encode(json.dumps(statement).encode()).decode()}
    for name, content in {
        "plain.json": files["report"],
        "report.json": files["envelope"],
        "forged.json": json.dumps(forged).encode(),
        "key.pem": public_pem(key),
    }.items():
        (tmp_path / name).write_bytes(content)

    def verified(*options: str) -> tuple[int, str]:
        shown = lethe("audit", "verify", *options, LETHE_DATABASE_URL=database_url)
        return shown.returncode, shown.stdout + shown.stderr

    with_key = f"--key={tmp_path}/key.pem"
    true, false = f"--report={tmp_path}/report.json", f"--report={tmp_path}/forged.json"
    code, told = verified(with_key, true)
    assert (code, "1 reports compared" in told, "no --key" in told) == (0, True, False)
    code, told = verified(true)
    assert (code, "the signatures of heads and reports: not checked, no --key" in told) == (0, True)
    code, told = verified(with_key, true, false)
    assert (code, f"FAILED {tmp_path}/forged.json is not what was signed" in told) == (1, True)
    assert "missing" not in told, "what nobody has signed says nothing of the log"
    code, told = verified(with_key, true, f"--report={tmp_path}/plain.json")
    assert (code, f"{tmp_path}/plain.json: " in told, "takes report.dsse.json" in told) == (2, True, True)


@pytest.mark.parametrize("fault", ["the signature", "a file"])
def test_no_sealed_file_stays_that_no_row_refers_to(
    bench: Callable[..., Bench], database: Database, job_id: str, tmp_path: Path, fault: str
) -> None:
    told = [*ROWS, "rows/never-written.parquet"] if fault == "a file" else list(ROWS)
    key = new_key() if fault == "a file" else b"no key"
    run_next(bench(DONE | {"rows": told}, key, ROWS))
    with database.reading() as session:
        job = jobs.get(session, job_id)
        assert (job.status, job.counted) == ("queued", 1)
        assert artifacts.of(session, job_id) == []
    stored = [file.read_bytes() for file in (tmp_path / "artifacts").rglob("*") if file.is_file()]
    assert len(stored) > 0
    assert not any(content.startswith(sealed.MAGIC) for content in stored)
