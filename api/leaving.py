"""Knowing that the process is about to end before the server waits for its connections: a stream without an end would
be cut off by that wait, and its caller would not know whether more was to come."""

import signal
import threading
from types import FrameType
from typing import Any


class AtWork:
    """True while a thread is within it. A request's own end says nothing of the thread that it began: where the server
    breaks the one off, the other still has to clean up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def __enter__(self) -> None:
        with self._lock:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1


class Leaving:
    """True from the signal on that ends the process."""

    def __init__(self) -> None:
        self._set = False

    def __bool__(self) -> bool:
        return self._set

    def watch(self) -> None:
        """Listen to the signals that end a server, before and beside whoever listens to them now."""
        if threading.current_thread() is not threading.main_thread():
            return  # Within another program, a test's say, signals are that program's.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before(number, signal.getsignal(number))

    def _before(self, number: signal.Signals, then: Any) -> None:
        def note(came: int, frame: FrameType | None) -> None:
            self._set = True
            if callable(then):
                then(came, frame)

        if callable(then):
            signal.signal(number, note)
