"""Many callers' like questions to the database, answered in one go: whatever has come while the last ones were being
answered is the next turn.

One transaction then serves them all, with one commit to wait for, and one thread in place of many that wait in line.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from api.errors import Busy

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
MOST = 64  # in one go
MOST_WAITING = 2000
LONGEST_WAIT = 30.0  # seconds until a question is begun: by then most callers have left


class Together(Generic[Asked, Answer]):
    """Answers by `work`, which gives an answer or an exception for each of what it is given, in order.

    Where `work` itself raises what may be one question's fault, each is given to it alone, so that nobody's fails
    another's. Anything else, such as a lost connection, is the answer to all.
    """

    def __init__(self, name: str, work: Callable[[Sequence[Asked]], Sequence[Answer | Exception]]) -> None:
        self._name = name
        self._work = work
        self._waiting: queue.SimpleQueue[_Question[Asked, Answer] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    async def ask(self, asked: Asked) -> Answer:
        """The answer. Raises what `work` gave instead of one; and Busy, with nothing done, where too many wait, or it
        waited too long itself."""
        if self._waiting.qsize() >= MOST_WAITING:
            raise Busy(f"{MOST_WAITING} such calls wait already. Try again.")
        if self._thread is None:
            self._begin()
        question = _Question[Asked, Answer](asked)
        self._waiting.put(question)
        return await question.answer

    def close(self) -> None:
        """End the thread, once what was asked until now is answered."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        while (first := self._waiting.get()) is not None:
            turn, ending = [first], False
            while len(turn) < MOST and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    ending = True
                    break
                turn.append(following)
            self._answer(turn)
            if ending:
                return

    def _answer(self, turn: "list[_Question[Asked, Answer]]") -> None:
        # Where the caller has left nothing is begun: nobody would hear that it was done.
        turn = [question for question in turn if not question.answer.done()]
        late = [question for question in turn if time.monotonic() - question.since > LONGEST_WAIT]
        self._hand_out([(question, Busy(f"This call waited {LONGEST_WAIT:g} s. Try again.")) for question in late])
        begun = [question for question in turn if question not in late]
        if begun:
            answers = self._answers([question.asked for question in begun])
            self._hand_out(list(zip(begun, answers, strict=True)))

    def _answers(self, asked: Sequence[Asked]) -> Sequence[Answer | Exception]:
        try:
            return self._work(asked)
        except Exception as error:
            if len(asked) == 1 or not _may_be_of_one(error):
                return [error] * len(asked)
            return [answer for one in asked for answer in self._answers([one])]

    def _hand_out(self, answers: "list[tuple[_Question[Asked, Answer], Answer | Exception]]") -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer], Answer | Exception]]] = {}
        for question, answer in answers:
            by_loop.setdefault(question.loop, []).append((question.answer, answer))
        for loop, told in by_loop.items():
            # Waking a loop is dear; once for all who wait in it.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_tell, told)


class _Question(Generic[Asked, Answer]):
    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.since = time.monotonic()
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answer] = self.loop.create_future()


def _tell(told: "list[tuple[asyncio.Future[Answer], Answer | Exception]]") -> None:
    for future, answer in told:
        if future.done():  # Its caller has left.
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _may_be_of_one(error: Exception) -> bool:
    """Whether one question of many may be at fault, with nothing of any of them done.

    Not where the connection may be: the commit may have come through, and each would wait as long again.
    """
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError)
    return isinstance(error, StatementError) or not isinstance(error, SQLAlchemyError | OSError)
