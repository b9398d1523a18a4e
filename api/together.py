"""Many callers' like questions to the database, answered in one go: whatever has come while the last ones were being
answered is the next turn.

One transaction then serves them all, with one commit to wait for, and one thread in place of many that wait in line.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
MOST = 64  # in one go


class Together(Generic[Asked, Answer]):
    """Answers by `work`, which gives an answer or an exception for each of what it is given, in order.

    Where `work` itself raises, each is given to it alone, so that nobody's question fails another's.
    """

    def __init__(self, name: str, work: Callable[[Sequence[Asked]], Sequence[Answer | Exception]]) -> None:
        self._name = name
        self._work = work
        self._waiting: queue.SimpleQueue[_Question[Asked, Answer] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    async def ask(self, asked: Asked) -> Answer:
        """The answer. Raises what `work` gave instead of one."""
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
        answers: Sequence[Answer | Exception]
        try:
            answers = self._work([question.asked for question in turn])
        except Exception as error:
            answers = [error] if len(turn) == 1 else [self._alone(question.asked) for question in turn]
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer], Answer | Exception]]] = {}
        for question, answer in zip(turn, answers, strict=True):
            by_loop.setdefault(question.loop, []).append((question.answer, answer))
        for loop, told in by_loop.items():
            # Waking a loop is dear; once for all who wait in it.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_tell, told)

    def _alone(self, asked: Asked) -> Answer | Exception:
        try:
            return self._work([asked])[0]
        except Exception as error:
            return error


class _Question(Generic[Asked, Answer]):
    def __init__(self, asked: Asked) -> None:
        self.asked = asked
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
