"""Clients that each wait for their answer before they ask again, over connections that stay open.

Many in one thread, on bare sockets: a library would take longer to ask than the servers here take to answer. What the
clients themselves used of a processor is told beside what they saw.
"""

import itertools
import multiprocessing
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PATIENCE = 30.0  # for the first answer and the last ones


@dataclass(frozen=True)
class Call:
    """One kind of request. `{n}` in path, headers and body becomes a number that no other request of the run has;
    with several paths they take turns."""

    method: str
    paths: Sequence[str]
    status: int  # that every answer must have
    headers: tuple[str, ...] = ()
    body: str = ""

    def messages(self, host: str, start: int) -> Iterator[bytes]:
        """Whole requests without end, numbered from `start`."""
        for number, path in zip(itertools.count(start), itertools.cycle(self.paths)):
            body = self.body.replace("{n}", str(number)).encode()
            lines = [f"{self.method} {path} HTTP/1.1", f"Host: {host}", *self.headers]
            if body:
                lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
            yield "\r\n".join([*lines, "", ""]).replace("{n}", str(number)).encode() + body


@dataclass
class Seen:
    """What the clients saw: a duration for every answer, in seconds, and the share of a processor they used."""

    seconds: float
    durations: list[float] = field(default_factory=list)
    busy: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.durations) / self.seconds


def drive(port: int, call: Call, clients: int, seconds: float, start: int) -> Seen:
    """Keep so many clients asking 127.0.0.1:`port` for so long, and until there was an answer at all.

    RuntimeError for any other answer than the call's, and for none.
    """
    messages = call.messages(f"127.0.0.1:{port}", start)
    wanted = b"HTTP/1.1 %d " % call.status
    with selectors.DefaultSelector() as chosen, ExitStack() as stack:
        for _ in range(clients):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            chosen.register(connection, selectors.EVENT_READ, _Waiting(connection))
        waiting: list[_Waiting] = [key.data for key in chosen.get_map().values()]
        seen = Seen(seconds)
        began, worked = time.perf_counter(), time.process_time()
        until = began + seconds
        for one in waiting:
            one.ask(next(messages))
        while (now := time.perf_counter()) < until or not seen.durations:
            if now > until + _PATIENCE:
                raise RuntimeError(f"{call.method} {call.paths[0]} was not answered within {now - began:.0f} s")
            for key, _ in chosen.select(until - now if now < until else _PATIENCE):
                answer = key.data.hear()
                if answer is None:
                    continue
                if not answer.startswith(wanted):
                    raise RuntimeError(
                        f"{call.method} {call.paths[0]} was answered:\n{answer.decode(errors='replace')}"
                    )
                seen.durations.append(time.perf_counter() - key.data.asked)
                key.data.ask(next(messages))
        seen.seconds = time.perf_counter() - began
        seen.busy = (time.process_time() - worked) / seen.seconds
        for one in waiting:
            one.hear_out()
    return seen


class _Waiting:
    """One client: its connection, when it asked, and what it has heard of the answer."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.asked = 0.0
        self.heard = b""

    def ask(self, message: bytes) -> None:
        self.heard = b""
        self.asked = time.perf_counter()
        self.connection.sendall(message)

    def hear(self) -> bytes | None:
        """The whole answer, once it is there."""
        piece = self.connection.recv(1 << 18)
        if not piece:
            raise RuntimeError("the server closed the connection")
        self.heard += piece
        head = self.heard.find(b"\r\n\r\n")
        if head < 0:
            return None
        length = _LENGTH.search(self.heard, 0, head)
        if length is None:
            raise RuntimeError(f"an answer without Content-Length:\n{self.heard[:head].decode(errors='replace')}")
        return self.heard if len(self.heard) >= head + 4 + int(length[1]) else None

    def hear_out(self) -> None:
        """Hear the last answer, which is not counted, so that the server has nothing left to do."""
        self.connection.settimeout(_PATIENCE)
        while self.hear() is None:
            pass


@contextmanager
def beside() -> Iterator[Callable[[int, Call, int, float, int], Seen]]:
    """`drive` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        yield lambda *given: pool.submit(drive, *given).result()


def at(share: float, durations: Sequence[float]) -> float:
    """The duration that this share of them does not exceed: the nearest rank."""
    ordered = sorted(durations)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]
