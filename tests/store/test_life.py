"""Every allowed move happens with its history and audit; every other one is refused and leaves no trace."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import get_args

import pytest

from api.store import attempts, audit, claims, events, jobs, life
from api.store.claims import Claim
from api.store.errors import Conflict, NotFound
from api.store.session import Database
from api.store.tables import Job, Status
from tests.parallel import at_once
from tests.vault import VAULT

STATUSES: tuple[Status, ...] = get_args(Status)
ALLOWED = {
    ("awaiting_approval", "queued"),
    ("awaiting_approval", "rejected"),
    ("awaiting_approval", "cancelled"),
    ("queued", "running"),
    ("queued", "cancelled"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("running", "queued"),
    ("failed", "queued"),
    ("failed", "awaiting_approval"),
    ("cancelled", "queued"),
    ("cancelled", "awaiting_approval"),
}


def put_into(database: Database, job_id: str, status: Status) -> None:
    """Past the rules, for the sake of the test."""
    with database.transaction() as session:
        jobs.get(session, job_id).status = status


@pytest.mark.parametrize("before", STATUSES)
def test_exactly_the_allowed_moves(database: Database, job_id: str, before: Status) -> None:
    for to in STATUSES:
        put_into(database, job_id, before)
        with database.reading() as session:
            told, noted = len(events.since(session, job_id)), len(audit.about(session, job_id))
        moved = (before, to) in ALLOWED
        refused: AbstractContextManager[object] = nullcontext()
        if not moved:
            refused = pytest.raises(Conflict, match=f"is {before} and cannot")
        with refused, database.transaction() as session:
            life.transition(session, jobs.get(session, job_id), to, actor="test", reason="because")
        with database.reading() as session:
            assert jobs.get(session, job_id).status == (to if moved else before)
            history = events.since(session, job_id)
            assert len(history) == told + moved
            assert len(audit.about(session, job_id)) == noted + moved
            if moved:
                assert history[-1].data == {"from": before, "to": to, "reason": "because"}


def test_a_move_from_a_status_that_has_passed_is_refused(database: Database, job_id: str) -> None:
    with database.reading() as session:
        stale = jobs.get(session, job_id)
    with database.transaction() as session:
        life.request_cancel(session, job_id, "key_a")
    with pytest.raises(Conflict, match="no longer queued"), database.transaction() as session:
        life.transition(session, stale, "running", actor="late")


def test_cancel_of_a_waiting_job_is_immediate_and_retry_queues_it_again(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        cancelled = life.request_cancel(session, job_id, "key_a")
        assert cancelled.status == "cancelled"
        assert cancelled.finished_at is not None
    with database.transaction() as session:
        job = life.retry(session, job_id, "key_b")
        assert (job.status, job.finished_at, job.cancel_requested) == ("queued", None, False)
    with database.reading() as session:
        log = [(entry.actor, entry.action) for entry in audit.about(session, job_id)][1:]
        assert log == [("key_a", "job.cancelled"), ("key_b", "job.queued")]


def test_cancel_of_a_running_job_is_a_request(database: Database, job_id: str, take: Callable[..., Claim]) -> None:
    claim = take(job_id)
    for _ in range(2):
        with database.transaction() as session:
            job = life.request_cancel(session, job_id, "key_a")
            assert (job.status, job.cancel_requested) == ("running", True)
    with database.transaction() as session:
        assert attempts.record(session, claim, lease=30)
        kinds = [event.kind for event in events.since(session, job_id)]
        assert kinds.count("cancel_requested") == 1
        assert attempts.cancelled(session, claim).status == "cancelled"
    with pytest.raises(Conflict, match="is cancelled"), database.transaction() as session:
        life.request_cancel(session, job_id, "key_a")


def test_retry_keeps_the_attempt_growing_and_forgives_the_past(
    database: Database, job_id: str, take: Callable[..., Claim]
) -> None:
    for _ in range(3):
        claim = take(job_id)
        with database.transaction() as session:
            job = attempts.release(session, claim, reason="the engine was killed by signal 9", counts=True)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "attempts_exhausted"
    assert "signal 9" in job.error["message"]
    with database.transaction() as session:
        job = life.retry(session, job_id, "key_a")
        assert (job.counted, job.attempt, job.error) == (0, 3, None)
    assert take(job_id).attempt == 4


@pytest.mark.parametrize("status", [s for s in STATUSES if s not in ("failed", "cancelled")])
def test_only_what_failed_or_was_cancelled_can_be_retried(database: Database, job_id: str, status: Status) -> None:
    put_into(database, job_id, status)
    with pytest.raises(Conflict, match="only a failed or cancelled"), database.transaction() as session:
        life.retry(session, job_id, "key_a")


def test_cancel_and_claim_at_once_agree(database: Database, job_id: str) -> None:
    def act(number: int) -> object:
        with database.transaction() as session:
            if number % 2:
                return claims.claim(session, job_id, worker="w", lease=30, vault=VAULT)
            try:
                return life.request_cancel(session, job_id, "key_a")
            except Conflict:
                return None

    results = at_once(8, act)
    with database.reading() as session:
        job = jobs.get(session, job_id)
    claimed = sum(isinstance(result, Claim) for result in results)
    assert any(isinstance(result, Job) for result in results)
    assert (job.status, job.cancel_requested) == (("running", True) if claimed else ("cancelled", False))


def test_unknown_jobs_are_not_found(database: Database) -> None:
    for act in (life.request_cancel, life.retry):
        with pytest.raises(NotFound), database.transaction() as session:
            act(session, "job_00000000", "key_a")
