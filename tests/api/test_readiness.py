"""Anybody may ask whether the service is ready, as often as they like: it looks once a second."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from api import readiness
from api.queue import Queue
from api.readiness import Readiness
from api.store.session import Database
from tests.api.parts import NOBODY

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Slow(Queue):
    """A broker whose answer takes as long as is wanted; counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__(NOBODY, 1)
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()

    def reachable(self) -> bool:
        self.asked += 1
        return self.answers.wait(10)


def test_it_is_looked_at_once_however_many_ask(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Slow()
    ready = Readiness(database, queue)
    assert ready.at_hand() is None
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ready.look(), range(50)))
    assert queue.asked == 1
    assert found == [dict.fromkeys(("database", "migrations", "broker"))] * 50
    assert ready.at_hand() == found[0]
    monkeypatch.setattr(readiness, "SECONDS", 0.0)
    assert ready.at_hand() is None
    queue.answers.clear()
    looking = threading.Thread(target=ready.look)
    looking.start()
    while queue.asked < 2:
        time.sleep(0.001)
    assert ready.at_hand() == found[0], "nobody waits for another's look"
    queue.answers.set()
    looking.join()
