"""Carries the engine's events to SQL, renews the lease with them, and turns a cancel or a leaving worker into a stop.

The engine's own lease is shorter than the row's: it has stopped by the time another worker may begin.
"""

import queue
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError

from api.store import attempts
from api.store.attempts import Claim, Note
from api.store.metrics import Measurement
from api.store.session import Database
from core.errors import Stopped
from worker.checkpoints import CheckpointStore
from worker.engine import Engine, Event

log = structlog.get_logger()
Result = TypeVar("Result")

_FLUSH_SECONDS = 0.3
_TELL_SECONDS = 1.0
# The engine's deadline starts when it reads the renewal, a moment after the database's; this keeps it the earlier one.
ENGINE_SHARE = 0.8


@dataclass
class Relay:
    """One attempt's conversation with its engine, as a block at whose end the engine has ended, whatever happened.

    Long work of the worker's own (`meanwhile`) goes on beside it, so that the lease is kept through that too.
    """

    database: Database
    claim: Claim
    engine: Engine
    store: CheckpointStore
    lease: float
    grace: float
    leaving: threading.Event
    said: dict[str, Event] = field(default_factory=dict)  # the last event of each kind
    stopped_for: str | None = None  # "cancel" or "leaving"

    def __post_init__(self) -> None:
        self._progress: dict[str, Any] = {}
        self._notes: list[Note] = []
        self._measurements: list[Measurement] = []
        self._flushed = self._told = 0.0
        self._stop_by = 0.0
        self._urgent = True
        self._background = ThreadPoolExecutor(1, thread_name_prefix="files")
        self._saving: list[tuple[Future[None], Path, int]] = []

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.kill()
        self.engine.wait()
        self._background.shutdown(wait=True, cancel_futures=True)

    def run(self, command: Mapping[str, Any]) -> int:
        """Give the engine its command and relay until it ends; returns its exit code. Raises LeaseLost."""
        self.engine.start(command)
        ended = False
        while not ended:
            ended = self._take()
            self._look()
        code = self.engine.wait()
        while self._saving:
            time.sleep(0.02)
            self._collect()
            self._flush()
        self._flush_at_last()
        return code

    def meanwhile(self, work: Callable[[], Result]) -> Result:
        """Do this work and keep the lease until it is done. Raises what it raises, LeaseLost, and Stopped where the
        job is to be cancelled or the worker leaves."""
        doing = self._background.submit(work)
        while not doing.done():
            time.sleep(0.02)
            cancel = self._flush()
            # An engine that was asked to stop and came to its end all the same: what it made is stored.
            if self.stopped_for is None and (cancel or self.leaving.is_set()):
                self.stopped_for = "cancel" if cancel else "leaving"
                raise Stopped(f"stopped for {self.stopped_for}")
        return doing.result()

    def _take(self) -> bool:
        """Take what the engine said since the last look; True at its end."""
        until = time.monotonic() + _FLUSH_SECONDS
        while (left := until - time.monotonic()) > 0:
            try:
                event = self.engine.events.get(timeout=left)
            except queue.Empty:
                return False
            if event is None:
                return True
            self._enter(event)
            if self._urgent:
                return False
        return False

    def _look(self) -> None:
        """Write what is due, and stop the engine where that was asked for."""
        self._collect()
        cancel = self._flush()
        if self.stopped_for is None and (cancel or self.leaving.is_set()):
            self.stopped_for = "cancel" if cancel else "leaving"
            self._stop_by = time.monotonic() + self.grace
            self.engine.stop()
        if self.stopped_for and time.monotonic() > self._stop_by:
            self.engine.kill()

    def _collect(self) -> None:
        """Take what storing checkpoints has come to. Where the database was away it is done again, since the folder is
        still there, unless the worker must leave. Raises whatever else went wrong."""
        while self._saving and self._saving[0][0].done():
            future, folder, step = self._saving.pop(0)
            try:
                if not future.cancelled():
                    future.result()
            except DBAPIError as error:
                log.warning("database unreachable", job=self.claim.job_id, error=type(error.orig).__name__)
                if self.leaving.is_set():
                    raise
                time.sleep(_FLUSH_SECONDS)
                self._save(folder, step)

    def _save(self, folder: Path, step: int) -> None:
        """Store a checkpoint; those that still wait are overtaken by it, and need not be stored at all."""
        for waiting, old, _ in self._saving:
            if waiting.cancel():
                shutil.rmtree(old, ignore_errors=True)
        self._saving.append((self._background.submit(self.store.keep, folder, step), folder, step))

    def _flush_at_last(self) -> None:
        """Write what is left to say, for as long as the lease can hold."""
        until = time.monotonic() + self.lease
        self._flush(force=True)
        while (self._notes or self._measurements) and time.monotonic() < until:
            time.sleep(_FLUSH_SECONDS)
            self._flush(force=True)

    def _flush(self, force: bool = False) -> bool:
        waited = time.monotonic() - self._flushed
        something = bool(self._notes or self._measurements)
        due = (
            force
            or self._urgent
            or waited > self.lease / 3
            or waited > _TELL_SECONDS
            or (something and waited > _FLUSH_SECONDS)
        )
        if not due:
            return False
        self._flushed, self._urgent = time.monotonic(), False
        try:
            with self.database.transaction() as session:
                cancel = attempts.record(
                    session,
                    self.claim,
                    lease=self.lease,
                    progress=self._progress,
                    notes=self._notes,
                    measurements=self._measurements,
                )
        except DBAPIError as error:
            # The database is away: what was said is kept and written later. The engine ends itself with its lease.
            log.warning("database unreachable", job=self.claim.job_id, error=type(error.orig).__name__)
            return False
        self._notes, self._measurements = [], []
        self.engine.renew(self.lease * ENGINE_SHARE)
        return cancel

    def _enter(self, event: Event) -> None:
        kind = event.pop("event")
        self.said[kind] = event
        if kind == "step":
            self._step(event)
        elif kind == "progress":
            self._progress |= {name: event[name] for name in ("phase", "done", "total")}
        elif kind == "phase":
            self._progress = {"phase": event["phase"]}
            self._note(kind, event)
        elif kind == "checkpoint":
            self._save(Path(event["folder"]), event["step"])
        elif kind == "scores":
            self._measurements.append(Measurement(event["when"], 0, event["metrics"]))
            self._note(kind, {"when": event["when"]})
        elif kind == "watch":
            self._measurements.append(Measurement("watch", event["step"], event["metrics"]))
            self._note(kind, event)
        elif kind in ("accepted", "attack"):
            self._note(kind, event)
        # `done` and `error` are written by whoever ends the attempt; `ready` is old news, and so may others be.

    def _note(self, kind: str, event: Event) -> None:
        self._notes.append(Note(kind, event))
        self._urgent = True

    def _step(self, event: Event) -> None:
        numbers = {name: value for name, value in event.items() if name not in ("at", "step", "steps", "seconds_left")}
        self._measurements.append(Measurement("step", event["step"], numbers))
        keep = ("step", "steps", "loss", "seconds_left")
        self._progress = {"phase": "train"} | {name: event[name] for name in keep}
        if time.monotonic() - self._told > _TELL_SECONDS or event["step"] == event["steps"]:
            self._told = time.monotonic()
            self._notes.append(Note("progress", dict(self._progress)))
