"""Many callers' questions in one go: each has its own answer, and nobody's fault is another's."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, InternalError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from api import together
from api.asked_jobs import AskedJobs
from api.errors import Busy
from api.store import keys
from api.store.entering import Request
from api.store.session import Database
from api.store.tables import Job
from api.together import MOST, Together
from core.spec.job import parse
from tests.api.parts import request_for


class Work:
    """Doubles numbers, and notes how many came at once; the first go waits until it is let go. 1313 breaks a turn."""

    def __init__(self, error: Exception | None = None) -> None:
        self.turns: list[int] = []
        self.go = threading.Event()
        self.error = error or ValueError("the whole turn is lost")

    def __call__(self, asked: Sequence[int]) -> list[int | Exception]:
        self.turns.append(len(asked))
        self.go.wait(10)
        if 1313 in asked:
            raise self.error
        return [KeyError(number) if number < 0 else 2 * number for number in asked]


async def begun(work: Work) -> None:
    while not work.turns:  # noqa: ASYNC110  (it is another thread's doing)
        await asyncio.sleep(0.001)


async def ask_all(line: Together[int, int], work: Work, *asked: int) -> list[int | BaseException]:
    first = asyncio.ensure_future(line.ask(0))
    await begun(work)
    rest = [asyncio.ensure_future(line.ask(number)) for number in asked]
    await asyncio.sleep(0.01)
    work.go.set()
    assert await first == 0
    return await asyncio.gather(*rest, return_exceptions=True)


def test_what_came_meanwhile_is_one_turn_and_answers_find_their_callers() -> None:
    work = Work()
    line = Together[int, int]("test", work)
    answers = asyncio.run(ask_all(line, work, *range(1, 101)))
    line.close()
    assert answers == [2 * number for number in range(1, 101)]
    assert work.turns == [1, MOST, 100 - MOST]


def test_a_bad_question_is_answered_alone() -> None:
    work = Work()
    line = Together[int, int]("test", work)
    answers = asyncio.run(ask_all(line, work, 1, -1, 2))
    assert answers[::2] == [2, 4]
    assert isinstance(answers[1], KeyError)
    line.close()


def of_the_driver(kind: type[Any]) -> Exception:
    cause = Exception("whatever the driver says")
    made: Exception = kind("said", "a statement", {}, cause) if kind is StatementError else kind("a", {}, cause)
    return made


@pytest.mark.parametrize(
    "error", [ValueError("lost"), *map(of_the_driver, (DataError, IntegrityError, StatementError))]
)
def test_a_turn_that_one_question_may_have_broken_is_done_again_one_by_one(error: Exception) -> None:
    work = Work(error)
    line = Together[int, int]("test", work)
    answers = asyncio.run(ask_all(line, work, 1, 1313, 2))
    assert answers == [2, error, 4]
    assert work.turns == [1, 3, 1, 1, 1]
    line.close()


@pytest.mark.parametrize(
    "error",
    [*map(of_the_driver, (OperationalError, InterfaceError, InternalError)), PoolTimeout("no connection"), OSError(9)],
)
def test_a_turn_that_may_have_left_something_behind_is_done_once(error: Exception) -> None:
    work = Work(error)
    line = Together[int, int]("test", work)
    answers = asyncio.run(ask_all(line, work, 1, 1313, 2))
    assert answers == [error] * 3
    assert work.turns == [1, 3]
    line.close()


class Deaf(Database):
    """The answer to each commit is lost."""

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            yield session
        raise of_the_driver(OperationalError)


def test_a_commit_whose_answer_is_lost_makes_no_job_twice(
    client: TestClient, database: Database, model: str, dataset: str
) -> None:
    del client
    with database.reading() as session:
        key = keys.every(session)[0]
    request = Request(parse(request_for(model, dataset)), key.id, key.principal_id, "d")
    asked = AskedJobs(Deaf(database.engine, database._readers))

    async def enter() -> list[Any]:
        return await asyncio.gather(*(asked.enter(request) for _ in range(5)), return_exceptions=True)

    answers = asyncio.run(enter())
    asked.close()
    assert [type(answer) for answer in answers] == [OperationalError] * 5
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 5


def test_no_more_wait_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MOST_WAITING", 3)
    work = Work()
    line = Together[int, int]("test", work)
    *taken, beyond = asyncio.run(ask_all(line, work, 1, 2, 3, 4))
    line.close()
    assert taken == [2, 4, 6]
    assert isinstance(beyond, Busy)
    assert "3 such calls" in str(beyond)


def test_what_waited_too_long_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    async def waiting(line: Together[int, int], work: Work) -> Any:
        first = asyncio.ensure_future(line.ask(0))
        await begun(work)
        monkeypatch.setattr(together, "LONGEST_WAIT", 0.0)
        late = asyncio.ensure_future(line.ask(1))
        await asyncio.sleep(0.01)
        work.go.set()
        return await asyncio.gather(first, late, return_exceptions=True)

    work = Work()
    line = Together[int, int]("test", work)
    first, late = asyncio.run(waiting(line, work))
    line.close()
    assert first == 0
    assert isinstance(late, Busy)
    assert work.turns == [1]


def test_what_a_caller_who_has_left_asked_is_not_begun() -> None:
    async def leaving(line: Together[int, int], work: Work) -> list[int]:
        first = asyncio.ensure_future(line.ask(0))
        await begun(work)
        left, staying = (asyncio.ensure_future(line.ask(number)) for number in (1, 2))
        await asyncio.sleep(0.01)
        left.cancel()
        work.go.set()
        with pytest.raises(asyncio.CancelledError):
            await left
        return [await first, await staying]

    work = Work()
    line = Together[int, int]("test", work)
    assert asyncio.run(leaving(line, work)) == [0, 4]
    assert work.turns == [1, 1]
    line.close()
