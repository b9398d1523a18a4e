"""Writes whose end may be lost with the connection: done again while the database is away, never taken back blindly.

A commit whose answer did not arrive may have happened all the same. Done again it meets its own fence; and what it
referred to is removed only once the database says that no row does.
"""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from api.store import attempts
from api.store.blobs import Blobs
from api.store.session import Database

log = structlog.get_logger()
Result = TypeVar("Result")

_AGAIN_SECONDS = 0.3


def settled(database: Database, seconds: float, work: Callable[[Session], Result]) -> Result:
    """Do `work` in a transaction, and again where the database could not be reached, for at most `seconds`.

    Raises what `work` raises, and the last OperationalError or InterfaceError where the time was too short.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            with database.transaction() as session:
                return work(session)
        except (OperationalError, InterfaceError) as error:
            if time.monotonic() > until:
                raise
            log.warning("database unreachable", error=type(error.orig).__name__)
            time.sleep(_AGAIN_SECONDS)


def discard(database: Database, blobs: Blobs, job_id: str, digests: Iterable[str]) -> None:
    """Remove those of the job's blobs that no row refers to. Where the database is away, the sweep does it later."""
    wanted = list(digests)
    if not wanted:
        return
    try:
        with database.transaction() as session:
            unused = attempts.left_over(session, job_id, wanted)
    except DBAPIError as error:
        log.warning("database unreachable", job=job_id, error=type(error.orig).__name__)
        return
    blobs.delete(unused)
