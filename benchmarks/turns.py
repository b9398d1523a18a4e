"""Processes that take turns: each builds what it measures, says so, and answers one message after the other."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


@contextmanager
def in_turns(
    serve: Callable[[Connection, str, Any], None], names: Sequence[str], setup: Any
) -> Iterator[dict[str, Connection]]:
    """A process for each name, ready, by the connection to it: `serve(connection, name, setup)` in a new interpreter.

    Each is sent None at the end of the block, and waited for; what it says to that is for the block to ask for.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([serve.__module__])
    children, connections = [], {}
    for name in names:
        ours, theirs = context.Pipe()
        child = context.Process(target=serve, args=(theirs, name, setup), daemon=True)
        child.start()
        theirs.close()
        children.append(child)
        connections[name] = ours
        assert ours.recv() == "ready"
    yield connections
    for connection in connections.values():
        connection.send(None)
    for child in children:
        child.join()
