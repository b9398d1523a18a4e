"""The newest two checkpoints are kept, and no blob goes that a row still refers to."""

import contextlib
from collections.abc import Callable

import pytest

from api.store import artifacts, attempts, checkpoints, events
from api.store.artifacts import StoredFile
from api.store.claims import Claim
from api.store.session import Database
from tests.attempts import attempts_of

Take = Callable[..., Claim]


def files(*contents: str) -> list[StoredFile]:
    return [StoredFile(f"part{i}", content * 64, 7, sealed=True) for i, content in enumerate(contents)]


def test_the_newest_two_are_kept_and_the_blobs_of_others_given_up(database: Database, job_id: str, take: Take) -> None:
    claim = take(job_id)
    given_up = []
    # "3" is the data set's own blob, and "c" is part of every checkpoint.
    for step, contents in ((10, "ac3"), (20, "bc"), (30, "dc"), (40, "ec")):
        with database.transaction() as session:
            given_up.append(attempts.save_checkpoint(session, claim, step, files(*contents)))
    assert given_up == [[], [], ["a" * 64], ["b" * 64]]
    with database.reading() as session:
        assert [(c.step, [f.digest[0] for f in c.files]) for c in checkpoints.of(session, job_id)] == [
            (40, ["e", "c"]),
            (30, ["d", "c"]),
        ]
        assert [f.name for f in checkpoints.of(session, job_id)[0].files] == ["part0", "part1"]
        assert {a.name for a in artifacts.of(session, job_id, "checkpoint")} == {
            f"checkpoints/{step}/part{i}" for step in (30, 40) for i in (0, 1)
        }
        told = [e.data["step"] for e in events.since(session, job_id) if e.kind == "checkpoint"]
        assert told == [10, 20, 30, 40]


def test_the_next_attempt_goes_on_from_the_newest(database: Database, job_id: str, take: Take) -> None:
    first = take(job_id)
    with database.transaction() as session:
        # Steps are numbers, not words: 100 is newer than 20.
        attempts.save_checkpoint(session, first, 20, files("a"))
        attempts.save_checkpoint(session, first, 100, files("b"))
        attempts.release(session, first, reason="SIGTERM", counts=False)
    second = take(job_id)
    assert second.checkpoint is not None
    assert (second.checkpoint.step, second.checkpoint.files) == (100, tuple(files("b")))
    with database.transaction() as session:
        assert [a.resumed_from for a in attempts_of(session, job_id)] == [None, 100]
        # Damaged, it is given up, and the one before it serves.
        assert attempts.discard_checkpoint(session, second, 100) == ["b" * 64]
        assert [c.step for c in checkpoints.of(session, job_id)] == [20]


def test_a_repeated_step_replaces_its_checkpoint(database: Database, job_id: str, take: Take) -> None:
    claim = take(job_id)
    with database.transaction() as session:
        assert attempts.save_checkpoint(session, claim, 10, files("a", "b")) == []
    with database.transaction() as session:
        assert attempts.save_checkpoint(session, claim, 10, files("c", "b")) == ["a" * 64]


def test_a_checkpoint_is_there_whole_or_not_at_all(database: Database, job_id: str, take: Take) -> None:
    claim = take(job_id)
    with pytest.raises(AssertionError, match="must be sealed"), database.transaction() as session:
        attempts.save_checkpoint(session, claim, 10, [*files("a"), StoredFile("open", "b" * 64, 7)])
    with contextlib.suppress(KeyError), database.transaction() as session:
        attempts.save_checkpoint(session, claim, 10, files("a"))
        raise KeyError
    with database.reading() as session:
        assert checkpoints.of(session, job_id) == []
