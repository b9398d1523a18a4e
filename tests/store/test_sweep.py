"""Expired leases and lost messages are found, once, however many look for them."""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import update

from api.store import attempts, jobs, life, sweep
from api.store.claims import Claim
from api.store.session import Database, now
from api.store.tables import ApiKey, Job
from core.errors import LeaseLost
from core.spec.job import JobSpec
from tests.attempts import attempts_of
from tests.parallel import at_once

Take = Callable[..., Claim]


def several(database: Database, spec: JobSpec, key: ApiKey, count: int) -> list[str]:
    with database.transaction() as session:
        return sorted(jobs.create(session, spec, key_id=key.id)[0].id for _ in range(count))


def test_sweeps_at_once_take_each_expired_job_once(database: Database, spec: JobSpec, key: ApiKey, take: Take) -> None:
    made = several(database, spec, key, 6)
    for job_id in made[:4]:
        take(job_id, lease=-1)
    take(made[4], lease=60)

    def look(_: int) -> list[str]:
        with database.transaction() as session:
            return [job.id for job in sweep.expired(session)]

    found = [job_id for ids in at_once(4, look) for job_id in ids]
    assert sorted(found) == made[:4]
    with database.reading() as session:
        rows = [jobs.get(session, job_id) for job_id in made]
        assert [job.status for job in rows] == ["queued"] * 4 + ["running", "queued"]
        assert [job.counted for job in rows] == [1] * 4 + [0, 0]
        assert [a.reason for a in attempts_of(session, made[0])] == ["the lease of w1 ran out"]


def test_the_cap_ends_it(database: Database, job_id: str, take: Take) -> None:
    for expected in ("queued", "queued", "failed"):
        take(job_id, lease=-1)
        with database.transaction() as session:
            assert [job.status for job in sweep.expired(session, cap=3)] == [expected]
    with database.reading() as session:
        error = jobs.get(session, job_id).error
    assert error is not None
    assert (error["code"], error["retryable"]) == ("attempts_exhausted", True)
    assert "the lease of w1 ran out" in error["message"]


def test_an_expired_job_that_was_to_be_cancelled_is_cancelled(database: Database, job_id: str, take: Take) -> None:
    take(job_id, lease=-1)
    with database.transaction() as session:
        life.request_cancel(session, job_id, "key_a")
    with database.transaction() as session:
        assert [job.status for job in sweep.expired(session)] == ["cancelled"]


def test_a_renewal_and_a_sweep_at_once_agree(database: Database, job_id: str, take: Take) -> None:
    claim = take(job_id, lease=-1)

    def act(number: int) -> bool:
        with database.transaction() as session:
            if number:
                return bool(sweep.expired(session))
            return attempts.record(session, claim, lease=60)

    try:
        swept = any(at_once(3, act))
    except LeaseLost:
        swept = True
    with database.reading() as session:
        assert jobs.get(session, job_id).status == ("queued" if swept else "running")


def test_waiting_jobs_are_rung_for_once_in_a_while(database: Database, spec: JobSpec, key: ApiKey, take: Take) -> None:
    made = several(database, spec, key, 5)
    take(made[0])

    def ring(_: int) -> list[str]:
        with database.transaction() as session:
            return list(sweep.waiting(session, older_than=600, limit=2))

    assert ring(0) == []
    with database.transaction() as session:
        session.execute(update(Job).values(rung_at=now(session) - timedelta(seconds=601)))
    assert sorted(job_id for ids in at_once(3, ring) for job_id in ids) == made[1:]
    assert ring(0) == []
