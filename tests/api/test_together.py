"""Many callers' questions in one go: each has its own answer, and nobody's fault is another's."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from api.together import MOST, Together


class Work:
    """Doubles numbers, and notes how many came at once; the first go waits until it is let go."""

    def __init__(self) -> None:
        self.turns: list[int] = []
        self.go = threading.Event()

    def __call__(self, asked: Sequence[int]) -> list[int | Exception]:
        self.turns.append(len(asked))
        self.go.wait(10)
        if 1313 in asked:
            raise ConnectionError("the whole turn is lost")
        return [KeyError(number) if number < 0 else 2 * number for number in asked]


async def ask_all(line: Together[int, int], work: Work, *asked: int) -> list[int | BaseException]:
    first = asyncio.ensure_future(line.ask(0))
    while not work.turns:  # noqa: ASYNC110  (it is another thread's doing)
        await asyncio.sleep(0.001)
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


def test_a_turn_that_breaks_is_done_again_one_by_one() -> None:
    work = Work()
    line = Together[int, int]("test", work)
    answers = asyncio.run(ask_all(line, work, 1, 1313, 2))
    assert answers[::2] == [2, 4]
    assert isinstance(answers[1], ConnectionError)
    assert work.turns == [1, 3, 1, 1, 1]
    line.close()


def test_a_caller_who_has_left_keeps_nobody_from_an_answer() -> None:
    async def leaving(line: Together[int, int], work: Work) -> int:
        left = asyncio.ensure_future(line.ask(1))
        staying = asyncio.ensure_future(line.ask(2))
        await asyncio.sleep(0.01)
        left.cancel()
        work.go.set()
        with pytest.raises(asyncio.CancelledError):
            await left
        return await staying

    work = Work()
    line = Together[int, int]("test", work)
    assert asyncio.run(leaving(line, work)) == 4
    line.close()
