"""Creating, finding and listing jobs."""

import pytest
from sqlalchemy import func, inspect, select

from api.store import audit, events, jobs, keys
from api.store.errors import IdempotencyMismatch, NotFound
from api.store.records import Event
from api.store.session import Database
from api.store.tables import ApiKey, Dataset, Job, Model
from core.errors import SpecError
from core.spec.job import JobSpec, parse
from core.spec.metrics import SETS
from tests.parallel import at_once
from tests.store.conftest import SECRET, spec_for


def test_a_new_job_holds_what_was_asked(database: Database, spec: JobSpec, key: ApiKey) -> None:
    with database.transaction() as session:
        job, created = jobs.create(session, spec, key_id=key.id)
    with database.reading() as session:
        again = jobs.get(session, job.id)
        assert created
        assert (again.status, again.attempt, again.verdict, again.error) == ("queued", 0, None, None)
        assert parse(again.spec) == spec
        assert again.spec_digest == spec.digest()
        assert again.created_at.utcoffset() is not None
        assert [(e.kind, e.data) for e in events.since(session, job.id)] == [("status", {"from": None, "to": "queued"})]
        assert [(e.actor, e.action) for e in audit.about(session, job.id)] == [(key.principal_id, "job.created")]


def test_one_idempotency_key_makes_one_job_however_many_ask_at_once(
    database: Database, spec: JobSpec, key: ApiKey
) -> None:
    def create(_: int) -> tuple[str, bool]:
        with database.transaction() as session:
            job, created = jobs.create(session, spec, key_id=key.id, idempotency_key="once", body_digest="d")
            return job.id, created

    results = at_once(32, create)
    assert len({job_id for job_id, _ in results}) == 1
    assert sum(created for _, created in results) == 1
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1
        assert session.scalar(select(func.count()).select_from(Event)) == 1


def test_an_idempotency_key_belongs_to_one_body_and_one_caller(database: Database, spec: JobSpec, key: ApiKey) -> None:
    with database.transaction() as session:
        first, _ = jobs.create(session, spec, key_id=key.id, idempotency_key="k", body_digest="one")
    with pytest.raises(IdempotencyMismatch, match=first.id), database.transaction() as session:
        jobs.create(session, spec, key_id=key.id, idempotency_key="k", body_digest="two")
    with database.transaction() as session:
        other, _ = keys.create(session, SECRET, name="other", actor="test")
        job, created = jobs.create(session, spec, key_id=other.id, idempotency_key="k", body_digest="two")
    assert created
    assert job.id != first.id


def test_unknown_references_are_all_named(database: Database, key: ApiKey) -> None:
    sets = {name: {"source": "upload", "dataset": f"ds_{i:08}"} for i, name in enumerate(SETS)}
    asked = parse(
        {
            "model": "mdl_00000000",
            "data": sets,
            "method": {"name": "retrain", "base": "mdl_11111111"},
            "evaluation": {"retrained": "mdl_22222222", "reference": "mdl_33333333"},
        }
    )
    with pytest.raises(SpecError) as raised, database.transaction() as session:
        jobs.create(session, asked, key_id=key.id)
    assert {p.param: p.value for p in raised.value.problems} == {
        "model.id": "mdl_00000000",
        "method.base.id": "mdl_11111111",
        "evaluation.retrained.model.id": "mdl_22222222",
        "evaluation.reference.id": "mdl_33333333",
        **{f"data.{name}.dataset": source["dataset"] for name, source in sets.items()},
    }


def test_pages_are_complete_and_without_repetition(
    database: Database, model: Model, dataset: Dataset, key: ApiKey
) -> None:
    with database.transaction() as session:
        made = [
            jobs.create(session, spec_for(model.id, dataset.id, reference=f"case-{i % 2}"), key_id=key.id)[0].id
            for i in range(7)
        ]
    with database.reading() as session:
        seen: list[str] = []
        more = True
        while more:
            rows, more = jobs.page(session, after=seen[-1] if seen else None, limit=3)
            seen += [job.id for job in rows]
        assert seen == sorted(made, reverse=True)
        ours, more = jobs.page(session, reference="case-1", model=model.id, status="queued")
        assert {job.id for job in ours} == set(made[1::2])
        assert not more
        assert jobs.page(session, status="failed") == ([], False)
        found = jobs.queue_positions(session, [jobs.get(session, job_id) for job_id in made])
        positions = [found[job_id] for job_id in sorted(made)]
        assert positions == [1, 2, 3, 4, 5, 6, 7]


def test_a_page_and_a_look_at_the_status_load_no_spec(database: Database, job_id: str) -> None:
    with database.reading() as session:
        rows, _ = jobs.page(session)
        assert [inspect(row).unloaded >= {"spec", "key"} for row in rows] == [True]
    with database.reading() as session:
        assert jobs.status_of(session, job_id) == "queued"
        assert list(session.identity_map) == []


@pytest.mark.parametrize("job_id", ["job_00000000000000000000000000", "", "no id", "job_0000\x000000", "ключ_00000000"])
def test_what_is_no_job_is_not_found(database: Database, job_id: str) -> None:
    with pytest.raises(NotFound), database.reading() as session:
        jobs.get(session, job_id)
    with pytest.raises(NotFound), database.reading() as session:
        jobs.status_of(session, job_id)


def test_bad_filters_say_what_is_allowed(database: Database) -> None:
    for filters, expected in (
        ({"status": "done"}, "succeeded"),
        ({"after": "x\x00"}, "last row"),
        ({"reference": "a\x00"}, "NUL"),
        ({"model": "a\x00"}, "NUL"),
    ):
        with pytest.raises(SpecError, match=expected), database.reading() as session:
            jobs.page(session, **filters)  # type: ignore[arg-type]


def test_a_reference_that_cannot_be_stored_is_refused(
    database: Database, model: Model, dataset: Dataset, key: ApiKey
) -> None:
    with pytest.raises(SpecError, match="NUL"), database.transaction() as session:
        jobs.create(session, spec_for(model.id, dataset.id, reference="a\x00b"), key_id=key.id)
