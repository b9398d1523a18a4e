"""Keys go when no job needs them any more and not a moment before, whoever comes in between."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from api.store import artifacts, attempts, audit, datasets, decisions, destroyed, events, jobs, life, retention, sealed
from api.store.claims import Claim
from api.store.errors import Conflict, InvalidSetting, NotFound
from api.store.records import Attempt
from api.store.session import Database, now
from api.store.tables import ApiKey, Dataset, Job, Model, Status
from core.errors import SpecError
from core.spec.job import JobSpec, parse
from tests.store.conftest import spec_for, stored
from tests.vault import VAULT

Take = Callable[..., Claim]
LATER = datetime(2999, 1, 1, tzinfo=UTC)  # a limit before which everything has ended


def due(database: Database, before: datetime = LATER) -> list[str]:
    with database.reading() as session:
        return [*retention.due(session, before)]


def destroy(database: Database, dataset_id: str, before: datetime | None = None) -> list[str]:
    with database.transaction() as session:
        return retention.destroy(session, dataset_id, actor="sweep", why="retention", before=before)


def succeed(database: Database, claim: Claim) -> None:
    with database.transaction() as session:
        attempts.finish(
            session,
            claim,
            verdict="passed",
            files={"rows": [stored("rows/after-forget.parquet", "7", sealed=True)], "model": [stored("model/w", "8")]},
            sign=lambda *_: {"report": stored("report.json", "9"), "envelope": stored("report.dsse.json", "a")},
        )


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "rejected"])
def test_a_set_is_destroyed_at_every_end_of_its_job(
    database: Database, dataset: Dataset, job_id: str, take: Take, end: Status
) -> None:
    assert due(database) == []
    with pytest.raises(Conflict, match=f"{job_id} is queued"):
        destroy(database, dataset.id)
    if end in ("succeeded", "failed"):
        claim = take(job_id)
        with database.transaction() as session:
            attempts.save_checkpoint(session, claim, 3, [stored("manifest.json", "b", sealed=True)])
    if end == "succeeded":
        succeed(database, claim)
    elif end == "failed":
        with database.transaction() as session:
            attempts.fail(session, claim, {"code": "x", "message": "x", "param": None, "retryable": False})
    elif end == "cancelled":
        with database.transaction() as session:
            life.request_cancel(session, job_id, "test")
    else:
        with database.transaction() as session:
            session.execute(update(Job).values(status="rejected", finished_at=now(session)))
    assert due(database, datetime(2020, 1, 1, tzinfo=UTC)) == []
    assert due(database) == [dataset.id]
    expected = {"succeeded": ["7" * 64], "failed": ["b" * 64]}.get(end, [])
    assert destroy(database, dataset.id, LATER) == ["3" * 64, *expected]
    assert due(database) == []
    assert destroy(database, dataset.id) == []
    with database.reading() as session:
        gone, job = datasets.get(session, dataset.id), jobs.get(session, job_id)
        assert (gone.key, gone.blob, gone.leaves, gone.fingerprint) == (b"", "", None, None)
        assert gone.commitment == dataset.commitment
        assert gone.destroyed_at is not None
        assert job.destroyed_at == gone.destroyed_at
        assert not any(file.sealed for file in artifacts.of(session, job_id))
        assert [e.kind for e in events.since(session, job_id)][-1] == "data_destroyed"
        assert [e.action for e in audit.about(session, dataset.id)][-1] == "dataset.destroyed"
        assert [e.action for e in audit.about(session, job_id)][-1] == "job.data_destroyed"
        assert [*retention.unrecorded(session)] == ([job_id] if end == "succeeded" else [])
        with pytest.raises(InvalidSetting):
            VAULT.unwrap(gone.key, gone.id)


def test_a_job_that_needs_the_set_keeps_it(
    database: Database, dataset: Dataset, job_id: str, spec: JobSpec, key: ApiKey, take: Take
) -> None:
    with database.transaction() as session:
        second = jobs.create(session, spec, key_id=key.id)[0].id
        life.request_cancel(session, second, "test")
    assert due(database) == []
    with pytest.raises(Conflict, match=job_id):
        destroy(database, dataset.id)
    succeed(database, take(job_id))
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == second).values(held_at=now(session)))
    assert due(database) == []
    with pytest.raises(Conflict, match=f"{second} is under legal hold"):
        destroy(database, dataset.id)
    with database.transaction() as session:
        session.execute(update(Job).values(held_at=None))
    assert due(database, datetime(2020, 1, 1, tzinfo=UTC)) == []
    with pytest.raises(Conflict, match="ran only lately"):
        destroy(database, dataset.id, datetime(2020, 1, 1, tzinfo=UTC))
    assert due(database) == [dataset.id]
    with pytest.raises(NotFound):
        destroy(database, "ds_00000000")


@pytest.mark.parametrize("end", ["cancelled", "rejected"])
def test_asking_and_taking_back_puts_nothing_off(
    database: Database, dataset: Dataset, job_id: str, spec: JobSpec, key: ApiKey, take: Take, end: str
) -> None:
    succeed(database, take(job_id))
    with database.transaction() as session:
        ended = now(session) - timedelta(days=31)
        session.execute(update(Dataset).values(created_at=ended))
        session.execute(update(Attempt).values(ended_at=ended))
        before = now(session) - timedelta(days=30)
        second = jobs.create(session, spec, key_id=key.id, needs_approval=True)[0].id
    assert due(database, before) == []
    with database.transaction() as session:
        if end == "cancelled":
            life.request_cancel(session, second, "test")
        else:
            decisions.reject(session, second, "test", reason="not ours")
    assert due(database, before) == [dataset.id]
    assert "7" * 64 in destroy(database, dataset.id, before)


def test_running_puts_it_off_and_a_retry_that_is_taken_back_does_not(
    database: Database, dataset: Dataset, job_id: str, take: Take
) -> None:
    claim = take(job_id)
    with database.transaction() as session:
        attempts.fail(session, claim, {"code": "x", "message": "x", "param": None, "retryable": False})
        session.execute(update(Dataset).values(created_at=now(session) - timedelta(days=31)))
        before = now(session) - timedelta(days=30)
    assert due(database, before) == []
    with pytest.raises(Conflict, match="ran only lately"):
        destroy(database, dataset.id, before)
    with database.transaction() as session:
        session.execute(update(Attempt).values(ended_at=before - timedelta(days=1)))
        life.retry(session, job_id, "test")
    assert due(database, before) == []
    with database.transaction() as session:
        life.request_cancel(session, job_id, "test")
    assert due(database, before) == [dataset.id]
    destroy(database, dataset.id, before)


def test_a_set_that_nobody_used_goes_by_the_day_of_its_upload(database: Database, dataset: Dataset) -> None:
    assert due(database, dataset.created_at) == []
    assert due(database, dataset.created_at + timedelta(seconds=1)) == [dataset.id]


def test_nothing_begins_on_a_set_that_is_gone(
    database: Database, dataset: Dataset, job_id: str, spec: JobSpec, key: ApiKey
) -> None:
    with database.transaction() as session:
        life.request_cancel(session, job_id, "test")
    destroy(database, dataset.id)
    with database.transaction() as session, pytest.raises(SpecError, match="was destroyed") as raised:
        jobs.create(session, spec, key_id=key.id)
    assert raised.value.problems[0].param == "data.forget.dataset"
    with database.transaction() as session, pytest.raises(Conflict) as refused:
        life.retry(session, job_id, "test")
    assert refused.value.code == "data_destroyed"


def test_the_key_of_a_job_without_an_upload_goes_too(database: Database, key: ApiKey, take: Take) -> None:
    asked = parse({"model": {"path": "/m"}, "data": {"forget": {"source": "jsonl", "path": "/f"}}, "method": "GA"})
    with database.transaction() as session:
        job_id = jobs.create(session, asked, key_id=key.id)[0].id
    claim = take(job_id)
    with database.reading() as session:
        assert [*retention.jobs_due(session, LATER)] == []
    succeed(database, claim)
    with database.reading() as session:
        assert [*retention.jobs_due(session, LATER)] == [job_id]
    with database.transaction() as session, pytest.raises(Conflict, match="lately"):
        retention.destroy_own(session, job_id, actor="sweep", before=datetime(2020, 1, 1, tzinfo=UTC))
    with database.transaction() as session:
        assert retention.destroy_own(session, job_id, actor="sweep", before=LATER) == ["7" * 64]
    with database.transaction() as session:
        assert [*retention.jobs_due(session, LATER)] == []
        assert [*retention.unrecorded(session)] == [job_id]
        facts = destroyed.of(session, job_id)
        assert facts is not None
        assert (facts.why, facts.by, [*facts.sets], facts.own_key, facts.kept) == ("retention", "sweep", [], True, [])
        assert destroyed.recorded(session, job_id, stored("destruction.dsse.json", "c")) == []
        assert [*retention.unrecorded(session)] == []
        assert destroyed.of(session, job_id) is None


def test_a_later_record_tells_of_everything(
    database: Database, dataset: Dataset, key: ApiKey, model: Model, take: Take
) -> None:
    with database.transaction() as session:
        retain = datasets.register(
            session, VAULT, rows=1, size=1, blob="d" * 64, key=sealed.new_key(), commitment="e" * 64, warnings=[],
            key_id=key.id,
        )  # fmt: skip
        sets = {"forget": dataset.id, "retain": retain.id}
        data = {name: {"source": "upload", "dataset": upload} for name, upload in sets.items()}
        job_id = jobs.create(session, parse({"model": model.id, "data": data, "method": "GA"}), key_id=key.id)[0].id
    succeed(database, take(job_id))
    destroy(database, retain.id)
    with database.transaction() as session:
        first = destroyed.of(session, job_id)
        assert first is not None
        assert ([name for name, *_ in first.sets], first.kept, first.own_key) == (["retain"], ["forget"], False)
        destroyed.recorded(session, job_id, stored("destruction.dsse.json", "c"))
    assert destroy(database, dataset.id) == ["3" * 64]
    with database.transaction() as session:
        second = destroyed.of(session, job_id)
        assert second is not None
        assert ([name for name, *_ in second.sets], second.kept) == (["forget", "retain"], [])
        assert destroyed.recorded(session, job_id, stored("destruction.dsse.json", "f")) == ["c" * 64]
        assert [file.digest for file in artifacts.of(session, job_id, "destruction")] == ["f" * 64]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_creating_and_destroying_at_once_never_both_happen(database: Database, key: ApiKey, model: Model) -> None:
    for _ in range(12):
        with database.transaction() as session:
            made = datasets.register(
                session, VAULT, rows=1, size=1, blob="5" * 64, key=sealed.new_key(), commitment="6" * 64, warnings=[],
                key_id=key.id,
            )  # fmt: skip
        line = threading.Barrier(2)
        found: dict[str, bool] = {}

        def create(line: threading.Barrier = line, ds: str = made.id, found: dict[str, bool] = found) -> None:
            line.wait()
            try:
                with database.transaction() as session:
                    jobs.create(session, spec_for(model.id, ds), key_id=key.id)
                found["made"] = True
            except SpecError:
                found["made"] = False

        def end(line: threading.Barrier = line, ds: str = made.id, found: dict[str, bool] = found) -> None:
            line.wait()
            try:
                destroy(database, ds)
                found["gone"] = True
            except Conflict:
                found["gone"] = False

        threads = [threading.Thread(target=work) for work in (create, end)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found["made"] != found["gone"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_in_the_making_is_waited_for(database: Database, key: ApiKey, model: Model, dataset: Dataset) -> None:
    refused: list[str] = []

    def end() -> None:
        try:
            destroy(database, dataset.id)
        except Conflict as error:
            refused.append(error.message)

    ending = threading.Thread(target=end)
    with database.transaction() as session:
        job = jobs.create(session, spec_for(model.id, dataset.id), key_id=key.id)[0]
        ending.start()
        time.sleep(0.3)
        assert ending.is_alive()
    ending.join(10)
    assert len(refused) == 1
    assert job.id in refused[0]
