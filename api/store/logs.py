"""Logs: one JSON object a line on stderr, from our own code and from every library, never with the text of an error.

An exception's message may quote whatever was being worked on, a forget record too; its type and its place may not.
"""

import logging
import sys
import traceback
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

# Lethe says itself what these say: a line a request, and which revision the database has.
_QUIET = {"uvicorn.access": logging.CRITICAL, "alembic": logging.WARNING, "celery": logging.WARNING}

# What no line of ours tells, and so need not be looked up for each: the switches of logging's own guide to speed.
UNUSED = ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks", "_srcfile")


def configure() -> None:
    """Send all logs of this process through structlog. Doing it again changes nothing."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _place_of_error,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    for name in UNUSED:
        setattr(logging, name, None)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)


def _place_of_error(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace an exception by its type and the lines it went through."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exception()
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        event["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event
