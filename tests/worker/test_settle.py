"""A commit whose answer was lost: it is done again behind its fence, and what it refers to is never taken away."""

import time
from io import BytesIO
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from api.store import artifacts, attempts, jobs, sealed
from api.store.artifacts import StoredFile
from api.store.blobs import DRAWERS, Blobs
from api.store.claims import Claim
from api.store.session import Database
from core.errors import LeaseLost
from tests.attempts import attempts_of
from worker.orphans import remove_orphans
from worker.settle import discard, settled

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path}/blobs")


class _Broken:
    """Breaks the next commits off: before they reach the database, or just after, when only the answer is lost."""

    def __init__(self, database: Database, times: int, *, after: bool) -> None:
        self.database, self.left, self.after = database, times, after
        event.listen(database.engine, "commit", self)

    def __call__(self, connection: object) -> None:
        if self.left:
            self.left -= 1
            if self.after:
                connection.connection.driver_connection.commit()  # type: ignore[attr-defined]
            raise OperationalError("COMMIT", {}, Exception("the connection was lost"))


def test_what_did_not_reach_the_database_is_written_again(database: Database, claim: Claim) -> None:
    _Broken(database, 2, after=False)
    settled(database, 5.0, lambda session: attempts.release(session, claim, reason="test", counts=True))
    with database.reading() as session:
        assert (jobs.get(session, claim.job_id).status, len(attempts_of(session, claim.job_id))) == ("queued", 1)


def test_what_did_reach_it_is_not_done_twice(database: Database, claim: Claim) -> None:
    _Broken(database, 1, after=True)
    with pytest.raises(LeaseLost):
        settled(database, 5.0, lambda session: attempts.release(session, claim, reason="test", counts=True))
    with database.reading() as session:
        job = jobs.get(session, claim.job_id)
        assert (job.status, job.counted) == ("queued", 1)


def test_a_database_that_stays_away_is_not_waited_for(database: Database, claim: Claim) -> None:
    _Broken(database, 1000, after=False)
    began = time.monotonic()
    with pytest.raises(OperationalError):
        settled(database, 0.5, lambda session: attempts.release(session, claim, reason="test", counts=True))
    assert 0.5 <= time.monotonic() - began < 5


def test_blobs_of_a_commit_whose_answer_was_lost_stay(database: Database, claim: Claim, blobs: Blobs) -> None:
    kept, loose = (blobs.put(BytesIO(b"weights"), sealed.new_key()) for _ in range(2))
    file = StoredFile("weights", kept.digest, kept.size, sealed=True)
    _Broken(database, 1, after=True)
    with pytest.raises(OperationalError), database.transaction() as session:
        attempts.save_checkpoint(session, claim, 5, [file])
    discard(database, blobs, claim.job_id, [kept.digest, loose.digest])
    assert blobs.age(kept.digest) is not None
    assert blobs.age(loose.digest) is None
    with database.reading() as session:
        assert [row.digest for row in artifacts.of(session, claim.job_id)] == [kept.digest]


def test_an_orphan_goes_once_it_is_old(database: Database, claim: Claim, blobs: Blobs) -> None:
    kept, loose = (blobs.put(BytesIO(b"weights"), sealed.new_key()) for _ in range(2))
    with database.transaction() as session:
        attempts.save_checkpoint(session, claim, 5, [StoredFile("weights", kept.digest, kept.size, sealed=True)])

    def swept(older_than: float) -> list[str]:
        return [each for drawer in range(DRAWERS) for each in remove_orphans(database, blobs, drawer, older_than)]

    assert swept(60.0) == []
    assert swept(0.0) == [loose.digest]
    assert blobs.age(kept.digest) is not None
