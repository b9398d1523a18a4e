"""Jobs are handed out by priority, due date and age, each to one worker, whoever else asks at the same time."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select

from api.store import claims, jobs, turn
from api.store.session import Database
from api.store.tables import ApiKey, Dataset, Job, Model
from tests.parallel import at_once
from tests.store.conftest import spec_for
from tests.vault import VAULT

_START = datetime(2026, 1, 5, tzinfo=UTC)


def _submitted(database: Database, key: ApiKey, model: Model, dataset: Dataset, count: int) -> list[str]:
    """So many queued jobs, submitted in no order of theirs; their ids in the order in which they are to run."""
    asked = [(priority, day) for priority in ("high", "normal", "low") for day in range(-(-count // 3))][:count]
    made: dict[tuple[str, int], str] = {}
    for priority, day in random.Random(5).sample(asked, len(asked)):
        received = (_START + timedelta(days=day)).isoformat()
        with database.transaction() as session:
            spec = spec_for(model.id, dataset.id, priority=priority, received_at=received)
            made[priority, day] = jobs.create(session, spec, key_id=key.id)[0].id
    return [made[one] for one in asked]


def test_one_worker_takes_ten_jobs_in_order(database: Database, key: ApiKey, model: Model, dataset: Dataset) -> None:
    expected = _submitted(database, key, model, dataset, 10)
    taken = []
    for _ in expected:
        with database.transaction() as session:
            claim = claims.claim_next(session, worker="w", lease=30, vault=VAULT)
        assert claim is not None
        taken.append(claim.job_id)
    assert taken == expected
    with database.transaction() as session:
        assert claims.claim_next(session, worker="w", lease=30, vault=VAULT) is None


def test_workers_at_once_get_different_jobs(database: Database, key: ApiKey, model: Model, dataset: Dataset) -> None:
    expected = _submitted(database, key, model, dataset, 9)

    def claim(number: int) -> list[str]:
        taken = []
        while True:
            with database.transaction() as session:
                got = claims.claim_next(session, worker=f"w{number}", lease=30, vault=VAULT)
            if got is None:
                return taken
            taken.append(got.job_id)

    assert sorted(job for taken in at_once(4, claim) for job in taken) == sorted(expected)


def test_a_job_that_somebody_is_taking_keeps_nobody_waiting(
    database: Database, key: ApiKey, model: Model, dataset: Dataset
) -> None:
    expected = _submitted(database, key, model, dataset, 3)
    with database.reading() as session:
        upcoming = turn.first(session)
        assert upcoming is not None
        assert upcoming.id == expected[0]
        other = turn.first(session, Job.id != expected[0])
        assert other is not None
        assert other.id == expected[1]
    if database.engine.dialect.name == "sqlite":
        return  # one writer at a time: nobody else can be taking a job meanwhile
    with database.transaction() as taking:
        first = claims.claim_next(taking, worker="w1", lease=30, vault=VAULT)
        with database.transaction() as session:
            second = claims.claim_next(session, worker="w2", lease=30, vault=VAULT)
    assert first is not None
    assert second is not None
    assert [first.job_id, second.job_id] == expected[:2]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_place_far_back_in_a_long_queue_is_not_counted(
    database: Database, key: ApiKey, model: Model, dataset: Dataset
) -> None:
    with database.transaction() as session:
        made = jobs.create(session, spec_for(model.id, dataset.id), key_id=key.id)[0]
        row = {column.name: getattr(made, column.name) for column in Job.__table__.columns}
        more = [row | {"id": f"job_{number:026}"} for number in range(jobs.COUNTED + 1)]
        session.execute(insert(Job), more)
    with database.reading() as session:
        waiting = session.scalars(select(Job).order_by(Job.id)).all()
        assert jobs.queue_positions(session, waiting[:3]) == {job.id: n for n, job in enumerate(waiting[:3], 1)}
        assert jobs.queue_positions(session, [waiting[jobs.COUNTED]]) == {waiting[jobs.COUNTED].id: jobs.COUNTED + 1}
        assert jobs.queue_positions(session, [waiting[jobs.COUNTED + 1]]) == {}
